"""ledger: prints, exports and merges the ledgers of answers that were bought from teachers.

    python project/ledger.py                                prints all ledgers in checkpoints/ledgers
    python project/ledger.py FILE --runs                    prints a row for each run
    python project/ledger.py FILE --export answers.csv      writes hash and answer of each image
    python project/ledger.py FILE --merge OTHER [OTHER ...] adds the answers of other ledgers to FILE

A ledger is one SQLite file for each teacher, --api_input and --response; see docs/api.md. `--any_teacher` merges ledgers of different
URLs, for a server that has moved.
"""

from common.cli import UsageError, cli, say

import argparse
import csv
import inspect
import io
import sys
from pathlib import Path

from common.api.ledger import Ledger
from common.arguments import Parser
from common.report import markdown
from common.utils import save_text

COLUMNS = ("images", "rechecked", "requests", "retries", "hits", "unanswered", "bytes", "cost")


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """The options of the command line. UsageError for an unknown one, and for options that need a file."""
    doc = inspect.getdoc(sys.modules[__name__])
    how = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = Parser(prog="python project/ledger.py", description=doc, **how)
    parser.add_argument("file", nargs="?", default="", help="ledger; left out: all in CHECKPOINTS_DIR/ledgers")
    parser.add_argument("--runs", action="store_true", help="print a row for each run instead of one for each ledger")
    parser.add_argument("--export", default="", metavar="CSV", help="file to write hashes and answers to")
    parser.add_argument("--merge", nargs="+", default=[], metavar="FILE", help="ledgers whose answers are added to FILE")
    parser.add_argument("--any_teacher", "--any-teacher", action="store_true", help="with --merge: take ledgers of another URL too")
    parser.add_argument("--checkpoints_dir", "--checkpoints-dir", default="checkpoints", help="folder of weights and results")
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    if not args.file and (args.export or args.merge or args.runs):
        raise UsageError("--runs, --export and --merge need a ledger: python project/ledger.py FILE ...")
    return args


def rows_of(ledger: Ledger, runs: bool) -> list[dict[str, str]]:
    """{column: text} of the ledger's totals, or of each run's."""
    named = [(run, ledger.totals(run)) for run in ledger.runs()] if runs else [(ledger.about["teacher"], ledger.totals())]
    first = "run" if runs else "teacher"
    return [
        {first: name, "response": ledger.about["response"]} | {k: f"{totals[k]:,.2f}" if k == "cost" else f"{totals[k]:,}" for k in COLUMNS}
        for name, totals in named
    ]


def main(argv: list[str] | None = None) -> None:
    args = parsed(argv)
    folder = Path(args.checkpoints_dir) / "ledgers"
    paths = [Path(args.file)] if args.file else sorted(folder.glob("*.sqlite"))
    if not paths:
        raise UsageError(f"no ledger in {folder}; a run writes one whose teacher is a server, or with --ledger")
    ledgers = [Ledger.of(path) for path in paths]
    for other in args.merge:
        new, known = ledgers[0].merge(Ledger.of(Path(other)), args.any_teacher)
        say(f"{other}: {new:,} images are new, {known:,} were known")
    if args.export:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["image", "call", "run", "stage", "answer"])
        writer.writerows(
            (key.hex(), call, run, stage, " ".join(f"{v:.9g}" for v in answer)) for key, call, run, stage, answer in ledgers[0].rows()
        )
        save_text(Path(args.export), text.getvalue())
        say(f"{args.export}: {len(ledgers[0].places):,} images")
    say(markdown([row for ledger in ledgers for row in rows_of(ledger, args.runs)]))


if __name__ == "__main__":
    cli(main)
