"""The reader of the CSV files in tables/: published numbers, and the measured ones, which a table writes. Each column is checked."""

import csv
import io
import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .blackbox import KINDS, RESPONSES
from .cli import UsageError
from .exported import SHOWN
from .models import canonical
from .utils import check_regular
from .values import short

ROOT = Path(__file__).resolve().parent.parent.parent
COPYING = ("synthetic_median", "private_median", "closer")  # of generators
FEWSHOT = ("1shot", "1shot_half", "5shot", "5shot_half")  # accuracies, and half the width of their intervals


def shown(value: object) -> str:
    """A value as a message shows it."""
    if isinstance(value, str):
        return short(value)
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # thousands of digits, or of brackets
        return f"too long to show ({type(value).__name__})"
    return text if len(text) <= 80 else f"{text[:60]}..."


def read_text(path: Path) -> str:
    """The text of a UTF-8 file; UsageError where it cannot be read."""
    try:
        check_regular(path)
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"no file {path}") from None
    except UnicodeDecodeError as e:
        line = e.object[: e.start].count(b"\n") + 1
        raise UsageError(f"{path}, line {line}: found the byte {e.object[e.start]:#04x}, expected UTF-8 text") from None
    except (OSError, ValueError) as e:  # a name that no file can have
        raise UsageError(f"cannot read {path}: {getattr(e, 'strerror', None) or e}") from None


def split_pair(pair: str) -> tuple[str, str]:
    """(teacher, student) of `ResNet32 -> ResNet8`, as MODELS spells them; UsageError for another form or an unknown model."""
    names = [name.strip() for name in pair.split("->")]
    if len(names) != 2:
        raise UsageError(f"{shown(pair)} is not of the form 'ResNet32 -> ResNet8'")
    return canonical(names[0]), canonical(names[1])


# ---- columns


@dataclass(frozen=True)
class Column:
    """A column of a CSV file. what: what is expected in it; read: gives its value, or raises ValueError; empty: whether it may be empty."""

    what: str
    read: Callable[[str], Any] = str
    empty: bool = False


def numbers(high: float = math.inf, kind: type = float, empty: bool = True, low: int = 0) -> Column:
    """A column of finite numbers from `low` to `high`."""

    def read(text: str) -> float:
        if not (low <= (value := kind(text)) <= high and math.isfinite(value)):
            raise ValueError
        return value

    what = f"from {low} to {high}" if math.isfinite(high) else f"of at least {low}"
    return Column(f"a {'whole ' if kind is int else ''}number {what}", read, empty)


def chosen(names: tuple[str, ...], empty: bool) -> Column:
    """A column of these names."""
    return Column(f"one of {', '.join(names)}", lambda text: names[names.index(text)], empty)


def pair_of(text: str) -> str:
    """`text`, if it names a teacher and a student; ValueError otherwise."""
    try:
        split_pair(text)
    except UsageError as e:
        raise ValueError(e) from None
    return text


def options_of(text: str) -> str:
    """`text`, if it is of the form `name=value name=value`, quoted as for a shell; ValueError otherwise."""
    if not all("=" in word for word in shlex.split(text)):
        raise ValueError
    return text


SPREAD = ("error", "runs")
WORDS, PERCENT = Column("a text"), numbers(100)
PUBLISHED = {
    "paper": WORDS,
    **dict.fromkeys(("dataset", "teacher", "student"), Column("a name", empty=True)),
    "method": WORDS,
    "value": numbers(100, empty=False),
    "error": PERCENT,  # standard error of the value, a mean over
    "runs": numbers(kind=int, low=2),
    "confidence": chosen(("A", "B", "C", "D"), empty=False),
    "source": WORDS,
    "note": Column("a text", empty=True),
}
MEASURED = {
    "method": WORDS,
    "pair": Column("a pair of models, such as ResNet32 -> ResNet8", pair_of),
    "seed": numbers(2**32 - 1, int, empty=False),
    "needs": chosen(RESPONSES, empty=True),
    **dict.fromkeys(("accuracy", "best", "top5", "agreement"), PERCENT),
    "teacher_kl": numbers(),
    **dict.fromkeys(("ece", "teacher_accuracy"), PERCENT),
    "queries": numbers(empty=False),
    "repeated": numbers(),
    **dict.fromkeys(KINDS, numbers()),
    "bytes": numbers(empty=False),
    **dict.fromkeys((*FEWSHOT, *COPYING), numbers()),
    **dict.fromkeys(SHOWN[:-1], numbers()),
    SHOWN[-1]: PERCENT,
    "seconds": numbers(empty=False),
    "peak_mb": numbers(),
    "device": WORDS,
    "versions": WORDS,
    "options": Column("options as name=value, separated by spaces", options_of),
}


# ---- files


def read_csv(
    path: Path, columns: dict[str, Column], key: tuple[str, ...], together: tuple[tuple[str, ...], ...] = ()
) -> list[dict[str, Any]]:
    """The rows of a CSV file, {column: value} without empty values; UsageError, with the line, for what is not expected.

    columns: those that there may be; those that may be empty may also be missing. key: the columns in which any two rows differ.
    together: columns that have a value all or none.
    """
    reader, rows, seen = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True), [], {}
    try:
        check_header(path, reader.fieldnames or [], columns)
        for cells in reader:
            place = f"{path}, line {reader.line_num}"
            if None in cells or None in cells.values():
                found = len(reader.fieldnames) + len(cells.get(None, ())) - list(cells.values()).count(None)
                raise UsageError(f"{place}: found {found} columns, expected {len(reader.fieldnames)} as in line 1")
            row = {name: value_of(text, columns[name], f"{place}, column {name}") for name, text in cells.items()}
            row = {k: v for k, v in row.items() if v is not None}
            if halved := next((g for g in together if 0 < len(row.keys() & set(g)) < len(g)), None):
                raise UsageError(f"{place}: found {', '.join(k for k in halved if k in row)}, expected all of {', '.join(halved)} or none")
            first = seen.setdefault(tuple(row.get(k, "") for k in key), reader.line_num)
            if first != reader.line_num:
                raise UsageError(f"{place}: found the {', '.join(key)} of line {first} again, expected others")
            rows.append(row)
    except csv.Error as e:
        raise UsageError(f"{path}, line {reader.line_num}: found {e}, expected comma-separated values") from None
    if not rows:
        raise UsageError(f"{path}: found no rows, expected one or more below line 1")
    return rows


def check_header(path: Path, names: list[str], columns: dict[str, Column]) -> None:
    """UsageError where the first line of a CSV file does not name the columns."""
    wrong = [f"the unknown column {shown(n)}" for n in names if n not in columns]
    wrong += [f"the column {n} twice" for n in names if names.count(n) > 1]
    wrong += [f"no column {n}" for n, column in columns.items() if n not in names and not column.empty]
    if wrong:
        raise UsageError(f"{path}, line 1: found {wrong[0]}, expected {', '.join(columns)}")


def value_of(text: str, column: Column, place: str) -> Any:
    """The value of a cell, None for an empty one; UsageError for one that is not expected."""
    if not text and column.empty:
        return None
    try:
        if text:
            return column.read(text)
    except ValueError:
        pass
    raise UsageError(f"{place}: found {shown(text)}, expected {column.what}")


def read_published() -> list[dict[str, Any]]:
    """The rows of tables/published.csv, as read_csv returns them."""
    return read_csv(ROOT / "tables" / "published.csv", PUBLISHED, ("paper", "dataset", "teacher", "student", "method"), (SPREAD,))


def published_names(column: str, paper: str = "") -> list[str]:
    """The different values in a column of tables/published.csv, of one paper or of all."""
    return list(dict.fromkeys(row[column] for row in read_published() if paper in ("", row["paper"])))


def split_published(name: str) -> tuple[str, str]:
    """(paper, method) of `DIP-KD: IDEAL`; the paper is empty where none is named."""
    paper, _, method = name.partition(": ")
    return (paper, method) if method and paper in published_names("paper") else ("", name)


def read_measured(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of measured numbers, which a table has written, as read_csv returns them."""
    return read_csv(path, MEASURED, ("pair", "method", "seed"), (COPYING, FEWSHOT))


def said_of(row: dict[str, Any]) -> dict[str, str]:
    """{option: value} of a measured row."""
    return dict(word.split("=", 1) for word in shlex.split(row["options"]))
