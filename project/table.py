"""table: runs what is missing in a table, prints the table and writes it to files.

    python project/table.py digits --jobs 2      runs what is missing, prints, writes logs/tables/digits.md, .tex, .png and .csv
    python project/table.py digits --show        prints the finished runs
    python project/table.py digits --dry_run     prints the commands that are missing
    python project/table.py --docs               writes the result tables of README.md and docs/ from tables/measured/

A table is a TOML file in tables/. It has a data set, pairs of teacher and student, seeds, rows and options. A row has a name, a script
and its options. Further keys:

    labels     of a row: the row whose bought labels it uses
    reuse      of a row: the row (and the pair) whose generator it reuses
    alone      of a row: the script runs without a teacher
    budgets    query budgets; each row runs with each of them
    like       another table, which gives all keys that this table does not have

A finished run is not repeated. A failed run leaves its reason in its cell, and the other runs continue. Each row is compared with one row
(--against) over common seeds: mean difference, its 95 % interval, and p of an exact paired test with Holm's correction for the number of
rows. A row is bold if it is better at 5 %.
"""

from common.cli import RunError, UsageError, cli

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
from common.options import Parser, TeacherOptions, dataset_tag, differences, flags, parse, run_name_of, settings
from common.report import ROOT, labelled
from common.tables import read_table, table_names
from common.utils import clock, lookup, read_json, run_folder, save_text


@dataclass
class Task:
    """One run of a script.

    options: the command line as a dictionary. args: all options. folder: checkpoints and result. log: the file of its output. needs: runs
    that must finish first. state: missing, running, done or failed. why: the reason of a failure. result: content of result.json.
    """

    script: str
    options: dict
    args: TeacherOptions
    folder: Path
    log: Path
    needs: list["Task"] = field(default_factory=list)
    state: str = "missing"
    why: str = ""
    result: dict | None = None

    def command(self) -> list[str]:
        """Returns the command line that starts the run."""
        return [sys.executable, "-u", str(ROOT / "project" / f"{self.script}.py"), *flags(**self.options)]

    def __str__(self) -> str:
        return f"{self.script} {self.folder.parent.name} seed {self.options['seed']}"


# ---- the runs of a table


class Plan:
    """The runs of a table.

    cells: {(pair, name of the row, seed): Task}; teachers and generators have rows of their own. tasks: all distinct runs.
    """

    def __init__(self, table: dict, roots: dict[str, str]):
        """Plans all runs. table: the content of its file. roots: {data_dir, checkpoints_dir, logs_dir}. UsageError for a wrong option."""
        self.table, self.roots, self.dataset = table, roots, spec_of(table["dataset"])[0]
        self.private = {"private": spec_of(table["private"])[0]} if table.get("private") else {}
        self.rows = {row["name"]: row for row in table["rows"]}
        others = [row["reuse"]["pair"] for row in table["rows"] if "pair" in row.get("reuse", {})]
        self.pairs = {pair: tuple(canonical(n.strip()) for n in pair.split("->")) for pair in [*table["pairs"], *others]}
        self.cells, self.by_folder = {}, {}
        for pair, seed, row in itertools.product(table["pairs"], table["seeds"], table["rows"]):
            has_teacher = issubclass(args_of(row["script"]), TeacherOptions)
            for budget in table.get("budgets", [0]) if has_teacher else [0]:
                self.cells[pair, labelled(row["name"], budget), seed] = self.task_of_row(pair, row, seed, budget)
        self.tasks = list(self.by_folder.values())

    def task(self, script: str, seed: int, nets: dict, extra: dict | None = None, needs: Sequence[Task] = ()) -> Task:
        """Returns the run of a script with these options. Equal requests get the same Task. UsageError for a wrong option."""
        table, roots = self.table, self.roots
        given = {"dataset": self.dataset} | nets | {"seed": seed} | table.get("options", {}) | table.get("scripts", {}).get(script, {})
        given |= (extra or {}) | {k: v for k, v in roots.items() if v != k.removesuffix("_dir")}
        args = parse(args_of(script), flags(**given), f"project/{script}.py")
        folder, logs = (run_folder(roots[k], script, dataset_tag(args), run_name_of(args), seed) for k in ("checkpoints_dir", "logs_dir"))
        known = self.by_folder.setdefault(folder, Task(script, given, args, folder, logs / "output.log", list(needs)))
        if different := differences(args, settings(known.args)):
            rows = f"two rows of {table['title']!r} use the folder {folder} with different options"
            raise UsageError(f"{rows}: {', '.join(different)}; give one of them a tag in its options")
        return known

    def task_without_teacher(self, script: str, model: str, seed: int, extra: dict | None = None) -> Task:
        """Returns a run without a teacher. It needs the run whose network it starts from, if there is one."""
        begins = args_of(script).BEGINS
        needs = [self.task_without_teacher(begins, model, seed)] if begins else []
        return self.task(script, seed, {"model": model}, extra, needs)

    def task_of_row(self, pair: str, row: dict, seed: int, budget: int = 0) -> Task:
        """Returns the run of a row. It needs the runs that make its teacher, generator and labels."""
        (teacher, student), options, Args = self.pairs[pair], row.get("options", {}), args_of(row["script"])
        if row.get("alone"):
            return self.task_without_teacher(row["script"], student, seed, options)
        teacher_task = self.teacher_task(pair, Args, options)
        if not issubclass(Args, TeacherOptions):  # a student alone learns the private data set
            private = {"dataset": self.private["private"]} if self.private else {}
            return self.task(row["script"], seed, {"model": student}, options | private)
        needs, more = [teacher_task], options | ({"query_budget": budget} if budget else {})
        needs += [self.task_without_teacher(Args.BEGINS, student, seed)] if Args.BEGINS else []
        for script in row.get("needs", []):
            needs.append(self.task(script, seed, {"teacher": teacher} | self.private, needs=[teacher_task]))
            self.cells[pair, script, seed] = needs[-1]
        for maker, option, file in self.inputs_of_row(pair, row, seed):
            needs.append(maker)
            more = more | {option: str(maker.folder / file)}
        return self.task(row["script"], seed, {"teacher": teacher, "model": student} | self.private, more, needs)

    def teacher_task(self, pair: str, Args: type, options: dict) -> Task:
        """Returns the run that trains a row's teacher, and gives it a row of its own."""
        has_teacher, known = issubclass(Args, TeacherOptions), {k: v for k, v in options.items() if hasattr(Args, k)}
        script = Args(**known).teacher_checkpoint()[0] if has_teacher else "teacher"
        task = self.task_without_teacher(script, self.pairs[pair][0], 0)
        self.cells[pair, "teacher" if script == "teacher" else f"teacher ({script})", 0] = task
        return task

    def inputs_of_row(self, pair: str, row: dict, seed: int) -> Iterator[tuple[Task, str, str]]:
        """Yields (run of another row, option that takes a file of it, name of the file) for each file that a row reads."""
        if maker := row.get("labels"):  # bought by the named row for the first pair with this teacher
            first_pair = next(p for p, nets in self.pairs.items() if nets[0] == self.pairs[pair][0])
            if (first_pair, maker) != (pair, row["name"]):
                yield self.task_of_row(first_pair, self.rows[maker], seed), "transfer", "transfer.safetensors"
        if old := row.get("reuse"):
            yield self.task_of_row(old.get("pair", pair), self.rows[old["row"]], seed), "reuse_generator_path", "generator.pt"


def args_of(script: str) -> type:
    """Returns the options class of a script. The import runs nothing."""
    return importlib.import_module(script).Args


# ---- running


def load_results(tasks: list[Task]) -> None:
    """Reads the results of finished runs. A result of other options marks the run as failed."""
    for task in tasks:
        result = read_json(task.folder / "result.json", "options")
        if result and (different := differences(task.args, result["options"])):
            hint = "run the script with --overwrite, or move the folder away"
            task.state, task.why = "failed", f"{task.folder} holds a run with {', '.join(different)}; {hint}"
        elif result:
            task.result, task.state = result, "done"


class Runner:
    """Runs the missing tasks, `jobs` at a time. A run starts when all runs that it needs are done."""

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

    def say(self, text: str) -> None:
        """Prints a line with the number of finished runs and the elapsed time."""
        self.bar.write(f"[{self.done}/{len(self.todo)}] {clock(time.monotonic() - self.began)}  {text}", file=sys.stdout)
        sys.stdout.flush()

    def report_end(self, text: str) -> None:
        """Counts one more run as ended, and prints a line."""
        self.done += 1
        self.say(text)
        self.bar.update()

    def run(self) -> None:
        """Runs until nothing is missing. On Ctrl-C or SIGTERM it stops the runs, which save first, and raises RunError."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM acts as Ctrl-C
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
            raise RunError("stopped; finished runs are kept, run the same command to continue") from None
        finally:
            self.bar.close()

    def start_ready(self) -> None:
        """Starts runs whose needs are done, while fewer than `jobs` are running. A failed need fails the run."""
        for task in (t for t in self.todo if t.state == "missing"):
            if failed := [n for n in task.needs if n.state == "failed"]:
                task.state, task.why = "failed", f"{failed[0]} failed"
                self.report_end(f"{task}: not run, {task.why}")
            elif len(self.running) < self.jobs and all(n.state == "done" for n in task.needs):
                slot = next(i for i in range(self.jobs) if i not in self.running)
                self.running[slot] = task, launch(task, self.jobs, slot % self.gpus if self.gpus else None)
                self.say(f"{task} started")

    def collect(self) -> None:
        """Takes the results of runs that have ended."""
        for slot, (task, process) in list(self.running.items()):
            if process.poll() is not None:
                del self.running[slot]
                finish_task(task, process.returncode)
                self.report_end(task.result["line"] if task.result else f"{task} failed: {task.why}")


def launch(task: Task, jobs: int, gpu: int | None) -> subprocess.Popen:
    """Starts the process of a run and returns it. The run gets cores / jobs threads, and the GPU with index `gpu` (None: all)."""
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    env = {"OMP_NUM_THREADS": threads} | os.environ | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": visible_device(gpu)})
    task.state = "running"
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with open(task.log, "a") as log:
        return subprocess.Popen(task.command(), stdout=log, stderr=subprocess.STDOUT, env=env, cwd=os.getcwd(), start_new_session=True)


def visible_device(gpu: int) -> str:
    """Returns the name for CUDA_VISIBLE_DEVICES of the GPU with index `gpu` among those of this process."""
    mine = os.environ.get("CUDA_VISIBLE_DEVICES")
    return mine.split(",")[gpu] if mine else str(gpu)


def finish_task(task: Task, status: int) -> None:
    """Reads the result of a run that has ended with this exit status, or the last line of its log as the reason of the failure."""
    task.result = read_json(task.folder / "result.json") if status == 0 else None
    task.state = "done" if task.result else "failed"
    if not task.result:
        lines = [line for line in task.log.read_text(errors="replace").splitlines() if line.strip()]
        task.why = (lines[-1] if lines else "no output") + f" (status {status}, {task.log})"


# ---- the command


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Returns the options of the command line. UsageError for a wrong option or value."""
    parser = Parser(prog="project/table.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("table", nargs="?", default="", help="name of a table in tables/, or path of a .toml file")
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at the same time, distributed over the GPUs (default: 1)")
    parser.add_argument("--seeds", type=int, default=0, help="number of seeds (0 to N - 1), instead of the seeds in the table's file")
    parser.add_argument(
        "--against", default="", help="name of the row that the others are compared with (default: the one in the table's file, or KD)"
    )
    parser.add_argument("--show", action="store_true", help="print the table of the finished runs, and run nothing")
    parser.add_argument("--dry_run", "--dry-run", action="store_true", help="print the commands that are missing, and run nothing")
    parser.add_argument("--docs", action="store_true", help="write the result tables in README.md and docs/ from tables/measured/")
    for name in ("data", "checkpoints", "logs"):
        parser.add_argument(f"--{name}_dir", f"--{name}-dir", default=name, help=f"folder of the {name} (default: {name})")
    args = parser.parse_args(argv)
    if not args.table and not args.docs:
        raise UsageError(f"no table given; there are: {', '.join(table_names())}, or the path of a .toml file")
    if args.jobs < 1:
        raise UsageError(f"--jobs {args.jobs}: it must be at least 1")
    return args


def texts(table: dict, plan: Plan, against: str) -> tuple[str, str]:
    """Returns the table as Markdown and as LaTeX."""
    text, tex = [f"# {table['title']}", ""], []
    for pair in table["pairs"]:
        caption = f"{pair} on {table['dataset']}" + (f", private images of {table['private']}" if table.get("private") else "")
        if table.get("budgets"):
            rows, notes = report.budget_rows(table, plan.cells, pair), ["Accuracy of the last epoch in percent, by query budget."]
        else:
            rows, differences = report.rows_of(table, plan.cells, pair, against)
            notes = [*report.copied(plan.cells, pair), report.warning(differences)]
        text += [f"{caption}, seeds {', '.join(map(str, table['seeds']))}", "", report.markdown(rows), "", *filter(None, notes), ""]
        tex += [report.latex(rows, caption), ""]
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
    load_results(plan.tasks)
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
    print(f"written: {out}.md, .tex, .csv, .png")
    if failed := [t for t in plan.tasks if t.state == "failed"]:
        raise RunError(f"{len(failed)} of {len(plan.tasks)} runs failed, first {failed[0]}: {failed[0].why}")


if __name__ == "__main__":
    cli(main)
