"""Stages of any net, and the losses of their features."""

from common.cli import UsageError

import pytest
import torch
from conftest import killed_after

from common.gda.hints import FitNet, ReviewKD, pyramid_loss, relations
from common.gda.stages import Stages
from common.models import build


@pytest.mark.parametrize("name, shapes", [
    ("ResNet8", [(16, 32, 32), (32, 16, 16), (64, 8, 8)]), ("ResNet32x4", [(64, 32, 32), (128, 16, 16), (256, 8, 8)]),
    ("WRN16_2", [(32, 32, 32), (64, 16, 16), (128, 8, 8)]), ("VGG8_BN", [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]),
    ("ResNet50", [(256, 32, 32), (512, 16, 16), (1024, 8, 8), (2048, 4, 4)]), ("ShuffleNetV1", [(240, 16, 16), (480, 8, 8), (960, 4, 4)]),
])  # fmt: skip
def test_stages_are_the_last_maps_of_each_height(name, shapes):
    torch.manual_seed(0)
    net = build(name, 10, (3, 32, 32))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    stages = Stages(net, (3, 32, 32), "cpu")
    assert list(stages.shapes) == shapes and net.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    with stages:
        net(torch.randn(2, 3, 32, 32))
    assert [tuple(m.shape) for m in stages.seen] == [(2, *s) for s in shapes]
    seen = stages.seen
    net(torch.randn(2, 3, 32, 32))
    assert stages.seen is seen  # quiet outside


def test_a_net_without_maps_is_one_line():
    with pytest.raises(UsageError, match="Sequential has no feature maps"):
        Stages(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), (1, 8, 8), "cpu")


def test_fitnet_is_zero_where_the_projection_gives_the_teachers_maps_and_fits_other_sizes():
    shapes = [(4, 8, 8), (6, 4, 4)]
    maps = [torch.randn(2, *s) for s in shapes]
    net = FitNet(shapes, shapes, (1, 1), None)
    for conv in net.project:
        conv.weight.data = torch.eye(conv.weight.shape[0])[:, :, None, None]
    assert net(maps, maps, None)["hint"].item() == pytest.approx(0, abs=1e-12)
    other = [(5, 16, 16), (7, 8, 8), (9, 2, 2)]
    assert torch.isfinite(FitNet(shapes, other, (1, 1), None)(maps, [torch.randn(2, *s) for s in other], None)["hint"])


def test_relations_see_neither_turns_nor_shifts_and_distances_no_scale():
    torch.manual_seed(0)
    f = torch.randn(7, 5, dtype=torch.double)
    turn, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.double))
    d, a = relations(f)
    d2, a2 = relations(3 * f @ turn + 2)
    assert torch.allclose(d, d2) and torch.allclose(a, a2) and d.sum() / (d > 0).sum() == pytest.approx(1)
    i, j, k = 0, 3, 5
    u, v = f[j] - f[i], f[k] - f[i]
    assert a[i, j, k].item() == pytest.approx((u @ v / (u.norm() * v.norm())).item())
    same = torch.zeros(3, 4, requires_grad=True)
    twice = torch.cat([same, torch.ones(1, 4)])
    sum(r.sum() for r in relations(twice)).backward()
    assert torch.isfinite(same.grad).all()


def test_review_compares_at_several_scales():
    a, b = torch.randn(2, 3, 8, 8, dtype=torch.double), torch.randn(2, 3, 8, 8, dtype=torch.double)
    assert pyramid_loss(a, a) == 0 and pyramid_loss(a, a + 1).item() == pytest.approx(1)  # the weights' sum is 1
    pools = [torch.nn.functional.adaptive_avg_pool2d(a - b, h).square().mean() for h in (4, 2, 1)]
    naive = ((a - b).square().mean() + pools[0] / 2 + pools[1] / 4 + pools[2] / 8) / (1 + 7 / 8)
    assert pyramid_loss(a, b).item() == pytest.approx(naive.item())
    small, large = [(4, 8, 8), (6, 4, 4)], [(5, 16, 16), (7, 8, 8), (9, 2, 2)]
    net = ReviewKD(small, large, (6, 9), None)
    maps = [[torch.randn(3, *s) for s in side] for side in (small, large)]
    loss = net(*maps, (torch.randn(3, 6), torch.randn(3, 9)))["review"]
    loss.backward()
    assert loss > 0 and all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("name", ["ResNet8", "ResNet50", "VGG8_BN", "ShuffleNetV1", "torchvision:resnet18"])
def test_maps_before_the_last_relu_become_those_behind_it(name):
    torch.manual_seed(0)
    net = build(name, 10, (3, 32, 32)).eval()
    behind, before = (Stages(net, (3, 32, 32), "cpu", before_relu) for before_relu in (False, True))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for stages in (behind, before):
            with stages:
                net(x)
    assert all(torch.equal(a, b.relu()) and b.min() < 0 for a, b in zip(behind.seen, before.seen, strict=True))


def test_reviewkd_begins_with_the_weights_of_its_source_and_rises(script):
    torch.manual_seed(0)
    net = ReviewKD([(16, 32, 32), (64, 8, 8)], [(16, 32, 32), (64, 8, 8)], (64, 64), None)
    for level in net.levels:
        for conv in (level.enter[0], level.leave[0]):
            assert conv.weight.std().item() == pytest.approx(conv.weight[0].numel() ** -0.5, rel=0.05)
    common = {"epochs": 1, "lamda": 0.2, "base": "reviewkd", "response": "inside", "batch_size": 300, "lr": 1e-9, "gda": False}
    full, half = (script("GDA", **common, kd_warmup=n, tag=f"w{n}")["log"]["review"] for n in (1, 2))
    assert half == pytest.approx(full / 2)


@pytest.mark.parametrize("name", ["fitnet", "rkd", "reviewkd"])
def test_bases_of_features_train_and_go_on_where_they_were_killed(name, script, monkeypatch):
    options = {"epochs": 3, "lamda": 0.1, "base": name, "response": "inside", "gda": False, "model": "ResNet14"}
    whole = script("GDA", **options, tag="whole")
    assert whole["bytes"] == 0 and set(whole["log"]) & {"hint", "distance", "review"}
    killed_after(2, monkeypatch, lambda: script("GDA", **options, tag="cut"))
    assert script("GDA", **options, tag="cut")["log"] == whole["log"]


def test_features_need_a_teacher_that_one_may_look_into(script):
    with pytest.raises(UsageError, match="--base fitnet compares features, .* --response inside"):
        script("GDA", base="fitnet")
    script("teacher", model="VGG8_BN", epochs=1)
    for base in ("fitnet", "reviewkd"):  # another family
        assert script("GDA", teacher="VGG8_BN", base=base, response="inside", epochs=1, lamda=0.1, tag=base)["log"]["sk"] > 0
