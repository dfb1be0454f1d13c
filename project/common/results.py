"""docs/results/ and the result tables of other pages, made from tables/measured/*.csv, so that no number in the docs is typed.

A page has a table where a pair of comments stands, of all columns or of those that are named:

    <!-- measured: digits-cpu; columns: method, accuracy, against, queries -->
    <!-- end -->
"""

import itertools
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from . import beside, beside_published, report
from .cli import UsageError
from .csv_files import COPYING, FEWSHOT, ROOT, read_measured, read_text, said_of
from .tables import read_table, scripts, seeds_text, table_names
from .utils import lookup, save_text

COLUMNS = {  # a marker's words -> the columns of report.rows_of
    "teacher_kl": "KL to teacher",
    "ece": "ECE, %",
    "sent": "images sent",
    "megabytes": "MB sent",
    "size": "size, kB",
    "int8_size": "int8 size, kB",
    "latency": "latency, ms",
    "int8_latency": "int8, ms",
    "int8_accuracy": "int8 accuracy",
    "1shot": "accuracy",
    "5shot": "5-shot",
}
SPEED = "gpu-speed"  # a file that benchmarks/gpu.py writes, of no table
MARKER = re.compile(r"(<!-- measured: ([\w-]+)((?:; \w+: [^;]*?)*) -->\n).*?(<!-- end -->)", re.DOTALL)


def versions_of(row: dict[str, Any]) -> dict[str, str]:
    """{package: version} of a row of tables/measured; also commit and source."""
    words = row["versions"].split()
    return dict(zip(words[::2], words[1::2], strict=False))


def cells_of(path: Path) -> report.Cells:
    """{(pair, row's name, seed): a finished task} of one file of tables/measured, in its order, as `report` takes them."""
    cells = {}
    for row in read_measured(path):
        result = row | {"versions": versions_of(row)}
        if COPYING[0] in row:
            result["copying"] = {k: row[k] for k in COPYING}
        if FEWSHOT[0] in row:
            result["fewshot"] = {"last": {shot: [row[shot], row[f"{shot}_half"]] for shot in ("1shot", "5shot")}}
        cells[row["pair"], row["method"], row["seed"]] = SimpleNamespace(result=result, state="done", why="", args=None)
    return cells


def source_of(path: Path) -> str:
    """The table that a file of tables/measured is of, NAME for NAME.csv, NAME-cpu.csv and NAME-gpu.csv; empty where there is none."""
    return next((name for name in (path.stem, re.sub("-(cpu|gpu)$", "", path.stem)) if name in table_names()), "")


class Measured:
    """One file of tables/measured, and the table that it was measured with. table: the content of the table's file."""

    def __init__(self, name: str):
        path = ROOT / "tables" / "measured" / f"{name}.csv"
        if not path.exists():
            there_are = ", ".join(sorted(p.stem for p in path.parent.glob("*.csv")))
            raise UsageError(f"no file {path}; tables/measured has: {there_are}")
        self.name, self.cells = name, cells_of(path)
        self.source = source_of(path)
        if not self.source:
            raise UsageError(f"{path}: no table tables/{re.sub('-(cpu|gpu)$', '', name)}.toml, which it would be of; rename one of them")
        self.table = read_table(self.source)
        self.pairs = list(dict.fromkeys(pair for pair, _, _ in self.cells))
        names = list(dict.fromkeys(name for _, name, _ in self.cells))
        self.against = next((n for n in (self.table.get("against"), "KD") if n in names), names[0])

    def rows(self, pair: str) -> list[dict[str, str]]:
        """{column: text} of each row for one pair."""
        if self.table.get("budgets"):
            return report.budget_rows(self.table, self.cells, pair)
        return report.rows_of(self.cells, pair, self.against)[0]

    def markdown(self, columns: list[str] | None = None, pairs: list[str] | None = None) -> str:
        """A table for each of the pairs (all by default), with these columns or all; the pair above it where there are several."""
        parts = []
        for pair in pairs or self.pairs:
            rows = self.rows(lookup(pair, self.pairs, f"pair in {self.name}.csv"))
            if columns and not self.table.get("budgets"):
                wanted = [COLUMNS.get(c, f"against {self.against}" if c == "against" else c) for c in columns]
                rows = [{c: r[c] for c in wanted if c in r} for r in rows]
            parts.append((f"**{pair}**\n\n" if len(self.pairs) > 1 else "") + report.markdown(rows))
        return "\n\n".join(parts)

    def published(self) -> list[str]:
        """The lines of the published numbers beside ours, a table for each of the pairs that have any, and of the findings."""
        found = {pair: beside_published.rows_of(self.table, self.cells, pair) for pair in self.pairs}
        parts = [(f"**{beside_published.TITLE}**, {pair}", "", report.markdown(rows), "") for pair, rows in found.items() if rows]
        parts += [("[The sources of the published numbers](../published.md).", "")] * bool(parts)
        return [*itertools.chain(*parts), *beside_published.notes(self.table, self.cells)]

    def page(self) -> str:
        """docs/results/NAME.md."""
        seeds = sorted({seed for _, _, seed in self.cells})
        counted = [*map(str, seeds)] if len(seeds) < 12 else [f"{seeds[0]} to {seeds[-1]}"]
        left, former = self.unmeasured(), self.former()
        only = [f"--only {shlex.quote(name)}" for name in self.row_names() if name not in left] if left else []
        notes = [line for pair in self.pairs for line in report.copied(self.cells, pair)]
        return "\n".join(
            [
                f"# {self.table['title']}",
                "",
                f"Table `{self.source}`, data set {self.table['dataset']}, seeds {', '.join(counted)}. Repeat it with:",
                "",
                "```sh",
                " ".join([f"python project/table.py {self.source} --seeds {seeds_text(seeds)}", *only]),
                "```",
                "",
                *[f"Rows of this table that are not measured yet: {'; '.join(left)}.", ""] * bool(left),
                *[f"Rows below that the table no longer has: {'; '.join(former)}.", ""] * bool(former),
                "Accuracies in percent on test images at the last epoch, mean ± standard deviation over seeds. "
                "[What the columns mean](../running.md#tables).",
                "*minutes* are upper bounds: other jobs ran on the same cores."
                + " Latencies were measured without other jobs." * self.timed(),
                f"One row per run, with all options: [{self.name}.csv](../../tables/measured/{self.name}.csv).",
                "",
                self.markdown(),
                "",
                *self.published(),
                *notes,
                *[""] * bool(notes),
                "Options that differ between the rows:",
                "",
                *self.settings(),
                "",
                "Measured with:",
                "",
                *(f"- {m}" for m in report.machines(self.cells)),
                "",
            ]
        )

    def row_names(self) -> list[str]:
        """The names of the table's rows, in order."""
        return [row["name"] for row in self.table["rows"]]

    def measured_names(self) -> list[str]:
        """The names of the rows that have a run here, those of teachers and generators among them, in order."""
        return list(dict.fromkeys(name.partition(" @")[0] for _, name, _ in self.cells))

    def unmeasured(self) -> list[str]:
        """The rows of the table that have no run here."""
        return [name for name in self.row_names() if name not in self.measured_names()]

    def former(self) -> list[str]:
        """The rows here that the table does not have, and that are no teacher or generator for its rows."""
        made = {*self.row_names(), *scripts(), *(f"teacher ({script})" for script in scripts())}
        return [name for name in self.measured_names() if name not in made]

    def timed(self) -> bool:
        """Whether any run has the latency of its export."""
        return any(task.result.get("latency_ms") for task in self.cells.values())

    def settings(self) -> list[str]:
        """A line for each row: the options in which its run differs from most of the others."""
        options = {name: said_of(t.result) for (_, name, _), t in self.cells.items()}
        hidden, lines = {"seed", "teacher", "model", "tag", "transfer", "dataset", "query_budget", "reuse_generator_path"}, []
        every = list(options.values())
        for name, own in options.items():
            rest = {k: v for k, v in own.items() if k not in hidden and sum(o.get(k) == v for o in every) <= len(every) / 2}
            lines.append(f"- {name}: {', '.join(f'{k} {v}' for k, v in rest.items()) or 'as most rows'}")
        return list(dict.fromkeys(lines)) if not self.table.get("budgets") else []


def filled(text: str) -> str:
    """A page's text with its result tables made anew; UsageError for a marker that names no file of tables/measured."""

    def fill(m: re.Match) -> str:
        said = dict(part.split(": ", 1) for part in m[3].split("; ") if part)
        columns = [c.strip() for c in said["columns"].split(",")] if "columns" in said else None
        return m[1] + Measured(m[2]).markdown(columns, [said["pair"]] if "pair" in said else None) + "\n" + m[4]

    return MARKER.sub(fill, text)


def pages() -> dict[Path, str]:
    """{file: text} of all pages that hold measured numbers: README.md, docs/**.md, and docs/results, which is made as a whole."""
    made, folder = {}, ROOT / "docs" / "results"
    index = ["# Results", "", "Generated by `python project/table.py --docs` from [tables/measured](../../tables/measured).", ""]
    for path in sorted(p for p in (ROOT / "tables" / "measured").glob("*.csv") if p.stem != SPEED):
        measured = Measured(path.stem)
        made[folder / f"{path.stem}.md"] = measured.page()
        index.append(f"- [{path.stem}]({path.stem}.md): {measured.table['title']}")
    made[folder / "released.md"] = beside.page()
    index.append("- [released](released.md): our scripts beside the released programs")
    made[folder / "README.md"] = "\n".join([*index, ""])
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        if path.parent != folder:
            made[path] = filled(read_text(path))
    return made


def stale() -> list[Path]:
    """The pages that are not as `write` would leave them."""
    made = pages()
    there = set((ROOT / "docs" / "results").glob("*.md"))
    return sorted(there - made.keys()) + [path for path, text in made.items() if not path.exists() or read_text(path) != text]


def write() -> list[Path]:
    """Writes the pages that are stale, and deletes result pages of files that are gone; gives their paths."""
    changed, made = stale(), pages()
    for path in changed:
        save_text(path, made[path]) if path in made else path.unlink()
    return changed
