"""GDA (Global Distribution Alignment): aligns the distribution of the student's logits over a batch with the teacher's.

It adds two terms to a loss that compares image by image. The Fisher-Rao term is the distance between the mean and standard deviation of
each image's logits and those of the teacher. The Sinkhorn term is the cost of transporting the student's predictions of a batch to the
teacher's, whichever image they belong to.
Source: the released code of "Logit Distillation via Global Distribution Alignment"; entropic transport as in SinKD.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..losses import standardise
from ..options import opt

TAU = 2.0  # temperature of the predictions in the Sinkhorn term
EPS = 0.1  # entropy regularisation of the transport plan
SWEEPS = 20  # largest number of Sinkhorn sweeps
TOLERANCE = 1e-4  # error of the plan's row sums at which the sweeps end


@dataclass
class AlignmentOptions:
    """Options of the Fisher-Rao and the Sinkhorn term."""

    GROUP: ClassVar = "method"

    gda: bool = opt(True, "leave out the Fisher-Rao and the Sinkhorn term: train with the base loss only")
    w_fr: float = opt(0.02, "weight of the Fisher-Rao term", ge=0, alias="fisher_rao_lamda")
    w_sk: float = opt(12.8, "weight of the Sinkhorn term", ge=0)
    centre: bool = opt(False, "compare only the standard deviations of the logits in the Fisher-Rao term, not their means")
    sk_tolerance: float = opt(
        1e-4, "error of the transport plan's row sums at which the Sinkhorn sweeps end; 0: always 20 sweeps", ge=0, le=1
    )
    debias: bool = opt(False, "subtract the Sinkhorn costs of student and teacher against themselves from the Sinkhorn term")


def alignment_terms(s: Tensor, t: Tensor, args: AlignmentOptions) -> dict[str, Tensor]:
    """Returns the weighted terms {fr, sk} of logits s, t (B, K). A term with weight 0 is not computed."""
    terms = {}
    if args.gda and args.w_fr:
        terms["fr"] = args.w_fr * fisher_rao(s, t, args.centre)
    if args.gda and args.w_sk:
        options = {"tolerance": 0.0 if args.compile else args.sk_tolerance, "debias": args.debias}
        terms["sk"] = args.w_sk * (compiled() if args.compile else sinkhorn)(s, t, **options)
    return terms


@functools.cache
def compiled() -> Callable[..., Tensor]:
    """Returns `sinkhorn` compiled into a few fused kernels.

    Callers use tolerance 0: a loop that can end early would be compiled once for each number of sweeps.
    """
    return torch.compile(sinkhorn)


def fisher_rao(s: Tensor, t: Tensor, centre: bool = False) -> Tensor:
    """Returns the mean Fisher-Rao distance over the rows of logits s, t (B, K).

    A row stands for the normal distribution with its mean mu and unbiased standard deviation sigma. The distance is
    2 sqrt(2) arsinh sqrt(a / (8 sigma sigma')), a = (mu - mu')^2 + 2 (sigma - sigma')^2: the geodesic distance of the Fisher metric.
    (The released code uses artanh, which loses digits and saturates.) Distance and gradient are 0 for equal rows.
    centre: ignore the means, since a softmax does not depend on them.
    """
    (var_s, mean_s), (var_t, mean_t) = torch.var_mean(s, 1), torch.var_mean(t, 1)
    tiny = torch.finfo(s.dtype).tiny ** 0.25
    sigma_s, sigma_t = (var.clamp_min(tiny**2).sqrt() for var in (var_s, var_t))
    gap = 0 if centre else (mean_s - mean_t).square()
    ratio = (gap + 2 * (sigma_s - sigma_t).square()) / (8 * sigma_s * sigma_t)
    return 2 * math.sqrt(2) * Arsinh.apply(ratio).mean()


class Arsinh(torch.autograd.Function):
    """Returns arsinh sqrt(r) for r >= 0. Its gradient at 0, which is infinite, is set to 0."""

    @staticmethod
    def forward(ctx: Any, r: Tensor) -> Tensor:
        ctx.save_for_backward(r)
        return r.sqrt().arcsinh()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (r,) = ctx.saved_tensors
        return torch.where(r > 0, g / (2 * (r * (1 + r)).sqrt()), 0.0)


def transport_plan(cost: Tensor, eps: float = EPS, sweeps: int = SWEEPS, tolerance: float = TOLERANCE) -> Tensor:
    """Returns the entropic transport plan (B, B) of a cost (B, B): exp(-cost / eps) with rows and columns scaled in turn to sum to 1.

    It computes in the log domain to avoid underflow. It ends when no row sum is off by more than `tolerance` (0: never), or after
    `sweeps` sweeps.
    """
    log = -cost / eps
    for _ in range(sweeps):
        log = log - log.logsumexp(1, keepdim=True)
        log = log - log.logsumexp(0, keepdim=True)
        if tolerance and (log.detach().exp().sum(1) - 1).abs().max() <= tolerance:
            break
    return log.exp()


def transport_cost(p: Tensor, q: Tensor, eps: float = EPS, sweeps: int = SWEEPS, tolerance: float = TOLERANCE) -> Tensor:
    """Returns the mean L1 distance over which the plan transports predictions p (B, K) to predictions q (B, K): in [0, 2]."""
    cost = torch.cdist(p, q, 1)  # (B, B)
    return (transport_plan(cost, eps, sweeps, tolerance) * cost).sum() / len(p)


def sinkhorn(
    s: Tensor, t: Tensor, tau: float = TAU, eps: float = EPS, sweeps: int = SWEEPS, tolerance: float = TOLERANCE, debias: bool = False
) -> Tensor:
    """Returns the `transport_cost` between the softmax, at temperature tau, of standardised logits s and t (B, K).

    debias: subtract half of the cost of each side against itself, so that equal sides cost 0.
    """
    p, q = ((standardise(u) / tau).softmax(1) for u in (s, t))
    options = eps, sweeps, tolerance
    own = (transport_cost(p, p, *options) + transport_cost(q, q, *options)) / 2 if debias else 0
    return transport_cost(p, q, *options) - own
