"""DATASETS by name. A data set is two tensors on the device, uint8 images and labels; one that does not fit is streamed.

Images are resized once. `view` turns uint8 into the floats that a net sees, in [-1, 1] unless the data set's mean and
standard deviation are asked for, and augments whole batches on the device.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch

from ..cli import UsageError, allocating, say
from ..utils import lookup
from . import fewshot
from .folders import is_flat, own_folder, summary, unlabelled_folder
from .images import CROPPING, Data, Images, moments, zoomed
from .readers import digits, few, idx_files, idx_set, imagenet, svhn, syndigits, tiny_imagenet, torchvision_set, usps
from .reading import How, Part, Source, data_folder, read_content, to_parts

__all__ = ["CROPPING", "DATASETS", "Data", "Images", "Spec", "is_flat", "load", "novel", "spec_of", "zoomed"]

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
    "MNIST": Spec(10, 1, 32, idx_set("MNIST"), idx_files("MNIST"), (0.1307,), (0.3081,)),
    "FashionMNIST": Spec(10, 1, 32, idx_set("FashionMNIST"), idx_files("FashionMNIST")),
    "KMNIST": Spec(10, 1, 32, idx_set("KMNIST"), idx_files("KMNIST")),
    "USPS": Spec(10, 1, 32, usps, "usps.bz2 and usps.t.bz2"),
    "SVHN": Spec(10, 3, 32, svhn, "train_32x32.mat and test_32x32.mat"),
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
    labels: bool = True,
    skip_broken: bool = False,
    source_crops: bool = False,
) -> Data:
    """The data set `name` (a key of DATASETS or `folder:PATH`), downloaded into `data_dir` if it is not there.

    img_size: pixels, 0 for the data set's usual size. normalize: `half` (range [-1, 1]) or `dataset` (mean 0, standard deviation 1).
    workers: threads, or processes of a streamed set, that read files; -1 for one per core up to 8.
    channels: 1 makes colour images grey, 3 repeats grey ones, 0 leaves them as they are.
    classes_without_data: a number of classes; the data set then has no images, and nothing is read.
    labels: False reads all images of a `folder:`, which needs no class folders, as training images with label 0.
    skip_broken: leave out image files that cannot be read, and say so, instead of an error.
    source_crops: take random resized crops from the training images before they are resized to a smaller img_size, bilinear.
    Raises UsageError for an unknown name or an unusable folder or file, RunError where a download failed.
    """
    name, spec = spec_of(name)
    size = img_size or spec.size
    with in_memory(name, size):
        return load_spec(
            name, spec, data_dir, how(size, device, workers, skip_broken, source_crops), normalize, channels, classes_without_data, labels
        )


def load_spec(
    name: str, spec: Spec, data_dir: str, how: How, normalize: str, channels: int, classes_without_data: int, labels: bool
) -> Data:
    """See `load`."""
    size, device = how.size, how.device
    if classes_without_data:
        spec = replace(spec, classes=classes_without_data)
        parts = nothing(name, spec, channels, size, device, normalize)
    else:
        parts = read_parts(name, spec, data_dir, how, labels)
    first, (train, test) = parts[0], [p.images for p in parts]
    if labels and not classes_without_data and len(train.y.unique()) < 2:
        raise UsageError(f"{name}: all {len(train):,} training images are of one class ({int(train.y[0])}); bring its files anew")
    if channels not in (0, spec.channels):
        train, test = (images if classes_without_data else images.in_channels(channels) for images in (train, test))
        spec = replace(spec, channels=channels, mean=(), std=())
    classes = spec.classes or len(first.names) or max(len(set(images.y.tolist())) for images in (train, test))
    mean, std = mean_std(spec, normalize, train)
    per_channel = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (mean, std))
    names = first.names or [str(k) for k in range(classes)]
    return Data(name, classes, (spec.channels, size, size), train, test, *per_channel, names, first.crop_from, how.keep_source)


def nothing(name: str, spec: Spec, channels: int, size: int, device: torch.device | str, normalize: str) -> list[Part]:
    """Two parts without images; UsageError where the images would be needed for their mean."""
    if normalize == "dataset" and not spec.mean:
        raise UsageError(f"--normalize dataset: the mean of {name} is not known without its images; use --normalize half")
    x = torch.empty(0, channels or spec.channels, size, size, dtype=torch.uint8, device=device)
    return [Part(Images(x, torch.empty(0, dtype=torch.long, device=device)), [])] * 2


def read_parts(name: str, spec: Spec, data_dir: str, how: How, labels: bool) -> list[Part]:
    """Training and test part of a data set; says in one line what a folder contains."""
    source = source_of(name, spec)
    read = spec.read if labels or not source.own else unlabelled_folder(spec.files)
    folder = data_folder(source, data_dir)
    contents = [read_content(read, source, folder, train) for train in (True, False)]
    parts = to_parts(contents, source, how)
    parts[1].images.source = None  # test images are not augmented
    if source.own:
        say(summary(name, *contents, *(len(p.images) for p in parts)))
    return parts


def mean_std(spec: Spec, normalize: str, train: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel that `normalize` (half, dataset) stands for."""
    if normalize == "half":
        return ((0.5,) * spec.channels,) * 2
    return (spec.mean, spec.std) if spec.mean else moments(train)


def how(size: int, device: torch.device | str, workers: int = -1, skip_broken: bool = False, keep_source: bool = False) -> How:
    """How files are read; workers: -1 for one per core up to 8."""
    return How(size, device, min(8, os.cpu_count() or 1) if workers < 0 else workers, RESIDENT_BYTES, skip_broken, keep_source)


def source_of(name: str, spec: Spec) -> Source:
    """The data set as reading.py knows it."""
    return Source(name, spec.files, bool(spec.novel), name not in DATASETS)


def novel(
    name: str, which: str, data_dir: str = "data", device: torch.device | str = "cpu", size: int = 0, skip_broken: bool = False
) -> Images:
    """The Images of a few-shot set's `val` or `test` classes, labels from 0; UsageError for a data set that has none.

    skip_broken: leave out image files that cannot be read, and say so, instead of an error.
    """
    name, spec = spec_of(name)
    if not spec.novel:
        there_are = ", ".join(n for n, s in DATASETS.items() if s.novel)
        raise UsageError(f"{name} keeps no classes for few-shot episodes; these do: {there_are}")
    source, size = source_of(name, spec), size or spec.size
    with in_memory(name, size):
        content = read_content(spec.novel, source, data_folder(source, data_dir), which)
        return to_parts([content], source, how(size, device, skip_broken=skip_broken))[0].images


def in_memory(name: str, size: int) -> AbstractContextManager:
    """A block that reads the images of a data set."""
    return allocating(f"the images of {name} at {size} x {size} pixels", "--img_size")


def spec_of(name: str) -> tuple[str, Spec]:
    """(canonical name, Spec); UsageError for an unknown name."""
    if name.lower().startswith("folder:"):
        path = name.partition(":")[2]
        return f"folder:{path}", Spec(0, 3, 32, own_folder(path), path)
    name = lookup(name, DATASETS, "data set", "folder:PATH")
    return name, DATASETS[name]
