"""Base losses that GDA's terms are added to: `BASES[name](s, t, y, args, epoch)` returns the terms of a loss by name.

s, t: logits (B, K) of student and teacher. y: class labels (B,), or label probabilities (B, K) for mixed images.
args: the options below. epoch: number of finished epochs, 0 in the first.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cli import UsageError
from ..losses import dkd, kl, kl_of_each, warm_up
from ..models import canonical
from ..options import opt
from ..utils import exact
from .alignment import alignment_terms, standardise
from .hints import HINTS

Terms = dict[str, Tensor]

LIGHT = ("MobileNet", "MobileNetV2", "ShuffleNetV1", "ShuffleNetV2")  # students that mdistiller trains with a lower learning rate
BETA = {"ResNet56": 2.0, "ResNet110": 2.0, "VGG13_BN": 6.0, "WRN40_2": 6.0}  # DKD's weight of the non-target classes, by teacher
MDISTILLER = {"batch_size": 64, "milestones": "150,180,210", "augment": "crop_flip", "normalize": "dataset"}
# timm: data and optimizer of the released script; parity: also its Sinkhorn term and its six GPUs
TIMM = {"lr": 0.2, "schedule": "cosine", "lr_warmup": 10, "lr_min": 2e-3, "nesterov": True, "decay": "weights"}
TIMM |= {"augment": "resized_crop", "normalize": "dataset", "zoom": True, "dkd_warmup": 0}
PARITY = TIMM | {"sk_tolerance": 0.0, "batch_size": 768, "ranks": 6}
TEMPERATURES = (2.0, 3.0, 4.0, 5.0, 6.0)  # of MLKD
MLKD_BATCH = 0.5  # weight of MLKD's similarity between images


@dataclass
class BaseLossOptions:
    """Options of the base losses.

    RAMP: fraction of the epochs over which AugConf's weight rises. SOFTNESS: temperature of AdaptConf's weight.
    """

    GROUP: ClassVar = "method"
    RAMP: ClassVar = 0.3
    SOFTNESS: ClassVar = 0.5

    base: Literal["none", "kd", "dkd", "dist", "mlkd", "augconf", "adaptconf", "fitnet", "rkd", "reviewkd"] = opt(
        "kd", "base loss, to which GDA's two terms are added"
    )
    w_gt: float = opt(2.0, "weight of the cross-entropy to the labels", ge=0)
    w_kd: float = opt(1.0, "weight of the base loss", ge=0)
    temperature: float = opt(4.0, "temperature of the base loss", alias="t", ge=1e-3, le=1e3)
    standardise: bool = opt(False, "standardise the logits of each image first (base losses kd and mlkd only)")
    dkd_beta: float = opt(2.0, "weight of the non-target classes (base loss dkd only)", ge=0)
    dkd_warmup: int = opt(20, "number of epochs over which the weights rise from 0 (base loss dkd only)", ge=0)
    dist_beta: float = opt(2.0, "weight of the correlation between classes (base loss dist only)", ge=0)
    dist_gamma: float = opt(2.0, "weight of the correlation between images (base loss dist only)", ge=0)
    mlkd_class: float = opt(0.5, "weight of the similarity between classes, which grows as batch^2 / classes^3 (base loss mlkd only)", ge=0)
    alpha_max: float = opt(0.5, "final weight of the cross-entropy to the student's predicted class (base loss augconf only)", ge=0, lt=1)

    def fixed_length(self) -> str:
        return "the weight of --base augconf rises over a part of --epochs" if self.base == "augconf" else ""

    def validate(self) -> None:
        super().validate()
        if self.standardise and self.base not in ("kd", "mlkd"):
            raise UsageError(f"--standardise works with --base kd and mlkd, not with {self.base}; leave it out")
        if self.base in HINTS and self.response != "inside":
            raise UsageError(
                f"--base {self.base} compares features, which a teacher with --response {self.response} does not give; "
                "use --response inside"
            )


def preset_options(args: BaseLossOptions) -> dict[str, Any]:
    """Returns {option: value} of --preset, for options that are not given."""
    if args.preset != "mdistiller":
        return {"timm": TIMM, "parity": PARITY}.get(args.preset, {})
    decoupled = args.base == "dkd"
    weights = {"w_gt": 1.0, "w_kd": 1.0} if decoupled else {"w_gt": 0.1, "w_kd": 0.9}
    # GDA's weights relative to the cross-entropy are those of the released code: 0.02 and 12.8, to 2
    weights |= {"w_fr": 0.01, "w_sk": 6.4} if decoupled else {"w_fr": 0.001, "w_sk": 0.64}
    more = {"lr": 0.01 if canonical(args.model) in LIGHT else 0.05, "dkd_beta": BETA.get(canonical(args.teacher), 8.0)}
    return MDISTILLER | weights | more


def distillation_terms(s: Tensor, t: Tensor, y: Tensor, args: BaseLossOptions, epoch: int) -> Terms:
    """Returns the weighted terms of the base loss --base and of GDA; arguments as for BASES."""
    with exact(s):
        return {k: args.w_kd * v for k, v in BASES[args.base](s, t, y, args, epoch).items()} | alignment_terms(s, t, args)


def none(s: Tensor, t: Tensor, y: Tensor, args: BaseLossOptions, epoch: int) -> Terms:
    """Returns no term."""
    return {}


def kd(s: Tensor, t: Tensor, y: Tensor, args: BaseLossOptions, epoch: int) -> Terms:
    """Returns the term of KD (Hinton et al. 2015, https://arxiv.org/abs/1503.02531).

    With --standardise: logit standardisation (Sun et al. 2024, https://arxiv.org/abs/2403.01427).
    """
    if args.standardise:
        s, t = standardise(s), standardise(t)
    return {"kd": kl(s, t, args.temperature)}


def dkd_terms(s: Tensor, t: Tensor, y: Tensor, args: BaseLossOptions, epoch: int) -> Terms:
    """Returns the terms of DKD with the labels as target classes (Zhao et al. 2022, https://arxiv.org/abs/2203.08679)."""
    target, others = dkd(s, t, args.temperature, y=y if y.dim() == 1 else y.argmax(1))
    rise = warm_up(epoch + 1, args.dkd_warmup)
    return {"target": rise * target, "others": rise * args.dkd_beta * others}


def dist(s: Tensor, t: Tensor, y: Tensor, args: BaseLossOptions, epoch: int) -> Terms:
    """Returns the terms of DIST (Huang et al. 2022, https://arxiv.org/abs/2205.10536).

    inter: 1 - correlation over the classes of each image. intra: 1 - correlation over the images for each class.
    """
    p, q = (s / args.temperature).softmax(1), (t / args.temperature).softmax(1)
    between = {name: args.temperature**2 * (1 - pearson(p, q, dim)) for name, dim in (("inter", 1), ("intra", 0))}
    return {"inter": args.dist_beta * between["inter"], "intra": args.dist_gamma * between["intra"]}


def pearson(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Returns the mean correlation of a and b (B, K) along `dim`; a constant row or column counts as 0."""
    a, b = a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True)
    return ((a * b).sum(dim) / (a.norm(dim=dim) * b.norm(dim=dim) + 1e-8)).mean()


def mlkd(s: Tensor, t: Tensor, y: Tensor, args: BaseLossOptions, epoch: int) -> Terms:
    """Returns the terms of multi-level logit distillation (Jin et al. 2023), summed over TEMPERATURES.

    kd: KD. batch: squared difference of the similarities between images (B, B). class: that between classes (K, K).
    The default weights of batch and class, 0.5, are the fraction of images and classes used by the released code (the less confident half).
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


def augconf(s: Tensor, t: Tensor, y: Tensor, args: BaseLossOptions, epoch: int) -> Terms:
    """Returns the terms of AugConf (Guo et al. 2024, https://arxiv.org/abs/2402.03749).

    KD has the weight 1 - alpha; the cross-entropy to the student's predicted class has alpha, which rises linearly from 0 to alpha_max.
    """
    rising = int(args.RAMP * args.epochs)
    alpha = args.alpha_max * (epoch / rising if epoch < rising else 1.0)
    return {"kd": (1 - alpha) * kl(s, t, args.temperature), "own": alpha * F.cross_entropy(s, s.argmax(1))}


def adaptconf(s: Tensor, t: Tensor, y: Tensor, args: BaseLossOptions, epoch: int) -> Terms:
    """Returns the terms of AdaptConf: AugConf with one weight alpha per image, at most 1/2 (Guo et al. 2024).

    alpha is largest if the student predicts the teacher's class, and falls with the student's logit margin over that class.
    """
    teacher_class = s.gather(1, t.argmax(1, keepdim=True))[:, 0]
    alpha = torch.sigmoid((teacher_class - s.amax(1)) / args.SOFTNESS).detach()  # (B,)
    return {
        "kd": ((1 - alpha) * kl_of_each(s, t, args.temperature)).mean(),
        "own": (alpha * F.cross_entropy(s, s.argmax(1), reduction="none")).mean(),
    }


BASES = {"none": none, "kd": kd, "dkd": dkd_terms, "dist": dist, "mlkd": mlkd, "augconf": augconf, "adaptconf": adaptconf}
