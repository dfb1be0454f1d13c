"""MobileNet (Howard et al. 2017, with a stem of stride 1 for CIFAR) and MobileNetV2 (Sandler et al. 2018, width 0.5 as in KD tables)."""

import torch.nn as nn
from torch import Tensor

from .base import Classifier, conv_bn, fan_out

V1 = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]  # (width, stride) of each layer
# V2: (expansion, width, repeats, stride) of each stage
V2 = [(1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1)]


def conv_bn_relu(*args: int, **options: int) -> list[nn.Module]:
    """Returns convolution, batch norm and ReLU as a list; arguments as for `conv_bn`."""
    return [*conv_bn(*args, **options), nn.ReLU(inplace=True)]


class MobileNet(Classifier):
    """Depth-wise separable convolutions of width 32 to 1024, then a global average pool."""

    HEAD = "classifier"

    IN_ORDER = True

    def __init__(self, classes: int, channels: int, size: int) -> None:
        super().__init__()
        layers, cin = conv_bn_relu(channels, 32), 32
        for width, stride in V1:
            layers += conv_bn_relu(cin, cin, 3, stride, groups=cin) + conv_bn_relu(cin, width, 1)
            cin = width
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(cin, classes)

    def init_fan_out(self) -> None:
        fan_out(self)

    def embed(self, x: Tensor) -> Tensor:
        return self.layers(x).mean((2, 3))  # (B, 1024)


class Inverted(nn.Module):
    """Inverted residual: 1x1 expansion by the factor t, depth-wise 3x3, 1x1 projection; adds the input if the shapes are equal."""

    def __init__(self, cin: int, cout: int, t: int, stride: int) -> None:
        super().__init__()
        self.residual, mid = stride == 1 and cin == cout, cin * t
        self.conv = nn.Sequential(*conv_bn_relu(cin, mid, 1), *conv_bn_relu(mid, mid, 3, stride, groups=mid), *conv_bn(mid, cout, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(Classifier):
    """Inverted residuals of width 8 to 160, a 1x1 convolution to 1280 channels, then a global average pool."""

    HEAD = "classifier"

    def __init__(self, classes: int, channels: int, size: int) -> None:
        super().__init__()
        self.conv1, self.blocks, cin = nn.Sequential(*conv_bn_relu(channels, 16, 3, 2)), nn.Sequential(), 16
        for t, c, n, s in V2:
            self.blocks.append(nn.Sequential(*[Inverted(cin if k == 0 else c, c, t, s if k == 0 else 1) for k in range(n)]))
            cin = c
        self.conv2 = nn.Sequential(*conv_bn_relu(cin, 1280, 1))
        self.classifier = nn.Sequential(nn.Linear(1280, classes))

    def init_fan_out(self) -> None:
        fan_out(self, linear_std=0.01)

    def embed(self, x: Tensor) -> Tensor:
        return self.conv2(self.blocks(self.conv1(x))).mean((2, 3))  # (B, 1280)


MODELS = {"MobileNet": MobileNet, "MobileNetV2": MobileNetV2}
