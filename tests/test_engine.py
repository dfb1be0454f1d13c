"""Tables on many machines: Snakemake as the engine, the rows and seeds of the command line, and what --watch reads from the files."""

from common.cli import UsageError

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import CE
import KD
import pytest
import table
from filelock import FileLock

from common import engine, runner, watching
from common.options import flags
from common.plan import Plan
from common.tables import read_table, rows_named, seeds_of
from common.utils import save_json

TABLE = """
title = "Tiny"
dataset = "Digits"
pairs = ["ResNet8 -> ResNet8"]
seeds = [0]
rows = [
  { name = "CE", script = "CE" },
  { name = "KD", script = "KD", options = { t = 3 } },
  { name = "no device", script = "CE", options = { device = "cuda:99", tag = "no" } },
]
[options]
lamda = 0.2
epochs = 1
[scripts.teacher]
lamda = 1.0
epochs = 2
"""


@pytest.fixture
def tiny(tmp_path):
    """tiny(old, new, ...): a table's file with these changes, and the flags for a home of its own."""

    def make(*changes, home="home"):
        text = TABLE
        for old, new in zip(changes[::2], changes[1::2], strict=True):
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "tiny.toml").write_text(text)
        return [str(tmp_path / "tiny.toml"), *flags(checkpoints_dir=tmp_path / home / "c", logs_dir=tmp_path / home / "l")]

    make.home = tmp_path
    return make


def results(home):
    """{path below the home: content} of the results, without times and places."""
    found = {}
    for path in sorted(home.rglob("result.json")):
        r = json.loads(path.read_text())
        found[str(path.relative_to(home))] = {k: r.get(k) for k in ("accuracy", "best", "agreement", "ece", "queries", "log")}
        found[str(path.relative_to(home))]["files"] = r["files"].keys()
    return found


def made(home):
    """{path: when it was written} of the results."""
    return {path: path.stat().st_mtime_ns for path in home.rglob("result.json")}


# ---- Snakemake


def test_snakemake_ends_when_the_table_ends(tmp_path):
    """It takes the end of its standard input for Ctrl-C, although a shell's `&` had it ignore that. A stand-in is in the place of Snakemake."""
    (tmp_path / "snakemake").mkdir()
    (tmp_path / "snakemake/__init__.py").touch()
    (tmp_path / "snakemake/cli.py").write_text("import time\ndef main(argv):\n    print(argv, flush=True)\n    time.sleep(60)\n")
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    ignoring = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)  # noqa: E731
    command = [sys.executable, "-c", engine.CHILD, "--cores", "1"]
    process = subprocess.Popen(command, **streams, env=os.environ | {"PYTHONPATH": str(tmp_path)}, preexec_fn=ignoring)
    assert process.stdout.readline() == "['--cores', '1']\n"
    process.stdin.close()
    assert process.wait(20) != 0
    process.stdout.close()


def tasks_of(*rows, folder, **changes):
    """Tasks of a table of these rows."""
    content = {"title": "x", "dataset": "Digits", "pairs": ["ResNet8 -> ResNet8"], "seeds": [0], "rows": list(rows)} | changes
    roots = {"data_dir": "data", "checkpoints_dir": str(folder / "c"), "logs_dir": str(folder / "l")}
    return Plan(content, roots).tasks


ROWS = {"name": "CE", "script": "CE"}, {"name": "KD", "script": "KD"}


def test_a_snakefile_has_a_rule_for_each_run_and_is_the_same_each_time(tmp_path):
    tasks = {t.script: t for t in tasks_of(*ROWS, folder=tmp_path)}
    teacher, kd, ce = (tasks[s] for s in ("teacher", "KD", "CE"))
    ce.args.device = "cuda"
    rules = {"teacher_0": teacher, "CE_1": ce, "KD_2": kd}
    text = engine.snakefile(rules, 3, 0)
    assert text == engine.snakefile(rules, 3, 0) and text.count("\nrule ") == 4 and text.count("threads: 3") == 3
    blocks = dict(block.partition(":\n")[::2] for block in text.split("\nrule ")[1:])
    assert f'ancient("{tmp_path}/c/teacher/Digits/ResNet8/seed0/result.json")' in blocks["KD_2"] and "ancient" not in blocks["CE_1"]
    assert "gpu=1" in blocks["CE_1"] and "gpu" not in blocks["KD_2"] and "gpu=1" in engine.snakefile(rules, 3, 1).partition("rule KD_2")[2]
    assert f"cd {os.getcwd()} && " in blocks["KD_2"] and "project/KD.py --dataset Digits --teacher ResNet8" in blocks["KD_2"]
    assert "ancient" not in engine.snakefile({"KD_0": kd}, 3, 0)  # what is finished is no rule


@pytest.mark.parametrize("words, elsewhere, profile", [
    ("", False, False), ("--executor local -c 4", False, False), ("--executor slurm --jobs 100", True, False), ("-e kubernetes", True, False), ("--executor=slurm", True, False),
    ("--profile mine", True, True), ("--workflow-profile=p --jobs 3", True, True),
])  # fmt: skip
def test_whether_jobs_leave_this_machine(words, elsewhere, profile, monkeypatch):
    monkeypatch.delenv("SNAKEMAKE_PROFILE", raising=False)
    assert engine.is_elsewhere(words.split()) == (elsewhere, profile)
    monkeypatch.setenv("SNAKEMAKE_PROFILE", "mine")
    assert engine.is_elsewhere(words.split()) == (True, True)


def test_what_cannot_run_with_snakemake_is_one_line(tmp_path, monkeypatch):
    tasks = tasks_of(*ROWS, folder=tmp_path)
    start = lambda args="", ts=tasks: engine.Snakemake(ts, 1, tmp_path, args)  # noqa: E731

    def absent(name):
        raise engine.importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(engine.importlib.metadata, "version", absent)
    with pytest.raises(UsageError, match=r'the package snakemake is not installed; run: python.* -m pip install "snakemake>=9"'):
        start()
    monkeypatch.setattr(engine.importlib.metadata, "version", lambda name: "8.30.0")
    with pytest.raises(UsageError, match=r"snakemake 8.30.0 is too old; run: .*pip install"):
        start()
    monkeypatch.setattr(engine.importlib.metadata, "version", lambda name: "9.1.0")
    with pytest.raises(UsageError, match="--engine_args .*: No closing quotation"):
        start('--jobs "3')
    with pytest.raises(UsageError, match="--engine_args: .*expected one argument"):
        start("--executor")
    with pytest.raises(UsageError, match="has braces, which are wildcards for Snakemake"):
        start(ts=tasks_of(*ROWS, folder=tmp_path / "{a}"))
    with pytest.raises(UsageError, match=r"starts a server of its teacher on this machine \(serve\); leave --engine out"):
        start(ts=tasks_of(ROWS[1], folder=tmp_path, serve={"port": 8000}))
    monkeypatch.setattr(runner.torch.cuda, "device_count", lambda: 4)
    with pytest.raises(UsageError, match="on the first of its 4 GPUs; leave --engine out, .*or name an executor"):
        start()
    assert start("--executor slurm").elsewhere


def test_one_process_at_a_time_runs_a_table(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "check_installed", lambda: None)
    jobs = engine.Snakemake(tasks_of(*ROWS, folder=tmp_path), 1, tmp_path / "x", "")
    (tmp_path / "x").mkdir()
    with FileLock(tmp_path / "x/.lock"), pytest.raises(UsageError, match="another process runs this table with Snakemake .*--watch"):
        jobs.run()
    assert not (tmp_path / "x/Snakefile").exists()


@pytest.mark.parametrize("output, words", [
    ("epoch 1\nCE.py: no images\nended with status 2\n", "CE.py: no images (status 2, {log})"), ("epoch 1\nended with status 137\n", "it was ended by signal 9 (Killed) after: epoch 1 ({log})"),
    ("epoch 1\n", "it was ended without an exit status (killed, or its machine failed) after: epoch 1 ({log})"), ("CE.py: no images\n", "CE.py: no images ({log})"), ("", "Snakemake did not run it: Error: no node (out/snakemake.log)"),
])  # fmt: skip
def test_the_reason_of_a_job_that_failed(output, words, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "check_installed", lambda: None)
    monkeypatch.chdir(tmp_path)
    save_json(Path("out/snakemake.log"), {})
    Path("out/snakemake.log").write_text("Building\nError: no node\n\nComplete log\n")
    task, other = (runner.Task("CE", {}, CE.Args(), tmp_path / n, tmp_path / n / "output.log") for n in "ab")
    for t, text in ((task, output), (other, "ended with status 1\n")):
        t.folder.mkdir()
        t.log.write_text(f"CE.py: of an earlier attempt\n{text}")
        t.begins = len("CE.py: of an earlier attempt\n")
    child = runner.Task("KD", {}, KD.Args(), tmp_path / "k", tmp_path / "k.log", [task])
    jobs = engine.Snakemake([task, other, child], 1, Path("out"), "")
    jobs.explain(1)
    assert (task.why, child.why) == (words.format(log=task.log), f"{task} failed") and jobs.done == 3


# ---- --seeds and --only


@pytest.mark.parametrize("text, seeds", [
    ("3", [0, 1, 2]), ("+2", [0, 1]), ("0-4", [0, 1, 2, 3, 4]), ("5-5", [5]), ("0,2,5", [0, 2, 5]), ("7,1-3,2", [7, 1, 2, 3]), (" 1 , 0 ", [1, 0]), ("4294967295-4294967295", [2**32 - 1]),
])  # fmt: skip
def test_seeds(text, seeds):
    assert seeds_of(text) == seeds


def test_rows_are_named_by_their_beginning():
    names = ["CE (alone, with labels)", "KD", "KD, logit standardisation", "KD hard", "MEKD soft"]
    assert rows_named(["KD"], names) == ["KD"] and rows_named(["kd,mekd", "ce"], names) == ["KD", "MEKD soft", "CE (alone, with labels)"]
    assert rows_named(["kd, l"], names) == ["KD, logit standardisation"] and rows_named(["KD HARD", "kd h"], names) == ["KD hard"]
    assert rows_named(["CE (alone, with labels)", "KD"], names) == ["CE (alone, with labels)", "KD"] and rows_named([], names) == []


def test_only_keeps_the_rows_with_their_needs_and_the_finished_row_that_they_are_compared_with(tmp_path):
    roots = {"data_dir": "data", "checkpoints_dir": str(tmp_path), "logs_dir": str(tmp_path)}
    content = read_table("digits") | {"seeds": [0, 1]}
    plan = Plan(content, roots)
    kd = next(t for (_, name, seed), t in plan.cells.items() if (name, seed) == ("KD", 1))
    save_json(kd.folder / "result.json", {"line": "x", "options": {"weights_init": "torch"}, "sources": {}, "accuracy": 90.0})
    plan.keep(["MEKD hard"], "KD")
    assert sorted(str(t).split()[0] for t in plan.tasks) == ["DCGAN", "DCGAN", "MEKD", "MEKD", "teacher"]
    assert sorted((name, seed) for _, name, seed in plan.cells) == [("KD", 1), ("MEKD hard", 0), ("MEKD hard", 1)]


def test_the_help_says_how_seeds_and_rows_are_given(capsys):
    with pytest.raises(SystemExit):
        table.main(["--help"])
    assert "range (0-4) or list (0,2,5)" in " ".join(capsys.readouterr().out.split())


# ---- --watch


@pytest.fixture
def run(tmp_path):
    """run(output, epoch, age, host, pid): a run of KD with these files, `age` seconds old."""

    def make(output=None, epoch=0, age=0, host="", pid=0, needs=()):
        task = runner.Task("KD", {}, KD.Args(epochs=20), tmp_path / "c", tmp_path / "l/output.log", list(needs))
        task.log.parent.mkdir(exist_ok=True)
        if output is not None:
            task.log.write_text(output)
        if epoch:
            task.log.with_name("log.jsonl").write_text("".join(json.dumps({"epoch": e + 1}) + "\n" for e in range(epoch)))
        if pid:
            task.log.with_name("process.json").write_text(json.dumps({"host": host or socket.gethostname(), "pid": pid, "device": "CPU"}))
        for path in task.log.parent.iterdir():
            os.utime(path, (time.time() - age, time.time() - age))
        return task

    return make


EPOCH = "epoch 12/20  kl 0.1  accuracy 90.00 %  12 s, 0:02:40 left\n"


@pytest.mark.parametrize("files, state, words", [
    ({}, "waiting", "for a free place"),
    ({"output": ""}, "waiting", "for a free place"),
    ({"output": "KD.py: no teacher\nended with status 2\n"}, "failed", r"KD.py: no teacher \(.*output.log\)"),
    ({"output": "KD teacher\n", "age": 1}, "running", "starts"),
    ({"output": EPOCH, "epoch": 12, "age": 40, "host": "node7", "pid": 7}, "running", "epoch 12 of 20, 0:0[12]:[0-9]+ left"),
    ({"output": EPOCH, "epoch": 12, "age": 4000, "host": "node7", "pid": 7}, "silent", "no sign for 1:06:4.: killed, or in a long epoch; epoch 12 of 20, 0:00:00 left"),
    ({"output": EPOCH, "epoch": 12, "pid": 2**22 + 1}, "stopped", "killed after: epoch 12/20 .*"),
    ({"output": "stopped by SIGTERM; 3 of 20 epochs are saved; run ...\n", "pid": 1}, "stopped", "stopped by SIGTERM"),
])  # fmt: skip
def test_what_a_look_at_a_run_shows(files, state, words, run):
    view = watching.view_of(run(**files))
    assert view.state == state and re.fullmatch(words, view.words), view


def test_a_process_of_this_machine_runs_until_it_is_gone(run):
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)", "project/KD.py"], stdout=subprocess.PIPE
    )
    process.stdout.readline()  # from now on /proc shows its command line
    task = run(EPOCH, epoch=12, age=4000, pid=process.pid)
    view = watching.view_of(task)
    assert view.state == "running" and view.where == f"{socket.gethostname()}, pid {process.pid}, CPU"
    assert watching.view_of(run(EPOCH, pid=os.getppid())).state == "stopped"  # another program has its id
    run(EPOCH, pid=process.pid)
    process.kill()  # not waited for: a zombie
    time.sleep(0.2)
    assert watching.view_of(task).state == "stopped"
    process.communicate()
    assert watching.view_of(task).state == "stopped"


def test_a_run_notes_its_process(script):
    script("CE", epochs=1, lamda=0.2)
    task = runner.Task("CE", {}, CE.Args(), script.home / "c", script.home / "logs/CE/Digits/ResNet8/seed0/output.log")
    assert watching.process_of(task) == {"host": socket.gethostname(), "pid": os.getpid(), "device": "CPU, 1 thread"}


def test_what_waits_is_counted_by_what_it_waits_for(run, capsys, tmp_path):
    teacher = runner.Task("teacher", {}, KD.Args(), tmp_path / "t/seed0", tmp_path / "t/output.log")
    waits = [runner.Task("KD", {}, KD.Args(), tmp_path / f"{i}", tmp_path / f"{i}/output.log", [teacher]) for i in range(3)]
    running = run(EPOCH, epoch=12, host="node7", pid=7)
    watching.watch([running, teacher, *waits], "tiny")
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("tiny, ") and first.endswith(": 1 running, 4 waiting of 5 runs")
    assert lines[0].startswith(f"running  {running}  epoch 12 of 20, 0:02:") and lines[0].endswith("node7, pid 7, CPU")
    assert lines[1:] == [f"waiting  3 runs for {teacher}", "waiting  1 run for a free place"]
    teacher.fail("x")
    watching.watch([teacher, *waits], "tiny")
    assert capsys.readouterr().out.splitlines()[0].endswith(": 4 failed of 4 runs")


def test_watching_writes_nothing_and_ends_when_all_have_ended(tiny, capsys, monkeypatch):
    """On a terminal it looks again until the last run has ended; here that is at the second look."""
    argv = [*tiny(), "--only", "CE", "--watch"]
    table.main(argv)
    assert (
        capsys.readouterr().out.endswith(": 1 waiting of 1 runs\nwaiting  1 run for a free place\n") and not (tiny.home / "home").exists()
    )
    folder = tiny.home / "home/c/CE/Digits/ResNet8/seed0"
    finish = lambda seconds: save_json(folder / "result.json", {"line": "x", "options": {"weights_init": "torch"}, "sources": {}})  # noqa: E731
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(watching.time, "sleep", finish)
    table.main(argv)
    assert capsys.readouterr().out.rstrip().endswith(": 1 done of 1 runs") and [p.name for p in folder.iterdir()] == ["result.json"]
