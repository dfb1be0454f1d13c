"""What every family shares: logits, the penultimate feature, and the initialisation of the CIFAR literature."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Cosine(nn.Module):
    """A head: the cosine of a feature (B, F) with each class's prototype, times a learned temperature: (B, K)."""

    def __init__(self, features, classes):
        super().__init__()
        self.proto = nn.Parameter(torch.empty(classes, features))
        self.temp = nn.Parameter(torch.tensor(10.0))
        nn.init.kaiming_uniform_(self.proto, a=5**0.5)

    def forward(self, f):
        return self.temp * F.normalize(f, dim=1) @ F.normalize(self.proto, dim=1).T


class Classifier(nn.Module):
    """A family writes `embed`: images (B, C, H, W) -> penultimate feature (B, F), and names its last linear layer in `HEAD`.

    The layers' names are those of the families' published CIFAR checkpoints, so that such a file loads as it is.
    """

    HEAD = "fc"

    def forward(self, x, feature=False):
        """Logits (B, K); with `feature=True` the pair of logits (B, K) and penultimate feature (B, F)."""
        f = self.embed(x)  # (B, F)
        s = getattr(self, self.HEAD)(f)  # (B, K)
        return (s, f) if feature else s

    def misfit(self, x: torch.Tensor) -> str:
        """Why weights that loaded without an error are of another net, empty where they are not; x: images (N, C, H, W) as it sees them."""
        return ""

    def cosine(self):
        """Takes a head of cosines instead of its last linear layer."""
        old = getattr(self, self.HEAD)
        setattr(self, self.HEAD, Cosine(old.in_features, old.out_features).to(old.weight.device))

    def adapt(self, state):
        """`state` with this net's names, from what Meta-Baseline's code calls encoder.* and classifier.* too; its head becomes the state's.

        A state that has a temperature and no head (of a net trained on episodes) leaves the head as it is.
        """
        mine = self.state_dict()
        if any(k.startswith("encoder.") and k not in mine for k in state):
            names = {"classifier.linear.": f"{self.HEAD}.", "classifier.": f"{self.HEAD}.", "encoder.": ""}
            state = {next((new + k[len(old) :] for old, new in names.items() if k.startswith(old)), k): v for k, v in state.items()}
        if state.keys() - mine.keys() == {"temp"}:
            state = {k: v for k, v in mine.items() if k.startswith(f"{self.HEAD}.")} | {k: v for k, v in state.items() if k != "temp"}
        if f"{self.HEAD}.proto" in state and not isinstance(getattr(self, self.HEAD), Cosine):
            self.cosine()
        return state


def init_fan_out(net, linear_std=None):
    """N(0, 2 / (k^2 * out)) for convolutions (He et al. 2015, fan-out), zero biases; N(0, linear_std^2) for linear layers if given."""
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
            if m.bias is not None:
                nn.init.zeros_(m.bias)
        elif isinstance(m, nn.Linear) and linear_std:
            nn.init.normal_(m.weight, 0, linear_std)
            nn.init.zeros_(m.bias)


def conv_bn(cin, cout, k=3, stride=1, groups=1, bias=False):
    """The two layers that most families repeat, k x k convolution with "same" padding and batch norm, as a list."""
    return [nn.Conv2d(cin, cout, k, stride, k // 2, groups=groups, bias=bias), nn.BatchNorm2d(cout)]
