"""The reader of a table's file in tables/. TABLE describes what may stand in it.

A check is a function of a value and of the place where it stands, such as `rows['KD'].options.lr`. It raises UsageError for a value that
is not allowed.
"""

import graphlib
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Sequence
from pathlib import Path
from typing import Any

from .cli import UsageError
from .csv_files import ROOT, published_names, read_text, shown, split_pair, split_published
from .datasets import spec_of
from .options import MAX_SEED
from .utils import lookup, matching
from .values import check as check_option
from .values import short

Check = Callable[[Any, str], None]
LARGEST = 2**63 - 1
MANY = {"ge": 1, "le": 10_000}  # seeds of a table


# ---- checks of a value


def of(kind: type | tuple[type, ...], what: str, **bounds: float) -> Check:
    """A check of a value's type (true is no number) and, as for an option, of the value. what: what is allowed; bounds: ge, le."""
    kinds = kind if isinstance(kind, tuple) else (kind,)

    def check(value: Any, place: str) -> None:
        if type(value) not in kinds or (type(value) is int and abs(value) > LARGEST):
            raise UsageError(f"{place} is {shown(value)}: it must be {what}")
        try:
            check_option("", value, bounds)
        except UsageError as e:
            raise UsageError(f"{place} is {str(e).removeprefix('-- ')}") from None

    return check


TEXT = of(str, "a text")


def sentence(value: Any, place: str) -> None:
    """A check of texts that may be longer than a name."""
    for part in value.split(" ") if isinstance(value, str) else [value]:
        TEXT(part, place)


def exact(kind: str, names: Callable[[], Collection[str]]) -> Callable[[str], None]:
    """A function that raises UsageError for a name that is not there, or is spelled otherwise there."""

    def find(name: str) -> None:
        if name not in (there := names()):
            raise UsageError(f"no {kind} {name!r} (did you mean {lookup(name, there, kind)}?)")

    return find


def understood(by: Callable[[str], object], empty: bool = False) -> Check:
    """A check of texts that the function `by` takes without an error; empty: whether an empty text is allowed, too."""

    def check(value: Any, place: str) -> None:
        TEXT(value, place)
        if value or not empty:
            try:
                by(value)
            except UsageError as e:
                raise UsageError(f"{place}: {e}") from None

    return check


def many(item: Check, what: str, identity: Callable[[Any], Hashable] = lambda value: value) -> Check:
    """A check of lists of one or more different values; identity: what must differ."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, list) or not value:
            raise UsageError(f"{place} is {shown(value)}: it must be a list of one or more {what}")
        for i, v in enumerate(value):
            name = v.get("name") if isinstance(v, dict) else None
            item(v, f"{place}[{shown(name) if isinstance(name, str) else i}]")
        if twice := [k for k, n in Counter(map(identity, value)).items() if n > 1]:
            raise UsageError(f"{place} has {shown(twice[0])} twice; its {what} must differ")

    return check


def tuple_of(n: int, item: Check) -> Check:
    """A check of lists of n values."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, list) or len(value) != n:
            raise UsageError(f"{place} is {shown(value)}: it must be a list of {n} values")
        for i, v in enumerate(value):
            item(v, f"{place}[{i}]")

    return check


def mapping(key: Check, value_of: Check, what: str) -> Check:
    """A check of TOML tables with any number of keys."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, dict):
            raise UsageError(f"{place} is {shown(value)}: it must be {what}")
        for k, v in value.items():
            key(k, f"a key of {place}")
            value_of(v, f"{place}.{k}")

    return check


def record(needed: set[str], others: bool = False, **checks: Check) -> Check:
    """A check of dictionaries with the given keys; needed: those that must be there; others: whether there may be other keys."""

    def check(value: Any, place: str) -> None:
        before = f"{place}." if place else ""
        if not isinstance(value, dict):
            raise UsageError(f"{place} is {shown(value)}: it must be a table with the keys {', '.join(checks)}")
        if not others and (unknown := value.keys() - checks.keys()):
            raise UsageError(f"{before}{shown(min(unknown))[1:-1]} is an unknown key; there are: {', '.join(checks)}")
        if lacking := sorted(needed - value.keys()):
            raise UsageError(f"{before}{lacking[0]} is missing; needed are: {', '.join(sorted(needed))}")
        for k in (k for k in checks if k in value):
            checks[k](value[k], before + k)

    return check


# ---- a table


def scripts() -> list[str]:
    """The names of the scripts that a row can run."""
    return sorted(p.stem for p in (ROOT / "project").glob("*.py") if p.stem != "table")


def row_name(name: str) -> None:
    """UsageError for an empty name."""
    if not name.strip():
        raise UsageError(f"{name!r} is no name; give the row one")


def option_name(name: str) -> None:
    """UsageError for a name that no option of a run has."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name) or name == "help":
        raise UsageError(f"{name!r} is no option; `python project/SCRIPT.py --help` lists those of a script")


def published_number(name: str) -> None:
    """UsageError for a name that means no number of published.csv: a method's, or `PAPER: METHOD`."""
    paper, method = split_published(name)
    exact(f"method of {paper} in published.csv" if paper else "method in published.csv", lambda: published_names("method", paper))(method)


def published_numbers(value: Any, place: str) -> None:
    """A check of the published numbers beside a row: a name, a list of names, or these for each pair."""
    if isinstance(value, dict):
        return mapping(PAIR, several_numbers, "a table of pairs")(value, place)
    several_numbers(value, place)


def several_numbers(value: Any, place: str) -> None:
    """A check of a name or of a list of names of published numbers."""
    name = understood(published_number)
    (many(name, "names") if isinstance(value, list) else name)(value, place)


LIKE = understood(lambda name: table_path(name))
SCRIPT = understood(exact("script", scripts))
PAIR = understood(split_pair)
VALUE = of((str, int, float, bool), "a text, a number, true or false")
OPTIONS = mapping(understood(option_name), VALUE, "a table of options")
ROW = record(
    {"name", "script"},
    name=understood(row_name),
    script=SCRIPT,
    options=OPTIONS,
    needs=many(SCRIPT, "scripts"),
    labels=TEXT,
    reuse=record({"row"}, row=TEXT, pair=PAIR),
    alone=of(bool, "true or false"),
    published=published_numbers,
)
TABLE = record(
    {"title", "dataset", "pairs", "seeds", "rows"},
    like=LIKE,
    title=TEXT,
    paper=understood(exact("paper", lambda: published_names("paper")), empty=True),
    dataset=understood(spec_of),
    private=understood(spec_of, empty=True),
    teacher_published=published_numbers,
    findings=many(sentence, "sentences"),
    pairs=many(PAIR, "pairs", split_pair),
    seeds=many(of(int, "a whole number", ge=0, le=MAX_SEED), "seeds"),
    rows=many(ROW, "rows", lambda row: row["name"]),
    options=OPTIONS,
    scripts=mapping(SCRIPT, OPTIONS, "a table of options for each script"),
    against=TEXT,
    serve=record({"port"}, port=of(int, "a port", ge=1024, le=65535), options=OPTIONS, asking=OPTIONS),
    budgets=many(of(int, "a whole number", ge=1, le=LARGEST), "query budgets"),
)


def table_names() -> list[str]:
    """The names of the files of tables/."""
    return sorted(p.stem for p in (ROOT / "tables").glob("*.toml"))


def table_path(name: str) -> Path:
    """The file of a table: tables/NAME.toml, or the path of a .toml file. UsageError for a name that is not there."""
    if name.endswith(".toml"):
        return Path(name)
    return ROOT / "tables" / f"{lookup(name, table_names(), 'table', 'or a .toml file')}.toml"


def read_table(name: str, like_it: tuple[Path, ...] = ()) -> dict:
    """The content of a table's file, checked; UsageError for a file that is none. like_it: the tables that are `like` this one."""
    path = table_path(name)
    if path in like_it:
        raise UsageError(f"{path}: like leads in a circle, by way of {', '.join(p.stem for p in like_it)}")
    try:
        table = tomllib.loads(read_text(path))
    except RecursionError:
        raise UsageError(f"{path}: too many brackets inside each other") from None
    except ValueError as e:
        raise UsageError(f"{path}: {e}") from None
    if "like" in table:  # what it does not say is as in that table
        try:
            LIKE(table["like"], "like")
        except UsageError as e:
            raise UsageError(f"{path}: {e}") from None
        table = {k: v for k, v in read_table(table["like"], (*like_it, path)).items() if k != "findings"} | table
    try:
        TABLE(table, "")
        check_references(table)
    except UsageError as e:
        raise UsageError(f"{path}: {e}") from None
    return table


def check_references(table: dict) -> None:
    """UsageError where a row refers to a row that there is not, or in the end to itself, or where keys do not go together."""
    rows = {row["name"]: row for row in table["rows"]}
    one_of_them = understood(exact("row", lambda: rows))
    refers = {}
    if "against" in table:
        one_of_them(table["against"], "against")
    for name, row in rows.items():
        place, others = f"rows[{shown(name)}]", {"labels": row.get("labels"), "reuse.row": row.get("reuse", {}).get("row")}
        for key, other in others.items():
            if other is not None:
                one_of_them(other, f"{place}.{key}")
        refers[name] = {others["labels"]} - {name} | {others["reuse.row"]} - {None}
        check_row(row, place, bool(table.get("budgets")))
    try:
        graphlib.TopologicalSorter(refers).prepare()
    except graphlib.CycleError as e:
        raise UsageError(f"labels and reuse of rows lead in a circle: {' -> '.join(map(shown, e.args[1]))}") from None


def check_row(row: dict, place: str, has_budgets: bool) -> None:
    """UsageError where keys of a row do not go together."""
    if row["script"] in row.get("needs", []):
        raise UsageError(f"{place}.needs has the row's own script {row['script']}; name the scripts that run before it")
    if row.get("alone") and (more := row.keys() & {"needs", "labels", "reuse"}):
        raise UsageError(f"{place}.alone does not go with {min(more)}, which takes a teacher; leave one of them out")
    if has_budgets and "query_budget" in row.get("options", {}):
        raise UsageError(f"{place}.options.query_budget does not go with budgets, which sets it; leave one of them out")


# ---- what the command line selects

SEEDS = "number of seeds (3: 0, 1, 2), range (0-4) or list (0,2,5) of seeds, instead of those in the table's file"


def seeds_of(text: str) -> list[int]:
    """The seeds that --seeds gives: `3` is 0, 1, 2; `0-4` and `0,2,5-7` are ranges and lists. UsageError for anything else."""
    if re.fullmatch(r"[+-]?[0-9]{1,18}", text.strip(), re.ASCII):
        check_option("seeds", int(text), MANY)
        return list(range(int(text)))
    found = []
    for part in text.split(","):
        if not (ends := re.fullmatch(r"([0-9]{1,10})(?:-([0-9]{1,10}))?", part.strip(), re.ASCII)):
            what = "a number of seeds (3 is 0, 1, 2), a range (0-4) or a list (0,2,5-7)"
            raise UsageError(f"--seeds {short(text)}: it must be {what}")
        first, last = int(ends[1]), int(ends[2] or ends[1])
        if first > last:
            raise UsageError(f"--seeds {short(text)}: the range {part.strip()} is empty; give {last}-{first}")
        if last > MAX_SEED:
            raise UsageError(f"--seeds {short(text)}: seed {last} is too large; the largest is {MAX_SEED}")
        check_option("seeds", last - first + len(found) + 1, MANY)
        found += range(first, last + 1)
    return list(dict.fromkeys(found))


def seeds_text(seeds: Sequence[int]) -> str:
    """What --seeds takes for these seeds, in ascending order: `3`, `1-3` or `0,2`."""
    if len(seeds) < seeds[-1] - seeds[0] + 1:
        return ",".join(map(str, seeds))
    return f"{seeds[0]}-{seeds[-1]}" if seeds[0] else str(len(seeds))


def rows_named(given: Sequence[str], names: Sequence[str]) -> list[str]:
    """The rows that --only names, each by its name or a unique beginning; several with commas. UsageError for others."""
    found = []
    for text in given:
        whole = text if row_meant(text, names) else None  # names of rows may have commas
        for word in [whole] if whole else text.split(","):
            name = row_meant(word, names) or lookup(word.strip(), names, "row for --only")
            found.append(name)
    return list(dict.fromkeys(found))


def row_meant(text: str, names: Sequence[str]) -> str | None:
    """The row with this name, or the only one that begins so (without regard to case); None for none. UsageError for several."""
    text = text.strip()
    if text in names or (name := matching(text, names)):
        return text if text in names else name
    begin = [name for name in names if text and name.lower().startswith(text.lower())]
    if len(begin) > 1:
        raise UsageError(f"--only {short(text)}: several rows begin so: {', '.join(begin)}; give more of the name")
    return begin[0] if begin else None
