"""Soft labels from distances to decision boundaries, for a teacher that answers with a class only (DB3KD, https://arxiv.org/abs/2106.03310).

The run saves the distances in its transfer set while it measures them. Its columns `mbd` and `mbd_asked`, (N, K, B) each, are named after
--sr_mode. They contain the known distance and the number of queries for each image, class and budget. A distance is infinite for the
image's own class, and for a class to which no boundary was found.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..checkpoints import load_weights
from ..cli import UsageError, allocating, say
from ..losses import kl
from ..options import Base, TransferOptions, opt
from ..run import Run
from ..states import converted
from ..transfer import Columns
from ..values import is_count
from .boundary import nearest_of_class, num_halvings, soft_labels
from .priors import adversarial_points, dct_basis, pilot_directions, train_surrogate
from .search import Search

PILOT_BUDGET = 2000  # queries for each pair of a pilot image and a class
NEIGHBOURS = 5  # number of pilot directions that are tested per pair
PROBE_FACTORS = (1.0, 1.3, 1.7, 2.2, 3.0)  # multiples of the distance to the surrogate's boundary at which the teacher is queried
QUERIES_PER_SAVE = {"cpu": 1e5, "cuda": 5e6}  # number of queries after which the run saves its distances
MODES = Literal["bd", "sd", "mbd", "surrogate", "even", "noise"]
ALGORITHMS = Literal["arc", "signopt", "hsja"]
RELEASED = {"candidates": 200, "algorithm": "signopt", "basis": "full", "form": "inverse", "scale": "none"}


@dataclass
class SoftLabelOptions(TransferOptions):
    """Options of the soft labels. OPTIONS_OF_MODE: for each --sr_mode, the options on which its distances depend."""

    NEEDS: ClassVar = "hard"
    GROUP: ClassVar = "method"
    RAY_OPTIONS: ClassVar = ("candidates", "preset", "tolerance")
    OPTIONS_OF_MODE: ClassVar = {"sd": (), "bd": RAY_OPTIONS, "mbd": (*RAY_OPTIONS, "budgets", "algorithm", "basis", "pilots")}

    response: str = "hard"
    sr_mode: MODES = opt(
        "bd",
        "source of the soft labels: distance to the nearest image of the other class (sd), to the boundary on rays (bd) or to the nearest "
        "boundary point (mbd); baselines: equal (even), random (noise), logits of a surrogate network (surrogate)",
        alias="mode",
    )
    candidates: int = opt(8, "number of rays from an image to images of each other class", ge=1)
    preset: Literal["default", "released"] = opt(
        "default", "settings: default, or those of the released code (released: 200 random ray ends, Sign-OPT, labels 1/d)"
    )
    tolerance: float = opt(1e-3, "precision of a boundary point on a ray, as a fraction of the ray's length", ge=1e-6, le=0.5)
    budgets: str = opt("1000", "maximum number of queries per image and class (--sr_mode mbd only), one or several with commas: 1000,2000")
    at: int = opt(0, "budget whose distances give the soft labels, one of --budgets; 0: the largest", ge=0)
    algorithm: ALGORITHMS = opt(
        "arc", "search algorithm that follows the boundary (--sr_mode mbd only): arc, signopt (the paper's), hsja (HopSkipJump)"
    )
    basis: str = opt(
        "surrogate+dct",
        "start points (surrogate, bank) and bases of the search directions in order (dct:K: K x K cosines; full: all pixels; dct: three "
        "sizes), joined by + (--sr_mode mbd only)",
    )
    pilots: int = opt(8, "number of images per class that are searched first, with --basis bank", ge=1)
    form: Literal["linear", "inverse"] = opt("linear", "logit as a function of the distance d: -d (linear), or 1/d (inverse, the paper's)")
    scale: Literal["median", "none"] = opt("median", "divisor of the distances: their median, or none")
    temperature: float = opt(20.0, "temperature of the KL term", alias="t", ge=1e-3, le=1e3)
    w_kl: float = opt(1.28, "weight of the KL term", ge=0)
    w_ce: float = opt(1.0, "weight of the cross-entropy to the teacher's classes", ge=0)

    def presets(self) -> dict:
        return RELEASED if self.preset == "released" else {}

    def validate(self) -> None:
        super().validate()
        budgets_of(self)
        parse_basis(self)


def soft_label_loss(args: SoftLabelOptions, s: Tensor, t: Tensor, logits: Tensor) -> dict[str, Tensor]:
    """Returns the loss terms of the student's logits s (B, K): KL to the soft labels, cross-entropy to the teacher's classes.

    t: the teacher's classes, one-hot (B, K); logits: the soft labels (B, K). Source: Wang 2021, https://arxiv.org/abs/2106.03310.
    """
    return {"kl": args.w_kl * kl(s, logits, args.temperature), "ce": args.w_ce * F.cross_entropy(s, t.argmax(1))}


def soft_labels_of(run: Run, bought: Columns) -> Tensor:
    """Returns soft labels, logits (N, K), for the rows of `bought` (the result of `run.buy`), as --sr_mode selects.

    Measures the distances first if `bought` does not hold them. Raises UsageError if it holds distances made with other options.
    """
    args, s, K = run.args, bought["answers"].argmax(1), run.data.classes
    budgets, at = budgets_of(args)
    if args.sr_mode == "even":  # equal logits for all other classes: label smoothing
        return soft_labels(torch.ones(len(s), K, device=run.device), s, args.form)
    if args.sr_mode == "noise":
        return torch.randn(len(s), K, generator=torch.Generator().manual_seed(args.seed)).to(run.device)
    if args.sr_mode == "surrogate":
        net = surrogate_net(run, bought)
        return torch.cat([net(x * 2 - 1) for x in unit_images(run, bought).split(1000)])
    mode, made = args.sr_mode, run.purchases.transfer.made
    current = {k: getattr(args, k) for k in args.OPTIONS_OF_MODE[mode]}
    if different := [f"--{k} {v} (now {current.get(k)})" for k, v in made.get(mode, current).items() if v != current.get(k)]:
        hint = "use the same values, or buy new answers (without --transfer, or with --overwrite)"
        raise UsageError(f"{args.transfer or run.purchases.transfer.path} holds {mode} distances made with {', '.join(different)}; {hint}")
    if mode not in bought:
        if missing := sorted(set(range(K)) - set(s.tolist())):
            names = ", ".join(map(str, missing))
            say(f"the teacher assigns none of {len(s):,} images to the classes {names}: distances to these are not measured")
        with allocating("the distances to the decision boundaries", "--candidates", "--pilots", "--lamda", "--img_size"):
            measure, made[mode] = BoundaryDistances(run, bought, budgets), current
            bought = run.purchases.grow(measure, mode, measure.chunk, len(s))
    elif args.transfer:  # subtract the queries that the selected budget does not need
        spent = bought[f"{mode}_asked"].sum((0, 1))
        surplus, kind = int(spent[at] - spent[-1]), "synthetic" if "images" in bought else "mixed"
        run.purchases.add_inherited_counts({"queries": surplus, kind: surplus, "bytes": surplus * 4 * math.prod(run.data.shape)})
    return soft_labels(bought[mode][:, :, at], s, args.form, args.scale)


def budgets_of(args: SoftLabelOptions) -> tuple[list[int], int]:
    """Returns the budgets in ascending order, and the index of the one that gives the soft labels.

    Raises UsageError for budgets that are not numbers or too small for the rays, and for --at outside of --budgets.
    """
    ray_queries = args.candidates * (1 + num_halvings(args.tolerance))  # most queries that the rays of a pair take
    if args.sr_mode != "mbd":
        return [ray_queries], 0
    if not all(is_count(b) for b in args.budgets.split(",")):
        raise UsageError(f"--budgets {args.budgets}: not numbers of queries; use integers with commas, such as 1000,2000,4000")
    budgets = sorted({int(b) for b in args.budgets.split(",")})
    if budgets[0] < ray_queries:
        rays = f"{args.candidates} rays with --tolerance {args.tolerance:g} take up to {ray_queries} queries"
        hint = f"use budgets of at least {ray_queries}, or fewer --candidates"
        raise UsageError(f"--budgets {args.budgets}: {budgets[0]} is too small, because {rays}; {hint}")
    if args.at and args.at not in budgets:
        raise UsageError(f"--at {args.at} is not one of --budgets {args.budgets}; use one of them, or 0 for the largest")
    return budgets, budgets.index(args.at or budgets[-1])


def max_label_queries(args: SoftLabelOptions, K: int) -> int:
    """Returns the largest number of queries that measure the distances of an image; K: number of classes."""
    return budgets_of(args)[0][-1] * (K - 1) if args.sr_mode in ("bd", "mbd") else 0


def parse_basis(args: Base) -> tuple[list[str], set[str]]:
    """Returns the names of the bases in order, and the set of priors (surrogate, bank), from --basis.

    Raises UsageError for other parts, and for a part that stands twice.
    """
    words = args.basis.lower().split("+")
    for word in words:
        kind, _, k = word.partition(":")
        if word not in ("dct", "full", "surrogate", "bank") and not (kind == "dct" and is_count(k) and int(k) > 1):
            allowed = "full, dct, dct:K (K at least 2), surrogate and bank, joined by + such as dct:7+full or surrogate+dct"
            raise UsageError(f"--basis {args.basis}: unknown part {word!r}; use {allowed}")
    all_words = words + ["full"] * ("dct" in words)  # which dct ends with
    if repeated := next((w for w in words if all_words.count(w) > 1), ""):
        raise UsageError(
            f"--basis {args.basis}: {repeated} stands twice{' (dct ends with full)' * (repeated == 'full')}; use each part once"
        )
    priors = {"surrogate", "bank"}.intersection(words)
    return [w for w in words if w not in priors] or ["dct"], priors


def search_stages(args: Base, shape: tuple[int, int, int], device: torch.device | str) -> tuple[list[tuple[str, Tensor | None]], set[str]]:
    """Returns the stages for Search.minimise and the set of priors, from --algorithm and --basis, for images of `shape` (C, H, W)."""
    words, priors = parse_basis(args)
    if "dct" in words:
        place, side = words.index("dct"), shape[-1]
        words[place : place + 1] = [f"dct:{max(2, side // 4)}", f"dct:{max(2, side // 2)}", "full"]
    stages = [(args.algorithm, dct_basis(int(w[4:]), shape).to(device) if w != "full" else None) for w in words]
    return stages + [("hsja", None)] * (args.algorithm == "arc"), priors


def unit_images(run: Run, rows: Columns) -> Tensor:
    """Returns the images (n, C, H, W) of rows of a transfer set, in [0, 1]. Raises UsageError if their values lie outside."""
    x = run.purchases.to_images(rows) * run.data.std + run.data.mean
    low, high = x.min().item(), x.max().item()
    if low < -1e-3 or high > 1 + 1e-3:
        raise UsageError(f"pixel values lie in [{low:.3g}, {high:.3g}], but distances need images in [0, 1]; use another --transfer")
    return x.clamp(0, 1)


def teacher_classifier(run: Run, kind: str) -> Callable[[Tensor], Tensor]:
    """Returns classify(x): the teacher's classes (n,) of images x (n, C, H, W) in [0, 1]. The queries count as images of `kind`."""
    mean, std = run.data.mean, run.data.std
    return lambda x: run.teacher(torch.addcmul(-mean / std, x, 1 / std), kind).argmax(1)


def surrogate_net(run: Run, bought: Columns) -> nn.Module:
    """Returns a network of the student's architecture, trained on the teacher's classes of the bought images; it takes images in [-1, 1].

    It is trained once and saved in the run's folder. Its random numbers are separate from those of the run.
    """
    with torch.random.fork_rng(devices=[run.device] if run.device.type == "cuda" else []):
        torch.manual_seed(run.args.seed)
        net, s = run.net(run.args.model), bought["answers"].argmax(1)
        kept = run.purchases.keep("surrogate", lambda: train_surrogate(net, unit_images(run, bought) * 2 - 1, s).state_dict())
        path = run.record.folder / "surrogate.pt"
        load_weights(net, kept, path, f"the surrogate, {run.args.model}")
        if odd := converted(net, kept):
            raise UsageError(f"{path} is damaged: its {odd} is {kept[odd].dtype}; move it away and run again")
    return net.eval().requires_grad_(False)


class BoundaryDistances:
    """Measures distances: `measure(rows)` returns the columns (n, K, B) of distances and of queries for rows of the bought images.

    bank, classes: all bought images (N, C, H, W) in [0, 1] and the teacher's classes (N,) of them. budgets: in ascending order.
    chunk: number of images per call, so that the run saves regularly.
    """

    def __init__(self, run: Run, bought: Columns, budgets: Sequence[int]) -> None:
        self.run, self.args, self.K, self.budgets = run, run.args, run.data.classes, budgets
        self.bank, self.classes = unit_images(run, bought), bought["answers"].argmax(1)
        # mixed: the queries are points between private images
        self.classify = teacher_classifier(run, "synthetic" if "images" in bought else "mixed")
        self.max_queries = budgets[-1] * (self.K - 1)  # per image
        self.chunk = int(max(1, min(1000, QUERIES_PER_SAVE.get(run.device.type, 1e6) // self.max_queries)))
        self.stages, priors = search_stages(run.args, run.data.shape, run.device)
        mbd = run.args.sr_mode == "mbd"
        self.surrogate = surrogate_net(run, bought) if mbd and "surrogate" in priors else None
        self.pilots, self.num_pilots = None, min(self.args.pilots, int(self.classes.bincount().max()))
        if mbd and "bank" in priors:
            images = self.num_pilots, self.bank[0].numel()
            shapes = {"x": (self.K, *images), "way": (self.K, self.K, *images)}
            self.pilots = {k: v.to(run.device) for k, v in run.purchases.keep("bank", self.solve_pilots, **shapes).items()}

    def start(self, x: Tensor, s: Tensor, keys: Tensor, budgets: Sequence[int]) -> tuple[Search, list[Tensor]]:
        """Returns a Search that knows the nearest images of each class (SD), and its rays (index and distance)."""
        g, pick = torch.Generator().manual_seed(self.args.seed), "random" if self.args.preset == "released" else "nearest"
        rays = nearest_of_class(x, s, self.bank, self.classes, self.K, self.args.candidates, pick, g)
        rays = [v.flatten(0, 1) for v in rays]
        search = Search(x, s, self.classify, self.K, keys, budgets)
        search.start(self.bank, *rays)
        return search, rays

    def solve(self, x: Tensor, s: Tensor, keys: Tensor, budgets: Sequence[int]) -> Search:
        """Returns a finished Search for images x (n, C, H, W) of classes s (n,), with the priors, the rays (BD) and the boundary (MBD)."""
        search, (index, distance) = self.start(x, s, keys, budgets)
        p = (search.r < math.inf).nonzero()[:, 0]
        if self.surrogate and len(p):
            images = x[search.image[p]]
            parts = (v.split(4096) for v in (images, search.target[p], search.near[p].view_as(images)))
            ends = torch.cat([adversarial_points(lambda x: self.surrogate(x * 2 - 1), *part) for part in zip(*parts, strict=True)])
            search.probe(p, (ends - images).flatten(1), PROBE_FACTORS)
            distance = distance.where(search.gap[:, None] == 1, math.inf)  # a pair that reached the boundary needs no rays
        search.bisect_rays(self.bank, index, distance, self.args.tolerance)
        if self.pilots:
            own = search.x[search.image[p]], s[search.image[p]], search.target[p]
            for direction in pilot_directions(*own, self.pilots["x"], self.pilots["way"], NEIGHBOURS).unbind(1):
                search.probe(p, direction * search.r[p, None])
        if self.args.sr_mode == "mbd":
            search.minimise(self.stages, self.args.seed)
        return search

    def solve_pilots(self) -> dict[str, Tensor]:
        """Returns the pilots: images `x` (K, m, d) of each class, and unit directions `way` (K, K, m, d) to their boundary points.

        A direction is 0 if no boundary point is known.
        """
        K, m = self.K, self.num_pilots
        rows = torch.cat([(self.classes == k).nonzero()[:m, 0] for k in range(K)])
        self.run.teacher.afford(len(rows) * (K - 1) * PILOT_BUDGET)
        search = self.solve(self.bank[rows], self.classes[rows], rows, [PILOT_BUDGET])
        say(f"{len(rows)} pilot images: {search.count.sum():,} queries, mean distance {search.r[search.r < math.inf].mean():.4g}")
        ray = ((search.near - search.x[search.image]) / search.r[:, None]).view(len(rows), K, -1)
        x, directions = ray.new_zeros(K, m, ray.shape[2]), ray.new_zeros(K, K, m, ray.shape[2])
        for k in range(K):
            own = (self.classes[rows] == k).nonzero()[:, 0]
            x[k, : len(own)], directions[k, :, : len(own)] = search.x[own], ray[own].transpose(0, 1)
        return {"x": x, "way": directions}

    def __call__(self, rows: Columns) -> Columns:
        """Measures the distances of these rows. Images beyond --query_budget get the distances to the nearest images (SD)."""
        x, s, keys = unit_images(self.run, rows), rows["answers"].argmax(1).to(self.run.device), rows["row"]
        n = 0 if self.args.sr_mode == "sd" else int(min(len(x), self.run.teacher.left // self.max_queries))
        found = [self.solve(x[:n], s[:n], keys[:n], self.budgets)] if n else []
        found += [self.start(x[n:], s[n:], keys[n:], self.budgets)[0]] if n < len(x) else []
        shape = len(x), self.K, len(self.budgets)
        distance, asked = torch.cat([f.curve for f in found]), torch.cat([f.spent for f in found]).int()
        return {self.args.sr_mode: distance.view(shape), f"{self.args.sr_mode}_asked": asked.view(shape)}
