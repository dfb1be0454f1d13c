"""VGG for small images (Simonyan & Zisserman 2015): five blocks of 3x3 convolutions, global average pool, one linear layer."""

from collections.abc import Callable

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .base import Classifier, conv_bn, fan_out

WIDTHS = (64, 128, 256, 512, 512)
CONVS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}  # by depth: number of convolutions per block


class VGG(Classifier):
    """VGG of a depth in CONVS; bn: with batch norm after each convolution."""

    HEAD = "classifier"

    IN_ORDER = True

    def __init__(self, classes: int, channels: int, size: int, depth: int, bn: bool) -> None:
        super().__init__()
        self.pools, cin = (3 if size < 64 else 4), channels  # a max-pool follows blocks 0, 1 and 2; from 64 x 64 pixels on, also block 3
        for i, (width, convs) in enumerate(zip(WIDTHS, CONVS[depth], strict=True)):
            layers = []
            for _ in range(convs):
                layers += [*conv_bn(cin, width, bias=True)[: 2 if bn else 1], nn.ReLU(inplace=True)]
                cin = width
            setattr(self, f"block{i}", nn.Sequential(*layers))
        self.classifier = nn.Linear(cin, classes)
        fan_out(self)  # in all released code; only the linear layer differs

    def init_fan_out(self) -> None:
        fan_out(self, linear_std=0.01)

    def embed(self, x: Tensor) -> Tensor:
        for i in range(5):
            x = getattr(self, f"block{i}")(x)
            if i < self.pools:
                x = F.max_pool2d(x, 2)
        return x.mean((2, 3))  # (B, 512)


def vgg(depth: int, bn: bool) -> Callable[[int, int, int], Classifier]:
    """Returns a function of (classes, channels, size) that makes a VGG."""
    return lambda classes, channels, size: VGG(classes, channels, size, depth, bn)


MODELS = {f"VGG{d}" + ("_BN" if bn else ""): vgg(d, bn) for d in CONVS for bn in (False, True)}
