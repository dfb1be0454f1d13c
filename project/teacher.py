"""teacher: trains a classifier on labels, as a teacher for the other scripts.

    python project/teacher.py --dataset MNIST --model ResNet32

Differs:
  - The method is plain cross-entropy. The default is the whole training set (--lamda 1), as in the papers' tables.
"""

from common.cli import cli

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from common.options import Base, NetOptions, opt
from common.run import start


@dataclass
class Args(NetOptions, Base):
    ALIASES: ClassVar = {"epochs": ("epoch",), "weight_decay": ("wd",), "milestones": ("lr_decay_milestones",)}
    ALIASES |= {"data_dir": ("data_root",), "checkpoints_dir": ("save_dir",), "device": ("gpu",)}  # option names of AEAHL-RG's code

    model: str = opt("ResNet32", "architecture: a model of the list below")
    lamda: float = 1.0


def main(argv=None):
    run = start(Args, argv)

    def loss(x, y):  # x: images (B, C, H, W), y: labels (B,)
        return {"ce": F.cross_entropy(run.student(x), y)}

    run.fit(run.images(run.labels), loss, repeatable=True)
    return run.finish(teacher=run.student)


if __name__ == "__main__":
    cli(main)
