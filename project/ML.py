"""ML: trains the student to match the teacher's logits with squared error (mimic learning).
Ba & Caruana 2014, https://arxiv.org/abs/1312.6184

    python project/ML.py --teacher ResNet32 --model ResNet8

Differs:
  - The student sees no labels.
  - The logits of both sides are centred, because probabilities determine logits only up to a constant per image.
"""

from common.cli import cli

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from common.losses import centred
from common.options import TransferOptions
from common.run import start


@dataclass
class Args(TransferOptions):
    NEEDS: ClassVar = "soft"


def main(argv=None):
    run = start(Args, argv)

    def loss(x, t):  # x: images (B, C, H, W), t: the teacher's responses (B, K)
        return {"mse": F.mse_loss(centred(run.student(x)), centred(t))}

    run.fit(run.asked(), loss, repeatable=True)
    return run.finish()


if __name__ == "__main__":
    cli(main)
