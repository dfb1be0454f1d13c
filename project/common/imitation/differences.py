"""Gradient of a function of images that can only be evaluated, from forward differences."""

from collections.abc import Callable

import torch
from torch import Tensor


def unit_directions(x: Tensor, m: int) -> Tensor:
    """Returns m random directions for each image x (B, C, H, W), uniform on the unit sphere: (m, B, C, H, W)."""
    d = torch.randn(m, *x.shape, device=x.device)
    return d / d.flatten(2).norm(dim=2)[:, :, None, None, None]


def forward_differences(f: Callable[[Tensor], Tensor], x: Tensor, directions: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Returns the estimated gradient (B, C, H, W) of f at each image x (B, C, H, W), and f(x) (B,).

    f: images (N, C, H, W) -> values (N,); it is called once, with (m + 1) * B images. directions: unit vectors (m, B, C, H, W).
    The estimate is the dimension of x times the mean of (f(x + epsilon * d) - f(x)) / epsilon * d over the directions d. Its expectation
    for random directions is the gradient, up to O(epsilon). Its value for an orthonormal basis is the gradient, if f is linear.
    Source: Truong et al. 2021, https://arxiv.org/abs/2011.14779, section 3.
    """
    m, n = len(directions), len(x)
    points = torch.cat([x[None], x + epsilon * directions])  # (m + 1, B, C, H, W)
    values = f(points.flatten(0, 1)).view(m + 1, n)
    slopes = (values[1:] - values[0]) / epsilon  # (m, B)
    return x[0].numel() * (slopes[:, :, None, None, None] * directions).mean(0), values[0]
