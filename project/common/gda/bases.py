"""Base losses that GDA's terms are added to: `BASES[name](s, t, y, args, epoch)` returns the terms of a loss by name.

s, t: logits (B, K) of student and teacher. y: class labels (B,), or label probabilities (B, K) for mixed images.
args: the options below. epoch: number of finished epochs, 0 in the first. `mlkd` alone takes the logits `strong` of a second view.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cli import UsageError
from ..losses import decouple, dkd, kl, kl_of_each, standardise, warm_up
from ..models import canonical
from ..options import opt
from ..utils import exact
from .alignment import alignment_terms
from .hints import HINTS

Terms = dict[str, Tensor]

LIGHT = ("MobileNet", "MobileNetV2", "ShuffleNetV1", "ShuffleNetV2")  # students that mdistiller trains with a lower learning rate
BETA = {"ResNet56": 2.0, "ResNet110": 2.0, "VGG13_BN": 6.0, "WRN40_2": 6.0}  # DKD's weight of the non-target classes, by teacher
MDISTILLER = {"batch_size": 64, "milestones": "150,180,210", "augment": "crop_flip", "normalize": "dataset"}
# timm: data and optimizer of the released script; parity: also its Sinkhorn term and its six GPUs
TIMM = {"lr": 0.2, "schedule": "cosine", "lr_warmup": 10, "lr_min": 2e-3, "nesterov": True, "decay": "weights"}
TIMM |= {"augment": "resized_crop", "normalize": "dataset", "zoom": True, "kd_warmup": 0}
PARITY = TIMM | {"sk_tolerance": 0.0, "batch_size": 768, "ranks": 6}
TEMPERATURES = (2.0, 3.0, 5.0, 6.0)  # of MLKD, besides --temperature
HALF = 0.5  # fraction of images and classes in MLKD's masked terms
ABSENT = -1e9  # logit of a class that is left out


@dataclass
class BaseLossOptions:
    """Options of the base losses.

    RAMP, ADAPTCONF_RAMP: fractions of the epochs over which the weights of AugConf and AdaptConf rise. FIRST_EPOCH: number that they
    give to the first epoch. SOFTNESS: temperature of AdaptConf's weight.
    """

    GROUP: ClassVar = "method"
    RAMP: ClassVar = 0.3
    ADAPTCONF_RAMP: ClassVar = 0.0
    FIRST_EPOCH: ClassVar = 0
    SOFTNESS: ClassVar = 0.5

    base: Literal["none", "kd", "dkd", "rld", "dist", "mlkd", "augconf", "adaptconf", "fitnet", "rkd", "reviewkd"] = opt(
        "kd", "base loss, to which GDA's two terms are added"
    )
    w_gt: float = opt(2.0, "weight of the cross-entropy", ge=0)
    w_kd: float = opt(1.0, "weight of the base loss", ge=0)
    temperature: float = opt(4.0, "temperature of the base loss", alias="t", ge=1e-3, le=1e3)
    standardise: bool = opt(False, "standardise the logits of each image in the KL terms of the base losses kd, dkd, rld and mlkd")
    dkd_beta: float = opt(
        1.0,
        "weight of the KL term among the non-target classes (base loss dkd), or the classes that the teacher ranks below the label (rld)",
        ge=0,
    )
    kd_warmup: int = opt(
        20,
        "number of epochs over which the weight of the base loss rises from 0 (base losses dkd, rld and reviewkd only)",
        ge=0,
        alias="dkd_warmup",
    )
    dist_beta: float = opt(2.0, "weight of the correlation between classes (base loss dist only)", ge=0)
    dist_gamma: float = opt(2.0, "weight of the correlation between images (base loss dist only)", ge=0)
    mlkd_class: float = opt(
        0.5, "weight of the term of class similarities (base loss mlkd only); the term grows as batch size^2 / classes^3", ge=0
    )
    alpha_max: float = opt(0.5, "final weight of the cross-entropy to the student's predicted class (base loss augconf only)", ge=0, lt=1)

    def fixed_length(self) -> str:
        return "the weight of --base augconf rises over a part of --epochs" if self.base == "augconf" else ""

    def validate(self) -> None:
        super().validate()
        if self.standardise and self.base not in ("kd", "dkd", "rld", "mlkd"):
            raise UsageError(f"--standardise works with --base kd, dkd, rld and mlkd, not with {self.base}; leave it out")
        if self.base in HINTS and self.response != "inside":
            raise UsageError(
                f"--base {self.base} compares features, which a teacher with --response {self.response} does not give; "
                "use --response inside"
            )


def preset_options(args: BaseLossOptions) -> dict[str, Any]:
    """Returns {option: value} of --preset, for options that are not given."""
    if args.preset != "mdistiller":
        return {"timm": TIMM, "parity": PARITY}.get(args.preset, {})
    # GDA's weights relative to the cross-entropy are those of the released code: 0.02 and 12.8, to 2
    weights = {"w_gt": 1.0, "w_kd": 1.0, "w_fr": 0.01, "w_sk": 6.4}
    if args.base in ("kd", "mlkd", "augconf", "adaptconf"):
        weights = {"w_gt": 0.1, "w_kd": 0.9, "w_fr": 0.001, "w_sk": 0.64}
    lr = 0.01 if canonical(args.model) in LIGHT else 0.025 if args.base == "mlkd" else 0.05
    return MDISTILLER | weights | {"lr": lr, "dkd_beta": BETA.get(canonical(args.teacher), 8.0)}


def distillation_terms(
    s: Tensor, t: Tensor, y: Tensor, args: BaseLossOptions, epoch: int, strong: tuple[Tensor, Tensor] | None = None
) -> Terms:
    """Returns the weighted terms of the base loss --base and of GDA; arguments as for BASES.

    strong: logits (B, K) of student and teacher for the second view of the images (`mlkd`).
    """
    with exact(s):
        more = (strong,) if strong else ()
        return {k: args.w_kd * v for k, v in BASES[args.base](s, t, y, args, epoch, *more).items()} | alignment_terms(s, t, args)


def classes_of(y: Tensor) -> Tensor:
    """Returns the labels (B,) of labels or label probabilities y."""
    return y if y.dim() == 1 else y.argmax(1)


def none(s: Tensor, t: Tensor, y: Tensor, args: BaseLossOptions, epoch: int) -> Terms:
    """Returns no term."""
    return {}


def kd(s: Tensor, t: Tensor, y: Tensor, args: BaseLossOptions, epoch: int) -> Terms:
    """Returns the term of KD (Hinton et al. 2015, https://arxiv.org/abs/1503.02531).

    With --standardise: logit standardisation (Sun et al. 2024, https://arxiv.org/abs/2403.01427).
    """
    return {"kd": kl(s, t, args.temperature, standard=args.standardise)}


def dkd_terms(s: Tensor, t: Tensor, y: Tensor, args: BaseLossOptions, epoch: int) -> Terms:
    """Returns the terms of DKD with the labels as target classes (Zhao et al. 2022, https://arxiv.org/abs/2203.08679)."""
    target, others = dkd(s, t, args.temperature, y=classes_of(y), standard=args.standardise)
    rise = warm_up(epoch + 1, args.kd_warmup)
    return {"target": rise * target, "others": rise * args.dkd_beta * others}


def rld(s: Tensor, t: Tensor, y: Tensor, args: BaseLossOptions, epoch: int) -> Terms:
    """Returns the terms of RLD, refined logit distillation (Sun et al. 2024, https://arxiv.org/abs/2408.07703).

    confidence: KL from the probabilities of the teacher's top class and of the rest to the student's of the label and of the rest.
    masked: KL among the classes that the teacher ranks below the label; it is 0 if there are none.
    """
    s, t = (standardise(u) if args.standardise else u for u in (s, t))
    tau, y = args.temperature, classes_of(y)[:, None]
    (own, _), (its, _) = decouple(s / tau, y), decouple(t / tau, t.argmax(1, keepdim=True))  # (B, 2)
    confidence = F.kl_div(own, its, reduction="batchmean", log_target=True) * tau**2
    above = t >= t.gather(1, y)  # (B, K), with the label
    masked = kl(s.masked_fill(above, ABSENT), t.masked_fill(above, ABSENT), tau)
    rise = warm_up(epoch + 1, args.kd_warmup)
    return {"confidence": rise * confidence, "masked": rise * args.dkd_beta * masked}


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


def mlkd(s: Tensor, t: Tensor, y: Tensor, args: BaseLossOptions, epoch: int, strong: tuple[Tensor, Tensor] | None = None) -> Terms:
    """Returns the terms of multi-level logit distillation (Jin et al. 2023), summed over --temperature and TEMPERATURES.

    kd: KD of the strongly augmented images, and KD of the weakly augmented ones with the weight 1/2. batch: squared difference of the
    similarities between images (B, B). class: that between classes (K, K). Both are of the weak view, with --standardise, too.
    The weight 1/2 is the fraction of images, or of classes, that the released code masks a sum with.
    strong: logits of student and teacher for the strong view; without it, s and t stand for both views.
    """
    u, v = strong or (s, t)
    terms = {"kd": 0.0, "batch": 0.0, "class": 0.0}
    for tau in (args.temperature, *TEMPERATURES):
        p, q = (s / tau).softmax(1), (t / tau).softmax(1)
        terms["kd"] += kl(u, v, tau, standard=args.standardise) + HALF * kl(s, t, tau, standard=args.standardise)
        terms["batch"] += HALF * (p @ p.T - q @ q.T).square().sum() / len(p)
        terms["class"] += args.mlkd_class * (p.T @ p - q.T @ q).square().sum() / p.shape[1]
    return terms


def ramp(args: BaseLossOptions, epoch: int, fraction: float) -> float:
    """Returns the factor, in [0, 1], of a weight that rises over this fraction of --epochs; 1 for the fraction 0."""
    epoch += args.FIRST_EPOCH
    return epoch / (fraction * args.epochs) if epoch < int(fraction * args.epochs) else 1.0


def augconf(s: Tensor, t: Tensor, y: Tensor, args: BaseLossOptions, epoch: int) -> Terms:
    """Returns the terms of AugConf (Guo et al. 2024, https://arxiv.org/abs/2402.03749).

    KD has the weight 1 - alpha; the cross-entropy to the student's predicted class has alpha, which rises linearly from 0 to alpha_max.
    """
    alpha = args.alpha_max * ramp(args, epoch, args.RAMP)
    return {"kd": (1 - alpha) * kl(s, t, args.temperature), "own": alpha * F.cross_entropy(s, s.argmax(1))}


def adaptconf(s: Tensor, t: Tensor, y: Tensor, args: BaseLossOptions, epoch: int) -> Terms:
    """Returns the terms of AdaptConf: AugConf with one weight alpha per image, at most 1/2 (Guo et al. 2024).

    alpha is largest if the student predicts the teacher's class, and falls with the student's logit margin over that class.
    In few-shot learning it also rises over the epochs.
    """
    teacher_class = s.gather(1, t.argmax(1, keepdim=True))[:, 0]
    alpha = ramp(args, epoch, args.ADAPTCONF_RAMP) * torch.sigmoid((teacher_class - s.amax(1)) / args.SOFTNESS).detach()  # (B,)
    return {
        "kd": ((1 - alpha) * kl_of_each(s, t, args.temperature)).mean(),
        "own": (alpha * F.cross_entropy(s, s.argmax(1), reduction="none")).mean(),
    }


BASES = {"none": none, "kd": kd, "dkd": dkd_terms, "rld": rld, "dist": dist, "mlkd": mlkd, "augconf": augconf, "adaptconf": adaptconf}
