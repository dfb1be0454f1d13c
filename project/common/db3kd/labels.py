"""Soft labels from a teacher that answers with a class and no more: how far an image is from each other class. Wang 2021, 2106.03310.

They are kept in the run's transfer set as they are made, in columns named by --sr_mode, `mbd` and `mbd_asked` (N, K, B): for an image, a
class and a budget the distance known and the queries it took, infinite for the own class and for a class that cannot be reached.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F

from ..losses import kl
from ..options import TransferOptions, opt
from ..utils import UsageError, say
from .boundary import halvings, nearest_of_class, soft_labels
from .priors import crossing, dct, learn, nearest_pilots
from .search import Search

PILOT_BUDGET = 2000  # queries for each pair of a pilot image and a class
NEIGHBOURS = 5  # directions of pilots that are tried
SHARES = (1.0, 1.3, 1.7, 2.2, 3.0)  # of the way to our own student's boundary, at which the teacher's is looked for
WAVE = {"cpu": 1e6, "cuda": 5e7}  # queries after which what was bought is saved
MODES = Literal["bd", "sd", "mbd", "surrogate", "even", "noise"]
ALGORITHMS = Literal["arc", "signopt", "hsja"]
RELEASED = {"candidates": 200, "algorithm": "signopt", "basis": "full", "form": "inverse", "scale": "none"}


@dataclass
class LabelOptions(TransferOptions):
    """How soft labels are made."""

    NEEDS: ClassVar = "hard"
    GROUP: ClassVar = "method"
    OF_RAYS: ClassVar = ("candidates", "preset", "tolerance")
    MADE_BY: ClassVar = {"sd": (), "bd": OF_RAYS, "mbd": (*OF_RAYS, "budgets", "algorithm", "basis", "pilots")}

    response: str = "hard"
    sr_mode: MODES = opt(
        "bd",
        "soft labels: distance to the boundary on rays (bd), nearest (mbd), to the nearest image (sd); baselines: the rest",
        alias="mode",
    )
    candidates: int = opt(8, "number of images of each other class at which rays end", ge=1)
    preset: Literal["default", "released"] = opt(
        "default", "released: search and labels of the released code (200 random ray ends, Sign-OPT, 1/d)"
    )
    tolerance: float = opt(1e-3, "precision of the boundary on a ray, as a fraction of the ray's length", ge=1e-6, le=0.5)
    budgets: str = opt("1000", "mbd: number of queries for each pair of image and class, one or several with commas: 1000,2000")
    at: int = opt(0, "mbd: which of the budgets gives the labels; 0: the largest", ge=0)
    algorithm: ALGORITHMS = opt("arc", "mbd: algorithm that follows the boundary: arc, signopt (the paper's), hsja (HopSkipJump)")
    basis: str = opt("surrogate+dct", "mbd: start points (surrogate, bank) and bases of directions (dct, dct:K, full), joined by +")
    pilots: int = opt(8, "bank: number of images per class whose boundary points are found first", ge=1)
    form: Literal["linear", "inverse"] = opt("linear", "logit as a function of the distance d: -d (linear), or 1/d (inverse, the paper)")
    scale: Literal["median", "none"] = opt("median", "scale of the distances: their median, or none")
    temperature: float = opt(20.0, "temperature of the KL term", alias="t", gt=0)
    w_kl: float = opt(1.28, "weight of the KL term", ge=0)
    w_ce: float = opt(1.0, "weight of the cross-entropy on the teacher's classes", ge=0)

    def presets(self) -> dict:
        return RELEASED if self.preset == "released" else {}

    def validate(self) -> None:
        super().validate()
        budgets_of(self)
        words_of(self)


def label_loss(args, s, t, logits):
    """Terms of the student's logits s (B, K): KL to the soft labels, cross-entropy on the teacher's classes t, one-hot (B, K)."""
    return {"kl": args.w_kl * kl(s, logits, args.temperature), "ce": args.w_ce * F.cross_entropy(s, t.argmax(1))}


def labels(run, bought):
    """Logits (N, K) for the rows of `bought`, what `run.buy` gave, as --sr_mode says; distances are bought where they are not there."""
    args, s, K = run.args, bought["answers"].argmax(1), run.data.classes
    budgets, at = budgets_of(args)
    if args.sr_mode == "even":  # all other classes alike: label smoothing
        return soft_labels(torch.ones(len(s), K, device=run.device), s, args.form)
    if args.sr_mode == "noise":
        return torch.randn(len(s), K, generator=torch.Generator().manual_seed(args.seed)).to(run.device)
    if args.sr_mode == "surrogate":
        net = surrogate(run, bought)
        return torch.cat([net(x * 2 - 1) for x in pixels(run, bought).split(1000)])
    mode, made = args.sr_mode, run.purchases.transfer.made
    mine = {k: getattr(args, k) for k in args.MADE_BY[mode]}
    if off := [f"--{k} {v} (now {mine[k]})" for k, v in made.get(mode, mine).items() if v != mine[k]]:
        raise UsageError(f"--transfer {args.transfer} holds {mode} distances made with {', '.join(off)}; give the same, or other answers")
    if mode not in bought:
        if silent := sorted(set(range(K)) - set(s.tolist())):
            say(f"of {len(s):,} images the teacher called none {', '.join(map(str, silent))}: no distance to a class that it never says")
        measure, made[mode] = Measure(run, bought, budgets), mine
        bought = run.purchases.grow(measure, mode, measure.wave, len(s))
    elif args.transfer:  # what a smaller budget would not have spent
        spent = bought[f"{mode}_asked"].sum((0, 1))
        saved, kind = int(spent[at] - spent[-1]), "synthetic" if "images" in bought else "mixed"
        run.purchases.add_inherited_counts({"queries": saved, kind: saved, "bytes": saved * 4 * math.prod(run.data.shape)})
    return soft_labels(bought[mode][:, :, at], s, args.form, args.scale)


def budgets_of(args):
    """The budgets, rising, and the place of the one whose labels are learned."""
    least = args.candidates * (1 + halvings(args.tolerance))  # queries that rays may take
    if args.sr_mode != "mbd":
        return [least], 0
    try:
        budgets = sorted({int(b) for b in args.budgets.split(",")})
    except ValueError:
        raise UsageError(f"--budgets {args.budgets}: give numbers of queries such as 1000 or 1000,2000,4000") from None
    if budgets[0] < least:
        what = f"{args.candidates} rays to {args.tolerance:g} of their length may take {least} queries before the boundary is followed"
        raise UsageError(f"--budgets {args.budgets}: {what}; raise the budget, or lower --candidates")
    if args.at and args.at not in budgets:
        raise UsageError(f"--at {args.at} is none of --budgets {args.budgets}")
    return budgets, budgets.index(args.at or budgets[-1])


def words_of(args):
    """(the search's bases, in turn, and the set of priors) that --basis names."""
    words = args.basis.lower().split("+")
    priors = {"surrogate", "bank"}.intersection(words)
    words = [w for w in words if w not in priors] or ["dct"]
    for word in words:
        kind, _, k = word.partition(":")
        if word not in ("dct", "full") and not (kind == "dct" and k.isdigit() and int(k) > 1):
            there = "full, dct:k (k from 2 on), dct, surrogate, bank, joined by + as in dct:7+full or surrogate+dct"
            raise UsageError(f"--basis {args.basis}: {word!r} is none of {there}")
    return words, priors


def stages_of(args, shape, device):
    """(the stages of Search.minimise, the set of priors) that --algorithm and --basis name, for images (C, H, W)."""
    words, priors = words_of(args)
    if "dct" in words:
        at, side = words.index("dct"), shape[-1]
        words[at : at + 1] = [f"dct:{max(2, side // 4)}", f"dct:{max(2, side // 2)}", "full"]
    stages = [(args.algorithm, dct(int(w[4:]), shape).to(device) if w != "full" else None) for w in words]
    return stages + [("hsja", None)] * (args.algorithm == "arc"), priors


def pixels(run, rows):
    """The images (n, C, H, W) of rows of a transfer set, in [0, 1]; UsageError where they are not."""
    x = run.purchases.to_images(rows) * run.data.std + run.data.mean
    low, high = x.min().item(), x.max().item()
    if low < -1e-3 or high > 1 + 1e-3:
        raise UsageError(f"the images lie in [{low:.3g}, {high:.3g}], and distances are measured in [0, 1]: bring them there")
    return x.clamp(0, 1)


def labeller(run, kind):
    """label(x): the teacher's classes (n,) of images in [0, 1]."""
    mean, std = run.data.mean, run.data.std
    return lambda x: run.teacher(torch.addcmul(-mean / std, x, 1 / std), kind).argmax(1)


def surrogate(run, bought):
    """A net of the student's kind that has learned the teacher's classes of the bought images; made once, apart from the run's numbers."""
    with torch.random.fork_rng(devices=[run.device] if run.device.type == "cuda" else []):
        torch.manual_seed(run.args.seed)
        net, s = run.net(run.args.model), bought["answers"].argmax(1)
        net.load_state_dict(run.purchases.keep("surrogate", lambda: learn(net, pixels(run, bought) * 2 - 1, s).state_dict()))
    return net.eval().requires_grad_(False)


class Measure:
    """measure(rows): the columns (n, K, B) of distances and of queries for rows of the bought ones, `wave` of them at a time."""

    def __init__(self, run, bought, budgets):
        self.run, self.args, self.K, self.budgets = run, run.args, run.data.classes, budgets
        self.bank, self.classes = pixels(run, bought), bought["answers"].argmax(1)
        self.label = labeller(run, "synthetic" if "images" in bought else "mixed")  # mixed: points between private images
        self.worst = budgets[-1] * (self.K - 1)  # queries of an image
        self.wave = int(max(1, min(1000, WAVE.get(run.device.type, 1e6) // self.worst)))
        self.stages, priors = stages_of(run.args, run.data.shape, run.device)
        mbd = run.args.sr_mode == "mbd"
        self.surrogate = surrogate(run, bought) if mbd and "surrogate" in priors else None
        self.pilots = None
        if mbd and "bank" in priors:
            self.pilots = {k: v.to(run.device) for k, v in run.purchases.keep("bank", self.solve_pilots).items()}

    def start(self, x, s, keys, budgets):
        """A search that knows the nearest images (SD), and its rays."""
        g, pick = torch.Generator().manual_seed(self.args.seed), "random" if self.args.preset == "released" else "nearest"
        rays = nearest_of_class(x, s, self.bank, self.classes, self.K, self.args.candidates, pick, g)
        rays = [v.flatten(0, 1) for v in rays]
        search = Search(x, s, self.label, self.K, keys, budgets)
        search.start(self.bank, *rays)
        return search, rays

    def solve(self, x, s, keys, budgets):
        search, (index, distance) = self.start(x, s, keys, budgets)
        p = (search.r < math.inf).nonzero()[:, 0]
        if self.surrogate and len(p):
            images = x[search.image[p]]
            parts = (v.split(4096) for v in (images, search.target[p], search.near[p].view_as(images)))
            ends = torch.cat([crossing(lambda x: self.surrogate(x * 2 - 1), *part) for part in zip(*parts, strict=True)])
            search.guess(p, (ends - images).flatten(1), SHARES)
            distance = distance.where(search.gap[:, None] == 1, math.inf)  # no rays where that has led to the boundary
        search.rays(self.bank, index, distance, self.args.tolerance)
        if self.pilots:
            own = search.x[search.image[p]], s[search.image[p]], search.target[p]
            for way in nearest_pilots(*own, self.pilots["x"], self.pilots["way"], NEIGHBOURS).unbind(1):
                search.guess(p, way * search.r[p, None])
        if self.args.sr_mode == "mbd":
            search.minimise(self.stages, self.args.seed)
        return search

    def solve_pilots(self):
        """Images x (K, m, d) of each class, and the unit directions way (K, K, m, d) to their boundary points; 0 for none."""
        K, m = self.K, self.args.pilots
        rows = torch.cat([(self.classes == k).nonzero()[:m, 0] for k in range(K)])
        self.run.teacher.afford(len(rows) * (K - 1) * PILOT_BUDGET)
        search = self.solve(self.bank[rows], self.classes[rows], rows, [PILOT_BUDGET])
        say(f"{len(rows)} pilot images: {search.count.sum():,} queries, mean distance {search.r[search.r < math.inf].mean():.4g}")
        ray = ((search.near - search.x[search.image]) / search.r[:, None]).view(len(rows), K, -1)
        x, way = ray.new_zeros(K, m, ray.shape[2]), ray.new_zeros(K, K, m, ray.shape[2])
        for k in range(K):
            mine = (self.classes[rows] == k).nonzero()[:, 0]
            x[k, : len(mine)], way[k, :, : len(mine)] = search.x[mine], ray[mine].transpose(0, 1)
        return {"x": x, "way": way}

    def __call__(self, rows):
        x, s, keys = pixels(self.run, rows), rows["answers"].argmax(1).to(self.run.device), rows["row"]
        n = 0 if self.args.sr_mode == "sd" else int(min(len(x), self.run.teacher.left // self.worst))  # that --query_budget allows
        found = [self.solve(x[:n], s[:n], keys[:n], self.budgets)] if n else []
        found += [self.start(x[n:], s[n:], keys[n:], self.budgets)[0]] if n < len(x) else []
        shape = len(x), self.K, len(self.budgets)
        distance, asked = torch.cat([f.curve for f in found]), torch.cat([f.spent for f in found]).int()
        return {self.args.sr_mode: distance.view(shape), f"{self.args.sr_mode}_asked": asked.view(shape)}
