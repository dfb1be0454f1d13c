"""GDA: trains the student with a loss per image and two terms that align the distributions of logits over a batch.
Released code of «Logit Distillation via Global Distribution Alignment», 2025, https://github.com/zhiweihu1103/Logit-Distillation-GDA.
The text of the paper was not available.

    python project/teacher.py --dataset CIFAR100 --model ResNet56 --augment crop_flip --normalize dataset
    python project/GDA.py --dataset CIFAR100 --teacher ResNet56 --model ResNet20 --preset mdistiller --base dkd
    python project/GDA.py --dataset CIFAR100 --teacher ResNet20 --model ResNet56 --preset mdistiller --base adaptconf --no_gda

The last command trains a larger student from a smaller teacher, with the base loss alone.

Differs:
  - Both terms are added once to every base loss, with own weights (released: DKD lacks Fisher-Rao; few-shot adds both up to 42 times).
  - The Sinkhorn term is a mean over the batch: --w_sk 12.8 equals the released 0.1 times a sum over 128 images.
  - The Sinkhorn sweeps stop at a tolerance (--sk_tolerance 0: all 20 sweeps, as released).
  - The Fisher-Rao term uses arsinh, which is finite where the released form is not.
  - DKD's weights rise over 20 epochs, as in its paper.
  - MLKD's KL terms of the strong view have all five temperatures (released: two of them take the weak view instead).
"""

from common.cli import UsageError, cli

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch.nn.functional as F

from common.augment import mixup
from common.batches import Map
from common.datasets import is_flat
from common.gda.alignment import AlignmentOptions, alignment_terms
from common.gda.bases import BaseLossOptions, distillation_terms, preset_options
from common.gda.hints import HINTS, Hints
from common.options import WEIGHTS_INIT, TransferOptions, opt
from common.run import start


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
        "released", "training recipe that sets the options which are not given (docs/methods/gda.md)"
    )
    gt_source: Literal["label", "teacher"] = opt(
        "label", "target of the cross-entropy: the label (label) or the teacher's probabilities (teacher)"
    )
    weights_init: WEIGHTS_INIT = "fan_out"
    response: str = "logits"
    lamda: float = 1.0
    ranks: int = opt(1, "number of parts of a batch, each with its own batch-norm statistics and Sinkhorn term, as on several GPUs", ge=1)
    views: Literal["1", "2"] = opt(
        "2",
        "number of views of an image per step (base loss mlkd only): one as --augment says (1), or that and another one with RandAugment, "
        "which takes twice the queries (2)",
    )
    mixup: float = opt(0.0, "parameter alpha of mixup's Beta distribution; 0: no mixup", ge=0, le=1e3)

    @property
    def two_views(self) -> bool:
        """Whether the student sees two views of each image."""
        return self.base == "mlkd" and self.views == "2"

    def presets(self) -> dict[str, Any]:
        return preset_options(self)

    def validate(self) -> None:
        super().validate()
        if self.batch_size < 2 * self.ranks:
            raise UsageError(f"--ranks {self.ranks} needs at least two images in each part: use --batch_size {2 * self.ranks} or more")
        if self.two_views and (self.cache or self.transfer or self.mixup):
            given = "--cache" if self.cache else "--transfer" if self.transfer else f"--mixup {self.mixup}"
            raise UsageError(f"{given} with --base mlkd: its strong view is new at every step; use --views 1")
        if 0 < self.mixup < 1e-3:
            raise UsageError(f"--mixup {self.mixup}: the Beta distribution cannot be drawn; use 0, or a number from 0.001 to 1000")
        if self.mixup and (self.cache or self.transfer):
            raise UsageError(f"--mixup {self.mixup} queries the teacher with new images at every step; leave out --cache and --transfer")


def main(argv=None):
    run = start(Args, argv)
    args, hints = run.args, Hints(run, run.args.base) if run.args.base in HINTS else None

    # images (B, C, H, W), the teacher's logits (B, K), labels (B,), or (B, K) with mixup; images and logits of a second view
    def loss_of_part(x, t, y, x2=None, t2=None):
        second = [(run.student(x2).float(), t2)] if args.two_views else []
        if hints:
            s, t, terms = hints(x)
            terms = {k: args.w_kd * v for k, v in terms.items()} | alignment_terms(s, t, args)
        else:
            s = run.student(x).float()
            terms = distillation_terms(s, t, y, args, run.epoch - 1, *second)
        gt = sum(F.cross_entropy(u, y if args.gt_source == "label" else v.softmax(1)) for u, v in [(s, t), *second])
        return {"gt": args.w_gt * gt} | terms

    def loss(*batch):  # the mean over the parts of a batch (x, t, y), or (x, t, y, x', t') with two views
        chunks = zip(*(u.chunk(args.ranks) for u in batch), strict=True)
        parts = [loss_of_part(*p) for p in chunks if len(p[0]) > 1]  # batch norm cannot train on one image
        return {k: sum(terms[k] for terms in parts) / len(parts) for k in parts[0]}

    def mix(x, y):
        return mixup(x, y, run.data.classes, args.mixup)

    if args.transfer or (args.augment == "none" and not hints and not args.mixup and not args.two_views):
        bought = run.buy(run.random_plan(len(run.queryable)))
        source = run.purchases.source  # mixes, synthetic images and those of a flat folder have no labels
        labelled = "index" in bought and "weight" not in bought and (source.name == args.dataset or not is_flat(source.name))
        if not labelled and args.gt_source == "label":
            raise UsageError(f"{args.transfer or source.name} holds images without labels; use --gt_source teacher")
        batches = run.batches(bought, source.train.y[bought["index"]] if labelled else bought["answers"].argmax(1))
    elif hints:
        run.teacher.plan(len(run.private) * args.epochs)
        images = run.images(run.labels)
        batches = Map(Map(images, mix) if args.mixup else images, lambda x, y: (x, y, y))  # the hints query the teacher
    elif args.two_views:
        batches = run.purchases.two_views(run.labels)
    else:
        batches = run.purchases.viewed(run.labels, change=mix if args.mixup else None)
    run.fit(batches, loss, beside=hints and hints.net)
    return run.finish()


if __name__ == "__main__":
    cli(main)
