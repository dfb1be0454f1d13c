"""DKD: trains the student with decoupled KD: one KL term for the target class, one among the other classes.
Zhao et al. 2022, https://arxiv.org/abs/2203.08679

    python project/DKD.py --teacher ResNet32 --model ResNet8

Differs:
  - The target class is the teacher's top class, because there are no labels.
  - The loss has no cross-entropy on labels.
  - Both terms have the factor temperature, as in MEKD's released code. With the paper's temperature squared (--kl_scale t2) the accuracy
    on Digits is 52.7 ± 20.3 % at the learning rate 0.1, and 96.7 ± 0.8 % at 0.02. With --kl_scale t at 0.1 it is 96.9 ± 0.5 % (3 seeds).
  - Both terms are computed with log-sum-exp instead of masks with large constants.
  - The weights of both terms rise over 20 epochs, as in the paper's code. MEKD's released code has no warm-up (--warmup 0).
"""

from common.cli import cli

from dataclasses import dataclass
from typing import ClassVar

from common.losses import Scale, dkd, warm_up
from common.options import KLOptions, opt
from common.run import start


@dataclass
class Args(KLOptions):
    NEEDS: ClassVar = "soft"

    temperature: float = opt(5.0, "temperature of the softened probabilities", alias="t", ge=1e-3, le=1e3)
    alpha: float = opt(1.0, "weight of the target-class term", ge=0)
    beta: float = opt(8.0, "weight of the term among the other classes", ge=0)
    warmup: int = opt(20, "number of epochs over which the weights of both terms rise linearly from 0", ge=0)
    kl_scale: Scale = opt(
        "t", "factor of both terms: temperature (t, as in MEKD's released code), temperature squared (t2, as in the paper) or 1"
    )


def main(argv=None):
    run = start(Args, argv)
    args = run.args

    def loss(x, t):  # x: images (B, C, H, W), t: the teacher's responses (B, K)
        target, others = dkd(run.student(x), t, args.temperature, args.kl_scale, standard=args.standardise)
        rise = warm_up(run.epoch, args.warmup)
        return {"target": rise * args.alpha * target, "others": rise * args.beta * others}

    run.fit(run.asked(), loss)
    return run.finish()


if __name__ == "__main__":
    cli(main)
