"""AEAHL-RG's nets: two generators and a decoder in one, images that are parameters themselves, and the net that perturbs an image."""

import torch
import torch.nn as nn

from ..gan import Generator, init_dcgan


class Pixels(nn.Module):
    """`n` images (n, C, H, W) in [0, 1] that are parameters themselves; DeepInversion's generator."""

    def __init__(self, n, shape):
        super().__init__()
        self.u = nn.Parameter(torch.empty(n, *shape))
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.normal_(self.u)

    def forward(self, z):
        return self.u.sigmoid()


class Fusion(nn.Module):
    """z (B, latent) -> d((g1(z) + g2(z)) / 2), images in [0, 1]: AEAHL-RG's reusable generator. DenseFuse's addition, on images.

    twins: g2 begins as a copy of g1. Then all gradients of both are equal, and it stays one (the released code).
    """

    def __init__(self, latent, shape, ngf=64, twins=False):
        super().__init__()
        self.g1, self.g2 = (Generator(latent, shape, ngf, pixels=True) for _ in range(2))
        if twins:
            self.g2.load_state_dict(self.g1.state_dict())
        layers = []
        for cin, cout in ((shape[0], 8), (8, 16), (16, 8)):
            layers += [nn.Conv2d(cin, cout, 3, 1, 1), nn.BatchNorm2d(cout), nn.ReLU(inplace=True)]
        self.decoder = nn.Sequential(*layers, nn.Conv2d(8, shape[0], 3, 1, 1), nn.Sigmoid())

    def forward(self, z):
        return self.decoder((self.g1(z) + self.g2(z)) / 2)


class Perturbation(nn.Module):
    """x (B, C, H, W) -> (B, C, H, W) in (-1, 1): the ResNet generator of six blocks of the CycleGAN family; H = W, a multiple of 4."""

    def __init__(self, channels, width=64):
        super().__init__()
        w, w2, w4 = width, 2 * width, 4 * width
        down = [Mirror(3), *norm_relu(nn.Conv2d(channels, w, 7, bias=False))]
        down += [*norm_relu(nn.Conv2d(w, w2, 3, 2, 1, bias=False)), *norm_relu(nn.Conv2d(w2, w4, 3, 2, 1, bias=False))]
        up = [nn.ConvTranspose2d(c, c // 2, 3, 2, 1, output_padding=1, bias=False) for c in (w4, w2)]
        last = [Mirror(3), nn.Conv2d(w, channels, 7), nn.Tanh()]
        blocks = [Residual(w4) for _ in range(6)]
        self.net = nn.Sequential(*down, *blocks, *norm_relu(up[0]), *norm_relu(up[1]), *last)
        init_dcgan(self)
        nn.init.zeros_(last[1].bias)

    def forward(self, x):
        return self.net(x)


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        first, second = (nn.Conv2d(width, width, 3, bias=False) for _ in range(2))
        self.net = nn.Sequential(Mirror(1), *norm_relu(first), Mirror(1), *norm_relu(second)[:2])

    def forward(self, x):
        return x + self.net(x)


class Mirror(nn.Module):
    """torch's ReflectionPad2d, with a gradient that is the same each time on a GPU too (--deterministic)."""

    def __init__(self, pad):
        super().__init__()
        self.pad = pad

    def forward(self, x):
        for d in (2, 3):
            ends = x.narrow(d, 1, self.pad).flip(d), x.narrow(d, x.shape[d] - 1 - self.pad, self.pad).flip(d)
            x = torch.cat([ends[0], x, ends[1]], d)
        return x


def norm_relu(conv):
    return [conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True)]


@torch.no_grad()
def recalibrate(net, draw, batches=20):
    """Makes the running statistics of `net`'s batch norms those of `batches` batches `draw()`, each weighing the same."""
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    usual = [m.momentum for m in norms]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # a cumulative mean
    net.train()
    for _ in range(batches):
        net(draw())
    for m, momentum in zip(norms, usual, strict=True):
        m.momentum = momentum
    return net.eval()
