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
from common.options import Distill
from common.run import start
from common.utils import cli


@dataclass
class Args(Distill):
    NEEDS: ClassVar = "inside"
    DATA: ClassVar = False

    response: str = "inside"  # what the teacher answers; this method looks inside it
    batch_size: int = 512  # in [2, 1000000]
    steps: int = 120  # an epoch, in [1, 1000000]
    latent: int = 100  # width of the generator's noise, in [1, 100000]
    lr_g: float = 1e-3  # the generator's learning rate, Adam, in (0, 1000]
    w_sure: float = 1.0  # weight of the cross-entropy to the teacher's own top class, in [0, 1000000]
    w_even: float = 5.0  # weight of the negative entropy of the batch's mean answer, in [0, 1000000]
    w_act: float = 0.1  # weight of the penultimate features' size, in [0, 1000000]


def main(argv=None):
    run = start(Args, argv)
    args = run.args
    G = Generator(args.latent, run.data.shape)
    G = nn.Sequential(G, nn.BatchNorm2d(run.data.shape[0], affine=False)).to(run.device, memory_format=torch.channels_last)

    def loss(z):
        x = G(z)  # (B, C, H, W)
        t, feature = run.teacher.inside(x)  # (B, K), (B, F)
        return {
            "sure": args.w_sure * F.cross_entropy(t, t.argmax(1)),
            "even": args.w_even * balance(t),
            "act": -args.w_act * feature.abs().mean(),
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
