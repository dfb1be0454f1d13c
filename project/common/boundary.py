"""Distances to a decision boundary, from a teacher that answers with a class and no more. Wang 2021, 2106.03310.

Images are floats in [0, 1], (N, ...), so that distances are Euclidean lengths of pixel values; `label(x)` gives the classes (N,).
All pairs of an image and a class go in step: each call of `label` serves them together.
"""

import math

import torch


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
    """Per row a fraction u in (low, high] at which hit(rows' points) is true and below which, within (high - low) / 2^steps, it is not.

    point(u): the images at u (P,); hit(images): (P,) bool, true at `high`, false at `low`.
    """
    for _ in range(steps):
        middle = (low + high) / 2
        inside = hit(point(middle))
        low, high = torch.where(inside, low, middle), torch.where(inside, middle, high)
    return high


def boundary_distances(x, s, bank, index, distance, label, tolerance=1e-3):
    """BD: the smallest distance from x (N, ...) at which the label turns from s (N,) to each other class, on rays to images of that class.

    index, distance: the rays' ends in `bank`, as `nearest_of_class` gives them. A ray is bisected to `tolerance` of its length only
    where the teacher calls its point at the best distance so far by that class; others cost that one query. Gives the
    distances (N, K), infinite for s itself and for classes without a ray, and the queries (N, K) that each took.
    """
    N, K, m = index.shape
    steps = halvings(tolerance)
    best, asked = distance[:, :, 0].flatten().clone(), torch.zeros(N * K, dtype=torch.long, device=x.device)
    index, distance = index.view(N * K, m), distance.view(N * K, m)
    for q in range(m):
        live = (distance[:, q] < math.inf).nonzero()[:, 0]  # pairs of an image and a class

        def setting(live, q=q):
            a, b, target = x[live // K], bank[index[live, q]], live % K
            return lambda u: torch.lerp(a, b, u.view(-1, *[1] * (x.dim() - 1))), lambda p: label(p) == target

        reach = torch.ones(len(live), dtype=x.dtype, device=x.device)  # of the ray, as a share of its length
        if q and len(live):
            point, hit = setting(live)
            reach = best[live] / distance[live, q]
            better = hit(point(reach))
            asked[live] += 1
            live, reach = live[better], reach[better]
        if len(live):
            point, hit = setting(live)
            best[live] = bisect(point, torch.zeros_like(reach), reach, hit, steps) * distance[live, q]
            asked[live] += steps
    return best.view(N, K), asked.view(N, K)


def soft_labels(distance, s, scale="median", floor=1e-3):
    """Logits (N, K) from distances (N, K): 1 / d for other classes, their sum for the own class s (N,); 0 where d is infinite.

    scale: distances are divided by their `median`, or by `none`. floor: the smallest distance, as a share of the median, that is told
    apart, so that one tiny distance does not drown all others.
    """
    known = distance[distance < math.inf]
    median = known.median() if len(known) else torch.ones((), device=distance.device)
    near = 1 / (distance.clamp_min(floor * median) / (median if scale == "median" else 1))
    near[torch.arange(len(s), device=s.device), s] = 0
    return near.scatter(1, s[:, None], near.sum(1, keepdim=True))
