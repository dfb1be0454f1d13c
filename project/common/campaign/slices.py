"""A slice of a campaign: the missing runs of several tables in order, for some minutes, in a folder that stays small."""

import math
import time

from ..cli import UsageError, say
from ..plan import ROOTS, Plan
from ..runner import ENDED, Runner, Task, finish_task, last_lines
from ..utils import clock
from ..watching import left_of
from .book import Book, device_here, kind_of, name_of
from .folder import MB, bytes_of, drop, drop_largest, fixed_size, in_mb, inputs_of, prune, saved_files
from .order import in_order, ranks_of, seconds_left
from .speeds import Speeds

START = 5.0  # seconds until a run's first epoch begins
STOP = 30.0  # seconds, at most a fifth of a slice, in which runs save and stop and files are deleted


class Campaign:
    """The runs of several tables in the working directory.

    tables: {name: content of its file}. data_dir: folder of the data sets. limit: bytes of the folder. tasks: all distinct runs.
    """

    def __init__(self, tables: dict[str, dict], data_dir: str, limit: float):
        """Plans all runs and reads the finished ones. UsageError for a wrong option, and for tables that do not go together."""
        shared, self.plans = {}, {}
        roots = {name: name.removesuffix("_dir") for name in ROOTS} | {"data_dir": data_dir}
        for name, table in tables.items():
            try:
                self.plans[name] = Plan(table, roots, shared)
            except UsageError as e:
                raise UsageError(f"table {name}: {e}; or give tables that do not go together a --folder each") from None
        self.tasks, self.limit, self.book, self.device = list(shared.values()), limit, Book.read(), device_here()
        for task in self.tasks:
            task.load_result()
            if task.state == "done":
                self.book.note_result(task)
        self.learn()

    def learn(self) -> None:
        """Takes the speeds that the book has of this device."""
        self.speeds = Speeds(self.book.speeds.get(self.device, {}), self.tasks, self.device)

    def seconds_left(self, task: Task) -> float:
        """Seconds that a run still takes on this device."""
        return seconds_left(task, self.speeds)

    def order(self) -> list[Task]:
        """The runs that are not finished, in the order in which they are begun."""
        return in_order(self.tasks, ranks_of(self.plans.values(), self.book), self.seconds_left)

    # ---- what cannot run

    def prepare(self, length: float) -> None:
        """Makes ready for a slice of `length` seconds: runs whose deleted files are needed run again; what cannot run fails."""
        todo, fixed = [t for t in self.tasks if t.state == "missing"], fixed_size(self.tasks)
        while todo:
            task = todo.pop()
            if why := self.too_long(task, length) or self.too_large(task, fixed, length):
                task.fail(why)
                continue
            for need in (n for n in task.needs if n.state == "done"):
                if all((need.folder / name).exists() for name in inputs_of(task, need)):
                    continue
                if why := self.too_large(need, fixed, length):
                    task.fail(f"{need}: {why}")
                else:
                    say(f"{need} runs again: its files were deleted when no run needed them")
                    (need.folder / "result.json").unlink()
                    need.state, need.result = "missing", None
                    todo.append(need)

    def too_long(self, task: Task, length: float) -> str:
        """Why no epoch of a run fits into a slice; empty where one does, or where none was measured."""
        epoch, basis = self.speeds.of(task)
        if basis != "measured" or START + epoch <= length:
            return ""
        longer = f"an epoch takes about {clock(epoch)} on {self.device}, longer than a slice"
        return f"{longer}; give --minutes {math.ceil((epoch + 2 * STOP) / 60)}"

    def too_large(self, task: Task, fixed: float, length: float) -> str:
        """Why a run does not fit into the folder, of which `fixed` bytes cannot go; empty where it does, has begun, or ends in a slice."""
        size = self.book.sizes.get(kind_of(task), 0)
        fits = not size or fixed + size <= self.limit
        if fits or (task.state == "missing" and (saved_files(task) or self.seconds_left(task) < length / 2)):
            return ""
        return f"its files take {in_mb(size)}; give --max_mb {math.ceil((fixed + size) / MB) + 1}"

    # ---- a slice

    def run(self, jobs: int, began: float, seconds: float) -> None:
        """Runs until `seconds` after `began` (time.monotonic()), all included. Raises KeyboardInterrupt on Ctrl-C and SIGTERM."""
        reserve = min(STOP, seconds / 5)
        ends = began + seconds - reserve
        self.prepare(ends - time.monotonic())
        try:
            Slice(self, jobs, ends, ends + reserve / 2).run()
        finally:
            prune(self.tasks, self.limit)
            drop_largest(self.tasks, self.limit, self.book)
            self.learn()
            self.book.seconds += round(time.monotonic() - began, 1)
            self.book.save()


class Slice(Runner):
    """Runs tasks in order until the time `ends`; then they save and stop, and those that still save at `kills_at` are ended."""

    def __init__(self, campaign: Campaign, jobs: int, ends: float, kills_at: float):
        super().__init__(campaign.order(), jobs)
        self.campaign, self.ends, self.kills_at, self.length = campaign, ends, kills_at, ends - time.monotonic()
        self.fixed, self.since = self.size_without_unfinished(), {}

    def run(self) -> None:
        super().run()
        self.stop()

    def goes_on(self) -> bool:
        """Whether there is time left, and a run that uses it."""
        if time.monotonic() >= self.ends:
            return False
        todo = [t for t in self.todo if t.state not in ENDED]
        blocked = any(n.state == "failed" for t in todo for n in t.needs)
        return bool(self.running) or blocked or any(t.state == "waiting" or self.is_ready(t) for t in todo)

    def is_ready(self, task: Task) -> bool:
        """Whether a run can start and end an epoch. One whose speed is not measured is tried while half of the slice is left."""
        epoch, basis = self.campaign.speeds.of(task)
        left = self.ends - time.monotonic()
        return super().is_ready(task) and (START + epoch <= left or (basis != "measured" and left > self.length / 2))

    def start(self, task: Task) -> None:
        self.since[id(task)] = time.time()
        super().start(task)

    def collect(self) -> None:
        """Ends runs that would not fit into the folder, and takes the results of others that have ended."""
        for slot, (task, process) in list(self.running.items()):
            if self.will_not_fit(task):
                process.kill()
                process.wait()
                process.stdin.close()
                del self.running[slot]
                self.note_stop(task)
                task.fail(f"its files do not fit into the folder; {drop(task, self.campaign.book)}")
                self.report_end(task, f"{task} stopped: {task.why}")
        super().collect()

    def size_without_unfinished(self) -> int:
        """Bytes of the folder's files that cannot go, without what unfinished runs have saved."""
        tasks = self.campaign.tasks
        return fixed_size(tasks) - sum(bytes_of(saved_files(t)) for t in tasks if t.state != "done")

    def will_not_fit(self, task: Task) -> bool:
        """Whether a run has saved more than there is room for beside finished runs, and does not end within the slice."""
        if self.fixed + bytes_of(saved_files(task)) <= self.campaign.limit:
            return False
        left = self.estimate(task)
        return bool(left) and left[1] > self.ends - time.monotonic()

    def estimate(self, task: Task) -> tuple[int, int] | None:
        """(epochs, seconds) that are left by a run's output since its start; None before its first epoch has ended."""
        return next(filter(None, map(left_of, reversed(last_lines(task)))), None)

    def report_end(self, task: Task, text: str = "") -> None:
        """As a Runner's; notes failures (but not of runs that did not start) and speeds, and deletes what a finished run leaves."""
        super().report_end(task, text)
        book = self.campaign.book
        if task.state == "done":
            book.failed.pop(name_of(task), None)
            book.note_result(task)
            self.campaign.learn()
            prune(self.campaign.tasks, self.campaign.limit)
            self.fixed = self.size_without_unfinished()
        elif not text:
            book.failed[name_of(task)] = task.why

    def stop(self) -> None:
        """Stops the runs, which save first; those that finish in this time count."""
        super().stop()
        for task, process in self.running.values():
            process.stdin.close()
            task.state = "missing"
            self.note_stop(task)
            if process.returncode == 0:
                finish_task(task, 0)
                self.report_end(task)
        self.running = {}

    def note_stop(self, task: Task) -> None:
        """Notes the speed of a run that is stopped. One that had most of a slice and saved nothing comes after others from now on."""
        began, book = self.since[id(task)], self.campaign.book
        if (left := self.estimate(task)) and left[0]:
            book.note_speed(self.campaign.device, kind_of(task), max(left[1], 0.5) / left[0])
        if any(p.stat().st_mtime >= began for p in saved_files(task)):
            book.failed.pop(name_of(task), None)
        elif time.time() - began > self.length / 2 and time.monotonic() >= self.ends:
            book.failed[name_of(task)] = why = f"it saved nothing in {clock(time.time() - began)}; give more --minutes"
            self.say(f"{task}: {why}")
