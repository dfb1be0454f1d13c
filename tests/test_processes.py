"""One run in several processes equals the run in one; it is resumed when a process was killed; the first alone writes and asks."""

from common.cli import UsageError

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import composed
import pytest
import torch
from conftest import QUICK, ROOT, SCRIPTS, home_flags, run
from PIL import Image

from common import datasets, processes
from common.options import flags
from common.processes import part
from common.utils import read_json

WORKER = [sys.executable, str(ROOT / "tests" / "together.py")]


def environments(n):
    """torchrun's variables for n processes of this machine."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    paths = os.pathsep.join(str(ROOT / name) for name in ("project", "tests"))
    shared = {
        "WORLD_SIZE": str(n),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": paths,
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    return [os.environ | shared | {"RANK": str(r), "LOCAL_RANK": str(r)} for r in range(n)]


def begin_together(home, jobs, n=2):
    """The processes that run jobs [(script, options), ...] in `home` together."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    found = [subprocess.Popen([*WORKER, str(home)], env=env, text=True, **pipes) for env in environments(n)]
    for process in found:
        process.stdin.write("".join(json.dumps(job) + "\n" for job in jobs))
        process.stdin.close()
        process.stdin = None
    return found


def run_together(home, jobs, n=2):
    """[(standard output, standard error) of each process] of jobs that run together."""
    return [process.communicate(timeout=300) for process in begin_together(home, jobs, n)]


def weights(home, name, tag="two"):
    """{file: {name: tensor}} of the nets of a run."""
    folder = next((home / "checkpoints" / name).rglob(f"*-{tag}/seed0"))
    return {
        p.name: torch.load(p, weights_only=True)["model"]
        for p in sorted(folder.glob("*.pt"))
        if p.stem in ("student", "teacher", "generator")
    }


def options_of(name):
    own = {"model": "ResNet8", "lamda": 0.2} if name in ("teacher", "CE") else {"teacher": "ResNet8", "lamda": 0.2}
    small = {"DCGAN": {"lr": 1e-7}, "DAFL": {"lr_g": 1e-7}}  # Adam makes a whole step of a gradient that is rounding alone
    return own | {"epochs": 2, "lr": 1e-3, "eval_every": 1, "tag": "two"} | QUICK.get(name, {}) | small.get(name, {})


def copy_of(home, to):
    import shutil

    shutil.copytree(home / "checkpoints", to / "checkpoints")
    return to


@pytest.fixture(scope="module")
def both(trained, tmp_path_factory):
    """Homes in which every script has run: in one process, and in two together."""
    one, two = (copy_of(trained, tmp_path_factory.mktemp(n)) for n in ("one", "two"))
    for name in SCRIPTS:
        run(name, one, **options_of(name))
    (said, errors), (silent, none) = run_together(two, [(name, options_of(name)) for name in SCRIPTS])
    assert (errors, silent, none) == ("", "", "") and said.count(" 2 processes") == len(SCRIPTS)
    return one, two


@pytest.mark.parametrize("name", SCRIPTS)
def test_two_processes_train_what_one_trains(name, both):
    one, two = (weights(home, name) for home in both)
    assert one.keys() == two.keys() and one
    for file, net in one.items():
        for key, value in net.items():
            assert torch.allclose(two[file][key].float(), value.float(), rtol=1e-4, atol=1e-5), (file, key)
    a, b = (read_json(next((home / "checkpoints" / name).rglob("*-two/seed0/result.json"))) for home in both)
    assert all(a[k] == b[k] for k in ("queries", "bytes", "private", "synthetic", "mixed", "images"))
    assert a.get("accuracy") == pytest.approx(b.get("accuracy"), abs=0.41)  # two of 500 images


@pytest.mark.parametrize("n", [2, 3])
def test_gradients_through_several_nets_and_any_loss(n, tmp_path):
    composed.main(["--checkpoints_dir", tmp_path])
    (said, error), *_ = run_together(tmp_path, [("composed", {"checkpoints_dir": str(tmp_path)})], n)
    assert (said, error) == ("saved\n", "")
    one, more = (torch.load(tmp_path / f"composed-{k}.pt") for k in (1, n))
    for key, value in one.items():
        assert torch.allclose(more[key].float(), value.float(), rtol=1e-4, atol=1e-5), key


def test_without_synchronised_batch_norm_the_result_is_another(trained, tmp_path):
    home = copy_of(trained, tmp_path)
    run_together(home, [("KD", options_of("KD")), ("KD", options_of("KD") | {"sync_bn": False, "tag": "own"})])
    a, b = (weights(home, "KD", tag)["student.pt"] for tag in ("two", "own"))
    assert 1e-4 < max((a[k] - b[k]).abs().max() for k in a if k.endswith("running_var")) < 0.1


def test_a_dry_run_takes_nothing_from_an_earlier_run_and_keeps_nothing(trained, tmp_path):
    home = copy_of(trained, tmp_path)
    job = "KD", options_of("KD") | {"compile": True, "epochs": 1}
    run_together(home, [job])
    before = sorted(home.rglob("*"))
    (said, error), (silent, none) = run_together(home, [(job[0], job[1] | {"dry_run": True}), ("CE", options_of("CE") | {"dry_run": True})])
    assert said.count("a dry run went through; nothing is kept") == 2 and (error, silent, none) == ("", "", "")
    assert sorted(home.rglob("*")) == before


def test_three_processes_and_batches_that_do_not_divide(trained, tmp_path):
    one, three = (copy_of(trained, tmp_path / n) for n in ("one", "three"))
    options = options_of("KD") | {"batch_size": 64}  # 259 images: batches of 64, and 3, which each process computes as a whole
    run("KD", one, **options)
    run_together(three, [("KD", options)], n=3)
    a, b = (weights(home, "KD")["student.pt"] for home in (one, three))
    assert all(torch.allclose(a[k].float(), b[k].float(), rtol=1e-4, atol=1e-5) for k in a)


def test_images_that_are_read_at_every_pass_are_read_by_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "RESIDENT_BYTES", 0)
    pixels = torch.randint(0, 256, (44, 12, 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    for i, x in enumerate(pixels):
        path = tmp_path / "images" / ("train" if i < 33 else "test") / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x).save(path)
    options = {"dataset": f"folder:{tmp_path / 'images'}", "model": "ResNet8", "img_size": 12, "epochs": 2, "batch_size": 5}
    options |= {"lr": 1e-3, "workers": 0}
    one, two = tmp_path / "one", tmp_path / "two"
    run("teacher", one, **options)
    (said, error), _ = run_together(two, [("streamed", options)])
    assert error == "" and "2 processes" in said
    a, b = (torch.load(next(home.rglob("teacher.pt")), weights_only=True)["model"] for home in (one, two))
    assert all(torch.allclose(a[k].float(), b[k].float(), rtol=1e-4, atol=1e-5) for k in a)


def test_parts_are_all_rows_once(monkeypatch):
    for n, world in ((10, 3), (2, 4), (8, 4), (1, 1), (7, 2)):
        monkeypatch.setenv("WORLD_SIZE", str(world))
        rows = [i for rank in range(world) for i in range(n)[part(n, rank)]]
        sizes = [len(range(n)[part(n, rank)]) for rank in range(world)]
        assert rows == list(range(n)) and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_run_and_the_same_command_goes_on(victim, trained, tmp_path):
    whole, cut = (copy_of(trained, tmp_path / n) for n in ("whole", "cut"))
    job = ("KD", options_of("KD") | {"epochs": 60, "augment": "crop"})
    run_together(whole, [job])
    both = begin_together(cut, [job])
    log = cut / "logs" / "KD" / "Digits" / "ResNet8_to_ResNet8-two" / "seed0" / "log.jsonl"
    state = cut / "checkpoints" / "KD" / "Digits" / "ResNet8_to_ResNet8-two" / "seed0" / "state.pt"
    end = time.monotonic() + 60
    while not state.exists() and time.monotonic() < end:
        time.sleep(0.02)
    both[victim].send_signal(signal.SIGKILL)
    _, error = both[1 - victim].communicate(timeout=60)
    told = error.splitlines()
    assert len(told) == 1 and re.fullmatch(r"together\.py: KD: another process of this run has ended \(.*\); the same command .*", told[0])
    assert 0 < len(log.read_text().splitlines()) < 60
    (said, error), _ = run_together(cut, [job])
    assert "goes on after epoch" in said and error == ""
    a, b = (weights(home, "KD")["student.pt"] for home in (whole, cut))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert log.read_text() == (whole / log.relative_to(cut)).read_text()


def test_torchrun_runs_a_script_and_the_same_command_finds_it_finished(trained, tmp_path):
    home = copy_of(trained, tmp_path)
    options = home_flags(home) | {"teacher": "ResNet8", "epochs": 1, "lamda": 0.2}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(ROOT / "project" / "KD.py")]
    for _ in range(2):
        done = subprocess.run([*command, *flags(**options), "--local-rank=0"], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished before: KD ResNet8 -> ResNet8 on Digits") == 1
    done = subprocess.run([*command, *flags(**options | {"teacher": "ResNet20"})], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stderr.count("KD.py: no teacher") == 1  # torchrun's status is 1 for any failure


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("GDA", {"base": "fitnet", "response": "inside"}, "run it without torchrun"),
        ("KD", {"teacher": "http://127.0.0.1:9/v2/models/x", "ledger": False}, "need the ledger"),
    ],
)
def test_what_cannot_be_divided_is_refused(name, options, words, script, monkeypatch):
    monkeypatch.setattr(processes, "first_and_then", lambda make: make())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=words):
        script(name, lamda=0.2, **options)


def test_processes_that_do_not_meet_are_one_line(script, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="start the script with torchrun, or unset WORLD_SIZE"):
        script("KD", lamda=0.2)
