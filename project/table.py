"""table: runs what a table still lacks, and prints it.

    python project/table.py digits --jobs 2      runs what is missing, prints, writes logs/tables/digits.{md,tex,png,csv}
    python project/table.py digits --show        prints what there is
    python project/table.py digits --dry_run     prints the commands that are missing
    python project/table.py --docs               writes the result tables of README.md and docs/ from tables/measured/

A table is a file of tables/: a data set, pairs of teacher and student, seeds, rows (a name, a script, its options; labels: the row whose
bought labels it takes; reuse: the row, and the pair, whose generator it takes up; alone: without a teacher) and settings; budgets, where
each row is run with several numbers of queries; like: a table that says the rest. A row's run that is finished is not run again; one
that fails leaves its reason in the cell and the others go on. Rows are compared with one of them (--against), seed by seed: the mean
difference with its 95 % interval, and p of an exact paired test, corrected by Holm for the number of rows; a row that wins at 5 % is
bold.
"""

import argparse
import importlib
import itertools
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from common import report, results
from common.datasets import spec_of
from common.models import canonical
from common.options import Parser, TeacherOptions, differences, flags, parse, settings
from common.report import ROOT, labelled
from common.tables import read_table, table_names
from common.utils import RunError, UsageError, cli, clock, dataset_tag, lookup, read_json, run_folder, run_name_of, save_text


@dataclass
class Task:
    """One run of one script, and what it must wait for."""

    script: str
    options: dict
    args: TeacherOptions
    folder: Path
    log: Path
    needs: list["Task"] = field(default_factory=list)
    state: str = "missing"  # missing | running | done | failed
    why: str = ""
    result: dict | None = None

    def command(self) -> list[str]:
        return [sys.executable, "-u", str(ROOT / "project" / f"{self.script}.py"), *flags(**self.options)]

    def __str__(self):
        return f"{self.script} {self.folder.parent.name} seed {self.options['seed']}"


# ---- what is to be run


class Plan:
    """cells: {(pair, row's name, seed): Task}, teachers and generators among them as rows of their own; tasks: each one once."""

    def __init__(self, table: dict, roots: dict[str, str]):
        """table: the content of its file; roots: {data_dir, checkpoints_dir, logs_dir}. UsageError for an option that there is not."""
        self.table, self.roots, self.dataset = table, roots, spec_of(table["dataset"])[0]
        self.private = {"private": spec_of(table["private"])[0]} if table.get("private") else {}
        self.rows = {row["name"]: row for row in table["rows"]}
        others = [row["reuse"]["pair"] for row in table["rows"] if "pair" in row.get("reuse", {})]
        self.pairs = {pair: tuple(canonical(n.strip()) for n in pair.split("->")) for pair in [*table["pairs"], *others]}
        self.cells, self.by_folder = {}, {}
        for pair, seed, row in itertools.product(table["pairs"], table["seeds"], table["rows"]):
            asks = issubclass(args_of(row["script"]), TeacherOptions)
            for budget in table.get("budgets", [0]) if asks else [0]:
                self.cells[pair, labelled(row["name"], budget), seed] = self.run_of(pair, row, seed, budget)
        self.tasks = list(self.by_folder.values())

    def task(self, script: str, seed: int, nets: dict, extra: dict | None = None, needs: Sequence[Task] = ()) -> Task:
        """The run of a script; the same one for all that ask for it."""
        table, roots = self.table, self.roots
        given = {"dataset": self.dataset} | nets | {"seed": seed} | table.get("options", {}) | table.get("scripts", {}).get(script, {})
        given |= (extra or {}) | {k: v for k, v in roots.items() if v != k.removesuffix("_dir")}
        args = parse(args_of(script), flags(**given), f"project/{script}.py")  # a wrong option is said before anything runs
        folder, logs = (run_folder(roots[k], script, dataset_tag(args), run_name_of(args), seed) for k in ("checkpoints_dir", "logs_dir"))
        known = self.by_folder.setdefault(folder, Task(script, given, args, folder, logs / "output.log", list(needs)))
        if off := differences(args, settings(known.args)):
            raise UsageError(f"two rows of {table['title']!r} run in {folder}: {', '.join(off)}; give one of them a tag in its options")
        return known

    def alone(self, script: str, model: str, seed: int, extra: dict | None = None) -> Task:
        """A run without a teacher, and before it the one that it begins with."""
        begins = args_of(script).BEGINS
        return self.task(script, seed, {"model": model}, extra, [self.alone(begins, model, seed)] if begins else [])

    def run_of(self, pair: str, row: dict, seed: int, budget: int = 0) -> Task:
        """The run of a row, and before it those of the scripts, of the labels and of the generator that it needs."""
        (teacher, student), options, Args = self.pairs[pair], row.get("options", {}), args_of(row["script"])
        if row.get("alone"):
            return self.alone(row["script"], student, seed, options)
        first = self.teacher_of(pair, Args, options)
        if not issubclass(Args, TeacherOptions):  # a student alone learns the private data set
            private = {"dataset": self.private["private"]} if self.private else {}
            return self.task(row["script"], seed, {"model": student}, options | private)
        needs, more = [first], options | ({"query_budget": budget} if budget else {})
        needs += [self.alone(Args.BEGINS, student, seed)] if Args.BEGINS else []
        for script in row.get("needs", []):
            needs.append(self.task(script, seed, {"teacher": teacher} | self.private, needs=[first]))
            self.cells[pair, script, seed] = needs[-1]
        for maker, option, file in self.made_from(pair, row, seed):
            needs.append(maker)
            more = more | {option: str(maker.folder / file)}
        return self.task(row["script"], seed, {"teacher": teacher, "model": student} | self.private, more, needs)

    def teacher_of(self, pair: str, Args: type, options: dict) -> Task:
        """The run of a row's teacher, a row of its own."""
        asks, known = issubclass(Args, TeacherOptions), {k: v for k, v in options.items() if hasattr(Args, k)}
        by = Args(**known).teacher_checkpoint()[0] if asks else "teacher"
        task = self.alone(by, self.pairs[pair][0], 0)
        self.cells[pair, "teacher" if by == "teacher" else f"teacher ({by})", 0] = task
        return task

    def made_from(self, pair: str, row: dict, seed: int) -> Iterator[tuple[Task, str, str]]:
        """(run of another row, the option that names a file of it, the file), for each that a row is made from."""
        if maker := row.get("labels"):  # those of the named row and the teacher's first pair
            where = next(p for p, nets in self.pairs.items() if nets[0] == self.pairs[pair][0])
            if (where, maker) != (pair, row["name"]):
                yield self.run_of(where, self.rows[maker], seed), "transfer", "transfer.safetensors"
        if old := row.get("reuse"):
            yield self.run_of(old.get("pair", pair), self.rows[old["row"]], seed), "reuse_generator_path", "generator.pt"


def args_of(script: str) -> type:
    """A script's options; to import a script runs nothing."""
    return importlib.import_module(script).Args


# ---- running


def look(tasks: list[Task]) -> None:
    """Takes the results that are there; one of other settings is no result of this table."""
    for task in tasks:
        result = read_json(task.folder / "result.json", "options")
        if result and (off := differences(task.args, result["options"])):
            task.state, task.why = "failed", f"{task.folder} holds a run with {', '.join(off)}; run it with --overwrite, or move it away"
        elif result:
            task.result, task.state = result, "done"


class Runner:
    """Runs the missing tasks, `jobs` at a time, each when what it needs is there."""

    def __init__(self, tasks: list[Task], jobs: int):
        self.todo, self.jobs, self.running, self.done, self.began = (
            [t for t in tasks if t.state == "missing"],
            jobs,
            {},
            0,
            time.monotonic(),
        )
        self.gpus = torch.cuda.device_count()
        self.bar = tqdm(total=len(self.todo), unit="run", disable=not sys.stderr.isatty())

    def say(self, words: str) -> None:
        self.bar.write(f"[{self.done}/{len(self.todo)}] {clock(time.monotonic() - self.began)}  {words}", file=sys.stdout)
        sys.stdout.flush()

    def ended(self, words: str) -> None:
        self.done += 1
        self.say(words)
        self.bar.update()

    def run(self) -> None:
        """Until nothing is missing; RunError on Ctrl-C or SIGTERM, which the runs are told."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the runs are told to save and stop
        try:
            while any(t.state in ("missing", "running") for t in self.todo):
                self.start_ready()
                self.collect()
                self.bar.set_postfix_str(", ".join(str(t) for t, _ in self.running.values()))
                time.sleep(0.2)
        except KeyboardInterrupt:
            for _, process in self.running.values():
                process.send_signal(signal.SIGTERM)
            for _, process in self.running.values():
                process.wait()
            raise RunError("stopped; finished runs are kept, run the same command to continue with the others") from None
        finally:
            self.bar.close()

    def start_ready(self) -> None:
        for task in (t for t in self.todo if t.state == "missing"):
            if failed := [n for n in task.needs if n.state == "failed"]:
                task.state, task.why = "failed", f"{failed[0]} failed"
                self.ended(f"{task}: not run, {task.why}")
            elif len(self.running) < self.jobs and all(n.state == "done" for n in task.needs):
                free = next(i for i in range(self.jobs) if i not in self.running)
                self.running[free] = task, launch(task, self.jobs, free % self.gpus if self.gpus else None)
                self.say(f"{task} ...")

    def collect(self) -> None:
        for slot, (task, process) in list(self.running.items()):
            if process.poll() is not None:
                del self.running[slot]
                end(task, process.returncode)
                self.ended(task.result["line"] if task.result else f"{task} failed: {task.why}")


def launch(task: Task, jobs: int, gpu: int | None) -> subprocess.Popen:
    """The process of a run, with its part of the cores, on one GPU."""
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    env = {"OMP_NUM_THREADS": threads} | os.environ | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": visible(gpu)})
    task.state = "running"
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with open(task.log, "a") as log:
        return subprocess.Popen(task.command(), stdout=log, stderr=subprocess.STDOUT, env=env, cwd=os.getcwd(), start_new_session=True)


def visible(gpu: int) -> str:
    """The gpu-th of the GPUs that this process may use."""
    mine = os.environ.get("CUDA_VISIBLE_DEVICES")
    return mine.split(",")[gpu] if mine else str(gpu)


def end(task: Task, status: int) -> None:
    """Takes the result of a run that has ended, or the reason why it has none."""
    task.result = read_json(task.folder / "result.json") if status == 0 else None
    task.state = "done" if task.result else "failed"
    if not task.result:
        lines = [line for line in task.log.read_text(errors="replace").splitlines() if line.strip()]
        task.why = (lines[-1] if lines else "no output") + f" (status {status}, {task.log})"


# ---- the command


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The options of the command line; UsageError for those that are not allowed."""
    parser = Parser(prog="project/table.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("table", nargs="?", default="", help="name in tables/, or a .toml file")
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at a time (default: 1), spread over the GPUs")
    parser.add_argument("--seeds", type=int, default=0, help="number of seeds, 0 to N - 1, instead of the table's seeds")
    parser.add_argument("--against", default="", help="row that the others are compared with (default: the table's, or KD)")
    parser.add_argument("--show", action="store_true", help="print the finished runs and run nothing")
    parser.add_argument("--dry_run", "--dry-run", action="store_true", help="print the commands that are missing and run nothing")
    parser.add_argument("--docs", action="store_true", help="write the result tables in README.md and docs/ from tables/measured/")
    for name in ("data", "checkpoints", "logs"):
        parser.add_argument(f"--{name}_dir", f"--{name}-dir", default=name, help=f"folder of the {name} (default: {name})")
    args = parser.parse_args(argv)
    if not args.table and not args.docs:
        raise UsageError(f"no table given; there are: {', '.join(table_names())}, or a .toml file")
    if args.jobs < 1:
        raise UsageError(f"--jobs {args.jobs}: it must be at least 1")
    return args


def texts(table: dict, plan: Plan, against: str) -> tuple[str, str]:
    """The table as Markdown and as LaTeX."""
    text, tex = [f"# {table['title']}", ""], []
    for pair in table["pairs"]:
        where = f"{pair} on {table['dataset']}" + (f", private images of {table['private']}" if table.get("private") else "")
        if table.get("budgets"):
            rows, notes = report.budget_rows(table, plan.cells, pair), ["Accuracy of the last epoch in percent, by the number of answers."]
        else:
            rows, differences = report.rows_of(table, plan.cells, pair, against)
            notes = [*report.copied(plan.cells, pair), report.warning(differences)]
        text += [f"{where}, seeds {', '.join(map(str, table['seeds']))}", "", report.markdown(rows), "", *filter(None, notes), ""]
        tex += [report.latex(rows, where), ""]
    text += [
        "Accuracies in percent, mean ± standard deviation over seeds. Queries and images sent include those of the generator's training.",
        "Settings:",
        "",
        *report.settings_of_rows(plan.cells),
        "",
    ]
    return "\n".join(text), "\n".join(tex)


def main(argv=None):
    args = arguments(argv)
    if args.docs:
        return print("\n".join(f"written: {path}" for path in results.write()) or "the result tables are up to date")
    table = read_table(args.table)
    if args.seeds:
        table["seeds"] = list(range(args.seeds))
    names = [row["name"] for row in table["rows"]]
    against = lookup(args.against, names, "row") if args.against else table.get("against", "KD")
    plan = Plan(table, {f"{n}_dir": getattr(args, f"{n}_dir") for n in ("data", "checkpoints", "logs")})
    look(plan.tasks)
    if args.dry_run:
        for task in (t for t in plan.tasks if t.state == "missing"):
            print(shlex.join(["python", "-u", f"project/{task.script}.py", *task.command()[3:]]))
        return
    if not args.show:
        Runner(plan.tasks, args.jobs).run()
    text, tex = texts(table, plan, against)
    print(text, flush=True)
    out = Path(args.logs_dir) / "tables" / Path(args.table).stem
    save_text(out.with_suffix(".md"), text)
    save_text(out.with_suffix(".tex"), tex)
    save_text(out.with_suffix(".csv"), report.measured(plan.cells))
    report.picture(table, plan.cells, out.with_suffix(".png"))
    print(f"written: {out}.md .tex .csv .png")
    if failed := [t for t in plan.tasks if t.state == "failed"]:
        raise RunError(f"{len(failed)} of {len(plan.tasks)} runs failed; the first: {failed[0]}: {failed[0].why}")


if __name__ == "__main__":
    cli(main)
