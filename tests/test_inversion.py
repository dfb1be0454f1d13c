"""Terms of a synthesis: batch-norm statistics, disagreement, contrast, balance; each against a closed form."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from common.aeahl.inversion import BANK_SIZE, BatchNormHooks, FeatureBank, Moments, contrastive_loss, disagreement
from common.losses import balance, kl


def test_moments_are_the_mean_and_the_biased_variance_with_their_gradient():
    torch.manual_seed(0)
    x = torch.randn(3, 4, 5, 6, dtype=torch.double, requires_grad=True)
    mean, var = Moments.apply(x)
    assert torch.allclose(mean, x.mean((0, 2, 3))) and torch.allclose(var, x.var((0, 2, 3), unbiased=False))
    assert torch.autograd.gradcheck(Moments.apply, x)
    flat = Moments.apply(torch.ones(2, 3, 4, 4))
    assert flat[0].tolist() == [1, 1, 1] and flat[1].tolist() == pytest.approx([0, 0, 0], abs=1e-9)


def net():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5))
    return layers.eval(), [layers[1], layers[4]]


def test_taps_are_zero_at_the_teachers_own_statistics_and_their_gradient_is_finite():
    layers, norms = net()
    x = torch.randn(8, 3, 8, 8, requires_grad=True)
    taps = BatchNormHooks(norms, 0.9)
    with taps:
        layers(x)
    for m, (mean, var) in zip(norms, taps.seen, strict=True):
        m.running_mean, m.running_var = mean.detach(), var.detach()
    with taps:
        layers(x)
    # the second layer's statistics moved with the first's, so once more
    for m, (mean, var) in zip(norms, taps.seen, strict=True):
        m.running_mean, m.running_var = mean.detach(), var.detach()
    layers[1].running_mean, layers[1].running_var = (v.detach() for v in taps.seen[0])
    with taps:
        layers(x)
    loss = taps.loss()
    loss.backward()
    assert loss.item() < 1e-5 and torch.isfinite(x.grad).all()


def test_taps_agree_with_a_direct_computation_and_are_quiet_outside():
    layers, norms = net()
    x = torch.randn(8, 3, 8, 8)
    taps = BatchNormHooks(norms, 0.0)
    with taps:
        layers(x)
    a = layers[0](x)
    b = layers[3](F.relu(layers[1](a)))
    direct = sum(
        (u.mean((0, 2, 3)) - m.running_mean).norm() + (u.var((0, 2, 3), unbiased=False) - m.running_var).norm()
        for u, m in ((a, norms[0]), (b, norms[1]))
    )
    assert taps.loss().item() == pytest.approx(direct.item(), rel=1e-5)
    seen = list(taps.seen)
    layers(torch.randn(4, 3, 8, 8))
    assert taps.seen == seen
    # a constant shifts the mean's part alone
    taps = BatchNormHooks(norms[:1], 0.0)
    parts = []
    for shift in (0.0, 3.0):
        with taps:
            norms[0](a + shift)
        (mean, var), m = taps.seen[0], norms[0]
        parts.append(((mean - m.running_mean).norm(), (var - m.running_var).norm()))
    assert parts[0][1].item() == pytest.approx(parts[1][1].item(), rel=1e-5) and parts[1][0] > parts[0][0] + 1


def test_a_past_equal_to_the_teachers_statistics_leaves_a_share_of_the_distance():
    layers, norms = net()
    x = torch.randn(8, 3, 8, 8)
    plain, past = BatchNormHooks(norms, 0.9), BatchNormHooks(norms, 0.9)
    past.past = [(m.running_mean, m.running_var) for m in norms]
    for taps in (plain, past):
        with taps:
            layers(x)
    assert past.loss().item() == pytest.approx(0.1 * plain.loss().item(), rel=1e-4)
    plain.remember()
    assert all(torch.equal(a, b) for p, q in zip(plain.past, plain.seen, strict=True) for a, b in zip(p, q, strict=True))
    past.remember()
    assert torch.allclose(past.past[0][0], 0.9 * norms[0].running_mean + 0.1 * past.seen[0][0])


def test_disagreement_counts_only_where_both_agree_and_divides_by_all():
    torch.manual_seed(0)
    t = torch.randn(6, 5)
    s = t + 0.01 * torch.randn(6, 5)
    assert (s.argmax(1) == t.argmax(1)).all()
    assert disagreement(s, t).item() == pytest.approx(kl(s, t).item(), rel=1e-5)
    far = t.roll(1, 1)
    assert disagreement(far, t).item() == 0 < disagreement(far, t, agreed=False).item()
    half = torch.cat([s[:3], far[3:]])
    assert disagreement(half, t).item() == pytest.approx(kl(s[:3], t[:3]).item() * 3 / 6, rel=1e-4)
    a, b = s.requires_grad_(), t.requires_grad_()
    disagreement(a, b).backward()
    assert a.grad.abs().sum() > 0 and b.grad.abs().sum() > 0


def test_balance_is_least_where_all_classes_are_as_frequent():
    even, one = torch.zeros(4, 10), torch.eye(10)[[3] * 4] * 100
    assert balance(even).item() == pytest.approx(-torch.log(torch.tensor(10.0)).item()) and balance(one).item() == pytest.approx(
        0, abs=1e-5
    )


def test_contrast_is_low_where_views_of_an_image_are_alike_and_looks_back():
    f, bank = torch.eye(8), FeatureBank()
    alike, mixed = contrastive_loss(f, f, bank, 0.1), contrastive_loss(f, f.roll(1, 0), bank, 0.1)
    assert alike < 0.01 < 5 < mixed
    bank.remember()
    assert torch.equal(bank.features, f.roll(1, 0)) and contrastive_loss(f, f, bank, 0.1) > alike + 0.5
    bank.features = torch.zeros(BANK_SIZE, 8)
    bank.remember()
    assert len(bank.features) == BANK_SIZE and torch.equal(bank.features[-8:], f)
