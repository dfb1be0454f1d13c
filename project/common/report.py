"""What a table's runs come to: rows for a terminal, LaTeX and CSV, pictures; differences with their chance.

`cells` is {(pair, row's name, seed): Task}; a Task has args (its options), state, why and result (of result.json, or None).
"""

import csv
import io
import math
import re
import shlex
import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .blackbox import KINDS
from .csv_files import MEASURED, published, split_pair
from .datasets import spec_of
from .pictures import pyplot, save_figure
from .significance import holm, paired, seeds_needed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Cells = dict[tuple[str, str, int], Any]  # {(pair, row's name, seed): Task}
Row = dict[str, str]  # {column: text}
Differences = dict[str, tuple[float, tuple[float, float], float, int]]  # {row's name: (mean, interval, p, seeds)}
LEVEL = 0.05  # of the tests that make a row bold
MARKS = "os^Dv<>PhX*"  # eleven, where colours are ten: their pairs repeat late


# ---- cells


def mean(values: Sequence[float], digits: int = 2) -> str:
    """The mean, as a cell shows it; `-` for none."""
    return f"{statistics.mean(values):,.{digits}f}" if values else "-"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """`mean ± standard deviation`, the latter from two finite values on; `-` for none."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return mean(values, digits)
    return f"{mean(values, digits)} ± {statistics.stdev(values):.{digits}f}"


def sent(results: list[dict]) -> str:
    """What left the device, in words: `259 private + 1,500 mixed`; nothing for a teacher that is looked into."""
    if not any(r.get("bytes") for r in results):
        return "none"
    means = {kind: statistics.mean(r.get(kind) or 0 for r in results) for kind in KINDS}
    return " + ".join(f"{v:,.0f} {kind}" for kind, v in means.items() if v) or "-"


def tasks_of(cells: Cells, pair: str, name: str) -> dict:
    """{seed: Task} of a row."""
    return {seed: task for (p, n, seed), task in cells.items() if (p, n) == (pair, name)}


def accuracies(cells: Cells, pair: str, name: str) -> dict[int, float]:
    """{seed: accuracy} of the runs that there are."""
    results = {seed: t.result for seed, t in tasks_of(cells, pair, name).items() if t.result}
    return {seed: r["accuracy"] for seed, r in results.items() if r.get("accuracy") is not None}


def compare(cells: Cells, pair: str, names: Sequence[str], against: str) -> Differences:
    """{name: (mean difference to `against`, interval, p by Holm, seeds)} of the rows that have two seeds in common with it."""
    base, found = accuracies(cells, pair, against), {}
    for name in names:
        mine = accuracies(cells, pair, name)
        if name != against and (seeds := sorted(set(mine) & set(base))) and len(seeds) > 1:
            found[name] = *paired([mine[s] for s in seeds], [base[s] for s in seeds]), len(seeds)
    corrected = holm([p for _, _, p, _ in found.values()])
    return {name: (d, interval, p, n) for (name, (d, interval, _, n)), p in zip(found.items(), corrected, strict=True)}


def warning(differences: Differences) -> str:
    """A line where the seeds are too few for any difference to reach the level, empty otherwise."""
    if not differences:
        return ""
    seeds, wanted = min(n for *_, n in differences.values()), seeds_needed(len(differences), LEVEL)
    if seeds >= wanted:
        return ""
    return f"{seeds} seeds are too few to test at {100 * LEVEL:g} % ({len(differences)} comparisons, Holm): use --seeds {wanted}."


def rows_of(table: dict, cells: Cells, pair: str, against: str) -> tuple[list[Row], Differences]:
    """(a list of {column: text} for one pair in the file's order, the differences that `compare` gives)."""
    paper, dataset = published(table.get("paper", "")), spec_of(table["dataset"])[0]
    teacher, student = split_pair(pair)
    papers = {row["name"]: row.get("published", row["name"]) for row in table["rows"]}
    names = list(dict.fromkeys(n for p, n, _ in cells if p == pair))
    differences, rows = compare(cells, pair, names, against), []
    for name in names:
        mine = tasks_of(cells, pair, name).values()
        results = [t.result for t in mine if t.result]
        got = {
            key: [r[key] for r in results if r.get(key) is not None]
            for key in ("accuracy", "best", "agreement", "teacher_kl", "ece", "queries", "bytes", "seconds")
        }
        row = {"method": name, "needs": needs_of(next(iter(mine)))}
        row |= {"accuracy": spread(got["accuracy"])}
        if name in differences:
            d, interval, p, _ = differences[name]
            row |= {f"against {against}": f"{d:+.2f} [{interval[0]:+.2f}, {interval[1]:+.2f}]", "p": f"{p:.2g}"}
            if d > 0 and p < LEVEL:
                row["accuracy"] = f"**{row['accuracy']}**"
        if tested := [r["fewshot"]["last"] for r in results if "fewshot" in r]:
            row |= {"± episodes": mean([r["1shot"][1] for r in tested]), "5-shot": spread([r["5shot"][0] for r in tested])}
        row |= {"best": spread(got["best"]), "agreement": spread(got["agreement"])}
        row |= {"KL to teacher": spread(got["teacher_kl"], 3), "ECE, %": spread(got["ece"], 1)}
        if any(got["queries"]):
            row |= {"queries": mean(got["queries"], 0), "images sent": sent(results), "MB sent": mean([v / 1e6 for v in got["bytes"]], 1)}
        row["minutes"] = mean([v / 60 for v in got["seconds"]])
        method = papers.get(name, name)
        value = paper.get((dataset, teacher, student, method), paper.get((dataset, teacher, "", method)))  # some sources name no student
        if value is not None:
            row["paper"] = f"{value:.2f}"
            if row["accuracy"] != "-":
                row["difference"] = f"{statistics.mean(got['accuracy']) - value:+.2f}"
        if len(results) < len(mine):
            failed = next((t.why for t in mine if t.state == "failed"), "")
            missing = f"{len(results)} of {len(mine)} seeds" + (f"; failed: {failed}" if failed else "")
            row["accuracy"] = f"{row['accuracy']} ({missing})" if results else f"({(failed and 'failed: ' + failed) or 'not run'})"
        rows.append(row)
    return rows, differences


def needs_of(task: object) -> str:
    """The least response that a row's method needs, `-` where no teacher is asked."""
    return (task.args.teacher and task.args.NEEDS if task.args else task.result.get("needs", "")) or "-"


def copied(cells: Cells, pair: str) -> list[str]:
    """A line for each row that made synthetic images: how near they come to private ones."""
    lines = []
    for name in dict.fromkeys(n for p, n, _ in cells if p == pair):
        found = [t.result["copying"] for t in tasks_of(cells, pair, name).values() if t.result and "copying" in t.result]
        if found:
            near, own, closer = (statistics.mean(f[k] for f in found) for k in ("synthetic_median", "private_median", "closer"))
            text = f"{name}: a synthetic image is {near:.2f} from the nearest private one, a private one {own:.2f} from the nearest other"
            lines.append(f"- {text} (medians); {closer:.1%} are nearer than all but 1 % of the private ones (copying.png in its logs).")
    return lines


# ---- budgets


def labelled(name: str, budget: int) -> str:
    """The key in `cells` of a row's runs with a query budget, 0 for none."""
    return f"{name} @{budget}" if budget else name


def curves(table: dict, cells: Cells, pair: str) -> dict[str, dict[int, list[float]]]:
    """{row's name: {budget: [accuracies]}}; the budget is 0 for a row that asks nothing."""
    there = {n for p, n, _ in cells if p == pair}
    names = [row["name"] for row in table["rows"]]
    by_budget = {n: {b: labelled(n, b) for b in (0, *table["budgets"]) if labelled(n, b) in there} for n in names}
    return {n: {b: list(accuracies(cells, pair, key).values()) for b, key in keys.items()} for n, keys in by_budget.items()}


def budget_rows(table: dict, cells: Cells, pair: str) -> list[Row]:
    """Rows of accuracies, a column for each query budget."""
    rows = []
    for name, curve in curves(table, cells, pair).items():
        row = {"method": name}
        row |= {f"{b:,}": spread(curve.get(b, curve.get(0, []))) for b in table["budgets"]}
        rows.append(row)
    return rows


# ---- texts


def columns_of(rows: list[Row]) -> list[str]:
    """The columns in which any row has a value, in the order of a table."""
    order = dict.fromkeys(c for row in rows for c in row)
    tail = [
        c
        for c in ("best", "agreement", "KL to teacher", "ECE, %", "queries", "images sent", "MB sent", "minutes", "paper", "difference")
        if c in order
    ]
    ordered = [c for c in order if c not in tail] + tail
    return [c for c in ordered if any(r.get(c, "-") != "-" for r in rows)]


def markdown(rows: list[Row]) -> str:
    """A Markdown table with its columns aligned, so that it reads in a terminal too."""
    columns = columns_of(rows)
    heads = ["accuracy (last), %" if c == "accuracy" else c for c in columns]
    text = [heads] + [[r.get(c, "-").replace("|", "/") for c in columns] for r in rows]
    widths = [max(len(line[i]) for line in text) for i in range(len(columns))]
    lines = [
        "| " + " | ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))) + " |"
        for line in text
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths)) + "|")
    return "\n".join(lines)


def latex(rows: list[Row], caption: str) -> str:
    """A LaTeX tabular; the caption stands in a comment."""
    special = {c: f"\\{c}" for c in "&%$#_{}"} | {"±": "$\\pm$", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
    special, columns = str.maketrans(special | {"\\": "\\textbackslash{}"}), columns_of(rows)

    def cell(text):
        return re.sub(r"\*\*(.*?)\*\*", r"\\textbf{\1}", text.translate(special))

    lines = [" & ".join(cell(c) for c in columns) + " \\\\ \\hline"]
    lines += [" & ".join(cell(r.get(c, "-")) for c in columns) + " \\\\" for r in rows]
    spec = "l" + "r" * (len(columns) - 1)
    return "\n".join([f"% {caption}", f"\\begin{{tabular}}{{{spec}}}", *lines, "\\end{tabular}"])


def settings_of_rows(cells: Cells) -> list[str]:
    """One line a row of the table, with the options that its runs were given."""
    hidden = {"dataset", "teacher", "model", "seed", "query_budget", "data_dir", "checkpoints_dir", "logs_dir"}
    given = {n.partition(" @")[0]: {k: v for k, v in t.options.items() if k not in hidden} for (_, n, _), t in cells.items()}
    words = {name: ", ".join(f"{k} {v}" for k, v in options.items()) for name, options in given.items()}
    return [f"- {name}: {said or 'the defaults of its script'}" for name, said in words.items()]


def measured(cells: Cells) -> str:
    """CSV text, a row a run: what was measured, with settings, seed, device and versions."""
    out = io.StringIO()
    writer = csv.DictWriter(out, MEASURED, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for (pair, name, seed), task in cells.items():
        if r := task.result:
            row = {k: (r | r.get("copying", {})).get(k, "") for k in MEASURED} | {"method": name, "pair": pair, "seed": seed}
            tested = r.get("fewshot", {}).get("last", {})
            row |= {f"{shot}{end}": value for shot, pair in tested.items() for end, value in zip(("", "_half"), pair, strict=True)}
            row |= {"versions": " ".join(f"{k} {v}" for k, v in r.get("versions", {}).items())}
            row |= {"options": shlex.join(f"{k}={v}" for k, v in r["options"].items() if v != "")}
            writer.writerow({k: round(v, 4) if isinstance(v, float) and math.isfinite(v) else v for k, v in row.items()})
    return out.getvalue()


# ---- pictures


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
    for i, name in enumerate(dict.fromkeys(n for p, n, _ in cells if p == pair)):
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
