"""fewshot_classifier: trains a classifier of the base classes, alone or from a teacher; its features serve to classify new classes.
Stage 1 of Meta-Baseline (https://arxiv.org/abs/2003.04390), with the distillation losses of GDA's released code.

    python project/fewshot_classifier.py --dataset miniImageNet --model ResNet12
    python project/fewshot_classifier.py --dataset miniImageNet --teacher ResNet12 --model ResNet36_bottle --base adaptconf

The first command trains the teacher of the second.

Differs:
  - The validation classes select the epoch of best.pt. Test classes are evaluated once (released: every five epochs).
  - Each term counts once, with its own weight (released: GDA up to 42 times; a threshold of 8 reversed the sign of DKD's loss).
  - An evaluation encodes each image once.
  - ResNet-12 halves its feature maps in every stage.
  - crop_flip shifts an image by an eighth of its side (released: a tenth).
"""

from common.cli import UsageError, cli

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F

from common.fewshot.episodes import FewShotOptions, NovelClasses
from common.gda.bases import distillation_terms
from common.options import AUGMENT, opt
from common.run import start


@dataclass
class Args(FewShotOptions):
    NEEDS: ClassVar = "logits"

    response: str = "logits"
    head: Literal["linear", "cosine"] = opt("linear", "last layer of the student: linear, or cosine (learned prototypes and temperature)")
    augment: AUGMENT = "resized_crop"
    epochs: int = 100
    milestones: str = "0.9"
    eval_every: int = 5

    def teacher_checkpoint(self) -> tuple[str, str]:
        return "fewshot_classifier", "student"


def main(argv=None):
    run = start(Args, argv)
    args, student, teacher = run.args, run.student, run.teacher
    if args.head == "cosine":
        if not hasattr(student, "use_cosine_head"):
            raise UsageError(f"--head cosine: {args.model} keeps its own last layer; use a model that --help lists, or --head linear")
        student.use_cosine_head()
    classes = NovelClasses(run)

    def loss(x, *rest):  # images (B, C, H, W); the teacher's logits (B, K) if there is a teacher; labels (B,)
        s, y = student(x).float(), rest[-1]
        terms = distillation_terms(s, rest[0], y, args, run.epoch - 1) if teacher else {}
        return {"gt": args.w_gt * F.cross_entropy(s, y)} | terms

    batches = run.purchases.viewed(run.labels) if teacher else run.images(run.labels)
    run.fit(batches, loss, evaluate=lambda: run.accuracy() | classes.val(), novel=classes)
    return run.finish(student=student, best=classes.test())


if __name__ == "__main__":
    cli(main)
