"""table: runs what a table still lacks, and prints it.

    python project/table.py digits --jobs 2      runs what is missing, prints, writes logs/tables/digits.{md,tex,png,csv}
    python project/table.py digits --show        prints what there is
    python project/table.py digits --dry_run     prints the commands that are missing

A table is a file of tables/: a data set, pairs of teacher and student, seeds, rows (a name, a script, its options) and settings.
A row's run that is finished is not run again; one that fails leaves its reason in the cell and the others go on.
"""

import argparse
import csv
import importlib
import io
import math
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from common.datasets import spec_of
from common.models import canonical
from common.options import Asks, Parser, differences, flags, parse, settings
from common.utils import RunError, UsageError, cli, clock, place, read_json, save_text, who_of

ROOT = Path(__file__).resolve().parent.parent
KEYS = {"title", "paper", "dataset", "pairs", "seeds", "rows", "options", "scripts"}
ROW_KEYS = {"name", "script", "options", "needs", "published"}
COLUMNS = ["method", "accuracy", "best", "agreement", "queries", "private images sent", "MB sent", "minutes", "paper", "difference"]


@dataclass
class Task:
    """One run of one script, and what it must wait for."""

    script: str
    options: dict
    args: object
    folder: Path
    log: Path
    needs: list = field(default_factory=list)
    state: str = "missing"  # missing | running | done | failed
    why: str = ""
    result: dict | None = None

    def command(self):
        return [sys.executable, "-u", str(ROOT / "project" / f"{self.script}.py"), *flags(**self.options)]

    def __str__(self):
        return f"{self.script} {self.folder.parent.name} seed {self.options['seed']}"


# ---- a table's file


def read_table(name):
    """The table's dictionary; UsageError for an unknown table or key."""
    path = Path(name) if name.endswith(".toml") else ROOT / "tables" / f"{name}.toml"
    try:
        table = tomllib.loads(path.read_text())
    except FileNotFoundError:
        there_are = ", ".join(sorted(p.stem for p in (ROOT / "tables").glob("*.toml")))
        raise UsageError(f"no table {name!r}; there are: {there_are}, or a file of yours ending in .toml") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UsageError(f"{path}: {e}") from None
    for what, keys, allowed in [("table", table, KEYS), *((f"row {r.get('name')!r}", r, ROW_KEYS) for r in table.get("rows", []))]:
        if unknown := set(keys) - allowed:
            raise UsageError(f"{path}: unknown {', '.join(sorted(unknown))} in the {what}; there are: {', '.join(sorted(allowed))}")
    if lacking := {"title", "dataset", "pairs", "seeds", "rows"} - set(table):
        raise UsageError(f"{path} lacks {', '.join(sorted(lacking))}")
    if off := [pair for pair in table["pairs"] if len(str(pair).split("->")) != 2]:
        raise UsageError(f"{path}: pair {off[0]!r} is not of the form 'ResNet32 -> ResNet8'")
    for row in table["rows"]:
        if not (ROOT / "project" / f"{row.get('script')}.py").exists():
            raise UsageError(f"{path}: row {row.get('name')!r} wants script {row.get('script')!r}, which project/ does not have")
    return table


def plan(table, roots):
    """{(pair, row's name, seed): Task}, teachers and generators among them as rows of their own, each task once."""
    dataset, options, scripts = spec_of(table["dataset"])[0], table.get("options", {}), table.get("scripts", {})
    tasks, cells = {}, {}

    def task(script, seed, nets, extra=(), needs=()):
        given = {"dataset": dataset} | nets | {"seed": seed} | options | scripts.get(script, {}) | dict(extra)
        given |= {k: v for k, v in roots.items() if v != k.removesuffix("_dir")}
        args = parse(args_of(script), flags(**given), script)  # a wrong option is said before anything runs
        folder, logs = (place(roots[k], script, dataset, who_of(args), seed) for k in ("checkpoints_dir", "logs_dir"))
        known = tasks.setdefault(folder, Task(script, given, args, folder, logs / "output.log", list(needs)))
        if off := differences(args, settings(known.args)):
            raise UsageError(f"two rows of {table['title']!r} run in {folder}: {', '.join(off)}; give one of them a tag in its options")
        return known

    for pair in table["pairs"]:
        teacher, student = (canonical(n.strip()) for n in pair.split("->"))
        first = cells[pair, "teacher", 0] = task("teacher", 0, {"model": teacher})
        for seed in table["seeds"]:
            for row in table["rows"]:
                needs = []
                for script in row.get("needs", []):
                    before = task(script, seed, {"teacher": teacher}, needs=[first])
                    needs.append(before)
                    cells[pair, script, seed] = before
                asks = issubclass(args_of(row["script"]), Asks)
                nets = {"teacher": teacher, "model": student} if asks else {"model": student}
                cells[pair, row["name"], seed] = task(row["script"], seed, nets, row.get("options", {}), [first, *needs] if asks else [])
    return cells, list(tasks.values())


def args_of(script):
    """A script's options; to import a script runs nothing."""
    return importlib.import_module(script).Args


# ---- running


def look(tasks):
    """Takes the results that are there; one of other settings is no result of this table."""
    for task in tasks:
        result = read_json(task.folder / "result.json", "options")
        if result and (off := differences(task.args, result["options"])):
            task.state, task.why = "failed", f"{task.folder} holds a run with {', '.join(off)}; run it with --overwrite, or move it away"
        elif result:
            task.result, task.state = result, "done"


def run_all(tasks, jobs):
    """Runs the missing tasks, `jobs` at a time, each when what it needs is there."""
    todo, running, began = [t for t in tasks if t.state == "missing"], {}, time.time()
    gpus = torch.cuda.device_count()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the runs are told to save and stop
    done = 0
    with tqdm(total=len(todo), unit="run", disable=not sys.stderr.isatty()) as bar:

        def say(words):
            bar.write(f"[{done}/{len(todo)}] {clock(time.time() - began)}  {words}", file=sys.stdout)
            sys.stdout.flush()

        try:
            while any(t.state in ("missing", "running") for t in todo):
                for task in (t for t in todo if t.state == "missing"):
                    if failed := [n for n in task.needs if n.state == "failed"]:
                        task.state, task.why = "failed", f"{failed[0]} failed"
                        done += 1
                        say(f"{task}: not run, {task.why}")
                        bar.update()
                    elif len(running) < jobs and all(n.state == "done" for n in task.needs):
                        free = next(i for i in range(jobs) if i not in running)
                        running[free] = task, launch(task, jobs, free % gpus if gpus else None)
                        say(f"{task} ...")
                for slot, (task, process) in list(running.items()):
                    if process.poll() is not None:
                        del running[slot]
                        done += 1
                        end(task, process.returncode)
                        say(task.result["line"] if task.result else f"{task} failed: {task.why}")
                        bar.update()
                bar.set_postfix_str(", ".join(str(t) for t, _ in running.values()))
                time.sleep(0.2)
        except KeyboardInterrupt:
            for _, process in running.values():
                process.send_signal(signal.SIGTERM)
            for _, process in running.values():
                process.wait()
            raise RunError("stopped; finished runs are kept, the same command goes on with the others") from None


def launch(task, jobs, gpu):
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    env = {"OMP_NUM_THREADS": threads} | os.environ | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": visible(gpu)})
    task.state = "running"
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with open(task.log, "a") as log:
        return subprocess.Popen(task.command(), stdout=log, stderr=subprocess.STDOUT, env=env, cwd=os.getcwd(), start_new_session=True)


def visible(gpu):
    """The gpu-th of the GPUs that this process may use."""
    mine = os.environ.get("CUDA_VISIBLE_DEVICES")
    return mine.split(",")[gpu] if mine else str(gpu)


def end(task, status):
    task.result = read_json(task.folder / "result.json") if status == 0 else None
    task.state = "done" if task.result else "failed"
    if not task.result:
        lines = [line for line in task.log.read_text(errors="replace").splitlines() if line.strip()]
        task.why = (lines[-1] if lines else "no output") + f" (status {status}, {task.log})"


# ---- printing


def published(paper):
    """{(data set, teacher, student, method): value} of the rows that tables/published.csv has of one paper."""
    with open(ROOT / "tables" / "published.csv", newline="") as f:
        mine = [r for r in csv.DictReader(f) if r["paper"] == paper]
    return {(r["dataset"], r["teacher"], r["student"], r["method"]): float(r["value"]) for r in mine}


def mean(values, digits=2):
    return f"{statistics.mean(values):,.{digits}f}"


def spread(values):
    """`mean ± standard deviation`, the latter from two values on; `-` for none."""
    values = [v for v in values if v is not None]
    if len(values) < 2:
        return mean(values) if values else "-"
    return f"{mean(values)} ± {statistics.stdev(values):.2f}"


def rows_of(table, cells, pair):
    """A list of {column: text} for one pair, in the file's order."""
    paper, dataset = published(table.get("paper", "")), spec_of(table["dataset"])[0]
    teacher, student = (canonical(n.strip()) for n in pair.split("->"))
    papers = {row["name"]: row.get("published", row["name"]) for row in table["rows"]}
    rows = []
    for name in dict.fromkeys(n for p, n, _ in cells if p == pair):
        mine = [t for (p, n, _), t in cells.items() if p == pair and n == name]
        results = [t.result for t in mine if t.result]
        got = {key: [r.get(key) for r in results] for key in ("accuracy", "best", "agreement", "queries", "private", "bytes", "seconds")}
        row = dict.fromkeys(COLUMNS, "-") | {"method": name}
        row |= {key: spread(got[key]) for key in ("accuracy", "best", "agreement")}
        if any(got["queries"]):
            row |= {"queries": mean(got["queries"], 0), "private images sent": mean(got["private"], 0)}
            row["MB sent"] = mean([v / 1e6 for v in got["bytes"]], 1)
        if results:
            row["minutes"] = mean([v / 60 for v in got["seconds"]])
        value = paper.get((dataset, teacher, student, papers.get(name, name)))
        if value is not None:
            row["paper"] = f"{value:.2f}"
            if row["accuracy"] != "-":
                row["difference"] = f"{statistics.mean(got['accuracy']) - value:+.2f}"
        if len(results) < len(mine):
            failed = next((t.why for t in mine if t.state == "failed"), "")
            missing = f"{len(results)} of {len(mine)} seeds" + (f"; failed: {failed}" if failed else "")
            row["accuracy"] = f"{row['accuracy']} ({missing})" if results else f"({(failed and 'failed: ' + failed) or 'not run'})"
        rows.append(row)
    return rows


def used(rows):
    return [c for c in COLUMNS if any(r[c] != "-" for r in rows)]


def markdown(rows):
    """A Markdown table with its columns aligned, so that it reads in a terminal too."""
    columns = used(rows)
    text = [[c if c != "accuracy" else "accuracy (last), %" for c in columns]] + [[r[c].replace("|", "/") for c in columns] for r in rows]
    widths = [max(len(line[i]) for line in text) for i in range(len(columns))]
    lines = [
        "| " + " | ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))) + " |"
        for line in text
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths)) + "|")
    return "\n".join(lines)


def latex(rows, caption):
    special = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {"±": "$\\pm$", "~": "\\textasciitilde{}", "\\": "\\textbackslash{}"})
    columns = used(rows)
    lines = [" & ".join(columns) + " \\\\ \\hline"]
    lines += [" & ".join(r[c].translate(special) for c in columns) + " \\\\" for r in rows]
    spec = "l" + "r" * (len(columns) - 1)
    return "\n".join([f"% {caption}", f"\\begin{{tabular}}{{{spec}}}", *lines, "\\end{tabular}"])


def said_settings(cells):
    """One line a row of the table, with the options that its runs were given."""
    hidden = {"dataset", "teacher", "model", "seed", "data_dir", "checkpoints_dir", "logs_dir"}
    given = {name: {k: v for k, v in task.options.items() if k not in hidden} for (_, name, _), task in cells.items()}
    words = {name: ", ".join(f"{k} {v}" for k, v in options.items()) for name, options in given.items()}
    return [f"- {name}: {said or 'the defaults of its script'}" for name, said in words.items()]


def picture(table, cells, path):
    """Accuracy against queries, one point a method and pair, its seeds' range as a bar; what asks nothing is a dashed line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, len(table["pairs"]), figsize=(5.6 * len(table["pairs"]), 4.6), squeeze=False, layout="constrained")
    for ax, pair in zip(axes[0], table["pairs"], strict=True):
        names = dict.fromkeys(n for p, n, _ in cells if p == pair)
        for i, name in enumerate(names):
            results = [t.result for (p, n, _), t in cells.items() if (p, n) == (pair, name) and t.result and "accuracy" in t.result]
            y, x = [r["accuracy"] for r in results], [r["queries"] for r in results]
            if not results:
                continue
            middle = statistics.mean(y)
            if any(x):
                bar = [[middle - min(y)], [max(y) - middle]]
                ax.errorbar(statistics.mean(x), middle, bar, fmt="os^Dv"[i % 5], capsize=4, color=f"C{i}", alpha=0.8, label=name)
                ax.set_xscale("log")
            else:
                ax.axhline(middle, ls="--", lw=1.2, color=f"C{i}", label=f"{name}: no queries")
        ax.set(title=pair, xlabel="queries (with the generator's)", ylabel="test accuracy of the last epoch, %")
        ax.margins(x=0.15)
        ax.grid(alpha=0.3)
        if names and ax.has_data():
            ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False)
    fig.suptitle(table["title"], fontsize=10)
    fig.savefig(path, dpi=150)
    plt.close(fig)


def measured(cells):
    """CSV text, a row a run: what was measured, with settings, seed, device and versions."""
    keys = "method pair seed accuracy best top5 agreement teacher_accuracy queries private synthetic bytes seconds peak_mb device".split()
    lines = []
    for (pair, name, seed), task in cells.items():
        if r := task.result:
            row = {k: r.get(k, "") for k in keys} | {"method": name, "pair": pair, "seed": seed}
            row |= {"versions": " ".join(f"{k} {v}" for k, v in r["versions"].items())}
            row |= {"options": shlex.join(f"{k}={v}" for k, v in r["options"].items() if v != "")}
            lines.append({k: round(v, 4) if isinstance(v, float) and math.isfinite(v) else v for k, v in row.items()})
    out = io.StringIO()
    writer = csv.DictWriter(out, [*keys, "versions", "options"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def main(argv=None):
    parser = Parser(prog="table.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("table", help="a name in tables/, or a .toml file")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1); with several GPUs they share them out")
    parser.add_argument("--show", action="store_true", help="print what there is, run nothing")
    parser.add_argument("--dry_run", "--dry-run", action="store_true", help="print the commands that are missing, run nothing")
    for name in ("data", "checkpoints", "logs"):
        parser.add_argument(f"--{name}_dir", f"--{name}-dir", default=name, help=f"(default: {name})")
    args = parser.parse_args(argv)
    if args.jobs < 1:
        raise UsageError(f"--jobs {args.jobs}: give at least 1")
    table = read_table(args.table)
    cells, tasks = plan(table, {f"{n}_dir": getattr(args, f"{n}_dir") for n in ("data", "checkpoints", "logs")})
    look(tasks)
    if args.dry_run:
        for task in tasks:
            if task.state == "missing":
                print(shlex.join(["python", "-u", f"project/{task.script}.py", *task.command()[3:]]))
        return
    if not args.show:
        run_all(tasks, args.jobs)
    text, tex = [f"# {table['title']}", ""], []
    for pair in table["pairs"]:
        rows = rows_of(table, cells, pair)
        text += [f"{pair} on {table['dataset']}, seeds {', '.join(map(str, table['seeds']))}", "", markdown(rows), ""]
        tex += [latex(rows, f"{pair} on {table['dataset']}"), ""]
    text += [
        "Accuracies in percent, mean ± standard deviation over seeds. Queries include those of the generator's training.",
        "Settings:",
        "",
        *said_settings(cells),
        "",
    ]
    print("\n".join(text), flush=True)
    out = Path(args.logs_dir) / "tables" / Path(args.table).stem
    save_text(out.with_suffix(".md"), "\n".join(text))
    save_text(out.with_suffix(".tex"), "\n".join(tex))
    save_text(out.with_suffix(".csv"), measured(cells))
    picture(table, cells, out.with_suffix(".png"))
    print(f"written: {out}.md .tex .csv .png")
    if failed := [t for t in tasks if t.state == "failed"]:
        raise RunError(f"{len(failed)} of {len(tasks)} runs failed; the first: {failed[0]}: {failed[0].why}")


if __name__ == "__main__":
    cli(main)
