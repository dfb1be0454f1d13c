"""The teacher as its API shows it: answers, counts, budgets; and that methods do not see the difference of a constant."""

from common.cli import UsageError

import pytest
import torch
import torch.nn as nn

from common.blackbox import BlackBox, rank
from common.losses import kl
from common.rounding import decimals, half_unit


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


# ---- rounded probabilities


class Server:
    """Answers that are given, as a server's."""

    identity, divisible = "", False

    def __init__(self, *answers):
        self.answers = [torch.as_tensor(a) for a in answers]

    def afford(self, x):
        """It costs nothing."""

    def answer(self, x, stage="train"):
        return self.answers.pop(0)


def probabilities(n=64, k=10, scale=4.0, seed=0):
    return (torch.randn(n, k, generator=torch.Generator().manual_seed(seed)) * scale).softmax(1)


def rounded(p, d):
    return (p.double() * 10**d).round().div(10**d).float()


def asked(answer, response="soft"):
    """Probabilities that a black box makes of one answer of a server."""
    return BlackBox(Server(answer), response)(torch.zeros(len(answer), 1, 2, 2)).softmax(1)


@pytest.mark.parametrize("d", range(1, 9))
def test_decimals_of_rounded_probabilities(d):
    p = rounded(probabilities(), d)
    assert decimals(p) == d and half_unit(p) == pytest.approx(0.5 * 10**-d)
    assert decimals(rounded(100 * probabilities(), d - 2) / 100) == d  # percent


def test_numbers_that_nobody_rounded_have_no_decimals():
    """Nor has an answer of classes alone, nor few numbers that lie on a grid by chance."""
    many = [
        probabilities(),
        probabilities(scale=60.0),
        probabilities(1),
        probabilities().amax(1, keepdim=True),
        torch.eye(10),
        torch.zeros(0, 10),
    ]
    many += [probabilities(200).topk(1).values, torch.full((3, 10), torch.nan), torch.tensor([[0.9734, torch.nan]])]
    assert [decimals(p) for p in many] == [None] * len(many) and half_unit(many[0]) == 0


def test_a_rounded_zero_is_half_a_unit(capsys):
    """A logit of -87 for what was rounded away ruins ML, which matches logits (81.6 % instead of 97.0 % on Digits)."""
    p = rounded(probabilities(), 4)
    wanted = p.where(p > 0, 5e-5)
    assert torch.allclose(asked(p), wanted / wanted.sum(1, keepdim=True), rtol=1e-4) and (p == 0).sum() > 50
    assert capsys.readouterr().out == "the teacher's probabilities are rounded to 4 decimals: 0 is taken as 5e-05\n"
    coarse = rounded(probabilities(k=1000, scale=8.0), 2)
    assert asked(coarse)[coarse.amax(1) == 1].amax(1).min() > 0.9  # a thousand halves of a unit would be more than all the rest


def test_the_decimals_of_earlier_answers_are_remembered(capsys):
    """An answer of 0 and 1 alone does not show them."""
    teacher, sure = BlackBox(Server(torch.eye(10), rounded(probabilities(), 4), torch.eye(10))), torch.zeros(10, 1, 2, 2)
    first, _, last = teacher(sure), teacher(torch.zeros(64, 1, 2, 2)), teacher(sure)
    assert first.min() < -8 < first.max() - 80 and last.softmax(1).min().item() == pytest.approx(5e-5, rel=1e-2)
    assert capsys.readouterr().out.count("rounded") == 1


@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_probabilities_that_nobody_rounded_keep_their_bits(scale, capsys):
    """As before this rule: an underflow stands for float32's smallest number."""
    p = probabilities(scale=scale)
    log_p = p.clamp_min(torch.finfo(p.dtype).tiny).log()
    found = BlackBox(Server(p))(torch.zeros(len(p), 1, 2, 2))
    assert found.equal(log_p - log_p.mean(1, keepdim=True)) and not capsys.readouterr().out and (scale == 1 or (p == 0).any())
    assert BlackBox(Server(torch.eye(10)), "hard")(torch.zeros(10, 1, 2, 2)).equal(torch.eye(10))


def test_of_the_largest_rounded_ones_the_rest_is_no_rounding_error():
    """0.9999 and 0.0001 leave 6e-8 in float32, which is nothing; 0.9 and 0.0999 leave one unit."""
    told = rounded(probabilities(seed=1), 4).topk(3)
    p = torch.full((64, 10), torch.nan).scatter(1, told.indices, told.values)
    p[0], p[1] = torch.nan, torch.nan
    p[0, :3], p[1, :3] = torch.tensor([0.9999, 0.0001, 0.0]), torch.tensor([0.9, 0.0999, 0.0])
    found = asked(p, "topk:3")
    assert torch.allclose(found[0, 2:], torch.tensor(5e-5), rtol=1e-2)
    assert torch.allclose(found[1, 3:], torch.tensor(1e-4 / 7), rtol=2e-2) and found[1, 2].item() == pytest.approx(5e-5, rel=1e-2)
