"""The runs of a table: what its file asks for, as tasks that need each other."""

import importlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from .cli import UsageError
from .csv_files import split_pair
from .datasets import spec_of
from .options import RunOptions, TeacherOptions, dataset_tag, differences, flags, parse, run_name_of, settings
from .report import labelled
from .runner import Server, Task
from .utils import net_name, run_folder, safe

ROOTS = ("data_dir", "checkpoints_dir", "logs_dir")


def args_of(script: str) -> type[RunOptions]:
    """Returns the options class of a script. The import runs nothing. UsageError for a file that has none."""
    found = getattr(importlib.import_module(script), "Args", None)
    if not (isinstance(found, type) and issubclass(found, RunOptions)):
        raise UsageError(f"project/{script}.py has no class Args of options; docs/extending.md shows what a script looks like")
    return found


class Plan:
    """The runs of a table.

    cells: {(pair, name of the row, seed): Task}; teachers and generators have rows of their own. tasks: all distinct runs.
    """

    def __init__(self, table: dict, roots: dict[str, str], shared: dict[Path, Task] | None = None):
        """Plans all runs. table: the content of its file. roots: {data_dir, checkpoints_dir, logs_dir}. UsageError for a wrong option.

        shared: the runs of several tables by folder, to which this plan adds its own; a run of two tables is one Task.
        """
        self.table, self.roots, self.dataset = table, roots, spec_of(table["dataset"])[0]
        self.shared = {} if shared is None else shared
        self.private = {"private": spec_of(table["private"])[0]} if table.get("private") else {}
        self.rows = {row["name"]: row for row in table["rows"]}
        others = [row["reuse"]["pair"] for row in table["rows"] if "pair" in row.get("reuse", {})]
        self.pairs = {pair: split_pair(pair) for pair in [*table["pairs"], *others]}
        self.cells, self.by_folder, self.servers, self.read = {}, {}, {}, {}
        for pair, seed, row in itertools.product(table["pairs"], table["seeds"], table["rows"]):
            try:
                self.add_row(pair, row, seed)
            except UsageError as e:
                raise UsageError(f"rows[{row['name']!r}]: {e}") from None
        self.tasks = list(self.by_folder.values())

    def keep(self, names: Sequence[str], against: str) -> None:
        """Keeps the cells of these rows and the finished ones of the row `against`; the tasks of these rows, with all that they need."""

        def cells_of(*rows: str) -> dict:
            labels = {labelled(row, budget) for row in rows for budget in (0, *self.table.get("budgets", []))}
            return {cell: task for cell, task in self.cells.items() if cell[1] in labels}

        mine, compared = cells_of(*names), cells_of(against)
        for task in compared.values():
            task.load_result()
        self.cells = {cell: task for cell, task in self.cells.items() if cell in mine or (cell in compared and task.result)}
        wanted, found = list(mine.values()), set()
        while wanted:
            if id(task := wanted.pop()) not in found:
                found.add(id(task))
                wanted += task.needs
        self.tasks = [task for task in self.tasks if id(task) in found]

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
        asked = repr((script, seed, fixed, options))
        if asked in self.read:
            return self.read[asked]
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
        return self.read.setdefault(asked, (given, args))

    def task(self, script: str, seed: int, fixed: dict, options: dict | None = None, needs: Sequence[Task] = ()) -> Task:
        """Returns the run of a script; see read_options. Equal requests get the same Task."""
        given, args = self.read_options(script, seed, fixed, options or {})
        roots = (self.roots[k] for k in ("checkpoints_dir", "logs_dir"))
        folder, logs = (run_folder(root, script, dataset_tag(args), run_name_of(args), seed) for root in roots)
        new = Task(script, given, args, folder, logs / "output.log", list(needs))
        known = self.by_folder.setdefault(folder, self.shared.setdefault(folder, new))
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
        return self.servers.setdefault(teacher, Server(url, given, Path(self.roots["logs_dir"]) / "served" / f"{name}.log"))

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
