"""Search for the nearest point beyond a decision boundary, for many pairs at once (Wang 2021, https://arxiv.org/abs/2106.03310).

boundary.py defines the terms pair, target, hit and miss.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .boundary import bisect, gallop, num_halvings, random_directions, random_signs

ARC_QUERIES, RAY_QUERIES = 7, 5  # queries of the two line searches of an iteration: on the arc, then on the ray
COST = 2 * ARC_QUERIES + RAY_QUERIES  # most queries of an iteration, without those that estimate the boundary normal
RESERVE = 10  # queries that each pair keeps for `certify`
REACH = 0.05  # distance of the points that estimate the boundary normal, as a fraction of r; 0.01 to 0.1 work equally well
STALLED = 0.01  # relative gain of two iterations below which a pair moves to the next stage; the last stage ends at a tenth of it


class Search:
    """Nearest known hit of each of P pairs: the point `near` (P, d) at distance `r` (P,), infinite if no hit is known.

    x: images (N, ...); s: their classes (N,). classify(x): the teacher's classes of images.
    K: with K > 0 each image makes K pairs, and pair k hits where the class is k (the image's own class is never searched).
    With K = 0 each image makes one pair, which hits where the class is not s.
    keys (N,): the random directions of an image depend on its key. budgets: numbers of queries per pair in ascending order.
    bounds: (low, high) to which pixel values are clipped, or None. Distances are those of the clipped points.

    count (P,): queries of each pair; their sum is the number of images that `classify` received.
    gap (P,): a miss was seen at distance (1 - gap) r on the same ray; 1 if none was seen.
    curve, spent (P, B): for each budget, the best distance within it and the number of queries used.
    """

    def __init__(
        self,
        x: Tensor,
        s: Tensor,
        classify: Callable[[Tensor], Tensor],
        K: int = 0,
        keys: Tensor | None = None,
        budgets: Sequence[float] = (math.inf,),
        bounds: tuple[float, float] | None = (0.0, 1.0),
    ) -> None:
        N, P, self.shape, self.x = len(x), len(x) * max(K, 1), x.shape[1:], x.flatten(1)
        pairs, device = torch.arange(P, device=x.device), x.device
        self.image, self.source, self.classify, self.bounds = pairs // max(K, 1), s, classify, bounds
        self.target = pairs % K if K else None
        keys = torch.arange(N, device=device) if keys is None else keys.to(device)
        self.keys = keys[self.image] * (K + 1) + (self.target if K else 0)
        self.count = torch.zeros(P, dtype=torch.long, device=device)
        self.near = torch.zeros(P, self.x.shape[1], dtype=x.dtype, device=device)
        self.r, self.gap, self.angle, self.step, self.reach = (
            torch.full((P,), v, dtype=x.dtype, device=device) for v in (math.inf, 1.0, 0.3, 0.2, REACH)
        )
        self.budgets = torch.tensor(budgets, dtype=torch.double, device=device)
        self.curve = torch.full((P, len(budgets)), math.inf, dtype=x.dtype, device=device)
        self.spent, self.iteration = torch.zeros(P, len(budgets), dtype=torch.long, device=device), 0

    # ---- queries and bookkeeping

    def hits(self, points: Tensor, p: Tensor) -> Tensor:
        """Returns whether the points (Q, d) hit for the pairs p (Q,); counts one query each."""
        self.count.index_add_(0, p, torch.ones_like(p))
        classes = self.classify(points.view(-1, *self.shape))
        return classes != self.source[self.image[p]] if self.target is None else classes == self.target[p]

    def clip(self, points: Tensor) -> Tensor:
        """Returns the points clipped to `bounds`."""
        return points if self.bounds is None else points.clamp(*self.bounds)

    def affordable(self, p: Tensor, cost: int) -> Tensor:
        """Returns a mask (n,): whether each of the pairs p (n,) can spend `cost` more queries within the largest budget."""
        return self.count[p] + cost <= self.budgets[-1]

    def update_curve(self) -> None:
        """Enters the current distances and query counts into `curve` and `spent`, for each budget that is not exceeded."""
        within = self.count[:, None] <= self.budgets
        self.curve = torch.where(within, torch.minimum(self.curve, self.r[:, None]), self.curve)
        self.spent = torch.where(within, self.count[:, None], self.spent)

    def keep_nearer(self, p: Tensor, near: Tensor, gap: Tensor) -> None:
        """Replaces the best hits of the pairs p (n,) by the hits `near` (n, d) where these are nearer; gap (n,) as for the class."""
        r = (near - self.x[self.image[p]]).norm(dim=1)
        better = r < self.r[p]
        p = p[better]
        self.near[p], self.r[p], self.gap[p] = near[better], r[better], gap[better]

    # ---- searches on rays

    def start(self, bank: Tensor, index: Tensor, distance: Tensor) -> None:
        """Sets each pair's best hit to its nearest image of `bank` (B, ...), without a query (the paper's SD).

        index, distance (P, m): images of the bank that hit, in ascending order of distance; infinite for no image.
        """
        self.near, self.r = bank.flatten(1)[index[:, 0]], distance[:, 0].clone()
        self.update_curve()

    def bisect_rays(self, bank: Tensor, index: Tensor, distance: Tensor, tolerance: float = 1e-3) -> None:
        """Searches the boundary on rays to images of `bank` (the paper's BD); arguments as for `start`.

        A ray is bisected to `tolerance`, a fraction of its length, only if its point at the best distance so far hits.
        Other rays cost only this one query.
        """
        bank, steps = bank.flatten(1), num_halvings(tolerance)
        for q in range(index.shape[1]):
            p = (distance[:, q] < math.inf).nonzero()[:, 0]
            p = p[self.affordable(p, 1 + steps)]
            reach = (self.r[p] / distance[p, q]).clamp_max(1)  # position on the ray; its end is known to hit
            hit = torch.ones_like(p, dtype=torch.bool)
            if len(unknown := (reach < 1).nonzero()[:, 0]):
                i = p[unknown]
                hit[unknown] = self.hits(torch.lerp(self.x[self.image[i]], bank[index[i, q]], reach[unknown, None]), i)
            if len(p := p[hit]):
                self.bisect_segments(p, self.x[self.image[p]], bank[index[p, q]], reach[hit], steps)
        self.update_curve()

    def bisect_segments(self, p: Tensor, x: Tensor, end: Tensor, high: Tensor, steps: int) -> None:
        """Bisects the segments from x to `end`, both (n, d), below the positions `high` (n,) in (0, 1], which hit."""
        low, high = bisect(lambda u: torch.lerp(x, end, u[:, None]), torch.zeros_like(high), high, lambda z: self.hits(z, p), steps)
        self.keep_nearer(p, torch.lerp(x, end, high[:, None]), 1 - low / high)

    def probe(self, p: Tensor, offset: Tensor, factors: Sequence[float] = (1.0,)) -> None:
        """Tests the points x + factor * offset (n, d) for each factor in turn, up to the first one that hits.

        Points that are farther than the best hit so far are not tested. A hit is moved to the boundary.
        """
        for factor in factors:
            affordable = self.affordable(p, 1 + 2 * RAY_QUERIES)
            p, offset = p[affordable], offset[affordable]
            z = self.clip(self.x[self.image[p]] + factor * offset)
            length = (z - self.x[self.image[p]]).norm(dim=1)
            hit = (length > 0) & (length <= self.r[p] * 1.00001)  # only these points are worth a query
            if len(tested := hit.nonzero()[:, 0]):
                hit[tested] = self.hits(z[tested], p[tested])
            if hit.any():
                self.move_to_boundary(p[hit], z[hit], 0.1, 2 * RAY_QUERIES)
            p, offset = p[~hit], offset[~hit]
        self.update_curve()

    def move_to_boundary(self, p: Tensor, z: Tensor, first: float | Tensor = 0.002, steps: int = RAY_QUERIES) -> None:
        """Moves the hits z (n, d) towards their images up to the boundary, and keeps those that are nearer than before.

        first: position of the first test, as a fraction of the way to the image, a number or (n,). steps: queries per pair.
        """
        x, first = self.x[self.image[p]], first if torch.is_tensor(first) else torch.full_like(self.r[p], first)
        low, high = gallop(lambda u: torch.lerp(z, x, u[:, None]), first, 1.0, lambda z: self.hits(z, p), steps)
        self.keep_nearer(p, torch.lerp(z, x, low[:, None]), (high.clamp_max(1) - low) / (1 - low))

    def certify(self, tolerance: float = 1e-3) -> None:
        """Bisects each gap larger than `tolerance`, so that each distance r has a hit at r and a miss at most `tolerance` * r below it."""
        p = ((self.gap > tolerance) & (self.r < math.inf)).nonzero()[:, 0]
        p = p[self.affordable(p, num_halvings(tolerance))]
        if len(p):
            x, near, gap = self.x[self.image[p]], self.near[p], self.gap[p]
            low, high = 1 - gap, torch.ones_like(gap)  # positions on the ray: low misses, high hits
            low, high = bisect(lambda u: torch.lerp(x, near, u[:, None]), low, high, lambda z: self.hits(z, p), num_halvings(tolerance))
            self.near[p], self.gap[p] = torch.lerp(x, near, high[:, None]), 1 - low / high
            self.r[p] = (self.near[p] - x).norm(dim=1)
        self.update_curve()

    # ---- searches along the boundary

    def estimate_normal(self, p: Tensor, q: Tensor, basis: Tensor | None) -> Tensor:
        """Returns the estimated boundary normal (n, d), orthogonal to each pair's ray, of length 1 and pointing towards hits.

        q: unit directions (k, m) in the coordinates of `basis` (m, d), or in pixels if it is None; each costs one query per pair.
        Follows Cheng et al. 2020, https://arxiv.org/abs/1909.10773, equation 6, with two changes. The tested points lie beside the
        boundary point itself. The mean vote is subtracted, because the votes can be one-sided.
        """
        k, d = len(q), self.near.shape[1]
        size = max(1, (2**27 if self.x.is_cuda else 2**19) // (k * d))  # pairs whose points fit into GPU memory, or into CPU caches
        v = torch.cat([self.votes(part, q, basis) for part in p.split(size)])
        return v / v.norm(dim=1, keepdim=True).clamp_min(1e-12)

    def votes(self, p: Tensor, q: Tensor, basis: Tensor | None) -> Tensor:
        """Returns the sum (n, d) of the directions that lead to hits, minus the mean vote."""
        near, r = self.near[p], self.r[p]
        ray = ((near - self.x[self.image[p]]) / r[:, None])[:, :, None]  # (n, d, 1)
        u = q * random_signs(self.keys[p], self.iteration, q.shape[1]).to(q.dtype)[:, None]  # (n, k, m)
        u = u if basis is None else u @ basis  # (n, k, d)
        along = u @ ray  # (n, k, 1)
        u = torch.baddbmm(u, along, ray.transpose(1, 2), alpha=-1)  # orthogonal to the ray
        length = (1 - along.square()).clamp_min(1e-6).sqrt()
        points = self.clip(torch.addcmul(near[:, None], u, (self.reach[p] * r)[:, None, None] / length))
        hit = self.hits(points.flatten(0, 1), p.repeat_interleave(len(q))).view(len(p), 1, -1).to(u.dtype)
        return ((hit - hit.mean(2, keepdim=True)) / length.transpose(1, 2) @ u)[:, 0]

    def arc(self, p: Tensor, q: Tensor, basis: Tensor | None) -> None:
        """One iteration of `arc`: moves on a half circle towards hits up to the boundary, then along the ray.

        The diameter of the half circle is the line from the image to the boundary point (after CGBA, Reza et al. 2023).
        If the boundary is flat, the arc crosses it at the point nearest to the image (Thales). q, basis: see `estimate_normal`.
        """
        v, x, near, r = self.estimate_normal(p, q, basis), self.x[self.image[p]], self.near[p], self.r[p]

        def point(angle: Tensor) -> Tensor:
            c, s = angle.cos()[:, None], angle.sin()[:, None]
            return self.clip(x + c * (c * (near - x) + s * r[:, None] * v))

        low, high = gallop(point, (1.5 * self.angle[p]).clamp(0.01, 1.0), 1.4, lambda z: self.hits(z, p), ARC_QUERIES)
        high = high.clamp_max(1.4)
        self.angle[p] = torch.where(low > 0, low, high / 1.5)
        self.move_to_boundary(p, point(low), ((high - low) * low.sin()).clamp(1e-5, 0.1))  # the boundary is about this far

    def hsja(self, p: Tensor, q: Tensor, basis: Tensor | None) -> None:
        """One iteration of HopSkipJump (Chen et al. 2020, https://arxiv.org/abs/1904.02144).

        The step has length r / sqrt(iteration) and is halved until it hits; then the hit moves along the ray.
        """
        v, near, step = self.estimate_normal(p, q, basis), self.near[p], self.r[p] / math.sqrt(self.iteration)
        for _ in range(ARC_QUERIES):
            z = self.clip(near + step[:, None] * v)
            inside = self.hits(z, p)
            if inside.any():
                self.move_to_boundary(p[inside], z[inside], 0.01, ARC_QUERIES + RAY_QUERIES)
            p, near, v, step = p[~inside], near[~inside], v[~inside], step[~inside] / 2
            if not len(p):
                break

    def signopt(self, p: Tensor, q: Tensor, basis: Tensor | None) -> None:
        """One iteration of Sign-OPT (https://arxiv.org/abs/1909.10773): searches the angle of the ray from the same start.

        The step is doubled while the distance falls. If the first step fails, it is divided by four until one succeeds.
        """
        v, x = self.estimate_normal(p, q, basis), self.x[self.image[p]]
        ray = (self.near[p] - x) / self.r[p][:, None]
        going, shrink = torch.arange(len(p), device=p.device), torch.zeros_like(p, dtype=torch.bool)
        for trial in range(16):
            going = going[self.affordable(p[going], COST + RESERVE)]
            if not len(going):
                break
            i = p[going]
            turned = ray[going] + self.step[i][:, None] * v[going]
            z = self.clip(x[going] + self.r[i][:, None] * turned / turned.norm(dim=1, keepdim=True))
            inside = self.hits(z, i)
            if inside.any():
                self.move_to_boundary(i[inside], z[inside], 0.002, ARC_QUERIES + RAY_QUERIES)
            self.step[i] *= torch.where(inside, 2.0, 0.25).to(self.step)
            if not trial:
                shrink[going] = ~inside
            going = going[inside != shrink[going]]  # growing steps stop at the first miss, shrinking ones at the first hit
        fine = p[self.step[p] < 1e-4]
        self.step[fine], self.reach[fine] = 0.2, (self.reach[fine] / 10).clamp_min(1e-4)

    def minimise(self, stages: Sequence[tuple[str, Tensor | None]], seed: int = 0, queries: int = 0) -> None:
        """Reduces the distances along the boundary until the largest budget is spent or the last stage stalls (the paper's MBD).

        stages: (step, basis) in order. step: a key of STEPS. basis: orthonormal rows (m, d) whose span contains the directions, or None
        for all pixels. A pair moves to the next stage when two iterations gain too little.
        queries: number of queries per estimate of the normal; 0 for the best number on a flat boundary.
        """
        level = torch.zeros_like(self.count)
        past = torch.full((2, len(self.r)), math.inf).to(self.r)
        sizes = [self.near.shape[1] if basis is None else len(basis) for _, basis in stages]
        counts, gains = [queries or best_num_queries(m) for m in sizes], [STALLED] * (len(stages) - 1) + [STALLED / 10]
        pairs = torch.arange(len(level), device=level.device)
        while True:
            self.iteration += 1
            active = (self.r > 0) & (self.r < math.inf)
            todo = [(active & (level == i) & self.affordable(pairs, k + COST + RESERVE)).nonzero()[:, 0] for i, k in enumerate(counts)]
            if not any(map(len, todo)):
                break
            for (step, basis), m, k, min_gain, p in zip(stages, sizes, counts, gains, todo, strict=True):
                if not len(p):
                    continue
                q = random_directions(k, m, seed, self.iteration, self.x)
                STEPS[step](self, p, q, basis)
                stalled = self.r[p] > (1 - min_gain) * past[1, p]
                level[p] += stalled
                past[:, p] = torch.where(stalled, math.inf, torch.stack([self.r[p], past[0, p]]))
            self.update_curve()
        self.certify()


STEPS = {"arc": Search.arc, "hsja": Search.hsja, "signopt": Search.signopt}


def best_num_queries(m: int) -> int:
    """Returns the number of queries per estimate of the normal that makes r fall fastest, for directions of m dimensions.

    An iteration costs ARC_QUERIES + RAY_QUERIES more. The boundary is assumed flat, at an angle to the ray.
    An estimate with k queries then leaves 1 / (1 + a) of the angle's squared sine, a = 2 k / (pi m).
    """
    return max(4, round(math.sqrt(math.pi * (ARC_QUERIES + RAY_QUERIES) * max(1, m - 1))))
