"""Readers of data sets: `read(folder, train)` gives (images uint8 (N, C, H, W), labels (N,), class names if it knows them), or an
ImageFolder."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor
from torchvision.datasets import ImageFolder

from ..utils import UsageError
from .images import split


def digits(folder: str, train: bool) -> tuple[Tensor, Tensor]:
    """The 1,797 handwritten digits of scikit-learn (UCI optdigits, 8 x 8, 17 grey levels): 50 of each class are the test set."""
    from sklearn.datasets import load_digits

    content = load_digits()
    x = torch.tensor(content.images * (255 / 16)).round().to(torch.uint8)[:, None]
    y = torch.tensor(content.target)
    test, rest = split(y, 50, seed=0)
    chosen = rest if train else test
    return x[chosen], y[chosen]


def torchvision_set(name: str, **parts: tuple[str, str]) -> Callable:
    """A reader for a torchvision data set that holds all its images in memory."""

    def read(folder, train):
        options = {k: v[0 if train else 1] for k, v in parts.items()} or {"train": train}
        content = getattr(torchvision.datasets, name)(folder, download=True, **options)
        x = torch.as_tensor(np.asarray(content.data))
        y = torch.as_tensor(np.asarray(getattr(content, "targets", getattr(content, "labels", None))), dtype=torch.long)
        x = x[:, None] if x.dim() == 3 else x.permute(0, 3, 1, 2) if x.shape[3] == 3 else x  # grey, channels last, channels first
        return x, y, list(getattr(content, "classes", []))

    return read


def syndigits(folder: str, train: bool) -> tuple[Tensor, Tensor]:
    """Synthetic Digits (Ganin & Lempitsky 2015) in its authors' two files, of SVHN's layout."""
    from scipy.io import loadmat

    with open(Path(folder) / "SynDigits" / f"synth_{'train' if train else 'test'}_32x32.mat", "rb") as f:
        content = loadmat(f)
    x = torch.as_tensor(content["X"]).permute(3, 2, 0, 1).contiguous()  # (32, 32, 3, N)
    return x, torch.as_tensor(content["y"].astype(np.int64)).flatten() % 10


def tiny_imagenet(folder: str, train: bool) -> ImageFolder:
    """tiny-imagenet-200 as it is distributed: val/ is one folder of images and a list of their classes."""
    root = Path(folder) / "tiny-imagenet-200"
    content = ImageFolder(root / "train")
    if not train:
        rows = [line.split("\t")[:2] for line in (root / "val" / "val_annotations.txt").read_text().splitlines()]
        content.samples = [(str(root / "val" / "images" / name), content.class_to_idx[wnid]) for name, wnid in rows]
    return content


def imagenet(folder: str, train: bool) -> ImageFolder:
    """ILSVRC2012 as torchvision lays it out: a folder a class."""
    return ImageFolder(Path(folder) / "imagenet" / ("train" if train else "val"))


def own_folder(root: str) -> Callable:
    """The user's images: PATH/train and PATH/test (or val) with a folder a class; or a folder a class, a fifth kept for testing."""

    def read(folder, train):
        path = Path(root).expanduser()
        if (path / "train").is_dir():
            other = next((path / n for n in ("test", "val", "valid", "validation") if (path / n).is_dir()), None)
            if other is None:
                raise UsageError(f"{path} has train/ but neither test/ nor val/; add one, each with a folder a class")
            first, second = ImageFolder(path / "train"), ImageFolder(other)
            if first.classes != second.classes:
                raise UsageError(f"{path}: the classes of train/ and {other.name}/ differ: {len(first.classes)} and {len(second.classes)}")
            return first if train else second
        content = ImageFolder(path)
        test, rest = split(torch.tensor(content.targets), 0.2, seed=0)
        content.samples = [content.samples[i] for i in (rest if train else test)]
        return content

    return read


def few(read: Callable) -> dict[str, Callable]:
    """The readers of a few-shot set: its base classes are an ordinary data set, whose test images are those held out of them."""
    return {"read": lambda folder, train: read(folder, "base" if train else "held"), "novel": read}


def idx_files(name: str) -> str:
    """The files of an MNIST-like data set, in words."""
    return f"{name}/raw/train-images-idx3-ubyte.gz and the three beside it (train-labels-idx1, t10k-images-idx3, t10k-labels-idx1)"
