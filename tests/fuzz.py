"""The fuzz: random options, damaged files and killed runs, against what docs/reliability.md promises.

    python tests/fuzz.py --minutes 5 --seed 0 --part options

What is found is printed with the smallest input that shows it; the counts come last. Exit status 1 where anything is found.
"""

import argparse
import re
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import fuzz_files
import fuzz_homes
import fuzz_kills
import fuzz_options
from fuzz_process import Broken, Homes
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st


@dataclass
class Tally:
    """What was tried. counts: inputs by how they ended; findings: {what is wrong: the shortest input that shows it}."""

    counts: Counter = field(default_factory=Counter)
    findings: dict[str, str] = field(default_factory=dict)
    times: Counter = field(default_factory=Counter)

    def note(self, kind: str, fault: str = "", example: str = "") -> None:
        """One more input that ended as `kind`; fault: why it should not have."""
        self.counts[kind] += 1
        if fault:
            self.times[fault] += 1
            if len(example) < len(self.findings.get(fault, example + " ")):
                if fault not in self.findings:
                    print(f"finding: {fault}\n    {example[:400]}", flush=True)
                self.findings[fault] = example


def examples(tally: Tally, strategy: st.SearchStrategy, number: int, start: int, use: Callable[[object], None]) -> None:
    """Calls `use` with `number` values of a strategy; the same for the same start."""

    @seed(start)
    @settings(
        max_examples=number,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        verbosity=Verbosity.quiet,
        suppress_health_check=[*HealthCheck],
    )
    @given(strategy)
    def run(value: object) -> None:
        try:
            use(value)
        except Broken as e:
            tally.note("broken", short(f"an undisturbed run fails: {e}"), str(value))

    run()


def starts(minutes: float, first: int) -> Iterator[int]:
    """Numbers that begin batches, until the time is over; the same for the same `first`."""
    began, number = time.monotonic(), first * 1_000_000
    while time.monotonic() - began < 60 * minutes:
        yield number
        number += 1


def hunt_options(homes: Homes, tally: Tally, number: int, start: int) -> None:
    """Tries command lines."""

    def use(example: tuple[str, list[str], bool]) -> None:
        name, argv, run = example
        found = fuzz_options.check(example, homes)
        kind = ("run" if run else "read") + " and refused" * found.refused
        tally.note(kind, found.fault(), f"{name} {shlex.join(argv)}")

    examples(tally, fuzz_options.command_lines(), number, start, use)


def hunt_files(homes: Homes, tally: Tally, number: int, start: int, only: tuple[str, ...] = ()) -> None:
    """Damages files. only: some of fuzz_files.CASES."""

    def use(example: tuple[str, str, int]) -> None:
        kind, fault, what = fuzz_files.check(example, homes)
        tally.note(kind, fault, f"{' / '.join(map(str, example))}: {what}")

    examples(tally, fuzz_files.damages(only), number, start, use)


def hunt_events(homes: Homes, tally: Tally, number: int, start: int, only: tuple[str, ...] = ()) -> None:
    """Kills runs at events. only: some of fuzz_kills.KINDS."""

    def use(example: fuzz_kills.Example) -> None:
        met, fault = fuzz_kills.check(example, homes)
        tally.note("killed at events", short(fault), f"{example}: {fault}")
        tally.counts.update(met)

    examples(tally, fuzz_kills.kills(only), number, start, use)


def hunt_kills(homes: Homes, tally: Tally, number: int, start: int) -> None:
    """Kills runs at events, processes and tables at any time, and lets runs meet faults."""

    def use(example: fuzz_kills.Example) -> None:
        met, fault = fuzz_kills.check_process(example, homes)
        tally.note("table killed" if example[0] == "table" else "killed at any time", short(fault), f"{example}: {fault}")
        tally.counts.update(met)

    def use_fault(example: tuple[str, str, int]) -> None:
        fault = fuzz_kills.check_fault(example, homes)
        tally.note("met a fault", short(fault), f"{example}: {fault}")

    hunt_events(homes, tally, number, start)
    examples(tally, fuzz_kills.process_kills(), number // 4, start, use)
    examples(tally, fuzz_kills.faults(), number // 2, start, use_fault)


def short(fault: str) -> str:
    """A fault without what differs between its examples."""
    return re.sub(r"[\d,.]+", "N", fault.partition(": ")[0] if "differs" in fault else fault)[:200]


PARTS = {"options": hunt_options, "files": hunt_files, "kills": hunt_kills}
BATCHES = {"options": 200, "files": 100, "kills": 12}  # inputs between looks at the clock
MAKERS = {"options": fuzz_homes.make_options, "files": fuzz_homes.make_files}


def repeat(words: str, homes: Homes) -> int:
    """Damages one file again, and prints the run's traceback and what came of it."""
    name, mutation, number = words.partition(":")[0].split(" / ")
    kind, fault, what = fuzz_files.check((name, mutation, int(number)), homes, show=True)
    print(f"{what}\n{kind}: {fault or 'no fault'}")
    return int(bool(fault))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests/fuzz.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5, help="duration of each part in minutes (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all", help="what is tried (default: all)")
    parser.add_argument("--repeat", default="", help="one damaged file, as it was printed: 'state of KD / flip / 17'")
    args = parser.parse_args(argv)
    found = {}
    with tempfile.TemporaryDirectory(prefix="fuzz_") as base:
        homes = Homes(Path(base), dict(MAKERS))
        homes.made("files")
        if args.repeat:
            return repeat(args.repeat, homes)
        for name in PARTS if args.part == "all" else [args.part]:
            found[name] = tally = Tally()
            for start in starts(args.minutes, args.seed):
                PARTS[name](homes, tally, BATCHES[name], start)
                print(f"{name}: {dict(tally.counts)}, {len(tally.findings)} findings", file=sys.stderr)
    for name, tally in found.items():
        for fault, example in tally.findings.items():
            print(f"{name}, {tally.times[fault]} times: {fault}\n    {example[:1000]}")
    print("\n".join(summary(found)))
    return int(any(t.findings for t in found.values()))


def summary(found: dict[str, Tally]) -> list[str]:
    """The table of docs/reliability.md."""
    counts = sum((t.counts for t in found.values()), Counter())
    rows = {
        "command lines of all scripts": ("read", "read and refused", "run", "run and refused"),
        f"damaged files in {len(fuzz_files.CASES)} places": ("file refused", "the same result", "valid with another content", "fault"),
        "kills": ("KILL", "TERM", "INT"),
        f"killed runs of {len(fuzz_kills.KINDS)} kinds": ("killed at events", "killed at any time", "table killed"),
        "faults: a full disk, closed streams, read-only folders": ("met a fault",),
        "findings": (),
    }
    lines = ["| tried | number | of these |", "|---|---:|---|"]
    for what, kinds in rows.items():
        number = sum(counts[k] for k in kinds) if kinds else sum(len(t.findings) for t in found.values())
        lines.append(f"| {what} | {number:,} | {', '.join(f'{counts[k]:,} {k}' for k in kinds if len(kinds) > 1)} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
