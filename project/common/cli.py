"""What stands around a script: its errors as one line, its exit status, its standard streams, its signals.

Scripts import this module first. It imports nothing slow, so that Ctrl-C and a missing package are a line from the first second on.
"""

import codecs
import contextlib
import errno
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType

BEGAN = time.monotonic()  # of this process, before anything slow is imported
PARENT = "END_WITH_STDIN"  # environment variable of a run that ends when its standard input is closed
PLAIN = {"±": "+-", "×": "x", "–": "-", "…": "...", "→": "->"}  # for terminals that know only ASCII
tracebacks: Path | None = None  # the folder in which a run leaves the traceback of an unexpected error


class UsageError(Exception):
    """What the user asked for cannot be; one line, exit status 2."""


class RunError(Exception):
    """The run failed on its way; one line, exit status 1."""


class Finished(Exception):
    """The run was finished before; `result` is what its result.json holds. Exit status 0."""

    def __init__(self, result: dict):
        super().__init__(f"finished before: {result['line']}\n(--overwrite runs it again)")
        self.result = result

    def __reduce__(self) -> tuple:  # as it goes from one process to another
        return Finished, (self.result,)


class Stopped(Exception):
    """SIGTERM or Ctrl-C: what was done is saved; exit status 128 + the signal's number."""

    def __init__(self, status: int):
        super().__init__(status)
        self.status = status


def cli(main: Callable[[], object]) -> None:
    """Runs a script's `main`; its errors become one line on stderr and an exit status: 2 bad usage, 1 a failed run."""
    if signal.getsignal(signal.SIGINT) is leave_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
    except Finished as e:
        say(str(e))
    except Stopped as e:
        sys.exit(e.status)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(complain("stopped before anything was done", 130))
    except Exception as e:
        sys.exit(complain(explained(e), 2 if isinstance(e, UsageError) else 1))


def explained(e: BaseException) -> str:
    """One line for an error. The traceback is printed with --debug; that of an unexpected error is also kept in the run's log folder."""
    trace = "".join(traceback.format_exception(e))
    if "--debug" in sys.argv:
        print(trace, file=sys.stderr, end="")
    if isinstance(e, (UsageError, RunError)):
        return str(e)
    if (size := shortage(e)) is not None:
        return f"out of memory{size}; lower --batch_size or --img_size, or use a smaller --lamda"
    if isinstance(e, ModuleNotFoundError) and not (e.name or "").startswith("common"):
        return f"the package {e.name} is not installed; run: {Path(sys.executable).name} -m pip install -r requirements.txt"
    if isinstance(e, OSError) and e.strerror:
        where = f"{e.filename}: " if e.filename else ""
        hint = "; free some space and run the same command again" if e.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return f"{where}{e.strerror}{hint}"
    last = next((f for f in reversed(traceback.extract_tb(e.__traceback__)) if "site-packages" not in f.filename), None)
    where = f" at {Path(last.filename).name}:{last.lineno}" if last else ""
    kept = "--debug shows the traceback"
    if tracebacks:
        with contextlib.suppress(OSError):
            (tracebacks / "traceback.txt").write_text(trace)
            kept = f"the traceback is in {tracebacks / 'traceback.txt'}"
    return f"unexpected error{where}: {type(e).__name__}: {str(e).strip().partition(chr(10))[0]} ({kept})"


def told() -> bool:
    """Whether another process of the same run has printed an error; processes.py replaces this function where there are others."""
    return False


def complain(error: object, status: int) -> int:
    """Prints one line on stderr with the script's name before it; gives `status`."""
    if not told():
        print(f"{Path(sys.argv[0]).name}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return status


def say(words: str) -> None:
    """A line for output.log, there at once. RunError where the file that the output goes to cannot be written."""
    try:
        print(words, flush=True)
    except BrokenPipeError:
        raise
    except OSError as e:
        raise RunError(f"could not write to standard output ({e.strerror}); the same command goes on from the last saved epoch") from None


def keep_tracebacks(folder: Path) -> None:
    """From now on the traceback of an unexpected error is kept in this folder."""
    global tracebacks
    tracebacks = folder


# ---- memory


def shortage(e: BaseException) -> str | None:
    """Of an error that says that memory is short: ` (7.4 GiB were wanted)`, empty where it names no size. None for other errors."""
    text = str(e)
    short = isinstance(e, MemoryError) or type(e).__name__ == "OutOfMemoryError" or getattr(e, "errno", None) == errno.ENOMEM
    if not short and not re.search(r"DefaultCPUAllocator|out of memory|Storage size calculation overflowed|multiplication overflow", text):
        return None
    if size := re.search(r"allocate ([\d.]+ [KMGTP]?i?B)\b", text):
        return f" ({size[1]} were wanted)"
    if size := re.search(r"allocate (\d+) bytes", text):
        return f" ({int(size[1]) / 2**30:,.1f} GiB were wanted)"
    return ""


@contextlib.contextmanager
def allocating(what: str, *options: str) -> Iterator[None]:
    """A block that makes `what`: where memory is short, a RunError that names it and the options to lower."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as e:
        if (size := shortage(e)) is None:
            raise
        raise RunError(f"out of memory for {what}{size}; lower {' or '.join(options)}") from e


# ---- the process


def begin() -> None:
    """Prepares the process of a script before anything slow is imported."""
    for number in range(3):  # a closed stream (2>&-) would else be the next file that is opened
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="plain")
    sys.excepthook, threading.excepthook = last_answer, answer_of_thread
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as for what a shell's `&` starts
        signal.signal(signal.SIGINT, leave_at_once)
    if os.environ.get(PARENT):
        threading.Thread(target=end_with_parent, daemon=True).start()


def plain(e: UnicodeError) -> tuple[str, int]:
    """What a terminal shows for letters that it does not know: PLAIN, or question marks."""
    if not isinstance(e, UnicodeEncodeError):
        raise e
    return "".join(PLAIN.get(c, "?") for c in e.object[e.start : e.end]), e.end


def last_answer(kind: type[BaseException], e: BaseException, trace: TracebackType | None) -> None:
    """sys.excepthook: for errors before `cli`, of the imports."""
    complain(explained(e), 1)


def answer_of_thread(e: threading.ExceptHookArgs) -> None:
    """threading.excepthook: one line; none for TensorBoard's writer, whose failure `Board` reports."""
    if not (isinstance(e.exc_value, OSError) and type(e.thread).__name__ == "_AsyncWriterThread"):
        complain(explained(e.exc_value), 1)


def leave_at_once(number: int, frame: FrameType | None) -> None:
    """Ctrl-C while packages are imported."""
    complain("stopped before anything was done", 130)
    os._exit(130)


def end_with_parent() -> None:
    """Stops this process, which saves first, when the process at the other end of its standard input is gone."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


codecs.register_error("plain", plain)
main_file = getattr(sys.modules["__main__"], "__file__", None)
if main_file and Path(main_file).resolve().parent == Path(__file__).resolve().parent.parent:
    begin()
