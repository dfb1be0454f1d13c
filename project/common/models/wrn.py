"""Wide ResNets (Zagoruyko & Komodakis 2016): pre-activation, depth 6n+4, widths 16k-32k-64k."""

from collections.abc import Callable

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .base import Classifier, fan_out


class Block(nn.Module):
    """Pre-activation residual block of two 3x3 convolutions."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(cin), nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(cout), nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.convShortcut = nn.Conv2d(cin, cout, 1, stride, bias=False) if cin != cout else None

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(a)  # the projection uses the activated input
        return shortcut + self.conv2(F.relu(self.bn2(self.conv1(a))))


class Group(nn.Module):
    """A stage of `depth` blocks; `layer` has its name from published files."""

    def __init__(self, cin: int, cout: int, depth: int, stride: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(*[Block(cin if k == 0 else cout, cout, stride if k == 0 else 1) for k in range(depth)])

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WRN(Classifier):
    """Wide ResNet of depth 6n+4 and width factor k."""

    def __init__(self, classes: int, channels: int, size: int, depth: int, k: int) -> None:
        super().__init__()
        n, widths = (depth - 4) // 6, (16, 16 * k, 32 * k, 64 * k)
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.block1, self.block2, self.block3 = (Group(widths[i], widths[i + 1], n, 2 if i else 1) for i in range(3))
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], classes)

    def init_fan_out(self) -> None:
        fan_out(self)
        nn.init.zeros_(self.fc.bias)

    def embed(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return F.relu(self.bn1(x)).mean((2, 3))  # (B, F)


def wrn(depth: int, k: int) -> Callable[[int, int, int], Classifier]:
    """Returns a function of (classes, channels, size) that makes a Wide ResNet."""
    return lambda classes, channels, size: WRN(classes, channels, size, depth, k)


MODELS = {f"WRN{d}_{k}": wrn(d, k) for d in (16, 40) for k in (1, 2)}
