"""A table through Snakemake itself: the local runner's results, a failing row, a kill, SLURM where a controller answers."""

from common.cli import RunError

import importlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import table
from conftest import ROOT
from test_engine import made, results, tiny  # noqa: F401  a fixture

from common import runner
from common.options import flags

needs_snakemake = pytest.mark.skipif(importlib.util.find_spec("snakemake") is None, reason="snakemake is not installed")


@needs_snakemake
def test_snakemake_gives_the_same_table_and_runs_only_what_must_run(tiny, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(
        RunError, match="1 of 4 runs failed, first CE ResNet8-no seed 0: CE.py: --device cuda:99 is not available .*status 2, "
    ):
        table.main([*tiny(), "--engine", "snakemake", "--jobs", "2"])
    out = capsys.readouterr().out
    assert "[4/4]" in out and "Snakemake runs 4 jobs" in out and out.count("-> ResNet8 on Digits, seed 0:") == 1
    row = next(line for line in out.splitlines() if line.startswith("| no device"))
    assert "failed: CE.py: --device cuda:99" in row
    home = tiny.home / "home"
    assert (home / "l/tables/tiny.md").exists() and not list((ROOT / ".snakemake").glob("*"))

    def launch(task, jobs, gpu):  # the same runs as calls in this process
        with redirect_stdout(StringIO()):
            importlib.import_module(task.script).main(flags(**task.options))
        return SimpleNamespace(poll=lambda: 0, returncode=0, stdin=StringIO())

    monkeypatch.setattr(runner, "launch", launch)
    table.main([*tiny(home="local"), "--only", "CE,KD"])
    capsys.readouterr()
    assert results(home) == results(tiny.home / "local") and len(results(home)) == 3

    before = made(home)
    os.utime(home / "c/teacher/Digits/ResNet8/seed0/result.json")  # newer than what was made from it
    changed = tiny('"Tiny"', '"Another title"', "t = 3", 't = 4, tag = "hot"')
    table.main([*changed, "--engine", "snakemake", "--only", "ce,kd"])
    out = capsys.readouterr().out
    assert "[1/1]" in out and "# Another title" in out and "written" not in out
    new = made(home)
    assert {p.parts[-2:] for p in new.keys() - before.keys()} == {("seed0", "result.json")} and len(new) == 4
    assert all(new[p] == before[p] for p in before if "teacher" not in p.parts)


@needs_snakemake
def test_the_same_command_goes_on_after_a_kill(tiny, capsys):
    """SIGKILL of Snakemake and all its runs; then the runs that had ended are kept, and the others resume."""
    command = [*tiny("epochs = 2", "epochs = 30", "t = 3", 't = 3, tag = "x"'), "--engine", "snakemake", "--only", "KD,CE", "--jobs", "2"]
    process = subprocess.Popen(
        [sys.executable, "-u", str(ROOT / "project/table.py"), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    c, log = tiny.home / "home/c", tiny.home / "home/l/teacher/Digits/ResNet8/seed0/output.log"
    until = time.monotonic() + 120
    while not ((c / "teacher/Digits/ResNet8/seed0/state.pt").exists() and (c / "CE/Digits/ResNet8/seed0/result.json").exists()):
        assert time.monotonic() < until and process.poll() is None, process.communicate()
        time.sleep(0.05)
    found = subprocess.run(["pgrep", "-f", f"snakemake.*Snakefile|project/[A-Za-z]*[.]py.*{tiny.home}"], capture_output=True, text=True)
    for pid in found.stdout.split():
        with suppress(OSError):
            if (
                str(tiny.home) in f"{os.readlink(f'/proc/{pid}/cwd')} {Path(f'/proc/{pid}/cmdline').read_text()}"
                and int(pid) != process.pid
            ):
                os.kill(int(pid), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and err.count("\n") == 1 and "2 of 3 runs failed, first teacher ResNet8 seed 0: it was ended " in err
    before = made(c)
    assert [p.parts[-5] for p in before] == ["CE"] and (c / "teacher/Digits/ResNet8/seed0/state.pt").exists()
    table.main(command)
    assert "[2/2]" in capsys.readouterr().out and "goes on after epoch" in log.read_text()
    assert log.read_text().count("seed 0: 1,297 of 1,297 training images") == 2  # the output of both attempts
    assert {p.parts[-5] for p in made(c)} == {"teacher", "CE", "KD"} and made(c).items() >= before.items()


@needs_snakemake
def test_wrong_arguments_of_snakemake_are_one_line(tiny):
    with pytest.raises(RunError, match="^Snakemake ran nothing: .*unrecognized arguments: --colour .*snakemake.log") as e:
        table.main([*tiny(), "--engine", "snakemake", "--engine_args=--colour"])
    assert "\n" not in str(e.value) and not (tiny.home / "home/c").exists()


def slurm():
    """Whether a controller of SLURM answers here, and the plugin is installed."""
    answers = shutil.which("sinfo") and subprocess.run(["sinfo", "--noheader"], capture_output=True, timeout=20).stdout.strip()
    return bool(answers) and importlib.util.find_spec("snakemake_executor_plugin_slurm") is not None


@needs_snakemake
@pytest.mark.skipif(not slurm(), reason="no SLURM controller answers, or snakemake-executor-plugin-slurm is not installed")
def test_a_run_on_slurm(tiny, capsys):
    resources = "--default-resources mem_mb=2000 runtime=10 disk_mb=100"
    status = "--slurm-status-command squeue --slurm-init-seconds-before-status-checks 2"
    table.main([*tiny(), "--only", "CE", "--engine", "snakemake", "--engine_args", f"--executor slurm --jobs 2 {resources} {status}"])
    assert "[1/1]" in capsys.readouterr().out
    log = tiny.home / "home/l/tables/tiny/snakemake.log"
    assert "submitted with SLURM jobid" in log.read_text()
