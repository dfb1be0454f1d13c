"""KD: trains the student to match the teacher's softened class probabilities on the private images.
Hinton et al. 2015, https://arxiv.org/abs/1503.02531

    python project/KD.py --teacher ResNet32 --model ResNet8

Differs:
  - The student sees no labels, as in all black-box methods.
  - The KL term has the factor temperature squared, as in the paper. MEKD's released code has the factor temperature (--kl_scale t).
  - Without augmentation the teacher classifies each image once, not at every step.
  - With hard responses the loss is the cross-entropy to the teacher's class.
  - With topk:K responses the missing probability is spread evenly over the other classes.
"""

from common.cli import cli

from dataclasses import dataclass

from common.losses import kl
from common.options import KLOptions, opt
from common.run import start


@dataclass
class Args(KLOptions):
    temperature: float = opt(5.0, "temperature of the softened probabilities", alias="t", ge=1e-3, le=1e3)


def main(argv=None):
    run = start(Args, argv)
    args, student = run.args, run.student

    def loss(x, t):  # x: images (B, C, H, W), t: the teacher's responses (B, K)
        return {"kl": kl(student(x), t, args.temperature, args.kl_scale, run.teacher.hard, args.standardise)}

    run.fit(run.asked(), loss, repeatable=True)
    return run.finish()


if __name__ == "__main__":
    cli(main)
