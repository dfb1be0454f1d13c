"""teacher: a classifier trained on labels, for the other scripts to ask.

    python project/teacher.py --dataset MNIST --model ResNet32

Differs: nothing of the method. As in the tables it trains on all training images (--lamda 1).
"""

from dataclasses import dataclass

import torch.nn.functional as F

from common.options import Base
from common.run import start
from common.utils import cli


@dataclass
class Args(Base):
    model: str = "ResNet32"  # the architecture, a model of the list below
    lamda: float = 1.0  # share of the training images that is used, class-balanced, drawn by the seed alone, in (0, 1]


def main(argv=None):
    run = start(Args, argv)

    def loss(x, y):
        return {"ce": F.cross_entropy(run.student(x), y)}

    run.fit(run.images(run.private.y), loss)
    return run.finish(teacher=run.student)


if __name__ == "__main__":
    cli(main)
