"""table.py --check: a measured cell is run again with its own options, and what does not agree ends with status 1."""

from common.cli import RunError, UsageError

import re
from pathlib import Path

import pytest
import table
from conftest import ROOT
from test_table import in_process, tiny  # noqa: F401

from common import recheck
from common.csv_files import read_measured
from common.significance import half_width
from common.tables import read_table


def test_a_cell_is_run_again_with_the_options_of_then(tiny, in_process, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    argv = tiny(seeds="[1]")
    table.main(argv)
    path, written = tiny.home / "tiny.toml", tiny.home / "l/tables/tiny.csv"
    before = {p: p.stat().st_mtime_ns for p in tiny.home.rglob("*") if p.is_file()}
    path.write_text(path.read_text().replace("lamda = 0.2", "lamda = 0.4").replace("epochs = 4", "epochs = 3"))  # a table may change
    capsys.readouterr()
    table.main([*argv, "--check", "--only", "MEKD"])  # its teacher and its generator are there
    out = capsys.readouterr().out
    assert re.search(r"drawn with --draw \d+: MEKD hard, ResNet8 -> ResNet8, seed 1 of tiny.csv\nruns: 1, which took 0:00:\d\d when", out)
    assert "the same options, used: 2\n" in out and "agrees to the digit: accuracy " in out and "(the same code)" in out
    argv[2] = str(tiny.home / "empty")
    table.main([*argv, "--check", "--only", "KD", "--draw", "3"])
    out = capsys.readouterr().out
    assert "drawn with --draw 3: KD, " in out and "runs: 2, " in out and "options, used: 0\n" in out
    assert "agrees to the digit: accuracy " in out and "queries 259 then, 259 now" in out
    assert before == {p: p.stat().st_mtime_ns for p in before} | {path: before[path]} and not (tiny.home / "empty").exists()
    (row,) = (r for r in read_measured(written) if r["method"] == "KD")
    written.write_text(written.read_text().replace(f",hard,{row['accuracy']},", ",hard,99.9,"))
    argv[2] = str(tiny.home / "c")
    with pytest.raises(
        RunError, match=rf"KD, .*, seed 1 of tiny.csv does not agree, on the same .*: accuracy 99.9 then, {row['accuracy']:.10g} now"
    ):
        table.main([*argv, "--check", "--only", "KD"])


def test_a_run_that_fails_leaves_its_log(tiny, in_process, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    argv = tiny(seeds="[1]")
    (tiny.home / "l/tables").mkdir(parents=True)
    options = "dataset=Digits lamda=0.2 epochs=1"
    text = f"method,pair,seed,accuracy,queries,bytes,seconds,device,versions,options\nCE,ResNet8 -> ResNet8,1,50,0,0,60,CPU,torch 2,{options}\n"
    (tiny.home / "l/tables/tiny.csv").write_text(text)
    monkeypatch.setattr(recheck.tempfile, "mkdtemp", lambda prefix: str(tiny.home / prefix))

    def fail(self):
        for task in self.todo:
            task.fail("no memory")

    monkeypatch.setattr(recheck.Runner, "run", fail)
    with pytest.raises(RunError, match=rf"CE ResNet8 seed 1 failed: no memory; its files are in {tiny.home}/check-$"):
        table.main([*argv, "--check"])
    assert "runs: 1, which took 0:01:00 when they were measured;" in capsys.readouterr().out


NOW = {"torch": "2.15.0", "commit": "new", "source": "abc"}


def cell_of(versions="torch 2.15.0 commit old", accuracies=(90.0, 91.0, 92.0), **more):
    one = {"pair": "a -> b", "method": "KD", "device": "CPU, 1 thread", "versions": versions, "queries": 259.0, "options": ""} | more
    rows = {("a -> b", "KD", seed): one | {"accuracy": a, "seed": seed} for seed, a in enumerate(accuracies)}
    return recheck.Cell(Path("x.csv"), rows["a -> b", "KD", 0], rows)


def judged(cell, accuracy, **more):
    return recheck.judged(cell, {"accuracy": accuracy, "queries": 259, "device": "CPU, 1 thread", "versions": NOW} | more)


def test_the_same_device_and_versions_must_agree_to_the_digit():
    said = judged(cell_of(), 90.00001)
    assert said.startswith("agrees to the digit: accuracy 90 then, 90 now, queries 259 then, 259 now (commit old then, new now; source")
    for result in ({"accuracy": 90.1}, {"accuracy": 90.0, "queries": 260}):
        with pytest.raises(RunError, match="does not agree, on the same device with the same versions"):
            judged(cell_of(), **result)
    with pytest.raises(RunError, match=r"teacher_accuracy 99 then, 98 now"):
        judged(cell_of(teacher_accuracy=99.0), 90.0, teacher_accuracy=98.0)


def test_other_versions_or_devices_may_differ_as_two_seeds_do():
    old = cell_of("torch 2.14.0 commit unknown")
    allowed = half_width([90.0, 91.0, 92.0]) * 6**0.5
    assert allowed == pytest.approx(4.30265273 * 2**0.5)  # t(0.975, 2) * sd * sqrt(2), with sd = 1
    said = judged(old, 90.0 + allowed - 0.01)
    assert said.startswith("agrees within the spread over seeds: ") and "torch 2.14.0 then, 2.15.0 now; " not in said.partition(" (")[0]
    assert f"expected: at most {allowed:.2f} (standard deviation over 3 seeds 1.00)" in said and "torch 2.14.0 then, 2.15.0 now" in said
    with pytest.raises(RunError, match="does not agree: .*device CPU, 1 thread then, GPU now.*difference -6.10"):
        judged(cell_of(), 83.9, device="GPU")
    gpu = {"device": "H200", "versions": "torch 2.15.0"}  # whose sums are not the same twice, without --deterministic
    assert judged(cell_of(**gpu, options="lamda=0.2"), 91.0, device="H200").startswith("agrees within the spread")
    with pytest.raises(RunError, match="does not agree, on the same device"):
        judged(cell_of(**gpu, options="deterministic=True"), 91.0, device="H200")
    with pytest.raises(RunError, match="the spread over seeds is not known"):
        judged(cell_of("torch 2.14.0", [90.0]), 90.1)


def test_a_cell_is_drawn_from_the_tables_own_files():
    path = ROOT / "tables" / "digits.toml"
    assert [p.name for p in recheck.measured_files(path, "nowhere")] == ["digits-cpu.csv"]  # not those of digits-api and digits-datafree
    assert [p.name for p in recheck.measured_files(path.with_name("mnist-cpu.toml"), "nowhere")] == ["mnist-cpu.csv"]
    with pytest.raises(UsageError, match="cifar10.toml: none of its runs is in tables/measured or in nowhere/tables/cifar10.csv"):
        recheck.measured_files(path.with_name("cifar10.toml"), "nowhere")
    digits = read_table("digits")
    names = {recheck.drawn(path, digits, "nowhere", [], None, draw).row["method"] for draw in range(20)}
    assert len(names) > 5 and names <= {row["name"] for row in digits["rows"]}
    cell = recheck.drawn(path, digits, "nowhere", ["KD"], [2], 0)
    assert str(cell) == "KD, ResNet20 -> ResNet8, seed 2 of digits-cpu.csv"
    with pytest.raises(UsageError, match="no run with these rows, pairs and seeds is measured"):
        recheck.drawn(path, digits, "nowhere", ["KD"], [77], 0)


@pytest.mark.parametrize("path", sorted((ROOT / "tables/measured").glob("*.csv")), ids=lambda p: p.stem)
def test_every_measured_file_can_be_checked(path, tmp_path, monkeypatch):
    """The plan of a random cell has the options of then."""
    from common.results import source_of

    plans = []

    def run(tasks, jobs):
        plans.extend(tasks)
        raise RunError("enough")

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(recheck, "Runner", run)
    for draw in range(3):
        with pytest.raises(RunError, match="enough"):
            table.main([source_of(path), "--check", "--draw", str(draw), "--checkpoints_dir", str(tmp_path)])
        cell = recheck.drawn(ROOT / f"tables/{source_of(path)}.toml", read_table(source_of(path)), "", [], None, draw)
        now = {k: str(v) for k, v in vars(plans[-1].args).items()}
        then = {k: v for k, v in recheck.said_of(cell.row).items() if k not in ("transfer", "reuse_generator_path") and k in now}
        assert {k: v for k, v in then.items() if now[k] != v} == {} and len(then) >= 25
