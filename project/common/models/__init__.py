"""MODELS by name, and `build`: a classifier for any number of classes, channels and any image size that its family allows."""

import warnings

import torch
import torch.nn as nn
import torchvision

from ..utils import UsageError, lookup, matching
from . import fewshot, lenet, mobilenet, resnet, shufflenet, vgg, wrn

MODELS = {name: make for family in (resnet, wrn, vgg, mobilenet, shufflenet, lenet, fewshot) for name, make in family.MODELS.items()}
SIZES = (8, 16, 28, 32, 64, 75, 128, 224)  # tried in turn when a size is too small, to say which one would do


class Torchvision(nn.Module):
    """Any torchvision classifier, unchanged but for its first convolution where the images have not three channels."""

    def __init__(self, name, classes, channels, size):
        super().__init__()
        options = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
        options |= {"image_size": size} if name.startswith("vit_") else {}
        self.net = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
        self.last = [m for m in self.net.modules() if isinstance(m, (nn.Linear, nn.Conv2d)) and classes in m.weight.shape[:1]][-1]
        if channels != 3:
            path, first = next((n, m) for n, m in self.net.named_modules() if isinstance(m, nn.Conv2d))
            parent, _, child = path.rpartition(".")
            keys = ("out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
            conv = nn.Conv2d(channels, **{k: getattr(first, k) for k in keys}, bias=first.bias is not None)
            setattr(self.net.get_submodule(parent), child, conv)

    def forward(self, x, feature=False):
        """Logits (B, K); with `feature=True` also the last layer's input, (B, F)."""
        if not feature:
            return self.net(x)
        seen = []
        with self.last.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0])):
            return self.net(x), seen[0].flatten(2).mean(2) if seen[0].dim() > 2 else seen[0]


def torchvision_names():
    return torchvision.models.list_models(module=torchvision.models)


def canonical(name):
    """The name as MODELS spells it; raises UsageError with the list of what there is."""
    if name.lower().startswith("torchvision:"):
        inner = name.partition(":")[2]
        found = matching(inner, torchvision_names())
        if not found:
            raise UsageError(f"torchvision has no classifier {inner!r}; it has: {', '.join(torchvision_names())}")
        return f"torchvision:{found}"
    return lookup(name, MODELS, "model", "torchvision:NAME")


def build(name, classes, shape, device="cpu"):
    """A new classifier in train mode.

    name: a key of MODELS (case, `-` and `_` do not matter) or `torchvision:NAME`; classes: K; shape: (C, H, W) of an image, H = W.
    Raises UsageError for an unknown name, and for an image that the family cannot take (with the smallest size it can).
    """
    name, (channels, size, _) = canonical(name), shape
    if not takes(name, classes, channels, size):
        least = next((s for s in SIZES if s > size and takes(name, classes, channels, s)), None)
        hint = f"; it works with --img_size {least}" if least else ""
        raise UsageError(f"{name} cannot take {channels}x{size}x{size} images{hint}")
    return make(name, classes, channels, size).to(device)


def make(name, classes, channels, size):
    if name.startswith("torchvision:"):
        return Torchvision(name.partition(":")[2], classes, channels, size)
    return MODELS[name](classes, channels, size)


def takes(name, classes, channels, size):
    """Whether a forward pass of two images of this size goes through; on the meta device, so that nothing is computed."""
    try:
        with torch.device("meta"), torch.no_grad(), warnings.catch_warnings(action="ignore"):  # of layers without weights
            return make(name, classes, channels, size)(torch.empty(2, channels, size, size)).shape == (2, classes)
    except (RuntimeError, ValueError, ZeroDivisionError):
        return False


def parameters(net):
    return sum(p.numel() for p in net.parameters())
