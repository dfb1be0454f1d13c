"""Losses of logits, image by image, beside which GDA's terms stand: `BASES[name](s, t, y, args, epoch)` gives them by name.

s, t: logits (B, K) of student and teacher; y: labels (B,), or (B, K) where they are mixed; args: the options below; epoch: how many are
done, 0 in the first.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F

from ..losses import dkd, kl, kl_of_each, warm_up
from ..models import canonical
from ..options import opt
from ..utils import UsageError, exact
from .alignment import aligned, standardise
from .hints import HINTS

LIGHT = ("MobileNet", "MobileNetV2", "ShuffleNetV1", "ShuffleNetV2")  # students that mdistiller trains more slowly
BETA = {"ResNet56": 2.0, "ResNet110": 2.0, "VGG13_BN": 6.0, "WRN40_2": 6.0}  # DKD's, by teacher
MDISTILLER = {"batch_size": 64, "milestones": "150,180,210", "augment": "crop_flip", "normalize": "dataset"}
# the released script's data and optimizer; parity: its Sinkhorn term and its six GPUs too
TIMM = {"lr": 0.2, "schedule": "cosine", "lr_warmup": 10, "lr_min": 2e-3, "nesterov": True, "decay": "weights"}
TIMM |= {"augment": "resized_crop", "normalize": "dataset", "zoom": True, "dkd_warmup": 0}
PARITY = TIMM | {"sk_tolerance": 0.0, "batch_size": 768, "ranks": 6}
TEMPERATURES, MLKD_BATCH = (2.0, 3.0, 4.0, 5.0, 6.0), 0.5  # of MLKD; the weight of its likeness of images


@dataclass
class BaseLossOptions:
    """The options of the bases. RAMP: AugConf's fraction of the epochs over which its weight rises; SOFTNESS: of AdaptConf's choice."""

    GROUP: ClassVar = "method"
    RAMP: ClassVar = 0.3
    SOFTNESS: ClassVar = 0.5

    base: Literal["none", "kd", "dkd", "dist", "mlkd", "augconf", "adaptconf", "fitnet", "rkd", "reviewkd"] = opt(
        "kd", "base loss, beside which GDA's terms stand"
    )
    w_gt: float = opt(2.0, "weight of the cross-entropy", ge=0)
    w_kd: float = opt(1.0, "weight of the base loss", ge=0)
    temperature: float = opt(4.0, "temperature of the base loss", alias="t", gt=0)
    standardise: bool = opt(False, "kd, mlkd: standardise the logits of each image first (logit standardisation)")
    dkd_beta: float = opt(2.0, "dkd: weight of the non-target classes", ge=0)
    dkd_warmup: int = opt(20, "dkd: number of epochs over which its weights rise from 0", ge=0)
    dist_beta: float = opt(2.0, "dist: weight of the correlation between classes", ge=0)
    dist_gamma: float = opt(2.0, "dist: weight of the correlation between images", ge=0)
    mlkd_class: float = opt(0.5, "mlkd: weight of the class correlation, whose size grows as batch^2 / classes^3", ge=0)
    alpha_max: float = opt(0.5, "augconf: final weight of the student's own predicted class", ge=0, lt=1)

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
    return {"kd": kl(s, t, args.temperature)}


def decoupled(s, t, y, args, epoch):
    """DKD of the labels' classes, Zhao et al. 2022."""
    target, others = dkd(s, t, args.temperature, y=y if y.dim() == 1 else y.argmax(1))
    rise = warm_up(epoch + 1, args.dkd_warmup)
    return {"target": rise * target, "others": rise * args.dkd_beta * others}


def dist(s, t, y, args, epoch):
    """DIST, Huang et al. 2022, https://arxiv.org/abs/2205.10536: 1 - correlation, between classes for each image and between images."""
    p, q = (s / args.temperature).softmax(1), (t / args.temperature).softmax(1)
    between = {name: args.temperature**2 * (1 - pearson(p, q, dim)) for name, dim in (("inter", 1), ("intra", 0))}
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
        terms["batch"] += MLKD_BATCH * (p @ p.T - q @ q.T).square().sum() / len(p)
        terms["class"] += args.mlkd_class * (p.T @ p - q.T @ q).square().sum() / p.shape[1]
    return terms


def augconf(s, t, y, args, epoch):
    """A share of KD, rising to alpha_max, gives way to the student's own class; Guo et al. 2024, https://arxiv.org/abs/2402.03749."""
    rising = int(args.RAMP * args.epochs)
    alpha = args.alpha_max * (epoch / rising if epoch < rising else 1.0)
    return {"kd": (1 - alpha) * kl(s, t, args.temperature), "own": alpha * F.cross_entropy(s, s.argmax(1))}


def adaptconf(s, t, y, args, epoch):
    """The same by image: the share is larger the surer the student is of its class against the teacher's, and at most a half."""
    of_teacher = s.gather(1, t.argmax(1, keepdim=True))[:, 0]
    alpha = torch.sigmoid((of_teacher - s.amax(1)) / args.SOFTNESS).detach()  # (B,)
    return {
        "kd": ((1 - alpha) * kl_of_each(s, t, args.temperature)).mean(),
        "own": (alpha * F.cross_entropy(s, s.argmax(1), reduction="none")).mean(),
    }


BASES = {"none": none, "kd": kd, "dkd": decoupled, "dist": dist, "mlkd": mlkd, "augconf": augconf, "adaptconf": adaptconf}
