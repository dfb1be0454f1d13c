"""DATASETS by name. A data set is two tensors on the device, uint8 images and labels; one that does not fit is streamed.

Images are resized once. `view` turns uint8 into the floats that a net sees, in [-1, 1] unless the data set's mean and
standard deviation are asked for, and augments whole batches on the device.
"""

import os
import urllib.error
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..utils import RunError, UsageError, lookup
from . import fewshot
from .images import Data, Images, moments, recoloured, resize, zoomed
from .readers import digits, few, idx_files, imagenet, own_folder, syndigits, tiny_imagenet, torchvision_set
from .stream import Stream

__all__ = ["DATASETS", "Data", "Images", "Spec", "load", "novel", "spec_of", "zoomed"]

RESIDENT_BYTES = 4e9  # a folder whose uint8 images need more than this is streamed


@dataclass(frozen=True)
class Spec:
    """One row of DATASETS; `read`: one of readers.py."""

    classes: int
    channels: int
    size: int
    read: Callable
    files: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    novel: Callable | None = None  # few-shot sets: read(folder, "val" or "test") gives images of classes of their own


CIFAR10 = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
CIFAR100 = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DATASETS = {
    "Digits": Spec(10, 1, 8, digits, "nothing: it comes with scikit-learn"),
    "MNIST": Spec(10, 1, 32, torchvision_set("MNIST"), idx_files("MNIST"), (0.1307,), (0.3081,)),
    "FashionMNIST": Spec(10, 1, 32, torchvision_set("FashionMNIST"), idx_files("FashionMNIST")),
    "KMNIST": Spec(10, 1, 32, torchvision_set("KMNIST"), idx_files("KMNIST")),
    "USPS": Spec(10, 1, 32, torchvision_set("USPS"), "usps.bz2 and usps.t.bz2"),
    "SVHN": Spec(10, 3, 32, torchvision_set("SVHN", split=("train", "test")), "train_32x32.mat and test_32x32.mat"),
    "SynDigits": Spec(
        10, 3, 32, syndigits, "SynDigits/synth_train_32x32.mat and SynDigits/synth_test_32x32.mat (no host offers them steadily)"
    ),
    "CIFAR10": Spec(10, 3, 32, torchvision_set("CIFAR10"), "cifar-10-python.tar.gz, or its folder cifar-10-batches-py", *CIFAR10),
    "CIFAR100": Spec(100, 3, 32, torchvision_set("CIFAR100"), "cifar-100-python.tar.gz, or its folder cifar-100-python", *CIFAR100),
    "TinyImageNet": Spec(200, 3, 64, tiny_imagenet, "tiny-imagenet-200/, the unpacked tiny-imagenet-200.zip"),
    "DigitsFS": Spec(64, 1, 16, files="nothing: it comes with scikit-learn", **few(fewshot.digits)),
    "CIFARFS": Spec(
        64, 3, 32, files="cifar-100-python.tar.gz, or its folder cifar-100-python", mean=CIFAR100[0], std=CIFAR100[1], **few(fewshot.cifar)
    ),
    "miniImageNet": Spec(0, 3, 80, files=fewshot.MINI, mean=IMAGENET[0], std=IMAGENET[1], **few(fewshot.mini)),
    "Omniglot": Spec(0, 1, 28, files="omniglot-py/images_background/ and omniglot-py/images_evaluation/", **few(fewshot.omniglot)),
    "ImageNet": Spec(1000, 3, 224, imagenet, "imagenet/train/ and imagenet/val/ with a folder a class each", *IMAGENET),
}


# ---- a data set


def load(
    name: str,
    data_dir: str = "data",
    device: torch.device | str = "cpu",
    img_size: int = 0,
    normalize: str = "half",
    workers: int = -1,
    channels: int = 0,
    classes_without_data: int = 0,
) -> Data:
    """The data set `name` (a key of DATASETS or `folder:PATH`), downloaded into `data_dir` if it is not there.

    img_size: pixels, 0 for the data set's usual size; workers: processes that read a folder, -1 for one a core up to 8;
    channels: 1 makes colour images grey, 3 repeats grey ones, 0 leaves them as they are; classes_without_data: a number of classes, for a
    data set of that many classes and no image, for which nothing is read.
    normalize: `half` (range [-1, 1]) or `dataset` (mean 0, standard deviation 1).
    Raises UsageError for an unknown name or unusable folder, RunError where a download failed.
    """
    name, spec = spec_of(name)
    size, names, crop_from = img_size or spec.size, [], 0
    workers = min(8, os.cpu_count() or 1) if workers < 0 else workers
    if classes_without_data:
        nothing = torch.empty(0, channels or spec.channels, size, size, dtype=torch.uint8, device=device)
        parts = [Images(nothing, torch.empty(0, dtype=torch.long, device=device))] * 2
        spec = replace(spec, classes=classes_without_data)
        if normalize == "dataset" and not spec.mean:
            raise UsageError(f"--normalize dataset: the mean of {name} is not known without its images; use --normalize half")
    else:
        read = [read_part(spec.read, name, spec, Path(data_dir), train, size, device, workers) for train in (True, False)]
        parts, (_, names, crop_from) = [images for images, *_ in read], read[0]
    if channels not in (0, spec.channels):
        parts = [in_channels(p, channels) for p in parts]
        spec = replace(spec, channels=channels, mean=(), std=())
    classes = spec.classes or max(len(set(p.y.tolist())) for p in parts)
    if normalize == "half":
        mean = std = (0.5,) * spec.channels
    elif spec.mean:
        mean, std = spec.mean, spec.std
    else:
        mean, std = moments(parts[0])
    per_channel = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (mean, std))
    return Data(name, classes, (spec.channels, size, size), *parts, *per_channel, names or [str(k) for k in range(classes)], crop_from)


def novel(name: str, which: str, data_dir: str = "data", device: torch.device | str = "cpu", size: int = 0) -> Images:
    """The Images of a few-shot set's `val` or `test` classes, labels from 0; UsageError for a data set that has none."""
    name, spec = spec_of(name)
    if not spec.novel:
        there_are = ", ".join(n for n, s in DATASETS.items() if s.novel)
        raise UsageError(f"{name} keeps no classes for few-shot episodes; these do: {there_are}")
    return read_part(spec.novel, name, spec, Path(data_dir), which, size or spec.size, device, 0)[0]


def spec_of(name: str) -> tuple[str, Spec]:
    """(canonical name, Spec); UsageError for an unknown name."""
    if name.lower().startswith("folder:"):
        path = name.partition(":")[2]
        return f"folder:{path}", Spec(0, 3, 32, own_folder(path), path)
    name = lookup(name, DATASETS, "data set", "folder:PATH")
    return name, DATASETS[name]


def read_part(
    read: Callable, name: str, spec: Spec, data_dir: Path, train: bool | str, size: int, device: torch.device | str, workers: int
) -> tuple[Images, list[str], int]:
    """(Images, class names or none, Data.crop_from) of one part of a data set, which `read(folder, train)` reads."""
    ready = "DigitsFS" if spec.novel else "Digits"
    missing = f"put {spec.files} into {data_dir}/ (--data_dir names another folder); --dataset {ready} needs no download"
    try:
        content = read(str(data_dir), train)
    except FileNotFoundError as e:
        where = f" ({e.filename})" if e.filename else ""
        raise UsageError(f"{name} is not there{where}: {missing if name in DATASETS else e}") from None
    except (urllib.error.URLError, RuntimeError, OSError, EOFError, ValueError, zlib.error) as e:
        raise RunError(f"{name} could not be downloaded or read ({e}): {missing}") from None
    if isinstance(content, tuple):
        x, y, *names = content
        return Images(resize(x.to(device), size), y.to(device)), names[0] if names else [], 0
    y = torch.tensor([label for _, label in content.samples])
    stream = Stream(content.samples, torch.arange(len(y)), size, workers)
    if len(y) * spec.channels * size * size > RESIDENT_BYTES:
        return Images(None, y.to(device), stream), content.classes, stream.resize_to()
    x = torch.cat([x for x, _ in stream.loader(500, shuffle=False, augment="none")])
    return Images(x.to(device), y.to(device)), content.classes, stream.resize_to()


def in_channels(images: Images, channels: int) -> Images:
    """The images with `channels` channels; UsageError where they are streamed."""
    if images.stream:
        raise UsageError("a streamed folder has colour images; use a smaller --img_size, so that it fits into memory")
    return replace(images, x=recoloured(images.x, channels))
