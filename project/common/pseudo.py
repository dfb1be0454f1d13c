"""Pseudo samples: noise, sorted into the classes that a teacher calls it, then moved away from the decision boundaries. Wang 2021."""

import torch

from .boundary import Search, nearest_of_class, others
from .priors import dct
from .utils import RunError, atomic, say

SIZE, ROUNDS = 1024, 100  # images that are asked about at a time to find some of each class, and how often at most
DRAWS = SIZE * ROUNDS


def noise(n, shape, g):
    """n images (n, C H W) in [0, 1]: (U(0, 1) + 0.2) a + N(0, 1) b, with a and b in [0, 1] for each; ZSDB3KD's released code."""
    a, b = torch.rand(2, n, 1, generator=g)
    values = shape[0] * shape[1] * shape[2]
    return ((torch.rand(n, values, generator=g) + 0.2) * a + torch.randn(n, values, generator=g) * b).clamp(0, 1)


def smooth(n, shape, g):
    """n images (n, C H W) in [0, 1] of slow cosines at random, 2 x 2 to 8 x 8 of them, each with a brightness and a contrast."""
    k = int(torch.randint(2, 9, (), generator=g))
    waves = dct(k, shape)
    field = torch.randn(n, len(waves), generator=g) @ waves
    field = field / field.std(1, keepdim=True).clamp_min(1e-6)
    return (torch.rand(n, 1, generator=g) + field * 2 * torch.rand(n, 1, generator=g) - 0.25).clamp(0, 1)


def seeds(label, K, n, shape, g):
    """n images (n, C, H, W) in [0, 1] and their classes (n,), as many of each of the K classes as can be had.

    label(x): the teacher's classes. First noise, then, while classes lack images, smooth noise and mixes of what is there. RunError
    where only one class is found.
    """
    found, wanted = {}, dict.fromkeys(range(K), -(-n // K))
    for i in range(ROUNDS):
        lacking = [k for k in wanted if len(found.get(k, ())) < wanted[k]]
        if not lacking:
            break
        if i < 2 or i % 2 or len(found) < 2:
            x = (smooth if i % 2 else noise)(SIZE, shape, g)
        else:  # half way at least from an image, of a class that lacks some where there is one, to any other
            first = torch.cat([found[k] for k in lacking if k in found] or [*found.values()])
            every = torch.cat([*found.values(), smooth(SIZE // 4, shape, g)])
            a, b = (of[torch.randint(len(of), (SIZE,), generator=g)] for of in (first, every))
            x = torch.lerp(a, b, torch.rand(SIZE, 1, generator=g) / 2)
        s = label(x.view(-1, *shape)).cpu()
        for k in lacking:
            found[k] = torch.cat([found.get(k, x[:0]), x[s == k]])[: wanted[k]]
            if not len(found[k]):
                del found[k]
        if i == ROUNDS // 2:  # what is not there by now will not come: the others share its places
            wanted = dict.fromkeys(found, -(-n // len(found)))
    if len(found) < 2:
        raise RunError(f"the teacher called {DRAWS:,} images of noise by {len(found)} class: no boundary to move away from")
    if missing := sorted(set(range(K)) - set(found)):
        say(f"the teacher called none of {DRAWS:,} images of noise {', '.join(map(str, missing))}: no sample of what it never says")
    x, s = torch.cat([*found.values()]), torch.cat([torch.full((len(v),), k) for k, v in found.items()])
    order = torch.randperm(len(x), generator=g)[:n]
    if len(order) < n:
        order = order[torch.arange(n) % len(order)]
    return x[order].view(-1, *shape), s[order]


class Samples:
    """Images x (N, ...) of classes s (N,), and for each the nearest point `near` (N, d) known to be of another class, at r (N,)."""

    def __init__(self, x, s, label, keys, stages, args):
        x = x.contiguous()
        self.shape, self.s, self.label, self.keys, self.stages, self.args = x.shape[1:], s, label, keys * 100_003, stages, args
        rays = others(*nearest_of_class(x, s, x, s, int(s.max()) + 1, args.candidates))
        search = Search(x, s, label, 0, self.keys, [4 * args.step_queries])
        search.start(x, *rays)
        search.rays(x, *rays)
        search.minimise(stages, args.seed)
        self.x, self.near, self.r = x.flatten(1), search.near, search.r
        self.step, self.known = torch.full_like(search.r, args.lbd_step), search.near[:, None]

    def move(self, number):
        """One step away from the boundary for each, kept where the distance grows, else halved. Returns how many were kept."""
        args, away = self.args, (self.x - self.near) / self.r[:, None]
        x = (self.x + self.step[:, None] * away).clamp(0, 1)
        bound, index = (self.known - x[:, None]).norm(dim=2).sort(1)  # no query: points of other classes are known
        kept = (bound[:, 0] > self.r) & (self.step > 1e-3 * args.lbd_step)
        if len(p := kept.nonzero()[:, 0]):
            same = self.label(x[p].view(-1, *self.shape)) == self.s[p]
            self.know(p[~same], x[p[~same]])
            kept[p] = same
        if len(p := kept.nonzero()[:, 0]):
            search = Search(x[p].view(-1, *self.shape), self.s[p], self.label, 0, self.keys[p] + number, [args.step_queries])
            rows, nearest = torch.arange(len(p), device=x.device)[:, None] * self.known.shape[1] + index[p, :1], bound[p, :1]
            search.start(self.known[p].flatten(0, 1), rows, nearest)
            search.guess(torch.arange(len(p), device=x.device), away[p] * self.r[p, None])  # what lies ahead
            search.rays(self.known[p].flatten(0, 1), rows, nearest)
            search.minimise(self.stages, args.seed, only=search.r > self.r[p])
            kept[p] = better = search.r > self.r[p]
            self.know(p, search.near)
            self.x[p[better]], self.near[p[better]], self.r[p[better]] = x[p[better]], search.near[better], search.r[better]
        to_known = (self.known - self.x[:, None]).norm(dim=2).min(1)  # a step refused may have met a nearer boundary
        self.near = self.known[torch.arange(len(self.x), device=x.device), to_known.indices]
        self.r = to_known.values
        self.step = torch.where(kept, self.step, self.step / 2)
        return int(kept.sum())

    def know(self, p, near):
        """Keeps points of other classes, the latest eight of each sample."""
        if len(p):
            self.known = torch.cat([self.known, self.near[:, None]], 1)
            self.known[p, -1] = near
            self.known = self.known[:, -8:]


def show(snapshots, classes, path):
    """A picture: a row a snapshot of (N, S, C, H, W) uint8, a column a class of classes (N,), the first sample of each."""
    from torchvision.utils import save_image

    first = [(classes == k).nonzero()[0, 0] for k in classes.unique()]
    rows = snapshots[torch.stack(first)].transpose(0, 1).flatten(0, 1).float() / 255  # (S K, C, H, W)
    side = rows.shape[-1]
    rows = rows.repeat_interleave(max(1, 56 // side), 2).repeat_interleave(max(1, 56 // side), 3)
    with atomic(path) as f:
        save_image(rows, f, nrow=len(first), format="png", pad_value=1)
