"""High-entropy examples: augmented images, changed until the student is less sure of their class."""

from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..augment import rotation
from ..utils import exact

ZOOM = 0.05  # largest part of an image's side that a strong augmentation cuts off
NOISE = 1e-3  # standard deviation of the noise that is added to pixels in [0, 1]


def entropy(s: Tensor) -> Tensor:
    """Returns the entropy, in nats, of the class probabilities of logits s (B, K), for each row (B,)."""
    return torch.special.entr(s.float().softmax(1)).sum(1)


def strong_views(x: Tensor) -> Tensor:
    """Returns images x (B, C, H, W) in [0, 1], each enlarged by up to 5 % per axis, mirrored in either axis, rotated, and with noise.

    Each mirroring has probability 1/2; the rotation is by -15, 0 or 15 degrees, filled with black.
    """
    n, device = len(x), x.device
    scale = 1 - ZOOM * torch.rand(n, 1, 2, device=device)
    signs = 1 - 2.0 * (torch.rand(n, 1, 2, device=device) < 0.5)
    turn = rotation(torch.randint(-1, 2, (n,), device=device) / 2)  # (B, 2, 3); rotation(1) is by 30 degrees
    matrix = turn * torch.cat([scale * signs, torch.ones(n, 1, 1, device=device)], 2)
    with exact(x):
        x = F.grid_sample(x, F.affine_grid(matrix, x.shape, align_corners=False), align_corners=False)
    return (x + NOISE * torch.randn_like(x)).clamp(0, 1)


def raise_entropy(net: nn.Module, view: Callable[[Tensor], Tensor], x: Tensor, steps: int, size: float) -> Tensor:
    """Returns images x (B, C, H, W) in [0, 1] after `steps` steps that raise the entropy of the net's prediction.

    A step changes each pixel by `size` (as a fraction of the pixel range) in the direction of the gradient's sign. The net is in evaluation
    mode meanwhile. view: images in [0, 1] -> what the net sees.
    Source: Yuan et al. 2024, https://arxiv.org/abs/2312.05924, section 3 (high-entropy examples).
    """
    training = net.training
    net.eval()
    x = x + NOISE * torch.randn_like(x)
    with torch.enable_grad():
        for _ in range(steps):
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(entropy(net(view(x))).sum(), x)
            x = (x + size * gradient.sign()).clamp(0, 1)
    net.train(training)
    return x.detach().clamp(0, 1)
