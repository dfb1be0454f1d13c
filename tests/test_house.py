"""The house's laws: who may import whom, types on public signatures, files of a size that one reads."""

import ast

import pytest
from conftest import FEWSHOT, ROOT, SCRIPTS, TOOLS

COMMON = ROOT / "project" / "common"
# rooms that belong to some scripts each
SYSTEMS = {"db3kd", "aeahl", "gda", "fewshot", "imitation", "serving", "export", "page", "campaign"}


def dotted(path):
    """`db3kd.labels` for common/db3kd/labels.py, `datasets` for common/datasets/__init__.py."""
    return ".".join(path.relative_to(COMMON).with_suffix("").parts).removesuffix(".__init__").removesuffix("__init__")


def imports_of(path, rooms):
    """The modules of common that a file of common imports, by dotted name."""
    package = path.relative_to(COMMON).parent.parts
    for node in (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)):
        if not node.level:
            assert not {node.module.split(".")[0]} & {*SCRIPTS, *FEWSHOT, *TOOLS}, f"{path} imports a script"
            continue
        base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
        yield from {f"{base}.{a.name}".strip(".") if f"{base}.{a.name}".strip(".") in rooms else base for a in node.names}


def test_common_imports_no_script_the_core_no_system_and_nothing_in_a_circle():
    paths = {dotted(p): p for p in COMMON.rglob("*.py")}
    graph = {name: set(imports_of(p, paths)) - {name} for name, p in paths.items()}
    for name, others in graph.items():
        if name.split(".")[0] not in SYSTEMS:
            assert not {o for o in others if o.split(".")[0] in SYSTEMS}, f"common/{name} is of the core and imports {others}"

    def reach(room, seen=()):
        assert room not in seen, f"a circle: {' -> '.join([*seen, room])}"
        for other in graph.get(room, ()):
            reach(other, (*seen, room))

    for room in graph:
        reach(room)


@pytest.mark.parametrize("name", [*SCRIPTS, *FEWSHOT, "robustness"])
def test_a_script_imports_no_script(name):
    text = (ROOT / "project" / f"{name}.py").read_text()
    roots = {n.module.split(".")[0] for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom)}
    roots |= {a.name.split(".")[0] for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Import) for a in n.names}
    assert not roots & {*SCRIPTS, *FEWSHOT, *TOOLS}


def unannotated(function):
    """The names of a function's parameters without a type, and `return` where its result has none."""
    args = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    missing = [a.arg for a in args if a.annotation is None and a.arg not in ("self", "cls")]
    return missing + ["return"] * (function.returns is None and function.name != "__init__")


@pytest.mark.parametrize("path", sorted(COMMON.rglob("*.py")), ids=dotted)
def test_public_signatures_carry_types(path):
    functions = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            functions[node.name] = node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            functions |= {f"{node.name}.{m.name}": m for m in node.body if isinstance(m, ast.FunctionDef)}
    public = {name: f for name, f in functions.items() if not f.name.startswith("_") or f.name == "__init__"}
    assert {name: missing for name, f in public.items() if (missing := unannotated(f))} == {}


@pytest.mark.parametrize("path", sorted((ROOT / "project").rglob("*.py")), ids=lambda p: p.stem)
def test_no_file_is_longer_than_one_reads(path):
    assert len(path.read_text().splitlines()) <= 340
