"""LeNet-5 and AlexNet for CIFAR as in DB3KD (Wang 2021, https://arxiv.org/abs/2106.03310), and the LeNet-5 of 1998; also narrower ones.

divisor: number by which the widths of all layers are divided (`_half`, `_fifth`, `_quarter`).
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch.nn as nn
from torch import Tensor

from .base import Classifier


class LeNet5(Classifier):
    """Two 5x5 convolutions without padding, each with ReLU and max-pool; hidden layers; the logits.

    convs, hidden: widths of the convolutions and of the hidden layers. (6, 16) and (120, 84) are those of LeCun et al. 1998 (Proc. IEEE
    86, 2278), with ReLU and max-pool as in today's repetitions; at 32 x 32 pixels its third convolution is the first hidden layer.
    ReLU comes after the max-pool: the same values and gradients as before it, to the last bit, with a quarter of its work.
    """

    IN_ORDER = True

    def __init__(
        self, classes: int, channels: int, size: int, divisor: int, convs: tuple[int, int] = (20, 50), hidden: tuple[int, ...] = (200,)
    ) -> None:
        super().__init__()
        a, b = (width // divisor for width in convs)
        side = ((size - 4) // 2 - 4) // 2  # 28 -> 24 -> 12 -> 8 -> 4
        self.convs = nn.Sequential(*self.stage(channels, a), *self.stage(a, b), nn.Flatten())
        widths = [b * side * side, *(width // divisor for width in hidden)]
        self.hidden = nn.Sequential(*(layer for m, n in pairwise(widths) for layer in (nn.Linear(m, n), nn.ReLU())))
        self.fc = nn.Linear(widths[-1], classes)

    @staticmethod
    def stage(cin: int, cout: int) -> tuple[nn.Module, ...]:
        """Returns the layers of one convolution."""
        return nn.Conv2d(cin, cout, 5), nn.MaxPool2d(2), nn.ReLU(inplace=True)

    def embed(self, x: Tensor) -> Tensor:
        return self.hidden(self.convs(x))  # (B, hidden[-1] // divisor)


class AlexNet(Classifier):
    """Five 3x3 convolutions with batch norm, the first with stride 2; two hidden layers, each with dropout and then batch norm."""

    IN_ORDER = True

    def __init__(self, classes: int, channels: int, size: int, divisor: int) -> None:
        super().__init__()
        widths, hidden = [w // divisor for w in (64, 192, 384, 256, 256)], 4096 // divisor
        layers, cin = [], channels
        for i, width in enumerate(widths):
            layers += [nn.Conv2d(cin, width, 3, 1 if i else 2, 1), nn.BatchNorm2d(width)]
            layers += [nn.MaxPool2d(2), nn.ReLU(inplace=True)] if i in (0, 1, 4) else [nn.ReLU(inplace=True)]
            cin = width
        side = (size + 1) // 2 // 8  # 32 -> 16 -> 8 -> 4 -> 2
        self.convs = nn.Sequential(*layers, nn.Flatten())
        self.hidden = nn.Sequential(*self.block(cin * side * side, hidden), *self.block(hidden, hidden))
        self.fc = nn.Linear(hidden, classes)

    @staticmethod
    def block(cin: int, cout: int) -> tuple[nn.Module, ...]:
        """Returns the layers of one hidden layer."""
        return nn.Linear(cin, cout), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(cout)

    def embed(self, x: Tensor) -> Tensor:
        return self.hidden(self.convs(x))  # (B, 4096 // divisor)


def sized(family: type[LeNet5 | AlexNet], divisor: int, **widths: Any) -> Callable[[int, int, int], Classifier]:
    """Returns a function of (classes, channels, size) that makes this family with its widths divided."""
    return lambda classes, channels, size: family(classes, channels, size, divisor, **widths)


MODELS = {"LeNet5" + tail: sized(LeNet5, divisor) for tail, divisor in {"": 1, "_half": 2, "_fifth": 5}.items()}
MODELS |= {"LeNet5_1998" + tail: sized(LeNet5, divisor, convs=(6, 16), hidden=(120, 84)) for tail, divisor in {"": 1, "_half": 2}.items()}
MODELS |= {"AlexNet" + tail: sized(AlexNet, divisor) for tail, divisor in {"": 1, "_half": 2, "_quarter": 4}.items()}
