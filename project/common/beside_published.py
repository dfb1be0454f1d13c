"""Published numbers beside ours: each with its source and how sure it is, and the difference with its interval."""

import statistics
from typing import Any

from .csv_files import SPREAD, read_published, split_pair
from .datasets import spec_of
from .report import Cells, Row, accuracies, names_of, spread
from .significance import half_width

MARKED = 0.5  # points; a larger difference is bold
TITLE = "Published numbers beside ours"
EXPLAINED = (
    "Published: ± is the standard error that the source gives. Ours: mean ± standard deviation (number of seeds). The difference has a "
    "95 % interval over our seeds (Student's t). It includes the standard error of the source (Welch); without one, the published number "
    f"counts as exact. Differences of more than {MARKED} points are bold. Source: A, the authors' own material; B, another group's "
    "repetition or quotation; C, a secondary summary; D, our arithmetic."
)


def rows_of(table: dict, cells: Cells, pair: str) -> list[Row]:
    """A row {column: text} for each published number of one pair; none where the table names no paper, or has query budgets."""
    there, ours = published_of(table, pair), {name: list(accuracies(cells, pair, name).values()) for name in names_of(cells, pair)}
    return [{"method": name} | texts(number, values) for name, values in ours.items() for number in there.get(name, [])]


def published_of(table: dict, pair: str) -> dict[str, list[dict[str, Any]]]:
    """{row's name, or teacher: the rows of published.csv that stand beside it} of one pair."""
    if not table.get("paper") or table.get("budgets"):
        return {}
    said = {row["name"]: row.get("published", row["name"]) for row in table["rows"]}
    said |= {"teacher": table.get("teacher_published", "teacher")}
    dataset = spec_of(table.get("private") or table["dataset"])[0]  # that of the test images
    there = [row for row in read_published() if row.get("dataset") == dataset]
    found = {name: [best_of(there, number, table["paper"], pair) for number in wanted(of, pair)] for name, of in said.items()}
    return {name: rows for name, numbers in found.items() if (rows := [row for row in numbers if row])}


def wanted(said: str | list[str] | dict, pair: str) -> list[str]:
    """The numbers that stand beside a row for one pair. said: its `published`: a name, several, or these by pair."""
    if isinstance(said, dict):
        said = next((names for other, names in said.items() if split_pair(other) == split_pair(pair)), [])
    return [said] if isinstance(said, str) else said


def best_of(rows: list[dict[str, Any]], number: str, paper: str, pair: str) -> dict[str, Any] | None:
    """The row of published.csv that a name means, of `paper` unless it names another; the row that says most of the pair; None for none."""
    teacher, student = split_pair(pair)
    found = [row for row in rows if f"{row['paper']}: {row['method']}" in (number, f"{paper}: {number}")]
    found = [row for row in found if row.get("teacher", teacher) == teacher and row.get("student", student) == student]
    return max(found, key=lambda row: len(row.keys() & {"teacher", "student"}), default=None)


def texts(row: dict[str, Any], ours: list[float]) -> Row:
    """The columns of one published number. ours: accuracies in percent."""
    unnamed = {"teacher", "student"} - row.keys()
    unknown = "pair not named" if len(unnamed) == 2 else "student not named" if unnamed == {"student"} else ""
    notes = "; ".join(filter(None, [row["source"], row.get("note"), unknown]))
    value = f"{row['value']:.2f}" + (f" ± {row['error']:.2f}" if "error" in row else "")
    shown = {"published, %": value, "published as": f"{row['paper']}: {row['method']}", "source": f"{row['confidence']}: {notes}"}
    if not ours:
        return shown
    gap = statistics.mean(ours) - row["value"]
    text = f"{gap:+.2f}"
    if len(ours) > 1:
        half = half_width(ours, **{k: row[k] for k in SPREAD if k in row})
        text += f" [{gap - half:+.2f}, {gap + half:+.2f}]"
    return shown | {"ours, %": f"{spread(ours)} ({len(ours)})", "ours - published": f"**{text}**" if round(abs(gap), 4) > MARKED else text}


def notes(table: dict, cells: Cells) -> list[str]:
    """The lines that stand once below the tables: what the published numbers are, and the findings of the table's file."""
    lines = [EXPLAINED, ""] if any(rows_of(table, cells, pair) for pair in {pair for pair, _, _ in cells}) else []
    found = [f"- {text}" for text in table.get("findings", [])]
    return [*lines, *(["Findings:", "", *found, ""] if found else [])]
