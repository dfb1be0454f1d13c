"""DAFL: data-free learning. A generator is trained through the teacher to make images that it is sure of; the student learns on them.
Chen et al. 2019, https://arxiv.org/abs/1904.01186

    python project/DAFL.py --teacher ResNet32 --model ResNet8 --response inside

The one white-box method of the table: it takes gradients and features of the teacher, and sends nothing.

Differs: student and generator step from one batch. The paper's generator learning rate is 1e-3 to 0.2 by data set, the student's
Adam 2e-3 on MNIST and SGD 0.1 elsewhere: here 1e-3 and SGD 0.1 by default, all of them options.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn as nn
import torch.nn.functional as F

from common.batches import Draw
from common.gan import Generator
from common.losses import balance, kl
from common.options import StudentOptions, opt
from common.run import start
from common.utils import cli

SURE, EVEN, ACT = 1.0, 5.0, 0.1  # the paper's weights: teacher's cross-entropy to its own class, negative entropy, features' size


@dataclass
class Args(StudentOptions):
    NEEDS: ClassVar = "inside"
    DATA: ClassVar = False

    response: str = "inside"
    batch_size: int = opt(512, ge=2)
    steps: int = opt(120, "number of steps in an epoch", ge=1)
    latent: int = opt(100, "width of the generator's noise", ge=1)
    lr_g: float = opt(1e-3, "learning rate of the generator (Adam)", gt=0)


def main(argv=None):
    run = start(Args, argv)
    args = run.args
    G = Generator(args.latent, run.data.shape)
    G = nn.Sequential(G, nn.BatchNorm2d(run.data.shape[0], affine=False)).to(run.device, memory_format=torch.channels_last)

    def loss(z):
        x = G(z)  # (B, C, H, W)
        t, feature = run.teacher.inside(x)  # (B, K), (B, F)
        return {
            "sure": SURE * F.cross_entropy(t, t.argmax(1)),
            "even": EVEN * balance(t),
            "act": -ACT * feature.abs().mean(),
            "kl": kl(run.student(x.detach()), t.detach()),
        }

    run.teacher.afford(args.epochs * args.steps * args.batch_size)
    noise = Draw(args.steps, lambda: (torch.randn(args.batch_size, args.latent, device=run.device),))
    run.fit(noise, loss, [torch.optim.Adam(G.parameters(), args.lr_g)], generator=G)
    with torch.no_grad():
        run.copying(torch.cat([G(torch.randn(250, args.latent, device=run.device)) for _ in range(4)]))
    return run.finish()


if __name__ == "__main__":
    cli(main)
