"""The files of tables/: a data set, pairs of teacher and student, seeds, rows; read and checked."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

from .cli import UsageError
from .report import ROOT

KEYS = {"like", "title", "paper", "dataset", "private", "pairs", "seeds", "rows", "options", "scripts", "against", "budgets"}
NEEDED = {"title", "dataset", "pairs", "seeds", "rows"}
ROW_KEYS = {"name", "script", "options", "needs", "labels", "reuse", "alone", "published"}


def table_names() -> list[str]:
    """The names of the files of tables/."""
    return sorted(p.stem for p in (ROOT / "tables").glob("*.toml"))


def read_table(name: str, like_it: tuple[Path, ...] = ()) -> dict:
    """The content of a table's file; UsageError for an unknown table or key. like_it: the tables that are `like` this one."""
    path = Path(name) if name.endswith(".toml") else ROOT / "tables" / f"{name}.toml"
    if path in like_it:
        raise UsageError(f"{path}: it is `like` itself, by way of {', '.join(p.stem for p in like_it)}")
    try:
        table = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"no table {name!r}; there are: {', '.join(table_names())}, or a .toml file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UsageError(f"{path}: {e}") from None
    if "like" in table:  # what it does not say is as in that table
        table = read_table(table["like"], (*like_it, path)) | table
    if problem := next(problems(table), ""):
        raise UsageError(f"{path} {problem}")
    return table


def problems(table: dict) -> Iterator[str]:
    """What is wrong with a table, a phrase each."""
    if unknown := table.keys() - KEYS:
        yield f"has unknown keys {', '.join(sorted(unknown))}; there are: {', '.join(sorted(KEYS))}"
    if lacking := NEEDED - table.keys():
        yield f"lacks {', '.join(sorted(lacking))}"
    yield from (
        f"has a pair {pair!r} that is not of the form 'ResNet32 -> ResNet8'" for pair in table["pairs"] if len(str(pair).split("->")) != 2
    )
    names = [row.get("name") for row in table["rows"]]
    if table.get("against") and table["against"] not in names:
        yield f"has against {table['against']!r}, which is no row's name"
    for row in table["rows"]:
        yield from (f"has a row {row.get('name')!r} {problem}" for problem in problems_of_row(row, names))


def problems_of_row(row: dict, names: list[str]) -> Iterator[str]:
    """What is wrong with a row, a phrase each; names: of all rows."""
    if unknown := row.keys() - ROW_KEYS:
        yield f"with unknown keys {', '.join(sorted(unknown))}; there are: {', '.join(sorted(ROW_KEYS))}"
    if row.get("labels", row.get("name")) not in names:
        yield f"with the labels of {row['labels']!r}, which is no row's name"
    if (old := row.get("reuse")) and (set(old) - {"row", "pair"} or old.get("row") not in names):
        yield f"that reuses {old}; it takes a row's name, and a pair where it is another"
    if not (ROOT / "project" / f"{row.get('script')}.py").exists():
        yield f"with script {row.get('script')!r}, which project/ does not have"
