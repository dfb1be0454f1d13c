"""Generator and discriminator of MEKD's DCGAN (Ma et al. 2024, https://arxiv.org/abs/2205.10490)."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .cli import UsageError


class Generator(nn.Module):
    """Generator: latents z (B, latent) from N(0, I) -> images (B, C, H, W) in [-1, 1].

    shape: (C, H, W), H = W, a multiple of 4; other sizes raise UsageError. ngf: channels before the last convolution.
    pixels: the generator of FastDFKD, with images in [0, 1], torch's default initial weights and no bias before batch norm.
    last: the layer after the last convolution, instead of tanh or (pixels) sigmoid.
    """

    def __init__(
        self, latent: int, shape: tuple[int, int, int], ngf: int = 64, pixels: bool = False, last: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.latent, self.ngf, self.shape, (channels, size, _) = latent, ngf, tuple(shape), shape
        if size % 4:
            raise UsageError(f"the generator cannot make images of {size} pixels, only multiples of 4; use --img_size {size // 4 * 4 + 4}")
        wide, last = 2 * ngf, last or (nn.Sigmoid() if pixels else nn.Tanh())
        self.linear = nn.Linear(latent, wide * (size // 4) ** 2)
        self.bn = nn.BatchNorm2d(wide)
        ups = *up(wide, wide, not pixels), *up(wide, ngf, not pixels)
        self.blocks = nn.Sequential(*ups, nn.Conv2d(ngf, channels, 3, 1, 1), last)
        if not pixels:
            init_dcgan(self)

    def forward(self, z: Tensor) -> Tensor:
        side = self.shape[1] // 4
        return self.blocks(self.bn(self.linear(z).view(-1, 2 * self.ngf, side, side)))  # (B, C, H, W)


class Discriminator(nn.Module):
    """Discriminator: images (B, C, H, W) -> logits (B, 1) of being real.

    Real and generated images must come in one batch. In separate batches, batch norm gives both the same mean. If the last feature map
    is 1 x 1, they can then not be told apart. shape: (C, H, W). dropout: probability of dropping a channel.
    """

    def __init__(self, shape: tuple[int, int, int], dropout: float = 0.0) -> None:
        super().__init__()
        channels, size, _ = shape
        layers = []
        for i, (cin, cout) in enumerate(zip((channels, 16, 32, 64), (16, 32, 64, 128), strict=True)):
            layers += [nn.Conv2d(cin, cout, 3, 2, 1), nn.LeakyReLU(0.2, inplace=True), nn.Dropout2d(dropout)]
            layers += [nn.BatchNorm2d(cout)] if i else []
            size = (size + 1) // 2
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * size * size, 1))
        init_dcgan(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def up(cin: int, cout: int, bias: bool = True) -> tuple[nn.Module, ...]:
    """Returns the layers that double the size of a map: `UpConv`, batch norm and LeakyReLU."""
    return UpConv(cin, cout, bias), nn.BatchNorm2d(cout), nn.LeakyReLU(0.2, inplace=True)


class UpConv(nn.Conv2d):
    """Nearest-neighbour upsampling by 2 and a 3x3 convolution, computed as one equal 4x4 transposed convolution of stride 2.

    Each output pixel depends on only 2x2 different input pixels. Summing the weights first saves 5/9 of the arithmetic, forward and
    backward.
    """

    def __init__(self, cin: int, cout: int, bias: bool = True) -> None:
        super().__init__(cin, cout, 3, padding=1, bias=bias)
        spread = torch.tensor(
            [[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0.0]]
        )  # per axis: from 3 taps to the 4 taps of the transposed convolution
        self.register_buffer("spread", spread, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.spread @ self.weight @ self.spread.T  # (out, in, 4, 4)
        return F.conv_transpose2d(x, weight.transpose(0, 1), self.bias, stride=2, padding=1)


def init_dcgan(net: nn.Module) -> None:
    """Initialises convolutions with N(0, 0.02^2) and batch-norm weights with N(1, 0.02^2) (Radford et al. 2016)."""
    for m in net.modules():
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(m.weight, 0, 0.02)
        elif isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.weight, 1, 0.02)


def draw_anew(net: nn.Module) -> None:
    """Draws all weights of a generator anew: of linear layers and convolutions from N(0, 0.02^2) with biases 0, then as `init_dcgan`."""
    for m in net.modules():
        if isinstance(m, (nn.Linear, nn.Conv2d, nn.BatchNorm2d)):
            nn.init.normal_(m.weight, 0, 0.02)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
    init_dcgan(net)
