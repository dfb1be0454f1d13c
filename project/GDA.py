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
from common.gda.alignment import Aligned, aligned
from common.gda.bases import Bases, compared, preset_of
from common.gda.hints import HINTS, Hints
from common.options import Buys
from common.run import start
from common.utils import UsageError, cli


@dataclass
class Args(Aligned, Bases, Buys):
    NEEDS: ClassVar = "logits"

    preset: Literal["released", "mdistiller", "timm", "parity"] = "released"  # weights of the released script; see README
    gt_source: Literal["label", "teacher"] = "label"  # the cross-entropy's target: the label, or the teacher's probabilities
    response: str = "logits"  # what the teacher answers; Fisher-Rao needs logits as they are
    lamda: float = 1.0  # share of the training images that is used, class-balanced, drawn by the seed alone, in (0, 1]
    ranks: int = 1  # parts of a batch with batch-norm statistics and a plan of their own, as so many GPUs have them, in [1, 1000]
    mixup: float = 0.0  # of Beta(mixup, mixup), by which images and labels are mixed at each step, 0 for none, in [0, 1000]

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
        bought = run.buy(run.some(len(run.askable)))
        known = "index" in bought and "weight" not in bought
        if not known and args.gt_source == "label":
            raise UsageError(f"{args.transfer} holds images that have no label; take --gt_source teacher")
        batches = run.batches(bought, run.source.train.y[bought["index"]] if known else bought["answers"].argmax(1))
    elif hints:
        run.teacher.afford(len(run.private) * args.epochs)
        images = run.images(run.private.y)
        batches = Map(Map(images, mixed) if args.mixup else images, lambda x, y: (x, y, y))  # the teacher is looked into
    else:
        batches = run.viewed(run.private.y, change=mixed if args.mixup else None)
    run.fit(batches, loss, beside=hints and hints.net)
    return run.finish()


if __name__ == "__main__":
    cli(main)
