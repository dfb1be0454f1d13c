"""DAFL: trains a generator through the teacher, and the student on the generated images (data-free learning).
Chen et al. 2019, https://arxiv.org/abs/1904.01186

    python project/DAFL.py --teacher ResNet32 --model ResNet8 --response inside

This is the only white-box method of MEKD's table. It uses gradients and features of the teacher, and sends no image.

Differs:
  - The normalised output of the generator is clipped to the range of pixels (released: not clipped). Digits, five seeds, --weights_init
    fan_out: 91.3 % against 88.2 %.
  - Student and generator take their steps on the same batch.
  - The default learning rate of the generator is 1e-3 (paper: 1e-3 to 0.2, by data set).
  - The default optimizer of the student is SGD at 0.1 (paper: Adam at 2e-3 on MNIST, SGD at 0.1 elsewhere).
"""

from common.cli import allocating, cli

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn as nn
import torch.nn.functional as F

from common.batches import Draw
from common.gan import Generator
from common.losses import balance, kl
from common.options import StudentOptions, opt
from common.processes import share
from common.run import start

# weights of the generator's terms, as in the paper: cross-entropy of the teacher to its own top class, negative entropy of the mean
# class probabilities, size of the teacher's features
W_ONE_HOT, W_ENTROPY, W_ACTIVATION = 1.0, 5.0, 0.1


@dataclass
class Args(StudentOptions):
    NEEDS: ClassVar = "inside"
    DATA: ClassVar = False
    AUGMENTS: ClassVar = False

    response: str = "inside"
    batch_size: int = opt(512, ge=2)
    steps: int = opt(120, "number of steps per epoch", ge=1)
    latent: int = opt(100, "dimension of the generator's input noise", ge=1)
    lr_g: float = opt(1e-3, "learning rate of the generator (Adam)", gt=0)


def main(argv=None):
    run = start(Args, argv)
    args = run.args
    with allocating("the generator", "--latent", "--img_size"):
        G = nn.Sequential(Generator(args.latent, run.data.shape), nn.BatchNorm2d(run.data.shape[0], affine=False))
        G = share(G.to(run.device, memory_format=torch.channels_last), args.sync_bn)

    low, high = (-run.data.mean / run.data.std, (1 - run.data.mean) / run.data.std)  # of pixels in [0, 1]

    def images(z):  # noise (B, latent) -> (B, C, H, W)
        return G(z).clamp(low, high)

    def loss(z):
        x = images(z)
        t, feature = run.teacher.inside(x)  # (B, K), (B, F)
        return {
            "sure": W_ONE_HOT * F.cross_entropy(t, t.argmax(1)),
            "even": W_ENTROPY * balance(t),
            "act": -W_ACTIVATION * feature.abs().mean(),
            "kl": kl(run.student(x.detach()), t.detach()),
        }

    run.teacher.plan(args.epochs * args.steps * args.batch_size)
    noise = Draw(args.steps, lambda: (torch.randn(args.batch_size, args.latent, device=run.device),))
    run.fit(noise, loss, [torch.optim.Adam(G.parameters(), args.lr_g)], generator=G)
    with torch.no_grad():
        run.copying(torch.cat([images(torch.randn(250, args.latent, device=run.device)) for _ in range(4)]))
    return run.finish()


if __name__ == "__main__":
    cli(main)
