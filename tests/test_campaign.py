"""Campaigns: slices, kills and another folder change no result; the order, the files that go, what is printed and written."""

from common.cli import UsageError

import csv
import importlib
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import campaign
import pytest
from conftest import ROOT
from filelock import FileLock

from common import csv_files, results
from common.campaign import folder, shown
from common.campaign.book import Book, name_of
from common.campaign.order import in_order
from common.campaign.slices import Campaign, Slice
from common.campaign.speeds import RATE, STEP, USUAL, Speeds, guess, multiplications
from common.checkpoints import identity
from common.options import flags, settings
from common.plan import Plan
from common.tables import read_table
from common.utils import read_json, save_json

TINY = """
title = "Tiny"
paper = ""
dataset = "Digits"
pairs = ["ResNet8 -> ResNet8"]
seeds = [0]
rows = [{{ name = "{row}", script = "{row}" }}]
[options]
lamda = 0.05
epochs = 3
eval_every = 50
device = "cpu"
[scripts.teacher]
epochs = {epochs}
"""


def tables(folder, epochs=150):
    """The paths of two tables, KD and CE, as --tables takes them."""
    for row in ("KD", "CE"):
        (folder / f"tiny-{row}.toml").write_text(TINY.format(row=row, epochs=epochs))
    return ",".join(str(folder / f"tiny-{row}.toml") for row in ("KD", "CE"))


def test_slices_a_kill_and_a_move_change_no_result(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    named, first, second = tables(tmp_path), tmp_path / "first", tmp_path / "second"
    options = ["--tables", named, "--max_mb", "1"]
    command = [sys.executable, str(ROOT / "project" / "campaign.py"), "--folder", str(first), *options, "--minutes", "30"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    teacher = Path("checkpoints/teacher/Digits/ResNet8/seed0")
    while not (first / teacher / "state.pt").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    with FileLock(first / teacher / ".lock", timeout=60):  # the run saves and ends, too
        assert not (first / teacher / "result.json").exists()
    shutil.copytree(first, second)

    campaign.main(["--folder", str(second), *options, "--minutes", "0.1"])
    assert "runs save and stop" in (out := capsys.readouterr().out) and "0 of 2" in out and "are not finished" in out
    assert (second / teacher / "state.pt").exists() and folder.size_of(second) < 1e6

    campaign.main(["--folder", str(second), *options, "--minutes", "30"])
    out = capsys.readouterr().out
    assert "all runs are finished" in out and "| KD " in out and "| CE " in out and folder.size_of(second) < 1e6
    assert not [*second.rglob("state.pt"), *second.rglob("events.out.*"), *second.rglob("output.log")]
    assert "goes on after epoch" not in out and str(first) not in "".join(p.read_text() for p in second.rglob("*.json"))

    monkeypatch.chdir(tmp_path)
    plans = [
        Plan(read_table(path), {"data_dir": "data", "checkpoints_dir": "checkpoints", "logs_dir": "logs"}) for path in named.split(",")
    ]
    tasks = {task.folder: task for plan in plans for task in plan.tasks}
    assert len(tasks) == 3
    for task in tasks.values():  # the commands of table.py
        alone = importlib.import_module(task.script).main(flags(**task.options))
        mine = read_json(second / task.folder / "result.json")
        assert mine.get("files", {}) | mine.get("pruned", {}) == alone["files"]
        assert mine["log"] == alone["log"] and mine["accuracy"] == alone["accuracy"]
    assert sum("pruned" in read_json(path) for path in second.rglob("result.json")) >= 1
    rows = [row for path in (second / "measured").glob("*-cpu.csv") for row in csv.DictReader(path.open())]
    assert {r["method"] for r in rows} == {"teacher", "KD", "CE"}


# ---- the order


def run_of(seconds, *needs, state="missing"):
    return SimpleNamespace(seconds=seconds, needs=list(needs), state=state)


def test_the_order_is_by_rank_then_by_time_with_needs_counted_once():
    teacher = run_of(10)
    a, b, c, d = run_of(1, teacher), run_of(5), run_of(2, teacher), run_of(0)
    done = run_of(9, state="done")
    e = run_of(1.5, done)
    rank = {id(d): (1,)}
    order = in_order([teacher, a, b, c, d, e, done], lambda t: rank.get(id(t), (0,)), lambda t: t.seconds)
    assert order == [e, b, teacher, a, c, d]  # the teacher (10) comes first as itself, then a at 1, c at 2
    order = in_order([a, b, teacher], lambda t: (int(t is teacher),), lambda t: t.seconds)
    assert order == [b, teacher, a]  # 5 < 10 + 1


PUBLISHED = """
title = "Published"
paper = "DB3KD"
dataset = "MNIST"
pairs = ["LeNet5 -> LeNet5_half"]
seeds = [0, 1]
rows = [
  { name = "CE", script = "CE" },
  { name = "KD", script = "KD" },
  { name = "KD hard", script = "KD", options = { response = "hard" } },
]
"""
KD, CE, TEACHER = "KD/MNIST/LeNet5_to_LeNet5_half", "CE/MNIST/LeNet5_half", "teacher/MNIST/LeNet5"


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """planned(limit): a campaign of the table PUBLISHED in an empty working directory, with these speeds: CE 0.1, KD 5, teacher 10."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "published.toml").write_text(PUBLISHED)
    Book({"CPU": {CE: 0.1, KD: 5.0, f"{KD}-hard": 1.0, TEACHER: 10.0}}).save()

    def make(limit=1e9):
        return Campaign({"published": read_table("published.toml")}, "data", limit)

    return make


def tasks_of(campaign):
    return {name_of(task): task for task in campaign.tasks}


def test_published_rows_and_first_seeds_come_first(planned):
    names = [name_of(task) for task in planned().order()]
    assert names[:4] == [f"{TEACHER}/seed0", f"{KD}/seed0", f"{CE}/seed0", f"{KD}-hard/seed0"]  # only KD has a published number
    assert names[4:] == [f"{KD}/seed1", f"{CE}/seed1", f"{KD}-hard/seed1"]


def test_a_run_that_failed_comes_last_and_one_that_has_begun_before_others_of_its_rank(planned):
    begun = Path(f"checkpoints/{KD}-hard/seed0/state.pt")
    begun.parent.mkdir(parents=True)
    begun.touch()
    campaign = planned()
    campaign.book.failed[f"{KD}/seed0"] = "no memory"
    names = [name_of(task) for task in campaign.order()]
    assert names[:3] == [f"{TEACHER}/seed0", f"{KD}-hard/seed0", f"{CE}/seed0"] and names[-1] == f"{KD}/seed0"


def test_speeds_are_measured_else_a_guess_times_the_nearest_ratio(planned):
    tasks = tasks_of(planned())
    kd, hard, ce = (tasks[f"{name}/seed0"] for name in (KD, f"{KD}-hard", CE))
    assert multiplications("LeNet5", 10, (1, 28, 28)) == 2_050_000
    steps = 0.1 * USUAL / 128  # --lamda 0.1 of MNIST at 32 pixels
    work = 3 * multiplications("LeNet5_half", 10, (1, 32, 32)) + multiplications("LeNet5", 10, (1, 32, 32))
    assert guess(kd, False) == pytest.approx(steps * (STEP + 128 * work / RATE[False]))
    speeds = Speeds({KD: 3.0}, [kd, hard, ce], "CPU")
    assert speeds.of(kd) == (3.0, "measured") and speeds.of(hard) == (pytest.approx(3.0), "estimated")
    assert speeds.of(ce) == (pytest.approx(3.0 * guess(ce, False) / guess(kd, False)), "estimated")
    assert Speeds({}, [ce], "CPU").of(ce) == (guess(ce, False), "guessed") and guess(ce, True) < guess(ce, False)


# ---- files


def finish(task, accuracy=90.0, device="CPU, 1 thread", **files):
    """Puts the result of a finished run into its folder, with files of these sizes."""
    for name, size in files.items():
        path = (
            task.folder if name in ("state", "student", "teacher") else task.log.parent
        ) / f"{name}.{'pt' if name != 'log' else 'jsonl'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    nets = {f"{n}.pt": identity(task.folder / f"{n}.pt") for n in files if n in ("student", "teacher")}
    result = {
        "line": "a run",
        "options": settings(task.args),
        "sources": {},
        "accuracy": accuracy,
        "device": device,
        "files": nets,
        "versions": {"torch": "2"},
    }
    save_json(task.folder / "result.json", result | {"seconds": 24.0, "queries": 0, "bytes": 0})
    task.load_result()
    assert task.state == "done", task.why


def files_of(campaign, *names):
    return sorted(str(p) for name in names for p in tasks_of(campaign)[name].folder.glob("*.pt"))


def test_files_go_in_order_and_never_one_that_a_later_run_needs(planned):
    campaign = planned()
    tasks = tasks_of(campaign)
    teacher, ce, kd, other = (tasks[f"{name}/seed0"] for name in (TEACHER, CE, KD, f"{KD}-hard"))
    finish(teacher, state=9000, teacher=5000)
    finish(ce, state=9000, student=4000, log=300)
    finish(other, student=2000, log=500)
    kd.folder.mkdir(parents=True)
    (kd.folder / "state.pt").write_bytes(b"x" * 7000)
    (ce.log.parent / "events.out.tfevents.1").touch()
    whole = folder.size_of()

    folder.prune(campaign.tasks, 1e9)
    assert folder.size_of() == whole - 18000 and not [*Path().rglob("events.*")]
    assert files_of(campaign, f"{CE}/seed0") == [str(ce.folder / "student.pt")]

    folder.prune(campaign.tasks, folder.size_of() - 1)  # one file is enough: the largest of those that nobody needs
    assert not (ce.folder / "student.pt").exists() and (other.folder / "student.pt").exists()
    assert list(read_json(ce.folder / "result.json")["pruned"]) == ["student.pt"] and ce.result["accuracy"] == 90
    ce.load_result()
    assert ce.state == "done"

    folder.prune(campaign.tasks, 0)
    assert not [*Path().rglob("student.pt"), *Path().rglob("log.jsonl")]
    assert (teacher.folder / "teacher.pt").exists() and (kd.folder / "state.pt").stat().st_size == 7000


def test_what_does_not_fit_is_deleted_noted_and_not_tried_again_before_there_is_room(planned, capsys):
    campaign = planned(limit=11000)
    tasks = tasks_of(campaign)
    teacher, kd = tasks[f"{TEACHER}/seed0"], tasks[f"{KD}/seed0"]
    finish(teacher, teacher=5000)
    kd.folder.mkdir(parents=True)
    (kd.folder / "state.pt").write_bytes(b"x" * 7000)
    folder.drop_largest(campaign.tasks, campaign.limit, campaign.book)
    assert f"{KD}/seed0 does not fit: its files (0.0 MB) are deleted; give --max_mb" in capsys.readouterr().out
    assert campaign.book.sizes == {KD: 7000} and folder.size_of() < 11000 and (teacher.folder / "teacher.pt").exists()
    campaign.prepare(60)
    assert kd.state == "failed" and "give --max_mb" in kd.why and tasks[f"{KD}-hard/seed0"].state == "missing"
    kd.state = "missing"
    (kd.folder / "state.pt").write_bytes(b"x" * 1000)
    assert not campaign.too_large(kd, folder.fixed_size(campaign.tasks), 60)  # it has begun, and is there
    (kd.folder / "state.pt").unlink()
    kd.state, campaign.limit = "missing", 1e6
    campaign.prepare(60)
    assert kd.state == "missing"
    folder.drop_largest(campaign.tasks, 0, campaign.book)
    assert not (teacher.folder / "teacher.pt").exists() and teacher.state == "done" and campaign.book.sizes[TEACHER] == 5000
    campaign.prepare(60)
    assert "teacher LeNet5 seed 0 runs again" in capsys.readouterr().out
    assert teacher.state == "missing" and not (teacher.folder / "result.json").exists()


def test_a_run_whose_epoch_is_longer_than_a_slice_says_so(planned):
    campaign = planned()
    campaign.prepare(9)
    failed = {name: task.why for name, task in tasks_of(campaign).items() if task.state == "failed"}
    assert failed.keys() == {f"{KD}/seed0", f"{KD}/seed1", f"{TEACHER}/seed0"}
    assert "an epoch takes about 0:00:10 on CPU, longer than a slice; give --minutes 2" in failed[f"{TEACHER}/seed0"]


# ---- a slice


class Process:
    """A process that runs until it is killed."""

    def __init__(self):
        self.stdin, self.returncode = SimpleNamespace(close=lambda: None), None

    def poll(self):
        return self.returncode

    def terminate(self):
        self.returncode = 143

    def kill(self):
        self.returncode = -9

    def wait(self, timeout=None):
        return self.returncode


def test_a_slice_starts_what_fits_stops_what_is_too_large_and_notes_speeds_and_failures(planned):
    campaign = planned(limit=20000)
    tasks = tasks_of(campaign)
    now, teacher, ce = time.monotonic(), tasks[f"{TEACHER}/seed0"], tasks[f"{CE}/seed0"]
    short, long = Slice(campaign, 1, now + 12, now + 13), Slice(campaign, 1, now + 60, now + 61)
    assert long.is_ready(teacher) and not short.is_ready(teacher) and short.is_ready(ce)  # 5 s and an epoch of 10 s
    assert not long.is_ready(tasks[f"{KD}/seed0"])  # no teacher yet

    long.since = {id(t): time.time() - 40 for t in (teacher, ce)}
    for task, size in ((teacher, 30000), (ce, 100)):
        task.folder.mkdir(parents=True)
        task.log.parent.mkdir(parents=True)
        (task.folder / "state.pt").write_bytes(b"x" * size)
        task.log.write_text("epoch 1/240  ce 2.1  2 s, 0:07:58 left\nepoch 40/240  ce 1.0  2 s, 0:06:40 left\nstopped by SIGTERM; ...\n")
    assert long.estimate(ce) == (200, 400)
    (ce.folder / "state.pt").write_bytes(b"x" * 15000)
    begun = Slice(campaign, 1, now + 60, now + 61)
    assert not begun.will_not_fit(ce) and begun.will_not_fit(teacher)  # alone; its own state of before is not counted twice
    long.running = {0: (teacher, Process()), 1: (ce, Process())}
    long.collect()
    assert [t for t, _ in long.running.values()] == [ce] and teacher.state == "failed" and "give --max_mb" in teacher.why
    assert campaign.book.sizes == {TEACHER: 30000} and not (teacher.folder / "state.pt").exists() and not campaign.book.failed
    long.stop()
    assert ce.state == "missing" and campaign.book.speeds["CPU"][CE] == 2.0 and not long.running

    (ce.folder / "state.pt").unlink()
    ce.log.write_text("reads data\n")
    long.running = {0: (ce, Process())}
    long.stop()  # before the slice's end, by Ctrl-C
    assert not campaign.book.failed
    long.running, long.ends = {0: (ce, Process())}, now
    long.stop()
    assert campaign.book.failed[f"{CE}/seed0"].startswith("it saved nothing in 0:00:4")
    ce.fail("no memory")
    long.report_end(ce)
    assert campaign.book.failed[f"{CE}/seed0"] == "no memory"
    finish(ce, student=10)
    long.report_end(ce)
    assert not campaign.book.failed and campaign.book.speeds["CPU"][CE] == 0.1  # 24 s, 240 epochs


# ---- what is printed and written


def test_runs_of_a_gpu_are_added_to_the_measured_numbers(planned, tmp_path, monkeypatch):
    monkeypatch.setattr(shown, "PUBLIC", tmp_path / "tables" / "measured")
    campaign = planned()
    tasks = tasks_of(campaign)
    finish(tasks[f"{CE}/seed0"], 90.0, "NVIDIA X")
    finish(tasks[f"{CE}/seed1"], 80.0)
    plan = campaign.plans["published"]
    assert [str(p) for p in shown.write_measured({"published": plan}, True)] == ["measured/published-cpu.csv", "measured/published-gpu.csv"]
    plans = {"mnist": plan}  # the name of a table of the project
    public = tmp_path / "tables" / "measured" / "mnist-gpu.csv"
    assert public in shown.write_measured(plans, True) and not public.with_name("mnist-cpu.csv").exists()
    finish(tasks[f"{CE}/seed0"], 91.0, "NVIDIA X")
    other = public.read_text().splitlines()[1].replace("CE,", "KN,", 1)
    public.write_text(public.read_text() + other + "\n")
    shown.write_measured(plans, True)
    assert {(r["method"], r["accuracy"]) for r in csv_files.read_measured(public)} == {("CE", 91.0), ("KN", 90.0)}
    monkeypatch.setattr(results, "ROOT", tmp_path)
    assert results.Measured("mnist-gpu").source == "mnist"


def test_the_commands_without_a_run(planned, capsys):
    campaign.main(["--folder", ".", "--tables", "published.toml", "--dry_run"])
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2 + 7 + 2 and TEACHER in out[2] and "| measured" in out[2] and not Path("checkpoints").exists()
    finish(tasks_of(planned())[f"{CE}/seed1"], 80.0)
    campaign.main(["--folder", ".", "--tables", "published.toml", "--show"])
    out = capsys.readouterr().out
    assert "1 of 7" in out and "80.00 (1 of 2 seeds)" in out and "| KD" not in out and "6 of 7 runs are not finished" in out
    assert "written: measured/published-cpu.csv" in out


@pytest.mark.parametrize("argv, words", [
    (["--tables", "published.toml", "--minutes", "0"], "--minutes 0.0: it must be at least 0.1"), (["--tables", "mnit"], "no table 'mnit' .did you mean mnist"),
    (["--tables", "published.toml,published.toml"], "published twice; give each table once, and two files different names"), (["--folder", " "], "it must be a folder; leave it out for campaign/"),
    (["--tables", "published.toml", "--folder", "published.toml"], r"cannot make the folder published.toml \(File exists\); give another --folder"),
    (["--tables", "published.toml,db3kd-mnist", "--folder", ".", "--dry_run"], "table db3kd-mnist: .*two rows use the folder .* with different options: .*; or give tables that do not go together a --folder each"),
    (["--folder", ".", "--tables", "published.toml"], "another campaign runs in .; wait for it, or give another --folder"),
])  # fmt: skip
def test_wrong_options_and_a_second_campaign_are_refused(planned, argv, words):
    with FileLock(".lock"), pytest.raises(UsageError, match=words):
        campaign.main(argv)
