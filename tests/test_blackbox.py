"""The teacher as its API shows it: answers, counts, budgets; and that methods do not see the difference of a constant."""

from common.cli import UsageError

import pytest
import torch
import torch.nn as nn

from common.blackbox import BlackBox, rank
from common.losses import kl


class Net(nn.Module):
    """Logits are the first K pixels; dropout shows whether it is in evaluation mode."""

    def __init__(self, k=4):
        super().__init__()
        self.k, self.scale, self.drop, self.calls = k, nn.Parameter(torch.ones(1)), nn.Dropout(0.5), []

    def forward(self, x):
        self.calls.append(len(x))
        return self.drop(x.flatten(1)[:, : self.k] * self.scale)


def images(n=10):
    return torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def test_logits_are_the_nets_own_without_gradient_in_chunks():
    net = Net().train()
    teacher = BlackBox(net, "logits", chunk=4)
    t = teacher(images())
    assert torch.equal(t, images().flatten(1)[:, :4]) and not t.requires_grad and net.calls == [4, 4, 2]
    assert not any(p.requires_grad for p in net.parameters())


def test_counts_images_and_bytes_private_and_synthetic_apart():
    teacher = BlackBox(Net())
    teacher(images(10))
    teacher(images(3), "synthetic")
    assert teacher.counts == {"queries": 13, "private": 10, "mixed": 0, "public": 0, "synthetic": 3, "bytes": 13 * 16 * 4}
    assert torch.allclose(teacher.audit(images()).exp().sum(1), torch.ones(10)) and teacher.counts["queries"] == 13


@pytest.mark.parametrize("tau", [1.0, 5.0])
def test_soft_and_logit_answers_give_the_same_kd_loss(tau):
    s = torch.randn(10, 4, generator=torch.Generator().manual_seed(1))
    x = images() * 10
    soft, logits = (BlackBox(Net(), r)(x) for r in ("soft", "logits"))
    assert kl(s, soft, tau).item() == pytest.approx(kl(s, logits, tau).item(), rel=1e-4)
    assert torch.allclose(soft, logits - logits.mean(1, keepdim=True), atol=1e-3)


def test_topk_keeps_the_largest_and_spreads_the_rest():
    p = BlackBox(Net(6), "topk:2")(images()).softmax(1)
    full = images().flatten(1)[:, :6].softmax(1)
    top = full.topk(2)
    assert torch.allclose(p.gather(1, top.indices), top.values, atol=1e-5)
    rest = (1 - top.values.sum(1, keepdim=True)) / 4
    others = torch.ones_like(p, dtype=torch.bool).scatter(1, top.indices, False)
    assert torch.allclose(p[others].view(10, 4), rest.expand(-1, 4), atol=1e-5)


def test_topk_of_all_classes_is_soft():
    assert torch.allclose(BlackBox(Net(), "topk:9")(images()), BlackBox(Net(), "soft")(images()), atol=1e-4)


def test_hard_is_one_hot():
    t = BlackBox(Net(), "hard")(images())
    assert torch.equal(t.argmax(1), images().flatten(1)[:, :4].argmax(1)) and torch.equal(t.sum(1), torch.ones(10))


def test_answers_stay_finite_where_probabilities_underflow():
    assert torch.isfinite(BlackBox(Net())(images() * 1e4)).all()


def test_budget_stops_before_the_first_query_over_it():
    net = Net()
    teacher = BlackBox(net, budget=12)
    teacher(images(10))
    with pytest.raises(UsageError, match=r"allows 2 more queries \(10 asked so far\), 3 are wanted"):
        teacher(images(3))
    assert net.calls == [10] and teacher.counts["queries"] == 10
    teacher(images(2))


def test_what_others_have_spent_is_of_the_budget():
    teacher = BlackBox(Net(), budget=12)
    teacher.earlier = 7
    assert teacher.left == 5
    with pytest.raises(UsageError, match=r"allows 5 more queries \(7 asked so far\)"):
        teacher(images(6))
    teacher(images(5))
    assert teacher.left == 0


def test_inside_only_of_a_white_box_counted_with_gradient_and_nothing_sent():
    from common.models import build

    net = build("ResNet8", 4, (1, 8, 8), "cpu")
    teacher, x = BlackBox(net, "inside", budget=12), torch.randn(8, 1, 8, 8).requires_grad_()
    logits, feature = teacher.inside(x)
    logits.sum().backward()
    assert logits.shape == (8, 4) and feature.shape == (8, 64) and x.grad.abs().sum() > 0
    assert teacher.counts["queries"] == teacher.counts["synthetic"] == 8 and teacher.counts["bytes"] == 0
    with pytest.raises(UsageError, match="allows 4 more"):
        teacher.inside(x)
    with pytest.raises(UsageError, match="black box.*--response inside"):
        BlackBox(net, "logits").inside(x)


@pytest.mark.parametrize("response", ["sof", "topk", "topk:0", "topk:x", "hard:3", ""])
def test_unknown_responses(response):
    with pytest.raises(UsageError, match="topk:k"):
        rank(response)


def test_counts_survive_a_state_dict():
    a, b = BlackBox(Net()), BlackBox(Net())
    a(images())
    b.load_state_dict(a.state_dict())
    b(images())
    assert (a.counts["queries"], b.counts["queries"]) == (10, 20)
