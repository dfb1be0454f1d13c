"""GDA: beside a loss that compares student and teacher image by image, the distributions of their logits over a batch are aligned.
The released code of «Logit Distillation via Global Distribution Alignment», 2025; no paper could be had.

    python project/teacher.py --dataset CIFAR100 --model ResNet56 --augment crop_flip --normalize dataset
    python project/GDA.py --dataset CIFAR100 --teacher ResNet56 --model ResNet20 --preset mdistiller --base dkd
    python project/GDA.py --dataset CIFAR100 --teacher ResNet20 --model ResNet56 --preset mdistiller --base adaptconf --no_gda

The second is weak to strong, and the base alone.

Differs: both terms are added once, to every base, with weights of their own (released: dkd lacks the first, its few-shot code adds them up
to 42 times). The Sinkhorn term is a mean over the batch: w_sk 12.8 is the released 0.1 of a sum over 128. Its sweeps end at a tolerance
(--sk_tolerance 0: all 20). Fisher-Rao by arsinh, finite where the released form is not. DKD's parts rise over 20 epochs, as in its paper.
MLKD sees one view of an image (released: a weak and a strong one).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F

from common.augment import mixup
from common.batches import Map
from common.gda.alignment import AlignmentOptions, aligned
from common.gda.bases import BaseLossOptions, compared, preset_of
from common.gda.hints import HINTS, Hints
from common.options import TransferOptions, opt
from common.run import start
from common.utils import UsageError, cli


@dataclass
class Args(AlignmentOptions, BaseLossOptions, TransferOptions):
    NEEDS: ClassVar = "logits"
    ALIASES: ClassVar = {
        "teacher_path": ("teacher_pretrained",),
        "base": ("distiller",),
        "w_gt": ("gt_loss_weight",),
        "w_kd": ("kd_loss_weight",),
    }

    preset: Literal["released", "mdistiller", "timm", "parity"] = opt(
        "released", "settings for options that are not given: see docs/methods/gda.md"
    )
    gt_source: Literal["label", "teacher"] = opt("label", "target of the cross-entropy: the label, or the teacher's probabilities")
    response: str = "logits"
    lamda: float = 1.0
    ranks: int = opt(1, "number of parts of a batch, each with its own batch-norm statistics and transport plan, as on so many GPUs", ge=1)
    mixup: float = opt(0.0, "parameter of mixup's Beta distribution; 0: no mixup", ge=0)

    def presets(self):
        return preset_of(self)

    def validate(self):
        super().validate()
        if self.mixup and (self.cache or self.transfer):
            raise UsageError("--mixup makes images that nobody has asked about: it goes without --cache and --transfer")


def main(argv=None):
    run = start(Args, argv)
    args, hints = run.args, Hints(run, run.args.base) if run.args.base in HINTS else None

    def part(x, t, y):  # images, the teacher's logits (B, K), labels (B,), or (B, K) where they are mixed
        if hints:
            s, t, terms = hints(x)
            terms = {k: args.w_kd * v for k, v in terms.items()} | aligned(s, t, args)
        else:
            s = run.student(x).float()
            terms = compared(s, t, y, args, run.epoch - 1)
        gt = F.cross_entropy(s, y if args.gt_source == "label" else t.softmax(1))
        return {"gt": args.w_gt * gt} | terms

    def loss(*batch):
        parts = [part(*p) for p in zip(*(u.chunk(args.ranks) for u in batch), strict=True)]
        return {k: sum(terms[k] for terms in parts) / len(parts) for k in parts[0]}

    def mixed(x, y):
        return mixup(x, y, run.data.classes, args.mixup)

    if args.transfer or (args.augment == "none" and not hints and not args.mixup):
        bought = run.buy(run.random_plan(len(run.queryable)))
        known = "index" in bought and "weight" not in bought
        if not known and args.gt_source == "label":
            raise UsageError(f"{args.transfer} holds images that have no label; take --gt_source teacher")
        batches = run.batches(bought, run.purchases.source.train.y[bought["index"]] if known else bought["answers"].argmax(1))
    elif hints:
        run.teacher.afford(len(run.private) * args.epochs)
        images = run.images(run.private.y)
        batches = Map(Map(images, mixed) if args.mixup else images, lambda x, y: (x, y, y))  # the teacher is looked into
    else:
        batches = run.purchases.viewed(run.private.y, change=mixed if args.mixup else None)
    run.fit(batches, loss, beside=hints and hints.net)
    return run.finish()


if __name__ == "__main__":
    cli(main)
