"""Loss terms that data-free methods use to make their synthetic images realistic and useful."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..losses import kl_of_each
from ..states import restore

BANK_SIZE, HEAD_WIDTH = 4096, 256  # of the contrastive term: number of earlier images that it uses, and width of its head


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


def norms_of(net: nn.Module) -> list[nn.BatchNorm2d]:
    """Returns the batch-norm layers of a network, in order."""
    return [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]


class NormHooks:
    """Records `record(x)` of the inputs x of batch-norm layers within `with hooks:`, into `seen`, one entry per layer of the last batch."""

    def __init__(self, norms: Sequence[nn.BatchNorm2d], record: Callable[[Tensor], Any]) -> None:
        self.norms, self.record, self.seen = norms, record, []

    def __enter__(self) -> None:
        self.seen = []
        self.hooks = [m.register_forward_pre_hook(lambda m, x: self.seen.append(self.record(x[0]))) for m in self.norms]

    def __exit__(self, *error: object) -> None:
        for hook in self.hooks:
            hook.remove()


class BatchNormHooks(NormHooks):
    """Records mean and variance of the inputs of batch-norm layers within `with hooks:`, and compares them with the teacher's.

    norms: the batch-norm layers. momentum: weight in [0, 1) of the statistics of earlier batches, which `remember` keeps.
    seen: one (mean, variance) per layer, (C,) each, of the last batch.
    """

    def __init__(self, norms: Sequence[nn.BatchNorm2d], momentum: float) -> None:
        super().__init__(norms, Moments.apply)
        self.momentum, self.past = momentum, []

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


def js(s: Tensor, t: Tensor, tau: float = 3.0) -> Tensor:
    """Returns (KL(m || p) + KL(m || q)) / 2 for the class probabilities p, q of logits s, t (B, K) at temperature tau, and their mean m.

    All probabilities are clipped to [0.01, 0.99]. It is DeepInversion's adversarial term, in the order of its released code.
    """
    p, q = (s / tau).softmax(1), (t / tau).softmax(1)
    p, q, m = (v.clamp(0.01, 0.99) for v in (p, q, (p + q) / 2))
    return sum(F.kl_div(v.log(), m, reduction="batchmean") for v in (p, q)) / 2


def total_variation(x: Tensor) -> Tensor:
    """Returns the mean absolute differences of neighbouring pixels of images (B, C, H, W), summed over four directions."""
    right, below = x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]
    diagonals = x[..., 1:, 1:] - x[..., :-1, :-1], x[..., 1:, :-1] - x[..., :-1, 1:]
    return sum(d.abs().mean() for d in (right, below, *diagonals))


def rolled(x: Tensor, flip: bool) -> Tensor:
    """Returns the batch x (B, C, H, W), shifted cyclically by up to an eighth of its side and, with `flip`, mirrored half of the time."""
    lim = x.shape[-1] // 8
    x = x.roll(torch.randint(-lim, lim + 1, (2,)).tolist(), (2, 3))
    return x.flip(3) if flip and bool(torch.rand(()) < 0.5) else x


class InstanceMeans(NormHooks):
    """Records the mean over the pixels of the inputs of batch-norm layers within `with means:`, for each image.

    features: (B, F) of the last batch, F (`width`) the channels of all layers.
    """

    def __init__(self, norms: Sequence[nn.BatchNorm2d]) -> None:
        super().__init__(norms, lambda x: x.mean((2, 3)))
        self.width = sum(m.num_features for m in norms)

    @property
    def features(self) -> Tensor:
        return torch.cat(self.seen, 1).float()


class Contrast:
    """CMI's contrastive term: behind a learned head, two views of an image are alike, and other images are not.

    width: number F of features. lr: learning rate of the head (Adam). past: features (n, 2 F) of the last BANK_SIZE images that were kept.
    Source: https://arxiv.org/abs/2105.08584; the released bank has 40,960 images, of which 4,096 random ones are compared.
    """

    def __init__(self, width: int, lr: float, device: torch.device | str = "cpu") -> None:
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, HEAD_WIDTH)).to(device)
        self.optimizer = torch.optim.Adam(self.head.parameters(), lr, fused=True)
        self.past, self.now, self.best = torch.empty(0, 2 * width, device=device), None, None

    def __call__(self, whole: Tensor, part: Tensor, tau: float = 0.2) -> Tensor:
        """Returns the InfoNCE loss of features (B, F) of whole images and of parts of them: cosines, temperature tau.

        The mean over the batch and the mean over the earlier images are added. No gradient flows through the features of whole images.
        """
        self.now = torch.cat([part, whole], 1).detach()
        parts, wholes = (torch.cat(pair) for pair in zip((part, whole), self.past.chunk(2, 1), strict=True))
        f, g = F.normalize(self.head(parts), dim=1), F.normalize(self.head(wholes), dim=1).detach()
        each = F.cross_entropy(f @ g.T / tau, torch.arange(len(f), device=f.device), reduction="none")
        return each[: len(part)].mean() + (each[len(part) :].mean() if len(self.past) else 0)

    def step(self, better: Tensor) -> None:
        """Takes a step of the head. better: whether the images of this step are the best of the synthesis so far."""
        self.best = self.now if self.best is None else torch.where(better, self.now, self.best)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def remember(self) -> None:
        """Adds the features of the best images of the synthesis to `past`."""
        self.past, self.best = torch.cat([self.past, self.best])[-BANK_SIZE:], None

    def state_dict(self) -> dict:
        return {"head": self.head.state_dict(), "optimizer": self.optimizer.state_dict(), "past": self.past}

    def load_state_dict(self, state: dict) -> None:
        restore(self.head, state["head"], "the contrastive term")
        restore(self.optimizer, state["optimizer"])
        self.past = state["past"].to(self.past)
