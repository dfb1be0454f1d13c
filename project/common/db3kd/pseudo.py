"""Pseudo samples of ZSDB3KD (Wang 2021, https://arxiv.org/abs/2106.03310).

They start as noise images that the teacher classifies, and then move away from the decision boundaries.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..cli import RunError, say
from ..options import Base
from ..pictures import save_grid
from .boundary import nearest_of_class, nearest_other_class
from .priors import dct_basis
from .search import Search

SIZE, ROUNDS = 1024, 100  # number of noise images per round, and largest number of rounds, to find images of every class
MAX_NOISE_QUERIES = SIZE * ROUNDS
TURN_COSINE = -0.5  # cosine of two successive steps below which the sample turns back
MAX_TRIES = 5  # number of step lengths that are tried; each is half the one before


def draw_noise(n: int, shape: tuple[int, int, int], g: torch.Generator) -> Tensor:
    """Returns n noise images (n, C H W) in [0, 1]: (U(0, 1) + 0.2) a + N(0, 1) b, with a and b drawn from [0, 1] per image.

    Source: the released code of ZSDB3KD.
    """
    a, b = torch.rand(2, n, 1, generator=g)
    values = math.prod(shape)
    return ((torch.rand(n, values, generator=g) + 0.2) * a + torch.randn(n, values, generator=g) * b).clamp(0, 1)


def draw_smooth_noise(n: int, shape: tuple[int, int, int], g: torch.Generator) -> Tensor:
    """Returns n smooth noise images (n, C H W) in [0, 1], each with a random brightness and contrast.

    Each is a random combination of k x k low-frequency cosines; k is drawn from 2 to 8 and is the same for all images of a call.
    """
    k = int(torch.randint(2, 9, (), generator=g))
    waves = dct_basis(k, shape)
    field = torch.randn(n, len(waves), generator=g) @ waves
    field = field / field.std(1, keepdim=True).clamp_min(1e-6)
    return (torch.rand(n, 1, generator=g) + field * 2 * torch.rand(n, 1, generator=g) - 0.25).clamp(0, 1)


def draw_initial_samples(
    classify: Callable[[Tensor], Tensor], K: int, n: int, shape: tuple[int, int, int], g: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Returns n images (n, C, H, W) in [0, 1] and the teacher's classes (n,) of them, as balanced over the K classes as possible.

    classify(x): the teacher's classes of images. The images are noise first. While classes lack images, smooth noise and mixes of the
    images found so far follow. Raises RunError if the teacher assigns all images to one class.
    """
    found, wanted, tried = {}, dict.fromkeys(range(K), -(-n // K)), 0
    for i in range(ROUNDS):
        lacking = [k for k in wanted if len(found.get(k, ())) < wanted[k]]
        if not lacking:
            break
        if i < 2 or i % 2 or len(found) < 2:
            x = (draw_smooth_noise if i % 2 else draw_noise)(SIZE, shape, g)
        else:  # mixes whose first image has a weight of at least one half and is of a lacking class, if there is one
            first = torch.cat([found[k] for k in lacking if k in found] or [*found.values()])
            second = torch.cat([*found.values(), draw_smooth_noise(SIZE // 4, shape, g)])
            a, b = (images[torch.randint(len(images), (SIZE,), generator=g)] for images in (first, second))
            x = torch.lerp(a, b, torch.rand(SIZE, 1, generator=g) / 2)
        s, tried = classify(x.view(-1, *shape)).cpu(), tried + len(x)
        for k in lacking:
            found[k] = torch.cat([found.get(k, x[:0]), x[s == k]])[: wanted[k]]
            if not len(found[k]):
                del found[k]
        if i == ROUNDS // 2:  # classes without an image so far are given up; the other classes get more images
            wanted = dict.fromkeys(found, -(-n // len(found)))
    if len(found) < 2:
        hint = "use another teacher, or DB3KD.py (needs private images)"
        raise RunError(f"the teacher assigns all {tried:,} noise images to one class, so there is no decision boundary; {hint}")
    if missing := sorted(set(range(K)) - set(found)):
        say(f"the teacher assigns none of {tried:,} noise images to the classes {', '.join(map(str, missing))}: they get no samples")
    x, s = torch.cat([*found.values()]), torch.cat([torch.full((len(v),), k) for k, v in found.items()])
    order = torch.randperm(len(x), generator=g)[:n]
    if len(order) < n:
        order = order[torch.arange(n) % len(order)]
    return x[order].view(-1, *shape), s[order]


class PseudoSamples:
    """Images x (N, d) of classes s (N,), and the nearest point `near` (N, d) of another class that is known, at distance r (N,).

    x: images (N, C, H, W) in [0, 1]. classify(x): the teacher's classes of images. keys (N,): numbers of the samples.
    stages: those of Search.minimise. args: options of ZSDB3KD.py (candidates, lbd_step, step_queries, seed).
    """

    def __init__(
        self,
        x: Tensor,
        s: Tensor,
        classify: Callable[[Tensor], Tensor],
        keys: Tensor,
        stages: Sequence[tuple[str, Tensor | None]],
        args: Base,
    ) -> None:
        self.shape, self.s, self.classify, self.keys, self.stages, self.args = x.shape[1:], s, classify, keys * 100_003, stages, args
        rays = nearest_other_class(*nearest_of_class(x, s, x, s, int(s.max()) + 1, args.candidates))
        search = self.search(x, 4 * args.step_queries, 0, x, *rays)
        self.x, self.near, self.r, self.known = x.flatten(1), search.near, search.r, search.near[:, None]
        self.step, self.away = torch.full_like(self.r, args.lbd_step), torch.zeros_like(self.x)

    def search(
        self, x: Tensor, budget: int, number: int, bank: Tensor, index: Tensor, distance: Tensor, ahead: Tensor | None = None
    ) -> Search:
        """Returns a finished search for the nearest point of another class to each image of x, with `budget` queries per image.

        bank, index, distance: images of other classes, as for Search.start. number: changes the random directions.
        ahead: offsets (N, d) to points that are tested first.
        """
        search = Search(x.view(-1, *self.shape), self.s, self.classify, 0, self.keys + number, [budget])
        search.start(bank, index, distance)
        if ahead is not None:
            search.probe(torch.arange(len(x), device=x.device), ahead)
        search.bisect_rays(bank, index, distance)
        search.minimise(self.stages, self.args.seed)
        return search

    def move(self, number: int) -> None:
        """Moves each sample one step away from its nearest boundary point, then searches that point again.

        The step is halved until the sample keeps its class; after MAX_TRIES lengths it stays where it is.
        A sample that turns back takes steps half as long from then on.
        number: number of the step; it changes the random directions.
        """
        away = (self.x - self.near) / self.r[:, None]
        self.step = torch.where((away * self.away).sum(1) < TURN_COSINE, self.step / 2, self.step)
        self.away, x, step, left = away, self.x.clone(), self.step.clone(), torch.arange(len(away), device=away.device)
        for _ in range(MAX_TRIES):
            z = (self.x[left] + step[left, None] * away[left]).clamp(0, 1)
            same = self.classify(z.view(-1, *self.shape)) == self.s[left]
            x[left[same]] = z[same]
            self.add_known(left[~same], z[~same])
            left = left[~same]
            step[left] /= 2
            if not len(left):
                break
        self.x = x
        distance, index = (self.known - x[:, None]).norm(dim=2).min(1, keepdim=True)
        rows = torch.arange(len(x), device=x.device)[:, None] * self.known.shape[1] + index
        search = self.search(x, self.args.step_queries, number, self.known.flatten(0, 1), rows, distance, away * self.r[:, None])
        self.add_known(torch.arange(len(x), device=x.device), search.near)
        self.near, self.r = search.near, search.r

    def add_known(self, p: Tensor, near: Tensor) -> None:
        """Keeps points of other classes `near` (n, d), found for the samples p (n,): the latest eight per sample, used without a query."""
        if len(p):
            self.known = torch.cat([self.known, self.near[:, None]], 1)
            self.known[p, -1] = near
            self.known = self.known[:, -8:]


def save_snapshots(snapshots: Tensor, classes: Tensor, path: str | Path) -> None:
    """Saves a picture with one row per snapshot and one column per class, of the first sample of each class.

    snapshots: uint8 (N, S, C, H, W); classes (N,).
    """
    first = [(classes == k).nonzero()[0, 0] for k in classes.unique()]
    rows = snapshots[torch.stack(first)].transpose(0, 1).flatten(0, 1).float() / 255  # (S K, C, H, W)
    save_grid(rows, path, len(first), 56, pad_value=1)
