"""Imitation of a black box without data: estimated gradients, high-entropy examples, the synthesis without queries, and what each run asks."""

from common.cli import UsageError

import json

import numpy as np
import pytest
import torch
from conftest import home_flags, killed_after
from PIL import Image

from common.blackbox import BlackBox
from common.imitation.examples import entropy, raise_entropy, strong_views
from common.imitation.extraction import forward_differences, unit_directions
from common.imitation.synthesis import AnsweredPool
from common.models import build
from common.options import flags
from common.run import start

NETS = {"latent": 8, "ngf": 4}
SMALL = {
    "DFME": NETS | {"epochs": 3, "steps": 2, "s_steps": 2, "batch_size": 16},
    "IDEAL": NETS | {"epochs": 3, "g_steps": 2, "batch_size": 20},
    "DFHL": NETS | {"epochs": 3, "g_steps": 2, "steps": 2, "h_steps": 2, "batch_size": 16},
}
QUERIES = {"DFME": 3 * 2 * 16 * (1 * 2 + 2), "IDEAL": 3 * 20, "DFHL": 3 * 2 * 16}


def folder_of(script, name, tag, root="checkpoints"):
    return next((script.home / root / name).rglob(f"*-{tag}/seed0"))


def opened(script, name, **options):
    """(the script's Args, a Run of it on Digits that has not begun)."""
    import importlib

    Args = importlib.import_module(name).Args
    return start(Args, flags(**home_flags(script.home) | {"teacher": "ResNet8", "tag": "opened"} | SMALL[name] | options))


# ---- gradients from forward differences


def orthonormal(n, shape):
    """An orthonormal basis for each of n images: (dimension, n, C, H, W)."""
    dim = shape[0] * shape[1] * shape[2]
    bases = [torch.linalg.qr(torch.randn(dim, dim, dtype=torch.double))[0] for _ in range(n)]
    return torch.stack(bases, 1).view(dim, n, *shape)


def test_forward_differences_along_a_basis_give_the_gradient_of_a_linear_and_of_a_quadratic_function():
    torch.manual_seed(0)
    x, w = torch.randn(3, 2, 4, 4, dtype=torch.double), torch.randn(2, 4, 4, dtype=torch.double)
    d = orthonormal(3, (2, 4, 4))
    assert torch.allclose(forward_differences(lambda u: (u * w).sum((1, 2, 3)), x, d, 1e-3), w.expand_as(x), atol=1e-9)
    eps = 1e-3  # of x^T x / 2: the slope along d is x . d + epsilon / 2
    wanted = x + eps / 2 * d.sum(0)
    assert torch.allclose(forward_differences(lambda u: u.square().sum((1, 2, 3)) / 2, x, d, eps), wanted, atol=1e-9)


def test_forward_differences_along_random_directions_are_right_on_average():
    """Of a linear function in 8 dimensions: the error of a mean of m estimates has the variance |w|^2 (dim - 1 or 2) / m at most."""
    torch.manual_seed(0)
    w, m = torch.tensor([1.0, -2, 3, 0, 0, 1, 2, -1]).view(2, 2, 2).double(), 20_000
    x = torch.zeros(2, 2, 2, 2, dtype=torch.double)
    d = unit_directions(x, m).double()
    assert torch.allclose(d.flatten(2).norm(dim=2), torch.ones(m, 2, dtype=torch.double), atol=1e-6)
    estimate = forward_differences(lambda u: (u * w).sum((1, 2, 3)), x, d, 1e-3)
    assert (estimate - w).abs().max() < 4 * w.norm() * (8 / m) ** 0.5 and not torch.equal(estimate[0], estimate[1])


def test_an_iteration_asks_once_about_all_points_and_moves_the_generator_only(script, monkeypatch):
    from common.imitation.extraction import Extraction

    run = opened(script, "DFME", directions=3)
    extraction = Extraction(run, lambda s, t: (s - t).abs().mean(1))
    before = [{k: v.clone() for k, v in net.state_dict().items()} for net in (extraction.G, run.student)]
    extraction.train_generator()
    assert run.teacher.counts["queries"] == run.teacher.counts["synthetic"] == 4 * 16
    assert not torch.equal(before[0]["linear.weight"], extraction.G.linear.weight) and run.student.training
    assert all(torch.equal(v, before[1][k]) for k, v in run.student.state_dict().items())


def test_the_generator_climbs_the_disagreement(script):
    """With the student fixed, and a teacher that is asked in many directions."""
    from common.imitation.extraction import Extraction

    run = opened(script, "DFME", directions=16, lr_g=1e-2, batch_size=16)
    torch.manual_seed(0)
    extraction = Extraction(run, lambda s, t: (s - t).abs().mean(1))
    run.student.eval()
    mean = lambda: extraction.value(torch.cat([extraction.unbounded() for _ in range(8)])).mean().item()  # noqa: E731
    first = mean()
    for _ in range(20):
        extraction.train_generator()
    run.student.eval()
    assert mean() > first * 1.1


# ---- high-entropy examples


def test_entropy_is_that_of_the_probabilities():
    assert (
        entropy(torch.zeros(1, 10)).item() == pytest.approx(np.log(10), rel=1e-6) and entropy(torch.tensor([[100.0, 0, 0]])).item() < 1e-6
    )


def test_steps_raise_the_entropy_within_the_range_of_pixels_and_leave_the_net_alone():
    torch.manual_seed(0)
    net = build("ResNet8", 10, (1, 8, 8), "cpu")
    net.train()
    for _ in range(20):
        net(torch.randn(32, 1, 8, 8))
    with torch.no_grad():
        net.fc.weight *= 20
    before = {k: v.clone() for k, v in net.state_dict().items()}
    view, x = (lambda x: 2 * x - 1), torch.rand(64, 1, 8, 8).round()  # at the ends of the range
    y = raise_entropy(net, view, x, 10, 0.03)
    assert y.min() >= 0 and y.max() <= 1 and not y.requires_grad and (y - x).abs().max() <= 0.3 + 0.01
    assert net.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    net.eval()
    with torch.no_grad():
        assert entropy(net(view(y))).mean() > entropy(net(view(x))).mean() + 0.2
    assert (raise_entropy(net, view, x, 0, 0.03) - x).abs().max() < 0.01 and not net.training


def test_strong_views_are_images_of_their_own():
    torch.manual_seed(0)
    x = torch.rand(1, 3, 16, 16).expand(40, -1, -1, -1)
    views = strong_views(x)
    assert views.shape == x.shape and views.min() >= 0 and views.max() <= 1
    assert all((views[0] - v).abs().max() > 0.1 for v in views[1:])
    flat = strong_views(torch.ones(100, 1, 16, 16))
    corners = flat[:, 0, 0, 0] < 0.5  # a rotation by 15 degrees moves black into the corners
    assert 0.5 < corners.float().mean() < 0.85 and (flat[:, 0, 8, 8] > 0.99).all()


# ---- the synthesis and its pool


@pytest.mark.parametrize("name", ["IDEAL", "DFHL"])
def test_a_synthesis_asks_nothing_of_the_teacher_and_trains_the_generator_only(name, script, monkeypatch):
    from common.imitation.synthesis import Synthesis

    run = opened(script, name)
    loss = lambda s, y: {"ce": torch.nn.functional.cross_entropy(s, y)}  # noqa: E731
    syn = Synthesis(run, loss, lambda n: torch.arange(n) % 10, lambda i: (i,), anew=name == "IDEAL")
    before = [{k: v.clone() for k, v in net.state_dict().items()} for net in (syn.G, run.student)]
    monkeypatch.setattr(BlackBox, "__call__", lambda *a, **k: pytest.fail("the teacher was asked"))
    syn.synthesise()
    moved = (syn.G.linear.weight - before[0]["linear.weight"]).abs().max()
    assert (moved > 0.05) == (name == "IDEAL") and moved > 0 and run.student.training  # anew: drawn again
    assert all(torch.equal(v, before[1][k]) for k, v in run.student.state_dict().items())
    assert syn.pool.n == run.args.batch_size and {k: len(v) for k, v in syn.log().items() if k != "pool"} == {"syn_ce": 2}


def test_the_pool_gets_the_batch_with_the_lowest_loss(script):
    from common.imitation.synthesis import Synthesis

    run, seen = opened(script, "DFHL", g_steps=3, augment="none"), []

    def loss(s, y):
        seen.append(s.detach())
        return {"ce": (2.0, 1.0, 3.0)[len(seen) - 1] + 0 * s.mean()}

    syn = Synthesis(run, loss, lambda n: torch.arange(n) % 10, lambda i: (i,))
    made, forward = [], syn.G.forward
    syn.G.forward = lambda z: (made.append(forward(z)), made[-1])[1]
    syn.synthesise()
    assert len(seen) == 3 and (syn.pool.x.float() / 255 - made[1]).abs().max() <= 0.5 / 255 + 1e-6


def test_an_answered_pool_asks_once_and_refuses_anothers_answers(tmp_path):
    asked = []

    def ask(x):
        asked.append(x.clone())
        return torch.nn.functional.one_hot(x[:, 0, 0, 0].long() % 3, 3).float()

    pool = AnsweredPool(tmp_path / "pool.npy", 8, (1, 4, 4), "cpu", ask=ask, classes=3)
    for _ in range(2):
        pool.add(torch.rand(4, 1, 4, 4))
    assert torch.equal(torch.cat(asked), pool.x) and len(asked) == 2 and pool.answers.shape == (8, 3)
    again = AnsweredPool(tmp_path / "pool.npy", 8, (1, 4, 4), "cpu", ask=ask, classes=3)
    again.load_state_dict(pool.state_dict())
    assert torch.equal(again.answers, pool.answers) and len(asked) == 2
    for wrong in (pool.answers[:-1], pool.answers.double(), pool.answers * torch.nan):
        with pytest.raises(ValueError, match="the pool's answers are"):
            again.load_state_dict(pool.state_dict() | {"answers": wrong})


# ---- whole runs


@pytest.mark.parametrize(
    "name, response", [("DFME", "soft"), ("DFME", "logits"), *((n, r) for n in ("IDEAL", "DFHL") for r in ("hard", "soft"))]
)
def test_a_run_asks_what_it_says_beforehand_and_shows_its_images(name, response, script):
    result = script(name, **SMALL[name], response=response, query_budget=QUERIES[name], tag="x")
    assert result["queries"] == result["synthetic"] == QUERIES[name] and result["images"] == result["private"] == 0
    assert Image.open(next((script.home / "logs" / name).rglob("synthetic.png"))).size[0] > 300
    with pytest.raises(UsageError, match=f"allows {QUERIES[name] - 1} more queries .*, {QUERIES[name]} are wanted"):
        script(name, **SMALL[name], response=response, query_budget=QUERIES[name] - 1, tag="y")


def test_dfme_asks_for_each_direction_and_for_none_where_the_generator_rests(script):
    three = script("DFME", **SMALL["DFME"] | {"directions": 3, "g_steps": 2, "epochs": 1}, tag="three")
    rests = script("DFME", **SMALL["DFME"] | {"g_steps": 0, "epochs": 1}, tag="rests")
    assert three["queries"] == 2 * 16 * (2 * 4 + 2) and rests["queries"] == 2 * 16 * 2


def test_both_learning_rates_of_dfme_fall_together(script):
    script("DFME", **SMALL["DFME"] | {"epochs": 2, "milestones": "1", "gamma": 0.3, "lr_g": 1e-3}, tag="x")
    objects = torch.load(folder_of(script, "DFME", "x") / "state.pt", weights_only=True)["objects"]
    assert objects["extraction"]["optimizer"]["param_groups"][0]["lr"] == pytest.approx(3e-4)
    assert objects["optimizer0"]["param_groups"][0]["lr"] == pytest.approx(0.03)


def test_ideal_asks_once_about_each_image_of_its_pool(script, monkeypatch):
    sent, answer = [], BlackBox.__call__
    monkeypatch.setattr(BlackBox, "__call__", lambda self, x, *a: (sent.append(x), answer(self, x, *a))[1])
    result = script("IDEAL", **SMALL["IDEAL"], tag="x")
    pool = torch.from_numpy(np.load(folder_of(script, "IDEAL", "x") / "pool.npy"))
    assert torch.allclose(torch.cat(sent), pool / 127.5 - 1, atol=1e-5) and result["queries"] == len(pool) == 60
    answers = torch.load(folder_of(script, "IDEAL", "x") / "state.pt", weights_only=True)["objects"]["synthesis"]["pool"]["answers"]
    assert answers.shape == (60, 10) and (answers.sum(1) == 1).all()


@pytest.mark.parametrize("name", SMALL)
def test_a_killed_run_goes_on_to_the_same_bits(name, script, monkeypatch):
    script(name, **SMALL[name], tag="whole")
    killed_after(2, monkeypatch, lambda: script(name, **SMALL[name], tag="cut"))
    result = script(name, **SMALL[name], tag="cut")
    assert result["queries"] == QUERIES[name] and result["repeated"] == 0
    a, b = (torch.load(folder_of(script, name, t) / "student.pt", weights_only=True)["model"] for t in ("whole", "cut"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    logs = [(folder_of(script, name, t, "logs") / "log.jsonl").read_text() for t in ("whole", "cut")]
    assert logs[0] == logs[1] and len(logs[0].splitlines()) == 3
    pictures = [(folder_of(script, name, t, "logs") / "synthetic.png").read_bytes() for t in ("whole", "cut")]
    assert pictures[0] == pictures[1]


def test_the_earlier_pool_is_set_aside_before_a_new_one_is_written(script, monkeypatch):
    script("IDEAL", **SMALL["IDEAL"], tag="x")
    path = folder_of(script, "IDEAL", "x") / "pool.npy"
    there = path.read_bytes()

    def die(*a, **k):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(BlackBox, "__call__", die)
        with pytest.raises(KeyboardInterrupt):
            script("IDEAL", **SMALL["IDEAL"] | {"seed": 0}, tag="x", overwrite=True)
    assert (path.parent.with_name("seed0.before") / "pool.npy").read_bytes() == there


def test_the_settings_of_the_released_code_follow_the_data_set(script):
    import importlib

    from common.options import parse

    parsed = {name: lambda *argv, name=name: parse(importlib.import_module(name).Args, argv) for name in SMALL}
    a = parsed["DFME"]("--dataset", "svhn")
    assert (a.epochs, a.lr_g, a.milestones) == (22, 5e-5, "0.5,0.8") and parsed["DFME"]("--dataset", "svhn", "--epochs", "3").epochs == 3
    assert 22 * 50 * 256 * 7 <= 2e6 and 223 * 50 * 256 * 7 <= 2e7 < 224 * 50 * 256 * 7
    a = parsed["IDEAL"]("--dataset", "cifar10")
    assert (a.epochs, a.g_steps, a.augment) == (400, 5, "crop_flip") and parsed["IDEAL"]("--dataset", "MNIST").augment == "none"
    a = parsed["DFHL"]("--dataset", "CIFAR100")
    assert (a.batch_size, a.g_steps, a.lr_g, a.lr_z, a.smoothing) == (512, 15, 5e-3, 0.015, 0.02)


def test_dfhls_targets_are_smoothed_and_its_diversity_is_to_base_ten(script, monkeypatch):
    """A student with equal probabilities: the cross-entropy to any target is ln 10, the diversity term -3 log10(10)."""
    from common.run import Run

    monkeypatch.setattr(Run, "accuracy", lambda run: {})
    monkeypatch.setattr(Run, "net", lambda run, name, original=Run.net: zeroed(original(run, name), name == "ResNet14"))
    script("DFHL", **SMALL["DFHL"] | {"epochs": 1, "lr": 1e-30}, model="ResNet14", tag="x")
    (row,) = map(json.loads, (folder_of(script, "DFHL", "x", "logs") / "log.jsonl").read_text().splitlines())
    assert row["syn_ce"] == pytest.approx([np.log(10)] * 2, rel=1e-5) and row["syn_even"] == pytest.approx([-3, -3], rel=1e-5)


def zeroed(net, whether):
    """`net`, with a last layer of zeros if wanted."""
    if whether:
        torch.nn.init.zeros_(net.fc.weight)
        torch.nn.init.zeros_(net.fc.bias)
    return net
