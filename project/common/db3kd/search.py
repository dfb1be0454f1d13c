"""The search for the nearest point beyond a decision boundary, for many pairs in step. Wang 2021, 2106.03310; see boundary.py."""

import math

import torch

from .boundary import bisect, directions, gallop, halvings, signs

ARC, SETTLE = 7, 5  # queries of an iteration's two searches along a line
COST, RESERVE = 2 * ARC + SETTLE, 10  # at most so many an iteration takes beside the slope's; kept back to certify a distance
REACH = 0.05  # of the points that tell a boundary's slope, as a share of the distance; 0.01 to 0.1 do as well
STALLED = 0.01  # the gain of two iterations below which a pair goes on to the next stage; a tenth of it ends the last


class Search:
    """The nearest point known to hit, for each of P pairs: `near` (P, d) at distance `r` (P,), infinite where none is known.

    x: images (N, ...), s: their classes (N,). K: each image makes K pairs, the k-th hits where the label is k (its own is never
    searched); K = 0: one pair an image, which hits where the label is not s. keys (N,): what an image's random directions depend on.
    bounds: (low, high) that pixel values are clipped to, None without; distances are those of the clipped points.

    count (P,): queries of each pair, whose sum is what `label` was asked. gap (P,): at (1 - gap) r along the ray a miss was seen; 1
    where none was. curve, spent (P, B): the best distance known with at most so many queries, for each of `budgets`, and how many.
    """

    def __init__(self, x, s, label, K=0, keys=None, budgets=(math.inf,), bounds=(0.0, 1.0)):
        N, P, self.shape, self.x = len(x), len(x) * max(K, 1), x.shape[1:], x.flatten(1)
        pairs, device = torch.arange(P, device=x.device), x.device
        self.image, self.source, self.label, self.bounds = pairs // max(K, 1), s, label, bounds
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
        self.spent, self.number = torch.zeros(P, len(budgets), dtype=torch.long, device=device), 0

    # ---- asking

    def hits(self, points, p):
        """Whether the label at points (Q, d) is what the pairs p (Q,) want; a query of each is counted."""
        self.count.index_add_(0, p, torch.ones_like(p))
        seen = self.label(points.view(-1, *self.shape))
        return seen != self.source[self.image[p]] if self.target is None else seen == self.target[p]

    def clip(self, points):
        return points if self.bounds is None else points.clamp(*self.bounds)

    def able(self, p, cost):
        """Which of the pairs p (n,) may be asked `cost` more queries, by the largest budget: (n,) bool."""
        return self.count[p] + cost <= self.budgets[-1]

    def note(self):
        """Takes the distances known now into `curve`, where the queries so far are within the budget."""
        within = self.count[:, None] <= self.budgets
        self.curve = torch.where(within, torch.minimum(self.curve, self.r[:, None]), self.curve)
        self.spent = torch.where(within, self.count[:, None], self.spent)

    def put(self, p, near, gap):
        """Hits `near` (n, d) of the pairs p replace farther ones."""
        r = (near - self.x[self.image[p]]).norm(dim=1)
        better = r < self.r[p]
        p = p[better]
        self.near[p], self.r[p], self.gap[p] = near[better], r[better], gap[better]

    # ---- along rays

    def start(self, bank, index, distance):
        """SD: the nearest of the images of `bank` (B, ...) that are known to hit, index (P, m) at distance (P, m), infinite for none."""
        self.near, self.r = bank.flatten(1)[index[:, 0]], distance[:, 0].clone()
        self.note()

    def rays(self, bank, index, distance, tolerance=1e-3):
        """BD: on rays to images of `bank` that hit, as for `start`.

        A ray is bisected to `tolerance` of its length, and only where its point at the best distance so far hits; others cost that
        one query.
        """
        bank, steps = bank.flatten(1), halvings(tolerance)
        for q in range(index.shape[1]):
            p = (distance[:, q] < math.inf).nonzero()[:, 0]
            p = p[self.able(p, 1 + steps)]
            reach = (self.r[p] / distance[p, q]).clamp_max(1)  # of the ray; its end is known to hit
            hit = torch.ones_like(p, dtype=torch.bool)
            if len(look := (reach < 1).nonzero()[:, 0]):
                i = p[look]
                hit[look] = self.hits(torch.lerp(self.x[self.image[i]], bank[index[i, q]], reach[look, None]), i)
            if len(p := p[hit]):
                self.between(p, self.x[self.image[p]], bank[index[p, q]], reach[hit], steps)
        self.note()

    def between(self, p, x, end, high, steps):
        """Bisects rays from x to `end` (n, d) below the shares `high` of their length, which hit."""
        low, high = bisect(lambda u: torch.lerp(x, end, u[:, None]), torch.zeros_like(high), high, lambda z: self.hits(z, p), steps)
        self.put(p, torch.lerp(x, end, high[:, None]), 1 - low / high)

    def guess(self, p, way, shares=(1.0,)):
        """Looks for hits nearer than the best so far at x + share * way (n, d) for each share, up to the first, and settles there."""
        for share in shares:
            able = self.able(p, 1 + 2 * SETTLE)
            p, way = p[able], way[able]
            z = self.clip(self.x[self.image[p]] + share * way)
            length = (z - self.x[self.image[p]]).norm(dim=1)
            hit = (length > 0) & (length <= self.r[p] * 1.00001)  # worth a query
            if len(look := hit.nonzero()[:, 0]):
                hit[look] = self.hits(z[look], p[look])
            if hit.any():
                self.settle(p[hit], z[hit], 0.1, 2 * SETTLE)
            p, way = p[~hit], way[~hit]
        self.note()

    def settle(self, p, z, first=0.002, steps=SETTLE):
        """Takes hits z (n, d) towards their images, to the boundary; first: share of the way that is tried first."""
        x, first = self.x[self.image[p]], first if torch.is_tensor(first) else torch.full_like(self.r[p], first)
        low, high = gallop(lambda u: torch.lerp(z, x, u[:, None]), first, 1.0, lambda z: self.hits(z, p), steps)
        self.put(p, torch.lerp(z, x, low[:, None]), (high.clamp_max(1) - low) / (1 - low))

    def certify(self, tolerance=1e-3):
        """Halves the gaps larger than `tolerance`, so that each distance has a hit at it and a miss that little below."""
        p = ((self.gap > tolerance) & (self.r < math.inf)).nonzero()[:, 0]
        p = p[self.able(p, halvings(tolerance))]
        if len(p):
            x, near, gap = self.x[self.image[p]], self.near[p], self.gap[p]
            low, high = 1 - gap, torch.ones_like(gap)  # shares of the ray's length: there it misses, here it hits
            low, high = bisect(lambda u: torch.lerp(x, near, u[:, None]), low, high, lambda z: self.hits(z, p), halvings(tolerance))
            self.near[p], self.gap[p] = torch.lerp(x, near, high[:, None]), 1 - low / high
            self.r[p] = (self.near[p] - x).norm(dim=1)
        self.note()

    # ---- along the boundary

    def slope(self, p, q, basis):
        """The unit vector (n, d) across each pair's ray along which hits lie, from one query in each direction, unit q (k, m) of `basis`.

        Cheng et al. 2020, 1909.10773, equation 6, with points beside the boundary point itself; votes less their mean, since they may
        be one-sided.
        """
        k, d = len(q), self.near.shape[1]
        size = max(1, (2**27 if self.x.is_cuda else 2**19) // (k * d))  # pairs whose points fit a GPU's memory, or a CPU's caches
        v = torch.cat([self.votes(part, q, basis) for part in p.split(size)])
        return v / v.norm(dim=1, keepdim=True).clamp_min(1e-12)

    def votes(self, p, q, basis):
        """Sum of the directions (n, d) that lead to hits, less the mean vote's."""
        near, r = self.near[p], self.r[p]
        ray = ((near - self.x[self.image[p]]) / r[:, None])[:, :, None]  # (n, d, 1)
        u = q * signs(self.keys[p], self.number, q.shape[1]).to(q.dtype)[:, None]  # (n, k, m)
        u = u if basis is None else u @ basis  # (n, k, d)
        along = u @ ray  # (n, k, 1)
        u = torch.baddbmm(u, along, ray.transpose(1, 2), alpha=-1)  # across the ray
        length = (1 - along.square()).clamp_min(1e-6).sqrt()
        points = self.clip(torch.addcmul(near[:, None], u, (self.reach[p] * r)[:, None, None] / length))
        hit = self.hits(points.flatten(0, 1), p.repeat_interleave(len(q))).view(len(p), 1, -1).to(u.dtype)
        return ((hit - hit.mean(2, keepdim=True)) / length.transpose(1, 2) @ u)[:, 0]

    def arc(self, p, q, basis):
        """One iteration: on the half circle over image and boundary point, towards hits, up to the boundary; then along the ray.

        Where the boundary is flat the arc leaves the hits at the nearest point of its plane (Thales). After CGBA, Reza et al. 2023.
        """
        v, x, near, r = self.slope(p, q, basis), self.x[self.image[p]], self.near[p], self.r[p]

        def point(angle):
            c, s = angle.cos()[:, None], angle.sin()[:, None]
            return self.clip(x + c * (c * (near - x) + s * r[:, None] * v))

        low, high = gallop(point, (1.5 * self.angle[p]).clamp(0.01, 1.0), 1.4, lambda z: self.hits(z, p), ARC)
        high = high.clamp_max(1.4)
        self.angle[p] = torch.where(low > 0, low, high / 1.5)
        self.settle(p, point(low), ((high - low) * low.sin()).clamp(1e-5, 0.1))  # about where the boundary is

    def hsja(self, p, q, basis):
        """One iteration of HopSkipJump, Chen et al. 2020, 1904.02144: a step r / sqrt(t) towards hits, halved up to a hit; then the ray."""
        v, near, step = self.slope(p, q, basis), self.near[p], self.r[p] / math.sqrt(self.number)
        for _ in range(ARC):
            z = self.clip(near + step[:, None] * v)
            inside = self.hits(z, p)
            if inside.any():
                self.settle(p[inside], z[inside], 0.01, ARC + SETTLE)
            p, near, v, step = p[~inside], near[~inside], v[~inside], step[~inside] / 2
            if not len(p):
                break

    def signopt(self, p, q, basis):
        """One iteration of Sign-OPT, 1909.10773: a search in the ray's angle, from one origin, doubled while it helps, else quartered."""
        v, x = self.slope(p, q, basis), self.x[self.image[p]]
        ray = (self.near[p] - x) / self.r[p][:, None]
        going, shrink = torch.arange(len(p), device=p.device), torch.zeros_like(p, dtype=torch.bool)
        for trial in range(16):
            going = going[self.able(p[going], COST + RESERVE)]
            if not len(going):
                break
            i = p[going]
            turned = ray[going] + self.step[i][:, None] * v[going]
            z = self.clip(x[going] + self.r[i][:, None] * turned / turned.norm(dim=1, keepdim=True))
            inside = self.hits(z, i)
            if inside.any():
                self.settle(i[inside], z[inside], 0.002, ARC + SETTLE)
            self.step[i] *= torch.where(inside, 2.0, 0.25).to(self.step)
            if not trial:
                shrink[going] = ~inside
            going = going[inside != shrink[going]]  # on while it helps, or up to the first that does
        fine = p[self.step[p] < 1e-4]
        self.step[fine], self.reach[fine] = 0.2, (self.reach[fine] / 10).clamp_min(1e-4)

    def minimise(self, stages, seed=0, queries=0):
        """MBD: iterations on the boundary, until the largest of the budgets is spent or the last stage gains nothing more.

        stages: (step, basis) in turn; step: a name of STEPS; basis: orthonormal rows (m, d), in whose span directions are drawn, or
        None for all pixels. A pair goes on to the next when two iterations have gained too little. queries: of a slope; 0: the
        number that is best for a flat boundary.
        """
        level = torch.zeros_like(self.count)
        past = torch.full((2, len(self.r)), math.inf).to(self.r)
        sizes = [self.near.shape[1] if basis is None else len(basis) for _, basis in stages]
        counts, gains = [queries or best_number(m) for m in sizes], [STALLED] * (len(stages) - 1) + [STALLED / 10]
        every = torch.arange(len(level), device=level.device)
        while True:
            self.number += 1
            open = (self.r > 0) & (self.r < math.inf)
            todo = [(open & (level == i) & self.able(every, k + COST + RESERVE)).nonzero()[:, 0] for i, k in enumerate(counts)]
            if not any(map(len, todo)):
                break
            for (step, basis), m, k, enough, live in zip(stages, sizes, counts, gains, todo, strict=True):
                if not len(live):
                    continue
                q = directions(k, m, seed, self.number, self.x)
                STEPS[step](self, live, q, basis)
                stalled = self.r[live] > (1 - enough) * past[1, live]
                level[live] += stalled
                past[:, live] = torch.where(stalled, math.inf, torch.stack([self.r[live], past[0, live]]))
            self.note()
        self.certify()


STEPS = {"arc": Search.arc, "hsja": Search.hsja, "signopt": Search.signopt}


def best_number(m):
    """Queries of a slope that let r fall fastest, where an iteration takes ARC + SETTLE more and directions are of m dimensions.

    On a flat boundary at an angle to the ray each slope leaves 1 / (1 + a) of the angle's squared sine, a = 2 k / (pi m).
    """
    return max(4, round(math.sqrt(math.pi * (ARC + SETTLE) * max(1, m - 1))))
