"""What a table's runs come to: rows for a terminal, LaTeX and CSV; differences with their chance.

`cells` is {(pair, row's name, seed): Task}; a Task has args (its options), state, why and result (of result.json, or None).
"""

import csv
import io
import math
import re
import shlex
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from .blackbox import KINDS
from .csv_files import MEASURED, said_of
from .exported import SHOWN
from .significance import holm, paired, seeds_needed

Cells = dict[tuple[str, str, int], Any]  # {(pair, row's name, seed): Task}
Row = dict[str, str]  # {column: text}
Differences = dict[str, tuple[float, tuple[float, float], float, int]]  # {row's name: (mean, interval, p, seeds)}
EXPORT = ("size, kB", "int8 size, kB", "latency, ms", "int8, ms", "int8 accuracy")
LEVEL = 0.05  # of the tests that make a row bold


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


def names_of(cells: Cells, pair: str) -> list[str]:
    """The names of the rows of a pair, in order."""
    return list(dict.fromkeys(n for p, n, _ in cells if p == pair))


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


def rows_of(cells: Cells, pair: str, against: str) -> tuple[list[Row], Differences]:
    """(a list of {column: text} for one pair, the differences that `compare` gives)."""
    names = names_of(cells, pair)
    differences, rows = compare(cells, pair, names, against), []
    most = max((len(accuracies(cells, pair, name)) for name in names if name != "teacher"), default=0)
    for name in names:
        mine = tasks_of(cells, pair, name).values()
        results = [t.result for t in mine if t.result]
        got = {
            key: [r[key] for r in results if r.get(key) is not None]
            for key in ("accuracy", "best", "agreement", "teacher_kl", "ece", "queries", "bytes", "seconds", *SHOWN)
        }
        row = {"method": name, "response": response_of(next(iter(mine)))}
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
        row |= export_columns(got) | {"minutes": mean([v / 60 for v in got["seconds"]])}
        row["accuracy"] = with_seeds(row["accuracy"], list(mine), len(got["accuracy"]), 0 if name == "teacher" else most)
        rows.append(row)
    return rows, differences


def with_seeds(accuracy: str, tasks: list, seeds: int, most: int) -> str:
    """The cell of an accuracy: also which of the row's runs there are, and how many seeds it has where another row has more (`most`)."""
    done = sum(bool(t.result) for t in tasks)
    if done == len(tasks):
        return f"{accuracy} ({seeds} seed{'s' * (seeds > 1)})" if 0 < seeds < most else accuracy
    failed = next((t.why for t in tasks if t.state == "failed"), "")
    if not done:
        return f"(failed: {failed})" if failed else "(not run)"
    return f"{accuracy} ({done} of {len(tasks)} seeds" + (f"; failed: {failed})" if failed else ")")


def export_columns(got: dict[str, list[float]]) -> Row:
    """The columns of what the runs' exports say. got: {key: values over seeds}."""
    sizes = [mean([v / 1e3 for v in got[key]], 1) for key in ("export_bytes", "int8_bytes")]
    times = [mean(got[key], 3) for key in ("latency_ms", "int8_latency_ms")]
    return dict(zip(EXPORT, (*sizes, *times, spread(got["int8_accuracy"])), strict=True))


def response_of(task: object) -> str:
    """What the teacher answers in a row's runs, `-` where no teacher is asked."""
    options = vars(task.args) if task.args else said_of(task.result)
    return (options.get("teacher") and options.get("response")) or "-"


def copied(cells: Cells, pair: str) -> list[str]:
    """A line for each row that made synthetic images: how near they come to private ones."""
    lines = []
    for name in names_of(cells, pair):
        found = [t.result["copying"] for t in tasks_of(cells, pair, name).values() if t.result and "copying" in t.result]
        if found:
            near, own, closer = (statistics.mean(f[k] for f in found) for k in ("synthetic_median", "private_median", "closer"))
            text = f"{name}: a synthetic image is {near:.2f} from the nearest private one, a private one {own:.2f} from the nearest other"
            lines.append(f"- {text} (medians); {closer:.1%} are nearer than all but 1 % of the private ones (copying.png in its logs).")
    return lines


def unshown(cells: Cells, pair: str) -> list[str]:
    """A line for each run whose export the table does not show: why."""
    there = {(name, seed): getattr(t, "unshown", "") for (p, name, seed), t in cells.items() if p == pair}
    return [f"- {name}, seed {seed}: its export is not shown: {why}" for (name, seed), why in there.items() if why]


# ---- budgets


def labelled(name: str, budget: int) -> str:
    """The key in `cells` of a row's runs with a query budget, 0 for none."""
    return f"{name} @{budget}" if budget else name


def curves(table: dict, cells: Cells, pair: str) -> dict[str, dict[int, list[float]]]:
    """{row's name: {budget: [accuracies]}}; the budget is 0 for a row that asks nothing."""
    there = names_of(cells, pair)
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

EXPLAINED = "Accuracies in percent, mean ± standard deviation over seeds. Queries and images sent include the training of generators."


def caption(table: dict, pair: str) -> str:
    """`ResNet32 -> ResNet8 on MNIST, private images of USPS`."""
    return f"{pair} on {table['dataset']}" + (f", private images of {table['private']}" if table.get("private") else "")


def rows_and_notes(table: dict, cells: Cells, pair: str, against: str) -> tuple[list[Row], list[str]]:
    """(a list of {column: text} for one pair, lines to stand below them)."""
    if table.get("budgets"):
        return budget_rows(table, cells, pair), ["Accuracy of the last epoch in percent, by query budget."]
    rows, differences = rows_of(cells, pair, against)
    return rows, [*copied(cells, pair), *unshown(cells, pair), *filter(None, [warning(differences)])]


def columns_of(rows: list[Row]) -> list[str]:
    """The columns in which any row has a value, in the order of a table."""
    order = dict.fromkeys(c for row in rows for c in row)
    tail = ["best", "agreement", "KL to teacher", "ECE, %", "queries", "images sent", "MB sent", *EXPORT, "minutes"]
    tail = [c for c in tail if c in order]
    ordered = [c for c in order if c not in tail] + tail
    return [c for c in ordered if any(r.get(c, "-") != "-" for r in rows)]


def head_of(column: str) -> str:
    """The words above a column."""
    return "accuracy (last), %" if column == "accuracy" else column


def markdown(rows: list[Row]) -> str:
    """A Markdown table with its columns aligned, so that it reads in a terminal too."""
    columns = columns_of(rows)
    text = [[head_of(c) for c in columns]] + [[r.get(c, "-").replace("|", "/") for c in columns] for r in rows]
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


def options_of_rows(cells: Cells) -> dict[str, str]:
    """{row's name: the options that its runs were given, in words}."""
    hidden = {"dataset", "teacher", "model", "seed", "query_budget", "data_dir", "checkpoints_dir", "logs_dir"}
    given = {n.partition(" @")[0]: {k: v for k, v in t.options.items() if k not in hidden} for (_, n, _), t in cells.items()}
    words = {name: ", ".join(f"{k} {v}" for k, v in options.items()) for name, options in given.items()}
    return {name: said or "the defaults of its script" for name, said in words.items()}


def machines(cells: Cells) -> list[str]:
    """What the runs were measured with, a line for each combination: device, versions, commit, number of runs."""
    found: dict[str, set[int]] = {}
    for task in cells.values():
        if r := task.result:
            said = {"device": r.get("device", "unknown"), "commit": "unknown"} | r.get("versions", {})
            words = [f"{k} {v}".replace(" unknown", " not recorded") for k, v in said.items()]
            found.setdefault("; ".join(words), set()).add(id(task))
    return [f"{words} ({len(tasks)} run{'s' * (len(tasks) > 1)})" for words, tasks in found.items()]


def measured(cells: Cells) -> str:
    """CSV text, a row a run: what was measured, with settings, seed, device and versions."""
    rows = []
    for (pair, name, seed), task in cells.items():
        if r := task.result:
            row = {k: (r | r.get("copying", {})).get(k, "") for k in MEASURED} | {"method": name, "pair": pair, "seed": seed}
            tested = r.get("fewshot", {}).get("last", {})
            row |= {f"{shot}{end}": value for shot, pair in tested.items() for end, value in zip(("", "_half"), pair, strict=True)}
            row |= {"versions": " ".join(f"{k} {v}" for k, v in r.get("versions", {}).items())}
            row |= {"options": shlex.join(f"{k}={v}" for k, v in r["options"].items() if v != "")}
            rows.append({k: round(v, 4) if isinstance(v, float) and math.isfinite(v) else v for k, v in row.items()})
    return csv_of(rows)


def csv_of(rows: Iterable[dict[str, Any]]) -> str:
    """CSV text of rows with the columns MEASURED."""
    out = io.StringIO()
    writer = csv.DictWriter(out, MEASURED, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
