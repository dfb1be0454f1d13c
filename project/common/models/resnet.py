"""CIFAR ResNets: depth 6n+2 (He et al. 2016, section 4.2, with projection shortcuts) and ResNet-18/34/50 with a 3x3 stem."""

import torch.nn as nn
import torch.nn.functional as F

from .base import Classifier, conv_bn, init_fan_out


class Basic(nn.Module):
    expansion = 1

    def __init__(self, cin, width, stride, shortcut):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(cin, width, 3, stride)
        self.conv2, self.bn2 = conv_bn(width, width)
        add_shortcut(self, shortcut, cin, width, stride)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + getattr(self, self.shortcut_name)(x))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, cin, width, stride, shortcut):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(cin, width, 1)
        self.conv2, self.bn2 = conv_bn(width, width, 3, stride)
        self.conv3, self.bn3 = conv_bn(width, 4 * width, 1)
        add_shortcut(self, shortcut, cin, 4 * width, stride)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + getattr(self, self.shortcut_name)(x))


def add_shortcut(block, name, cin, cout, stride):
    """Identity, or a 1x1 projection where the shape changes; published files call it `downsample` (6n+2) or `shortcut`."""
    block.shortcut_name = name
    setattr(block, name, nn.Sequential(*(conv_bn(cin, cout, 1, stride) if stride != 1 or cin != cout else [])))


class ResNet(Classifier):
    """Stem, stages with strides 1, 2, 2, ..., global average pool, linear."""

    def __init__(self, classes, channels, size, block, stem, widths, depths, head="fc", shortcut="downsample"):
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
        init_fan_out(self)

    def embed(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return x.mean((2, 3))  # (B, F)


def thin(depth, wide=1):
    """ResNet-(6n+2), widths 16, 16-32-64; `wide=4` is "x4": 32, 64-128-256."""
    stem, widths = (16, (16, 32, 64)) if wide == 1 else (32, (64, 128, 256))
    return lambda classes, channels, size: ResNet(classes, channels, size, Basic, stem, widths, [(depth - 2) // 6] * 3)


def deep(block, depths):
    """ResNet-18/34/50 for small images: 3x3 stem of stride 1, no max-pool."""
    widths = (64, 128, 256, 512)
    return lambda classes, channels, size: ResNet(classes, channels, size, block, 64, widths, depths, "linear", "shortcut")


MODELS = {f"ResNet{d}": thin(d) for d in (8, 14, 20, 32, 44, 56, 80, 110)}
MODELS |= {"ResNet8x4": thin(8, 4), "ResNet32x4": thin(32, 4)}
MODELS |= {"ResNet18": deep(Basic, (2, 2, 2, 2)), "ResNet34": deep(Basic, (3, 4, 6, 3)), "ResNet50": deep(Bottleneck, (3, 4, 6, 3))}
