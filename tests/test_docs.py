"""README and docs: every command is understood, every example runs, every link leads somewhere, no result is stale."""

import contextlib
import importlib
import os
import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import campaign
import ledger
import pytest
from conftest import ROOT

from common import beside, csv_files, devices, options, report, results, tables

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
# python prints its arguments; what else stands in the docs does nothing
STUBS = """
python() { printf '%s\\0' "$@" $'\\n' >&3; }
nohup() { "$@"; }
source() { :; }; make() { :; }; pip() { :; }; tensorboard() { :; }; cp() { :; }; cat() { :; }
"""


def blocks(page, language):
    return [text for kind, text in BLOCK.findall(page.read_text()) if kind == language]


def commands(page, folder):
    """[script, options ...] of each `python` command in a page's sh blocks, as bash expands them; those with `...` left out."""
    text = re.sub(r" &(?=\s*(#.*)?$)", "", "\n".join(blocks(page, "sh")), flags=re.MULTILINE)  # one after the other, in one file
    out = folder / "commands"
    subprocess.run(["bash", "-c", f"exec 3>{out}; {STUBS}\n{text}"], cwd=folder, check=True, capture_output=True)
    calls, words = [], []
    for word in out.read_text().split("\0"):
        if word == "\n":
            calls.append([w for w in words if w != "-u"])
            words = []
        else:
            words.append(word)
    return [c for c in calls if not any("..." in w for w in c)]


@pytest.mark.parametrize("page", [p for p in PAGES if "results" not in p.parts], ids=lambda p: p.name)
def test_every_command_is_understood(page, tmp_path):
    for script, *argv in commands(page, tmp_path):
        folder, name = script.rsplit("/", 1)
        assert (ROOT / script).exists(), script
        if "--help" in argv:
            continue
        if name == "ledger.py":
            ledger.parsed(argv)
        elif name == "campaign.py":
            campaign.arguments(argv)
        elif folder == "project" and name != "table.py":
            options.parse(importlib.import_module(name[:-3]).Args, argv)
        elif name == "table.py":
            named = [a for a in argv[:1] if not a.startswith("-")]
            assert all((ROOT / "tables" / f"{n}.toml").exists() for n in named)


def test_the_readmes_commands_run_and_end_as_shown(tmp_path):
    """With one epoch each: the last line has the form that README shows."""
    shown = re.findall(r"^# (\w+ \w+.* on Digits, seed 0: .*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    calls = [c for c in commands(ROOT / "README.md", tmp_path) if c[0] != "project/table.py"]
    assert len(calls) == len(shown) == 5
    for (script, *argv), line in zip(calls, shown, strict=True):
        short = ["--epochs", "1", *(["--steps", "2"] if "MEKD" in script else []), "--device", "cpu"]
        command = [sys.executable, str(ROOT / script), *argv, *short]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
        form = re.sub(r"[\d,]+(\\\.\d+)?", r"[\\d,]+(\\.\\d+)?", re.escape(line))
        assert re.fullmatch(form, done.stdout.splitlines()[-1]), (line, done.stdout.splitlines()[-1])


def test_the_examples_of_extending_run(tmp_path, monkeypatch, capsys):
    page = ROOT / "docs" / "extending.md"
    method, *others = blocks(page, "python")
    (tmp_path / "Cosine.py").write_text(method)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    from common import datasets, models

    monkeypatch.setattr(datasets, "DATASETS", datasets.DATASETS)
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: (datasets.DATASETS.pop("Stripes", 0), models.MODELS.pop("TinyNet", 0)))
        *before, load = others
        for code in before:
            exec(compile(code, str(page), "exec"), {"__name__": "example"})
        ((script, *argv),) = [c for c in commands(page, tmp_path) if "Stripes" in c]
        assert script == "project/KD.py"
        importlib.import_module("KD").main([*argv, "--device", "cpu"])
        exec(compile(load, str(page), "exec"), {"__name__": "example"})
        assert set(eval(capsys.readouterr().out.splitlines()[-1])) <= {"vertical", "horizontal"}
        result = importlib.import_module("Cosine").main([*argv, "--device", "cpu"])
    assert 0 <= result["log"]["cos"] <= 2 and result["options"]["lr"] == 0.05 and result["queries"] == 100


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for text, target in re.findall(r"\[([^]]+)\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), f"{text}: {target}"
        if anchor:
            heads = re.findall(r"^#+ (.*)$", other.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in heads}, target


def test_result_tables_are_up_to_date():
    assert not results.stale(), "run: python project/table.py --docs"


@pytest.mark.parametrize("path", sorted((ROOT / "tables/measured").glob("*.csv")), ids=lambda p: p.stem)
def test_every_result_page_names_commit_versions_device_seeds_and_command(path):
    text, rows = (ROOT / f"docs/results/{path.stem}.md").read_text(), csv_files.read_measured(path)
    lines = re.findall(r"^- device .*; commit .*; python .*; torch .*; torchvision .*; numpy .* \(\d+ runs?\)$", text, re.MULTILINE)
    assert sum(int(re.search(r"(\d+) runs?\)$", line)[1]) for line in lines) == len(rows) and "unknown" not in text
    for row in rows:
        commit = re.search(r"commit (\S+)", row["versions"])[1].replace("unknown", "not recorded")
        assert any(line.startswith(f"- device {row['device']}; commit {commit}; ") for line in lines)
    said = re.search(r"seeds (.+)\. Repeat it with:\n\n```sh\npython project/table\.py [\w-]+ --seeds (\S+)(.*)\n", text)
    assert {*tables.seeds_of(said[2])} == {row["seed"] for row in rows}
    assert {*tables.seeds_of(said[1].replace(" to ", "-") + ",0")} == {row["seed"] for row in rows}  # seed 0 is in all of them
    wanted, names = (
        [row["name"] for row in tables.read_table(results.source_of(path))["rows"]],
        {r["method"].partition(" @")[0] for r in rows},
    )
    repeated = shlex.split(said[3])[1::2] or wanted  # the command runs the rows that are measured, and the page names the others
    assert repeated == [name for name in wanted if name in names]
    left = "; ".join(name for name in wanted if name not in names)
    assert re.findall(r"not measured yet: (.*)\.\n", text) == [left] * bool(left)


@pytest.mark.parametrize("seeds, flag", [([0, 1, 2], "3"), ([0], "1"), ([3], "3-3"), ([1, 2], "1-2"), ([0, 2], "0,2")])
def test_the_command_of_a_page_names_its_seeds(seeds, flag):
    measured = results.Measured("device-digits-cpu")
    ((pair, name, _), task), *_ = measured.cells.items()
    measured.cells = {(pair, name, seed): task for seed in seeds}
    assert f"device-digits --seeds {flag}\n" in measured.page() and tables.seeds_of(flag) == seeds


def test_what_is_not_recorded_is_said_and_a_copy_without_git_has_a_hash(tmp_path, monkeypatch):
    task = SimpleNamespace(result={"device": "CPU, 1 thread", "versions": {"torch": "2", "commit": "unknown", "source": "abc"}})
    others = {("a -> b", "KD", seed): SimpleNamespace(result={"device": "GPU", "versions": {}}) for seed in (1, 2)}
    first, second = report.machines({("a -> b", "KD", 0): task} | others)
    assert (
        first == "device CPU, 1 thread; commit not recorded; torch 2; source abc (1 run)"
        and second == "device GPU; commit not recorded (2 runs)"
    )
    for name, text in (("a.py", "1"), ("common/b.py", "2"), ("common/devices.py", "3")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(devices, "__file__", str(tmp_path / "common/devices.py"))
    found = devices.versions()
    assert found["commit"] == "unknown" and re.fullmatch("[0-9a-f]{12}", found["source"])
    (tmp_path / "a.py").write_text("4")
    assert devices.source_hash() != found["source"]
    (tmp_path / "a.py").write_text("1")
    (tmp_path / "notes.txt").write_text("no source")
    assert devices.source_hash() == found["source"]


def test_a_result_table_is_filled():
    text = "before\n<!-- measured: digits-cpu; columns: method, against, 1shot -->\nold\n<!-- end -->\nafter"
    made = results.filled(text)
    assert "old" not in made and made.startswith("before\n") and made.endswith("<!-- end -->\nafter")
    head, _, *rows = made.splitlines()[2:-2]
    assert [c.strip() for c in head.strip("| ").split("|")] == ["method", "accuracy (last), %", "against KD"] and len(rows) == 18
    assert any("MEKD soft" in r and "97.20 ± 0.51" in r and "+1.12 [+0.09, +2.15]" in r for r in rows)
    with pytest.raises(Exception, match=r"no file .*nothing\.csv; tables/measured has: "):
        results.filled("<!-- measured: nothing -->\n<!-- end -->")


def test_the_rows_beside_a_released_program(tmp_path):
    """Equal spreads d around 90 and 92 with n = 3: the interval is 2 -+ t(0.975, 4) * d * sqrt(2 / 3)."""
    path = tmp_path / "x.csv"
    runs = [("released", 89), ("released", 90), ("released", 91), ("ours", 91), ("ours", 92), ("ours", 93)]
    path.write_text("code,method,seed,accuracy\n" + "".join(f"{code},KD,0,{a}\n" for code, a in runs))
    half = 2.7764451 * (2 / 3) ** 0.5
    gap = f"+2.00 [{2 - half:+.2f}, {2 + half:+.2f}]"
    wanted = {"method": "KD", "released, %": "90.00 ± 1.00 (3)", "code": "ours", "ours, %": "92.00 ± 1.00 (3)", "ours - released": gap}
    assert [*beside.rows_of(path)] == [wanted]


def test_the_readme_is_one_screen():
    assert (ROOT / "README.md").stat().st_size <= 8192
