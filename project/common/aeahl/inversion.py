"""Loss terms that data-free methods use to make their synthetic images realistic and useful."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..losses import kl_of_each

BANK_SIZE = 4096  # number of earlier images whose features the contrastive term uses


class Moments(torch.autograd.Function):
    """Returns mean and biased variance, (C,) each, of x (N, C, H, W), in float32 or better.

    It takes one pass over x forward and one backward; autograd's own version takes seven.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        exact = x.float() if x.dtype in (torch.bfloat16, torch.half) else x
        _, mean, inverse_std = torch.native_batch_norm(exact, None, None, None, None, True, 0.0, 1e-12)
        ctx.save_for_backward(x, mean)
        return mean, inverse_std.pow(-2)

    @staticmethod
    def backward(ctx: Any, grad_mean: Tensor, grad_var: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        n = x.numel() // len(mean)
        slope = 2 * grad_var / n
        shift = grad_mean / n - slope * mean
        return torch.addcmul(shift.to(x.dtype).view(1, -1, 1, 1), x, slope.to(x.dtype).view(1, -1, 1, 1))


class BatchNormHooks:
    """Records mean and variance of the inputs of batch-norm layers within `with hooks:`, and compares them with the teacher's.

    norms: the batch-norm layers. momentum: weight in [0, 1) of the statistics of earlier batches, which `remember` keeps.
    seen: one (mean, variance) per layer, (C,) each, of the last batch.
    """

    def __init__(self, norms: Sequence[nn.BatchNorm2d], momentum: float) -> None:
        self.norms, self.momentum, self.seen, self.past = norms, momentum, [], []

    def __enter__(self) -> None:
        self.seen = []
        self.hooks = [m.register_forward_pre_hook(lambda m, x: self.seen.append(Moments.apply(x[0]))) for m in self.norms]

    def __exit__(self, *error: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def loss(self) -> Tensor | float:
        """Returns the sum over layers of ||mean - running mean|| + ||variance - running variance||; 0.0 without layers.

        Source: DeepInversion (https://arxiv.org/abs/1912.08795), equation 4, with norms that are not squared.
        """
        total = 0.0
        for i, (m, (mean, var)) in enumerate(zip(self.norms, self.seen, strict=True)):
            if self.past:
                old_mean, old_var = self.past[i]
                mean, var = torch.lerp(mean, old_mean, self.momentum), torch.lerp(var, old_var, self.momentum)
            total = total + (mean - m.running_mean).norm() + (var - m.running_var).norm()
        return total

    def remember(self) -> None:
        """Updates the statistics of earlier batches with the last batch."""
        seen, keep = [(mean.detach(), var.detach()) for mean, var in self.seen], self.momentum
        past = self.past or seen
        self.past = [tuple(torch.lerp(new, old, keep) for new, old in zip(*pair, strict=True)) for pair in zip(seen, past, strict=True)]


def disagreement(s: Tensor, t: Tensor, agreed: bool = True) -> Tensor:
    """Returns KL(teacher || student) of logits s, t (B, K), summed over the batch and divided by B; gradients flow through both.

    agreed: sum only over the images to which both assign the same class (FastDFKD, CMI), otherwise over all.
    The generator maximises it: the adversarial term of DFAD and its successors.
    """
    apart = kl_of_each(s, t)  # (B,)
    return (apart * (s.argmax(1) == t.argmax(1)) if agreed else apart).mean()


class FeatureBank:
    """Normalised features (n, F) of the last BANK_SIZE images; None before the first batch."""

    def __init__(self) -> None:
        self.features, self.last = None, None

    def remember(self) -> None:
        """Adds the features of the last batch of `contrastive_loss`."""
        if self.last is not None:
            past = [] if self.features is None else [self.features.to(self.last.device)]
            self.features = torch.cat([*past, self.last])[-BANK_SIZE:]

    def state_dict(self) -> dict:
        return {"features": self.features}

    def load_state_dict(self, state: dict) -> None:
        self.features = state["features"]


def contrastive_loss(f: Tensor, g: Tensor, bank: FeatureBank, tau: float = 0.2) -> Tensor:
    """Returns the InfoNCE loss of features f, g (B, F) of two views of the same images, with cosines and temperature tau.

    It is small if f is nearer to the other view of its image than to the other images in g and in the bank.
    Source: the contrastive term of CMI (https://arxiv.org/abs/2105.08584), here on the teacher's features without a learned head.
    """
    f, others = F.normalize(f.float(), dim=1), F.normalize(g.float(), dim=1)
    bank.last = others.detach()
    if bank.features is not None:
        others = torch.cat([others, bank.features.to(f.device)])
    return F.cross_entropy(f @ others.T / tau, torch.arange(len(f), device=f.device))
