"""What a campaign prints and writes: the order of its runs, how far its tables are, their rows, CSV files."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from .. import report
from ..csv_files import ROOT, read_measured
from ..plan import Plan
from ..runner import Task
from ..tables import table_names
from ..utils import save_text
from ..watching import epochs_done
from .book import CPU, device_here, name_of, plain_device
from .order import values_of
from .slices import Campaign

PUBLIC = ROOT / "tables" / "measured"


def minutes(seconds: float) -> str:
    """`12.3`."""
    return f"{seconds / 60:,.1f}"


def order_text(campaign: Campaign) -> str:
    """A Markdown table of the runs in their order, with estimates."""
    rows, total, values = [], 0.0, values_of(campaign.plans.values())
    for task in campaign.order():
        seconds = campaign.seconds_left(task)
        total += seconds
        row = {"run": name_of(task), "table": tables_of(task, campaign.plans)}
        row |= {"published": "yes" if values.get(id(task), (0, 1))[1] == 0 else "no"}
        row |= {"estimate, min": minutes(seconds), "sum, min": minutes(total), "from": campaign.speeds.of(task)[1]}
        rows.append(row)
    if not rows:
        return "all runs are finished"
    basis = "estimated: from other runs that were measured; guessed: from the sizes of its nets"
    return f"{report.markdown(rows)}\n\nOn {campaign.device}, one run at a time. {basis}."


def tables_of(task: Task, plans: dict[str, Plan]) -> str:
    """The names of the tables that a run belongs to."""
    return ", ".join(name for name, plan in plans.items() if any(t is task for t in plan.tasks))


def progress_text(campaign: Campaign, jobs: int) -> str:
    """A Markdown table of how far the tables are. A run of two tables is counted in both, but once in the last row."""
    rows = [progress(name, plan.tasks, campaign, jobs) for name, plan in campaign.plans.items()]
    return report.markdown(rows + [progress("all", campaign.tasks, campaign, jobs)] * (len(rows) > 1))


def progress(name: str, tasks: list[Task], campaign: Campaign, jobs: int) -> dict[str, str]:
    """{column: text}: finished runs of all, minutes that they took with what unfinished ones have done, minutes that are left."""
    done = [t for t in tasks if t.state == "done"]
    rest = [t for t in tasks if t.state != "done"]
    spent = sum(t.result.get("seconds") or 0 for t in done) + sum(epochs_done(t) * campaign.speeds.of(t)[0] for t in rest)
    left = sum(map(campaign.seconds_left, rest)) / jobs
    runs = f"{len(done)} of {len(tasks)}"
    return {"table": name, "runs": runs, "minutes spent": minutes(spent), "minutes left": f"about {minutes(left)}"}


def rows_text(name: str, plan: Plan) -> str:
    """The rows of a table that have results, as Markdown; empty where there are none."""
    parts = []
    for pair in plan.table["pairs"]:
        there = {n for (p, n, _), task in plan.cells.items() if p == pair and task.state == "done"}
        cells = {cell: task for cell, task in plan.cells.items() if cell[0] == pair and cell[1] in there}
        if cells:
            rows, notes = report.rows_and_notes(plan.table, cells, pair, plan.table.get("against", "KD"))
            rows = [row for row in rows if row["method"] in there or plan.table.get("budgets")]
            parts += [f"{name}: {report.caption(plan.table, pair)}", "", report.markdown(rows), "", *notes, *[""] * bool(notes)]
    return "\n".join(parts)


# ---- CSV files


def write_measured(plans: dict[str, Plan], public: bool) -> list[Path]:
    """Writes measured/TABLE-cpu.csv and -gpu.csv of the finished runs. Returns the paths.

    public: whether those of a GPU are added to tables/measured, too, where a run that is there already is replaced.
    """
    written = []
    for (name, plan), kind in ((item, kind) for item in plans.items() for kind in ("cpu", "gpu")):
        cells = {cell: t for cell, t in plan.cells.items() if t.state == "done" and kind_of_device(t) == kind}
        if not cells:
            continue
        text = report.measured(cells)
        written.append(Path("measured") / f"{name}-{kind}.csv")
        save_text(written[-1], text)
        if public and kind == "gpu" and name in table_names():
            written.append(PUBLIC / f"{name}-{kind}.csv")
            save_text(written[-1], merged(written[-1], text))
    return written


def kind_of_device(task: Task) -> str:
    """cpu or gpu: where a run was finished."""
    return "cpu" if plain_device(task.result.get("device", CPU)) == CPU else "gpu"


def merged(path: Path, text: str) -> str:
    """The rows of a CSV file of measured numbers and, in their place where they are of the same runs, those of `text`."""
    earlier = []
    if path.exists():
        read_measured(path)  # checks it
        earlier = rows_of(path.read_text(encoding="utf-8"))
    rows = {(r["pair"], r["method"], r["seed"]): r for r in (*earlier, *rows_of(text))}
    return report.csv_of(rows.values())


def rows_of(text: str) -> Iterable[dict[str, str]]:
    """The rows of CSV text."""
    return csv.DictReader(io.StringIO(text, newline=""))


def is_public(asked: bool) -> bool:
    """Whether measured numbers go to tables/measured, too: where that is asked for, or on a GPU."""
    return asked or device_here() != CPU
