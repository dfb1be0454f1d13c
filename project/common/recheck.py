"""Runs one measured cell of a table again, in a temporary place, and compares: table.py --check."""

import contextlib
import math
import os
import random
import re
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from .cli import RunError, UsageError, say
from .csv_files import ROOT, read_measured, said_of
from .options import BEFORE, RunOptions, described
from .plan import Plan, args_of
from .results import source_of, versions_of
from .runner import Runner, Task, needs_of
from .significance import half_width
from .tables import rows_named
from .tables import scripts as table_scripts
from .utils import clock

SET = {"seed", "dataset", "private", "teacher", "model", "query_budget", "transfer", "reuse_generator_path"}  # by a table itself
COMPARED = ("accuracy", "queries", "teacher_accuracy")
CODE = {"commit", "source"}  # may change where numbers must not


class Cell(NamedTuple):
    """A measured cell: the file that holds it, its row there, and all rows of the file, {(pair, method, seed): row}."""

    path: Path
    row: dict[str, Any]
    rows: dict[tuple[str, str, int], dict[str, Any]]

    def __str__(self) -> str:
        return f"{self.row['method']}, {self.row['pair']}, seed {self.row['seed']} of {self.path.name}"


# ---- which cell


def measured_files(table: Path, logs: str) -> list[Path]:
    """The files of tables/measured that hold the runs of a table's file; if there are none, the one that table.py wrote."""
    ours, written = ROOT / "tables", Path(logs) / "tables" / f"{table.stem}.csv"
    found = [p for p in sorted((ours / "measured").glob("*.csv")) if table.resolve().parent == ours and source_of(p) == table.stem]
    if not found and not written.exists():
        raise UsageError(f"{table}: none of its runs is in tables/measured or in {written}; run the table first")
    return found or [written]


def drawn(path: Path, table: dict, logs: str, only: Sequence[str], seeds: Sequence[int] | None, draw: int) -> Cell:
    """A random one of the measured cells of a table's rows, teachers and generators apart. draw: the seed of the choice.

    path: the table's file. only, seeds: the rows and seeds to choose from, all if empty. UsageError where there is none.
    """
    names = [row["name"] for row in table["rows"]]
    wanted, cells = rows_named(only, names) or names, []
    for file in measured_files(path, logs):
        rows = {(row["pair"], row["method"], row["seed"]): row for row in read_measured(file)}
        cells += [Cell(file, row, rows) for row in rows.values() if row["method"].partition(" @")[0] in wanted and "accuracy" in row]
    cells = [cell for cell in cells if cell.row["pair"] in table["pairs"] and (not seeds or cell.row["seed"] in seeds)]
    if not cells:
        raise UsageError(f"{path}: no run with these rows, pairs and seeds is measured; leave --only and --seeds out")
    return random.Random(draw).choice(cells)


# ---- the table as it was measured


def as_measured(table: dict, cell: Cell) -> dict:
    """The table with the cell's seed and the options that its rows had when they were measured."""
    budget = cell.row["method"].partition(" @")[2]
    rows, scripts = [], dict(table.get("scripts", {}))
    for row in table["rows"]:
        then = options_then(cell, [f"{row['name']} @{budget}", row["name"]], args_of(row["script"]))
        rows.append(row | {"options": row.get("options", {}) | then})
    for name in {name for _, name, _ in cell.rows} - {row["name"] for row in table["rows"]}:  # teachers, and scripts of `needs`
        if (script := re.sub(r"^teacher \((.*)\)$", r"\1", name)) in table_scripts():
            scripts[script] = scripts.get(script, {}) | options_then(cell, [name], args_of(script))
    device = {"device": "cpu"} if cell.row["device"].startswith("CPU") else {}
    found = table | {"seeds": [cell.row["seed"]], "rows": rows, "scripts": scripts, "options": table.get("options", {}) | device}
    return found | ({"budgets": [int(budget)]} if budget else {})


def options_then(cell: Cell, names: Sequence[str], Args: type[RunOptions]) -> dict[str, Any]:
    """The options with which a row was measured, of the cell's pair and seed if possible.

    Without those that a table sets itself, and those that the script does not have any more.
    """
    same = [row for row in cell.rows.values() if row["method"] in names]
    if not same:
        return {}
    row = max(same, key=lambda r: (r["pair"] == cell.row["pair"]) * 2 + (r["seed"] == cell.row["seed"]))
    there = known(Args)
    then = {k: v for k, v in BEFORE.items() if k in there} | said_of(row)
    return {k: {"True": True, "False": False}.get(v, v) for k, v in then.items() if k in there - SET}


def known(Args: type[RunOptions]) -> set[str]:
    """The names of a script's options, with the other names that they have."""
    return {name for k, about in described(Args).items() for name in (k, *about["alias"])}


# ---- the run


def check_cell(table: dict, roots: dict[str, str], cell: Cell, jobs: int) -> None:
    """Runs a cell again and prints what it compares. RunError where a run fails or the numbers do not agree.

    roots: {data_dir, checkpoints_dir, logs_dir}; finished runs with the same options in this checkpoints_dir are used, not repeated.
    """
    with contextlib.ExitStack() as at_end:
        home = tempfile.mkdtemp(prefix="check-")
        at_end.callback(shutil.rmtree, home, ignore_errors=True)
        plan = Plan(as_measured(table, cell), roots | {k: str(Path(home) / k) for k in ("checkpoints_dir", "logs_dir")})
        if not (task := plan.cells.get((cell.row["pair"], cell.row["method"], cell.row["seed"]))):
            raise UsageError(f"{cell} is not in the table any more; choose another row with --only")
        needs = needs_of(task)
        for need in needs:
            take(need, Path(home) / "checkpoints_dir", Path(roots["checkpoints_dir"]))
        todo = [*(need for need in needs if need.state != "done"), task]
        say(f"runs: {len(todo)}, {how_long(cell, plan, todo)}; finished runs with the same options, used: {len(needs) + 1 - len(todo)}")
        if gone := sorted(said_of(cell.row).keys() - known(type(task.args))):
            say(f"options of then that {task.script}.py does not have any more: {', '.join(gone)}")
        if threads := re.fullmatch(r"CPU, (\d+) threads?", cell.row["device"]):
            os.environ["OMP_NUM_THREADS"] = threads[1]  # sums over other numbers of threads are rounded otherwise
        try:
            Runner(todo, jobs).run()
        except KeyboardInterrupt:
            raise RunError("stopped; nothing of the check is kept") from None
        if failed := [t for t in todo if t.state == "failed"]:
            at_end.pop_all()  # the reason is in the log
            raise RunError(f"{failed[0]} failed: {failed[0].why}; its files are in {home}")
    say(judged(cell, task.result))


def how_long(cell: Cell, plan: Plan, tasks: Sequence[Task]) -> str:
    """How long these runs took when they were measured, in words."""
    measured = {id(task): cell.rows[key]["seconds"] for key, task in plan.cells.items() if key in cell.rows}
    took = [measured[id(task)] for task in tasks if id(task) in measured]
    unknown = len(tasks) - len(took)
    return f"which took {clock(sum(took))} when they were measured" + (f" ({unknown} not measured)" if unknown else "")


def take(task: Task, root: Path, real: Path) -> None:
    """Copies a finished run with exactly these options from the folder of checkpoints `real` to the temporary one `root`."""
    there = replace(task, folder=real / task.folder.relative_to(root))
    there.load_result()
    if there.state == "done":
        shutil.copytree(there.folder, task.folder)
        task.load_result()


# ---- the comparison


def judged(cell: Cell, result: dict[str, Any]) -> str:
    """What agrees, in words. RunError where it does not.

    With the same device and versions all numbers must agree to the digit (on a GPU with --deterministic). Otherwise the accuracies may
    differ as those of two seeds do.
    """
    row, now = cell.row, {k: round(float(result[k]), 4) for k in COMPARED if result.get(k) is not None}
    compared = [k for k in COMPARED if k in row]
    here, then = ({"device": r["device"], "commit": "unknown"} | r["versions"] for r in (result, row | {"versions": versions_of(row)}))
    changed = [f"{k} {then.get(k, 'unknown')} then, {here[k]} now" for k in here if here[k] != then.get(k)]
    about = (
        ", ".join(f"{k} {row[k]:.10g} then, {now.get(k, math.nan):.10g} now" for k in compared)
        + f" ({'; '.join(changed) or 'the same code'})"
    )
    if all(now.get(k) == row[k] for k in compared):
        return f"agrees to the digit: {about}"
    repeatable = here["device"].startswith("CPU") or said_of(row).get("deterministic") == "True"
    if repeatable and all(here[k] == then.get(k) for k in here.keys() - CODE):
        raise RunError(f"{cell} does not agree, on the same device with the same versions: {about}")
    gap = now["accuracy"] - row["accuracy"]
    values = [r["accuracy"] for r in cell.rows.values() if (r["pair"], r["method"]) == (row["pair"], row["method"]) and "accuracy" in r]
    if len(values) < 2:
        raise RunError(f"{cell} does not agree: {about}; difference {gap:+.2f}, and the spread over seeds is not known, with one seed")
    allowed = half_width(values) * math.sqrt(2 * len(values))  # of the difference of two runs
    spread = f"standard deviation over {len(values)} seeds {statistics.stdev(values):.2f}"
    about += f"; difference {gap:+.2f}, expected: at most {allowed:.2f} ({spread})"
    if abs(gap) > allowed:
        raise RunError(f"{cell} does not agree: {about}")
    return f"agrees within the spread over seeds: {about}"
