"""Prior knowledge about a decision boundary, used before the teacher is queried. No function here queries the teacher.

There are three priors: low-frequency cosines (images are smooth), a surrogate network that learned the teacher's answers, and the
boundary points of other images (the pilots).
"""

import math
from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


def dct_basis(k: int, shape: tuple[int, int, int]) -> Tensor:
    """Returns the k x k cosines of lowest frequency of each channel of images (C, H, W): orthonormal rows (C k^2, C H W)."""
    c, *sides = shape
    waves = [torch.cos(math.pi / n * (torch.arange(n) + 0.5) * torch.arange(min(k, n))[:, None]) for n in sides]  # (k, n) each
    a, b = (w / w.norm(dim=1, keepdim=True) for w in waves)
    return torch.block_diag(*[torch.einsum("ah,bw->abhw", a, b).flatten(2).flatten(0, 1)] * c)


def train_surrogate(
    net: nn.Module, x: Tensor, y: Tensor, epochs: int = 8, steps: int = 500, batch_size: int = 128, lr: float = 1e-3
) -> nn.Module:
    """Returns `net`, trained with Adam on images x (N, ...) and the teacher's classes y (N,), in evaluation mode.

    epochs: number of epochs, raised where necessary so that there are at least `steps` steps.
    """
    adam = torch.optim.Adam(net.train().parameters(), lr)
    for _ in range(max(epochs, math.ceil(steps / math.ceil(len(x) / batch_size)))):
        for i in torch.randperm(len(x), device=x.device).split(batch_size):
            if len(i) > 1:  # batch norm cannot train on one image
                adam.zero_grad()
                F.cross_entropy(net(x[i]), y[i]).backward()
                adam.step()
    return net.eval()


def adversarial_points(net: Callable[[Tensor], Tensor], x: Tensor, target: Tensor, start: Tensor, steps: int = 40) -> Tensor:
    """Returns the nearest points (P, C, H, W) to images x (P, C, H, W) in [0, 1] that `net` assigns to the class `target` (P,).

    The search starts at the points `start` (P, C, H, W) and returns them where the network never predicts the target.
    It decouples direction and norm (Rony et al. 2019, https://arxiv.org/abs/1811.09600). Each step follows the unit gradient.
    The distance then shrinks slightly if the network predicts the target, and grows slightly otherwise.
    """
    offset, best, shape = start - x, start.clone(), (-1, 1, 1, 1)
    length = offset.flatten(1).norm(dim=1)
    least = torch.full_like(length, math.inf)
    for step in range(steps):
        rest = 0.5 * (1 + math.cos(math.pi * step / steps))
        z = (x + offset).requires_grad_()
        s = net(z)
        margin = s.gather(1, target[:, None])[:, 0] - s.scatter(1, target[:, None], -math.inf).amax(1)
        (slope,) = torch.autograd.grad(margin.sum(), z)
        r, hit = offset.flatten(1).norm(dim=1), margin.detach() > 0
        better = hit & (r < least)
        best[better], least[better] = z.detach()[better], r[better]
        offset = offset + (0.01 + rest) * slope / slope.flatten(1).norm(dim=1).clamp_min(1e-12).view(shape)
        length = length * torch.where(hit, 1 - 0.05 * (0.1 + rest), 1 + 0.05 * (0.1 + rest))
        offset = offset * (length / offset.flatten(1).norm(dim=1).clamp_min(1e-12)).view(shape)
        offset = (x + offset).clamp(0, 1) - x
    return best


def pilot_directions(x: Tensor, s: Tensor, target: Tensor, pilots: Tensor, directions: Tensor, n: int) -> Tensor:
    """Returns n unit directions (P, n, d) from pilot images of the same class to the same target class.

    The first is the mean over all pilots of the class; the others belong to the n - 1 pilots nearest to x.
    x: images (P, d); s, target: classes (P,); pilots: images (K, m, d) of each class; directions (K, K, m, d): from each pilot to the
    boundary of each other class, 0 if none is known.
    """
    apart = torch.stack([(x - own).norm(dim=1) for own in pilots[s].unbind(1)], 1)  # (P, m)
    near = apart.topk(min(n - 1, apart.shape[1]), largest=False).indices  # (P, n - 1)
    found = torch.cat([directions.mean(2)[s, target][:, None], directions[s[:, None], target[:, None], near]], 1)
    return found / found.norm(dim=2, keepdim=True).clamp_min(1e-12)
