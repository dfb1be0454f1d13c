"""KD: the student matches the teacher's softened class probabilities on its private images.
Hinton et al. 2015, https://arxiv.org/abs/1503.02531

    python project/KD.py --teacher ResNet32 --model ResNet8

Differs: no labels, as all black-box rows. The KL term has the source's factor t^2; `--kl_scale t` is MEKD's released code.
Images that no augmentation changes are asked about once, not at every step. From hard answers: cross-entropy on the teacher's classes.
From topk:k answers the mass that the API keeps back is spread evenly over the other classes.
"""

from dataclasses import dataclass
from typing import Literal

from common.losses import kl
from common.options import TransferOptions, opt
from common.run import start
from common.utils import cli


@dataclass
class Args(TransferOptions):
    temperature: float = opt(5.0, "temperature of the softened probabilities", alias="t", gt=0)
    kl_scale: Literal["t2", "t", "1"] = opt(
        "t2", "factor of the KL term: temperature squared (t2), temperature (t, MEKD's released code), or 1"
    )


def main(argv=None):
    run = start(Args, argv)
    args, student = run.args, run.student

    def loss(x, t):  # t: the teacher's answers (B, K)
        return {"kl": kl(student(x), t, args.temperature, args.kl_scale, run.teacher.hard)}

    run.fit(run.asked(), loss)
    return run.finish()


if __name__ == "__main__":
    cli(main)
