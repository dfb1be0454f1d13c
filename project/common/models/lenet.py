"""LeNet-5 and AlexNet (CIFAR) as in DB3KD (Wang 2021), with their halves, fifth and quarter."""

import torch.nn as nn

from .base import Classifier


class LeNet5(Classifier):
    """Two 5x5 convolutions without padding, each with ReLU and max-pool; a hidden layer; logits."""

    def __init__(self, classes, channels, size, share):
        super().__init__()
        a, b, hidden = 20 // share, 50 // share, 200 // share
        side = ((size - 4) // 2 - 4) // 2  # 28 -> 24 -> 12 -> 8 -> 4
        self.convs = nn.Sequential(*self.stage(channels, a), *self.stage(a, b), nn.Flatten())
        self.hidden = nn.Sequential(nn.Linear(b * side * side, hidden), nn.ReLU())
        self.fc = nn.Linear(hidden, classes)

    @staticmethod
    def stage(cin, cout):
        return nn.Conv2d(cin, cout, 5), nn.ReLU(), nn.MaxPool2d(2)

    def embed(self, x):
        return self.hidden(self.convs(x))  # (B, 200 // share)


class AlexNet(Classifier):
    """Five 3x3 convolutions with batch norm, the first of stride 2; two hidden layers with batch norm after dropout."""

    def __init__(self, classes, channels, size, share):
        super().__init__()
        widths, hidden = [w // share for w in (64, 192, 384, 256, 256)], 4096 // share
        layers, cin = [], channels
        for i, width in enumerate(widths):
            layers += [nn.Conv2d(cin, width, 3, 1 if i else 2, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            layers += [nn.MaxPool2d(2)] if i in (0, 1, 4) else []
            cin = width
        side = (size + 1) // 2 // 8  # 32 -> 16 -> 8 -> 4 -> 2
        self.convs = nn.Sequential(*layers, nn.Flatten())
        self.hidden = nn.Sequential(*self.block(cin * side * side, hidden), *self.block(hidden, hidden))
        self.fc = nn.Linear(hidden, classes)

    @staticmethod
    def block(cin, cout):
        return nn.Linear(cin, cout), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(cout)

    def embed(self, x):
        return self.hidden(self.convs(x))  # (B, 4096 // share)


def sized(family, share):
    return lambda classes, channels, size: family(classes, channels, size, share)


MODELS = {"LeNet5" + tail: sized(LeNet5, share) for tail, share in {"": 1, "_half": 2, "_fifth": 5}.items()}
MODELS |= {"AlexNet" + tail: sized(AlexNet, share) for tail, share in {"": 1, "_half": 2, "_quarter": 4}.items()}
