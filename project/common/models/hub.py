"""Image classifiers of the package transformers, from a folder on this machine: `hf:PATH`. Teachers only."""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch.nn as nn
from torch import Tensor

from ..cli import UsageError


def optional_package(name: str, teacher: str) -> ModuleType:
    """A package that not everyone has. UsageError, with the command that installs it, where it is missing; teacher: what needs it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UsageError(f"{teacher} needs the package {name}, which is not installed; run: pip install {name}") from None


def hub_file(name: str) -> Path:
    """The file of the weights of `hf:PATH`. UsageError where there is none."""
    folder = Path(name[3:]).expanduser()
    found = [p for p in (folder / "model.safetensors", folder / "config.json") if p.is_file()]
    if len(found) < 2:
        what = "model.safetensors and config.json, as save_pretrained() writes them"
        raise UsageError(f"{name}: the folder {folder} does not hold {what}; models are not downloaded")
    return found[0]


def hub_normalisation(name: str) -> tuple[list[float], list[float]] | None:
    """(mean, std) of each channel that the folder's preprocessor_config.json states; None where it states none."""
    try:
        about = json.loads((hub_file(name).parent / "preprocessor_config.json").read_text(encoding="utf-8"))
        return (about["image_mean"], about["image_std"]) if about.get("do_normalize", True) else ([0.0], [1.0])
    except (OSError, ValueError, KeyError, AttributeError):
        return None


class HubNet(nn.Module):
    """Logits (N, K) of a transformers classifier, in the order of `classes` where its labels have these names."""

    def __init__(self, name: str, classes: Sequence[str], shape: tuple[int, int, int]):
        super().__init__()
        path = hub_file(name).parent
        try:
            self.net = optional_package("transformers", "hf:PATH").AutoModelForImageClassification.from_pretrained(
                path, local_files_only=True, use_safetensors=True
            )
        except UsageError:
            raise
        except Exception as e:  # it raises what it likes
            raise UsageError(f"{name} cannot be read by transformers: {type(e).__name__}: {' '.join(str(e).split())[:200]}") from None
        config = self.net.config
        if config.num_labels != len(classes):
            raise UsageError(f"{name} has {config.num_labels} classes, not {len(classes)}")
        channels, size = getattr(config, "num_channels", shape[0]), getattr(config, "image_size", shape[1])
        if channels != shape[0]:
            raise UsageError(f"{name} takes images with {channels} channels, the run's have {shape[0]}; give --channels {channels}")
        if size != shape[1] and hasattr(config, "patch_size"):  # of a fixed number of patches
            raise UsageError(f"{name} takes images of {size} pixels, the run's have {shape[1]}; give --img_size {size}")
        names = [config.id2label[k] for k in range(config.num_labels)]
        self.order = [names.index(c) for c in classes] if sorted(names) == sorted(classes) else None

    def forward(self, x: Tensor, feature: bool = False) -> Tensor:
        """See the class. UsageError for features, which a method asks for that looks inside."""
        if feature:
            raise UsageError("a teacher of transformers shows no features; use a method that needs none, without --response inside")
        logits = self.net(pixel_values=x).logits
        return logits if self.order is None else logits[:, self.order]
