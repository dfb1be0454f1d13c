"""table: runs what is missing in a table, prints the table and writes it to files.

    python project/table.py digits --jobs 2      runs what is missing, prints, writes logs/tables/digits.md, .tex, .png and .csv
    python project/table.py digits --show        prints the finished runs
    python project/table.py digits --show --html writes also logs/tables/digits.html, one page with plots, curves, pictures and commands
    python project/table.py digits --dry_run     prints the commands that are missing
    python project/table.py digits --watch       shows what runs, how far it is, what failed and what waits
    python project/table.py digits --check       runs one measured cell again, at random, and compares
    python project/table.py --docs               writes the result tables of README.md and docs/ from tables/measured/

A table is a TOML file in tables/. It has a data set, pairs of teacher and student, seeds, rows and options. A row has a name, a script
and its options. Further keys:

    labels     of a row: the row whose bought labels it uses
    reuse      of a row: the row (and the pair) whose generator it reuses
    alone      of a row: the script runs without a teacher
    needs      of a row: scripts that run before it, such as DCGAN
    budgets    query budgets; each row runs with each of them
    serve      the teacher answers through a server (serve.py) that the table starts and stops: port; options, of serve.py; asking,
               options of the runs that ask it
    paper      the paper whose numbers in tables/published.csv stand beside ours (default: none)
    published  of a row: the published numbers that stand beside it: METHOD or PAPER: METHOD, a list of these, or either for each pair
               (default: the row's name)
    teacher_published  the same for the teacher's row
    findings   sentences that are printed below the table
    like       another table, which gives all keys that this table does not have, but findings

A finished run is not repeated. A failed run leaves its reason in its cell, and the other runs continue. Each row is compared with one row
(--against) over common seeds: mean difference, its 95 % interval, and p of an exact paired test with Holm's correction for the number of
rows. A row is bold if it is significantly better (p < 0.05).
"""

from common.cli import RunError, UsageError, cli, say

import argparse
import secrets
import sys
from pathlib import Path

from common import beside_published, charts, report, results
from common.arguments import Parser
from common.engine import Snakemake
from common.page.writing import write_page
from common.plan import ROOTS, Plan
from common.recheck import check_cell, drawn
from common.runner import Runner, needs_of
from common.tables import SEEDS, read_table, rows_named, seeds_of, table_names, table_path
from common.utils import lookup, save_text
from common.values import check, folder, whole
from common.watching import watch


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Returns the options of the command line. UsageError for a wrong option or value."""
    parser = Parser(prog="project/table.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("table", nargs="?", default="", help="name of a table in tables/, or path of a .toml file")
    parser.add_argument("--jobs", type=whole, default=1, help="number of runs at the same time, distributed over the GPUs (default: 1)")
    parser.add_argument("--seeds", help=SEEDS)
    only = "row to run and to print, with all that it needs: its name or a unique beginning; several with commas, or repeat the option"
    parser.add_argument("--only", action="append", default=[], metavar="ROW", help=only)
    engine = "scheduler of the runs: local (this machine) or snakemake (also clusters; docs/scale.md) (default: local)"
    parser.add_argument("--engine", choices=("local", "snakemake"), default="local", help=engine)
    arguments = 'further arguments of Snakemake, such as "--executor slurm --jobs 100"'
    parser.add_argument("--engine_args", "--engine-args", default="", metavar="TEXT", help=arguments)
    parser.add_argument("--against", help="name of the row that the others are compared with (default: the one in the table's file, or KD)")
    parser.add_argument("--show", action="store_true", help="print the table of the finished runs, and run nothing")
    parser.add_argument("--html", action="store_true", help="write the table also as one HTML page, with plots, curves and commands")
    parser.add_argument("--dry_run", "--dry-run", action="store_true", help="print the commands that are missing, and run nothing")
    parser.add_argument("--watch", action="store_true", help="show the state of the runs until all have ended (on a terminal; else once)")
    check_help = "run one random cell of tables/measured again in a temporary folder, and compare (with --only, --seeds: one of these)"
    parser.add_argument("--check", action="store_true", help=check_help)
    parser.add_argument(
        "--draw", type=whole, help="seed of the random choice of --check (default: another one each time, which is printed)"
    )
    parser.add_argument("--docs", action="store_true", help="write the result tables in README.md and docs/ from tables/measured/")
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    for name in ("data", "checkpoints", "logs"):
        parser.add_argument(f"--{name}_dir", f"--{name}-dir", default=name, help=f"folder of the {name} (default: {name})")
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    if not args.table and not args.docs:
        raise UsageError(f"no table given; there are: {', '.join(table_names())}, or the path of a .toml file")
    check("jobs", args.jobs, {"ge": 1, "le": 1024})
    if args.check and (other := next((n for n in ("show", "html", "dry_run", "watch") if getattr(args, n)), "")):
        raise UsageError(f"--check runs one cell and prints what it compares; leave --{other} out")
    args.seeds = None if args.seeds is None else seeds_of(args.seeds)
    if args.engine_args and args.engine == "local":
        raise UsageError("--engine_args are those of Snakemake; add --engine snakemake")
    if args.html and args.only:
        raise UsageError("--html writes a page of all rows; leave --only out")
    for name in ROOTS:
        setattr(args, name, folder(name, getattr(args, name), f"leave it out for {name.removesuffix('_dir')}/"))
    return args


def texts(table: dict, plan: Plan, against: str) -> tuple[str, str]:
    """Returns the table as Markdown and as LaTeX."""
    text, tex = [f"# {table['title']}", ""], []
    for pair in table["pairs"]:
        caption = report.caption(table, pair)
        rows, notes = report.rows_and_notes(table, plan.cells, pair, against)
        text += [f"{caption}, seeds {', '.join(map(str, table['seeds']))}", "", report.markdown(rows), "", *notes, ""]
        tex += [report.latex(rows, caption), ""]
        if numbers := beside_published.rows_of(table, plan.cells, pair):
            text += [f"{beside_published.TITLE}, {pair}", "", report.markdown(numbers), ""]
            tex += [report.latex(numbers, f"{beside_published.TITLE}, {caption}"), ""]
    text += [
        *beside_published.notes(table, plan.cells),
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


def planned(args: argparse.Namespace) -> tuple[dict, Plan, str, str]:
    """Returns (the table, its plan with the results that there are, the row to compare with, the table's name)."""
    table, path = read_table(args.table), table_path(args.table)
    if args.seeds:
        table["seeds"] = args.seeds
    names = [row["name"] for row in table["rows"]]
    against = table.get("against", "KD")
    if args.against is not None:
        against = args.against if args.against in names else lookup(args.against, names, "row for --against")
    only = rows_named(args.only, names)
    try:
        plan = Plan(table, {name: getattr(args, name) for name in ROOTS})
    except UsageError as e:
        raise UsageError(f"{path}: {e}") from None
    if only:
        plan.keep(only, against)
        table["rows"] = [row for row in table["rows"] if row["name"] in (*only, against)]
    for task in plan.tasks:
        task.load_result()
    return table, plan, against, path.stem


def main(argv=None):
    args = arguments(argv)
    if args.docs:
        return say("\n".join(f"written: {path}" for path in results.write()) or "the result tables are up to date")
    if args.check:
        return recheck(args)
    table, plan, against, name = planned(args)
    if args.watch:
        return watch(plan.tasks, name)
    if args.dry_run:
        for task in (t for t in plan.tasks if t.state == "missing"):
            say(task.shown_command())
        return
    try:
        finish_table(args, table, plan, against, Path(args.logs_dir) / "tables" / name)
    except KeyboardInterrupt:
        raise RunError("stopped; finished runs are kept, run the same command to continue") from None


def recheck(args: argparse.Namespace) -> None:
    """Runs a random measured cell again and compares. RunError where the numbers do not agree."""
    table = read_table(args.table)
    draw = secrets.randbelow(1000) if args.draw is None else args.draw
    cell = drawn(table_path(args.table), table, args.logs_dir, args.only, args.seeds, draw)
    say(f"drawn with --draw {draw}: {cell}")
    check_cell(table, {root: getattr(args, root) for root in ROOTS}, cell, args.jobs)


def finish_table(args: argparse.Namespace, table: dict, plan: Plan, against: str, out: Path) -> None:
    """Runs what is missing (not with --show), prints the table and writes it (not with --only). RunError where a run or a file failed."""
    if not args.show:
        local = args.engine == "local"
        before = [t for t in plan.tasks if t.state == "done" and any(need.state == "missing" for need in needs_of(t))]
        (Runner(plan.tasks, args.jobs) if local else Snakemake(plan.tasks, args.jobs, out, args.engine_args)).run()
        for task in before:  # a teacher that was missing, and that is another one now, has changed its students' sources
            task.load_result()
    text, tex = texts(table, plan, against)
    say(text)
    failed = [t for t in plan.tasks if t.state == "failed"]
    problems = [f"{len(failed)} of {len(plan.tasks)} runs failed, first {failed[0]}: {failed[0].why}"] if failed else []
    try:
        if not args.only:  # the files have all rows
            write_files(out, table, plan, text, tex)
        if args.html:
            say(f"written: {write_page(out.with_name(f'{out.name}.html'), table, plan.cells, against)}")
    except RunError as e:
        problems.append(f"not all files of the table are written: {e}")
    if problems:
        raise RunError("; ".join(problems))


if __name__ == "__main__":
    cli(main)
