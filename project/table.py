"""table: runs what a table still lacks, and prints it.

    python project/table.py digits --jobs 2      runs what is missing, prints, writes logs/tables/digits.{md,tex,png,csv}
    python project/table.py digits --show        prints what there is
    python project/table.py digits --dry_run     prints the commands that are missing

A table is a file of tables/: a data set, pairs of teacher and student, seeds, rows (a name, a script, its options; labels: the row whose
bought labels it takes; reuse: the row, and the pair, whose generator it takes up; alone: without a teacher) and settings; budgets, where
each row is run with several numbers of queries; like: a table that says the rest. A row's run that is finished is not run again; one
that fails leaves its reason in the cell and the others go on. Rows are compared with one of them (--against), seed by seed: the mean
difference with its 95 % interval, and p of an exact paired test, corrected by Holm for the number of rows; a row that wins at 5 % is
bold.
"""

import argparse
import importlib
import os
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from common import report
from common.datasets import spec_of
from common.models import canonical
from common.options import Asks, Parser, differences, flags, parse, settings
from common.report import ROOT, labelled
from common.utils import RunError, UsageError, cli, clock, domain, lookup, place, read_json, save_text, who_of

KEYS = {"like", "title", "paper", "dataset", "private", "pairs", "seeds", "rows", "options", "scripts", "against", "budgets"}
ROW_KEYS = {"name", "script", "options", "needs", "labels", "reuse", "alone", "published"}


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


def read_table(name, told=()):
    """The table's dictionary; UsageError for an unknown table or key. told: the tables that are `like` this one."""
    path = Path(name) if name.endswith(".toml") else ROOT / "tables" / f"{name}.toml"
    if path in told:
        raise UsageError(f"{path}: it is `like` itself, by way of {', '.join(p.stem for p in told)}")
    try:
        table = tomllib.loads(path.read_text())
    except FileNotFoundError:
        there_are = ", ".join(sorted(p.stem for p in (ROOT / "tables").glob("*.toml")))
        raise UsageError(f"no table {name!r}; there are: {there_are}, or a file of yours ending in .toml") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UsageError(f"{path}: {e}") from None
    if "like" in table:  # what it does not say is as in that table
        table = read_table(table["like"], (*told, path)) | table
    for what, keys, allowed in [("table", table, KEYS), *((f"row {r.get('name')!r}", r, ROW_KEYS) for r in table.get("rows", []))]:
        if unknown := set(keys) - allowed:
            raise UsageError(f"{path}: unknown {', '.join(sorted(unknown))} in the {what}; there are: {', '.join(sorted(allowed))}")
    if lacking := {"title", "dataset", "pairs", "seeds", "rows"} - set(table):
        raise UsageError(f"{path} lacks {', '.join(sorted(lacking))}")
    if off := [pair for pair in table["pairs"] if len(str(pair).split("->")) != 2]:
        raise UsageError(f"{path}: pair {off[0]!r} is not of the form 'ResNet32 -> ResNet8'")
    if table.get("against", "") not in ("", *(row.get("name") for row in table["rows"])):
        raise UsageError(f"{path}: against {table['against']!r} is no row's name")
    for row in table["rows"]:
        if row.get("labels", row.get("name")) not in [r.get("name") for r in table["rows"]]:
            raise UsageError(f"{path}: row {row.get('name')!r} wants the labels of {row['labels']!r}, which is no row's name")
        if (old := row.get("reuse")) and (set(old) - {"row", "pair"} or old.get("row") not in [r.get("name") for r in table["rows"]]):
            raise UsageError(f"{path}: row {row.get('name')!r} wants to reuse {old}; it takes a row's name, and a pair where it is another")
        if not (ROOT / "project" / f"{row.get('script')}.py").exists():
            raise UsageError(f"{path}: row {row.get('name')!r} wants script {row.get('script')!r}, which project/ does not have")
    return table


def plan(table, roots):
    """{(pair, row's name, seed): Task}, teachers and generators among them as rows of their own, each task once."""
    dataset, options, scripts = spec_of(table["dataset"])[0], table.get("options", {}), table.get("scripts", {})
    tasks, cells = {}, {}
    private = {"private": spec_of(table["private"])[0]} if table.get("private") else {}

    def task(script, seed, nets, extra=(), needs=()):
        given = {"dataset": dataset} | nets | {"seed": seed} | options | scripts.get(script, {}) | dict(extra)
        given |= {k: v for k, v in roots.items() if v != k.removesuffix("_dir")}
        args = parse(args_of(script), flags(**given), f"project/{script}.py")  # a wrong option is said before anything runs
        folder, logs = (place(roots[k], script, domain(args), who_of(args), seed) for k in ("checkpoints_dir", "logs_dir"))
        known = tasks.setdefault(folder, Task(script, given, args, folder, logs / "output.log", list(needs)))
        if off := differences(args, settings(known.args)):
            raise UsageError(f"two rows of {table['title']!r} run in {folder}: {', '.join(off)}; give one of them a tag in its options")
        return known

    rows = {row["name"]: row for row in table["rows"]}
    others = [row["reuse"]["pair"] for row in table["rows"] if "pair" in row.get("reuse", {})]
    pairs = {pair: tuple(canonical(n.strip()) for n in pair.split("->")) for pair in [*table["pairs"], *others]}

    def alone(script, model, seed, extra=()):
        """A run without a teacher, and before it the one that it begins with."""
        begins = getattr(args_of(script), "BEGINS", "")
        return task(script, seed, {"model": model}, extra, [alone(begins, model, seed)] if begins else [])

    def run_of(pair, row, seed, budget=0):
        """The run of a row, and before it those of the scripts and of the labels that it needs."""
        (teacher, student), options_of, begins = pairs[pair], row.get("options", {}), getattr(args_of(row["script"]), "BEGINS", "")
        if row.get("alone"):
            return alone(row["script"], student, seed, options_of)
        Args = args_of(row["script"])
        asks, known = issubclass(Args, Asks), {k: v for k, v in options_of.items() if hasattr(Args, k)}
        by = Args(**known).taught()[0] if asks else "teacher"
        first = cells[pair, "teacher" if by == "teacher" else f"teacher ({by})", 0] = alone(by, teacher, 0)
        if not asks:  # a student alone learns the edge's data set
            edge = {"dataset": private["private"]} if private else {}
            return task(row["script"], seed, {"model": student}, options_of | edge)
        needs, more = [first], options_of | ({"query_budget": budget} if budget else {})
        needs += [alone(begins, student, seed)] if begins else []
        for script in row.get("needs", []):
            needs.append(task(script, seed, {"teacher": teacher} | private, needs=[first]))
            cells[pair, script, seed] = needs[-1]
        if maker := row.get("labels"):  # those of the named row and the teacher's first pair
            where = next(p for p in pairs if pairs[p][0] == teacher)
            if (where, maker) != (pair, row["name"]):
                needs.append(run_of(where, rows[maker], seed))
                more = more | {"transfer": str(needs[-1].folder / "transfer.safetensors")}
        if old := row.get("reuse"):
            needs.append(run_of(old.get("pair", pair), rows[old["row"]], seed))
            more = more | {"reuse_generator_path": str(needs[-1].folder / "generator.pt")}
        return task(row["script"], seed, {"teacher": teacher, "model": student} | private, more, needs)

    for pair in table["pairs"]:
        for seed in table["seeds"]:
            for row in table["rows"]:
                for budget in table.get("budgets", [0]) if issubclass(args_of(row["script"]), Asks) else [0]:
                    cells[pair, labelled(row["name"], budget), seed] = run_of(pair, row, seed, budget)
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


def main(argv=None):
    parser = Parser(prog="project/table.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("table", help="a name in tables/, or a .toml file")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1); with several GPUs they share them out")
    parser.add_argument("--seeds", type=int, default=0, help="run seeds 0 to N - 1 instead of the table's")
    parser.add_argument("--against", default="", help="the row that the others are compared with (default: the table's, or KD)")
    parser.add_argument("--show", action="store_true", help="print what there is, run nothing")
    parser.add_argument("--dry_run", "--dry-run", action="store_true", help="print the commands that are missing, run nothing")
    for name in ("data", "checkpoints", "logs"):
        parser.add_argument(f"--{name}_dir", f"--{name}-dir", default=name, help=f"(default: {name})")
    args = parser.parse_args(argv)
    if args.jobs < 1:
        raise UsageError(f"--jobs {args.jobs}: give at least 1")
    table = read_table(args.table)
    if args.seeds:
        table["seeds"] = list(range(args.seeds))
    names = [row["name"] for row in table["rows"]]
    against = lookup(args.against, names, "row") if args.against else table.get("against", "KD")
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
        where = f"{pair} on {table['dataset']}" + (f", the edge's images of {table['private']}" if table.get("private") else "")
        if table.get("budgets"):
            rows, notes = report.budget_rows(table, cells, pair), ["Accuracy of the last epoch in percent by answers allowed."]
        else:
            rows, differences = report.rows_of(table, cells, pair, against)
            notes = [*report.copied(cells, pair), report.warning(differences)]
        text += [f"{where}, seeds {', '.join(map(str, table['seeds']))}", "", report.markdown(rows), "", *filter(None, notes), ""]
        tex += [report.latex(rows, where), ""]
    text += [
        "Accuracies in percent, mean ± standard deviation over seeds. Queries and images sent include those of the generator's training.",
        "Settings:",
        "",
        *report.said_settings(cells),
        "",
    ]
    print("\n".join(text), flush=True)
    out = Path(args.logs_dir) / "tables" / Path(args.table).stem
    save_text(out.with_suffix(".md"), "\n".join(text))
    save_text(out.with_suffix(".tex"), "\n".join(tex))
    save_text(out.with_suffix(".csv"), report.measured(cells))
    report.picture(table, cells, out.with_suffix(".png"))
    print(f"written: {out}.md .tex .csv .png")
    if failed := [t for t in tasks if t.state == "failed"]:
        raise RunError(f"{len(failed)} of {len(tasks)} runs failed; the first: {failed[0]}: {failed[0].why}")


if __name__ == "__main__":
    cli(main)
