"""GDA: the distribution of a student's logits over a batch is aligned with the teacher's, as a whole.

Two terms, beside any loss that compares image by image. Fisher-Rao: the distance of each row's mean and deviation from the teacher's.
Sinkhorn: the cost of carrying the batch's predictions over to the teacher's, whichever image they belong to. The released code of
«Logit Distillation via Global Distribution Alignment»; entropic transport as in SinKD.
"""

import functools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..options import opt

TAU, EPS, SWEEPS, TOLERANCE = 2.0, 0.1, 20, 1e-4  # temperature of the predictions, entropy of the plan, sweeps at most, error of its rows


@dataclass
class AlignmentOptions:
    """The options of both terms."""

    GROUP: ClassVar = "method"

    gda: bool = opt(True, "leave out both terms of GDA: the base loss alone")
    w_fr: float = opt(0.02, "weight of the Fisher-Rao term", ge=0, alias="fisher_rao_lamda")
    w_sk: float = opt(12.8, "weight of the Sinkhorn term", ge=0)
    centre: bool = opt(False, "compare only the standard deviations of the logits in the Fisher-Rao term, not their means")
    sk_tolerance: float = opt(1e-4, "largest error of the transport plan's row sums at which the sweeps end; 0: all 20 sweeps", ge=0, le=1)
    debias: bool = opt(False, "subtract the Sinkhorn cost of each side against itself")


def aligned(s, t, args):
    """The weighed terms {fr, sk} of logits s, t (B, K); one that weighs nothing is not evaluated."""
    terms = {}
    if args.gda and args.w_fr:
        terms["fr"] = args.w_fr * fisher_rao(s, t, args.centre)
    if args.gda and args.w_sk:
        how = {"tolerance": 0.0 if args.compile else args.sk_tolerance, "debias": args.debias}
        terms["sk"] = args.w_sk * (compiled() if args.compile else sinkhorn)(s, t, **how)
    return terms


@functools.cache
def compiled():
    """The Sinkhorn term as a few fused kernels; a loop that ends when it may would be a program a sweep."""
    return torch.compile(sinkhorn)


def fisher_rao(s, t, centre=False):
    """Mean distance, over the rows of logits s, t (B, K), of the normal distributions with a row's mean and unbiased deviation.

    2 sqrt(2) arsinh sqrt(a / (8 sigma sigma')), a = (mu - mu')^2 + 2 (sigma - sigma')^2: the geodesic distance under the Fisher metric
    (released: by artanh, which cancels and saturates). Zero, with a zero gradient, where both agree. centre: means do not count, since
    a softmax does not see them.
    """
    (var_s, mean_s), (var_t, mean_t) = torch.var_mean(s, 1), torch.var_mean(t, 1)
    tiny = torch.finfo(s.dtype).tiny ** 0.25
    sigma_s, sigma_t = (var.clamp_min(tiny**2).sqrt() for var in (var_s, var_t))
    gap = 0 if centre else (mean_s - mean_t).square()
    ratio = (gap + 2 * (sigma_s - sigma_t).square()) / (8 * sigma_s * sigma_t)
    return 2 * math.sqrt(2) * Arsinh.apply(ratio).mean()


class Arsinh(torch.autograd.Function):
    """r -> arsinh sqrt(r), r >= 0; the gradient at 0, where it is infinite, is taken as 0."""

    @staticmethod
    def forward(ctx, r):
        ctx.save_for_backward(r)
        return r.sqrt().arcsinh()

    @staticmethod
    def backward(ctx, g):
        (r,) = ctx.saved_tensors
        return torch.where(r > 0, g / (2 * (r * (1 + r)).sqrt()), 0.0)


def standardise(u):
    """Rows of logits u (B, K) with mean 0 and unbiased deviation 1, as in logit standardization (2403.01427); a constant row is 0."""
    return (u - u.mean(1, keepdim=True)) / (u.std(1, keepdim=True) + 1e-7)


def plan(cost, eps=EPS, sweeps=SWEEPS, tolerance=TOLERANCE):
    """The entropic transport plan (B, B) of a cost (B, B): exp(-cost / eps), its rows and then its columns made to sum to 1, in turn.

    In the log domain, so that nothing underflows. It ends when no row's sum is off by more than `tolerance` (0: never), or after `sweeps`.
    """
    log = -cost / eps
    for _ in range(sweeps):
        log = log - log.logsumexp(1, keepdim=True)
        log = log - log.logsumexp(0, keepdim=True)
        if tolerance and (log.detach().exp().sum(1) - 1).abs().max() <= tolerance:
            break
    return log.exp()


def transport(p, q, eps=EPS, sweeps=SWEEPS, tolerance=TOLERANCE):
    """The mean, over a batch, of the L1 distance over which the plan carries predictions p (B, K) to q (B, K): in [0, 2]."""
    cost = torch.cdist(p, q, 1)  # (B, B)
    return (plan(cost, eps, sweeps, tolerance) * cost).sum() / len(p)


def sinkhorn(s, t, tau=TAU, eps=EPS, sweeps=SWEEPS, tolerance=TOLERANCE, debias=False):
    """`transport` from the softmax of the student's standardised logits s (B, K), at temperature tau, to that of the teacher's t.

    debias: less half of what each side costs against itself, so that equal sides cost nothing.
    """
    p, q = ((standardise(u) / tau).softmax(1) for u in (s, t))
    how = eps, sweeps, tolerance
    own = (transport(p, p, *how) + transport(q, q, *how)) / 2 if debias else 0
    return transport(p, q, *how) - own
