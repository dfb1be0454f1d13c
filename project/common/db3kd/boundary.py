"""Distances to decision boundaries, from a teacher that answers with a class and no more. Wang 2021, 2106.03310.

Images are floats in [0, 1], (N, ...), so that distances are Euclidean lengths of pixel values; `label(x)` gives the classes (N,).
A pair is an image and what its label is to become: a class, or any other than its own. All pairs go in step, each call of `label`
serves many, and a pair's result does not depend on which others are there.
"""

import math

import torch

GAP = 10.0  # in logits between an image's own class and one at the median distance; 10 and 20 do the same


def nearest_of_class(x, s, bank, classes, K, m, pick="nearest", g=None):
    """Up to m images of `bank` (B, ...) of each class other than its own s (N,), for each image x (N, ...).

    classes: what the teacher calls the images of the bank, (B,). pick: the `nearest` ones, or a `random` draw that all x share.
    Gives their indices (N, K, m) and distances (N, K, m), rising; infinite where there is none.
    """
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
            exact = torch.stack([(x - flat[column]).norm(dim=1) for column in found.T], 1)  # cdist cancels digits of near images
            distance[:, k, :n], order = exact.sort(1)
            index[:, k, :n] = found.gather(1, order)
    distance[torch.arange(N, device=x.device), s] = math.inf
    return index, distance.where(distance > 0, math.inf)


def halvings(tolerance):
    """Queries that a ray's bisection takes."""
    return math.ceil(math.log2(1 / tolerance))


def bisect(point, low, high, hit, steps):
    """(low, high) per row, `steps` halvings closer: hit(point(high)) is true and hit(point(low)) false, if they were.

    point(u): the images at u (P,); hit(images): (P,) bool.
    """
    for _ in range(steps):
        middle = (low + high) / 2
        inside = hit(point(middle))
        low, high = torch.where(inside, low, middle), torch.where(inside, middle, high)
    return low, high


def gallop(point, first, top, hit, steps):
    """(low, high) per row: the largest u in [0, top] seen to hit, and the smallest above it seen to miss, infinite if none was.

    0 hits. From `first` (P,) on u is doubled up to the first miss, then halved towards it; each row takes `steps` queries.
    """
    low, high, u = torch.zeros_like(first), torch.full_like(first, math.inf), first
    for _ in range(steps):
        inside = hit(point(u))
        low, high = torch.where(inside, u, low), torch.where(inside, high, u)
        u = torch.where(high < math.inf, (low + high) / 2, (2 * u).clamp_max(top))
    return low, high


def directions(n, m, seed, number, like):
    """n random unit vectors (n, m), in blocks of m orthogonal ones, which tell more than independent ones; of `like`'s type and place."""
    g = torch.Generator().manual_seed(1_000_003 * seed + number)
    blocks = [torch.randn(m, min(m, n - at), generator=g).to(like) for at in range(0, n, m)]
    return torch.cat([torch.linalg.qr(block).Q.T for block in blocks])


def signs(keys, number, m):
    """Random signs (P, m), int64 of -1 and 1, that depend on the key (P,), the number and the column alone (SplitMix64)."""
    z = keys[:, None] * -7046029254386353131 + (torch.arange(m, device=keys.device) + (number << 32)) * -4658895280553007687
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        z = (z ^ (z >> shift & (1 << 64 - shift) - 1)) * factor
    return 1 - 2 * (z >> 40 & 1)


def others(index, distance):
    """The nearest images of any other class, index and distance (N, m), from those of each class (N, K, m)."""
    distance, order = distance.flatten(1).topk(index.shape[2], largest=False)
    return index.flatten(1).gather(1, order), distance


def soft_labels(distance, s, form="linear", scale="median", floor=1e-3):
    """Logits (N, K) from distances (N, K) to other classes than the own s (N,); infinite ones are of classes that cannot be reached.

    form: `linear`: 0 for the own class, -GAP d for others, since to first order a teacher's logits differ by its slope times the
    distance; what cannot be reached is as far as the farthest that can. `inverse`: 1 / d for others and their sum for the own class
    (the paper), 0 where d is infinite; floor: the smallest distance told apart, as a share of the median, so that a tiny one does not
    drown all others. scale: distances are divided by their `median`, or by `none`.
    """
    reached, own = distance < math.inf, (torch.arange(len(s), device=s.device), s)
    known = distance[reached] if reached.any() else torch.ones(1, dtype=distance.dtype, device=distance.device)
    median = known.median().clamp_min(1e-6)
    unit = median if scale == "median" else 1
    if form == "linear":
        logits = -GAP * distance.clamp_max(known.max()) / unit
        logits[own] = 0
        return logits
    near = unit / distance.clamp_min(floor * median)
    near[own] = 0
    return near.scatter(1, s[:, None], near.sum(1, keepdim=True))
