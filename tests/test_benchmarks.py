"""The benchmarks: the floor of a computation counts what it says; gpu.py measures, stops in time, and names what is missing."""

import csv
import signal
import sys
from dataclasses import replace

import torch
import torch.nn as nn
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu
from floor import Machine, Work, work_of


def test_work_is_that_of_convolutions_and_products():
    net, x = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 3)), torch.randn(5, 2, 8, 8)
    conv, linear = 2 * 5 * 4 * 64 * (9 * 2), 2 * 5 * 256 * 3  # a multiplication and an addition for each weight and output
    read_and_written = (5 * 2 * 64 + 4 * 2 * 9 + 4 + 5 * 4 * 64) + (3 + 5 * 256 + 256 * 3 + 5 * 3)
    with torch.no_grad():
        assert work_of(lambda: net(x)) == Work(conv + linear, 4 * read_and_written)
    assert work_of(lambda: net(x).sum().backward()).flops == 2 * conv + 3 * linear  # the images need no gradient
    assert work_of(lambda: torch.relu(x)) == Work(0, 0)


def test_the_floor_is_the_time_at_the_speed_of_the_machine(monkeypatch):
    monkeypatch.setattr(Machine, "measure", lambda self: Work(2e9, 1e9))
    machine = Machine(torch.device("cpu"))
    assert machine.floor(Work(1e9, 1e9)) == (0.5, 1.0)
    assert "float32 matrix product: 2 GFLOP/s, copy: 1.0 GB/s" in str(machine)


def test_gpu_measures_and_names_what_it_leaves_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Machine, "measure", lambda self: Work(1e12, 1e11))
    monkeypatch.setattr(gpu, "FORMATS", {"float32": torch.float32})
    monkeypatch.setattr(gpu, "NEEDED", {False: 0.0, True: 1e9})  # nothing is compiled, which takes a minute
    monkeypatch.setattr(gpu, "BEGAN", gpu.time.monotonic())
    monkeypatch.setattr(gpu, "TINY", replace(gpu.TINY, jobs=(1,)))
    gpu.main(["--device", "cpu", "--minutes", "5", "--out", str(tmp_path / "speed.csv"), "--commit", "1234567"])
    rows, out = list(csv.DictReader((tmp_path / "speed.csv").open())), capsys.readouterr().out
    assert [(r["what"], r["batch"], r["jobs"]) for r in rows[:4]] == [
        ("KD", "8", "1"),
        ("KD aug.", "8", "1"),
        ("MEKD", "8", "1"),
        ("AEAHL", "2", "1"),
    ]
    assert [r["what"] for r in rows[4:]] == ["DB3KD", "KD jobs"]
    assert all(float(r["steps_per_second"]) > 0 and 0 < float(r["share_of_peak"]) < 1 for r in rows)
    assert all(f"not measured: {name}, float32, compiled (no time left)" in out for name in ("KD", "KD aug.", "MEKD", "AEAHL"))
    assert "best: --jobs 1, " in out and {r["commit"] for r in rows} == {"1234567"}


def test_gpu_ends_a_part_when_its_minutes_are_over(monkeypatch, capsys):
    monkeypatch.setattr(Machine, "measure", lambda self: Work(1e12, 1e11))
    monkeypatch.setattr(gpu, "BEGAN", gpu.time.monotonic())
    monkeypatch.setattr(gpu, "TINY", replace(gpu.TINY, jobs=()))

    def over(self, form, compiled):
        self.ends = 0
        signal.raise_signal(signal.SIGALRM)

    monkeypatch.setattr(gpu.Bench, "script", lambda self, *args, **options: over.__get__(self))
    gpu.main(["--device", "cpu", "--minutes", "60"])
    left_out = [line for line in capsys.readouterr().out.splitlines() if line.startswith("not measured: ")]
    assert left_out[0] == "not measured: KD, float32 (stopped: no time left)" and len(left_out) == 10 + 2 + 6
    assert all("(no time left)" in line for line in left_out[1:])
