"""VGG for small images (Simonyan & Zisserman 2015): five blocks of 3x3 convolutions, global average pool, one linear layer."""

import torch.nn as nn
import torch.nn.functional as F

from .base import Classifier, conv_bn, init_fan_out

WIDTHS = (64, 128, 256, 512, 512)
CONVS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # a block each


class VGG(Classifier):
    HEAD = "classifier"

    def __init__(self, classes, channels, size, depth, bn):
        super().__init__()
        self.pools, cin = (3 if size < 64 else 4), channels  # a max-pool after blocks 0, 1, 2, and after 3 from 64 x 64 on
        for i, (width, convs) in enumerate(zip(WIDTHS, CONVS[depth], strict=True)):
            layers = []
            for _ in range(convs):
                layers += [*conv_bn(cin, width, bias=True)[: 2 if bn else 1], nn.ReLU(inplace=True)]
                cin = width
            setattr(self, f"block{i}", nn.Sequential(*layers))
        self.classifier = nn.Linear(cin, classes)
        init_fan_out(self, linear_std=0.01)

    def embed(self, x):
        for i in range(5):
            x = getattr(self, f"block{i}")(x)
            if i < self.pools:
                x = F.max_pool2d(x, 2)
        return x.mean((2, 3))  # (B, 512)


def vgg(depth, bn):
    return lambda classes, channels, size: VGG(classes, channels, size, depth, bn)


MODELS = {f"VGG{d}" + ("_BN" if bn else ""): vgg(d, bn) for d in CONVS for bn in (False, True)}
