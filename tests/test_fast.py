"""--fast, and memory that is not given back: the same results, but for rounding."""

import platform
import subprocess
import sys

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from conftest import ROOT

from common import fast, measures
from common.datasets import Images
from common.measures import folded, infer
from common.models import build
from common.options import Base, parse

IMAGES = Images(torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)), torch.zeros(40))

FAULTS = """
import resource, torch
from common.devices import device_of
from common.options import Base

device_of(Base(device="cpu"))
faults = []
for _ in range(12):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    x = torch.ones(2**24)  # 64 MB
    (x + 1).mul(2).sum()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sum(faults[-6:]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_of_freed_tensors_is_kept():
    """In a process of its own, since only the main thread's memory is kept, and these tests may run in another."""
    done = subprocess.run([sys.executable, "-c", FAULTS], cwd=ROOT / "project", capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100_000  # 6 times 49,152 pages of 4 KB otherwise


def view(x):
    return x.float() / 127.5 - 1


def trained(net):
    """The net with statistics and weights of batch norm that are not those of an untrained one."""
    torch.manual_seed(1)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.uniform_(m.bias, -0.5, 0.5)
            m.momentum = None  # the mean over all batches
    with torch.no_grad():
        net.train()(view(IMAGES.x))
    return net


@pytest.mark.parametrize("name", ["ResNet8", "WRN16_1", "VGG8_BN", "MobileNetV2", "ShuffleNetV2", "AlexNet_quarter"])
def test_a_folded_net_answers_as_the_net_does_and_leaves_it_alone(monkeypatch, name):
    monkeypatch.setattr(measures, "FOLD_FROM", 0)
    net = trained(build(name, 10, (3, 32, 32), torch.device("cpu")))
    then = {k: v.clone() for k, v in net.state_dict().items()}
    copy = folded(net, IMAGES, view)
    norms = [sum(isinstance(m, nn.BatchNorm2d) for m in n.modules()) for n in (net, copy)]
    assert norms[0] > norms[1] >= (name == "WRN16_1")  # there batch norm comes before the convolution in some places
    wanted = infer(net, IMAGES, view)
    assert torch.allclose(infer(copy, IMAGES, view), wanted, atol=1e-4 * wanted.abs().max().item())
    assert all(torch.equal(v, then[k]) for k, v in net.state_dict().items())


class TwoNorms(nn.Module):
    """One convolution with two batch norms, which no set of weights can stand for."""

    def __init__(self):
        super().__init__()
        self.conv, self.a, self.b, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Linear(4, 10)

    def forward(self, x):
        return self.fc((self.a(self.conv(x)) + self.b(self.conv(x.flip(3))).relu()).mean((2, 3)))


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10)

    def forward(self, x):
        return F.adaptive_avg_pool2d(self.bn(self.conv(x)), 1).flatten(1) * (2 if x.mean() > 0 else 1)


@pytest.mark.parametrize("make", [TwoNorms, Branches])
def test_a_net_that_cannot_be_folded_is_evaluated_as_it_is(monkeypatch, make):
    monkeypatch.setattr(measures, "FOLD_FROM", 0)
    net = trained(make())
    assert folded(net, IMAGES, view) is net and not net.training


def test_fast_sets_what_the_command_line_does_not(monkeypatch):
    monkeypatch.setattr(fast, "has_bfloat16", lambda device: True)
    chosen = [(a.amp, a.eval_every) for a in (parse(Base, words.split()) for words in ("--fast", "--fast --epochs 19 --amp off"))]
    assert chosen == [("bf16", 12), ("off", 1)] and parse(Base, []).amp == "off"
    monkeypatch.setattr(fast, "has_bfloat16", lambda device: False)
    assert parse(Base, ["--fast", "--eval_every", "7"]).amp == "off" and parse(Base, ["--fast", "--eval_every", "7"]).eval_every == 7


def test_fast_counts_the_epochs_that_other_settings_give():
    import DFME

    assert parse(DFME.Args, ["--fast", "--dataset", "SVHN"]).eval_every == 1  # 22 epochs there, else 223


def test_a_fast_run_gives_the_accuracy_of_another(script, monkeypatch):
    monkeypatch.setattr(measures, "FOLD_FROM", 0)
    slow = script("KD", epochs=40, lamda=0.5)
    quick = script("KD", epochs=40, lamda=0.5, fast=True, tag="fast")
    assert abs(slow["accuracy"] - quick["accuracy"]) < 5 and quick["options"]["eval_every"] == 2
