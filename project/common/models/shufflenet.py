"""ShuffleNet V1 (Zhang et al. 2018, 3 groups) and V2 (Ma et al. 2018, 1x), with the 1x1 stem that KD tables on CIFAR use."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .base import Classifier, conv_bn


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Returns x (N, C, H, W) with the channels of the groups interleaved."""
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class UnitV1(nn.Module):
    """Unit of ShuffleNet V1. With stride 1 it adds the input; with stride 2 it concatenates the pooled input."""

    def __init__(self, cin: int, cout: int, stride: int, groups: int = 3) -> None:
        super().__init__()
        mid = cout // 4  # with stride 2, cout is the width of this branch without the concatenated input
        self.stride, self.shuffles = stride, 1 if cin == 24 else groups
        self.conv1, self.bn1 = conv_bn(cin, mid, 1, groups=self.shuffles)
        self.conv2, self.bn2 = conv_bn(mid, mid, 3, stride, groups=mid)
        self.conv3, self.bn3 = conv_bn(mid, cout, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        y = shuffle(F.relu(self.bn1(self.conv1(x))), self.shuffles)
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(x + y) if self.stride == 1 else F.relu(torch.cat([y, F.avg_pool2d(x, 3, 2, 1)], 1))


class DownV2(nn.Module):
    """Unit of ShuffleNet V2 with stride 2: both branches process the whole input."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        half = cout // 2
        self.conv1, self.bn1 = conv_bn(cin, cin, 3, 2, groups=cin)  # left branch
        self.conv2, self.bn2 = conv_bn(cin, half, 1)
        self.conv3, self.bn3 = conv_bn(cin, half, 1)  # right branch
        self.conv4, self.bn4 = conv_bn(half, half, 3, 2, groups=half)
        self.conv5, self.bn5 = conv_bn(half, half, 1)

    def forward(self, x: Tensor) -> Tensor:
        left = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = self.bn4(self.conv4(F.relu(self.bn3(self.conv3(x)))))
        return shuffle(torch.cat([left, F.relu(self.bn5(self.conv5(right)))], 1), 2)


class UnitV2(nn.Module):
    """Unit of ShuffleNet V2 with stride 1: half of the channels pass unchanged."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1, self.bn1 = conv_bn(half, half, 1)
        self.conv2, self.bn2 = conv_bn(half, half, 3, groups=half)
        self.conv3, self.bn3 = conv_bn(half, half, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, y = x.chunk(2, 1)
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(y)))))
        return shuffle(torch.cat([left, F.relu(self.bn3(self.conv3(y)))], 1), 2)


class ShuffleNetV1(Classifier):
    """Stem of 24 channels, three stages of widths 240, 480 and 960, global average pool."""

    HEAD = "linear"

    def __init__(self, classes: int, channels: int, size: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(channels, 24, 1)
        cin = 24
        for i, (width, units) in enumerate(zip((240, 480, 960), (4, 8, 4), strict=True)):
            down = UnitV1(cin, width - cin, 2)
            setattr(self, f"layer{i + 1}", nn.Sequential(down, *[UnitV1(width, width, 1) for _ in range(units - 1)]))
            cin = width
        self.linear = nn.Linear(cin, classes)

    def embed(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x))).mean((2, 3))  # (B, 960)


class ShuffleNetV2(Classifier):
    """Stem of 24 channels, three stages of widths 116, 232 and 464, a 1x1 convolution to 1024 channels, global average pool."""

    HEAD = "linear"

    def __init__(self, classes: int, channels: int, size: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(channels, 24, 1)
        cin = 24
        for i, (width, units) in enumerate(zip((116, 232, 464), (3, 7, 3), strict=True)):
            setattr(self, f"layer{i + 1}", nn.Sequential(DownV2(cin, width), *[UnitV2(width) for _ in range(units)]))
            cin = width
        self.conv2, self.bn2 = conv_bn(cin, 1024, 1)
        self.linear = nn.Linear(1024, classes)

    def embed(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return F.relu(self.bn2(self.conv2(x))).mean((2, 3))  # (B, 1024)


MODELS = {"ShuffleNetV1": ShuffleNetV1, "ShuffleNetV2": ShuffleNetV2}
