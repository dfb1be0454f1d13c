"""Losses against golden numbers of the cards and closed forms."""

import pytest
import torch

from common.losses import kl

S = torch.tensor([[1, 2, 3, 0], [0, 0, 1, -1], [2, -1, 0.5, 0.5]])
T = torch.tensor([[3, 1, 0, 0], [1, 0, 0, -2], [0, 0, 4, 1.0]])


@pytest.mark.parametrize("tau, value", [(4.0, 1.43557908655), (1.0, 1.17957675391)])
def test_kl_golden(tau, value):
    assert kl(S, T, tau).item() == pytest.approx(value, abs=1e-6)
    assert kl(S.double(), T.double(), tau).item() == pytest.approx(value, abs=1e-9)


def test_kl_of_equal_logits_is_zero_and_blind_to_constants():
    assert kl(T, T, 5.0).item() == pytest.approx(0, abs=1e-7)
    shift = torch.tensor([[3.0], [-7.0], [100.0]])
    assert kl(S + shift, T - shift, 5.0).item() == pytest.approx(kl(S, T, 5.0).item(), abs=1e-5)


def test_kl_scales():
    t2, t, one = (kl(S, T, 5.0, scale).item() for scale in ("t2", "t", "1"))
    assert t2 == pytest.approx(25 * one, rel=1e-6) and t == pytest.approx(5 * one, rel=1e-6)


def test_kl_is_finite_at_large_logits_and_checks_shapes():
    assert torch.isfinite(kl(S * 1e4, T * 1e4))
    with pytest.raises(ValueError):
        kl(S, T[:1])


# ---- the methods' own


def naive_dkd(s, t, tau):
    """By masks, as the paper writes it: TCKD and NCKD of each image."""
    p, q = (t / tau).softmax(1), (s / tau).softmax(1)
    rows = []
    for a, b in zip(p, q, strict=True):
        k = int(a.argmax())
        others = [i for i in range(len(a)) if i != k]
        two = [(a[k], b[k]), (1 - a[k], 1 - b[k])]
        target = sum(x * (x / y).log() for x, y in two)
        ratio = [(a[i] / (1 - a[k]), b[i] / (1 - b[k])) for i in others]
        rows.append((target, sum(x * (x / y).log() for x, y in ratio), 1 - a[k]))
    return [torch.stack(c) for c in zip(*rows, strict=True)]


@pytest.mark.parametrize("tau", [1.0, 5.0])
def test_dkd_equals_the_masks_and_decomposes_kl(tau):
    from common.losses import dkd

    s, t = S.double(), T.double()
    target, others, rest = naive_dkd(s, t, tau)
    got = dkd(s, t, tau)
    assert [v.item() for v in got] == pytest.approx([tau**2 * target.mean().item(), tau**2 * others.mean().item()], rel=1e-9)
    assert kl(s, t, tau).item() == pytest.approx(tau**2 * (target + rest * others).mean().item(), rel=1e-9)


def test_dkd_oracles():
    from common.losses import dkd

    assert [v.item() for v in dkd(T, T, 5.0)] == pytest.approx([0, 0], abs=1e-6)
    top = T.argmax(1, keepdim=True)
    moved = S.scatter_add(1, top, torch.full((3, 1), 7.0))
    assert dkd(S, T)[1].item() == pytest.approx(dkd(moved, T)[1].item(), abs=1e-6)  # blind to the target's logit
    assert dkd(S[:, :2], T[:, :2])[1].item() == 0  # one other class has nothing to tell
    assert all(torch.isfinite(v) for v in dkd(S * 1e3, T * 1e3))
    assert dkd(S + 3, T - 5, 5.0)[0].item() == pytest.approx(dkd(S, T, 5.0)[0].item(), abs=1e-5)


def test_critic_and_student_pull_in_opposite_directions():
    from AL import adversarial, make_critic

    torch.manual_seed(0)
    critic, s = make_critic(4).eval(), S.clone().requires_grad_()
    passing, apart = adversarial(critic, s, T)
    (of_student,) = torch.autograd.grad(passing, s, retain_graph=True)
    assert all(g is None for g in torch.autograd.grad(passing, list(critic.parameters()), allow_unused=True, retain_graph=True))
    assert torch.autograd.grad(apart, s, allow_unused=True)[0] is None
    centred_s = (S - S.mean(1, keepdim=True)).requires_grad_()
    fake = torch.nn.functional.softplus(critic(centred_s)).mean()  # what the critic descends on s
    (of_critic,) = torch.autograd.grad(fake, centred_s)
    of_critic = of_critic - of_critic.mean(1, keepdim=True)  # through the centring
    assert ((of_student * of_critic).sum(1) < 0).all()
    shifted = adversarial(critic, S + 9, T - 4)
    assert [v.item() for v in shifted] == pytest.approx([passing.item(), apart.item()], abs=1e-5)
