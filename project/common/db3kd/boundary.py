"""Distances to the decision boundaries of a teacher that answers with a class only (DB3KD, Wang 2021, https://arxiv.org/abs/2106.03310).

Images are floats in [0, 1] of shape (N, ...); distances are Euclidean norms of differences of pixel values.
`classify(x)` returns the teacher's classes (N,). A pair is an image and a target: one other class, or any other class.
A point hits if the teacher assigns it to the pair's target, and misses otherwise.
All pairs are processed together, so that one call of `classify` serves many pairs. A pair's result does not depend on the other pairs.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

LOGIT_GAP = 10.0  # difference of logits between an image's class and a class at the median distance; 20 works equally well


def nearest_of_class(
    x: Tensor,
    s: Tensor,
    bank: Tensor,
    classes: Tensor,
    K: int,
    m: int,
    pick: Literal["nearest", "random"] = "nearest",
    g: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns up to m images of `bank` for each image of x and each class other than the image's own.

    x: images (N, ...); s: their classes (N,); bank: images (B, ...); classes: the teacher's classes of the bank (B,).
    K: number of classes. pick: the m `nearest` images, or m `random` ones that are the same for all x (drawn by the generator g).
    Returns their indices (N, K, m) and distances (N, K, m) in ascending order. A distance is infinite if there is no such image.
    m is at most B.
    """
    m = min(m, len(bank))
    N, x, flat = len(x), x.flatten(1), bank.flatten(1)
    index = torch.zeros(N, K, m, dtype=torch.long, device=x.device)
    distance = torch.full((N, K, m), math.inf, dtype=x.dtype, device=x.device)
    for k in range(K):
        of_class = (classes == k).nonzero()[:, 0]
        if pick == "random":
            of_class = of_class[torch.randperm(len(of_class), generator=g)[:m].to(x.device)]
        n = min(m, len(of_class))
        if n:
            found = of_class[torch.cdist(x, flat[of_class]).topk(n, largest=False).indices]  # (N, n)
            exact = torch.stack([(x - flat[column]).norm(dim=1) for column in found.T], 1)  # cdist loses digits for near images
            distance[:, k, :n], order = exact.sort(1)
            index[:, k, :n] = found.gather(1, order)
    distance[torch.arange(N, device=x.device), s] = math.inf
    return index, distance.where(distance > 0, math.inf)


def num_halvings(tolerance: float) -> int:
    """Returns the number of queries that bisect a ray to `tolerance`, a fraction of its length in (0, 1)."""
    return math.ceil(math.log2(1 / tolerance))


def bisect(
    point: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, hit: Callable[[Tensor], Tensor], steps: int
) -> tuple[Tensor, Tensor]:
    """Returns the intervals (low, high), each (P,), after `steps` halvings.

    point(u): images at positions u (P,) on the rays; hit(images): bool (P,).
    If point(high) hits and point(low) misses before the call, they also do so afterwards.
    """
    for _ in range(steps):
        middle = (low + high) / 2
        inside = hit(point(middle))
        low, high = torch.where(inside, low, middle), torch.where(inside, middle, high)
    return low, high


def gallop(
    point: Callable[[Tensor], Tensor], first: Tensor, top: float, hit: Callable[[Tensor], Tensor], steps: int
) -> tuple[Tensor, Tensor]:
    """Returns (low, high), each (P,), of an exponential search on [0, top] from position 0, which hits.

    low is the largest position that was seen to hit. high is the smallest position above it that was seen to miss, or infinity.
    The search starts at `first` (P,), doubles the position up to the first miss, then halves the interval. Each row takes `steps` queries.
    """
    low, high, u = torch.zeros_like(first), torch.full_like(first, math.inf), first
    for _ in range(steps):
        inside = hit(point(u))
        low, high = torch.where(inside, u, low), torch.where(inside, high, u)
        u = torch.where(high < math.inf, (low + high) / 2, (2 * u).clamp_max(top))
    return low, high


def random_directions(n: int, m: int, seed: int, number: int, like: Tensor) -> Tensor:
    """Returns n random unit vectors (n, m) with the dtype and the device of `like`.

    They come in blocks of m orthogonal vectors, because these give more information than independent ones.
    They depend on the seed and the number only.
    """
    g = torch.Generator().manual_seed(1_000_003 * seed + number)
    blocks = [torch.randn(m, min(m, n - start), generator=g).to(like) for start in range(0, n, m)]
    return torch.cat([torch.linalg.qr(block).Q.T for block in blocks])


def random_signs(keys: Tensor, number: int, m: int) -> Tensor:
    """Returns random signs (P, m), int64 of -1 and 1, which depend on the key (P,), the number and the column only (SplitMix64)."""
    z = keys[:, None] * -7046029254386353131 + (torch.arange(m, device=keys.device) + (number << 32)) * -4658895280553007687
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        z = (z ^ (z >> shift & (1 << 64 - shift) - 1)) * factor
    return 1 - 2 * (z >> 40 & 1)


def nearest_other_class(index: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
    """Returns index and distance (N, m) of the nearest images of any other class, from the result (N, K, m) of `nearest_of_class`."""
    distance, order = distance.flatten(1).topk(index.shape[2], largest=False)
    return index.flatten(1).gather(1, order), distance


def soft_labels(
    distance: Tensor,
    s: Tensor,
    form: Literal["linear", "inverse"] = "linear",
    scale: Literal["median", "none"] = "median",
    floor: float = 1e-3,
) -> Tensor:
    """Returns logits (N, K) from the distances (N, K) to the classes other than an image's own class s (N,).

    form: `linear` gives 0 for the own class and -LOGIT_GAP * d for the others. To first order, a teacher's logits differ by a slope times
    the distance. An infinite distance (no boundary to this class was found) counts as the largest finite one.
    `inverse` gives 1 / d for the others, 0 where d is infinite, and the sum of these for the own class (the paper).
    scale: distances are divided by their `median`, or not divided (`none`).
    floor: `inverse` raises smaller distances to this fraction of the median, so that one tiny distance does not dominate all others.
    """
    reached, own = distance < math.inf, (torch.arange(len(s), device=s.device), s)
    known = distance[reached] if reached.any() else torch.ones(1, dtype=distance.dtype, device=distance.device)
    median = known.median().clamp_min(1e-6)
    unit = median if scale == "median" else 1
    if form == "linear":
        logits = -LOGIT_GAP * distance.clamp_max(known.max()) / unit
        logits[own] = 0
        return logits
    inverse = unit / distance.clamp_min(floor * median)
    inverse[own] = 0
    return inverse.scatter(1, s[:, None], inverse.sum(1, keepdim=True))
