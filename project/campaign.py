"""campaign: runs what is missing in several tables, in slices of some minutes, and goes on from one small folder on any machine.

    python project/campaign.py --folder campaign                  one slice of 9 minutes; again: the next one
    python project/campaign.py --folder campaign --dry_run        prints the order of the runs, with estimated times
    python project/campaign.py --folder campaign --show --publish prints and writes what is there: tables/measured/*-gpu.csv

The folder has all that the next slice needs: states of interrupted runs, results, weights that other runs need, campaign.json (speeds).
Copy it to another machine, and the same command goes on there. Data sets are elsewhere (--data_dir).

Order: first the first seed of each table, rows beside a published number before others, the quickest first; then the second seed. What a
run needs (teacher, generator, labels) counts as its time. At the end of a slice the runs save and stop. Files that no later run needs are
deleted as far as --max_mb demands it (docs/scale.md).
"""

from common.cli import BEGAN, RunError, UsageError, cli, say

import argparse
import os
import sys
import time

from common.arguments import Parser
from common.campaign.folder import inside
from common.campaign.shown import is_public, order_text, progress_text, rows_text, write_measured
from common.campaign.slices import Campaign
from common.tables import SEEDS, read_table, seeds_of, table_path
from common.values import check, folder, real, whole

TABLES = "mnist,cifar10,gda-cifar100,dfkd,db3kd-mnist,db3kd-fashionmnist,db3kd-cifar10,fewshot"


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Returns the options of the command line. UsageError for a wrong option or value."""
    how = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = Parser(prog="project/campaign.py", description=__doc__, **how)
    parser.add_argument("--folder", default="campaign", help="folder of the campaign (default: campaign)")
    tables = f"names of tables in tables/ or paths of .toml files, with commas (default: {TABLES})"
    parser.add_argument("--tables", default=TABLES, help=tables)
    parser.add_argument("--seeds", help=SEEDS)
    parser.add_argument("--minutes", type=real, default=9.0, help="length of a slice in minutes, start and end included (default: 9)")
    parser.add_argument("--jobs", type=whole, default=1, help="number of runs at the same time, distributed over the GPUs (default: 1)")
    most = "largest size of the folder after a slice, in MB (default: 60)"
    parser.add_argument("--max_mb", "--max-mb", type=real, default=60.0, help=most)
    parser.add_argument("--data_dir", "--data-dir", default="data", help="folder of the data sets (default: data)")
    parser.add_argument("--dry_run", "--dry-run", action="store_true", help="print the order of the runs, and run nothing")
    show = "print progress and the rows of the finished runs, write the CSV files, and run nothing"
    parser.add_argument("--show", action="store_true", help=show)
    publish = "add the runs of a GPU to tables/measured/*-gpu.csv (default: on a GPU only)"
    parser.add_argument("--publish", action="store_true", help=publish)
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    check("minutes", args.minutes, {"ge": 0.1, "le": 10_000})
    check("jobs", args.jobs, {"ge": 1, "le": 1024})
    check("max_mb", args.max_mb, {"ge": 0.1, "le": 1e9})
    args.seeds = None if args.seeds is None else seeds_of(args.seeds)
    args.folder = folder("folder", args.folder, "leave it out for campaign/")
    args.data_dir = os.path.abspath(folder("data_dir", args.data_dir, "leave it out for data/"))
    return args


def tables_of(args: argparse.Namespace) -> dict[str, dict]:
    """Returns {name: content} of the tables. UsageError for one that is not there, or of the name of another."""
    found = {}
    for text in args.tables.split(","):
        path, table = table_path(text.strip()), read_table(text.strip())
        if found.setdefault(path.stem, table) is not table:
            raise UsageError(f"--tables has {path.stem} twice; give each table once, and two files different names")
        table |= {"seeds": args.seeds} if args.seeds else {}
    return found


def main(argv=None):
    began, args = BEGAN if argv is None else time.monotonic(), arguments(argv)
    tables = tables_of(args)
    with inside(args.folder, not (args.dry_run or args.show)):
        campaign = Campaign(tables, args.data_dir, 1e6 * args.max_mb)
        if args.dry_run:
            return say(order_text(campaign))
        try:
            if not args.show:
                campaign.run(args.jobs, began, 60 * args.minutes)
        except KeyboardInterrupt:
            raise RunError("stopped; run the same command to continue") from None
        for name, plan in campaign.plans.items():
            say(rows_text(name, plan))
        say(progress_text(campaign, args.jobs))
        for path in write_measured(campaign.plans, is_public(args.publish)):
            say(f"written: {path}")
    if failed := [t for t in campaign.tasks if t.state == "failed"]:
        raise RunError(f"{len(failed)} of {len(campaign.tasks)} runs failed, first {failed[0]}: {failed[0].why}")
    after = f" after {campaign.book.seconds / 60:,.1f} minutes of slices"
    if left := sum(t.state != "done" for t in campaign.tasks):
        return say(f"{left} of {len(campaign.tasks)} runs are not finished{after}; run the same command to continue")
    say(f"all runs are finished{after}")


if __name__ == "__main__":
    cli(main)
