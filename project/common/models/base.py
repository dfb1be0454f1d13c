"""What every family shares: logits, the penultimate feature, and the initialisation of the CIFAR literature."""

import torch.nn as nn


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
