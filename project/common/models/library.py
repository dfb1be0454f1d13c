"""Nets of other libraries and of the user, with their own parameter names: `torchvision:NAME`, `timm:NAME`, `path/to/file.py:Class`."""

import importlib
import importlib.util
import inspect
import os
from pathlib import Path
from types import ModuleType

import torch.nn as nn
import torchvision
from torch import Tensor

from ..cli import UsageError
from ..utils import check_regular, is_url, matching
from .hub import hub_file, optional_package


class WithFeature:
    """Mixed into another library's net: `net(x, feature=True)` gives logits (B, K) and the input of its last layer (B, F)."""

    def forward(self, x: Tensor, feature: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        if not feature:
            return super().forward(x)
        seen = []
        with self.get_submodule(self.last_layer).register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0])):
            logits = super().forward(x)
        return logits, seen[0].flatten(2).mean(2) if seen[0].dim() > 2 else seen[0]

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state under this net's names, from files that this project saved before November 2026 too."""
        own = state.keys() <= self.state_dict().keys()  # a net of the user may call its layers net or last, too
        if state and not own and all(k.startswith(("net.", "last.")) for k in state):
            return {k.removeprefix("net."): v for k, v in state.items() if k.startswith("net.")}
        return state


def with_feature(net: nn.Module, classes: int) -> nn.Module:
    """`net`, whose forward pass now takes `feature`; its parameters and their names stay as they are."""
    layers = [n for n, m in net.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d)) and classes in m.weight.shape[:1]]
    if not layers:
        raise UsageError(f"{type(net).__name__} has no linear layer or convolution with {classes} outputs, one for each class")
    net.last_layer = layers[-1]
    net.__class__ = type(type(net).__name__, (WithFeature, type(net)), {})
    return net


def torchvision_names() -> list[str]:
    """The names of torchvision's classifiers."""
    return torchvision.models.list_models(module=torchvision.models)


def torchvision_net(name: str, classes: int, channels: int, size: int) -> nn.Module:
    """A new torchvision classifier, with another first convolution where the images have not three channels."""
    options = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    options |= {"image_size": size} if name.startswith("vit_") else {}
    net = with_feature(torchvision.models.get_model(name, weights=None, num_classes=classes, **options), classes)
    if channels != 3:
        path, first = next((n, m) for n, m in net.named_modules() if isinstance(m, nn.Conv2d))
        parent, _, child = path.rpartition(".")
        keys = ("out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
        conv = nn.Conv2d(channels, **{k: getattr(first, k) for k in keys}, bias=first.bias is not None)
        setattr(net.get_submodule(parent), child, conv)
    return net


def timm_library() -> ModuleType:
    """The package timm; UsageError where it is not installed."""
    return optional_package("timm", "timm:NAME")


def timm_net(name: str, classes: int, channels: int, size: int) -> nn.Module:
    """A new timm classifier without pretrained weights."""
    make = timm_library().create_model
    try:
        net = make(name, pretrained=False, num_classes=classes, in_chans=channels, img_size=size)
    except TypeError:  # most convolutional nets take any size
        net = make(name, pretrained=False, num_classes=classes, in_chans=channels)
    return with_feature(net, classes)


def own_net(name: str, classes: int, channels: int, size: int) -> nn.Module:
    """A new net of the user's class, `path/to/file.py:Class`, made as Class(classes, channels, size) or Class(classes=...)."""
    make = own_object(name)
    if not callable(make):
        raise UsageError(f"{name} is of type {type(make).__name__}; give a class or a function that makes a torch.nn.Module")
    net = make(classes, channels, size)
    if not isinstance(net, nn.Module):
        raise UsageError(f"{name} gives {type(net).__name__}, not a torch.nn.Module")
    return net if "feature" in inspect.signature(net.forward).parameters else with_feature(net, classes)


def named_file(name: str) -> Path | None:
    """The file in a net's or a teacher's name: of code (`path/to/file.py:NAME`, `py:path/to/file.py:NAME`), of weights (`hf:PATH`)."""
    kind, file = name.partition(":")[0], name.removeprefix("py:").rpartition(":")[0]
    if kind == "hf":
        return hub_file(name)
    return Path(os.path.expanduser(file)) if file.endswith(".py") and not is_url(name) else None


def own_object(name: str) -> object:
    """What `path/to/file.py:NAME` names; UsageError where the file or the name in it is not there, or the file fails."""
    file, _, attribute = name.rpartition(":")
    path = Path(os.path.expanduser(file))
    if path.suffix == ".py":
        check_regular(path)
    if path.suffix != ".py" or not path.is_file():
        raise UsageError(f"no file {file!r}; give path/to/file.py:NAME")
    spec = importlib.util.spec_from_file_location(f"own_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as e:
        raise UsageError(f"{path} fails: {type(e).__name__}: {' '.join(str(e).split())}") from e
    if not hasattr(module, attribute):
        there = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__]
        raise UsageError(f"{path} has no {attribute or 'name after the colon'}; it has: {', '.join(there) or 'nothing that can be called'}")
    return getattr(module, attribute)


def canonical_library_name(name: str) -> str | None:
    """The name as its library spells it, None for a name of our own models; UsageError where the library has none of this name."""
    kind, _, inner = name.partition(":")
    if is_url(name):
        return name
    if kind == "hf":  # a teacher of transformers
        hub_file(name)
        return name
    if kind == "py":  # a teacher that is a function
        own_object(inner)
        return name
    if kind.endswith(".py"):
        own_object(name)
        return name
    if kind.lower() == "torchvision":
        if found := matching(inner, torchvision_names()):
            return f"torchvision:{found}"
        raise UsageError(f"torchvision has no classifier {inner!r}; it has: {', '.join(torchvision_names())}")
    if kind.lower() == "timm":
        if timm_library().is_model(inner):
            return f"timm:{inner}"
        near = timm_library().list_models(f"*{inner[:6]}*")[:10]
        raise UsageError(f"timm has no model {inner!r}; near names: {', '.join(near) or 'none'}")
    return None


def make_library_net(name: str, classes: int, channels: int, size: int) -> nn.Module:
    """A new net of a name that `canonical_library_name` gave."""
    if name.split(":")[0].endswith(".py"):
        return own_net(name, classes, channels, size)
    kind, _, inner = name.partition(":")
    if kind in ("py", "hf") or is_url(name):
        what = "a server" if is_url(name) else {"py": "a function", "hf": "a model of transformers"}[kind]
        raise UsageError(f"{name} is {what}, which can be a teacher, not a student; for a net of yours give path/to/file.py:Class")
    return (timm_net if kind == "timm" else torchvision_net)(inner, classes, channels, size)
