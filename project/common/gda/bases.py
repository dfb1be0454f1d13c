"""Losses of logits, image by image, beside which GDA's terms stand: `BASES[name](s, t, y, args, epoch)` gives them by name.

s, t: logits (B, K) of student and teacher; y: labels (B,), or (B, K) where they are mixed; args: the options below; epoch: how many are
done, 0 in the first.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from ..losses import dkd, kl, kl_of_each
from ..models import canonical
from ..utils import UsageError, exact
from .alignment import aligned, standardise
from .hints import HINTS

LIGHT = ("MobileNet", "MobileNetV2", "ShuffleNetV1", "ShuffleNetV2")  # students that mdistiller trains more slowly
BETA = {"ResNet56": 2.0, "ResNet110": 2.0, "VGG13_BN": 6.0, "WRN40_2": 6.0}  # DKD's, by teacher
MDISTILLER = {"batch_size": 64, "milestones": "150,180,210", "augment": "crop_flip", "normalize": "dataset"}
# the released script's data and optimizer; parity: its Sinkhorn term and its six GPUs too
TIMM = {"lr": 0.2, "schedule": "cosine", "lr_warmup": 10, "lr_start": 1e-4, "lr_min": 2e-3, "nesterov": True, "decay": "weights"}
TIMM |= {"augment": "resized_crop", "normalize": "dataset", "zoom": True, "dkd_warmup": 0}
PARITY = TIMM | {"w_sk": 0.1, "sk_sum": True, "sk_tolerance": 0.0, "batch_size": 768, "ranks": 6}
TEMPERATURES = (2.0, 3.0, 4.0, 5.0, 6.0)  # of MLKD


@dataclass
class Bases:
    """The options of the bases."""

    base: Literal["none", "kd", "dkd", "dist", "mlkd", "augconf", "adaptconf", "fitnet", "rkd", "reviewkd"] = "kd"  # what GDA stands beside
    w_gt: float = 2.0  # weight of the cross-entropy, in [0, 1000000]
    w_kd: float = 1.0  # weight of the base, in [0, 1000000]
    t: float = 4.0  # temperature of the base, in (0, 1000]
    standardise: bool = False  # kd, mlkd: of standardised logits
    dkd_alpha: float = 1.0  # weight of DKD's target part, in [0, 1000000]
    dkd_beta: float = 2.0  # of its other part, in [0, 1000000]
    dkd_warmup: int = 20  # epochs over which both rise from 0, in [0, 1000000]
    dist_beta: float = 2.0  # weight of DIST's correlation between classes, in [0, 1000000]
    dist_gamma: float = 2.0  # of that between images, in [0, 1000000]
    mlkd_batch: float = 0.5  # weight of MLKD's likeness of images, in [0, 1000000]
    mlkd_class: float = 0.5  # of its likeness of classes, whose size goes with batch^2 / classes^3, in [0, 1000000]
    alpha_max: float = 0.5  # augconf: share that the student's own class takes over, in [0, 1)
    ramp: float = 0.3  # share of the epochs over which it rises to that, in [0, 1]
    softness: float = 0.5  # adaptconf: of the choice between its own class and the teacher's, in (0, 1000000]
    rkd_distance: float = 25.0  # weight of RKD's distances, in [0, 1000000]
    rkd_angle: float = 50.0  # of its angles, in [0, 1000000]

    def validate(self):
        super().validate()
        if self.base in HINTS and self.response != "inside":
            raise UsageError(f"--base {self.base} compares features: it needs a teacher that one may look into, --response inside")


def preset_of(args):
    """What --preset says of the other options."""
    if args.preset != "mdistiller":
        return {"timm": TIMM, "parity": PARITY}.get(args.preset, {})
    apart = args.base == "dkd"
    weights = {"w_gt": 1.0, "w_kd": 1.0} if apart else {"w_gt": 0.1, "w_kd": 0.9}
    weights |= {"w_fr": 0.01, "w_sk": 6.4} if apart else {"w_fr": 0.001, "w_sk": 0.64}  # to the cross-entropy as released: 0.02, 12.8 to 2
    more = {"lr": 0.01 if canonical(args.model) in LIGHT else 0.05, "dkd_beta": BETA.get(canonical(args.teacher), 8.0)}
    return MDISTILLER | weights | more


def compared(s, t, y, args, epoch):
    """Of logits s, t (B, K) and labels y: the weighed terms of the base, and GDA's beside them, once."""
    with exact(s):
        return {k: args.w_kd * v for k, v in BASES[args.base](s, t, y, args, epoch).items()} | aligned(s, t, args)


def none(s, t, y, args, epoch):
    return {}


def kd(s, t, y, args, epoch):
    """KD; standardised: Sun et al. 2024, https://arxiv.org/abs/2403.01427."""
    if args.standardise:
        s, t = standardise(s), standardise(t)
    return {"kd": kl(s, t, args.t)}


def decoupled(s, t, y, args, epoch):
    """DKD of the labels' classes, Zhao et al. 2022."""
    target, others = dkd(s, t, args.t, y=y if y.dim() == 1 else y.argmax(1))
    rise = min(1.0, (epoch + 1) / max(1, args.dkd_warmup))
    return {"target": rise * args.dkd_alpha * target, "others": rise * args.dkd_beta * others}


def dist(s, t, y, args, epoch):
    """DIST, Huang et al. 2022, https://arxiv.org/abs/2205.10536: 1 - correlation, between classes for each image and between images."""
    p, q = (s / args.t).softmax(1), (t / args.t).softmax(1)
    between = {name: args.t**2 * (1 - pearson(p, q, dim)) for name, dim in (("inter", 1), ("intra", 0))}
    return {"inter": args.dist_beta * between["inter"], "intra": args.dist_gamma * between["intra"]}


def pearson(a, b, dim):
    """The mean correlation of a and b (B, K) along `dim`; 0 for what is constant."""
    a, b = a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True)
    return ((a * b).sum(dim) / (a.norm(dim=dim) * b.norm(dim=dim) + 1e-8)).mean()


def mlkd(s, t, y, args, epoch):
    """Multi-level logit distillation, Jin et al. 2023: KD, and the images' (B, B) and the classes' (K, K) likeness, at each temperature.

    The weights of the latter two are the share of images and classes that the released code lets count, the less certain half.
    """
    if args.standardise:
        s, t = standardise(s), standardise(t)
    terms = {"kd": 0.0, "batch": 0.0, "class": 0.0}
    for tau in TEMPERATURES:
        p, q = (s / tau).softmax(1), (t / tau).softmax(1)
        terms["kd"] += kl(s, t, tau)
        terms["batch"] += args.mlkd_batch * (p @ p.T - q @ q.T).square().sum() / len(p)
        terms["class"] += args.mlkd_class * (p.T @ p - q.T @ q).square().sum() / p.shape[1]
    return terms


def augconf(s, t, y, args, epoch):
    """A share of KD, rising to alpha_max, gives way to the student's own class; Guo et al. 2024, https://arxiv.org/abs/2402.03749."""
    rising = int(args.ramp * args.epochs)
    alpha = args.alpha_max * (epoch / rising if epoch < rising else 1.0)
    return {"kd": (1 - alpha) * kl(s, t, args.t), "own": alpha * F.cross_entropy(s, s.argmax(1))}


def adaptconf(s, t, y, args, epoch):
    """The same by image: the share is larger the surer the student is of its class against the teacher's, and at most a half."""
    of_teacher = s.gather(1, t.argmax(1, keepdim=True))[:, 0]
    alpha = torch.sigmoid((of_teacher - s.amax(1)) / args.softness).detach()  # (B,)
    return {
        "kd": ((1 - alpha) * kl_of_each(s, t, args.t)).mean(),
        "own": (alpha * F.cross_entropy(s, s.argmax(1), reduction="none")).mean(),
    }


BASES = {"none": none, "kd": kd, "dkd": decoupled, "dist": dist, "mlkd": mlkd, "augconf": augconf, "adaptconf": adaptconf}
