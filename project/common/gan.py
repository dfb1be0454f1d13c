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
