"""A recorded training step computes what the plain one does, to the bit, whatever the batches; and what cannot be recorded is not."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from conftest import killed_after
from fake_graph import FakeGraph
from pretend import pretend_gpu

from common import steps
from common.steps import RecordedStep, Recorder, Step

CPU = torch.device("cpu")
CUDA = SimpleNamespace(type="cuda")
REAL = {name: getattr(steps, name) for name in ("Graph", "on_side_stream")}


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    """FakeGraph in the place of a CUDA graph; gives the list of those that are made."""
    monkeypatch.setattr(FakeGraph, "graphs", [])
    monkeypatch.setattr(steps, "Graph", FakeGraph)
    monkeypatch.setattr(steps, "on_side_stream", lambda f: f())
    return FakeGraph.graphs


class Training:
    """A net with batch norm and dropout, two optimizers, and a loss that is not constant."""

    def __init__(self, adam, device=CPU):
        torch.manual_seed(0)
        make = partial(torch.optim.Adam, fused=True) if adam else partial(torch.optim.SGD, momentum=0.9, weight_decay=1e-3, fused=True)
        parts = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(144, 3)
        self.net, self.head, self.device = nn.Sequential(*parts).to(device), nn.Linear(3, 3, device=device), device
        self.optimizers = [make(net.parameters(), lr=0.01) for net in (self.net, self.head)]

    def loss(self, x, y):
        s = self.net(x)
        return {"ce": F.cross_entropy(s, y), "l2": (self.head(s) - s).square().mean()}

    def run(self, step):
        """14 steps with another learning rate in the last three, the fifth and the ninth on short batches; gives all that they have changed."""
        torch.manual_seed(2)
        g, terms = torch.Generator().manual_seed(1), []
        for number in range(14):
            n = 3 if number in (4, 8) else 8
            if number == 11:
                for o in self.optimizers:
                    o.param_groups[0]["lr"] = 0.001
            batch = torch.randn(n, 1, 8, 8, generator=g), torch.randint(3, (n,), generator=g)
            terms.append(step(*(t.to(self.device) for t in batch)))
        states = [dict(enumerate(s.values())) for o in self.optimizers for s in o.state_dict()["state"].values()]
        values = [*self.net.state_dict().values(), *self.head.state_dict().values(), *(v for s in states for v in s.values())]
        return [v.detach().clone() for v in [*values, *(t[k] for t in terms for k in t), torch.get_rng_state()]]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(u, v) for u, v in zip(a, b, strict=True))


@pytest.mark.parametrize("adam", [False, True], ids=["SGD", "Adam"])
def test_replays_equal_plain_steps(adam, fake):
    plain, recorded = Training(adam), Training(adam)
    expected = plain.run(Step(plain.loss, plain.optimizers, CPU, "off"))
    step = RecordedStep(Step(recorded.loss, recorded.optimizers, CPU, "off"), pytest.fail)
    assert same(recorded.run(step), expected)
    assert [g.replays for g in fake] == [6, 2]  # 14 steps, less 4 to warm up and 2 short ones; anew for the second learning rate
    assert all(not group.get("capturable") for o in recorded.optimizers for group in o.param_groups)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("adam", [False, True], ids=["SGD", "Adam"])
def test_replays_on_a_gpu(adam, monkeypatch):
    """The graph itself. As many random numbers are drawn; the rest is equal but for rounding."""
    for name, value in REAL.items():
        monkeypatch.setattr(steps, name, value)
    device = torch.device("cuda")
    plain, recorded = Training(adam, device), Training(adam, device)
    expected = plain.run(Step(plain.loss, plain.optimizers, device, "off"))
    numbers = torch.cuda.get_rng_state()
    found = recorded.run(RecordedStep(Step(recorded.loss, recorded.optimizers, device, "off"), pytest.fail))
    assert torch.equal(torch.cuda.get_rng_state(), numbers)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(found, expected, strict=True))


def test_the_stand_in_does_not_repeat_what_python_does(fake):
    """Otherwise the tests above would show nothing."""
    t, counted = Training(False), []

    def loss(x, y):
        counted.append(1)
        return {"ce": len(counted) * t.loss(x, y)["ce"]}

    u = Training(False)
    number = iter(range(1, 99))
    expected = u.run(Step(lambda x, y: {"ce": next(number) * u.loss(x, y)["ce"]}, u.optimizers[:1], CPU, "off"))
    assert not same(t.run(RecordedStep(Step(loss, t.optimizers[:1], CPU, "off"), pytest.fail)), expected)
    assert len(counted) == 4 + 2 + 2  # to warm up, short, recorded


def test_a_loss_that_waits_is_not_recorded_and_computes_the_same(fake, capsys):
    plain, recorded = Training(False), Training(False)

    def waiting(t):
        return lambda x, y: {"ce": t.loss(x, y)["ce"] * (1 + x.mean().item())}

    args, expected = (
        SimpleNamespace(compile=True, amp="off", model="ResNet8"),
        plain.run(Step(waiting(plain), plain.optimizers, CPU, "off")),
    )
    recorder = Recorder(args, CPU)
    recorder.device = CUDA
    step = recorder.step(waiting(recorded), recorded.optimizers, True)
    assert isinstance(step, RecordedStep)
    step.step.device = CPU
    assert same(recorded.run(step), expected) and len(fake) == 1 and fake[0].replays == 0
    recorder.refuse("again")
    words = "--compile: the training steps are not recorded as a CUDA graph (operation not permitted when stream is capturing)\n"
    assert capsys.readouterr().out == words


@pytest.mark.parametrize("change, words", [
    ({}, ""), ({"compile": False}, None), ({"device": CPU}, None), ({"repeatable": False}, "this method does more in a step than compute"),
    ({"world": "2"}, "the processes exchange gradients"), ({"fused": False}, "an optimizer is not fused"),
    ({"model": "mine.py:Net"}, "a network from a file may do more in a step than compute"),
])  # fmt: skip
def test_what_is_recorded(change, words, capsys, monkeypatch):
    given = {"compile": True, "device": CUDA, "repeatable": True, "world": "1", "fused": True, "model": "ResNet8"} | change
    monkeypatch.setenv("WORLD_SIZE", given["world"])
    recorder = Recorder(SimpleNamespace(amp="off", **given), given["device"])
    adam = torch.optim.Adam(nn.Linear(1, 1).parameters(), fused=given["fused"])
    for _ in range(2):
        assert isinstance(recorder.step(lambda x: {}, [adam], given["repeatable"]), RecordedStep if words == "" else Step)
    said = f"--compile: the training steps are not recorded as a CUDA graph ({words})\n"
    assert capsys.readouterr().out == (said if words else "")


# ---- the scripts, on the pretend GPU

CASES = {
    "teacher": {},
    "KD": {"response": "hard", "optimizer": "adam"},
    "ML": {"augment": "crop"},
    "KN": {"budget": 50, "choice": "adaptive", "rounds": 2, "epochs": 6, "batch_size": 5},
    "AM": {"first": 60, "queries": 20, "pairs": 100, "epochs": 4},
    "DB3KD": {"sr_mode": "sd"},
    "MEKD": {"steps": 5, "lamda": 0.2},
}
SHORT = {"epochs": 2, "lamda": 0.1, "batch_size": 25, "eval_every": 2, "device": "cuda"}


def weights(home, tag):
    found = next(home.rglob(f"*-{tag}/seed0/result.json")).parent
    return [v for p in sorted(found.glob("*.pt")) for v in torch.load(p, map_location="cpu", weights_only=True).get("model", {}).values()]


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(nn.Module, "compile", lambda self: None)
    with pretend_gpu() as found:
        yield found


@pytest.mark.parametrize("name", CASES)
def test_a_script_trains_the_same_with_recorded_steps(name, script, gpu, fake):
    a = script(name, **SHORT | CASES[name], tag="plain")
    assert not fake
    b = script(name, **SHORT | CASES[name], tag="recorded", compile=True)
    assert sum(g.replays for g in fake) > 0
    assert a["log"] == b["log"] and same(*(weights(script.home, tag) for tag in ("plain", "recorded")))


def test_a_killed_run_with_recorded_steps_ends_as_an_undisturbed_one(script, gpu, fake, monkeypatch):
    options = SHORT | {"augment": "crop", "compile": True, "optimizer": "adam"}
    script("KD", **options, tag="whole")
    killed_after(1, monkeypatch, lambda: script("KD", **options, tag="killed"))
    torch.manual_seed(5)
    script("KD", **options, tag="killed")
    assert same(*(weights(script.home, tag) for tag in ("whole", "killed"))) and sum(g.replays for g in fake) > 0
