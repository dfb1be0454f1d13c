"""Readers of built-in data sets: `read(folder, train)` gives (images uint8 (N, C, H, W), labels (N,), class names if it knows them), or
a Listing of picture files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor

from ..cli import UsageError
from ..utils import check_regular
from .files import check_cifar, find_idx, is_there, read_idx_pair, read_mat, read_usps, refuse
from .images import split
from .listing import Listing, class_listing, class_of, in_order, listing_of_files, scan


def digits(folder: str, train: bool) -> tuple[Tensor, Tensor]:
    """The 1,797 handwritten digits of scikit-learn (UCI optdigits, 8 x 8, 17 grey levels): 50 of each class are the test set."""
    from sklearn.datasets import load_digits

    content = load_digits()
    x = torch.tensor(content.images * (255 / 16)).round().to(torch.uint8)[:, None]
    y = torch.tensor(content.target)
    test, rest = split(y, 50, seed=0)
    chosen = rest if train else test
    return x[chosen], y[chosen]


def torchvision_set(name: str) -> Callable:
    """A reader for a torchvision data set that holds all its images in memory: CIFAR10, CIFAR100."""

    def read(folder, train):
        check_cifar(folder, name)
        content = getattr(torchvision.datasets, name)(folder, download=True, train=train)
        return in_one_layout(content)

    return read


def in_one_layout(content: object) -> tuple[Tensor, Tensor, list[str]]:
    """(images uint8 (N, C, H, W), labels (N,), class names) of a torchvision data set: grey, channels last or channels first."""
    x = torch.as_tensor(np.asarray(content.data))
    y = torch.as_tensor(np.asarray(getattr(content, "targets", getattr(content, "labels", None))), dtype=torch.long)
    x = x[:, None] if x.dim() == 3 else x.permute(0, 3, 1, 2) if x.shape[3] == 3 else x
    return x, y, list(getattr(content, "classes", []))


def idx_set(name: str) -> Callable:
    """A reader for MNIST, FashionMNIST or KMNIST: the idx files that are there, or torchvision's download."""

    def read(folder, train):
        kind, part = getattr(torchvision.datasets, name), "train" if train else "t10k"
        stems = [f"{part}-{what}-ubyte" for what in ("images-idx3", "labels-idx1")]
        if None in [find_idx(folder, name, stem) for stem in stems]:  # looks at both before a download writes to one
            kind(folder, download=True)
        images, labels = (find_idx(folder, name, stem) for stem in stems)
        return *read_idx_pair(images, labels, len(kind.classes)), list(kind.classes)

    return read


def usps(folder: str, train: bool) -> tuple[Tensor, Tensor]:
    """USPS in LIBSVM's format: usps.bz2 and usps.t.bz2, downloaded where they are not there."""
    name = "usps.bz2" if train else "usps.t.bz2"
    path = next((p for p in (Path(folder) / name, Path(folder) / "USPS" / name) if is_there(p)), None)
    if path is None:
        torchvision.datasets.USPS(folder, download=True, train=train)
        path = Path(folder) / name
    return read_usps(path)


def svhn(folder: str, train: bool) -> tuple[Tensor, Tensor]:
    """SVHN's cropped digits (Netzer et al. 2011): train_32x32.mat and test_32x32.mat, downloaded where they are not there."""
    part = "train" if train else "test"
    found = (p / f"{part}_32x32.mat" for p in (Path(folder), Path(folder) / "SVHN"))
    path = next((p for p in found if is_there(p)), None)
    if path is None:
        torchvision.datasets.SVHN(folder, split=part, download=True)
        path = Path(folder) / f"{part}_32x32.mat"
    return read_mat(path)


def syndigits(folder: str, train: bool) -> tuple[Tensor, Tensor]:
    """Synthetic Digits (Ganin & Lempitsky 2015) in its authors' two files, of SVHN's layout."""
    path = Path(folder) / "SynDigits" / f"synth_{'train' if train else 'test'}_32x32.mat"
    check_regular(path)
    return read_mat(path)


def tiny_imagenet(folder: str, train: bool) -> Listing:
    """tiny-imagenet-200 as it is distributed: val/ is one folder of images and a list of their classes."""
    root = Path(folder) / "tiny-imagenet-200"
    tree = scan(root / "train")
    classes = in_order({class_of(f) for f in tree.files} - {None})
    if not classes:
        raise UsageError(f"{root / 'train'} contains no class folders with images; unpack tiny-imagenet-200.zip again")
    if train:
        return class_listing(root / "train", tree, classes, root)
    label, path = {c: k for k, c in enumerate(classes)}, root / "val" / "val_annotations.txt"
    check_regular(path)
    rows = [line.split("\t")[:2] for line in path.read_text(errors="replace").splitlines() if line.strip()]
    if not rows or any(len(row) < 2 for row in rows):
        refuse(path, "has lines without a tab", "lines of image name, tab, class")
    if unknown := sorted({wnid for _, wnid in rows} - set(classes)):
        refuse(path, f"names {len(unknown)} unknown classes: {', '.join(unknown[:5])}", f"the {len(classes)} classes of train/")
    return listing_of_files(root, [root / "val" / "images" / name for name, _ in rows], [label[wnid] for _, wnid in rows], classes)


def imagenet(folder: str, train: bool) -> Listing:
    """ILSVRC2012 as torchvision lays it out: one folder per class. The classes are those of train/."""
    root = Path(folder) / "imagenet"
    tree = scan(root / "train", deep=train)
    classes = in_order({class_of(f) for f in tree.files} if train else tree.folders)
    if train:
        return class_listing(root / "train", tree, classes, root)
    tree = scan(root / "val")
    found = in_order({class_of(f) for f in tree.files} - {None})
    if new := [c for c in found if c not in classes]:
        raise UsageError(f"{root / 'val'} has {len(new)} classes that train/ lacks: {', '.join(new[:5])}; name the folders alike")
    if not found:
        raise UsageError(f"{root / 'val'} has no class folders; sort its images into one folder per class (torchvision's layout)")
    return class_listing(root / "val", tree, classes, root)


def few(read: Callable) -> dict[str, Callable]:
    """The readers of a few-shot set: its base classes are an ordinary data set, whose test images are those held out of them."""
    return {"read": lambda folder, train: read(folder, "base" if train else "held"), "novel": read}


def idx_files(name: str) -> str:
    """The files of an MNIST-like data set, in words."""
    return f"{name}/raw/train-images-idx3-ubyte.gz and the three beside it (train-labels-idx1, t10k-images-idx3, t10k-labels-idx1)"
