"""CE: the student alone, on its private share with labels; the floor of the table.

    python project/CE.py --dataset MNIST --model ResNet8

Differs: it sees labels, which no black-box method may; a method below this row is not worth its queries.
"""

from dataclasses import dataclass

import torch.nn.functional as F

from common.options import Base, opt
from common.run import start
from common.utils import cli


@dataclass
class Args(Base):
    model: str = opt("ResNet8", "architecture of the student: a model of the list below")


def main(argv=None):
    run = start(Args, argv)

    def loss(x, y):
        return {"ce": F.cross_entropy(run.student(x), y)}

    run.fit(run.images(run.private.y), loss)
    return run.finish()


if __name__ == "__main__":
    cli(main)
