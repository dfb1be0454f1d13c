"""Data-free model extraction: a generator that is trained through a black box, with gradients estimated from forward differences."""

from collections.abc import Callable, Iterator

import torch
import torch.nn as nn
from torch import Tensor

from ..cli import allocating
from ..gan import Generator
from ..run import Run
from ..schedule import lr_at
from ..states import restore
from ..utils import exact


def unit_directions(x: Tensor, m: int) -> Tensor:
    """Returns m random directions for each image x (B, C, H, W), uniform on the unit sphere: (m, B, C, H, W)."""
    d = torch.randn(m, *x.shape, device=x.device)
    return d / d.flatten(2).norm(dim=2)[:, :, None, None, None]


def forward_differences(f: Callable[[Tensor], Tensor], x: Tensor, directions: Tensor, epsilon: float) -> Tensor:
    """Returns the estimated gradient (B, C, H, W) of f at each image x (B, C, H, W).

    f: images (N, C, H, W) -> values (N,); it is called once, with (m + 1) * B images. directions: unit vectors (m, B, C, H, W).
    The estimate is the dimension of x times the mean of (f(x + epsilon * d) - f(x)) / epsilon * d over the directions d. Its expectation
    for random directions is the gradient, up to O(epsilon). Its value for an orthonormal basis is the gradient, if f is linear.
    Source: Truong et al. 2021, https://arxiv.org/abs/2011.14779.
    """
    points = torch.cat([x[None], x + epsilon * directions])  # (m + 1, B, C, H, W)
    values = f(points.flatten(0, 1)).view(len(points), len(x))
    slopes = (values[1:] - values[0]) / epsilon  # (m, B)
    return x[0].numel() * (slopes[:, :, None, None, None] * directions).mean(0)


class Extraction:
    """One epoch of the student per iteration: `steps` times `s_steps` batches (x, t) of new images and the teacher's answers.

    Each of the `steps` iterations begins with `g_steps` steps of the generator towards a higher disagreement of student and teacher.
    disagreement(s, t): student's and teacher's logits (N, K) -> (N,).
    The generator's last layer is a batch norm, so that its images before tanh have mean 0 and variance 1 in each channel. Its learning rate
    falls as the student's does.
    """

    def __init__(self, run: Run, disagreement: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.run, self.args, self.disagreement, self.seen = run, run.args, disagreement, run.data.view_of_tanh()
        a, shape = self.args, run.data.shape
        with allocating("the generator", "--ngf", "--latent", "--img_size"):
            G = Generator(a.latent, shape, a.ngf, pixels=True, last=nn.BatchNorm2d(shape[0], affine=False))
            self.G = G.to(run.device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(self.G.parameters(), a.lr_g, fused=True)
        run.teacher.plan(a.epochs * a.steps * a.batch_size * (a.g_steps * (a.directions + 1) + a.s_steps))

    def __len__(self) -> int:
        return self.args.steps * self.args.s_steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        a = self.args
        for group in self.optimizer.param_groups:
            group["lr"] = a.lr_g * lr_at(a, self.run.epoch) / a.lr
        for _ in range(a.steps):
            for _ in range(a.g_steps):
                self.train_generator()
            for _ in range(a.s_steps):
                x = self.images()
                yield x, self.run.teacher(x, "synthetic")

    def unbounded(self) -> Tensor:
        """Returns a batch of images (B, C, H, W) before tanh, with gradient, always in float32."""
        z = torch.randn(self.args.batch_size, self.args.latent, device=self.run.device)
        with exact(z):
            return self.G(z)

    @torch.no_grad()
    def images(self) -> Tensor:
        """Returns a batch of images (B, C, H, W) as a net sees them."""
        return self.seen(self.unbounded().tanh())

    @torch.no_grad()
    def value(self, u: Tensor) -> Tensor:
        """Returns the disagreement (N,) on images before tanh (N, C, H, W); it takes N queries."""
        x = self.seen(u.tanh())
        return self.disagreement(self.run.student(x), self.run.teacher(x, "synthetic"))

    def train_generator(self) -> None:
        """Takes one step of the generator; the student, in evaluation mode, and the teacher do not change."""
        a, u = self.args, self.unbounded()
        self.run.student.eval()
        with exact(u):  # bfloat16 does not resolve differences at a distance of epsilon
            gradient = forward_differences(self.value, u.detach(), unit_directions(u, a.directions), a.epsilon)
        self.run.student.train()
        self.optimizer.zero_grad()
        u.backward(-gradient / len(u))
        self.optimizer.step()

    def latest_images(self, n: int = 100) -> Tensor:
        """Returns n images (n, C, H, W) in [0, 1]."""
        x = torch.cat([self.images() for _ in range(-(-n // self.args.batch_size))])[:n]
        return x * self.run.data.std + self.run.data.mean

    def state_dict(self) -> dict:
        return {"G": self.G.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        restore(self.G, state["G"], "the generator")
        restore(self.optimizer, state["optimizer"])
