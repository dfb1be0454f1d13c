"""Runs of scripts in processes of their own that start in milliseconds: a server has imported everything once, and forks.

`execute(Job(...))` gives an Outcome. `Homes` makes folders with trained nets once, and copies of them for runs to spoil.
"""

import contextlib
import hashlib
import importlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parent.parent
GRACE = 12.0  # seconds from SIGTERM to SIGKILL
MEMORY = 3 * 2**30  # bytes that a run may take beyond those of the server
LONGEST = 2000  # letters of a message
OWN = (".out", ".err", ".events", ".asked")  # files of the fuzz in a home
FREE = {"seconds", "epoch_seconds", "peak_mb", "versions", "line", "files", "checksum", "command", "sources", "device"}  # of a result
COUNTS = {"queries", "private", "mixed", "public", "synthetic", "bytes", "repeated"}  # what a stop may make larger
OFFLINE = {f"{name}_proxy": "http://127.0.0.1:9" for name in ("http", "https", "all")}  # nothing is downloaded
SCRIPTS = sorted(p.stem for p in (ROOT / "project").glob("*.py") if p.stem not in ("serve", "ledger", "export", "campaign"))  # no runs
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join([str(ROOT / "project"), str(ROOT / "tests")]), "OMP_NUM_THREADS": "1"}
ENVIRONMENT |= {"PYTHONWARNINGS": "ignore::UserWarning:multiprocessing.resource_tracker"}  # of semaphores of killed processes
REFUSED = ("UsageError", "RunError")
sys.path[:0] = [p for p in (str(ROOT / "project"), str(ROOT / "tests")) if p not in sys.path]


@dataclass
class Job:
    """A call in a process of its own. call: a function that can be pickled, in most cases `script(name, argv)`. home: its working folder.

    seconds: after these it is sent SIGTERM. hooks: functions that change the process before the call. real: the script stands in `cli`,
    and the exit status counts; otherwise its exception is kept.
    """

    call: Callable[[], object]
    home: Path
    seconds: float = 40.0
    hooks: tuple[Callable[[], None], ...] = ()
    real: bool = False


@dataclass
class Outcome:
    """What became of a Job.

    kind: done, the exception's name, exit N, killed by N or hangs. message: the exception's, as `cli` prints it. trace: its last line of
    ours, for exceptions that are no answer; whole: the traceback. value: what the call returned. out, err: what was printed.
    """

    kind: str
    message: str = ""
    trace: str = ""
    whole: str = field(default="", repr=False)
    value: object = None
    seconds: float = 0.0
    out: str = field(default="", repr=False)
    err: str = field(default="", repr=False)

    @property
    def refused(self) -> bool:
        """Whether the input was answered with one line."""
        return self.kind in REFUSED

    def fault(self) -> str:
        """Why this is no way for a run to end, empty where it is one."""
        if self.kind not in (*REFUSED, "done", "Finished", "Stopped", "exit 0", "exit 2"):
            return f"{self.kind} {self.trace or self.err[-300:]}".strip()
        if self.refused and ("\n" in self.message or len(self.message) > LONGEST):
            return f"a message of more than {LONGEST} letters"
        return "a traceback was printed" if "Traceback" in self.err else ""


def script(name: str, argv: list[str]) -> Callable[[], object]:
    """The call of a script's main."""
    return partial(run_script, name, list(argv))


def run_script(name: str, argv: list[str]) -> object:
    sys.argv = [f"project/{name}.py", *argv]
    return importlib.import_module(name).main(argv)


# ---- the process


def server() -> multiprocessing.context.BaseContext:
    """The context whose processes are forks of a server that has imported this module's neighbours and all scripts."""
    os.environ.update(ENVIRONMENT)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fuzz_server"])
    return context


def execute(job: Job, wait: Callable[[int], None] | None = None) -> Outcome:
    """Runs a job. wait: called with the process's number while it runs."""
    context, began = server(), time.monotonic()
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(job, theirs))
    process.start()
    theirs.close()
    if wait:
        wait(process.pid)
    hangs = not ours.poll(job.seconds) and not end(process.pid, ours)
    if hangs:
        process.kill()
    try:
        found = Outcome("hangs", f"it runs {GRACE:g} s after SIGTERM") if hangs else ours.recv()
    except EOFError:  # the process is gone
        found = None
    process.join()
    found = found or Outcome(f"exit {process.exitcode}" if process.exitcode >= 0 else f"killed by {-process.exitcode}")
    found.seconds = time.monotonic() - began
    found.out, found.err = (
        (job.home / name).read_text(errors="replace") if (job.home / name).exists() else "" for name in (".out", ".err")
    )
    return found


def end(pid: int, pipe: Connection) -> bool:
    """Sends SIGTERM to a process; whether it ends within GRACE seconds."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    return pipe.poll(GRACE)


def child(job: Job, pipe: Connection) -> None:
    """What the forked process does."""
    importlib.import_module("fuzz_server")  # done before the fork, unless it failed: then its error is seen here
    os.chdir(job.home)
    os.environ.update(OFFLINE, TMPDIR=str(job.home))
    tempfile.tempdir = None
    for number, name in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), number)
    limit_memory()
    threading.excepthook = importlib.import_module("common.cli").answer_of_thread
    for hook in job.hooks:
        hook()
    if not job.real:
        pipe.send(outcome(job.call))
        pipe.close()
        os._exit(0)
    from common.cli import cli

    cli(job.call)


def limit_memory() -> None:
    """More memory than MEMORY is an error, and not the end of the machine."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)


def outcome(call: Callable[[], object]) -> Outcome:
    """Calls a function; how it ended."""
    try:
        value = call()
        return Outcome("done", value=value if isinstance(value, (str, int, list)) else None)
    except SystemExit as e:
        return Outcome(f"exit {e.code or 0}")
    except KeyboardInterrupt:
        return Outcome("Stopped")
    except BaseException as e:
        kind, whole = type(e).__name__, "".join(traceback.format_exception(e))
        return Outcome(
            kind, line_of(e) if kind in REFUSED else str(e), "" if kind in (*REFUSED, "Finished", "Stopped") else last_of(e), whole
        )


def line_of(e: Exception) -> str:
    """The line on stderr that an error becomes."""
    from common.cli import complain

    with contextlib.redirect_stderr(io.StringIO()) as printed:
        complain(e, 1)
    return printed.getvalue().strip()


def last_of(e: BaseException) -> str:
    """`purchases.py:81 fill: IndexError: list index out of range`: the last line of ours, and the error; the same for equal faults."""
    frames = traceback.extract_tb(e.__traceback__)
    ours = [f for f in frames if f.filename.startswith(str(ROOT / "project"))] or frames[-1:]
    where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno} {ours[-1].name}" if ours else "?"
    return f"{where}: {type(e).__name__}: {' '.join(str(e).split())[:200]}"


def quietly(call: Callable[[], object]) -> Outcome:
    """`outcome` in this process, without its output."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return outcome(call)


# ---- hooks


def move_tables() -> None:
    """A hook: the project's tables and docs are those of the working folder, so that none of ours is changed."""
    for name, module in list(sys.modules.items()):
        if (name.startswith("common") or name == "table") and hasattr(module, "ROOT"):
            module.ROOT = Path.cwd() / "project_copy"


def few_pilots() -> None:
    """A hook: DB3KD's bank of directions takes 40 queries for each pair, not 2,000."""
    from common.db3kd import labels

    replace(labels, "PILOT_BUDGET", 40)


def replace(owner: object, name: str, value: object) -> None:
    """setattr of what is there; AttributeError where it is not."""
    getattr(owner, name)
    setattr(owner, name, value)


# ---- homes


class Homes:
    """Folders with what runs need, each made once: `copy(name)` is a fresh one, deleted after the block.

    makers: {name: function of a new folder that fills it}. known: what undisturbed runs come to, kept by those who need it.
    """

    def __init__(self, base: Path, makers: dict[str, Callable[["Homes", Path], None]]):
        self.base, self.makers, self.count, self.known = base, makers, 0, {}
        base.chmod(0o755)  # some runs are another user's

    def made(self, name: str) -> Path:
        """The folder itself, which is not to be changed."""
        folder = self.base / "made" / name
        if not folder.exists():
            new = self.base / "new" / name
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(parents=True)
            self.makers[name](self, new)
            folder.parent.mkdir(exist_ok=True)
            new.rename(folder)
        return folder

    @contextlib.contextmanager
    def copy(self, name: str) -> Iterator[Path]:
        """A copy of the folder."""
        folder, self.count = self.base / f"copy{self.count}", self.count + 1
        shutil.copytree(self.made(name), folder, symlinks=True, copy_function=copy_or_link, ignore=shutil.ignore_patterns(*OWN))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def copy_or_link(path: str, to: str) -> None:
    """Copies what runs write into; other files are links, which is quick."""
    (shutil.copy2 if {"checkpoints", "logs"} & {*Path(path).parts} else os.link)(path, to)


class Broken(Exception):
    """A run that nothing disturbs does not end as it should."""


def must(job: Job, *kinds: str) -> Outcome:
    """Runs a job that has to go through, or to end as one of `kinds`; Broken where it does not."""
    found = execute(job)
    if found.kind not in (*kinds, "done"):
        raise Broken(f"{' '.join(map(str, job.call.args))}: {found} {found.err[-300:]}")
    return found


def weights_and_counts(home: Path, name: str) -> dict:
    """What a home's runs of one script come to, to be compared: hashes of all nets, the log, counts and accuracies."""
    import numpy as np
    import torch

    found = {}
    folder = home / "checkpoints" / name
    for path in sorted(folder.rglob("*.pt")):
        if path.stem != "state":
            content = torch.load(path, weights_only=True)
            content = content.get("model", content.get("kept", content)) if isinstance(content, dict) else content
            found[str(path.relative_to(folder))] = {k: hash_of(v) for k, v in content.items() if isinstance(v, torch.Tensor)}
    for path in sorted((home / "logs" / name).rglob("log.jsonl")):
        found[str(path.relative_to(home / "logs" / name))] = path.read_text()
    for path in sorted(folder.rglob("result.json")):
        result = json.loads(path.read_text())
        found[str(path.relative_to(folder))] = {k: v for k, v in result.items() if k not in FREE | COUNTS} | {"asked once": paid(result)}
    return found | {str(path.relative_to(folder)): hash_of(torch.from_numpy(np.load(path))) for path in folder.rglob("pool.npy")}


def paid(result: dict) -> int:
    """The queries of a result but for those that it says were asked twice."""
    return result.get("queries", 0) - result.get("repeated", 0)


def repeated_in(home: Path, name: str) -> int:
    """The queries that a script's runs were asked twice, as their results say."""
    return sum(json.loads(path.read_text()).get("repeated", 0) for path in (home / "checkpoints" / name).rglob("result.json"))


def hash_of(value: "torch.Tensor") -> str:
    """Letters that change with a tensor."""
    return hashlib.sha256(f"{value.dtype} {list(value.shape)}".encode() + value.contiguous().numpy().tobytes()).hexdigest()[:16]


def difference(a: dict, b: dict, path: str = "") -> str:
    """The first place at which two nested dictionaries differ, empty where they are equal."""
    for key in (*a, *(k for k in b if k not in a)):
        here = f"{path}{key}"
        if isinstance(a.get(key), dict) and isinstance(b.get(key), dict):
            if found := difference(a[key], b[key], f"{here}."):
                return found
        elif key not in a or key not in b or (a[key] != b[key] and not (a[key] != a[key] and b[key] != b[key])):
            return f"{here}: {str(a.get(key, 'nothing'))[-80:]!r} is {str(b.get(key, 'nothing'))[-80:]!r}"
    return ""
