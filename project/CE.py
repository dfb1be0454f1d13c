"""CE: trains the student alone, on the labels of the private images (baseline).

    python project/CE.py --dataset MNIST --model ResNet8

Differs:
  - It sees the labels of the private images, which no black-box method does.
  - A black-box method below this row of a table is not worth its queries.
"""

from common.cli import cli

from dataclasses import dataclass

import torch.nn.functional as F

from common.options import Base, NetOptions, opt
from common.run import start


@dataclass
class Args(NetOptions, Base):
    model: str = opt("ResNet8", "architecture of the student: a model of the list below")


def main(argv=None):
    run = start(Args, argv)

    def loss(x, y):  # x: images (B, C, H, W), y: labels (B,)
        return {"ce": F.cross_entropy(run.student(x), y)}

    run.fit(run.images(run.labels), loss, repeatable=True)
    return run.finish()


if __name__ == "__main__":
    cli(main)
