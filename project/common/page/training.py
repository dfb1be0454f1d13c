"""Training curves of a table's rows, from the log.jsonl of their runs: small plots that the page's template draws as SVG."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..cli import UsageError
from ..csv_files import read_text
from ..forms import ROW
from ..report import Cells, names_of, tasks_of
from ..utils import holding
from .axes import Axis, axis_of

WIDTH, HEIGHT = 230, 132
LEFT, RIGHT, TOP, BOTTOM = 44, 224, 8, 112  # the frame of a plot
QUALITY = ("epoch", "ece", "agreement", "teacher_kl", "top5")  # numbers of an epoch that are no loss; accuracy has a plot of its own
MOST, VALUES = 8, 400  # plots of a row; points of a plot, over all its lines
ROOM = 12  # points of accuracy below the lowest last one that the plots show
Series = dict[int, list[tuple[float, float]]]  # {seed: [(epoch, value)]}


@dataclass
class Panel:
    """A small plot. lines: (seed, path) each. text: what it shows, in words."""

    title: str
    lines: list[tuple[int, str]]
    xticks: list[tuple[float, str]]
    yticks: list[tuple[float, str]]
    text: str


@dataclass
class Curves:
    """The plots of one row, and lines about what they do not show."""

    name: str
    panels: list[Panel] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def curves_of(cells: Cells, pair: str) -> tuple[list[Curves], float]:
    """(the curves of each row of a pair whose runs have logs, the accuracy at which the axes of accuracy begin)."""
    found, lasts = [], []
    for name in names_of(cells, pair):
        row, series = Curves(name), {}
        for seed, task in tasks_of(cells, pair, name).items():
            if not task.result:
                continue  # the folder may hold the log of a run with other options
            try:
                add_rows(series, seed, read_log(task.log.parent / "log.jsonl"))
            except UsageError as e:
                row.notes.append(f"seed {seed}: {e}")
        lasts += [line[-1][1] for line in series.get("accuracy", {}).values()]
        if len(series) > MOST:
            row.notes.append(f"not drawn: {', '.join([*series][MOST:])}")
        found.append((row, dict([*series.items()][:MOST])))
    floor = max(0.0, 10 * math.floor((min(lasts, default=0) - ROOM) / 10))
    for row, series in found:
        row.panels = [panel(name, lines, floor) for name, lines in series.items()]
    return [row for row, _ in found if row.panels or row.notes], floor


def read_log(path: Path) -> list[dict[str, Any]]:
    """The numbers of each epoch in a log.jsonl, in order; empty where there is no file. UsageError where it is damaged."""
    if not path.exists():
        return []
    rows = []
    for i, line in enumerate(read_text(path).splitlines()):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise UsageError(f"{path}, line {i + 1} is truncated, or not JSON") from None
        rows.append(holding(row, f"{path}, line {i + 1}", epoch=int))
        holding({"row": row}, f"{path}, line {i + 1}", row=ROW)
    return rows


def add_rows(series: dict[str, Series], seed: int, rows: list[dict[str, Any]]) -> None:
    """Adds the finite numbers of a log to {name: {seed: [(epoch, value)]}}: accuracy first, then the loss terms."""
    names = dict.fromkeys(k for row in rows for k, v in row.items() if k not in QUALITY and not isinstance(v, list))
    for name in sorted(names, key=lambda k: k != "accuracy"):
        points = [(row["epoch"], row[name]) for row in rows if name in row and math.isfinite(row[name])]
        if points:
            series.setdefault(name, {})[seed] = points


def panel(name: str, series: Series, floor: float) -> Panel:
    """The plot of one number over the epochs, a line for each seed. floor: where an axis of accuracy begins."""
    epochs = [e for line in series.values() for e, _ in line]
    x = Axis(min(*epochs, 0), max(*epochs, 1), LEFT, RIGHT)
    if name == "accuracy":
        y = Axis(floor, 100, BOTTOM, TOP)
    else:
        y = axis_of([v for line in series.values() for _, v in line], BOTTOM, TOP, 0.05, False)
    most = max(24, VALUES // len(series))
    lines = [(seed, path_of(thinned(line, most), x, y)) for seed, line in series.items()]
    words = [
        f"seed {seed}: {line[0][1]:.4g} in epoch {line[0][0]}, {line[-1][1]:.4g} in epoch {line[-1][0]}" for seed, line in series.items()
    ]
    return Panel("accuracy, %" if name == "accuracy" else name, lines, x.ticks(3), y.ticks(3), "; ".join(words))


def thinned(line: list[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most about so many points of a line: the lowest and the highest of each stretch, the first and the last."""
    if len(line) <= most:
        return line
    size = math.ceil(2 * len(line) / most)
    parts = [line[i : i + size] for i in range(0, len(line), size)]
    kept = {p for part in parts for p in (min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1]))}
    return sorted(kept | {line[0], line[-1]})


def path_of(line: list[tuple[float, float]], x: Axis, y: Axis) -> str:
    """The path of a line in SVG; a line of one point is a short stroke."""
    points = [f"{x.at(e):g},{y.at(v):g}" for e, v in line]
    return f"M{' '.join(points)}" + "h3" * (len(points) == 1)
