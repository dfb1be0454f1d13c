"""ResNets for CIFAR (He et al. 2016): depth 6n+2 (section 4.2, with projection shortcuts), and ResNet-18/34/50 with a 3x3 stem.

shortcut: the name of a block's shortcut layer, `downsample` or `shortcut` in published files.
"""

from collections.abc import Callable, Sequence

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .base import Classifier, conv_bn, fan_out


class Basic(nn.Module):
    """Residual block of two 3x3 convolutions."""

    expansion = 1

    def __init__(self, cin: int, width: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(cin, width, 3, stride)
        self.conv2, self.bn2 = conv_bn(width, width)
        add_shortcut(self, shortcut, cin, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + getattr(self, self.shortcut_name)(x))


class Bottleneck(nn.Module):
    """Residual block of a 1x1, a 3x3 and a 1x1 convolution, with four times as many output channels."""

    expansion = 4

    def __init__(self, cin: int, width: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(cin, width, 1)
        self.conv2, self.bn2 = conv_bn(width, width, 3, stride)
        self.conv3, self.bn3 = conv_bn(width, 4 * width, 1)
        add_shortcut(self, shortcut, cin, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + getattr(self, self.shortcut_name)(x))


def add_shortcut(block: nn.Module, name: str, cin: int, cout: int, stride: int) -> None:
    """Adds a shortcut layer called `name` to a block: the identity, or a 1x1 projection if the shape changes."""
    block.shortcut_name = name
    setattr(block, name, nn.Sequential(*(conv_bn(cin, cout, 1, stride) if stride != 1 or cin != cout else [])))


class ResNet(Classifier):
    """Stem, stages with strides 1, 2, 2, ..., global average pool, linear layer.

    block: `Basic` or `Bottleneck`. stem: channels of the first convolution. widths, depths: channels and number of blocks per stage.
    head: name of the linear layer.
    """

    def __init__(
        self,
        classes: int,
        channels: int,
        size: int,
        block: type[Basic | Bottleneck],
        stem: int,
        widths: Sequence[int],
        depths: Sequence[int],
        head: str = "fc",
        shortcut: str = "downsample",
    ) -> None:
        super().__init__()
        self.HEAD = head
        self.conv1, self.bn1 = conv_bn(channels, stem)
        self.stages, cin = [], stem
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks = []
            for k in range(depth):
                blocks.append(block(cin, width, 2 if i and not k else 1, shortcut))
                cin = width * block.expansion
            self.stages.append(f"layer{i + 1}")
            setattr(self, self.stages[-1], nn.Sequential(*blocks))
        setattr(self, head, nn.Linear(cin, classes))

    def init_fan_out(self) -> None:
        fan_out(self)

    def embed(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return x.mean((2, 3))  # (B, F)


def cifar_resnet(depth: int, wide: bool = False) -> Callable[[int, int, int], Classifier]:
    """Returns a function that makes a ResNet of depth 6n+2, with widths 16, 16-32-64; wide: 32, 64-128-256 (called x4)."""
    stem, widths = (32, (64, 128, 256)) if wide else (16, (16, 32, 64))
    return lambda classes, channels, size: ResNet(classes, channels, size, Basic, stem, widths, [(depth - 2) // 6] * 3)


def deep_resnet(block: type[Basic | Bottleneck], depths: Sequence[int]) -> Callable[[int, int, int], Classifier]:
    """Returns a function that makes a ResNet-18/34/50 for small images: 3x3 stem of stride 1, no max-pool."""
    widths = (64, 128, 256, 512)
    return lambda classes, channels, size: ResNet(classes, channels, size, block, 64, widths, depths, "linear", "shortcut")


MODELS = {f"ResNet{d}": cifar_resnet(d) for d in (8, 14, 20, 32, 44, 56, 80, 110)}
MODELS |= {"ResNet8x4": cifar_resnet(8, wide=True), "ResNet32x4": cifar_resnet(32, wide=True)}
MODELS |= {"ResNet18": deep_resnet(Basic, (2, 2, 2, 2)), "ResNet34": deep_resnet(Basic, (3, 4, 6, 3))}
MODELS |= {"ResNet50": deep_resnet(Bottleneck, (3, 4, 6, 3))}
