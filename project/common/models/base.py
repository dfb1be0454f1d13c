"""Parts that all families of models share: logits and penultimate features, the cosine head, and the usual initialisation for CIFAR.

The constructors of all models take (classes, channels, size): number of classes K, channels C, and height and width in pixels.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


class Cosine(nn.Module):
    """Cosine head: logits (B, K) are a learned temperature times the cosine of a feature (B, F) and each class's prototype."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.proto = nn.Parameter(torch.empty(classes, features))
        self.temp = nn.Parameter(torch.tensor(10.0))
        nn.init.kaiming_uniform_(self.proto, a=5**0.5)

    def forward(self, f: Tensor) -> Tensor:
        return self.temp * F.normalize(f, dim=1) @ F.normalize(self.proto, dim=1).T


class Classifier(nn.Module):
    """Base class of the families of models.

    A family defines `embed`: images (B, C, H, W) -> penultimate features (B, F), and names its last linear layer in `HEAD`.
    The layers have the names of the family's published CIFAR checkpoints, so that such a file loads unchanged.
    """

    HEAD = "fc"
    IN_ORDER = False  # one sequence of layers: a checkpoint with other names and the same shapes in the same order is of this net

    def embed(self, x: Tensor) -> Tensor:
        """Returns the penultimate features (B, F) of images x (B, C, H, W)."""
        raise NotImplementedError

    def forward(self, x: Tensor, feature: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Returns logits (B, K); with `feature=True` also the penultimate features (B, F)."""
        f = self.embed(x)  # (B, F)
        s = getattr(self, self.HEAD)(f)  # (B, K)
        return (s, f) if feature else s

    def misfit(self, x: Tensor) -> str:
        """Returns why loaded weights belong to another architecture with the same parameters, or an empty string if they do not.

        x: normalised images (N, C, H, W).
        """
        return ""

    def use_cosine_head(self) -> None:
        """Replaces the last linear layer by a new cosine head."""
        old = getattr(self, self.HEAD)
        setattr(self, self.HEAD, Cosine(old.in_features, old.out_features).to(old.weight.device))

    def init_fan_out(self) -> None:
        """Initialises the network as mdistiller's code does. Families that keep PyTorch's defaults there do not override this."""

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns a state dict with this model's parameter names, also from Meta-Baseline's names encoder.* and classifier.*.

        Replaces the head by a cosine head if the state has one. If the state has only a temperature and no head (a model trained on
        episodes), the result contains the model's own head.
        """
        own = self.state_dict()
        if any(k.startswith("encoder.") and k not in own for k in state):
            names = {"classifier.linear.": f"{self.HEAD}.", "classifier.": f"{self.HEAD}.", "encoder.": ""}
            state = {next((new + k[len(old) :] for old, new in names.items() if k.startswith(old)), k): v for k, v in state.items()}
        if state.keys() - own.keys() == {"temp"}:
            state = {k: v for k, v in own.items() if k.startswith(f"{self.HEAD}.")} | {k: v for k, v in state.items() if k != "temp"}
        if f"{self.HEAD}.proto" in state and not isinstance(getattr(self, self.HEAD), Cosine):
            self.use_cosine_head()
        return state


def fan_out(net: nn.Module, linear_std: float | None = None) -> None:
    """Initialises convolutions with N(0, 2 / (k^2 * out)) (He et al. 2015, fan-out) and zero biases.

    linear_std: also initialises linear layers, with N(0, linear_std^2) and zero biases.
    """
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
            if m.bias is not None:
                nn.init.zeros_(m.bias)
        elif isinstance(m, nn.Linear) and linear_std:
            nn.init.normal_(m.weight, 0, linear_std)
            nn.init.zeros_(m.bias)


def conv_bn(cin: int, cout: int, k: int = 3, stride: int = 1, groups: int = 1, bias: bool = False) -> list[nn.Module]:
    """Returns a k x k convolution with "same" padding (k odd) and batch norm, as a list."""
    return [nn.Conv2d(cin, cout, k, stride, k // 2, groups=groups, bias=bias), nn.BatchNorm2d(cout)]
