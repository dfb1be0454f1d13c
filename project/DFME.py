"""DFME: trains a generator to raise the disagreement of student and teacher, and the student to lower it (data-free model extraction).
The generator's gradient is estimated from queries, so that the teacher can be a black box.
Truong et al. 2021, https://arxiv.org/abs/2011.14779

    python project/DFME.py --dataset CIFAR10 --teacher ResNet34 --model ResNet18

The queries of a run are epochs * steps * batch_size * (g_steps * (directions + 1) + s_steps).

Differs:
  - The number of epochs is an option, and a budget below the run's queries is refused (released: epochs follow from the budget of 20 million
    queries, and the last one is cut short). The default of 223 epochs takes 19,980,800 queries.
  - The estimated gradient is that of the mean over the batch (released: also divided by the number of classes twice). Adam's steps do not
    depend on this factor.
  - The learning rates fall after the epochs of --milestones (released: one epoch earlier).
  - The accuracy is that of the last epoch (released: of the best epoch on test images).
  - With --g_steps 0 the generator keeps its initial weights: the student learns from noise, a baseline.
"""

from common.cli import allocating, cli

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn as nn

from common.gan import Generator
from common.imitation.differences import forward_differences, unit_directions
from common.losses import kl_of_each
from common.options import StudentOptions, opt
from common.pictures import save_grid
from common.run import start
from common.schedule import lr_at
from common.utils import exact, matching

DATASET_SETTINGS = {"SVHN": {"epochs": 22, "lr_g": 5e-5, "milestones": "0.5,0.8"}}  # of the released code, 2 million queries


@dataclass
class Args(StudentOptions):
    NEEDS: ClassVar = "soft"
    DATA: ClassVar = False

    epochs: int = 223
    batch_size: int = opt(256, ge=2)
    milestones: str = "0.1,0.3,0.5"
    gamma: float = opt(0.3, "factor of both learning rates at each milestone")
    steps: int = opt(50, "number of iterations per epoch", ge=1)
    g_steps: int = opt(1, "number of generator steps per iteration; 0: the generator is not trained", ge=0)
    s_steps: int = opt(5, "number of student steps per iteration", ge=1)
    latent: int = opt(256, "dimension of the generator's input noise", ge=1)
    lr_g: float = opt(1e-4, "learning rate of the generator (Adam)", gt=0)
    directions: int = opt(1, "number of random directions per image in which the generator's gradient is estimated", ge=1)
    epsilon: float = opt(1e-3, "length of the step in a direction, for images before tanh", gt=0, le=1)
    distance: Literal["l1", "kl"] = opt("l1", "disagreement of student and teacher: mean absolute difference of logits (l1), or KL (kl)")

    def presets(self) -> dict[str, Any]:
        return DATASET_SETTINGS.get(matching(self.dataset, DATASET_SETTINGS), {})


class Images:
    """Batches (x, t) of new images and the teacher's answers, s_steps after each g_steps steps of the generator."""

    def __init__(self, run, G, optimizer, disagreement):
        self.run, self.G, self.optimizer, self.disagreement = run, G, optimizer, disagreement
        self.seen = run.data.view_of_tanh()

    def __len__(self) -> int:
        return self.run.args.steps * self.run.args.s_steps

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        a = self.run.args
        for group in self.optimizer.param_groups:
            group["lr"] = a.lr_g * lr_at(a, self.run.epoch) / a.lr
        for _ in range(a.steps):
            for _ in range(a.g_steps):
                self.train_generator()
            for _ in range(a.s_steps):
                with torch.no_grad():
                    x = self.images()
                yield x, self.run.teacher(x, "synthetic")

    def unbounded(self) -> torch.Tensor:
        """Returns a batch of images (B, C, H, W) before tanh."""
        a = self.run.args
        with exact(torch.empty(0, device=self.run.device)):
            return self.G(torch.randn(a.batch_size, a.latent, device=self.run.device))

    def images(self) -> torch.Tensor:
        """Returns a batch of images (B, C, H, W) as a net sees them."""
        return self.seen(self.unbounded().tanh())

    def train_generator(self) -> None:
        """One step of the generator towards images with a higher disagreement."""
        a, student, u = self.run.args, self.run.student, self.unbounded()

        @torch.no_grad()
        def value(points):  # images before tanh (N, C, H, W) -> disagreement (N,)
            x = self.seen(points.tanh())
            return self.disagreement(student(x), self.run.teacher(x, "synthetic"))

        student.eval()
        with exact(u):
            gradient, _ = forward_differences(value, u.detach(), unit_directions(u, a.directions), a.epsilon)
        student.train()
        self.optimizer.zero_grad()
        u.backward(-gradient / len(u))
        self.optimizer.step()


def main(argv=None):
    run = start(Args, argv)
    args = run.args
    with allocating("the generator", "--latent", "--img_size"):
        G = Generator(args.latent, run.data.shape, pixels=True, last=nn.BatchNorm2d(run.data.shape[0], affine=False))
        G = G.to(run.device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(G.parameters(), args.lr_g, fused=True)

    def disagreement(s, t):  # logits (B, K) -> (B,)
        return (s - t).abs().mean(1) if args.distance == "l1" else kl_of_each(s, t)

    def loss(x, t):
        return {args.distance: disagreement(run.student(x), t).mean()}

    run.teacher.plan(args.epochs * args.steps * args.batch_size * (args.g_steps * (args.directions + 1) + args.s_steps))
    images = Images(run, G, optimizer, disagreement)
    run.fit(images, loss, generator=G, optimizer_g=optimizer)
    with torch.no_grad():
        x = torch.cat([images.images() for _ in range(-(-100 // args.batch_size))])[:100]
    save_grid(x * run.data.std + run.data.mean, run.record.logs / "synthetic.png", 10, 32)
    return run.finish()


if __name__ == "__main__":
    cli(main)
