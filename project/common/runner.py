"""The runs of a table as processes: which are missing, which are ready, what came of them."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from .cli import PARENT, RunError, UsageError
from .csv_files import COPYING, ROOT
from .earlier import finished_result, is_locked, source_changes
from .exported import read_exported
from .forms import RESULT_NUMBERS
from .options import RunOptions, differences, flags
from .tables import of, record, tuple_of
from .utils import clock

ENDED = ("done", "failed")
BUSY = "another process is running this run"  # what a run says whose lock is held
STATUS = "ended with status "  # how a run's output ends that Snakemake ran and that failed
LAST = 2**16  # bytes at the end of a run's output in which the reason of a failure is looked for
NUMBER = of((int, float), "a number")
SHOT = tuple_of(2, NUMBER)  # an accuracy, and half the width of its interval
RESULT = record(  # what a table shows of a result
    set(),
    others=True,
    **dict.fromkeys(RESULT_NUMBERS, lambda value, place: None if value is None else NUMBER(value, place)),
    copying=record(set(COPYING), **dict.fromkeys(COPYING, NUMBER)),
    fewshot=record({"last"}, others=True, last=record({"1shot", "5shot"}, others=True, **{"1shot": SHOT, "5shot": SHOT})),
)


@dataclass
class Task:
    """One run of a script.

    options: the command line as a dictionary. args: all options. folder: checkpoints and result. log: the file of its output, `begins`
    bytes of which are of earlier attempts. needs: runs that must finish first. state: missing, waiting (for another process that runs
    it), running, done or failed. why: the reason of a failure. result: content of result.json, with the numbers of its export, or the
    reason in `unshown` why these are not shown. server: its teacher's, which must run.
    """

    script: str
    options: dict
    args: RunOptions
    folder: Path
    log: Path
    needs: list["Task"] = field(default_factory=list)
    state: str = "missing"
    why: str = ""
    result: dict | None = None
    unshown: str = ""
    begins: int = 0
    server: "Server | None" = None

    def command(self) -> list[str]:
        """Returns the command line that starts the run."""
        return [sys.executable, "-u", str(ROOT / "project" / f"{self.script}.py"), *flags(**self.options)]

    def shown_command(self) -> str:
        """Returns the same command line as a user types it."""
        return shlex.join(["python", "-u", f"project/{self.script}.py", *self.command()[3:]])

    def fail(self, why: object) -> None:
        """Marks the run as failed, for a reason of one line."""
        self.state, self.why, self.result = "failed", " ".join(str(why).split()), None

    def load_result(self) -> None:
        """Marks the run as done if its folder holds a result, as failed if the result is damaged, of other options or of other sources."""
        try:
            if result := finished_result(self.folder):
                RESULT(result, "")
        except UsageError as e:
            return self.fail(e if str(self.folder) in str(e) else f"{self.folder / 'result.json'}: {e}")
        if result and (different := differences(self.args, result["options"]) + source_changes(result["sources"])):
            own = "give the table folders of its own with --checkpoints_dir and --logs_dir, or run the script with --overwrite"
            self.fail(f"{self.folder} holds a run with {', '.join(different)}; {own}")
        elif result:
            numbers, self.unshown = read_exported(self.folder, result)
            self.result, self.state = result | numbers, "done"

    def __str__(self) -> str:
        return f"{self.script} {self.folder.parent.name} seed {self.args.seed}"


def needs_of(task: Task) -> list[Task]:
    """All runs that a run needs, each once, before those that need it."""
    found = {id(t): t for need in task.needs for t in (*needs_of(need), need)}
    return list(found.values())


class Runner:
    """Runs the missing tasks, `jobs` at a time. A run starts when all runs that it needs are done."""

    def __init__(self, tasks: list[Task], jobs: int):
        self.todo, self.jobs, self.running = [t for t in tasks if t.state == "missing"], jobs, {}
        self.done, self.began, self.gpus = 0, time.monotonic(), torch.cuda.device_count()
        self.kills_at = None  # time.monotonic() at which runs are ended that are still saving; None: never
        self.bar = tqdm(total=len(self.todo), unit="run", disable=not sys.stderr.isatty())

    def say(self, text: str) -> None:
        """Prints a line with the number of finished runs and the elapsed time."""
        self.bar.write(f"[{self.done}/{len(self.todo)}] {clock(time.monotonic() - self.began)}  {text}", file=sys.stdout)
        sys.stdout.flush()

    def run(self) -> None:
        """Runs until nothing is missing. On Ctrl-C or SIGTERM it stops the runs, which save first, and raises KeyboardInterrupt."""
        former = signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM acts as Ctrl-C
        try:
            while self.goes_on():
                self.start_ready()
                self.collect()
                self.bar.set_postfix_str(", ".join(str(t) for t, _ in self.running.values()))
                time.sleep(0.2)
        except KeyboardInterrupt:
            self.stop()
            raise
        finally:
            for server in {id(t.server): t.server for t in self.todo if t.server}.values():
                server.stop()
            self.bar.close()
            signal.signal(signal.SIGTERM, former)

    def goes_on(self) -> bool:
        """Whether a run is missing, or running."""
        return any(t.state not in ENDED for t in self.todo)

    def stop(self) -> None:
        """Stops the runs, which save first; the second Ctrl-C ends them at once."""
        processes = [process for _, process in self.running.values()]
        try:
            for process in processes:
                process.terminate()
            if processes:
                self.say(f"{len(processes)} runs save and stop; Ctrl-C again ends them at once")
            for process in processes:
                process.wait(None if self.kills_at is None else max(0.0, self.kills_at - time.monotonic()))
        except (KeyboardInterrupt, subprocess.TimeoutExpired):
            for process in processes:
                process.kill()
                process.wait()

    def fail_blocked(self, task: Task) -> bool:
        """Whether a need of this task has failed, and so the task, too."""
        if failed := [n for n in task.needs if n.state == "failed"]:
            task.fail(f"{failed[0]} failed")
            self.report_end(task, f"{task}: not run, {task.why}")
        return bool(failed)

    def start_ready(self) -> None:
        """Starts runs whose needs are done, while fewer than `jobs` are running. A failed need fails the run.

        A run that another process runs is waited for; what that leaves in the folder counts.
        """
        for task in [t for t in self.todo if t.state in ("missing", "waiting")]:
            if self.fail_blocked(task):
                continue
            if len(self.running) < self.jobs and self.is_ready(task):
                if is_locked(task.folder):
                    self.wait(task)
                    continue
                task.load_result()
                if task.state in ENDED:
                    self.report_end(task)
                else:
                    self.start(task)

    def is_ready(self, task: Task) -> bool:
        """Whether a run can start: all that it needs is done."""
        return all(n.state == "done" for n in task.needs)

    def wait(self, task: Task) -> None:
        """Notes that another process runs this task."""
        if task.state != "waiting":
            task.state, task.why = "waiting", ""
            self.say(f"{task} waits for another process that runs it")

    def start(self, task: Task) -> None:
        """Starts a run, on the GPU that has the fewest."""
        gpus = self.gpus or 1
        free = [i for i in range(self.jobs) if i not in self.running]
        slot = min(free, key=lambda i: sum(i % gpus == other % gpus for other in self.running))
        try:
            if task.server:
                task.server.start(self.jobs)
            self.running[slot] = task, launch(task, self.jobs, slot % self.gpus if self.gpus else None)
            self.say(f"{task} started")
        except RunError as e:
            task.fail(e)
            self.report_end(task)
        except OSError as e:
            task.fail(f"it could not be started: {e.filename or task.command()[0]}: {e.strerror}")
            self.report_end(task)

    def collect(self) -> None:
        """Takes the results of runs that have ended."""
        for slot, (task, process) in list(self.running.items()):
            if process.poll() is None:
                continue
            del self.running[slot]
            process.stdin.close()
            finish_task(task, process.returncode)
            if BUSY in task.why:  # another process was quicker
                self.wait(task)
            else:
                self.report_end(task)

    def report_end(self, task: Task, text: str = "") -> None:
        """Counts one more run as ended, and prints a line: `text`, or what came of it."""
        self.done += 1
        self.say(text or (task.result["line"] if task.result else f"{task} failed: {task.why}"))
        self.bar.update()


class Server:
    """A server of a table's teacher, started when a run first needs it. url: of its model; options: the command line as a dictionary."""

    def __init__(self, url: str, options: dict, log: Path):
        self.url, self.options, self.log, self.process = url, options, log, None

    def start(self, jobs: int) -> None:
        """Starts it if it does not run, and waits until it answers. RunError where it does not come up."""
        if self.process and self.process.poll() is None:
            return
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "wb") as log:
            command = [sys.executable, "-u", str(ROOT / "project" / "serve.py"), *flags(**self.options)]
            streams = {"stdin": subprocess.PIPE, "stdout": log, "stderr": subprocess.STDOUT}
            self.process = subprocess.Popen(command, **streams, env=environment(jobs), start_new_session=True)
        for _ in range(600):
            text = self.log.read_text(errors="replace")
            if self.url in text:
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        self.stop()
        raise RunError(f"the server of {self.url} did not start: {' '.join(text.split())[-300:] or 'no output'} ({self.log})")

    def stop(self) -> None:
        """Stops it, if it runs."""
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def threads_of(jobs: int) -> str:
    """The number of threads of each of `jobs` runs, as a text: OMP_NUM_THREADS, or cores / jobs."""
    return os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // jobs))


def environment(jobs: int) -> dict[str, str]:
    """The environment of a process of the table, which ends when its standard input is closed."""
    return os.environ | {"OMP_NUM_THREADS": threads_of(jobs), PARENT: "1"}


def launch(task: Task, jobs: int, gpu: int | None) -> subprocess.Popen:
    """Starts the process of a run and returns it. The run gets cores / jobs threads, and the GPU with index `gpu` (None: all).

    The run ends, and saves first, when its standard input is closed: if this process ends in whatever way, its runs end, too.
    """
    env = environment(jobs)
    env |= {} if gpu is None else {"CUDA_VISIBLE_DEVICES": visible_device(gpu)}
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with open(task.log, "ab") as log:
        task.begins = log.tell()
        streams = {"stdin": subprocess.PIPE, "stdout": log, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(task.command(), **streams, env=env, start_new_session=True)
    task.state = "running"
    return process


def visible_device(gpu: int) -> str:
    """Returns the name for CUDA_VISIBLE_DEVICES of the GPU with index `gpu` among those of this process."""
    mine = os.environ.get("CUDA_VISIBLE_DEVICES")
    return mine.split(",")[gpu] if mine else str(gpu)


def finish_task(task: Task, status: int | None) -> None:
    """Reads the result of a run that has ended with this exit status (None: unknown), or the reason of its failure in its output."""
    if status == 0:
        task.load_result()
    if task.state not in ENDED:
        task.fail(reason(task, status))


def last_lines(task: Task) -> list[str]:
    """The last lines of this attempt's output, without empty ones."""
    text = b""
    with contextlib.suppress(OSError), open(task.log, "rb") as f:
        f.seek(max(task.begins, f.seek(0, os.SEEK_END) - LAST))
        text = f.read()
    return [line for line in text.decode(errors="replace").splitlines() if line.strip()]


def reason(task: Task, status: int | None) -> str:
    """Why a run has failed: the last error line of its own output, else its last line, with exit status or signal."""
    lines = [line for line in last_lines(task) if not line.startswith(STATUS)]
    errors = [line for line in lines if line.startswith(f"{task.script}.py: ")]
    if (status is None or status < 0) and not errors:
        how = f"by signal {-status} ({signal.strsignal(-status)})" if status else "without an exit status (killed, or its machine failed)"
        after = f" after: {lines[-1]}" if lines else ""
        return f"it was ended {how}{after} ({task.log})"
    return f"{([*lines, *errors] or ['no output'])[-1]} ({'' if status is None else f'status {status}, '}{task.log})"
