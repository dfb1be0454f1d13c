"""IDEAL: trains the student on images that are synthesised without queries; the teacher classifies each image once.
A generator is trained against the student, which should classify its images as given classes, equally many per class.
Zhang et al. 2023, https://arxiv.org/abs/2205.11158

    python project/IDEAL.py --dataset MNIST --teacher ResNet32 --model ResNet8
    python project/IDEAL.py ... --response soft     from probabilities, with the KL divergence

A run takes epochs * batch_size queries. On CIFAR10 the defaults are --epochs 400 --g_steps 5 --augment crop_flip.

Differs:
  - Each image is sent to the teacher once, unaugmented, and its answer is kept with the pool, which is the paper's claim (released: all
    images of the pool are augmented and sent anew in each epoch).
  - The information term is the negative entropy of the batch's mean class probabilities (released: that of each image's probabilities,
    divided by the number of classes): 70.8 % against 53.5 % (Digits, validation, 4,000 queries, hard, one seed).
  - The generator is drawn anew with PyTorch's initial weights (released: N(0, 0.02^2)): 60.0 % against 32.3 % (likewise, --g_steps 5).
  - --augment applies to the student's views in training and in the synthesis. Its default is none, except for CIFAR, TinyImageNet and
    ImageNet (released: images are shifted and mirrored in every synthesis, and mirrored in training, digits as well).
  - The pool keeps all images (released: those of 400 epochs at most).
  - The accuracy is that of the last epoch (released: also of the best epoch on test images).
"""

from common.cli import cli

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from common.imitation.synthesis import Synthesis, SynthesisOptions
from common.losses import balance, kl
from common.options import opt
from common.pictures import save_grid
from common.run import start

MIRRORED = {"augment": "crop_flip"}


@dataclass
class Args(SynthesisOptions):
    SETTINGS: ClassVar = {"CIFAR10": MIRRORED | {"epochs": 400, "g_steps": 5}}
    SETTINGS |= dict.fromkeys(("CIFAR100", "TinyImageNet", "ImageNet"), MIRRORED)

    epochs: int = opt(100, "number of epochs, each with a synthesis")
    batch_size: int = opt(250, "batch size in images, for the student and for a synthesis", ge=2)
    lr: float = 0.01
    gamma: float = 1.0
    w_even: float = opt(5.0, "weight of the information term (negative entropy of the batch's mean class probabilities)", ge=0)


def main(argv=None):
    run = start(Args, argv)
    args, student, teacher, view = run.args, run.student, run.teacher, run.data.view

    def synthesis_loss(s, y):  # the student's logits (B, K), target classes (B,)
        return {"ce": F.cross_entropy(s, y), "even": args.w_even * balance(s)}

    def balanced(n):
        return torch.arange(n, device=run.device) % run.data.classes

    def ask(x):  # uint8 images (B, C, H, W)
        return teacher(view(x), "synthetic")

    def batch(i):  # rows of the pool (B,)
        return view(synthesis.pool.x[i], args.augment), synthesis.pool.answers[i]

    def loss(x, t):
        return {"kl": kl(student(x), t, hard=teacher.hard)}

    teacher.plan(args.epochs * args.batch_size)
    synthesis = Synthesis(run, synthesis_loss, balanced, batch, anew=True, ask=ask)
    run.fit(synthesis, loss, evaluate=lambda: run.accuracy() | synthesis.log(), synthesis=synthesis)
    save_grid(synthesis.latest_images(), run.record.logs / "synthetic.png", 10, 32)
    return run.finish()


if __name__ == "__main__":
    cli(main)
