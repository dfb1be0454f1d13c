"""Writes a table as one HTML page that needs nothing else: no network, no other file, no JavaScript to be read."""

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import jinja2

from .. import beside_published
from ..blackbox import RESPONSES
from ..csv_files import read_published, split_pair
from ..datasets import spec_of
from ..report import EXPLAINED, LEVEL, Cells, caption, columns_of, head_of, machines, names_of, options_of_rows, rows_and_notes, tasks_of
from ..utils import save_text
from . import plots, training
from .images import Gallery

HERE = Path(__file__).parent
STYLES = 6  # of the lines of seeds, in page.css
NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]\d+)?")


def write_page(path: Path, table: dict, cells: Cells, against: str) -> str:
    """Writes the page; gives `PATH (123 kB)`. RunError where it cannot be written."""
    text = page(table, cells, against)
    save_text(path, text)
    return f"{path} ({len(text.encode()) / 1e3:,.0f} kB)"


def page(table: dict, cells: Cells, against: str) -> str:
    """The HTML text of a table. cells: its runs; against: the row that the others are compared with."""
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    gallery = Gallery()
    content = {
        "table": {"private": "", "paper": "", "findings": []} | table,
        "explained": EXPLAINED,
        "beside": beside_published,
        "level": f"{100 * LEVEL:g} %",
        "against": against,
        "policy": policy(style, script),
        "style": style,
        "script": script,
        "plot": plots,
        "panel": training,
        "pairs": [pair_of(table, cells, pair, against, gallery) for pair in table["pairs"]],
        "machines": machines(cells),
        "runs": runs(cells),
        "settings": options_of_rows(cells),
        "styles": {seed: i % STYLES for i, seed in enumerate(sorted({seed for _, _, seed in cells}))},
    }
    return env.get_template("page.html").render(content) + "\n"


def policy(style: str, script: str) -> str:
    """A Content-Security-Policy that allows this style, this script and pictures inside the page, and nothing else."""
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script))
    allowed = "default-src 'none'; img-src data:; style-src 'sha256-{}'; script-src 'sha256-{}'; base-uri 'none'; form-action 'none'"
    return allowed.format(*hashes)


def pair_of(table: dict, cells: Cells, pair: str, against: str, gallery: Gallery) -> dict[str, Any]:
    """What the page shows of one pair."""
    rows, notes = rows_and_notes(table, cells, pair, against)
    columns, beside = columns_of(rows), beside_published.rows_of(table, cells, pair)
    beside_columns = columns_of(beside)
    curves, floor = training.curves_of(cells, pair)
    pictures, left_out = gallery.of_pair(cells, pair)
    return {
        "name": pair,
        "caption": caption(table, pair),
        "columns": [head_of(column) for column in columns],
        "rows": cells_of(columns, rows),
        "notes": [note.removeprefix("- ") for note in notes],
        "plots": plots.plots_of(table, cells, pair),
        "curves": curves,
        "floor": floor,
        "pictures": pictures,
        "left_out": left_out,
        "unfinished": unfinished(cells, pair),
        "beside": (beside_columns, cells_of(beside_columns, beside)) if beside else None,
        "published": published(table, pair),
    }


# ---- the table


def cells_of(columns: list[str], rows: list[dict[str, str]]) -> list[list[dict[str, Any]]]:
    """The cells of rows {column: text}."""
    return [[cell(column, row.get(column, "-")) for column in columns] for row in rows]


def cell(column: str, text: str) -> dict[str, Any]:
    """A cell: its text, whether it is bold, what the page sorts it by (None: it stands last)."""
    bold = re.fullmatch(r"\*\*(.*?)\*\*(.*)", text, re.DOTALL)
    text = f"{bold[1]}{bold[2]}" if bold else text
    text = re.sub(r"failed: .*\)$", "failed)", text)  # the page has the reasons in a table of their own
    return {"text": text, "bold": bool(bold), "key": sort_key(column, text)}


def sort_key(column: str, text: str) -> float | str | None:
    """What a cell is sorted by: the first number of `97.20 ± 0.51`, the sum of `259 private + 1,500 mixed`, a text for methods."""
    if column in ("method", "published as", "source"):
        return text.lower()
    if column == "response":
        kind = text.partition(":")[0]  # topk of topk:3
        return RESPONSES.index(kind) if kind in RESPONSES else None
    if column == "images sent":
        return sum(float(n.replace(",", "")) for n in NUMBER.findall(text)) if text != "-" else None
    first = NUMBER.match(text)
    return float(first[0].replace(",", "")) if first else None


# ---- beside the table


def runs(cells: Cells) -> dict[str, Any]:
    """How many of the runs are finished, and the commands of each row: {row's name: [(pair, seed, command)]}."""
    commands: dict[str, list[tuple[str, int, str]]] = {}
    for (pair, name, seed), task in cells.items():
        commands.setdefault(name, []).append((pair, seed, task.shown_command()))
    tasks = {id(task): task for task in cells.values()}
    return {"done": sum(t.state == "done" for t in tasks.values()), "all": len(tasks), "commands": commands}


def unfinished(cells: Cells, pair: str) -> list[dict[str, str]]:
    """The runs of a pair that have no result: {row, seeds, state, why}, those of a row together that have the same reason."""
    found = []
    for name in names_of(cells, pair):
        seeds: dict[tuple[str, str], list[str]] = {}
        for seed, task in tasks_of(cells, pair, name).items():
            if task.state != "done":
                seeds.setdefault((task.state, task.why), []).append(str(seed))
        found += [{"row": name, "seeds": ", ".join(s), "state": state, "why": why} for (state, why), s in seeds.items()]
    return found


def published(table: dict, pair: str) -> list[dict[str, Any]]:
    """The rows of tables/published.csv of the table's paper, its data set and this pair (or the teacher alone)."""
    (teacher, student), dataset = split_pair(pair), spec_of(table["dataset"])[0]
    wanted = {"paper": {table.get("paper", "")}, "dataset": {dataset}, "teacher": {teacher}, "student": {student, ""}}
    return [{"student": "", "note": ""} | row for row in read_published() if all(row.get(k, "") in values for k, values in wanted.items())]
