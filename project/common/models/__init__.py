"""Classifiers by name: `build` makes one for a number of classes, a number of channels and an image size."""

import functools
import warnings

import torch
import torch.nn as nn

from ..cli import UsageError, allocating
from ..utils import lookup
from . import fewshot, lenet, mobilenet, resnet, shufflenet, vgg, wrn
from .base import Classifier
from .library import canonical_library_name, make_library_net

MODELS = {name: make for family in (resnet, wrn, vgg, mobilenet, shufflenet, lenet, fewshot) for name, make in family.MODELS.items()}
SIZES = (8, 16, 28, 32, 64, 75, 128, 224)  # sizes that the error message for too small images tries in order


def canonical(name: str) -> str:
    """Returns the name as MODELS or its library spells it (case, `-` and `_` do not matter).

    A URL, of a teacher's server, is its own name. Raises UsageError, with all allowed names, for an unknown one.
    """
    return canonical_library_name(name) or lookup(name, MODELS, "model", "torchvision:NAME, timm:NAME, file.py:Class")


def build(
    name: str, classes: int, shape: tuple[int, int, int], device: torch.device | str = "cpu", weights_init: str = "torch"
) -> nn.Module:
    """Returns a new classifier in training mode, with random weights.

    name: as for `canonical`. classes: K. shape: (C, H, W) of the images, H = W. weights_init: initial weights, PyTorch's defaults
    (`torch`) or those of mdistiller's code (`fan_out`); networks of libraries and of the user have their own.
    Raises UsageError for an unknown name, and for images that the model cannot process (with the smallest larger size that works).
    """
    name, (channels, size, _) = canonical(name), shape
    check_fit(name, classes, channels, size)
    with allocating(f"the network {name} for {channels}x{size}x{size} images", "--img_size", "take a smaller network"):
        net = make(name, classes, channels, size)
        if weights_init == "fan_out" and isinstance(net, Classifier):
            net.init_fan_out()
        return net.to(device)


def check_fit(name: str, classes: int, channels: int, size: int) -> None:
    """Raises UsageError if the model with the canonical name `name` cannot process images (channels, size, size); see `build`."""
    with allocating(f"the network {name} for {channels}x{size}x{size} images", "--img_size", "take a smaller network"):
        if why := refusal(name, classes, channels, size):
            least = next((s for s in SIZES if s > size and not refusal(name, classes, channels, s)), None)
            hint = f"use --img_size {least}" if least else "use another model"
            raise UsageError(f"{name} cannot take {channels}x{size}x{size} images{why if ':' in name else ''}; {hint}")


def make(name: str, classes: int, channels: int, size: int) -> nn.Module:
    """Returns the model with the canonical name `name` for images (channels, size, size); see `build`."""
    if ":" in name:
        return make_library_net(name, classes, channels, size)
    return MODELS[name](classes, channels, size)


@functools.cache
def refusal(name: str, classes: int, channels: int, size: int) -> str:
    """Returns why the model cannot process images of this size, in brackets; an empty string if it can.

    It tests a forward pass on the meta device, which computes nothing; a foreign model that needs values is tested on the CPU.
    """
    for device in ("meta", "cpu") if ":" in name else ("meta",):
        try:
            with torch.device(device), torch.no_grad(), warnings.catch_warnings(action="ignore"):  # about layers without weights
                logits = make(name, classes, channels, size)(torch.zeros(2, channels, size, size))
            found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            return "" if found == (2, classes) else f" (of 2 images it gives {found}, not logits {(2, classes)})"
        except (UsageError, MemoryError):
            raise
        except (Exception, SystemExit) as e:  # code of libraries and of the user raises what it likes
            why = f" ({type(e).__name__}: {' '.join(str(e).split())[:100]})"
            if "meta" not in str(e).lower():
                break
    return why


def num_parameters(net: nn.Module) -> int:
    """Returns the number of parameters of a network."""
    return sum(p.numel() for p in net.parameters())
