"""Losses that more than one method uses.

Convention: `s` and `t` are the logits (B, K) of student and teacher. KL is KL(teacher || student), mean over the batch, in nats.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

KL_SCALES = {"t2": 2, "t": 1, "1": 0}  # name of a factor of the KL term: power of the temperature
Scale = Literal["t2", "t", "1"]


def kl(s: Tensor, t: Tensor, tau: float = 1.0, scale: Scale = "t2", hard: bool = False, standard: bool = False) -> Tensor:
    """Returns tau^2 * KL(softmax(t / tau) || softmax(s / tau)), a scalar in nats (Hinton et al. 2015, section 2.1).

    hard: t is one-hot, the teacher's class. The result is KL(t || softmax(s)), the cross-entropy to that class.
    scale: `t2` is the factor tau^2, which keeps the size of gradients if tau changes; `t` is tau (MEKD's released code); `1` is none.
    standard: standardise the logits of each row of s and t first.
    A constant added to a row of s or t does not change the result, so that log-probabilities can be used as logits.
    """
    if s.shape != t.shape:  # broadcasting would otherwise hide the error
        raise ValueError(f"kl: logits of the shapes {tuple(s.shape)} and {tuple(t.shape)}")
    if hard:
        return F.cross_entropy(s, t)
    s, t = (standardise(u) if standard else u for u in (s, t))
    log_s, log_t = F.log_softmax(s / tau, 1), F.log_softmax(t / tau, 1)  # (B, K)
    return F.kl_div(log_s, log_t, reduction="batchmean", log_target=True) * tau ** KL_SCALES[scale]


def kl_of_each(s: Tensor, t: Tensor, tau: float = 1.0) -> Tensor:
    """Returns tau^2 * KL(softmax(t / tau) || softmax(s / tau)) of each row, (B,)."""
    return F.kl_div((s / tau).log_softmax(1), (t / tau).log_softmax(1), reduction="none", log_target=True).sum(1) * tau**2


def standardise(u: Tensor) -> Tensor:
    """Returns logits u (B, K) with mean 0 and unbiased standard deviation 1 per row; a constant row becomes 0.

    Source: logit standardization, https://arxiv.org/abs/2403.01427.
    """
    return (u - u.mean(1, keepdim=True)) / (u.std(1, keepdim=True) + 1e-7)


def centred(u: Tensor) -> Tensor:
    """Returns logits (B, K) minus their mean per row, because probabilities determine logits only up to a constant per row."""
    return u - u.mean(1, keepdim=True)


def probabilities(t: Tensor, hard: bool = False) -> Tensor:
    """Returns the teacher's class probabilities (B, K) from its answers t (B, K): logits, or (hard) one-hot vectors."""
    return t if hard else t.softmax(1)


def balance(t: Tensor) -> Tensor:
    """Returns the negative entropy, in nats, of the mean class probabilities of logits t (B, K). It is smallest for balanced classes."""
    mean = t.softmax(1).mean(0)  # (K,)
    return torch.special.xlogy(mean, mean).sum()


def warm_up(epoch: int, epochs: int) -> float:
    """Returns the factor of a weight that rises linearly up to 1 at epoch `epochs`, and then stays 1. epoch: from 1."""
    return min(1.0, epoch / max(1, epochs))


def decouple(u: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
    """Returns two log-probabilities of logits u (B, K) for target classes `top` (B, 1).

    The first (B, 2) is of the target and of all other classes together, the second (B, K - 1) of the other classes among themselves.
    """
    others = torch.arange(u.shape[1] - 1, device=u.device).expand(len(u), -1)
    rest = u.gather(1, others + (others >= top))  # (B, K - 1)
    both = torch.cat([u.gather(1, top), rest.logsumexp(1, keepdim=True)], 1)
    return both.log_softmax(1), rest.log_softmax(1)


def dkd(s: Tensor, t: Tensor, tau: float = 1.0, scale: Scale = "t2", y: Tensor | None = None, standard: bool = False) -> list[Tensor]:
    """Returns [TCKD, NCKD], the KL terms of target and non-target classes (Zhao et al. 2022, equation 7).

    y: target classes (B,), by default the teacher's predictions. scale, standard: as for `kl`.
    Without a factor, KL = TCKD + (1 - p_target) NCKD for each image.
    """
    top = t.argmax(1, keepdim=True) if y is None else y[:, None]
    s, t = (standardise(u) if standard else u for u in (s, t))
    parts = zip(decouple(s / tau, top), decouple(t / tau, top), strict=True)
    return [F.kl_div(a, b, reduction="batchmean", log_target=True) * tau ** KL_SCALES[scale] for a, b in parts]
