"""table: runs what is missing in a table, prints the table and writes it to files.

    python project/table.py digits --jobs 2      runs what is missing, prints, writes logs/tables/digits.md, .tex, .png and .csv
    python project/table.py digits --show        prints the finished runs
    python project/table.py digits --show --html writes also logs/tables/digits.html, one page with plots, curves, pictures and commands
    python project/table.py digits --dry_run     prints the commands that are missing
    python project/table.py --docs               writes the result tables of README.md and docs/ from tables/measured/

A table is a TOML file in tables/. It has a data set, pairs of teacher and student, seeds, rows and options. A row has a name, a script
and its options. Further keys:

    labels     of a row: the row whose bought labels it uses
    reuse      of a row: the row (and the pair) whose generator it reuses
    alone      of a row: the script runs without a teacher
    budgets    query budgets; each row runs with each of them
    serve      the teacher answers through a server (serve.py) that the table starts and stops: port; options, of serve.py; asking,
               options of the runs that ask it
    like       another table, which gives all keys that this table does not have

A finished run is not repeated. A failed run leaves its reason in its cell, and the other runs continue. Each row is compared with one row
(--against) over common seeds: mean difference, its 95 % interval, and p of an exact paired test with Holm's correction for the number of
rows. A row is bold if it is better at 5 %.
"""

from common.cli import RunError, UsageError, cli, say

import argparse
import importlib
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from common import charts, report, results
from common.arguments import Parser
from common.csv_files import split_pair
from common.datasets import spec_of
from common.options import RunOptions, TeacherOptions, dataset_tag, differences, flags, parse, run_name_of, settings
from common.page.writing import write_page
from common.report import labelled
from common.runner import Runner, Server, Task
from common.tables import read_table, table_names, table_path
from common.utils import lookup, net_name, run_folder, safe, save_text
from common.values import check, whole

ROOTS = ("data_dir", "checkpoints_dir", "logs_dir")


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
        self.pairs = {pair: split_pair(pair) for pair in [*table["pairs"], *others]}
        self.cells, self.by_folder, self.servers = {}, {}, {}
        for pair, seed, row in itertools.product(table["pairs"], table["seeds"], table["rows"]):
            try:
                self.add_row(pair, row, seed)
            except UsageError as e:
                raise UsageError(f"rows[{row['name']!r}]: {e}") from None
        self.tasks = list(self.by_folder.values())

    def add_row(self, pair: str, row: dict, seed: int) -> None:
        """Plans the runs of a row, one for each budget."""
        has_teacher = issubclass(args_of(row["script"]), TeacherOptions)
        for budget in self.table.get("budgets", [0]) if has_teacher else [0]:
            self.place(pair, labelled(row["name"], budget), seed, self.task_of_row(pair, row, seed, budget))

    def place(self, pair: str, name: str, seed: int, task: Task) -> None:
        """Gives a run its cell. UsageError for a name that another run has."""
        if self.cells.setdefault((pair, name, seed), task) is not task:
            raise UsageError(f"the table has another row {name!r}, of {self.cells[pair, name, seed].script}.py; give this one another name")

    def read_options(self, script: str, seed: int, fixed: dict, options: dict) -> tuple[dict, RunOptions]:
        """Returns (the command line as a dictionary, all options) of a run.

        fixed: options that the table sets itself. options: those of its row. UsageError for a wrong option.
        """
        fixed = {"dataset": self.dataset} | fixed | {"seed": seed}
        given = fixed | self.table.get("options", {}) | self.table.get("scripts", {}).get(script, {}) | options
        given |= {k: v for k, v in self.roots.items() if v != k.removesuffix("_dir")}
        try:
            args = parse(args_of(script), flags(**given), f"project/{script}.py")
        except UsageError as e:
            raise UsageError(f"{script}.py: {e}") from None
        for k, v in ({"teacher": "", "overwrite": False, "extend": False, "dry_run": False} | fixed | self.roots).items():
            if getattr(args, k) != v:
                raise UsageError(f"{script}.py: --{k} is {getattr(args, k)}, and a table sets it itself ({v}); leave it out of the options")
        return given, args

    def task(self, script: str, seed: int, fixed: dict, options: dict | None = None, needs: Sequence[Task] = ()) -> Task:
        """Returns the run of a script; see read_options. Equal requests get the same Task."""
        given, args = self.read_options(script, seed, fixed, options or {})
        roots = (self.roots[k] for k in ("checkpoints_dir", "logs_dir"))
        folder, logs = (run_folder(root, script, dataset_tag(args), run_name_of(args), seed) for root in roots)
        known = self.by_folder.setdefault(folder, Task(script, given, args, folder, logs / "output.log", list(needs)))
        if different := differences(args, settings(known.args)):
            rows = f"two rows use the folder {folder} with different options"
            raise UsageError(f"{rows}: {', '.join(different)}; give one of them a tag in its options")
        return known

    def task_without_teacher(self, script: str, model: str, seed: int, options: dict | None = None) -> Task:
        """Returns a run without a teacher. It needs the run whose network it starts from, if there is one."""
        begins = args_of(script).BEGINS
        needs = [self.task_without_teacher(begins, model, seed)] if begins else []
        return self.task(script, seed, {"model": model}, options, needs)

    def task_of_row(self, pair: str, row: dict, seed: int, budget: int = 0) -> Task:
        """Returns the run of a row. It needs the runs that make its teacher, generator and labels."""
        (teacher, student), script, options = self.pairs[pair], row["script"], row.get("options", {})
        Args, asking = args_of(script), self.table.get("serve", {}).get("asking", {})
        if row.get("alone"):
            return self.task_without_teacher(script, student, seed, options)
        if not issubclass(Args, TeacherOptions):  # a student alone learns the private data set
            self.teacher_task(pair, "teacher", 0)
            return self.task(script, seed, {"model": student, "dataset": self.private.get("private", self.dataset)}, options)
        makers = list(self.inputs_of_row(pair, row, seed))
        fixed = {"teacher": teacher, "model": student} | self.private | ({"query_budget": budget} if budget else {})
        fixed |= {option: str(maker.folder / file) for maker, option, file in makers}
        options = asking | options
        args = self.read_options(script, seed, fixed, options)[1]
        needs = [self.teacher_task(pair, args.teacher_checkpoint()[0], args.teacher_seed)]
        server = self.server_of(teacher, args) if "serve" in self.table else None
        fixed["teacher"] = asked = server.url if server else teacher
        needs += [self.task_without_teacher(Args.BEGINS, student, seed)] if Args.BEGINS else []
        for other in row.get("needs", []):
            needs.append(self.task(other, seed, {"teacher": asked} | self.private, asking, needs[:1]))
            needs[-1].server = server
            self.place(pair, other, seed, needs[-1])
        task = self.task(script, seed, fixed, options, [*needs, *(maker for maker, _, _ in makers)])
        task.server = server
        return task

    def server_of(self, teacher: str, args: TeacherOptions) -> Server:
        """Returns the server of a teacher, one for each. UsageError for a row whose method looks inside the teacher."""
        if args.NEEDS == "inside":
            raise UsageError("its method looks inside the teacher, which a server does not show; leave the row out of a table with serve")
        port = self.table["serve"]["port"] + [*self.servers, teacher].index(teacher)
        shared = {k: getattr(args, k) for k in ("img_size", "channels", "normalize") if getattr(args, k) != getattr(TeacherOptions, k)}
        given = shared | self.table["serve"].get("options", {}) | {"dataset": self.dataset, "teacher": teacher, "port": port}
        given |= {k: v for k, v in self.roots.items() if v != k.removesuffix("_dir") and k != "logs_dir"}
        name = safe(net_name(teacher))
        url = f"http://127.0.0.1:{port}/v2/models/{name}"
        return self.servers.setdefault(
            teacher, Server(url, given, Path(self.roots["logs_dir"]) / "served" / f"{safe(net_name(teacher))}.log")
        )

    def teacher_task(self, pair: str, script: str, seed: int) -> Task:
        """Returns the run that trains a pair's teacher, and gives it a row of its own."""
        task = self.task_without_teacher(script, self.pairs[pair][0], seed)
        self.place(pair, "teacher" if script == "teacher" else f"teacher ({script})", seed, task)
        return task

    def inputs_of_row(self, pair: str, row: dict, seed: int) -> Iterator[tuple[Task, str, str]]:
        """Yields (run of another row, option that takes a file of it, name of the file) for each file that a row reads."""
        if maker := row.get("labels"):  # bought by the named row for the first pair with this teacher
            first_pair = next(p for p, nets in self.pairs.items() if nets[0] == self.pairs[pair][0])
            if (first_pair, maker) != (pair, row["name"]):
                yield self.task_of_row(first_pair, self.rows[maker], seed), "transfer", "transfer.safetensors"
        if old := row.get("reuse"):
            yield self.task_of_row(old.get("pair", pair), self.rows[old["row"]], seed), "reuse_generator_path", "generator.pt"


def args_of(script: str) -> type[RunOptions]:
    """Returns the options class of a script. The import runs nothing. UsageError for a file that has none."""
    found = getattr(importlib.import_module(script), "Args", None)
    if not (isinstance(found, type) and issubclass(found, RunOptions)):
        raise UsageError(f"project/{script}.py has no class Args of options; docs/extending.md shows what a script looks like")
    return found


# ---- the command


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Returns the options of the command line. UsageError for a wrong option or value."""
    parser = Parser(prog="project/table.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("table", nargs="?", default="", help="name of a table in tables/, or path of a .toml file")
    parser.add_argument("--jobs", type=whole, default=1, help="number of runs at the same time, distributed over the GPUs (default: 1)")
    parser.add_argument("--seeds", type=whole, help="number of seeds (0 to N - 1), instead of the seeds in the table's file")
    parser.add_argument("--against", help="name of the row that the others are compared with (default: the one in the table's file, or KD)")
    parser.add_argument("--show", action="store_true", help="print the table of the finished runs, and run nothing")
    parser.add_argument("--html", action="store_true", help="write the table also as one HTML page, with plots, curves and commands")
    parser.add_argument("--dry_run", "--dry-run", action="store_true", help="print the commands that are missing, and run nothing")
    parser.add_argument("--docs", action="store_true", help="write the result tables in README.md and docs/ from tables/measured/")
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    for name in ("data", "checkpoints", "logs"):
        parser.add_argument(f"--{name}_dir", f"--{name}-dir", default=name, help=f"folder of the {name} (default: {name})")
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    if not args.table and not args.docs:
        raise UsageError(f"no table given; there are: {', '.join(table_names())}, or the path of a .toml file")
    check("jobs", args.jobs, {"ge": 1, "le": 1024})
    check("seeds", 1 if args.seeds is None else args.seeds, {"ge": 1, "le": 10_000})
    for name in ROOTS:
        setattr(args, name, folder := os.path.expanduser(getattr(args, name)))
        check(name, folder, {})
        if not folder.strip():
            raise UsageError(f"--{name} {folder!r}: it must be a folder; leave it out for {name.removesuffix('_dir')}/")
    return args


def texts(table: dict, plan: Plan, against: str) -> tuple[str, str]:
    """Returns the table as Markdown and as LaTeX."""
    text, tex = [f"# {table['title']}", ""], []
    for pair in table["pairs"]:
        caption = report.caption(table, pair)
        rows, notes = report.rows_and_notes(table, plan.cells, pair, against)
        text += [f"{caption}, seeds {', '.join(map(str, table['seeds']))}", "", report.markdown(rows), "", *notes, ""]
        tex += [report.latex(rows, caption), ""]
    text += [
        report.EXPLAINED,
        "Settings:",
        "",
        *(f"- {name}: {said}" for name, said in report.options_of_rows(plan.cells).items()),
        "",
    ]
    return "\n".join(text), "\n".join(tex)


def write_files(out: Path, table: dict, plan: Plan, text: str, tex: str) -> None:
    """Writes the table as out.md, .tex, .csv and .png. RunError where that fails."""
    for kind, content in {"md": text, "tex": tex, "csv": report.measured(plan.cells)}.items():
        save_text(out.with_name(f"{out.name}.{kind}"), content)
    charts.picture(table, plan.cells, out.with_name(f"{out.name}.png"))
    say(f"written: {out}.md, .tex, .csv, .png")


def main(argv=None):
    args = arguments(argv)
    if args.docs:
        return say("\n".join(f"written: {path}" for path in results.write()) or "the result tables are up to date")
    table, path = read_table(args.table), table_path(args.table)
    if args.seeds:
        table["seeds"] = list(range(args.seeds))
    against = table.get("against", "KD")
    if args.against is not None:
        names = [row["name"] for row in table["rows"]]
        against = args.against if args.against in names else lookup(args.against, names, "row for --against")
    try:
        plan = Plan(table, {name: getattr(args, name) for name in ROOTS})
    except UsageError as e:
        raise UsageError(f"{path}: {e}") from None
    for task in plan.tasks:
        task.load_result()
    if args.dry_run:
        for task in (t for t in plan.tasks if t.state == "missing"):
            say(task.shown_command())
        return
    try:
        finish_table(args, table, plan, against, Path(args.logs_dir) / "tables" / path.stem)
    except KeyboardInterrupt:
        raise RunError("stopped; finished runs are kept, run the same command to continue") from None


def finish_table(args: argparse.Namespace, table: dict, plan: Plan, against: str, out: Path) -> None:
    """Runs what is missing (not with --show), prints the table and writes it. RunError where a run or a file failed."""
    if not args.show:
        Runner(plan.tasks, args.jobs).run()
    text, tex = texts(table, plan, against)
    say(text)
    failed = [t for t in plan.tasks if t.state == "failed"]
    problems = [f"{len(failed)} of {len(plan.tasks)} runs failed, first {failed[0]}: {failed[0].why}"] if failed else []
    try:
        write_files(out, table, plan, text, tex)
        if args.html:
            say(f"written: {write_page(out.with_name(f'{out.name}.html'), table, plan.cells, against)}")
    except RunError as e:
        problems.append(f"not all files of the table are written: {e}")
    if problems:
        raise RunError("; ".join(problems))


if __name__ == "__main__":
    cli(main)
