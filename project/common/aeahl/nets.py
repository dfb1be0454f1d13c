"""Networks of AEAHL-RG: the reusable generator (two generators and a decoder), images as parameters, and the attack network."""

from collections.abc import Callable

import torch
import torch.nn as nn
from torch import Tensor

from ..gan import Generator, init_dcgan


class Pixels(nn.Module):
    """`n` images (n, C, H, W) in [0, 1] whose pixels, normalised with mean and std (1, C, 1, 1), are the parameters (DeepInversion)."""

    def __init__(self, n: int, shape: tuple[int, int, int], mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        self.u = nn.Parameter(torch.empty(n, *shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the images anew, from N(0, 1)."""
        nn.init.normal_(self.u)

    def forward(self, z: Tensor) -> Tensor:
        """Returns the images; z is not used. The parameters are clipped to the range of pixels."""
        with torch.no_grad():
            self.u.copy_(self.u.clamp(-self.mean / self.std, (1 - self.mean) / self.std))
        return self.u * self.std + self.mean


class Fusion(nn.Module):
    """AEAHL-RG's reusable generator: decoder((g1(z) + g2(z)) / 2), images in [0, 1], of latents z (B, latent).

    The addition is that of DenseFuse, applied to images. shape: (C, H, W). ngf: channels before the last convolution.
    twins: g2 starts as a copy of g1, as in the released code. Their gradients are then equal, so that they remain equal.
    """

    def __init__(self, latent: int, shape: tuple[int, int, int], ngf: int = 64, twins: bool = False) -> None:
        super().__init__()
        self.g1, self.g2 = (Generator(latent, shape, ngf, pixels=True) for _ in range(2))
        if twins:
            self.g2.load_state_dict(self.g1.state_dict())
        layers = []
        for cin, cout in ((shape[0], 8), (8, 16), (16, 8)):
            layers += [nn.Conv2d(cin, cout, 3, 1, 1), nn.BatchNorm2d(cout), nn.ReLU(inplace=True)]
        self.decoder = nn.Sequential(*layers, nn.Conv2d(8, shape[0], 3, 1, 1), nn.Sigmoid())

    def forward(self, z: Tensor) -> Tensor:
        return self.decoder((self.g1(z) + self.g2(z)) / 2)


class Perturbation(nn.Module):
    """Attack network: maps images (B, C, H, W) to perturbations (B, C, H, W) in (-1, 1); H = W, a multiple of 4.

    It is CycleGAN's ResNet generator with six blocks. width: channels of the first layer.
    """

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        w, w2, w4 = width, 2 * width, 4 * width
        down = [ReflectionPad(3), *norm_relu(nn.Conv2d(channels, w, 7, bias=False))]
        down += [*norm_relu(nn.Conv2d(w, w2, 3, 2, 1, bias=False)), *norm_relu(nn.Conv2d(w2, w4, 3, 2, 1, bias=False))]
        up = [nn.ConvTranspose2d(c, c // 2, 3, 2, 1, output_padding=1, bias=False) for c in (w4, w2)]
        last = [ReflectionPad(3), nn.Conv2d(w, channels, 7), nn.Tanh()]
        blocks = [Residual(w4) for _ in range(6)]
        self.net = nn.Sequential(*down, *blocks, *norm_relu(up[0]), *norm_relu(up[1]), *last)
        init_dcgan(self)
        nn.init.zeros_(last[1].bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Residual(nn.Module):
    """Residual block of two 3x3 convolutions with reflection padding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        first, second = (nn.Conv2d(width, width, 3, bias=False) for _ in range(2))
        self.net = nn.Sequential(ReflectionPad(1), *norm_relu(first), ReflectionPad(1), *norm_relu(second)[:2])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


class ReflectionPad(nn.Module):
    """Reflection padding like torch's ReflectionPad2d, but with a deterministic gradient on a GPU (--deterministic)."""

    def __init__(self, pad: int) -> None:
        super().__init__()
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        for d in (2, 3):
            ends = x.narrow(d, 1, self.pad).flip(d), x.narrow(d, x.shape[d] - 1 - self.pad, self.pad).flip(d)
            x = torch.cat([ends[0], x, ends[1]], d)
        return x


def norm_relu(conv: nn.Conv2d | nn.ConvTranspose2d) -> list[nn.Module]:
    """Returns the convolution, batch norm and ReLU as a list."""
    return [conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True)]


@torch.no_grad()
def recalibrate(net: nn.Module, draw: Callable[[], Tensor], batches: int = 20) -> nn.Module:
    """Returns `net` in evaluation mode, with batch-norm statistics that are the mean over `batches` inputs `draw()`."""
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
