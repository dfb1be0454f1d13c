"""Kills: runs of every script and of a table die at random moments, the same command is given again, and its end is compared bit by bit.

A moment is an event (a step, a saved file, a counted query) of a forked process, or a time in a process of its own.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fuzz_homes import ENCODER, FEW, QUICK, ROBUST, RUNS, TEACHER
from fuzz_process import (
    OFFLINE,
    ROOT,
    SCRIPTS,
    Broken,
    Homes,
    Job,
    difference,
    execute,
    few_pilots,
    must,
    repeated_in,
    replace,
    script,
    weights_and_counts,
)
from hypothesis import strategies as st

MARK = "FUZZ_HOME"  # an environment variable by which the processes of a table are found
SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM, "INT": signal.SIGINT}
LONG = [*TEACHER, *QUICK, "--epochs", "10"]
TABLE = """
title = "Tiny"
dataset = "Digits"
pairs = ["ResNet8 -> ResNet8"]
seeds = [0]
rows = [{ name = "CE", script = "CE" }, { name = "KD", script = "KD" }]
[options]
lamda = 0.2
epochs = 40
batch_size = 16
[scripts.teacher]
lamda = 1.0
epochs = 2
"""
TAG = ["--tag", "k"]
LATE = ["--milestones", "3,7"]  # epochs at which the learning rate falls, whatever --epochs is


@dataclass
class Kind:
    """A run that is killed. first: options of a run that ends before; more: options beside argv of the run that is killed."""

    name: str
    argv: list[str]
    first: tuple[str, ...] = ()
    more: tuple[str, ...] = ()

    def job(self, home: Path, *hooks: Callable[[], None], more: tuple[str, ...] = ()) -> Job:
        return Job(script(self.name, [*self.argv, *TAG, *more]), home, 200, (few_pilots, *hooks), real=True)


KINDS = {
    **{name: Kind(name, [*argv, "--epochs", "10"]) for name, argv in RUNS.items() if name not in ("table", "robustness", "fewshot_test")},
    **{name: Kind(name, LONG) for name in SCRIPTS if name not in RUNS},
    "robustness": Kind("robustness", ROBUST),
    "fewshot_test": Kind("fewshot_test", [*ENCODER, "--path", "encoder.pt"]),
    "fewshot_meta": Kind("fewshot_meta", [*FEW, *"--steps 3 --init encoder.pt --epochs 6".split()]),
    "KD with augmentation": Kind("KD", [*LONG, "--augment", "crop"]),
    "KD with validation": Kind("KD", [*LONG, "--val", "0.3"]),
    "KD in bf16": Kind("KD", [*LONG, "--amp", "bf16"]),
    "KN adaptive": Kind("KN", [*LONG, *"--budget 30 --choice adaptive --rounds 3".split()]),
    "DB3KD mbd": Kind("DB3KD", [*LONG, *"--lamda 0.02 --sr_mode mbd --budgets 30 --candidates 1 --basis bank+dct:2 --pilots 1".split()]),
    "MEKD bought": Kind("MEKD", [*LONG, *"--steps 2 --queries 40 --generator_path generator.pt".split()]),
    "AEAHL with hard labels": Kind("AEAHL", [*RUNS["AEAHL"], *"--epochs 5 --hard_loss --pa 0.3 --gap_width 4".split()]),
    "ML overwritten": Kind("ML", LONG, ("--epochs", "10"), ("--overwrite",)),
    "KN overwritten": Kind("KN", LONG, ("--epochs", "10"), ("--overwrite",)),
    "CE extended": Kind("CE", [*RUNS["CE"], *LATE, "--epochs", "10"], ("--epochs", "5"), ("--extend",)),
    "AL extended": Kind("AL", [*LONG, *LATE], ("--epochs", "5"), ("--extend",)),
}


@dataclass
class Straight:
    """An undisturbed run. events: how many it has; asked: images that the teacher classified for it; results: to be compared."""

    events: int
    asked: int
    seconds: float
    results: dict


# ---- hooks of the process that dies


def watch(at: int, number: int, save_every: float) -> None:
    """A hook: counts events in .events and answers in .asked, and sends the process the signal `number` at event `at`."""
    from common import record
    from common.blackbox import BlackBox, Local
    from common.counter import Counter
    from common.training import Training

    seen, events = [], os.open(".events", os.O_WRONLY | os.O_CREAT, 0o666)

    def event() -> None:
        seen.append(1)
        os.pwrite(events, b"%9d" % len(seen), 0)
        if len(seen) == at:
            os.kill(os.getpid(), number)

    def around(f: Callable) -> Callable:
        def call(*a, **k) -> object:
            event()
            try:
                return f(*a, **k)
            finally:
                event()

        return call

    replace(record, "SAVE_EVERY", save_every)
    for owner, name in ((os, "replace"), (os, "fsync"), (os, "unlink"), (os, "rename"), (Counter, "add"), (Training, "tally")):
        replace(owner, name, around(getattr(owner, name)))
    for owner, name in ((Local, "answer"), (BlackBox, "inside")):
        replace(owner, name, counted(getattr(owner, name)))


def counted(f: Callable) -> Callable:
    """A function of a teacher that notes in .asked how many images it has answered."""

    def call(self, x, *a, **k) -> object:
        answer = f(self, x, *a, **k)
        with open(".asked", "a") as asked:
            asked.write(f"{len(x)}\n")
        return answer

    return call


def small_disk(size: int) -> None:
    """A hook: no file may be larger than `size` bytes."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


# ---- what a run comes to


def asked_in(home: Path) -> int:
    """The images that the teacher has classified in a home, of all processes."""
    return sum(map(int, (home / ".asked").read_text().split())) if (home / ".asked").exists() else 0


def undisturbed(name: str, homes: Homes) -> Straight:
    """The undisturbed run of a kind, made once."""
    if name not in homes.known:
        kind = KINDS[name]
        with homes.copy("options") as home:
            found = must(kind.job(home, partial(watch, 0, 0, 0.0)), "exit 0")
            homes.known[name] = Straight(
                int((home / ".events").read_text()), asked_in(home), found.seconds, weights_and_counts(home, kind.name)
            )
    return homes.known[name]


def faults_of(home: Path, kind: Kind, straight: Straight, watched: bool = True) -> str:
    """What is wrong with a run that was killed and has ended, empty where nothing is. watched: whether its answers were counted."""
    left = [p.name for p in (home / "checkpoints").rglob(".*") if p.name != ".lock"] + [p.name for p in home.rglob("*.before")]
    if left:
        return f"files are left: {', '.join(left)}"
    if differs := difference(straight.results, weights_and_counts(home, kind.name)):
        return f"the end differs from that of an undisturbed run: {differs}"
    twice, said = asked_in(home) - straight.asked, repeated_in(home, kind.name)
    return "" if not watched or 0 <= twice <= said else f"{twice} images were asked about twice, and the result says {said}"


# ---- kills at events


DEATHS = {"KILL": ("killed by 9",), "TERM": ("exit 143", "killed by 15"), "INT": ("exit 130", "killed by 2")}
Example = tuple[str, list[tuple[str, int]], float]


@st.composite
def kills(draw: st.DrawFn, only: tuple[str, ...] = ()) -> Example:
    """(kind of run, [(signal, moment in thousandths), ...], seconds between saves)."""
    moments = st.lists(st.tuples(st.sampled_from([*SIGNALS]), st.integers(0, 1000)), min_size=1, max_size=3)
    return draw(st.sampled_from(only or [*KINDS])), draw(moments), draw(st.sampled_from([0.0, 0.0, 1.0]))


def check(example: Example, homes: Homes) -> tuple[list[str], str]:
    """Kills one run at events; (the signals that met it, what is wrong with it)."""
    (name, moments, save_every), met, kind = example, [], KINDS[example[0]]
    straight = undisturbed(name, homes)
    with homes.copy("options") as home:
        if kind.first and (found := execute(kind.job(home, more=kind.first))).kind != "exit 0":
            return met, f"the first run fails: {found.err[-300:]}"
        for word, moment in moments:
            at = 1 + moment * straight.events // 1001
            found = execute(kind.job(home, partial(watch, at, int(SIGNALS[word]), save_every), more=kind.more))
            met += [word] if found.kind in DEATHS[word] else []
            if found.kind not in (*DEATHS[word], "exit 0") or "Traceback" in found.err:
                return met, f"after {word}: {found.kind} {found.err[-300:]}"
            if kind.first and not any(home.rglob("*-k/seed0*/state.pt")):  # neither the earlier run nor this one
                return met, f"after {word} nothing is saved"
        found = execute(kind.job(home, partial(watch, 0, 0, save_every), more=kind.more if "--extend" in kind.more else ()))
        return met, faults_of(
            home, kind, straight, not kind.first
        ) if found.kind == "exit 0" else f"does not go on: {found.kind} {found.err[-300:]}"


# ---- processes of their own, and faults


def process(name: str, argv: list[str], home: Path, shell: str = "") -> subprocess.Popen:
    """A script in a process of its own, with its output in the home. shell: what stands behind the command, such as 2>&-."""
    command = f"exec {shlex.join([sys.executable, '-u', str(ROOT / 'project' / f'{name}.py'), *argv])} {shell}"
    env = os.environ | OFFLINE | {"OMP_NUM_THREADS": "1", MARK: str(home), "TMPDIR": str(home)}
    with open(home / ".out", "ab") as out, open(home / ".err", "ab") as err:
        return subprocess.Popen(["bash", "-c", command], cwd=home, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err)


def errors_in(home: Path) -> str:
    """What processes have printed on stderr."""
    return (home / ".err").read_text(errors="replace") if (home / ".err").exists() else ""


def living(home: Path) -> list[int]:
    """The processes of a home that are still there, on Linux."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"{MARK}={home}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def wait_for_end(home: Path, seconds: float) -> list[int]:
    """Waits until no process of a home is there; those that are after `seconds`, which are then killed."""
    until = time.monotonic() + seconds
    while (left := living(home)) and time.monotonic() < until:
        time.sleep(0.1)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return left


@st.composite
def process_kills(draw: st.DrawFn) -> Example:
    """The same for processes of their own; one of three is a table."""
    moments = st.lists(st.tuples(st.sampled_from([*SIGNALS]), st.integers(0, 1000)), min_size=1, max_size=2)
    plain = [name for name, kind in KINDS.items() if not kind.first]
    return draw(st.one_of(st.just("table"), st.sampled_from(plain), st.sampled_from(plain))), draw(moments), 1.0


def check_process(example: Example, homes: Homes) -> tuple[list[str], str]:
    """Kills a process, at any time from its start on. Of a table only the table's own process is killed."""
    (name, moments, _), met = example, []
    straight = undisturbed_table(homes) if name == "table" else undisturbed(name, homes)
    which, argv = ("table", ["kills.toml", "--jobs", "2"]) if name == "table" else (KINDS[name].name, [*KINDS[name].argv, *TAG])
    with homes.copy("options") as home:
        (home / "kills.toml").write_text(TABLE)
        for word, moment in moments:
            running = process(which, argv, home)
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.wait(moment / 1000 * (straight.seconds + (0 if name == "table" else start_seconds(homes))))
            if running.poll() is None:
                running.send_signal(SIGNALS[word])
                met.append(word)
            status = running.wait()
            if left := wait_for_end(home, 15):
                return met, f"{len(left)} processes are left 15 s after {word}"
            allowed = (0, -SIGNALS[word], 128 + SIGNALS[word], *([1] if name == "table" else []))
            if status not in allowed or "Traceback" in errors_in(home):
                return met, f"after {word}: status {status} {errors_in(home)[-300:]}"
        status = process(which, argv, home).wait()
        if status:
            return met, f"does not go on: status {status} {errors_in(home)[-300:]}"
        return met, faults_of_table(home, straight) if name == "table" else faults_of(home, KINDS[name], straight, False)


def start_seconds(homes: Homes) -> float:
    """How long a process takes until it has imported everything."""
    if "--help" not in homes.known:
        with homes.copy("options") as home:
            began = time.monotonic()
            process("KD", ["--help"], home).wait()
            homes.known["--help"] = Straight(0, 0, time.monotonic() - began, {})
    return homes.known["--help"].seconds


def undisturbed_table(homes: Homes) -> Straight:
    """The undisturbed run of a table."""
    if "table" not in homes.known:
        with homes.copy("options") as home:
            (home / "kills.toml").write_text(TABLE)
            began = time.monotonic()
            if status := process("table", ["kills.toml", "--jobs", "2"], home).wait():
                raise Broken(f"the table ends with status {status}: {errors_in(home)[-500:]}")
            homes.known["table"] = Straight(0, 0, time.monotonic() - began, results_of_table(home))
    return homes.known["table"]


def results_of_table(home: Path) -> dict:
    """What a table's runs come to, and its numbers but for times."""
    return {name: weights_and_counts(home, name) for name in ("CE", "KD")}


def faults_of_table(home: Path, straight: Straight) -> str:
    differs = difference(straight.results, results_of_table(home))
    return f"the table's end differs from that of an undisturbed one: {differs}" if differs else ""


FAULTS = ("full disk", "2>&-", ">&-", "<&-", ">&- 2>&-", "| head -c 20", "2>/dev/full", "read-only", "read-only and finished")


@st.composite
def faults(draw: st.DrawFn) -> tuple[str, str, int]:
    """(kind of run, fault, size of a disk in bytes)."""
    plain = [name for name, kind in KINDS.items() if not kind.first]
    return (
        draw(st.sampled_from(plain)),
        draw(st.sampled_from([*FAULTS, *["full disk"] * 4])),
        draw(st.integers(3, 21).map(lambda i: int(2**i))),
    )


def check_fault(example: tuple[str, str, int], homes: Homes) -> str:
    """A run that meets a fault ends with one line, or as without it; the same command then ends as an undisturbed run."""
    name, fault, size = example
    kind, straight = KINDS[name], undisturbed(name, homes)
    with homes.copy("options") as home:
        if fault == "read-only and finished":
            execute(kind.job(home))
        if fault.startswith("read-only"):
            return read_only(home, kind, fault != "read-only")
        if fault == "full disk":
            found = execute(kind.job(home, partial(watch, 0, 0, 0.0), partial(small_disk, size)))
            answered = found.kind in ("exit 0", "exit 1", "exit 2") and len(found.err.strip().splitlines()) <= 1
            if not answered or "unexpected error" in found.err:
                return f"{fault} of {size} bytes: {found.kind} {found.err[-300:]}"
        else:
            status = process(kind.name, [*kind.argv, *TAG], home, fault).wait()
            if status not in ((0, 1) if "head" in fault or "full" in fault else (0,)):
                return f"{fault}: status {status}"
        found = execute(kind.job(home, partial(watch, 0, 0, 1.0)))
        if found.kind != "exit 0":
            return f"does not go on after {fault}: {found.kind} {found.err[-300:]}"
        return faults_of(home, kind, straight, fault == "full disk")


def read_only(home: Path, kind: Kind, finished: bool) -> str:
    """A run in folders that cannot be written into: a finished one is shown, another one is refused."""
    for path in (home / "checkpoints", *(home / "checkpoints").rglob("*"), home / "logs", *(home / "logs").rglob("*")):
        path.chmod(path.stat().st_mode & ~0o222)
    found = execute(kind.job(home, nobody))
    wanted = "exit 0" if finished else "exit 2"
    return (
        ""
        if found.kind == wanted and len(found.err.splitlines()) <= 1
        else f"read-only: {found.kind} {found.out[-100:]} {found.err[-300:]}"
    )


def nobody() -> None:
    """A hook: the process has no rights beyond those of files' modes."""
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
