"""Few-shot encoders as classifiers: ResNet-12 of Meta-Baseline (https://arxiv.org/abs/2003.04390), deeper and wider ones, ConvNet-4."""

import re
from collections.abc import Callable, Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .base import Classifier, conv_bn, fan_out


class Block(nn.Module):
    """Residual block of three 3x3 convolutions with LeakyReLU(0.1).

    enter: whether the block is the first of its stage; it then has a projection shortcut and halves the size.
    """

    def __init__(self, cin: int, width: int, enter: bool) -> None:
        super().__init__()
        for i in (1, 2, 3):
            conv, bn = conv_bn(cin if i == 1 else width, width)
            setattr(self, f"conv{i}", conv)
            setattr(self, f"bn{i}", bn)
        self.downsample = nn.Sequential(*conv_bn(cin, width, 1)) if enter else nn.Identity()
        self.enter, self.pools = enter, True

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.bn1(self.conv1(x)), 0.1)
        y = F.leaky_relu(self.bn2(self.conv2(y)), 0.1)
        y = F.leaky_relu(self.bn3(self.conv3(y)) + self.downsample(x), 0.1)
        return F.max_pool2d(y, 2) if self.enter and self.pools else y


class Bottle(Classifier):
    """ResNet without stem: four stages that each halve the size (80 pixels become 5), then a global average pool.

    The name `bottle` comes from the released code; the network has no bottlenecks. depths: number of blocks per stage.
    """

    def __init__(self, classes: int, channels: int, size: int, depths: Sequence[int], widths: Sequence[int] = (64, 128, 256, 512)) -> None:
        super().__init__()
        cin = channels
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True), 1):
            setattr(self, f"layer{i}", nn.Sequential(*(Block(width if k else cin, width, k == 0) for k in range(depth))))
            cin = width
        self.fc = nn.Linear(cin, classes)

    def init_fan_out(self) -> None:
        fan_out(self)

    def embed(self, x: Tensor) -> Tensor:
        for i in (1, 2, 3, 4):
            x = getattr(self, f"layer{i}")(x)
        return x.mean((2, 3))  # (B, F)

    @torch.no_grad()
    def misfit(self, x: Tensor) -> str:
        """Returns a reason if the weights are those of the ResNet-12 of GDA's released code, otherwise an empty string.

        That network has the same parameter names but does not pool, so that its batch-norm statistics fit the maps without pooling.
        """
        off = {pools: self.distance_to_statistics(x, pools) for pools in (True, False)}
        if off[True] <= 2 * off[False]:
            return ""
        return (
            "its batch-norm statistics are those of the network without pooling "
            f"({off[False]:.2f} standard deviations off without pooling, {off[True]:.2f} with)"
        )

    def distance_to_statistics(self, x: Tensor, pools: bool) -> float:
        """Returns the mean distance of the maps' means from the running means of batch norm, in running standard deviations.

        It uses the last two stages. x: normalised images (N, C, H, W). pools: whether the blocks pool.
        """
        blocks = [m for m in self.modules() if isinstance(m, Block)]
        norms, off = [m for s in (self.layer3, self.layer4) for m in s.modules() if isinstance(m, nn.BatchNorm2d)], []

        def compare(norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
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

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the state dict with this model's names, also from published files of ResNet-12, whose stages are single blocks."""
        return super().adapt({re.sub(r"^(encoder\.)?(layer\d\.)([a-z])", r"\g<1>\g<2>0.\3", k): v for k, v in state.items()})


class ConvNet4(Classifier):
    """Four blocks of 3x3 convolution (64 channels), batch norm, ReLU and max-pool; the flattened last map is the feature."""

    def __init__(self, classes: int, channels: int, size: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Sequential(*conv_bn(64 if i else channels, 64, bias=True), nn.ReLU(), nn.MaxPool2d(2)) for i in range(4))
        )
        self.fc = nn.Linear(64 * (size // 16) ** 2, classes)

    def embed(self, x: Tensor) -> Tensor:
        return self.encoder(x).flatten(1)  # (B, F)


def bottle(*depths: int, **options: Sequence[int]) -> Callable[[int, int, int], Classifier]:
    """Returns a function of (classes, channels, size) that makes a `Bottle` of these depths."""
    return lambda classes, channels, size: Bottle(classes, channels, size, depths, **options)


MODELS = {"ResNet12": bottle(1, 1, 1, 1), "ResNet12_wide": bottle(1, 1, 1, 1, widths=(64, 160, 320, 640))}
MODELS |= {"ResNet12_bottle": MODELS["ResNet12"], "ResNet18_bottle": bottle(1, 2, 2, 1)}
MODELS |= {"ResNet36_bottle": bottle(2, 3, 5, 2), "ResNet50_bottle": bottle(3, 4, 6, 3), "ConvNet4": ConvNet4}
