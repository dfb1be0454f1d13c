"""What is known of a boundary before the teacher is asked about it: images change slowly from pixel to pixel, our own student has
learned from the answers, and other images' boundary points are there. Nothing here asks the teacher.
"""

import math

import torch
import torch.nn.functional as F


def dct(k, shape):
    """The k x k slowest cosines of each channel of images (C, H, W): orthonormal rows (C k^2, C H W)."""
    c, *sides = shape
    waves = [torch.cos(math.pi / n * (torch.arange(n) + 0.5) * torch.arange(min(k, n))[:, None]) for n in sides]  # (k, n) each
    a, b = (w / w.norm(dim=1, keepdim=True) for w in waves)
    return torch.block_diag(*[torch.einsum("ah,bw->abhw", a, b).flatten(2).flatten(0, 1)] * c)


def learn(net, x, y, epochs=8, steps=500, batch_size=128, lr=1e-3):
    """Trains `net` on images x (N, ...) and their classes y (N,), as the surrogate of the teacher that gave them; `steps` at least."""
    adam = torch.optim.Adam(net.train().parameters(), lr)
    for _ in range(max(epochs, math.ceil(steps / math.ceil(len(x) / batch_size)))):
        for i in torch.randperm(len(x), device=x.device).split(batch_size):
            if len(i) > 1:  # batch norm cannot train on one
                adam.zero_grad()
                F.cross_entropy(net(x[i]), y[i]).backward()
                adam.step()
    return net.eval()


def crossing(net, x, target, start, steps=40):
    """The nearest points to images x (P, C, H, W) in [0, 1] that `net` was seen to call by the class `target` (P,), from `start` on.

    Decoupled direction and norm, Rony et al. 2019, 1811.09600: a step of unit gradient, then a length a little shorter where the net says
    the target, a little longer where not. Where it never does, `start` comes back.
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


def nearest_pilots(x, s, target, pilots, way, n):
    """Unit directions (P, n, d) that other images of the same class took to the same target: their mean, then those of the n - 1 nearest.

    x: images (P, d), s, target: classes (P,); pilots (K, m, d): images of each class, way (K, K, m, d): their directions to each other
    class, 0 where none is known.
    """
    apart = torch.stack([(x - own).norm(dim=1) for own in pilots[s].unbind(1)], 1)  # (P, m)
    near = apart.topk(min(n - 1, apart.shape[1]), largest=False).indices  # (P, n - 1)
    found = torch.cat([way.mean(2)[s, target][:, None], way[s[:, None], target[:, None], near]], 1)
    return found / found.norm(dim=2, keepdim=True).clamp_min(1e-12)
