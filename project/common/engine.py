"""A table's runs as jobs of Snakemake 9, which runs them here, on a SLURM cluster or on Kubernetes: its executor plugins submit them.

Only missing runs are rules, so that Snakemake cannot repeat or delete what is finished. A run saves and resumes by itself; Snakemake
decides when and where it starts. What a job needs is in its command: the same folder, environment and checkpoints on each machine.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from .cli import PARENT, RunError, UsageError
from .record import WAIT
from .runner import ENDED, STATUS, Runner, Task, finish_task, last_lines, threads_of
from .utils import letters, save_text

OLDEST = 9  # major version of Snakemake
ELSEWHERE = 4  # threads of a run on another machine, whose cores are not known here
A_DAY = 86_400  # seconds that a job waits for a run that another process (of a killed table) is still running
FLAGS = [  # a run's result.json is whole or absent: Snakemake need not doubt it, lock it or delete it
    *("--nolock", "--ignore-incomplete", "--keep-incomplete", "--rerun-triggers", "mtime"),
    *("--keep-going", "--nocolor"),
]
CHILD = """
import os, signal, sys, threading

from snakemake.cli import main


def end_with_parent():
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGINT)


signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` ignores Ctrl-C
threading.Thread(target=end_with_parent, daemon=True).start()
sys.exit(main(sys.argv[1:]))
"""


class Snakemake(Runner):
    """Runs the missing tasks through Snakemake. out: the folder of its files. UsageError where it is missing, too old or of no use here."""

    def __init__(self, tasks: list[Task], jobs: int, out: Path, engine_args: str):
        super().__init__(tasks, jobs)
        check_installed()
        self.out, self.log, self.given = out, out / "snakemake.log", words_of(engine_args)
        self.elsewhere, self.profile = is_elsewhere(self.given)
        if odd := next((str(p) for t in self.todo for p in (result_of(t), t.log.absolute()) if {*"{}"} & {*str(p)}), ""):
            raise UsageError(f"--engine snakemake: {odd} has braces, which are wildcards for Snakemake; use folders without them")
        if any(t.server for t in self.todo):
            raise UsageError("--engine snakemake: the table starts a server of its teacher on this machine (serve); leave --engine out")
        if self.gpus > 1 and not self.elsewhere and any(on_gpu(t, self.gpus) for t in self.todo):
            hint = "leave --engine out, which distributes the runs over them, or name an executor in --engine_args"
            raise UsageError(f"--engine snakemake: Snakemake starts all runs of this machine on the first of its {self.gpus} GPUs; {hint}")

    def run(self) -> None:
        """Runs until Snakemake ends. On Ctrl-C or SIGTERM it stops the runs, which save first, and raises KeyboardInterrupt."""
        rules = {f"{t.script}_{letters(str(t.folder))}": t for t in self.todo if not self.fail_blocked(t)}
        if not rules:
            return
        self.lock()
        threads = os.environ.get("OMP_NUM_THREADS", str(ELSEWHERE)) if self.elsewhere else threads_of(self.jobs)
        threads = int(threads) if threads.isdecimal() else 1
        save_text(self.out / "Snakefile", snakefile(rules, threads, self.gpus))
        for task in rules.values():
            task.log.parent.mkdir(parents=True, exist_ok=True)
            task.begins = task.log.stat().st_size if task.log.exists() else 0
        former = signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM acts as Ctrl-C
        process = self.start_snakemake(threads)
        try:
            self.say(f"Snakemake runs {len(rules)} jobs; its log: {self.log}")
            while process.poll() is None:
                self.take_results()
                time.sleep(0.5)
        except KeyboardInterrupt:
            self.stop_snakemake(process)
            raise
        finally:
            process.stdin.close()
            self.bar.close()
            signal.signal(signal.SIGTERM, former)
        self.take_results()
        self.explain(process.returncode)

    def lock(self) -> None:
        """Locks the folder until this process ends. UsageError where another process has it."""
        self.out.mkdir(parents=True, exist_ok=True)
        self.held = FileLock(self.out / ".lock")
        try:
            self.held.acquire(timeout=0)
        except Timeout:
            raise UsageError(f"another process runs this table with Snakemake ({self.out}); wait for it, or show it with --watch") from None

    def start_snakemake(self, threads: int) -> subprocess.Popen:
        """Starts Snakemake, and returns its process. It and the runs that it starts here end when their standard input is closed."""
        jobs = ["--cores", str(self.jobs * threads)]
        if self.elsewhere:
            jobs = ["--jobs", str(self.jobs)] if self.jobs > 1 or not self.profile else []
        command = [sys.executable, "-c", CHILD, "--snakefile", "Snakefile", *FLAGS, *jobs, *self.given]
        env = {k: v for k, v in os.environ.items() if k != PARENT} | ({} if self.elsewhere else {PARENT: "1"})
        with open(self.log, "wb") as log:
            streams = {"stdin": subprocess.PIPE, "stdout": log, "stderr": subprocess.STDOUT}
            return subprocess.Popen(command, **streams, env=env, cwd=self.out, start_new_session=True)

    def stop_snakemake(self, process: subprocess.Popen) -> None:
        """Ends Snakemake and its runs, which save first; the second Ctrl-C ends those of this machine at once."""
        try:
            process.stdin.close()
            self.say("the runs save and stop; Ctrl-C again ends them at once")
            process.wait()
        except KeyboardInterrupt:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def take_results(self) -> None:
        """Notes the runs that have a result by now."""
        for task in (t for t in self.todo if t.state not in ENDED and (t.folder / "result.json").exists()):
            task.load_result()
            if task.state in ENDED:
                self.report_end(task)

    def explain(self, status: int) -> None:
        """Gives each run without a result its reason. RunError where Snakemake ended before any run began."""
        left = [t for t in self.todo if t.state not in ENDED]
        outputs = {id(t): last_lines(t) for t in left}
        if status and len(left) == len(self.todo) and not any(outputs.values()):
            raise RunError(f"Snakemake ran nothing: {self.last_error()} ({self.log})")
        for task in (t for t in left if not self.fail_blocked(t)):  # a run stands behind those that it needs
            if lines := outputs[id(task)]:
                finish_task(task, status_in(lines[-1]))
            else:
                task.fail(f"Snakemake did not run it: {self.last_error()} ({self.log})")
            self.report_end(task)

    def last_error(self) -> str:
        """The last line of Snakemake's log that tells of an error, else its last line."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()]
        return ([*lines[-1:], *errors[-1:]] or ["no output"])[-1]


def check_installed() -> None:
    """UsageError where Snakemake is missing or too old."""
    install = f'run: {Path(sys.executable).name} -m pip install "snakemake>={OLDEST}" -c constraints.txt'
    try:
        version = importlib.metadata.version("snakemake")
    except importlib.metadata.PackageNotFoundError:
        raise UsageError(f"--engine snakemake: the package snakemake is not installed; {install}") from None
    if int(version.split(".")[0]) < OLDEST:
        raise UsageError(f"--engine snakemake: snakemake {version} is too old; {install}")


def status_in(line: str) -> int | None:
    """The exit status (of a signal: its negative number) that a job's command noted in the output's last line; None for another line."""
    noted = line.removeprefix(STATUS)
    if noted == line or not noted.isdecimal():
        return None
    return int(noted) if int(noted) <= 128 else 128 - int(noted)


def words_of(engine_args: str) -> list[str]:
    """The words of --engine_args, as a shell reads them. UsageError for an open quotation."""
    try:
        return shlex.split(engine_args)
    except ValueError as e:
        raise UsageError(f"--engine_args {engine_args!r}: {e}") from None


def is_elsewhere(words: Sequence[str]) -> tuple[bool, bool]:
    """(whether Snakemake may start the jobs on other machines, whether it has a profile), by its arguments."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--executor", "-e", default="local")
    parser.add_argument("--profile", default=os.environ.get("SNAKEMAKE_PROFILE"))
    parser.add_argument("--workflow-profile")
    try:
        given = parser.parse_known_args(words)[0]
    except argparse.ArgumentError as e:
        raise UsageError(f"--engine_args: {e}") from None
    profile = bool(given.profile or given.workflow_profile)
    return profile or given.executor != "local", profile


def on_gpu(task: Task, gpus: int) -> bool:
    """Whether a run computes on a GPU: --device names one, or is auto and this machine has one."""
    return task.args.device not in ("cpu", "auto") or (task.args.device == "auto" and gpus > 0)


# ---- the Snakefile


def snakefile(rules: dict[str, Task], threads: int, gpus: int) -> str:
    """The text of a Snakefile. rules: {name: run}; threads: of each run; gpus: of this machine.

    A rule's command writes the output itself: Snakemake would empty a file named as `log` at each attempt.
    """
    names = {id(task): name for name, task in rules.items()}
    targets = "".join(f"        {quoted(result_of(task))},\n" for task in rules.values())
    text = ["# Written by table.py: the runs of a table that are missing.\n\nrule all:\n    input:\n" + targets]
    for name, task in rules.items():
        needs = "".join(f"        ancient({quoted(result_of(n))}),\n" for n in task.needs if id(n) in names)
        log, command = shlex.quote(str(task.log.absolute())), shlex.join(task.command())
        noted = f'{{ s=$?; echo "{STATUS}$s" >> {log}; exit $s; }}'
        shell = f"cd {shlex.quote(os.getcwd())} && {WAIT}={A_DAY} {command} >> {log} 2>&1 || {noted}"
        parts = [f"rule {name}:\n"]
        parts += [f"    input:\n{needs}"] if needs else []
        parts += [f"    output: {quoted(result_of(task))}\n    threads: {threads}\n"]
        parts += ["    resources: gpu=1\n"] if on_gpu(task, gpus) else []
        shell = quoted(shell).replace("{", "{{").replace("}", "}}")  # braces would stand for Snakemake's values
        text.append("".join([*parts, f"    shell: {shell}\n"]))
    return "\n\n".join(text)


def result_of(task: Task) -> Path:
    """The file that says that a run is finished."""
    return (task.folder / "result.json").absolute()


def quoted(text: object) -> str:
    """A text as a string of a Snakefile, which is Python."""
    return json.dumps(str(text))
