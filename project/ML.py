"""ML: mimic learning. The student matches the teacher's logits in the L2 sense.
Ba & Caruana 2014, https://arxiv.org/abs/1312.6184

    python project/ML.py --teacher ResNet32 --model ResNet8

Differs: both sides' logits are centred, since probabilities tell them up to a constant of each row; no labels.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from common.losses import centred
from common.options import TransferOptions
from common.run import start
from common.utils import cli


@dataclass
class Args(TransferOptions):
    NEEDS: ClassVar = "soft"


def main(argv=None):
    run = start(Args, argv)

    def loss(x, t):  # t: the teacher's answers (B, K)
        return {"mse": F.mse_loss(centred(run.student(x)), centred(t))}

    run.fit(run.asked(), loss)
    return run.finish()


if __name__ == "__main__":
    cli(main)
