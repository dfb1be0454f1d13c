"""A campaign's folder: one campaign works in it, files that no later run needs go, and it stays under its limit.

All paths are below the working directory, which is the folder while a campaign runs. Only the runs of the command's tables are looked at;
other files count.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from ..cli import UsageError, say
from ..earlier import is_locked
from ..options import settings
from ..runner import Task
from ..utils import read_json, remove_remains, save_json
from .book import Book, kind_of, name_of

MB = 1e6
KEPT = ("result.json", "queries")  # of a finished run
DRAWN = ("*.png", "events.out.*")  # in a run's logs
ALWAYS, OTHERS, NETS, LOGS = range(4)  # the order in which files go; all but the first only where the folder is over its limit


def make_folder(folder: str) -> None:
    """Makes the folder where there is none. UsageError where that cannot be."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UsageError(f"cannot make the folder {folder} ({e.strerror}); give another --folder") from None


@contextlib.contextmanager
def inside(folder: str, runs: bool) -> Iterator[None]:
    """A block that works in the folder, so that no file names its path. UsageError where it `runs` something and another campaign does."""
    try:
        make_folder(folder)
        with contextlib.chdir(folder), FileLock(".lock", timeout=0) if runs else contextlib.nullcontext():
            yield
    except Timeout:
        raise UsageError(f"another campaign runs in {folder}; wait for it, or give another --folder") from None


def bytes_of(paths: Iterable[Path]) -> int:
    """Bytes of the files among paths, which a run may just be writing."""
    total = 0
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # a temporary file, which has another name by now
            total += path.stat().st_size if path.is_file() else 0
    return total


def size_of(folder: Path | str = ".") -> int:
    """Bytes of all files in a folder and below it."""
    return bytes_of(Path(folder).rglob("*"))


def in_mb(size: float) -> str:
    """`12.3 MB`."""
    return f"{size / MB:.1f} MB"


def inputs_of(task: Task, need: Task) -> set[str]:
    """The names of the files of a finished run that another one reads: its transfer set where an option names it, else all its nets."""
    paths = [Path(v) for v in settings(task.args).values() if isinstance(v, str) and v]
    named = {p.name for p in paths if p.parent == need.folder}
    return named if named == {"transfer.safetensors"} else named | nets_of(need)


def nets_of(task: Task) -> set[str]:
    """The names of the nets that a finished run has saved, also of those that were deleted."""
    return ({*task.result.get("files", {}), *task.result.get("pruned", {})} if task.result else set()) - {"best.pt"}


def needed_files(tasks: Iterable[Task]) -> set[Path]:
    """The files of finished runs that unfinished ones read."""
    return {n.folder / name for t in tasks if t.state != "done" for n in t.needs if n.state == "done" for name in inputs_of(t, n)}


def spare_files(tasks: list[Task]) -> dict[Path, int]:
    """{file that no later run needs: when it goes (ALWAYS, OTHERS, NETS, LOGS)}. Files of running runs are not among them."""
    needed, found = needed_files(tasks), {}
    for task in (t for t in tasks if t.state != "running"):
        logs = task.log.parent
        found |= {path: ALWAYS for pattern in DRAWN for path in logs.glob(pattern)}
        if task.state != "done":
            continue
        found |= {logs / "output.log": ALWAYS, logs / "process.json": ALWAYS, logs / "log.jsonl": LOGS}
        nets = nets_of(task)
        for path in saved_files(task):
            if path not in needed:
                found[path] = ALWAYS if path.name == "state.pt" else NETS if path.name in nets else OTHERS
    return {path: when for path, when in found.items() if path.exists()}


def delete_files(task: Task, names: set[str]) -> None:
    """Deletes files of a finished run. Its result.json then has the nets among them under `pruned`, with their identities."""
    path = task.folder / "result.json"
    result = read_json(path)
    if gone := {name: known for name, known in result.get("files", {}).items() if name in names}:
        change = {"files": {k: v for k, v in result["files"].items() if k not in gone}, "pruned": result.get("pruned", {}) | gone}
        save_json(path, result | change)
        task.result = task.result | change
    for name in names:
        (task.folder / name).unlink(missing_ok=True)


def delete(tasks: list[Task], paths: Iterable[Path]) -> None:
    """Deletes files of runs."""
    by_folder = {t.folder: t for t in tasks}
    for path in paths:
        if (task := by_folder.get(path.parent)) and task.state == "done":
            delete_files(task, {path.name})
        path.unlink(missing_ok=True)


def prune(tasks: list[Task], limit: float) -> None:
    """Deletes what no later run needs: always states, pictures and TensorBoard events, more only as far as the limit demands it.

    limit: of the folder, in bytes. The largest files of a kind go first.
    """
    for task in (t for t in tasks if t.state != "running" and not is_locked(t.folder)):
        remove_remains(task.folder)
    spare = spare_files(tasks)
    delete(tasks, [path for path, when in spare.items() if when == ALWAYS])
    over = size_of() - limit
    for path in sorted((p for p, when in spare.items() if when != ALWAYS), key=lambda p: (spare[p], -p.stat().st_size)):
        if over <= 0:
            break
        over -= path.stat().st_size
        delete(tasks, [path])


def fixed_size(tasks: list[Task]) -> int:
    """Bytes of the folder's files that cannot go, with what unfinished runs have saved."""
    return size_of() - bytes_of(spare_files(tasks))


def drop_largest(tasks: list[Task], limit: float, book: Book) -> None:
    """Makes the folder fit in any case: deletes the files of unfinished runs, the largest first, then nets that unfinished runs need.

    Each is said, and its size noted in the book, so that it is not tried again where it does not fit.
    """
    sizes = {id(t): bytes_of(saved_files(t)) for t in tasks}
    for task in sorted((t for t in tasks if sizes[id(t)]), key=lambda t: (t.state == "done", -sizes[id(t)])):
        if size_of() <= limit:
            return
        say(f"{name_of(task)} does not fit: its files ({in_mb(sizes[id(task)])}) are deleted; {drop(task, book)}")


def saved_files(task: Task) -> list[Path]:
    """What a run has saved but for its result, its counts of queries, its lock, and what it is just writing."""
    return [path for path in task.folder.glob("[!.]*") if path.is_file() and path.name not in KEPT]


def drop(task: Task, book: Book) -> str:
    """Deletes what a run has saved but for its result, and notes how large it was. Returns what to do about it."""
    saved = saved_files(task)
    book.sizes[kind_of(task)] = size = bytes_of(saved)
    delete([task], saved)
    return f"give --max_mb {math.ceil((size + size_of()) / MB) + 1}"
