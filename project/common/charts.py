"""The picture of a table: accuracy against queries."""

import statistics
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from .pictures import pyplot, save_figure
from .report import Cells, curves, names_of, tasks_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKS = "os^Dv<>PhX*"  # eleven, where colours are ten: their pairs repeat late


def picture(table: dict, cells: Cells, path: Path) -> None:
    """Accuracy against queries, a panel a pair: points with their seeds' range, or a line a method with a band where there are budgets."""
    plt = pyplot()
    from matplotlib.ticker import LogFormatter  # slow to import

    plt.rcParams["text.parse_math"] = False  # names of rows may hold $

    fig, axes = plt.subplots(1, len(table["pairs"]), figsize=(6.4 * len(table["pairs"]), 5.4), squeeze=False, layout="constrained")
    for ax, pair in zip(axes[0], table["pairs"], strict=True):
        (draw_curves if table.get("budgets") else draw_points)(ax, table, cells, pair)
        ax.set(title=pair, ylabel="test accuracy of the last epoch, %")
        ax.margins(x=0.15)
        ax.grid(alpha=0.3)
        if ax.get_xscale() == "log":  # whose usual labels are mathematics
            ax.xaxis.set_major_formatter("{x:,.0f}")
            ax.xaxis.set_minor_formatter(LogFormatter())
        if ax.has_data():
            ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)
    fig.suptitle(textwrap.fill(table["title"], 80 * len(table["pairs"])), fontsize=10)
    save_figure(fig, path, dpi=150)


def draw_points(ax: "Axes", table: dict, cells: Cells, pair: str) -> None:
    """A point for each row at its queries, with the range over seeds; a line for a row that asks nothing."""
    ax.set_xlabel("queries (with the generator's; points stand a little aside of each other)")
    for i, name in enumerate(names_of(cells, pair)):
        results = [t.result for t in tasks_of(cells, pair, name).values() if t.result and t.result.get("accuracy") is not None]
        if not results:
            continue
        y, x = [r["accuracy"] for r in results], [r.get("queries") or 0 for r in results]
        middle, style = statistics.mean(y), {"color": f"C{i % 10}", "label": name}
        if any(x):
            bar = [[middle - min(y)], [max(y) - middle]]
            aside = statistics.mean(x) * 1.04 ** (i % 7 - 3)  # rows with as many queries would hide each other
            ax.errorbar(aside, middle, bar, fmt=MARKS[i % 11], capsize=4, alpha=0.8, **style)
            ax.set_xscale("log")
        else:
            ax.axhline(middle, ls=("--", ":", "-.")[i % 3], lw=1.2, **style | {"label": f"{name}: no queries"})


def draw_curves(ax: "Axes", table: dict, cells: Cells, pair: str) -> None:
    """A line for each row over the query budgets, with a band over seeds."""
    ax.set(xlabel="answers (queries allowed, with the generator's)", xscale="log")
    for i, (name, curve) in enumerate(curves(table, cells, pair).items()):
        style = {"color": f"C{i % 10}"}
        points = {b: v for b, v in sorted(curve.items()) if v and b}
        if points:
            ax.plot(list(points), [statistics.mean(v) for v in points.values()], marker=MARKS[i % 11], label=name, **style)
            ax.fill_between(list(points), [min(v) for v in points.values()], [max(v) for v in points.values()], alpha=0.15, **style)
        elif curve.get(0):
            ax.axhline(statistics.mean(curve[0]), ls="--", lw=1.2, label=f"{name}: no queries", **style)
