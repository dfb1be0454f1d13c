"""The order of a campaign's runs: what a published number depends on first, then by time; first seeds before second seeds."""

from collections.abc import Callable, Iterable

from ..beside_published import published_of
from ..plan import Plan
from ..runner import Task
from ..watching import epochs_done
from .book import Book, name_of
from .speeds import Speeds

Rank = tuple[int, ...]  # lower is earlier
LAST = 2**32  # place of a seed that no row of a table has


def started(task: Task) -> bool:
    """Whether a run that is not finished has saved something to go on from."""
    return any((task.folder / name).exists() for name in ("state.pt", "transfer.safetensors"))


def seconds_left(task: Task, speeds: Speeds) -> float:
    """Seconds that a run still takes, by its epochs; 0 for a finished one."""
    if task.state == "done":
        return 0.0
    done = epochs_done(task) if (task.folder / "state.pt").exists() else 0
    return max(1, task.args.epochs - done) * speeds.of(task)[0]


def values_of(plans: Iterable[Plan]) -> dict[int, tuple[int, int]]:
    """{id of a Task: (place of its seed in its table, 0 beside a published number, else 1)}, the least of all its cells."""
    found = {}
    for plan in plans:
        published = {pair: published_of(plan.table, pair) for pair in plan.pairs}
        places = {seed: i for i, seed in enumerate(plan.table["seeds"])}
        for (pair, name, seed), task in plan.cells.items():
            value = places.get(seed, 0), int(name not in published[pair])
            found[id(task)] = min(value, found.get(id(task), value))
    return found


def ranks_of(plans: Iterable[Plan], book: Book) -> Callable[[Task], Rank]:
    """A function that gives the rank of a run. Failed runs, and those that need them, are last; begun runs are before others."""
    values, known = values_of(plans), {}

    def has_failed(task: Task) -> bool:
        return name_of(task) in book.failed or any(has_failed(n) for n in task.needs if n.state != "done")

    def rank(task: Task) -> Rank:
        if id(task) not in known:
            known[id(task)] = int(has_failed(task)), *values.get(id(task), (LAST, 1)), int(not started(task))
        return known[id(task)]

    return rank


def in_order(tasks: Iterable[Task], rank: Callable[[Task], Rank], seconds: Callable[[Task], float]) -> list[Task]:
    """The runs that are not finished, each after those it needs: by rank, then the quickest first.

    A run's time is its own and that of the unfinished runs that it needs and that no earlier run has brought along.
    """
    todo, placed, order = [t for t in tasks if t.state != "done"], set(), []

    def chain(task: Task, met: set[int]) -> list[Task]:
        if task.state == "done" or id(task) in met:
            return []
        met.add(id(task))
        return [t for need in task.needs for t in chain(need, met)] + [task]

    for value in sorted({rank(t) for t in todo}):
        group = [t for t in todo if rank(t) == value and id(t) not in placed]
        while group:
            best = min((chain(t, set(placed)) for t in group), key=lambda found: sum(map(seconds, found)))
            placed |= {id(t) for t in best}
            order += best
            group = [t for t in group if id(t) not in placed]
    return order
