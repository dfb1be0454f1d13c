"""DKD: decoupled knowledge distillation. What the teacher says of its top class, and of the others among themselves, apart.
Zhao et al. 2022, https://arxiv.org/abs/2203.08679

    python project/DKD.py --teacher ResNet32 --model ResNet8

Differs: the target is the teacher's own top class, since there are no labels, and no cross-entropy on labels is added. Both parts have
the factor t^2; `--kl_scale t` is MEKD's released code. By log-sum-exp instead of masks with large constants.
The learning rate is 0.02: with beta 8 and t^2 = 25, 0.1 let one run of Digits end at 23 % instead of 95 % and more.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from common.losses import dkd, warm_up
from common.options import TransferOptions, opt
from common.run import start
from common.utils import cli


@dataclass
class Args(TransferOptions):
    NEEDS: ClassVar = "soft"

    lr: float = 0.02
    temperature: float = opt(5.0, "temperature of the softened probabilities", alias="t", gt=0)
    alpha: float = opt(1.0, "weight of the target class's part", ge=0)
    beta: float = opt(8.0, "weight of the other classes' part", ge=0)
    warmup: int = opt(20, "number of epochs over which both weights rise from 0", ge=0)
    kl_scale: Literal["t2", "t", "1"] = opt(
        "t2", "factor of both parts: temperature squared (t2), temperature (t, MEKD's released code), or 1"
    )


def main(argv=None):
    run = start(Args, argv)
    args = run.args

    def loss(x, t):  # t: the teacher's answers (B, K)
        target, others = dkd(run.student(x), t, args.temperature, args.kl_scale)
        rise = warm_up(run.epoch, args.warmup)
        return {"target": rise * args.alpha * target, "others": rise * args.beta * others}

    run.fit(run.asked(), loss)
    return run.finish()


if __name__ == "__main__":
    cli(main)
