"""DFME: trains a generator to raise the disagreement of student and teacher, and the student to lower it (data-free model extraction).
The generator's gradient is estimated from queries, so that the teacher can be a black box.
Truong et al. 2021, https://arxiv.org/abs/2011.14779

    python project/DFME.py --dataset CIFAR10 --teacher ResNet34 --model ResNet18

A run takes epochs * steps * batch_size * (g_steps * (directions + 1) + s_steps) queries; the default is 20 million.
On SVHN the defaults are --epochs 22 --lr_g 5e-5 --milestones 0.5,0.8: 2 million queries.

Differs:
  - The number of epochs is an option, and a budget below the run's queries is refused (released: epochs follow from the budget, and the
    last one is cut short).
  - The estimated gradient is that of the mean over the batch (released: divided by the number of classes once more). Adam's steps hardly
    depend on this factor.
  - The learning rates fall after the epochs of --milestones (released: one epoch earlier).
  - The accuracy is that of the last epoch (released: of the best epoch on test images).
  - With --g_steps 0 the generator keeps its initial weights, and the student learns from its noise, a baseline.
"""

from common.cli import cli

from dataclasses import dataclass
from typing import ClassVar, Literal

from common.imitation.extraction import Extraction
from common.imitation.options import GeneratorOptions
from common.losses import kl_of_each
from common.options import opt
from common.pictures import save_grid
from common.run import start


@dataclass
class Args(GeneratorOptions):
    NEEDS: ClassVar = "soft"
    AUGMENTS: ClassVar = False
    SETTINGS: ClassVar = {"SVHN": {"epochs": 22, "lr_g": 5e-5, "milestones": "0.5,0.8"}}

    epochs: int = 223
    batch_size: int = opt(256, ge=2)
    milestones: str = "0.1,0.3,0.5"
    gamma: float = opt(0.3, "factor of the learning rates of student and generator at each milestone")
    steps: int = opt(50, "number of iterations per epoch", ge=1)
    g_steps: int = opt(1, "number of generator steps per iteration; 0: the generator is not trained", ge=0)
    s_steps: int = opt(5, "number of student steps per iteration", ge=1)
    lr_g: float = opt(1e-4, "learning rate of the generator (Adam)", gt=0)
    directions: int = opt(1, "number of random directions per image in which the generator's gradient is estimated", ge=1)
    epsilon: float = opt(1e-3, "Euclidean length of the step in each direction, for images before tanh", gt=0, le=1)
    distance: Literal["l1", "kl"] = opt(
        "l1", "disagreement of student and teacher: mean absolute difference of the logits (l1), or KL divergence (kl)"
    )


def main(argv=None):
    run = start(Args, argv)
    distance = run.args.distance

    def disagreement(s, t):  # logits of student and teacher (B, K); those of probabilities are centred
        return (s - t).abs().mean(1) if distance == "l1" else kl_of_each(s, t)

    def loss(x, t):
        return {distance: disagreement(run.student(x), t).mean()}

    extraction = Extraction(run, disagreement)
    run.fit(extraction, loss, extraction=extraction)
    save_grid(extraction.latest_images(), run.record.logs / "synthetic.png", 10, 32)
    return run.finish()


if __name__ == "__main__":
    cli(main)
