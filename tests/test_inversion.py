"""Terms of a synthesis: batch-norm statistics, disagreement, contrast, balance; each against a closed form."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from common.aeahl.inversion import (
    BANK_SIZE,
    BatchNormHooks,
    Contrast,
    InstanceMeans,
    Moments,
    disagreement,
    js,
    rolled,
    total_variation,
)
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


def test_contrast_is_its_formula_and_looks_back_at_the_best_images():
    torch.manual_seed(0)
    contrast = Contrast(8, 1e-2)
    whole, part = torch.randn(4, 8), torch.randn(4, 8, requires_grad=True)

    def naive(parts, wholes):
        f, g = (F.normalize(contrast.head(u), dim=1) for u in (parts, wholes))
        return torch.stack([-(f[i] @ g[i] / 0.2) + (f[i] @ g.T / 0.2).exp().sum().log() for i in range(len(f))])

    loss = contrast(whole, part)
    assert loss.item() == pytest.approx(naive(part, whole).mean().item(), abs=1e-5)
    loss.backward()
    assert part.grad.abs().sum() > 0
    contrast.step(torch.tensor(True))
    best = contrast.now
    contrast(whole + 1, part.detach())
    contrast.step(torch.tensor(False))  # a worse step
    contrast.remember()
    assert torch.equal(contrast.past, best) and torch.equal(best, torch.cat([part, whole], 1).detach())
    each = naive(torch.cat([part, best[:, :8]]), torch.cat([whole, best[:, 8:]]))
    assert contrast(whole, part).item() == pytest.approx((each[:4].mean() + each[4:].mean()).item(), abs=1e-5)
    contrast.past, contrast.best = torch.zeros(BANK_SIZE, 16), best
    contrast.remember()
    assert len(contrast.past) == BANK_SIZE and torch.equal(contrast.past[-4:], best)


def test_contrast_falls_as_its_head_learns():
    torch.manual_seed(0)
    contrast, whole = Contrast(8, 1e-2), torch.randn(16, 8)
    losses = []
    for _ in range(30):
        loss = contrast(whole, whole + 0.1 * torch.randn(16, 8))
        loss.backward()
        contrast.step(torch.tensor(True))
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5


def test_jensen_shannon_is_zero_for_equal_logits_symmetric_and_its_formula():
    torch.manual_seed(0)
    s, t = torch.randn(5, 4, dtype=torch.double), torch.randn(5, 4, dtype=torch.double)
    p, q = (s / 3).softmax(1), (t / 3).softmax(1)
    m = (p + q) / 2
    assert m.min() > 0.01  # nothing is clipped
    naive = sum((m[i] * (m[i] / v[i]).log()).sum() for v in (p, q) for i in range(5)) / 10
    assert js(s, t).item() == pytest.approx(naive.item(), rel=1e-9) == js(t, s).item()
    assert js(s, s + 2).item() == pytest.approx(0, abs=1e-12) and torch.isfinite(js(1e4 * s, 1e4 * t))


def test_total_variation_counts_four_directions():
    x = torch.tensor([[0.0, 1.0], [2.0, 4.0]])[None, None]
    assert total_variation(x).item() == pytest.approx((1 + 2) / 2 + (2 + 3) / 2 + 4 + 1)
    assert total_variation(torch.full((2, 3, 4, 4), 0.3)) == 0


def test_a_rolled_batch_holds_the_same_pixels_shifted_by_at_most_an_eighth():
    torch.manual_seed(0)
    x = torch.rand(2, 1, 16, 16)
    shifts = [x.roll((i, j), (2, 3)) for i in range(-2, 3) for j in range(-2, 3)]

    def which(y):
        return [k for k, s in enumerate(shifts) if torch.equal(s, y)]

    plain = [rolled(x, False) for _ in range(200)]
    assert {k for y in plain for k in which(y)} == set(range(25)) and all(which(y) for y in plain)
    flipped = [rolled(x, True) for _ in range(50)]
    assert 10 < sum(bool(which(y)) for y in flipped) < 40 and all(which(y) or which(y.flip(3)) for y in flipped)


def test_means_of_each_image():
    layers, norms = net()
    x, means = torch.randn(8, 3, 8, 8), InstanceMeans(norms)
    with means:
        layers(x)
    a = layers[0](x)
    b = layers[3](F.relu(layers[1](a)))
    assert means.width == 9 and torch.allclose(means.features, torch.cat([a.mean((2, 3)), b.mean((2, 3))], 1))
