"""teacher: a classifier trained on labels, for the other scripts to ask.

    python project/teacher.py --dataset MNIST --model ResNet32

Differs: nothing of the method. As in the tables it trains on all training images (--lamda 1).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from common.options import Base, opt
from common.run import start
from common.utils import cli


@dataclass
class Args(Base):
    ALIASES: ClassVar = {"epochs": ("epoch",), "weight_decay": ("wd",), "milestones": ("lr_decay_milestones",)}
    ALIASES |= {"data_dir": ("data_root",), "checkpoints_dir": ("save_dir",), "device": ("gpu",)}  # of AEAHL-RG's code

    model: str = opt("ResNet32", "architecture: a model of the list below")
    lamda: float = 1.0


def main(argv=None):
    run = start(Args, argv)

    def loss(x, y):
        return {"ce": F.cross_entropy(run.student(x), y)}

    run.fit(run.images(run.private.y), loss)
    return run.finish(teacher=run.student)


if __name__ == "__main__":
    cli(main)
