"""Nets that make images: the DCGAN pair of MEKD (Ma et al. 2024), noise -> images, and the critic that judges them; two generators and
a decoder in one (AEAHL-RG); a net that makes of an image its perturbation (Poursaeed et al. 2018).
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from .utils import UsageError


class Generator(nn.Module):
    """z (B, latent) ~ N(0, I) -> images (B, C, H, W) in [-1, 1]; H = W, a multiple of 4. ngf: channels before the last convolution.

    pixels: images in [0, 1], torch's own initial weights and no bias before batch norm: the generator of FastDFKD.
    """

    def __init__(self, latent, shape, ngf=64, pixels=False):
        super().__init__()
        self.latent, self.ngf, self.shape, (channels, size, _) = latent, ngf, tuple(shape), shape
        if size % 4:
            raise UsageError(f"the generator makes images whose side is a multiple of 4, not {size}; give --img_size {size // 4 * 4 + 4}")
        wide, last = 2 * ngf, nn.Sigmoid() if pixels else nn.Tanh()
        self.linear = nn.Linear(latent, wide * (size // 4) ** 2)
        self.bn = nn.BatchNorm2d(wide)
        ups = *up(wide, wide, not pixels), *up(wide, ngf, not pixels)
        self.blocks = nn.Sequential(*ups, nn.Conv2d(ngf, channels, 3, 1, 1), last)
        if not pixels:
            init_dcgan(self)

    def forward(self, z):
        side = self.shape[1] // 4
        return self.blocks(self.bn(self.linear(z).view(-1, 2 * self.ngf, side, side)))  # (B, C, H, W)


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


class Discriminator(nn.Module):
    """images (B, C, H, W) -> logit (B, 1) of being real. Give it real and generated images as one batch: its batch norm
    would bring either to the same mean if it saw them apart, and where the last feature map is 1 x 1 leave nothing to tell.
    """

    def __init__(self, shape, dropout=0.0):
        super().__init__()
        channels, size, _ = shape
        layers = []
        for i, (cin, cout) in enumerate(zip((channels, 16, 32, 64), (16, 32, 64, 128), strict=True)):
            layers += [nn.Conv2d(cin, cout, 3, 2, 1), nn.LeakyReLU(0.2, inplace=True), nn.Dropout2d(dropout)]
            layers += [nn.BatchNorm2d(cout)] if i else []
            size = (size + 1) // 2
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * size * size, 1))
        init_dcgan(self)

    def forward(self, x):
        return self.net(x)


def up(cin, cout, bias=True):
    return UpConv(cin, cout, bias), nn.BatchNorm2d(cout), nn.LeakyReLU(0.2, inplace=True)


class UpConv(nn.Conv2d):
    """Nearest-neighbour x2, then this 3x3 convolution, as the one 4x4 transposed convolution of stride 2 that equals it.

    Each output pixel sees only 2x2 different input pixels, so that adding up the weights first saves 5/9 of the arithmetic,
    forward and backward.
    """

    def __init__(self, cin, cout, bias=True):
        super().__init__(cin, cout, 3, padding=1, bias=bias)
        spread = torch.tensor([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0.0]])  # along one axis: 4 taps of the transposed from 3
        self.register_buffer("spread", spread, persistent=False)

    def forward(self, x):
        weight = self.spread @ self.weight @ self.spread.T  # (out, in, 4, 4)
        return F.conv_transpose2d(x, weight.transpose(0, 1), self.bias, stride=2, padding=1)


def init_dcgan(net):
    """Radford et al. 2016: convolutions N(0, 0.02^2), batch-norm weights N(1, 0.02^2)."""
    for m in net.modules():
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(m.weight, 0, 0.02)
        elif isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.weight, 1, 0.02)
