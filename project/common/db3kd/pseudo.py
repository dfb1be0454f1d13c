"""Pseudo samples: noise, sorted into the classes that a teacher calls it, then moved away from the decision boundaries. Wang 2021."""

import torch

from ..pictures import save_grid
from ..utils import RunError, say
from .boundary import nearest_of_class, others
from .priors import dct
from .search import Search

SIZE, ROUNDS = 1024, 100  # images that are asked about at a time to find some of each class, and how often at most
DRAWS = SIZE * ROUNDS
TURNED, TRIES = -0.5, 5  # cosine of two steps below which the second turns back; lengths of a step that are tried, halved each time


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
    found, wanted, tried = {}, dict.fromkeys(range(K), -(-n // K)), 0
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
        s, tried = label(x.view(-1, *shape)).cpu(), tried + len(x)
        for k in lacking:
            found[k] = torch.cat([found.get(k, x[:0]), x[s == k]])[: wanted[k]]
            if not len(found[k]):
                del found[k]
        if i == ROUNDS // 2:  # what is not there by now will not come: the others share its places
            wanted = dict.fromkeys(found, -(-n // len(found)))
    if len(found) < 2:
        raise RunError(f"the teacher called {tried:,} images of noise by {len(found)} class: no boundary to move away from")
    if missing := sorted(set(range(K)) - set(found)):
        say(f"the teacher called none of {tried:,} images of noise {', '.join(map(str, missing))}: no sample of what it never says")
    x, s = torch.cat([*found.values()]), torch.cat([torch.full((len(v),), k) for k, v in found.items()])
    order = torch.randperm(len(x), generator=g)[:n]
    if len(order) < n:
        order = order[torch.arange(n) % len(order)]
    return x[order].view(-1, *shape), s[order]


class Samples:
    """Images x (N, d) of classes s (N,), and for each the nearest point `near` (N, d) known to be of another class, at r (N,).

    label(x): the teacher's classes of images; keys (N,): the samples' numbers; stages: those of Search.minimise; args: candidates,
    lbd_step, step_queries and seed, options of ZSDB3KD.py.
    """

    def __init__(self, x, s, label, keys, stages, args):
        self.shape, self.s, self.label, self.keys, self.stages, self.args = x.shape[1:], s, label, keys * 100_003, stages, args
        rays = others(*nearest_of_class(x, s, x, s, int(s.max()) + 1, args.candidates))
        search = self.search(x, 4 * args.step_queries, 0, x, *rays)
        self.x, self.near, self.r, self.known = x.flatten(1), search.near, search.r, search.near[:, None]
        self.step, self.away = torch.full_like(self.r, args.lbd_step), torch.zeros_like(self.x)

    def search(self, x, budget, number, bank, index, distance, ahead=None):
        """The nearest point of another class to each x, from images of other classes and what lies `ahead` (N, d) on."""
        search = Search(x.view(-1, *self.shape), self.s, self.label, 0, self.keys + number, [budget])
        search.start(bank, index, distance)
        if ahead is not None:
            search.guess(torch.arange(len(x), device=x.device), ahead)
        search.rays(bank, index, distance)
        search.minimise(self.stages, self.args.seed)
        return search

    def move(self, number):
        """One step away from the nearest boundary, as long as keeps the class; where it would turn back on the last one, half as long."""
        away = (self.x - self.near) / self.r[:, None]
        self.step = torch.where((away * self.away).sum(1) < TURNED, self.step / 2, self.step)
        self.away, x, step, left = away, self.x.clone(), self.step.clone(), torch.arange(len(away), device=away.device)
        for _ in range(TRIES):
            z = (self.x[left] + step[left, None] * away[left]).clamp(0, 1)
            same = self.label(z.view(-1, *self.shape)) == self.s[left]
            x[left[same]] = z[same]
            self.know(left[~same], z[~same])
            left = left[~same]
            step[left] /= 2
            if not len(left):
                break
        self.x = x
        distance, index = (self.known - x[:, None]).norm(dim=2).min(1, keepdim=True)
        rows = torch.arange(len(x), device=x.device)[:, None] * self.known.shape[1] + index
        search = self.search(x, self.args.step_queries, number, self.known.flatten(0, 1), rows, distance, away * self.r[:, None])
        self.know(torch.arange(len(x), device=x.device), search.near)
        self.near, self.r = search.near, search.r

    def know(self, p, near):
        """Keeps points of other classes (n, d), met by the samples p; the latest eight of each, none of which costs a query again."""
        if len(p):
            self.known = torch.cat([self.known, self.near[:, None]], 1)
            self.known[p, -1] = near
            self.known = self.known[:, -8:]


def show(snapshots, classes, path):
    """A picture: a row a snapshot of (N, S, C, H, W) uint8, a column a class of classes (N,), the first sample of each."""
    first = [(classes == k).nonzero()[0, 0] for k in classes.unique()]
    rows = snapshots[torch.stack(first)].transpose(0, 1).flatten(0, 1).float() / 255  # (S K, C, H, W)
    save_grid(rows, path, len(first), 56, pad_value=1)
