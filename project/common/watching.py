"""The state of a table's runs, read from their files: what runs, where and how far it is, what failed, what waits.

It takes no lock and writes nothing, so it disturbs no run, and it works from any machine that sees the files.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from .cli import say
from .record import PROCESS
from .runner import ENDED, STATUS, Task, last_lines
from .utils import clock

EVERY = 2.0  # seconds between looks
SILENT = 300.0  # seconds without a sign, of a run on another machine, after which the silence is shown
ORDER = ("running", "silent", "failed", "stopped", "waiting")
LEFT = re.compile(r"epoch +(\d+)/(\d+) .* (\d+):(\d\d):(\d\d) left")


@dataclass
class View:
    """What one look at a run shows. state: done or one of ORDER; words: progress, reason or what it waits for; where: its process."""

    state: str
    words: str = ""
    where: str = ""


def watch(tasks: list[Task], name: str) -> None:
    """Prints the state of a table's runs: on a terminal again and again until all have ended or Ctrl-C, else once."""
    again = sys.stdout.isatty()
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            views = {id(t): view_of(t) for t in tasks}
            lines = picture(tasks, views, name)
            if again:
                size = shutil.get_terminal_size()
                lines = [line[: size.columns - 1] for line in lines[: size.lines - 1]]
                lines[0] = f"\033[H\033[J{lines[0]}"
            say("\n".join(lines))
            if not again or all(v.state in ENDED for v in views.values()):
                return
            time.sleep(EVERY)


def picture(tasks: list[Task], views: dict[int, View], name: str) -> list[str]:
    """The lines of one look: the counts, a line for each run that is neither done nor waiting, and what the waiting ones wait for."""
    counts = Counter(v.state for v in views.values())
    told = ", ".join(f"{counts[state]} {state}" for state in ("done", *ORDER) if counts[state])
    lines = [f"{name}, {time.strftime('%H:%M:%S')}: {told} of {len(tasks)} runs"]
    for state in ORDER[:-1]:
        for task in (t for t in tasks if views[id(t)].state == state):
            view = views[id(task)]
            lines.append("  ".join(filter(None, (f"{state:7}", str(task), view.words, view.where))))
    waiting = Counter(v.words for v in views.values() if v.state == "waiting")
    lines += [f"waiting  {n} run{'s' * (n > 1)} {words}" for words, n in waiting.most_common()]
    return lines


def view_of(task: Task) -> View:
    """One look at a run."""
    if task.state not in ENDED and (task.folder / "result.json").exists():
        task.load_result()
    if task.state in ENDED:
        return View(task.state, task.why)
    process, lines = process_of(task), [line for line in last_lines(task) if not line.startswith(STATUS)]
    last, age = lines[-1] if lines else "", age_of(task)
    if process is None and (not lines or age > SILENT):
        return waits(task)
    if ended := ended_words(task, last):
        return ended
    if process is None:
        return View("running", "starts")
    where = f"{process['host']}, pid {process['pid']}, {process['device']}"
    if process["host"] == socket.gethostname():
        if not is_alive(process["pid"], task.script):
            return View("stopped", f"killed after: {last}" if last else "killed", where)
    elif age > SILENT:
        return View("silent", f"no sign for {clock(age)}: killed, or in a long epoch; {progress(task, last, age)}", where)
    return View("running", progress(task, last, age), where)


def waits(task: Task) -> View:
    """The view of a run that no process has begun."""
    needs = [n for n in task.needs if n.state != "done"]
    if failed := [n for n in needs if n.state == "failed"]:
        return View("failed", f"not run, {failed[0]} failed")
    return View("waiting", f"for {needs[0]}" if needs else "for a free place")


def ended_words(task: Task, last: str) -> View | None:
    """The view of a run whose output ends with an error or with a stop; None for others."""
    if last.startswith(f"{task.script}.py: "):
        return View("failed", f"{last} ({task.log})")
    return View("stopped", last.partition(";")[0]) if last.startswith("stopped by ") else None


def process_of(task: Task) -> dict | None:
    """The process that runs this run or was the last to do so; None where it has written none."""
    with contextlib.suppress(OSError, ValueError):
        process = json.loads((task.log.parent / PROCESS).read_text())
        return process if process.keys() >= {"host", "pid", "device"} else None
    return None


def is_alive(pid: int, script: str) -> bool:
    """Whether a process of this machine with this id runs this script."""
    command = Path(f"/proc/{pid}/cmdline")
    if Path("/proc/self/cmdline").exists():  # Linux, where the id may be another program's by now
        with contextlib.suppress(OSError):
            return f"{script}.py".encode() in command.read_bytes()
        return False
    try:
        os.kill(pid, 0)
    except OSError as e:
        return isinstance(e, PermissionError)
    return True


def age_of(task: Task) -> float:
    """Seconds since a file of the run changed, by the clock of this machine."""
    files = (task.log, task.log.with_name("log.jsonl"), task.log.with_name(PROCESS), task.folder / "state.pt")
    return max(0.0, time.time() - max((p.stat().st_mtime for p in files if p.exists()), default=0.0))


def progress(task: Task, last: str, age: float) -> str:
    """`epoch 12 of 30, 0:01:10 left`: by the last lines of log.jsonl and of the output, whose estimate is `age` seconds old."""
    words = f"epoch {epochs_done(task)} of {task.args.epochs}"
    if found := left_of(last):
        words += f", {clock(max(0, found[1] - age))} left"
    return words


def epochs_done(task: Task) -> int:
    """The last epoch in a run's log.jsonl, 0 where there is none."""
    with contextlib.suppress(OSError, ValueError, IndexError, KeyError):
        return json.loads((task.log.with_name("log.jsonl")).read_text().splitlines()[-1])["epoch"]
    return 0


def left_of(line: str) -> tuple[int, int] | None:
    """(epochs, seconds) that are left by a line of a run's output; None for a line that does not say it."""
    if not (found := LEFT.match(line)):
        return None
    epoch, total, hours, minutes, seconds = map(int, found.groups())
    return total - epoch, 3600 * hours + 60 * minutes + seconds
