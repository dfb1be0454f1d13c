"""Soft labels: budgets, bases, priors; bought once, used by several students, refused where they do not fit."""

from common.cli import UsageError

import json
import math
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import Death, dying, run
from safetensors.torch import save_file

from common.blackbox import BlackBox
from common.db3kd.labels import SoftLabelOptions, budgets_of, search_stages, soft_label_loss
from common.db3kd.priors import adversarial_points, dct_basis, pilot_directions
from common.losses import kl
from common.transfer import Transfer

FEW = {"epochs": 1, "lamda": 0.03}  # 39 images
MBD = FEW | {"sr_mode": "mbd", "budgets": "120,300"}


def columns(home, name="DB3KD", at=""):
    return Transfer(next((home / "checkpoints" / name).rglob(f"*{at}/seed0/transfer.safetensors"))).columns


def test_dct_is_orthonormal_and_slow():
    b = dct_basis(5, (3, 12, 12)).double()
    assert b.shape == (75, 432) and torch.allclose(b @ b.T, torch.eye(75, dtype=torch.double), atol=1e-6)
    assert (
        torch.allclose(dct_basis(12, (1, 12, 12)).abs().sum(1).amin(), dct_basis(12, (1, 12, 12)).abs().sum(1)[-1], rtol=1)
        and len(dct_basis(9, (1, 4, 4))) == 16
    )
    flat = dct_basis(1, (1, 6, 6))
    assert torch.allclose(flat, torch.full((1, 36), 1 / 6))


def test_crossing_finds_the_nearest_point_of_a_linear_net():
    g = torch.Generator().manual_seed(0)
    w = torch.randn(3, 16, generator=g)
    net = lambda x: x.flatten(1) @ w.T  # noqa: E731
    x, target = torch.rand(20, 1, 4, 4, generator=g), torch.randint(3, (20,), generator=g)
    keep = net(x).argmax(1) != target
    x, target = x[keep], target[keep]
    start = (x + 3 * w[target].view(-1, 1, 4, 4)).clamp(0, 1)
    good = net(start).argmax(1) == target
    x, target, start = x[good], target[good], start[good]
    near = adversarial_points(net, x, target, start, 300)
    r = (near - x).flatten(1).norm(dim=1)
    assert len(x) > 5 and (net(near).argmax(1) == target).all() and near.min() >= 0 and near.max() <= 1
    for i in range(len(x)):  # no hit nearer on the way from the image to it
        assert net(torch.lerp(x[i : i + 1], near[i : i + 1], 0.97)).argmax() != target[i]
    assert (r <= (start - x).flatten(1).norm(dim=1) + 1e-6).all()


def test_nearest_pilots_gives_the_mean_and_the_nearest():
    pilots = torch.zeros(2, 3, 4)
    pilots[0, :, 0] = torch.tensor([0.0, 1.0, 5.0])
    way = torch.zeros(2, 2, 3, 4)
    way[0, 1] = torch.eye(4)[:3]
    found = pilot_directions(torch.tensor([[0.9, 0, 0, 0]]), torch.tensor([0]), torch.tensor([1]), pilots, way, 3)
    assert torch.allclose(found[0, 0], torch.tensor([1, 1, 1, 0]) / math.sqrt(3))
    assert torch.equal(found[0, 1:], torch.eye(4)[[1, 0]])


def given(**options):
    return SoftLabelOptions(**options)


def test_budgets_are_read_and_refused():
    assert budgets_of(given(sr_mode="mbd", budgets="4000,1000, 2000")) == ([1000, 2000, 4000], 2)
    assert budgets_of(given(sr_mode="mbd", budgets="4000,1000", at=1000)) == ([1000, 4000], 0)
    assert budgets_of(given()) == ([88], 0)
    for options, words in (
        ({"budgets": "1000,x"}, "not numbers of queries; use integers with commas"),
        ({"budgets": "50,1000"}, "50 is too small, because 8 rays with --tolerance 0.001 take up to 88 queries"),
        ({"at": 7}, "--at 7 is not one of --budgets 1000"),
    ):
        with pytest.raises(UsageError, match=words):
            budgets_of(given(sr_mode="mbd", **options))


def test_bases_are_read_and_refused():
    stages, priors = search_stages(given(basis="bank+dct+surrogate"), (1, 28, 28), "cpu")
    assert [None if b is None else len(b) for _, b in stages] == [49, 196, None, None] and priors == {"bank", "surrogate"}
    assert [s for s, _ in stages] == ["arc"] * 3 + ["hsja"]
    stages, _ = search_stages(given(basis="dct:10", algorithm="signopt"), (3, 32, 32), "cpu")
    assert [(s, len(b)) for s, b in stages] == [("signopt", 300)]
    for basis in ("dct:1", "wavelet", "dct:x", "full+"):
        with pytest.raises(UsageError, match="unknown part .*; use full, dct"):
            given(basis=basis).validate()


@pytest.mark.parametrize("options", [{"budgets": "50"}, {"basis": "fourier"}, {"at": 7}])
def test_wrong_options_are_said_before_anything_is_bought(options, script):
    with pytest.raises(UsageError, match="not one of|unknown part|take up to 88"):
        script("DB3KD", **MBD | options)
    assert not (script.home / "checkpoints/DB3KD").exists()


def test_the_loss_is_that_of_the_paper():
    """O16: value and gradient in closed form; at high temperature squared differences of centred logits; no matter the batch's size."""
    g = torch.Generator().manual_seed(0)
    s, logits = (3 * torch.randn(32, 10, generator=g, dtype=torch.double) for _ in range(2))
    t = torch.nn.functional.one_hot(torch.arange(32) % 10, 10).double()
    args = SimpleNamespace(temperature=20.0, w_kl=1.28, w_ce=1.0)
    s.requires_grad_()
    terms = soft_label_loss(args, s, t, logits)
    p, q = (logits / 20).softmax(1), (s / 20).softmax(1)
    summed = (p * (p.log() - q.log())).sum()  # the released code sums over its batch of 512
    assert terms["kl"].item() == pytest.approx(512 / 400 * 400 * summed.item() / 32)
    assert terms["ce"].item() == pytest.approx(-(t * s.log_softmax(1)).sum(1).mean().item())
    (slope,) = torch.autograd.grad(terms["kl"], s)
    assert torch.allclose(slope, 1.28 * 400 * (q - p) / 20 / 32)
    c = lambda v: v - v.mean(1, keepdim=True)  # noqa: E731
    limit = (c(logits) - c(s)).square().sum(1).mean() / (2 * 10 * 20**2)
    assert kl(s, logits, 20.0, "1").item() == pytest.approx(limit.item(), rel=0.03)
    twice = soft_label_loss(args, torch.cat([s, s]), torch.cat([t, t]), torch.cat([logits, logits]))
    assert twice["kl"].item() == pytest.approx(terms["kl"].item())


def test_mbd_labels_are_nearer_than_bd_and_all_is_counted(script):
    bd = script("DB3KD", **FEW, tag="rays")
    mbd = script("DB3KD", **MBD, basis="dct", tag="mbd")
    a, b = columns(script.home, at="rays"), columns(script.home, at="mbd")
    own = b["answers"].bool()
    d = b["mbd"]
    assert d.shape == (*own.shape, 2) and (d[own] == math.inf).all() and (d[..., 1] <= d[..., 0]).all()
    assert (d[~own] <= a["bd"][~own] + 1e-5).all() and d[~own][:, 1].mean() < 0.95 * a["bd"][~own].mean()
    assert b["mbd_asked"][..., 0].max() <= 120 and b["mbd_asked"][..., 1].max() <= 300
    assert mbd["mixed"] == b["mbd_asked"][..., 1].sum() and bd["queries"] < mbd["queries"]


def test_labels_serve_other_students_and_budgets_without_a_query(script, monkeypatch):
    first = script("DB3KD", **MBD)
    path = next((script.home / "checkpoints/DB3KD").rglob("transfer.safetensors"))
    monkeypatch.setattr(BlackBox, "__call__", lambda *a, **k: pytest.fail("the teacher was asked"))
    again = script("DB3KD", **MBD, transfer=path, tag="again")
    assert again["log"] == first["log"] and again["own"]["queries"] == 0 and again["queries"] == first["queries"]
    less = script("DB3KD", **MBD, transfer=path, at=120, model="ResNet14")
    asked = columns(script.home, at="hard")["mbd_asked"].sum((0, 1))
    assert less["queries"] == again["queries"] - asked[1] + asked[0] < again["queries"] and less["log"] != first["log"]
    assert less["bytes"] == 4 * 64 * less["queries"] and less["mixed"] == asked[0]
    with pytest.raises(UsageError, match="holds mbd distances made with --budgets 120,300 \\(now 100,300\\); use the same"):
        script("DB3KD", **MBD | {"budgets": "100,300"}, transfer=path, tag="other")
    sd = script("DB3KD", **FEW, sr_mode="sd", budgets="7", transfer=path, tag="sd")  # another kind of distance is made beside it
    assert sd["own"]["queries"] == 0 and {"mbd", "sd", "sd_asked"} <= columns(script.home, at="sd").keys()


@pytest.mark.parametrize("basis", ["surrogate+dct:4", "bank+dct:4"])
def test_priors_find_boundaries_and_count(basis, script, monkeypatch):
    monkeypatch.setattr("common.db3kd.labels.PILOT_BUDGET", 300)
    result = script("DB3KD", **MBD | {"basis": basis, "budgets": "120"}, pilots=1, tag="prior")
    found = columns(script.home, at="prior")
    own = found["answers"].bool()
    assert torch.isfinite(found["mbd"][~own]).all() and found["mbd_asked"].max() <= 120
    pilots = result["mixed"] - int(found["mbd_asked"].sum())
    assert (0 < pilots <= 10 * 9 * 300) if "bank" in basis else pilots == 0


@pytest.mark.parametrize("name, more", [
    ("DB3KD", MBD | {"basis": "bank+surrogate+dct:4", "budgets": "120", "pilots": 1}),
    ("ZSDB3KD", {"epochs": 1, "samples": 4, "iterations": 2, "sr_mode": "sd"}),
])  # fmt: skip
def test_killed_between_waves_asks_only_for_what_is_left(name, more, trained, tmp_path, monkeypatch):
    """Waves of 10 or 20 images; the process dies in the midst, goes on, and ends with the same weights and counts; no saved wave is paid again."""
    monkeypatch.setattr("ZSDB3KD.QUERIES_PER_WAVE", {"cpu": 0})  # first: it is imported here
    monkeypatch.setattr("common.db3kd.labels.QUERIES_PER_SAVE", {"cpu": 10 * 9 * 120})
    monkeypatch.setattr("common.db3kd.labels.PILOT_BUDGET", 150)
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    for home in (straight, cut):
        shutil.copytree(trained / "checkpoints", home / "checkpoints")
    options = {"teacher": "ResNet8", **more}
    calls, answer = [], BlackBox.__call__
    with monkeypatch.context() as m:
        m.setattr(BlackBox, "__call__", lambda self, *a, **k: (calls.append(1), answer(self, *a, **k))[1])
        whole = run(name, straight, **options)
    with monkeypatch.context() as m:
        m.setattr(BlackBox, "__call__", dying(len(calls) * 8 // 10))
        with pytest.raises(Death):
            run(name, cut, **options)
    before = Transfer(next((cut / "checkpoints" / name).rglob("transfer.safetensors"))).about["own"]["queries"]
    kept, needed = (c.get("mbd", c["answers"]) for c in (columns(cut, name), columns(straight, name)))
    assert 0.2 * whole["queries"] < before < whole["queries"] and 0 < len(kept) < len(needed)
    counted, count = [], BlackBox.count
    with monkeypatch.context() as m:
        m.setattr(BlackBox, "count", lambda self, x, *a, **k: (counted.append(len(x)), count(self, x, *a, **k))[1])
        resumed = run(name, cut, **options)
    assert {k: resumed[k] for k in ("accuracy", "own", "log")} == {k: whole[k] for k in ("accuracy", "own", "log")}
    assert resumed["queries"] == whole["queries"] + resumed["repeated"]
    assert sum(counted) == whole["own"]["queries"] - before
    nets = [torch.load(next((h / "checkpoints" / name).rglob("student.pt")), weights_only=True)["model"] for h in (straight, cut)]
    assert all(torch.equal(nets[0][k], nets[1][k]) for k in nets[0])


def test_images_outside_the_range_are_refused(script):
    script("KD", **FEW, response="hard")
    path = next((script.home / "checkpoints/KD").rglob("transfer.safetensors"))
    t = Transfer(path)
    images = {"images": torch.full((20, 1, 8, 8), 3.0), "answers": torch.eye(10).repeat(2, 1)}
    save_file(images, path, {"transfer": json.dumps(t.about | {"ends": [20]})})
    with pytest.raises(UsageError, match=r"lie in \[2, 2\], but distances need images in \[0, 1\]"):
        script("DB3KD", **FEW, transfer=path)


def test_a_class_that_the_teacher_never_says_is_named(script, monkeypatch, capsys):
    silent = lambda self, answer: torch.nn.functional.one_hot(torch.where((s := answer.argmax(1)) == 3, 2, s), 10).float()  # noqa: E731
    monkeypatch.setattr(BlackBox, "recover", silent)
    result = script("DB3KD", **FEW, tag="silent")
    assert "to the classes 3: distances to these are not measured" in capsys.readouterr().out and math.isfinite(result["log"]["kl"])
    found = columns(script.home, at="silent")
    assert (found["bd"][:, 3] == math.inf).all() and (found["bd_asked"][:, 3] == 0).all()


def test_a_teacher_of_probabilities_is_asked_for_its_class_and_counted_alike(script):
    hard, soft = (script("DB3KD", **MBD | {"budgets": "120"}, response=r, tag=r) for r in ("hard", "soft"))
    # two logits that differ can have one probability, so that a point within rounding of the boundary falls to the other side
    assert hard["queries"] == soft["queries"] and hard["log"]["kl"] == pytest.approx(soft["log"]["kl"], rel=1e-4)


def test_pseudo_samples_need_no_data_and_serve_other_methods(script, monkeypatch):
    options = {"epochs": 1, "samples": 4, "iterations": 6, "budgets": "120"}
    first = script("ZSDB3KD", **options)
    found = columns(script.home, "ZSDB3KD")
    assert first["private"] == first["mixed"] == 0 and first["synthetic"] == first["queries"]
    assert (
        found["images"].shape == (40, 1, 8, 8) and found["snapshots"].shape == (40, 3, 1, 8, 8) and found["snapshots"].dtype == torch.uint8
    )
    assert (found["answers"].sum(0) >= 2).all() and found["margins"][:, 2].mean() > found["margins"][:, 0].mean()
    from PIL import Image

    assert Image.open(next((script.home / "logs").rglob("samples.png"))).size == (10 * 58 + 2, 3 * 58 + 2)
    monkeypatch.setattr(BlackBox, "__call__", lambda *a, **k: pytest.fail("the teacher was asked"))
    path = next((script.home / "checkpoints/ZSDB3KD").rglob("transfer.safetensors"))
    for name in ("ZSDB3KD", "DB3KD"):
        more = options if name == "ZSDB3KD" else {"epochs": 1, "sr_mode": "mbd", "budgets": "120"}
        assert script(name, **more, transfer=path, tag="again")["own"]["queries"] == 0
    assert script("KD", epochs=1, transfer=path, response="hard")["queries"] == first["queries"]


def test_pseudo_samples_keep_to_a_budget(script):
    result = script("ZSDB3KD", epochs=1, samples=50, iterations=2, sr_mode="sd", query_budget=150_000)
    assert 20 <= len(columns(script.home, "ZSDB3KD")["answers"]) < 500 and result["queries"] <= 150_000
    with pytest.raises(UsageError, match="allows 1000 more queries"):
        script("ZSDB3KD", epochs=1, samples=50, query_budget=1000)


def test_robustness_of_any_model(script, capsys):
    script("KD", epochs=1, lamda=0.2)
    student = next((script.home / "checkpoints/KD").rglob("student.pt"))
    for options in ({}, {"teacher_path": student, "tag": "student"}):
        result = script("robustness", samples=40, budget=200, **options)
        table = result["distances"]
        assert result["queries"] <= 1297 + 40 * 201 and table["all"]["images"] == 40
        assert 0 < table["all"]["low"] < table["all"]["median"] < table["all"]["high"]
    assert "class  images" in capsys.readouterr().out and len([*(script.home / "logs/robustness").rglob("distances.png")]) == 2
    with pytest.raises(UsageError, match="allows 500 more"):
        script("robustness", samples=40, budget=200, query_budget=500, tag="few")
    before = sorted(script.home.rglob("*"))
    script("robustness", dry_run=True, overwrite=True)
    assert sorted(script.home.rglob("*")) == before


def test_a_surrogate_learns_the_teachers_classes_even_from_few_images():
    from common.db3kd.priors import train_surrogate
    from common.models import build

    torch.manual_seed(0)
    x = torch.rand(40, 1, 8, 8)
    y = (x[:, 0, :4].mean((1, 2)) > x[:, 0, 4:].mean((1, 2))).long()
    net = train_surrogate(build("ResNet8", 2, (1, 8, 8)), x, y, steps=120)
    assert not net.training and (net(x).argmax(1) == y).all()
