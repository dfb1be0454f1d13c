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
    return own | {"epochs": 1, "lr": 1e-4, "eval_every": 1, "tag": "two"} | QUICK.get(name, {}) | small.get(name, {})


def copy_of(home, to):
    import shutil

    shutil.copytree(home / "checkpoints", to / "checkpoints")
    return to


OWN = options_of("KD") | {"sync_bn": False, "tag": "own"}
UNEVEN = options_of("KD") | {"batch_size": 64, "tag": "uneven"}  # 259 images: batches of 64, and 3, which each process computes as a whole
DRY = options_of("KD") | {"dry_run": True}
WRONG = options_of("KD") | {"teacher": "ResNet20"}
LONG = options_of("KD") | {"epochs": 25, "augment": "crop", "tag": "long"}


@pytest.fixture(scope="module")
def homes(trained, tmp_path_factory):
    """{number of processes: a home in which scripts have run in that many}."""
    found = {n: copy_of(trained, tmp_path_factory.mktemp(f"of{n}")) for n in (1, 2, 3)}
    for name in SCRIPTS:
        run(name, found[1], **options_of(name))
    run("KD", found[1], **UNEVEN)
    composed.main(["--checkpoints_dir", found[1]])
    compose = {n: ("composed", {"checkpoints_dir": str(found[n])}) for n in found}
    jobs = [*((name, options_of(name)) for name in SCRIPTS), ("KD", OWN), ("KD", DRY), ("KD", LONG), compose[2], ("KD", WRONG)]
    (said, error), (silent, none) = run_together(found[2], jobs)
    assert (silent, none) == ("", "") and said.count(" 2 processes") == len(jobs) - 2
    assert re.fullmatch("together.py: KD: no teacher for Digits .*\\n", error)  # told once
    assert said.count("a dry run went through; nothing is kept") == 1
    assert all(error == "" for _, error in run_together(found[3], [("KD", UNEVEN), compose[3]], n=3))
    return found


def same(a, b):
    """Whether weights are equal up to rounding."""
    return a.keys() == b.keys() and all(torch.allclose(a[k].float(), b[k].float(), rtol=1e-4, atol=1e-5) for k in a)


@pytest.mark.parametrize("name", SCRIPTS)
def test_two_processes_train_what_one_trains(name, homes):
    one, two = (weights(homes[n], name) for n in (1, 2))
    assert one.keys() == two.keys() and one and all(same(one[file], two[file]) for file in one)
    a, b = (read_json(next((homes[n] / "checkpoints" / name).rglob("*-two/seed0/result.json"))) for n in (1, 2))
    assert all(a[k] == b[k] for k in ("queries", "bytes", "private", "synthetic", "mixed", "images"))
    assert a.get("accuracy") == pytest.approx(b.get("accuracy"), abs=0.41)  # two of 500 images


@pytest.mark.parametrize("n", [2, 3])
def test_gradients_through_several_nets_and_any_loss(n, homes):
    one, more = (torch.load(homes[k] / f"composed-{k}.pt") for k in (1, n))
    assert same(one, more)


def test_without_synchronised_batch_norm_the_result_is_another(homes):
    a, b = (weights(homes[2], "KD", tag)["student.pt"] for tag in ("two", "own"))
    assert 1e-4 < max((a[k] - b[k]).abs().max() for k in a if k.endswith("running_var")) < 0.1


def test_three_processes_and_batches_that_do_not_divide(homes):
    assert same(*(weights(homes[n], "KD", "uneven")["student.pt"] for n in (1, 3)))


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
    assert same(a, b)


def test_parts_are_all_rows_once(monkeypatch):
    for n, world in ((10, 3), (2, 4), (8, 4), (1, 1), (7, 2)):
        monkeypatch.setenv("WORLD_SIZE", str(world))
        rows = [i for rank in range(world) for i in range(n)[part(n, rank)]]
        sizes = [len(range(n)[part(n, rank)]) for rank in range(world)]
        assert rows == list(range(n)) and max(sizes) - min(sizes) <= 1


def test_a_killed_process_ends_the_run_and_the_same_command_goes_on(homes, trained, tmp_path):
    cut, epochs = copy_of(trained, tmp_path), [0]
    log, state = (cut / name / "KD" / "Digits" / "ResNet8_to_ResNet8-long" / "seed0" for name in ("logs", "checkpoints"))
    for victim in (1, 0):
        both, end = begin_together(cut, [("KD", LONG)]), time.monotonic() + 60
        while time.monotonic() < end and not ((state / "state.pt").exists() and len(lines_of(log)) > epochs[-1] + 1):
            time.sleep(0.02)
        both[victim].send_signal(signal.SIGKILL)
        _, error = both[1 - victim].communicate(timeout=60)
        assert re.fullmatch(r"together\.py: KD: another process of this run has ended \(.*\); the same command goes on .*\n", error)
        epochs.append(len(lines_of(log)))
    assert 0 < epochs[1] < epochs[2] < 25
    (said, error), _ = run_together(cut, [("KD", LONG)])
    assert "goes on after epoch" in said and error == ""
    a, b = (weights(home, "KD", "long")["student.pt"] for home in (homes[2], cut))
    assert all(torch.equal(a[k], b[k]) for k in a) and lines_of(log) == lines_of(homes[2] / log.relative_to(cut))


def lines_of(logs):
    """The lines of a run's log so far."""
    return (logs / "log.jsonl").read_text().splitlines() if (logs / "log.jsonl").exists() else []


def test_torchrun_finds_a_finished_run(trained, tmp_path):
    home = copy_of(trained, tmp_path)
    options = home_flags(home) | {"teacher": "ResNet8", "epochs": 1, "lamda": 0.2}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(ROOT / "project" / "KD.py")]
    run("KD", home, **{k: v for k, v in options.items() if k in ("teacher", "epochs", "lamda")})
    done = subprocess.run([*command, *flags(**options), "--local-rank=0"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.count("finished before: KD ResNet8 -> ResNet8 on Digits") == 1


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
