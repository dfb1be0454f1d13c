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
    with pytest.raises(AssertionError):
        kl(S, T[:1])
