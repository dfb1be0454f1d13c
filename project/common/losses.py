"""Losses that more than one method uses.

One convention: `s` student's, `t` teacher's logits, (B, K); KL is KL(teacher || student), mean over the batch. The one check is of
shapes, since broadcasting is the error that trains on silently.
"""

import torch
import torch.nn.functional as F

KL_SCALES = {"t2": 2, "t": 1, "1": 0}


def kl(s, t, tau=1.0, scale="t2", hard=False):
    """tau^2 * KL(softmax(t / tau) || softmax(s / tau)); Hinton et al. 2015, section 2.1. A scalar, in nats.

    hard: `t` is a one-hot vector, the class and no more: KL(t || softmax(s)), which is cross-entropy on that class.

    scale: `t2` keeps the gradient's size when tau changes, `t` is the factor of MEKD's released code, `1` none.
    A constant added to a row of `s` or `t` changes nothing, so that log-probabilities serve as logits.
    """
    assert s.shape == t.shape, (s.shape, t.shape)
    if hard:
        return F.cross_entropy(s, t)
    log_s, log_t = F.log_softmax(s / tau, 1), F.log_softmax(t / tau, 1)  # (B, K)
    return F.kl_div(log_s, log_t, reduction="batchmean", log_target=True) * tau ** KL_SCALES[scale]


def kl_of_each(s, t, tau=1.0):
    """tau^2 * KL(softmax(t / tau) || softmax(s / tau)) of each row, (B,)."""
    return F.kl_div((s / tau).log_softmax(1), (t / tau).log_softmax(1), reduction="none", log_target=True).sum(1) * tau**2


def centred(u):
    """Logits (B, K) less their mean: what a soft answer and a student's logits have in common, whatever constant a row has."""
    return u - u.mean(1, keepdim=True)


def probabilities(t, hard=False):
    """The teacher's class probabilities (B, K) from its answers t; hard answers are probabilities already."""
    return t if hard else t.softmax(1)


def balance(t):
    """Negative entropy, in nats, of the mean answer over a batch of logits t (B, K): least where all classes are as frequent."""
    mean = t.softmax(1).mean(0)  # (K,)
    return torch.special.xlogy(mean, mean).sum()


def warm_up(epoch: int, epochs: int) -> float:
    """The factor of a weight that rises linearly from epoch 1 to `epochs`, and is 1 from then on."""
    return min(1.0, epoch / max(1, epochs))


def decouple(u, top):
    """Log-probabilities of (target, all others together) (B, 2), and of the others among themselves (B, K - 1), from logits u (B, K)."""
    others = torch.arange(u.shape[1] - 1, device=u.device).expand(len(u), -1)
    rest = u.gather(1, others + (others >= top))  # (B, K - 1)
    both = torch.cat([u.gather(1, top), rest.logsumexp(1, keepdim=True)], 1)
    return both.log_softmax(1), rest.log_softmax(1)


def dkd(s, t, tau=1.0, scale="t2", y=None):
    """(TCKD, NCKD) of Zhao et al. 2022, equation 7: KL(teacher || student) of both parts. y: the target classes (B,), by default the
    teacher's own; without scale, KL = TCKD + (1 - p_target) NCKD for each image."""
    top = t.argmax(1, keepdim=True) if y is None else y[:, None]
    parts = zip(decouple(s / tau, top), decouple(t / tau, top), strict=True)
    return [F.kl_div(a, b, reduction="batchmean", log_target=True) * tau ** KL_SCALES[scale] for a, b in parts]
