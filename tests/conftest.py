"""Every test that runs a script does it through `script(name, ...)`, on Digits in a temporary home with tiny nets."""

import importlib
import signal
from pathlib import Path

import pytest
import torch

from common.blackbox import BlackBox
from common.options import flags
from common.record import Record

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a shell's `&`: the processes of tests would ignore Ctrl-C, too
    signal.signal(signal.SIGINT, signal.default_int_handler)
ROOT = Path(__file__).resolve().parent.parent
TOOLS = ["campaign", "export", "ledger", "robustness", "serve", "table"]  # they train nothing
FEWSHOT = ["fewshot_classifier", "fewshot_meta", "fewshot_test"]  # they have data sets of their own
SCRIPTS = sorted(p.stem for p in (ROOT / "project").glob("*.py") if p.stem not in (*TOOLS, *FEWSHOT))

QUICK = {
    "MEKD": {"steps": 2},
    "DAFL": {"steps": 2, "batch_size": 64},
    "AM": {"first": 60, "queries": 20, "pairs": 100, "epochs": 4},
    "DB3KD": {"sr_mode": "sd"},
}
QUICK["ZSDB3KD"] = {"sr_mode": "sd", "samples": 4, "iterations": 1}
QUICK["AEAHL"] = {"ep_steps": 2, "kd_steps": 2, "g_steps": 1, "warmup": 1, "batch_size": 16, "latent": 8, "ngf": 4}
QUICK["DFME"] = {"steps": 2, "s_steps": 2, "batch_size": 16, "latent": 8, "ngf": 4}
QUICK["IDEAL"] = {"g_steps": 2, "batch_size": 16, "latent": 8, "ngf": 4}
QUICK["DFHL"] = {"steps": 2, "g_steps": 1, "h_steps": 2, "batch_size": 16, "latent": 8, "ngf": 4}

NET = """
import torch.nn as nn

class Net(nn.Module):
    def __init__(self, classes, channels, size):
        super().__init__()
        self.out = nn.Linear(channels * size * size, classes)

    def forward(self, x):
        return self.out(x.flatten(1).cos())

class Other(Net):
    pass
"""


def home_flags(home):
    return {"checkpoints_dir": Path(home) / "checkpoints", "logs_dir": Path(home) / "logs", "dataset": "Digits", "device": "cpu"}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A home with a teacher of Digits (LeNet5_half at 16 pixels would not do at 8: ResNet8) and a generator of a few epochs."""
    home = tmp_path_factory.mktemp("home")
    run("teacher", home, model="ResNet8", epochs=4, eval_every=4)
    run("DCGAN", home, teacher="ResNet8", epochs=2, lamda=0.2, eval_every=2)
    return home


def run(name, home, **options):
    """The script's main, in this process; gives its result."""
    return importlib.import_module(name).main(flags(**home_flags(home) | options))


@pytest.fixture
def script(trained, tmp_path):
    """script(name, **options) in a fresh home that holds the trained teacher and generator."""
    import shutil

    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")

    def call(name, **options):
        return run(name, tmp_path, **({} if name in ("teacher", "CE") else {"teacher": "ResNet8"}) | options)

    call.home = tmp_path
    return call


class Death(BaseException):
    pass


def dying(at):
    """A teacher that answers `at` times and then the process dies."""
    calls, answer = [], BlackBox.__call__

    def call(self, *a, **k):
        calls.append(1)
        if len(calls) > at:
            raise Death
        return answer(self, *a, **k)

    return call


def killed_after(epoch, monkeypatch, call):
    """Makes `call` a run whose process dies when it has saved that epoch."""
    saving = Record.save_state

    def save_and_die(self, done, *a, **k):
        saving(self, done, *a, **k | {"force": True})
        if done == epoch:
            raise Death

    with monkeypatch.context() as m:
        m.setattr(Record, "save_state", save_and_die)
        with pytest.raises(Death):
            call()
