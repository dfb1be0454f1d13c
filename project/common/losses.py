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
