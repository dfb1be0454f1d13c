"""Encoders of few-shot learning, as classifiers: ResNet-12 (as in Meta-Baseline, 2003.04390) and its deeper kin, four convolutions."""

import re

import torch
import torch.nn as nn
import torch.nn.functional as F

from .base import Classifier, conv_bn, init_fan_out


class Block(nn.Module):
    """Three 3x3 convolutions and a shortcut, LeakyReLU(0.1); `enter`: the first of its stage, which projects and halves the size."""

    def __init__(self, cin, width, enter):
        super().__init__()
        for i in (1, 2, 3):
            conv, bn = conv_bn(cin if i == 1 else width, width)
            setattr(self, f"conv{i}", conv)
            setattr(self, f"bn{i}", bn)
        self.downsample = nn.Sequential(*conv_bn(cin, width, 1)) if enter else nn.Identity()
        self.enter, self.pools = enter, True

    def forward(self, x):
        y = F.leaky_relu(self.bn1(self.conv1(x)), 0.1)
        y = F.leaky_relu(self.bn2(self.conv2(y)), 0.1)
        y = F.leaky_relu(self.bn3(self.conv3(y)) + self.downsample(x), 0.1)
        return F.max_pool2d(y, 2) if self.enter and self.pools else y


class Bottle(Classifier):
    """No stem, four stages, global average pool: 80 pixels become 5. («bottle» is its code's name; there are no bottlenecks.)"""

    def __init__(self, classes, channels, size, depths, widths=(64, 128, 256, 512)):
        super().__init__()
        cin = channels
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True), 1):
            setattr(self, f"layer{i}", nn.Sequential(*(Block(width if k else cin, width, k == 0) for k in range(depth))))
            cin = width
        self.fc = nn.Linear(cin, classes)
        init_fan_out(self)

    def embed(self, x):
        for i in (1, 2, 3, 4):
            x = getattr(self, f"layer{i}")(x)
        return x.mean((2, 3))  # (B, F)

    @torch.no_grad()
    def misfit(self, x):
        """GDA's released code has a ResNet-12 with these names that never pools: its batch-norm statistics are those of other maps."""
        off = {pools: self.distance_to_statistics(x, pools) for pools in (True, False)}
        if off[True] <= 2 * off[False]:
            return ""
        return f"it is the net without pooling (batch-norm statistics {off[False]:.2f} off without, {off[True]:.2f} with)"

    def distance_to_statistics(self, x, pools):
        """How far the maps of images x are from what the batch-norm layers of the last two stages know, in standard deviations."""
        blocks = [m for m in self.modules() if isinstance(m, Block)]
        norms, off = [m for s in (self.layer3, self.layer4) for m in s.modules() if isinstance(m, nn.BatchNorm2d)], []

        def compare(norm, inputs):
            mean = inputs[0].mean((0, 2, 3))
            off.append(((mean - norm.running_mean).abs() / (norm.running_var + norm.eps).sqrt()).mean())

        hooks, training = [m.register_forward_pre_hook(compare) for m in norms], self.training
        for b in blocks:
            b.pools = pools
        self.eval()(x)
        for b in blocks:
            b.pools = True
        for hook in hooks:
            hook.remove()
        self.train(training)
        return torch.stack(off).mean().item()

    def adapt(self, state):
        """Also from published files, where ResNet-12's stages are no lists."""
        return super().adapt({re.sub(r"^(encoder\.)?(layer\d\.)([a-z])", r"\g<1>\g<2>0.\3", k): v for k, v in state.items()})


class ConvNet4(Classifier):
    """Four times convolution, batch norm, ReLU, max-pool, 64 channels each; the last map is the feature."""

    def __init__(self, classes, channels, size):
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Sequential(*conv_bn(64 if i else channels, 64, bias=True), nn.ReLU(), nn.MaxPool2d(2)) for i in range(4))
        )
        self.fc = nn.Linear(64 * (size // 16) ** 2, classes)

    def embed(self, x):
        return self.encoder(x).flatten(1)  # (B, F)


def bottle(*depths, **options):
    return lambda classes, channels, size: Bottle(classes, channels, size, depths, **options)


MODELS = {"ResNet12": bottle(1, 1, 1, 1), "ResNet12_wide": bottle(1, 1, 1, 1, widths=(64, 160, 320, 640))}
MODELS |= {"ResNet12_bottle": MODELS["ResNet12"], "ResNet18_bottle": bottle(1, 2, 2, 1)}
MODELS |= {"ResNet36_bottle": bottle(2, 3, 5, 2), "ResNet50_bottle": bottle(3, 4, 6, 3), "ConvNet4": ConvNet4}
