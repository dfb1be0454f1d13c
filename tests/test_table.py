"""The table: runs what is missing and no more, survives a failing run, prints and writes what was measured."""

from common.cli import RunError, UsageError

import contextlib
import csv
import importlib
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import CE
import pytest
import table
from conftest import ROOT
from filelock import FileLock

from common import beside_published, charts, csv_files, report, results, runner
from common.options import flags
from common.utils import read_json, save_json

TINY = """
title = "Tiny & quick"
paper = "{paper}"
dataset = "Digits"
pairs = ["ResNet8 -> {student}"]
seeds = {seeds}
rows = [
  {{ name = "CE", script = "CE" }},
  {{ name = "KD", script = "KD" }},
  {{ name = "MEKD hard", script = "MEKD", needs = ["DCGAN"], options = {{ response = "hard", steps = 2 }} }},
]
[options]
lamda = 0.2
epochs = 1
[scripts.teacher]
lamda = 1.0
epochs = 4
"""


@pytest.fixture
def tiny(tmp_path):
    """tiny(**changes): a table's file, and the flags for a home of its own."""

    def make(student="ResNet8", paper="", more="", seeds="[0, 1]"):
        path = tmp_path / "tiny.toml"
        path.write_text(TINY.format(student=student, paper=paper, seeds=seeds) + more)
        return [str(path), "--checkpoints_dir", str(tmp_path / "c"), "--logs_dir", str(tmp_path / "l")]

    make.home = tmp_path
    return make


def test_runs_what_is_missing_prints_and_writes_then_runs_nothing(tiny, capsys):
    flags = tiny(seeds="[1]")
    table.main([*flags, "--jobs", "2"])
    out = capsys.readouterr().out
    assert "[5/5]" in out and out.count("-> ResNet8 on Digits, seed ") == 1
    assert "| KD " in out and "259" in out
    written = {p.suffix: p for p in (tiny.home / "l" / "tables").iterdir()}
    assert set(written) == {".md", ".tex", ".csv", ".png"}
    assert written[".md"].read_text().strip() in out
    tex = written[".tex"].read_text()
    assert tex.count("\\\\") == 6 and "\\end{tabular}" in tex
    rows = list(csv.DictReader(written[".csv"].open()))
    assert len(rows) == 5 and {r["method"] for r in rows} == {"teacher", "CE", "KD", "DCGAN", "MEKD hard"}
    assert all("torch" in r["versions"] and "lamda=" in r["options"] for r in rows)
    from PIL import Image

    assert Image.open(written[".png"]).size[0] > 500
    table.main(flags)
    again = capsys.readouterr().out
    assert "/5]" not in again and again == out[out.index("# Tiny") :]


def test_dry_run_prints_commands_that_run(tiny, capsys):
    table.main([*tiny(), "--dry_run"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9 and lines[0].startswith("python -u project/teacher.py --dataset Digits --model ResNet8 --seed 0")
    command = [sys.executable, *lines[0].split()[1:]]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
    table.main([*tiny(), "--dry_run"])
    assert len(capsys.readouterr().out.splitlines()) == 8  # the teacher is there now


def test_a_failing_run_says_why_and_the_others_go_on(tiny, capsys):
    with pytest.raises(table.RunError, match=r"3 of 5 runs failed"):
        table.main([*tiny(student="LeNet5", seeds="[1]"), "--jobs", "2"])  # no 8 x 8 pixels for LeNet5
    out = capsys.readouterr().out
    assert "CE.py: LeNet5 cannot take 1x8x8 images" in out and "| teacher" in out and "DCGAN ResNet8 on Digits, seed 1" in out
    ce = next(line for line in out.splitlines() if line.startswith("| CE"))
    assert "failed: CE.py: LeNet5 cannot take" in ce and "--img_size 16" in ce


def test_what_waits_for_a_failed_run_is_not_run(tiny, capsys):
    with pytest.raises(table.RunError, match="runs failed"):
        table.main([*tiny(more="device = 'cuda:9'\n", seeds="[0]"), "--jobs", "2"])  # of scripts.teacher
    assert "not run, teacher ResNet8 seed 0 failed" in capsys.readouterr().out


def result(accuracy, **more):
    return {
        "line": "a run",
        "sources": {},
        "accuracy": accuracy,
        "best": accuracy,
        "agreement": 90.0,
        "teacher_kl": 0.1,
        "ece": 2.0,
        "queries": 1000,
        "private": 10,
        "synthetic": 990,
        "bytes": 4e6,
        "seconds": 30.0,
        "versions": {},
        "options": {"weights_init": "torch"},
    } | more


def start(command):
    """The process of a command, which takes SIGINT although one that a shell's `&` started, and so all its children, ignores it."""
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **how)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_table_stops_its_runs_and_goes_on(number, tiny):
    command = [sys.executable, "-u", str(ROOT / "project" / "table.py"), *tiny()]
    process = start(command)
    process.stdout.readline()
    time.sleep(1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "stopped; finished runs are kept, run the same command to continue" in err and err.count("\n") == 1
    assert not processes_of(tiny.home)


# ---- children, and processes of others

ONE = """
title = "One row"
dataset = "Digits"
pairs = ["ResNet8 -> ResNet8"]
seeds = [0]
rows = [{ name = "CE", script = "CE" }]
[options]
lamda = 0.2
epochs = 1
[scripts.teacher]
epochs = 15
"""


@pytest.fixture
def one(tiny):
    """one(*flags): the command of a table of two runs in a process; its first takes some seconds."""
    started = []

    def start_one(*flags):
        tiny()
        (tiny.home / "tiny.toml").write_text(ONE)
        command = [sys.executable, "-u", str(ROOT / "project" / "table.py"), *tiny.flags, *flags]
        started.append(start(command))
        return started[-1]

    tiny.flags = [str(tiny.home / "tiny.toml"), "--checkpoints_dir", str(tiny.home / "c"), "--logs_dir", str(tiny.home / "l")]
    start_one.home, start_one.folder = tiny.home, tiny.home / "c/teacher/Digits/ResNet8/seed0"
    start_one.log = tiny.home / "l/teacher/Digits/ResNet8/seed0/output.log"
    yield start_one
    for process in started:
        process.kill()
        process.communicate()
    for pid in processes_of(tiny.home):
        os.kill(pid, signal.SIGKILL)


def processes_of(home):
    """The ids of the scripts that run with this home; of tables none."""
    found = subprocess.run(["pgrep", "-f", f"project/[A-Za-z]*[.]py.*{home}"], capture_output=True, text=True).stdout.split()
    commands = {int(pid): Path(f"/proc/{pid}/cmdline") for pid in found}
    return [pid for pid, path in commands.items() if path.exists() and b"table.py" not in path.read_bytes()]


def wait_until(so, seconds=60):
    until = time.monotonic() + seconds
    while not (found := so()):
        assert time.monotonic() < until, "it does not happen"
        time.sleep(0.05)
    return found


def test_runs_of_a_killed_table_save_and_end_and_it_goes_on(one):
    process = one()
    wait_until(lambda: one.log.exists() and "epoch 1" in one.log.read_text().replace("epoch  ", "epoch "))
    process.kill()
    wait_until(lambda: not processes_of(one.home), 15)
    assert "stopped by SIGTERM" in one.log.read_text()
    out, err = one().communicate(timeout=120)
    assert "[2/2]" in out and "goes on after epoch" in one.log.read_text() and err == ""


def test_a_run_of_another_process_is_waited_for_and_its_result_taken(one):
    from common.earlier import is_locked

    command = one("--dry_run").communicate()[0].splitlines()[0].split()[1:]
    other = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: is_locked(one.folder))
        other.send_signal(signal.SIGSTOP)
        process = one()
        assert "teacher ResNet8 seed 0 waits for another process that runs it" in process.stdout.readline()
        time.sleep(1)  # it says so once
        other.send_signal(signal.SIGCONT)
        out, err = process.communicate(timeout=120)
    finally:
        other.kill()
        other.wait()
    assert "teacher ResNet8 seed 0 started" not in out and "[2/2]" in out and "waits" not in out and err == "" and not one.log.exists()


def test_the_second_ctrl_c_ends_runs_at_once(one):
    process = one()
    process.stdout.readline()
    (pid,) = wait_until(lambda: processes_of(one.home))
    os.kill(pid, signal.SIGSTOP)  # it cannot save
    process.send_signal(signal.SIGINT)
    assert "1 runs save and stop; Ctrl-C again ends them at once" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1 and "run the same command to continue" in err and err.count("\n") == 1 and not processes_of(one.home)


@pytest.fixture
def task(tmp_path):
    """A task whose log holds the output of an earlier attempt."""
    log = tmp_path / "output.log"
    log.write_text("CE.py: an old error\n")
    (tmp_path / "c").mkdir()
    return runner.Task("CE", {}, CE.Args(), tmp_path / "c", log, begins=log.stat().st_size, state="running")


@pytest.mark.parametrize("output, status, words", [
    ("epoch 1: 3 %\nCE.py: no images\nlast words\n", 1, "CE.py: no images (status 1, {log})"), ("epoch 1: 3 %\n\n", 1, "epoch 1: 3 % (status 1, {log})"), ("", 1, "no output (status 1, {log})"),
    ("epoch 1: 3 %\n", -9, "it was ended by signal 9 (Killed) after: epoch 1: 3 % ({log})"), ("", -15, "it was ended by signal 15 (Terminated) ({log})"), ("all is well\n", 0, "all is well (status 0, {log})"),
])  # fmt: skip
def test_the_reason_of_a_failure_is_of_the_runs_own_output(output, status, words, task):
    with open(task.log, "a") as f:
        f.write(output)
    runner.finish_task(task, status)
    assert task.state == "failed" and task.why == words.format(log=task.log)


def test_a_run_that_finds_its_folder_locked_waits(task, monkeypatch, tmp_path):
    flags = ["--dataset", "Digits", "--checkpoints_dir", str(tmp_path / "k"), "--logs_dir", str(tmp_path / "l")]
    folder = tmp_path / "k/CE/Digits/ResNet8/seed0"
    folder.mkdir(parents=True)
    monkeypatch.setattr("common.record.LOCK_WAIT", 0)
    with FileLock(folder / ".lock"), pytest.raises(UsageError, match=runner.BUSY) as e:
        CE.main(flags)
    with open(task.log, "a") as f:
        f.write(f"CE.py: {e.value}\n")
    all_runs = runner.Runner([task], 1)
    ended = subprocess.Popen([sys.executable, "-c", "raise SystemExit(2)"], stdin=subprocess.PIPE)
    ended.wait()
    all_runs.running[0] = task, ended
    all_runs.collect()
    assert task.state == "waiting" and not task.why and not all_runs.running and ended.stdin.closed


def test_a_run_that_cannot_be_started_fails_alone(task, monkeypatch):
    task.log, task.state = task.log / "no folder" / "output.log", "missing"
    all_runs = runner.Runner([task], 1)
    all_runs.run()
    assert task.state == "failed" and "it could not be started: " in task.why and "Not a directory" in task.why


def test_a_damaged_result_fails_its_run_alone(tiny, capsys):
    filled(tiny, CE=[90, 91], KD=[92, 93])
    (tiny.home / "c/CE/Digits/ResNet8/seed0/result.json").write_text("{")
    with pytest.raises(table.RunError, match="1 of 9 runs failed, first CE ResNet8 seed 0: .*result.json is truncated"):
        table.main([*tiny(), "--show"])
    out = capsys.readouterr().out
    assert "91.00 (1 of 2 seeds; failed: " in out and "92.50 ± 0.71" in out


# ---- the printed table and its files


def test_an_ascii_terminal_shows_a_table(tiny):
    filled(tiny, CE=[90, 91], KD=[92, 93])
    plain = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, str(ROOT / "project" / "table.py"), *tiny(), "--show"]
    done = subprocess.run(command, capture_output=True, env=os.environ | plain)
    assert done.returncode == 0 and done.stderr == b"" and b"92.50 +- 0.71" in done.stdout
    assert "92.50 ± 0.71" in (tiny.home / "l/tables/tiny.md").read_text(encoding="utf-8")
    assert "$\\pm$" in (tiny.home / "l/tables/tiny.tex").read_text(encoding="utf-8")


def test_what_cannot_be_written_is_said_after_the_table(tiny, capsys, monkeypatch):
    filled(tiny, CE=[90, 91], KD=[92, 93])
    (tiny.home / "l").write_text("a file")
    with pytest.raises(table.RunError, match="^not all files of the table are written: cannot write in .*/l/tables: "):
        table.main([*tiny(), "--show"])
    assert "92.50 ± 0.71" in capsys.readouterr().out
    (tiny.home / "l").unlink()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("common.utils.os.fsync", full)
    with pytest.raises(table.RunError, match=r"^not all files of the table are written: could not save .*tiny.md: No space left on device"):
        table.main([*tiny(), "--show"])
    assert "92.50 ± 0.71" in capsys.readouterr().out and not list((tiny.home / "l/tables").iterdir())


def test_any_title_and_name_can_be_drawn_and_written(tiny):
    filled(tiny, CE=[90, 91], KD=[92, 93])
    flags = tiny()
    path = tiny.home / "tiny.toml"
    path.write_text(path.read_text().replace("Tiny & quick", "$\\\\frac{ 100 %").replace('name = "CE"', 'name = "$x_{ ~^ # & <|>"'))
    path = path.rename(tiny.home / "v1.2.toml")
    table.main([str(path), *flags[1:], "--show"])
    written = {p.name: p for p in (tiny.home / "l/tables").iterdir()}
    assert set(written) == {"v1.2.md", "v1.2.tex", "v1.2.csv", "v1.2.png"}
    assert "\\$x\\_\\{ \\textasciitilde{}\\textasciicircum{} \\# \\& <|>" in written["v1.2.tex"].read_text()


def test_the_pictures_axis_has_numbers(tiny, monkeypatch):
    from common import pictures

    labels = []

    def look(fig, path, dpi):
        fig.canvas.draw()
        labels.extend(t.get_text() for which in ("major", "minor") for t in fig.axes[0].xaxis.get_ticklabels(which=which))
        pictures.save_figure(fig, path, dpi)

    monkeypatch.setattr(charts, "save_figure", look)
    filled(tiny, CE=[90, 91], KD=[92, 93])
    table.main([*tiny(), "--show"])
    assert "1,000" in labels and not any("math" in label or "$" in label for label in labels)


def test_show_runs_nothing_and_compares_with_the_paper(tiny, capsys, monkeypatch):
    pair = {"dataset": "Digits", "teacher": "ResNet8", "student": "ResNet8"}
    sure = pair | {"confidence": "A", "source": "Table 1"}
    rows = [{"paper": "ours", "method": "KD", "value": 90.0} | sure, {"paper": "other", "method": "CE", "value": 1.0} | sure]
    for reader in (csv_files, beside_published):
        monkeypatch.setattr(reader, "read_published", lambda: rows)
    folder = tiny.home / "c" / "KD" / "Digits" / "ResNet8_to_ResNet8"
    for seed, accuracy in enumerate((91.0, 92.0)):
        save_json(folder / f"seed{seed}" / "result.json", result(accuracy))
    table.main([*tiny(paper="ours"), "--show"])
    first, _, second = capsys.readouterr().out.partition("Published numbers beside ours")
    lines = lines_of(first)
    got = dict(zip(lines["method"], lines["KD"], strict=True))
    assert got == {
        "response": "soft", "accuracy (last), %": "91.50 ± 0.71", "best": "91.50 ± 0.71", "agreement": "90.00 ± 0.00", "KL to teacher": "0.100 ± 0.000",
        "ECE, %": "2.0 ± 0.0", "queries": "1,000", "images sent": "10 private + 990 synthetic", "MB sent": "4.0", "minutes": "0.50",
    }  # fmt: skip
    assert list(lines_of(second)) == ["method", "KD"]
    assert lines_of(second)["KD"] == [
        "90.00",
        "ours: KD",
        "A: Table 1",
        "91.50 ± 0.71 (2)",
        "**+1.50 [-4.85, +7.85]**",
    ]  # t(0.975, 1) * 0.5
    assert dict(zip(lines["method"], lines["CE"], strict=True))["accuracy (last), %"] == "(not run)"


@pytest.mark.parametrize(
    "name, words",
    [("digit", r"no table 'digit' \(did you mean digits\?\); there are: .*digits"), ("/nowhere.toml", "no file /nowhere.toml")],
)
def test_unknown_tables(name, words):
    with pytest.raises(UsageError, match=words):
        table.main([name])


@pytest.mark.parametrize(
    "argv, words",
    [
        ([], "no table given; there are: .*digits"),
        (["digits", "--job", "2"], "did you mean --jobs"),
        (["digits", "--jobs", "0"], "--jobs 0: it must be at least 1 and at most 1024"),
        (["digits", "--seeds", "0"], "--seeds 0: it must be at least 1"),
        (["digits", "--seeds", "-1"], "--seeds -1: it must be at least 1"),
        (["digits", "--seeds", "10001"], "--seeds 10001: .* at most 10000"),
        (["digits", "--seeds", ""], r"--seeds '': it must be a number of seeds \(3 is 0, 1, 2\), a range"),
        (["digits", "--seeds", "²"], "--seeds '²': it must be a number of seeds"),
        (["digits", "--seeds", "9" * 5000], "--seeds '9+...9+': it must be a number of seeds"),
        (["digits", "--seeds", "4-0"], "--seeds '4-0': the range 4-0 is empty; give 0-4"),
        (["digits", "--seeds", "0,,2"], "--seeds '0,,2': it must be a number of seeds"),
        (["digits", "--seeds=-3-5"], "--seeds '-3-5': it must be a number of seeds"),
        (["digits", "--seeds", "0-1.5"], "--seeds '0-1.5': it must be a number of seeds"),
        (["digits", "--seeds", "0-9999999999"], "--seeds .*: seed 9999999999 is too large; the largest is 4294967295"),
        (["digits", "--seeds", "5-20000"], "--seeds 19996: .* at most 10000"),
        (["digits", "--engine", "make"], r"--engine: invalid choice: 'make' \(choose from '?local'?, '?snakemake'?\)"),
        (["digits", "--engine_args", "--executor slurm"], "--engine_args are those of Snakemake; add --engine snakemake"),
        (["digits", "--only", "KDD"], r"no row for --only 'KDD' \(did you mean D?KD\?\); there are: CE"),
        (["digits", "--only", ""], "no row for --only ''; there are: CE"),
        (["digits", "--only", "CE,"], "no row for --only ''; there are: CE"),
        (["digits", "--only", "mekd"], "--only 'mekd': several rows begin so: MEKD soft, MEKD hard; give more of the name"),
        (["digits", "--seeds=--"], "--seeds"),
        (["digits", "--against", ""], "no row for --against ''; there are: CE"),
        (["digits", "--against=--"], "--"),
        (["digits", "--against", "KDD"], r"no row for --against 'KDD' \(did you mean D?KD\?\)"),
        (["digits", "--logs_dir", ""], "--logs_dir '': it must be a folder; leave it out for logs/"),
        (["digits", "--checkpoints_dir="], "--checkpoints_dir '': it must be a folder"),
    ],
)
def test_bad_flags(argv, words, monkeypatch):
    monkeypatch.setattr(table, "Plan", None)  # nothing is planned
    with pytest.raises(UsageError, match=words) as e:
        table.main(argv)
    assert len(str(e.value)) < 1500 and "\n" not in str(e.value)


@pytest.mark.parametrize("change, words", {
    'colour = 1': "colour is an unknown key; there are: like, title", 'dataset = 3 3': "tiny.toml: Expected newline", 'title = true': "title is True: it must be a text",
    'title = "a\\nb"': r"title is 'a\\nb': it contains the character '\\n'", 'dataset = 5': "dataset is 5: it must be a text", 'dataset = "MNITS"': r"dataset: no data set 'MNITS' \(did you mean MNIST\?\)",
    'private = "x"': "private: no data set 'x'", 'paper = "MEKT"': r"paper: no paper 'MEKT' \(did you mean MEKD\?\)", 'pairs = []': "pairs is .*: it must be a list of one or more pairs",
    'pairs = "x"': "pairs is 'x': it must be a list", 'pairs = [3]': r"pairs\[0\] is 3: it must be a text", 'pairs = ["ResNet8"]': "'ResNet8' is not of the form 'ResNet32 -> ResNet8'",
    'pairs = ["ResNet8 -> ResNet9"]': r"pairs\[0\]: no model 'ResNet9' \(did you mean", 'pairs = ["ResNet8 -> ResNet14", "resnet8->ResNet14"]': "pairs has .* twice",
    'seeds = "3"': "seeds is '3': it must be a list of one or more seeds", 'seeds = []': "seeds is", 'seeds = [-1]': r"seeds\[0\] is -1: it must be at least 0", 'seeds = [4294967296]': "at most 4294967295",
    'seeds = [true]': r"seeds\[0\] is True: it must be a whole number", f'seeds = [{hex(16**5000)}]': "too long to show", f'seeds = [{"9" * 5000}]': "4300 digits", 'seeds = [1, 0, 1]': "seeds has 1 twice",
    'rows = 3': "rows is 3: it must be a list of one or more rows", 'rows = [3]': r"rows\[0\] is 3: it must be a table with the keys name, script", 'rows = [{ script = "KD" }]': r"rows\[0\].name is missing",
    'rows = [{ name = "x", script = "XX" }]': r"rows\['x'\].script: no script 'XX'", 'rows = [{ name = "x", script = "table" }]': "no script 'table'", 'rows = [{ name = "x", skript = "KD" }]': r"rows\['x'\].skript is an unknown key",
    'rows = [{ name = "x", script = "KD" }, { name = "x", script = "CE" }]': "rows has 'x' twice", 'rows = [{ name = " ", script = "KD" }]': "' ' is no name", 'rows = [{ name = "teacher", script = "CE" }]': "another row 'teacher', of teacher.py",
    'rows = [{ name = "x", script = "KD", options = 3 }]': r"rows\['x'\].options is 3: it must be a table of options", 'rows = [{ name = "x", script = "KD", options = { t = [1] } }]': r"rows\['x'\].options.t is \[1\]: it must be a text, a number",
    'rows = [{ name = "x", script = "KD", options = { t = nan } }]': "options.t is nan: it must be a finite number", 'rows = [{ name = "x", script = "KD", options = { help = true } }]': "'help' is no option",
    'rows = [{ name = "x", script = "KD", options = { "" = 1 } }]': "'' is no option", 'rows = [{ name = "x", script = "KD", options = { seed = 3 } }]': r"rows\['x'\]: KD.py: --seed is 3, and a table sets it itself \(0\)",
    'rows = [{ name = "x", script = "KD", options = { student = "ResNet14" } }]': "--model is ResNet14, and a table sets it", 'rows = [{ name = "x", script = "KD", options = { dry-run = true } }]': "--dry_run is True, and a table",
    'rows = [{ name = "x", script = "KD", alone = 1 }]': "alone is 1: it must be true or false", 'rows = [{ name = "x", script = "KD", alone = true, needs = ["DCGAN"] }]': "alone does not go with needs",
    'rows = [{ name = "x", script = "MEKD", needs = "DCGAN" }]': "needs is 'DCGAN': it must be a list of one or more scripts", 'rows = [{ name = "x", script = "MEKD", needs = ["MEKD"] }]': "the row's own script MEKD",
    'rows = [{ name = "x", script = "AEAHL", reuse = { pair = "ResNet8 -> ResNet8" } }]': "reuse.row is missing", 'rows = [{ name = "x", script = "AEAHL", reuse = { row = "x" } }]': "in a circle: 'x' -> 'x'",
    'rows = [{ name = "x", script = "KD", labels = "y" }, { name = "y", script = "KD", labels = "x" }]': "in a circle: 'x' -> 'y' -> 'x'|in a circle: 'y' -> 'x' -> 'y'", 'rows = [{ name = "x", script = "KD", published = "KDD" }]': "no method in published.csv 'KDD'",
    'rows = [{ name = "x", script = "KD", published = "DIP-KD: KD" }]': r"rows\['x'\].published: no method of DIP-KD in published.csv 'KD'.*; there are: teacher, Noise KD", 'rows = [{ name = "x", script = "KD", published = { ResNet8 = "KD" } }]': "a key of rows.* 'ResNet8' is not of the form",
    'rows = [{ name = "x", script = "KD", published = { "ResNet8 -> ResNet8" = ["KD", "KD"] } }]': r"published.ResNet8 -> ResNet8 has 'KD' twice", 'teacher_published = 3': "teacher_published is 3: it must be a text", 'findings = "x"': "findings is 'x': it must be a list of one or more sentences", 'findings = ["a\\u0007b"]': r"findings\[0\] is ", 'findings = [3]': r"findings\[0\] is 3: it must be a text",
    'against = "KN"': "against: no row 'KN'; there are: CE, KD", 'against = 1': "against is 1: it must be a text", 'budgets = [0]': r"budgets\[0\] is 0: it must be at least 1", 'budgets = 5': "budgets is 5", 'like = 5': "like is 5: it must be a text",
    'like = "digts"': r"no table 'digts' \(did you mean digits\?\)", 'options = 3': "options is 3", 'scripts = { KX = { t = 1 } }': "a key of scripts: no script 'KX'; there are: AEAHL", 'scripts = { KD = 3 }': "scripts.KD is 3: it must be a table of options",
}.items(), ids=lambda v: v[:60])  # fmt: skip
def test_a_wrong_table_is_one_line(change, words, tmp_path):
    """Each change replaces the key of a table that is right."""
    key = change.split(" = ")[0]
    table_as_is = {
        "title": '"x"',
        "dataset": '"Digits"',
        "pairs": '["ResNet8 -> ResNet8"]',
        "seeds": "[0]",
        "rows": '[{ name = "CE", script = "CE" }, { name = "KD", script = "KD" }]',
    }
    text = "\n".join([*(f"{k} = {v}" for k, v in table_as_is.items() if k != key), change])
    (tmp_path / "tiny.toml").write_text(text)
    with pytest.raises(UsageError, match=words) as e:
        table.main([str(tmp_path / "tiny.toml"), "--dry_run"])
    assert "\n" not in str(e.value) and len(str(e.value)) < 1500 and str(tmp_path / "tiny.toml") in str(e.value)


@pytest.mark.parametrize("make, words", {
    lambda p: p.write_bytes(b'title = "x"\n# \xff'): "line 2: found the byte 0xff, expected UTF-8 text", lambda p: p.mkdir(): "is a folder, not a file", os.mkfifo: "is a pipe, not a file",
    lambda p: p.symlink_to("nowhere"): "is a link to nowhere, which does not exist", lambda p: p.write_text("a = " + "[" * 5000): "too many brackets", lambda p: p.write_text("a" + ".a" * 5000 + " = 1"): "a is an unknown key",
}.items(), ids="bytes folder pipe link brackets dots".split())  # fmt: skip
def test_what_is_no_table_is_named(make, words, tmp_path):
    make(tmp_path / "x.toml")
    with pytest.raises(UsageError, match=words):
        table.main([str(tmp_path / "x.toml"), "--show"])


def test_a_result_of_other_settings_is_not_the_tables(tiny, capsys):
    save_json(tiny.home / "c/CE/Digits/ResNet8/seed0/result.json", result(99.0, options={"epochs": 7, "lamda": 0.2}))
    with pytest.raises(table.RunError, match=r"holds a run with --epochs 7 \(now 1\)"):
        table.main([*tiny(), "--show"])
    assert "99.00" not in capsys.readouterr().out


@pytest.mark.parametrize("gone", [False, True])
def test_a_student_of_a_replaced_teacher_is_not_the_tables(gone, tiny, capsys, in_process):
    """The teacher is trained again, by hand or by the table itself, and is another one: its students are not shown beside it."""
    args = tiny(seeds="[0]")
    path = tiny.home / "tiny.toml"
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if "MEKD" not in line))
    table.main(args)
    path.write_text(path.read_text().replace("epochs = 4", "epochs = 5"))
    if gone:
        shutil.rmtree(tiny.home / "c/teacher")
    else:
        places = {"checkpoints_dir": tiny.home / "c", "logs_dir": tiny.home / "l"}
        importlib.import_module("teacher").main(flags(dataset="Digits", model="ResNet8", epochs=5, lamda=1.0, overwrite=True, **places))
    words = r"1 of 3 runs failed, first KD .* holds a run with \S*/teacher.pt \(changed since\); .*--overwrite"
    for more in ([], ["--show"]):
        capsys.readouterr()
        with pytest.raises(table.RunError, match=words):
            table.main([*args, *more])
        rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("| KD", "| CE"))]
        assert "failed: " in next(line for line in rows if line.startswith("| KD")) and not any("failed" in r for r in rows if "| CE" in r)
    shutil.rmtree(tiny.home / "c/teacher")  # a source that is not there is not compared
    table.main([*args, "--show"])


def test_rows_that_would_share_a_folder_are_refused(tmp_path):
    text = TINY.format(student="ResNet8", paper="", seeds="[0, 1]").replace(
        "rows = [", 'rows = [\n  { name = "KD 2", script = "KD", options = { t = 2 } },'
    )
    (tmp_path / "tiny.toml").write_text(text)
    with pytest.raises(UsageError, match=r"--temperature 2.0 \(now 5.0\); give one of them a tag"):
        table.main([str(tmp_path / "tiny.toml"), "--dry_run"])


def test_a_wrong_option_is_said_before_anything_runs(tiny):
    with pytest.raises(UsageError, match="--batch_size 0: it must be at least 1"):
        table.main(tiny(more="batch_size = 0\n"))


@pytest.mark.parametrize("path", sorted((ROOT / "tables").glob("*.toml")), ids=lambda p: p.stem)
def test_every_table_of_the_house_can_be_planned(path, tmp_path, capsys):
    table.main([path.stem, "--dry_run", "--checkpoints_dir", str(tmp_path)])
    assert capsys.readouterr().out.count("python -u project/") >= 4


def test_published_numbers_are_numbers_with_a_source():
    rows = list(csv.DictReader((ROOT / "tables" / "published.csv").open()))
    assert len(rows) > 300
    assert all(0 < float(r["value"]) <= 100 and r["confidence"] in "ABCD" and r["source"] and r["paper"] and r["method"] for r in rows)
    known = {(r["paper"], r["dataset"], r["teacher"], r["student"], r["method"]): r["value"] for r in rows}
    assert known["logit KD tables", "CIFAR100", "ResNet56", "ResNet20", "KD"] == "70.66"
    assert known["AEAHL-RG", "CIFAR10", "VGG11_BN", "ResNet18", "AEAHL-RG"] == "91.24"
    assert known["MEKD", "ImageNet", "ResNet50", "ResNet34", "MEKD soft"] == "59.89"


@pytest.mark.parametrize("change, words", [
    (("runs,confidence", "runs"), "line 1: found no column confidence, expected paper, dataset"), (("paper,", "papers,"), "line 1: found the unknown column 'papers', expected paper"),
    (("70.66,", "70.66.,"), r"line \d+, column value: found '70.66.', expected a number from 0 to 100"), (("70.66,", "nan,"), "column value: found 'nan', expected a number"),
    (("70.66,", "170.66,"), "column value: found '170.66', expected a number from 0 to 100"), (("70.66,", ","), "column value: found '', expected a number"), (("70.66,", "70.66,1,"), r"line \d+: found 12 columns, expected 11 as in line 1"),
    (("70.66,,,", "70.66,0.3,,"), r"line \d+: found error, expected all of error, runs or none"), (("70.66,,,", "70.66,0.3,1,"), "column runs: found '1', expected a whole number of at least 2"),
    (("ResNet20,KD,70.66,,,A,", "ResNet20,KD,"), r"line \d+: found 7 columns, expected 11 as in line 1"), (("70.66,,,A", "70.66,,,E"), "column confidence: found 'E', expected one of A, B, C, D"),
    (("ResNet56,ResNet20,DKD,", "ResNet56,ResNet20,KD,"), r"line \d+: found the paper, dataset, teacher, student, method of line \d+ again, expected others"), (("70.66", '"70.66'), "found .*, expected "),
])  # fmt: skip
def test_a_wrong_published_number_is_named(change, words, tmp_path, monkeypatch):
    text = (ROOT / "tables/published.csv").read_text()
    assert change[0] in text
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables/published.csv").write_text(text.replace(*change, 1))
    monkeypatch.setattr(csv_files, "ROOT", tmp_path)
    with pytest.raises(UsageError, match=f"tables/published.csv, {words}|tables/published.csv, line .*{words}"):
        csv_files.read_published()


MEASURED = (
    "method,pair,seed,needs,accuracy,best,ece,queries,private,mixed,public,synthetic,bytes,synthetic_median,private_median,closer,seconds,peak_mb,"
    "device,versions,options\n"
    'teacher,ResNet20 -> ResNet8,0,,97.2,97.4,1.6125,0,0,0,0,0,0,,,,11.5,834,"CPU, 1 thread",torch 2.15.0,dataset=Digits img_size=0\n'
)


@pytest.mark.parametrize("change, words", [
    (("ResNet20 -> ResNet8,0", "ResNet20 -> ResNet8,zero"), "line 2, column seed: found 'zero', expected a whole number from 0 to 4294967295"), (("ResNet20 -> ResNet8,0", "ResNet20,0"), "line 2, column pair: found 'ResNet20', expected a pair"),
    ((",97.2,97.4,", ",x,97.4,"), "line 2, column accuracy: found 'x', expected a number from 0 to 100"), (("11.5,834", ",834"), "line 2, column seconds: found '', expected a number of at least 0"),
    (("dataset=Digits", "dataset"), "line 2, column options: found .*, expected options as name=value"), (("dataset=Digits", "'dataset=Digits"), "column options"), ((",peak_mb", ",peak"), "found the unknown column 'peak'"),
    ((",0,0,0,0,0,0,,,,11.5", ",0,0,0,0,0,0,1.5,,,11.5"), "line 2: found synthetic_median, expected all of synthetic_median, private_median, closer or none"),
])  # fmt: skip
def test_a_wrong_measured_number_is_named(change, words, tmp_path):
    text = MEASURED
    assert change[0] in text
    (tmp_path / "x.csv").write_text(text)
    assert len(csv_files.read_measured(tmp_path / "x.csv")) == 1
    (tmp_path / "x.csv").write_text(text.replace(*change, 1))
    with pytest.raises(UsageError, match=f"x.csv, (line 1: )?{words}|x.csv, line .*{words}"):
        csv_files.read_measured(tmp_path / "x.csv")
    (tmp_path / "x.csv").write_text(text.splitlines(keepends=True)[0])
    with pytest.raises(UsageError, match="x.csv: found no rows, expected one or more"):
        csv_files.read_measured(tmp_path / "x.csv")


@pytest.mark.parametrize("change, words", [
    ({"accuracy": "high"}, "its accuracy is of type str"), ({"accuracy": float("nan")}, "accuracy is nan: it must be a finite number"), ({"copying": {"closer": 1}}, "copying.private_median is missing|copying.synthetic_median is missing"),
    ({"fewshot": {"last": {"1shot": 50.0, "5shot": [1, 2]}}}, "fewshot.last.1shot is 50.0: it must be a list of 2 values"), ({"bytes": 10**400}, "bytes is 1.*: it must be a number"),
])  # fmt: skip
def test_a_result_that_cannot_be_shown_fails_its_run(change, words, tiny):
    save_json(tiny.home / "c/CE/Digits/ResNet8/seed0/result.json", result(90) | change)
    with pytest.raises(table.RunError, match=f"1 of 9 runs failed, first CE ResNet8 seed 0: .*result.json: ({words})"):
        table.main([*tiny(), "--show"])


def test_a_page_of_measured_numbers_needs_its_table_and_its_pairs(tmp_path, monkeypatch):
    folder = tmp_path / "tables/measured"
    folder.mkdir(parents=True)
    (folder / "nothing-cpu.csv").write_text((ROOT / "tables/measured/digits-cpu.csv").read_text())
    monkeypatch.setattr(results, "ROOT", tmp_path)
    with pytest.raises(UsageError, match="nothing-cpu.csv: no table tables/nothing.toml"):
        results.Measured("nothing-cpu")
    (folder / "nothing-cpu.csv").rename(folder / "digits-cpu.csv")
    with pytest.raises(UsageError, match="no pair in digits-cpu.csv 'ResNet8 -> ResNet8'.*; there are: ResNet20 -> ResNet8"):
        results.filled("<!-- measured: digits-cpu; pair: ResNet8 -> ResNet8 -->\n<!-- end -->")


def test_the_speed_of_a_gpu_is_no_table(tmp_path, monkeypatch):
    folder = tmp_path / "tables/measured"
    folder.mkdir(parents=True)
    (tmp_path / "README.md").write_text("")
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(results.beside, "page", lambda: "")
    (folder / "gpu-speed.csv").write_text("what,net\nKD,ResNet8\n")
    assert {p.name for p in results.pages()} == {"released.md", "README.md"}


def test_what_a_table_writes_is_read_again(tiny):
    more = {
        "copying": {"synthetic_median": 2.5, "private_median": 1.5, "closer": 0.01},
        "fewshot": {"last": {"1shot": [50.0, 0.2], "5shot": [70.0, 0.1]}},
    }
    save_json(
        tiny.home / "c/CE/Digits/ResNet8/seed0/result.json",
        result(
            90.123456,
            **more,
            needs="hard",
            device="CPU, 1 thread",
            versions={"torch": "2"},
            options={"lamda": 0.2, "weights_init": "torch"},
        ),
    )
    table.main([*tiny(), "--show"])
    (row,) = csv_files.read_measured(tiny.home / "l/tables/tiny.csv")
    assert (row["accuracy"], row["seed"], row["pair"], row["device"]) == (90.1235, 0, "ResNet8 -> ResNet8", "CPU, 1 thread")
    assert (row["synthetic_median"], row["5shot_half"], row["versions"], "top5" in row) == (2.5, 0.1, "torch 2", False)


# ---- is a difference chance?


def filled(tiny, **accuracies):
    """Results of all seeds of rows CE and KD, one accuracy each; the table's lines by row."""
    for name, folder in (("CE", "ResNet8"), ("KD", "ResNet8_to_ResNet8")):
        for seed, accuracy in enumerate(accuracies.get(name, [])):
            save_json(tiny.home / "c" / name / "Digits" / folder / f"seed{seed}" / "result.json", result(accuracy))


def lines_of(out):
    return {line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in out.splitlines() if line.startswith("| ")}


def test_only_a_winner_that_chance_cannot_explain_is_bold(tiny, capsys):
    better = [90 + 0.1 * i for i in range(6)]
    filled(tiny, CE=better, KD=[a - 1 for a in better])
    table.main([*tiny(), "--show", "--seeds", "6"])
    out = capsys.readouterr().out
    got = dict(zip(lines_of(out)["method"], lines_of(out)["CE"], strict=True))
    assert got["accuracy (last), %"] == "**90.25 ± 0.19**" and got["against KD"] == "+1.00 [+1.00, +1.00]" and got["p"] == "0.031"
    assert "cannot tell" not in out and "\\textbf{90.25" in (tiny.home / "l/tables/tiny.tex").read_text()
    table.main([*tiny(), "--show", "--seeds", "6", "--against", "ce"])
    out = capsys.readouterr().out
    assert "**" not in out and "-1.00 [-1.00, -1.00]" in out  # a significant loser is not bold


def test_too_few_seeds_are_said(tiny, capsys):
    filled(tiny, CE=[95, 96], KD=[90, 91])
    table.main([*tiny(), "--show"])
    out = capsys.readouterr().out
    assert "2 seeds are too few to test at 5 % (1 comparisons, Holm): use --seeds 6." in out and "**" not in out


def test_a_row_with_fewer_seeds_than_others_says_so():
    """In a measured table, whose rows need not have the same seeds. The teacher is one run for all seeds."""

    def run(accuracy, response="soft"):
        return SimpleNamespace(result={"accuracy": accuracy, "options": f"teacher=A response={response}"}, state="done", why="", args=None)

    cells = {("p", "teacher", 0): run(99.0), ("p", "KD", 0): run(91.0), ("p", "KD", 1): run(92.0), ("p", "AM", 1): run(93.0, "topk:3")}
    rows = {row["method"]: (row["accuracy"], row["response"]) for row in report.rows_of(cells, "p", "KD")[0]}
    assert rows == {"teacher": ("99.00", "soft"), "KD": ("91.50 ± 0.71", "soft"), "AM": ("93.00 (1 seed)", "topk:3")}


def test_rows_are_paired_by_seed(tiny, capsys):
    """KD lacks seed 0, so that only seeds 1 and 2 are compared."""
    filled(tiny, CE=[50, 91, 92], KD=[0, 90, 90])
    (tiny.home / "c/KD/Digits/ResNet8_to_ResNet8/seed0/result.json").unlink()
    table.main([*tiny(), "--show", "--seeds", "3"])
    out = capsys.readouterr().out
    assert "+1.50 [" in out and "2 of 3 seeds" in out


# ---- budgets, and the edge's own data set


@pytest.fixture
def in_process(monkeypatch):
    """The runs of a table are calls, which take less time than processes do."""

    def launch(task, jobs, gpu):
        task.state = "running"
        with contextlib.redirect_stdout(io.StringIO()):
            importlib.import_module(task.script).main(flags(**task.options))
        return SimpleNamespace(poll=lambda: 0, returncode=0, stdin=io.BytesIO())

    monkeypatch.setattr(runner, "launch", launch)


def test_more_runs_than_gpus_share_them_evenly(monkeypatch):
    placed = []
    monkeypatch.setattr(runner.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(runner, "launch", lambda task, jobs, gpu: placed.append(gpu))
    table_of = runner.Runner([], 5)
    for ended in ((), (), (), (), (), (0, 1), (), (3, 1)):  # slots 0, 2 and 4 are on the first GPU
        for slot in ended:
            del table_of.running[slot]
        table_of.start(SimpleNamespace(server=None))
    assert placed == [0, 1, 0, 1, 0, 1, 0, 1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5")
    assert [runner.visible_device(gpu) for gpu in (0, 1)] == ["3", "GPU-5"]


def test_budgets_make_a_row_a_curve(tiny, capsys, in_process):
    flags = tiny(more="[scripts.CE]\nepochs = 2\n", seeds="[0, 1]\nbudgets = [40, 80]")
    path = tiny.home / "tiny.toml"
    text = path.read_text()
    path.write_text("".join(line for line in text.splitlines(keepends=True) if "MEKD" not in line))
    table.main([*flags, "--jobs", "2"])
    out = capsys.readouterr().out
    rows = lines_of(out)
    assert rows["method"] == ["40", "80"] and len(rows["KD"]) == 2 and all("±" in c for c in rows["KD"]) and rows["CE"][0] == rows["CE"][1]
    asked = {r["query_budget"]: r["queries"] for r in budgets(tiny)}
    assert asked == {"40": "40", "80": "80"}
    from PIL import Image

    assert Image.open(tiny.home / "l/tables/tiny.png").size[0] > 500


def budgets(tiny):
    for r in csv.DictReader((tiny.home / "l/tables/tiny.csv").open()):
        options = dict(o.split("=", 1) for o in r["options"].split())
        if "query_budget" in options and r["method"].startswith("KD"):
            yield r | options


def test_the_edges_data_set_is_of_every_row(tiny, capsys):
    flags = tiny()
    path = tiny.home / "tiny.toml"
    path.write_text(path.read_text().replace('dataset = "Digits"', 'dataset = "Digits"\nprivate = "USPS"'))
    table.main([*flags, "--dry_run"])
    lines = capsys.readouterr().out.splitlines()
    assert all(
        ("--private USPS" in line) == (script in ("KD", "DCGAN", "MEKD")) for line in lines for script in [line.split("/")[1].split(".")[0]]
    )
    assert any(line.startswith("python -u project/CE.py --dataset USPS") for line in lines)


LABELS = """
like = "db3kd-cpu"
title = "Labels once"
against = "MBD"
dataset = "Digits"
pairs = ["ResNet8 -> ResNet8", "ResNet8 -> ResNet14"]
rows = [
  { name = "MBD 120", script = "DB3KD", options = { sr_mode = "mbd", at = 120, tag = "few" }, labels = "MBD" },
  { name = "MBD", script = "DB3KD", options = { sr_mode = "mbd", tag = "all" }, labels = "MBD" },
]
[options]
lamda = 0.02
epochs = 1
[scripts.teacher]
lamda = 1.0
epochs = 3
[scripts.DB3KD]
budgets = "120,200"
"""


def test_labels_are_bought_by_one_row_and_taken_by_the_others(tmp_path, capsys, in_process):
    (tmp_path / "labels.toml").write_text(LABELS)
    flags = [str(tmp_path / "labels.toml"), "--checkpoints_dir", str(tmp_path / "c"), "--logs_dir", str(tmp_path / "l"), "--seeds", "1"]
    table.main([*flags, "--dry_run"])
    lines = [line for line in capsys.readouterr().out.splitlines() if "DB3KD" in line]
    makers = [line for line in lines if "--transfer" not in line]
    assert len(lines) == 4 and len(makers) == 1 and "--model ResNet8" in makers[0] and "--tag all" in makers[0]
    table.main([*flags, "--jobs", "2"])
    results = {tuple(p.parts[-3:-1]): read_json(p) for p in (tmp_path / "c/DB3KD").rglob("result.json")}
    own = {k[0]: r["own"]["queries"] for k, r in results.items()}
    assert sum(v > 0 for v in own.values()) == 1 and own["ResNet8_to_ResNet8-hard-all"] > 0
    total = {k[0]: r["queries"] for k, r in results.items()}
    assert total["ResNet8_to_ResNet14-hard-few"] == total["ResNet8_to_ResNet8-hard-few"] < total["ResNet8_to_ResNet14-hard-all"]


def test_labels_of_an_unknown_row_are_one_line(tmp_path):
    (tmp_path / "labels.toml").write_text(LABELS.replace('labels = "MBD" },\n]', 'labels = "BD" },\n]'))
    with pytest.raises(UsageError, match=r"rows\['MBD'\].labels: no row 'BD' \(did you mean MBD\?\)"):
        table.main([str(tmp_path / "labels.toml"), "--dry_run"])


def test_tables_that_are_like_each_other_are_one_line(tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.toml").write_text(f'like = "{tmp_path}/{other}.toml"')
    with pytest.raises(UsageError, match="like leads in a circle, by way of a, b"):
        table.main([str(tmp_path / "a.toml"), "--show"])


def test_a_generator_made_by_another_teacher_is_reused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # away from results that this checkout may have
    text = """
like = "aeahl-ablation"
dataset = "Digits"
seeds = [0, 1]
rows = [
  { name = "RG", script = "AEAHL" },
  { name = "reused", script = "AEAHL", options = { mode = "reuse_fix", tag = "fix" }, reuse = { row = "RG", pair = "ResNet20 -> ResNet8" } },
  { name = "again", script = "AEAHL", options = { mode = "reuse_common", tag = "again" }, reuse = { row = "reused" } },
]
pairs = ["ResNet14 -> ResNet8"]
"""
    (tmp_path / "reuse.toml").write_text(text)
    table.main([str(tmp_path / "reuse.toml"), "--dry_run"])
    lines = capsys.readouterr().out.splitlines()
    assert sum("project/teacher.py" in line for line in lines) == 2 and sum("project/AEAHL.py" in line for line in lines) == 2 * 4
    fixed, again = (next(line for line in lines if f"--tag {t}" in line and "--seed 1" in line) for t in ("fix", "again"))
    assert (
        "--teacher ResNet14" in fixed
        and "--reuse_generator_path checkpoints/AEAHL/Digits/ResNet20_to_ResNet8-inside/seed1/generator.pt" in fixed
    )
    assert "--reuse_generator_path checkpoints/AEAHL/Digits/ResNet14_to_ResNet8-inside-fix/seed1/generator.pt" in again
    (tmp_path / "reuse.toml").write_text(text.replace('row = "RG", pair', 'row = "GR", pair'))
    with pytest.raises(UsageError, match=r"rows\['reused'\].reuse.row: no row 'GR'"):
        table.main([str(tmp_path / "reuse.toml"), "--dry_run"])


def test_a_table_starts_its_teachers_server_and_ends_it(tmp_path, capsys, in_process):
    with contextlib.closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    head = 'title = "t"\ndataset = "Digits"\npairs = ["ResNet8 -> ResNet8"]\nseeds = [0]\nrows = [{ name = "KD", script = "KD" }]\n'
    options = "[options]\nlamda = 0.2\nepochs = 1\n[scripts.teacher]\nlamda = 1.0\nepochs = 4\n"
    served = f'[serve]\nport = {port}\noptions = {{ response = "logits", no_join = true }}\nasking = {{ api_input = "float32", audit = "all" }}\n'
    home, accuracies = ["--checkpoints_dir", str(tmp_path / "c"), "--logs_dir", str(tmp_path / "l")], []
    for name, more in (("local", ""), ("api", served)):
        (tmp_path / f"{name}.toml").write_text(head + options + more)
        table.main([str(tmp_path / f"{name}.toml"), *home])
        written = csv.DictReader(io.StringIO((tmp_path / f"l/tables/{name}.csv").read_text()))
        accuracies.append(
            [[r[k] for k in ("method", "accuracy", "best", "ece", "agreement", "teacher_accuracy", "queries")] for r in written]
        )
    assert accuracies[0] == accuracies[1] and len(accuracies[0]) == 2
    with contextlib.closing(socket.socket()) as s:
        assert s.connect_ex(("127.0.0.1", port)) != 0  # nobody listens
    (tmp_path / "api.toml").write_text((head + options + served).replace('script = "KD" }', 'script = "DAFL" }'))
    with pytest.raises(UsageError, match=r"rows\['KD'\]: its method looks inside the teacher, which a server does not show"):
        table.main([str(tmp_path / "api.toml"), *home])
    with contextlib.closing(socket.create_server(("127.0.0.1", port))):  # somebody else has the port
        (tmp_path / "api.toml").write_text(head.replace("seeds = [0]", "seeds = [1]") + options + served)
        with pytest.raises(RunError, match="the server of .* did not start: .*port [0-9]+ of 127.0.0.1 is in use"):
            table.main([str(tmp_path / "api.toml"), *home])
