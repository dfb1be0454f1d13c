"""fewshot_classifier: a classifier of base classes, alone or from a teacher, whose features are to tell new classes apart.
The first stage of Meta-Baseline (https://arxiv.org/abs/2003.04390), with the distillation of GDA's released code.

    python project/fewshot_classifier.py --dataset miniImageNet --model ResNet12
    python project/fewshot_classifier.py --dataset miniImageNet --teacher ResNet12 --model ResNet36_bottle --base adaptconf

The first is a teacher for the second.

Differs: the epoch that best.pt holds is chosen by validation classes, and test classes are looked at once (released: every five epochs).
Each term counts once, with its own weight (released: GDA up to 42 times; a threshold of 8 turned DKD's sign). Each image is encoded
once an evaluation. ResNet-12 halves its maps in every stage. crop_flip shifts by an eighth of the side (released: a tenth).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F

from common.fewshot.episodes import FewShotOptions, Novel
from common.gda.bases import compared
from common.options import AUGMENT, opt
from common.run import start
from common.utils import UsageError, cli


@dataclass
class Args(FewShotOptions):
    NEEDS: ClassVar = "logits"

    response: str = "logits"
    head: Literal["linear", "cosine"] = opt("linear", "last layer of the student: linear, or cosine (prototypes and a learned temperature)")
    augment: AUGMENT = "resized_crop"
    epochs: int = 100
    milestones: str = "0.9"
    eval_every: int = 5

    def teacher_checkpoint(self):
        return "fewshot_classifier", "student"


def main(argv=None):
    run = start(Args, argv)
    args, student, teacher = run.args, run.student, run.teacher
    if args.head == "cosine":
        if not hasattr(student, "cosine"):
            raise UsageError(f"--head cosine: {args.model} keeps its own last layer; take a model of the list")
        student.cosine()
    classes = Novel(run)

    def loss(x, *rest):  # with a teacher its logits (B, K), and the labels (B,)
        s, y = student(x).float(), rest[-1]
        terms = compared(s, rest[0], y, args, run.epoch - 1) if teacher else {}
        return {"gt": args.w_gt * F.cross_entropy(s, y)} | terms

    images = run.purchases.viewed(run.private.y) if teacher else run.images(run.private.y)
    run.fit(images, loss, evaluate=lambda: run.accuracy() | classes.val(), novel=classes)
    return run.finish(student=student, best=classes.test())


if __name__ == "__main__":
    cli(main)
