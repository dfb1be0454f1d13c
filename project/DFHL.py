"""DFHL: trains the student without data, from a teacher that returns classes only, on examples of which the student is unsure.
A generator is trained against the student and fills a pool. Augmented images of the pool are changed until the student's prediction has
a high entropy; these high-entropy examples are sent to the teacher at every step.
After Yuan et al. 2024 (DFHL-RS), https://arxiv.org/abs/2312.05924

    python project/DFHL.py --dataset CIFAR10 --teacher ResNet34 --model ResNet18

The paper copies the robustness of an adversarially trained teacher. This script distils the accuracy of any teacher and measures nothing
else. A run takes epochs * steps * batch_size queries.
On CIFAR100 the defaults are --batch_size 512 --g_steps 15 --lr_g 5e-3 --lr_z 0.015 --smoothing 0.02.

Differs:
  - The strong augmentation is drawn for each image (released: one zoom, mirroring and rotation for the whole batch).
  - The pool keeps images of 8 bits (released: floating point). The teacher is not asked about them (released: it is, without use).
  - With responses other than classes the loss is the KL divergence (paper: classes only).
  - The accuracy is that of the last epoch (released: also of the best epoch on test images).
"""

from common.cli import cli

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F

from common.imitation.examples import raise_entropy, strong_views
from common.imitation.synthesis import Synthesis, SynthesisOptions
from common.losses import balance, kl
from common.options import AUGMENT, opt
from common.pictures import save_grid
from common.run import start


@dataclass
class Args(SynthesisOptions):
    SETTINGS: ClassVar = {"CIFAR100": {"batch_size": 512, "g_steps": 15, "lr_g": 5e-3, "lr_z": 0.015, "smoothing": 0.02}}

    epochs: int = opt(300, "number of epochs, each with a synthesis")
    batch_size: int = opt(256, "batch size in images, for the student and for a synthesis", ge=2)
    weight_decay: float = 1e-4
    schedule: Literal["multistep", "cosine"] = "cosine"
    lr_min: float = 2e-4
    augment: AUGMENT = "crop_flip"
    steps: int = opt(500, "number of training steps of the student per epoch", ge=1)
    g_steps: int = 10
    lr_g: float = 2e-3
    lr_z: float = 0.01
    smoothing: float = opt(0.2, "probability that the target of a synthetic image gives to the other classes together", ge=0, lt=1)
    w_even: float = opt(3.0, "weight of the diversity term (negative entropy, to base 10, of the batch's mean class probabilities)", ge=0)
    h_steps: int = opt(10, "number of gradient-sign steps that raise the entropy of the student's prediction; 0: none", ge=0)
    lr_h: float = opt(0.03, "change of each pixel in one step that raises the entropy, as a fraction of the pixel range", gt=0, le=1)


def main(argv=None):
    run = start(Args, argv)
    args, student, teacher, data = run.args, run.student, run.teacher, run.data

    def synthesis_loss(s, y):  # the student's logits (B, K), target classes (B,)
        others = args.smoothing / max(1, data.classes - 1)
        target = torch.full_like(s, others).scatter(1, y[:, None], 1 - args.smoothing)
        return {"ce": F.cross_entropy(s, target), "even": args.w_even * balance(s) / math.log(10)}

    def drawn(n):
        return torch.randint(data.classes, (n,), device=run.device)

    def batch(i):  # rows of the pool (B,)
        x = data.view(synthesis.pool.x[i], args.augment) * data.std + data.mean  # (B, C, H, W), in [0, 1]
        x = data.view(raise_entropy(student, data.view, strong_views(x), args.h_steps, args.lr_h))
        return x, teacher(x, "synthetic")

    def loss(x, t):
        return {"kl": kl(student(x), t, hard=teacher.hard)}

    teacher.plan(args.epochs * args.steps * args.batch_size)
    synthesis = Synthesis(run, synthesis_loss, drawn, batch)
    run.fit(synthesis, loss, evaluate=lambda: run.accuracy() | synthesis.log(), synthesis=synthesis)
    save_grid(synthesis.latest_images(), run.record.logs / "synthetic.png", 10, 32)
    return run.finish()


if __name__ == "__main__":
    cli(main)
