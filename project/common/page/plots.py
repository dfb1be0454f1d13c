"""Accuracy against queries, cost, size or latency: what the page's template draws as SVG."""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ..report import Cells, curves, names_of, tasks_of
from .axes import axis_of
from .labels import Box, Label, along, beside, free_place, label_in, shortened, width_of

WIDTH, HEIGHT = 640, 410
LEFT, RIGHT, TOP, BOTTOM = 54, 630, 12, 362  # the frame of a plot
FRAME: Box = (LEFT + 2, TOP, RIGHT - 2, BOTTOM - 2)
COLOURS, ASIDE = 10, 12  # number of colours; pixels between points that would hide each other
R = 5  # half the size of a point
SHAPES = (  # eleven, where colours are ten: their pairs repeat late
    "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0z",
    "M-4.5,-4.5h9v9h-9z",
    "M0,-5.5L5.5,4.5H-5.5z",
    "M0,-6L6,0L0,6L-6,0z",
    "M0,5.5L5.5,-4.5H-5.5z",
    "M-5.5,0L4.5,-5.5V5.5z",
    "M5.5,0L-4.5,-5.5V5.5z",
    "M-5,-1.7h3.3v-3.3h3.4v3.3h3.3v3.4h-3.3v3.3h-3.4v-3.3h-3.3z",
    "M0,-6L5.7,-1.9L3.5,4.9H-3.5L-5.7,-1.9z",
    "M-2.5,-5.5h5L5.5,0L2.5,5.5h-5L-5.5,0z",
    "M0,-6.5L1.6,-2L6.2,-2L2.5,0.8L3.8,5.3L0,2.6L-3.8,5.3L-2.5,0.8L-6.2,-2L-1.6,-2z",
)


@dataclass
class Point:
    """A mean over seeds. x, y: its values; low, high: the range of y. px, py, top, bottom: the same in pixels. hollow: of 8 bits."""

    name: str
    colour: int
    x: float
    y: float
    low: float
    high: float
    hollow: bool = False
    px: float = 0
    py: float = 0
    top: float = 0
    bottom: float = 0

    @property
    def shape(self) -> str:
        return SHAPES[self.colour % len(SHAPES)]

    @property
    def text(self) -> str:
        """`KD: 96.50 % at 259`, without the unit."""
        x = f"{self.x:,.0f}" if self.x >= 1000 else f"{self.x:.4g}"
        return f"{self.name}{', 8 bits' * self.hollow}: {self.y:.2f} % at {x}"


@dataclass
class Line:
    """A row that has no value on the x axis, at its accuracy `level` (`py` in pixels), or one whose points are joined (path, band)."""

    name: str
    colour: int
    level: float | None = None
    py: float = 0
    path: str = ""
    band: str = ""


@dataclass
class Plot:
    """One plot. text: what it shows, in words. unit: of the x axis. note: stands below it.

    none: what a row on a level line does not have. joined: the points of a row are one line with a band.
    """

    title: str
    unit: str
    note: str = ""
    none: str = ""
    points: list[Point] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    xticks: list[tuple[float, str]] = field(default_factory=list)
    yticks: list[tuple[float, str]] = field(default_factory=list)
    text: str = ""
    joined: bool = False


def plots_of(table: dict, cells: Cells, pair: str) -> list[Plot]:
    """The plots of one pair that have anything to show."""
    aside = "Points at nearly the same place stand side by side. Bars: range over seeds."
    exported = f"Only runs with an export. Filled: float32; hollow: the same network in 8 bits. {aside}"
    if table.get("budgets"):
        plot = budgets(table, cells, pair)
        return [plot] if plot.points else []
    asked = Plot("Accuracy against queries", "queries, with those of the generator", aside, "no queries")
    found = [scatter(cells, pair, asked, queries)]
    for unit in currencies(cells, pair):
        paid = Plot("Accuracy against cost", f"{unit}, answers of the teacher's API", aside, "no cost")
        found.append(scatter(cells, pair, paid, money(unit)))
    size, time = ("Accuracy against model size", "kB"), ("Accuracy against latency", "ms, one image, one thread")
    found.append(scatter(cells, pair, Plot(*size, exported), kilobytes, "int8_bytes", 1e-3))
    found.append(scatter(cells, pair, Plot(*time, exported), lambda r: r.get("latency_ms"), "int8_latency_ms"))
    return [plot for plot in found if plot.points]


# ---- what stands on the x axis: a number, 0 for a row that has none by its nature, None for one whose number is not known


def queries(result: dict) -> float:
    return result.get("queries") or 0


def kilobytes(result: dict) -> float | None:
    return result["export_bytes"] / 1e3 if "export_bytes" in result else None


def money(unit: str) -> Callable[[dict], float | None]:
    """The cost of a run in this currency."""

    def cost(result: dict) -> float | None:
        paid = result.get("api") or {}
        return paid["cost"] if paid.get("cost") and paid.get("currency") == unit else None if result.get("queries") else 0

    return cost


def currencies(cells: Cells, pair: str) -> list[str]:
    """The currencies in which runs of a pair have paid."""
    paid = [t.result["api"] for (p, _, _), t in cells.items() if p == pair and t.result and t.result.get("api")]
    return sorted({str(a["currency"]) for a in paid if a.get("cost") and a.get("currency")})


# ---- plots


def scatter(cells: Cells, pair: str, plot: Plot, x_of: Callable[[dict], float | None], int8: str = "", scale: float = 1.0) -> Plot:
    """The plot with a point for each row: its mean accuracy over the runs with a value on the x axis.

    int8: the key of the results that gives the x of a second, hollow point at the accuracy in 8 bits; scale: its factor.
    """
    for i, name in enumerate(names_of(cells, pair)):
        results = [t.result for t in tasks_of(cells, pair, name).values() if t.result and t.result.get("accuracy") is not None]
        results = [r for r in results if x_of(r) is not None]
        if not results:
            continue
        x, y = statistics.mean(x_of(r) for r in results), [r["accuracy"] for r in results]
        if x <= 0:
            plot.lines.append(Line(name, i, statistics.mean(y)))
            continue
        plot.points.append(Point(name, i, x, statistics.mean(y), min(y), max(y)))
        small = [(r[int8] * scale, r["int8_accuracy"]) for r in results if int8 in r and "int8_accuracy" in r]
        if small:
            x, y = statistics.mean(a for a, _ in small), [b for _, b in small]
            plot.points.append(Point(name, i, x, statistics.mean(y), min(y), max(y), True))
            plot.lines.append(Line(name, i))  # joins both
    return drawn(plot) if plot.points else plot


def budgets(table: dict, cells: Cells, pair: str) -> Plot:
    """Accuracy against query budgets: a line for each row, with a band over seeds."""
    plot = Plot(
        "Accuracy against query budget",
        "queries allowed, with those of the generator",
        "Bands: range over seeds.",
        "no queries",
        joined=True,
    )
    for i, (name, curve) in enumerate(curves(table, cells, pair).items()):
        there = {b: v for b, v in sorted(curve.items()) if v and b}
        plot.points += [Point(name, i, b, statistics.mean(v), min(v), max(v)) for b, v in there.items()]
        if there or curve.get(0):
            plot.lines.append(Line(name, i, None if there else statistics.mean(curve[0])))
    return drawn(plot) if plot.points else plot


def drawn(plot: Plot) -> Plot:
    """The plot with all its places in pixels."""
    levels = [line for line in plot.lines if line.level is not None]
    x = axis_of([p.x for p in plot.points], LEFT, RIGHT, 0.1)
    y = axis_of([v for p in plot.points for v in (p.low, p.high)] + [line.level for line in levels], BOTTOM, TOP, 0.07, False)
    for p in plot.points:
        p.px, p.py, p.top, p.bottom = x.at(p.x), y.at(p.y), y.at(p.high), y.at(p.low)
    for line in levels:
        line.py = y.at(line.level)
    if not plot.joined:
        spread_out(plot.points)
    join(plot)
    plot.xticks, plot.yticks = x.ticks(), y.ticks()
    plot.labels, plot.text = [*labels_of(plot, levels)], in_words(plot, levels)
    return plot


def join(plot: Plot) -> None:
    """Draws the points of each row as one line with a band."""
    for line in (line for line in plot.lines if line.level is None):
        mine = [p for p in plot.points if p.name == line.name]
        line.path = "".join(f"{'ML'[i > 0]}{p.px},{p.py}" for i, p in enumerate(mine))
        edge = [f"{p.px},{p.top}" for p in mine] + [f"{p.px},{p.bottom}" for p in reversed(mine)]
        line.band = f"M{'L'.join(edge)}z" if mine else ""


def spread_out(points: list[Point]) -> None:
    """Moves points sideways that would hide each other or each other's bars, as little as possible."""
    placed: list[Point] = []
    for p in sorted(points, key=lambda p: (p.py, p.colour, p.hollow)):
        near = [o for o in placed if o.top - R < p.bottom + R and p.top - R < o.bottom + R]
        steps = [0] + [sign * step for step in range(1, len(near) + 2) for sign in (1, -1)]
        free = (p.px + ASIDE * step for step in steps if all(abs(p.px + ASIDE * step - o.px) >= ASIDE for o in near))
        p.px = round(next(free, p.px), 1)
        placed.append(p)


def labels_of(plot: Plot, levels: list[Line]) -> Iterator[Label]:
    """The names in the plot: on level lines, beside points, and beside the last point of a joined line."""
    solid = [around(p, R + 1) for p in plot.points]
    thin = [(p.px - 1, p.top, p.px + 1, p.bottom) for p in plot.points]
    thin += [(LEFT, line.py - 1, RIGHT, line.py + 1) for line in levels]
    for line in levels:
        text = f"{shortened(line.name)}: {plot.none}"
        solid.append(box := free_place(along(line.py, width_of(text), FRAME), solid, thin, FRAME))
        yield label_in(box, text, line.colour)
    named = {p.name: p for p in plot.points}.values() if plot.joined else [p for p in plot.points if not p.hollow]
    for p in sorted(named, key=lambda p: (p.py, p.px)):
        text, rooms = shortened(p.name), [around(o, 3 * R) for o in plot.points if o.name != p.name]
        solid.append(box := free_place(beside(p.px, p.py, width_of(text)), solid, thin + rooms, FRAME))
        yield label_in(box, text, p.colour, (p.px, p.py))


def around(p: Point, room: float) -> Box:
    """A square around a point."""
    return p.px - room, p.py - room, p.px + room, p.py + room


def in_words(plot: Plot, levels: list[Line]) -> str:
    """All that a plot shows, as text."""
    unit = plot.unit.partition(",")[0]
    return "; ".join([f"{p.text} {unit}" for p in plot.points] + [f"{line.name}: {line.level:.2f} %, {plot.none}" for line in levels])
