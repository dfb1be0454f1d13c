"""Checked readers of the files of built-in data sets: idx, .mat, CIFAR's batches, pickles. A bad file is one line that names it.

Each raises UsageError with the file, what was found and what was expected.
"""

import gzip
import hashlib
import pickle
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
import torchvision
from torch import Tensor

from ..cli import UsageError

IMAGES, LABELS = 0x0803, 0x0801  # idx: unsigned bytes in three dimensions, in one


def refuse(path: Path | str, found: str, expected: str) -> NoReturn:
    """Raises UsageError: what a file contains, what was expected instead, or what it looks like if that says more."""
    raise UsageError(f"{path} {looks_like(path) or found}; expected {expected}; replace it, or delete it to download it again")


def looks_like(path: Path | str) -> str:
    """What a file is, if it is a frequent mistake: an empty file, a web page, a pointer of Git LFS. '' otherwise."""
    try:
        with open(path, "rb") as f:
            start = f.read(512).lstrip().lower()
    except OSError as e:
        return f"cannot be opened ({e.strerror})"
    if not start:
        return "is empty"
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "is a web page (HTML), the answer of a server instead of the file"
    return "is a pointer of Git LFS (run: git lfs pull)" if start.startswith(b"version https://git-lfs") else ""


# ---- idx, the format of MNIST


def find_idx(folder: str | Path, name: str, stem: str) -> Path | None:
    """The file of an MNIST-like data set, None if there is none. stem: train-images-idx3-ubyte and the like.

    In folder/NAME/raw, folder/NAME and folder, with and without .gz, also with a dot (train-images.idx3-ubyte).
    UsageError if the file beside other data sets' folders is known to belong to another data set.
    """
    folder = Path(folder)
    for place in (folder / name / "raw", folder / name, folder):
        for spelled in (stem, stem.replace("-idx", ".idx")):
            for path in (place / spelled, place / f"{spelled}.gz"):
                if path.is_file():
                    if place == folder:
                        refuse_foreign(path, name)
                    return path
    return None


# MD5 of unpacked files; those of packed files are in torchvision
UNPACKED = {
    "6bbc9ace898e44ae57da46a324031adb": "MNIST",
    "a25bea736e30d166cdddb491f175f624": "MNIST",
    "2646ac647ad5339dbf082846283269ea": "MNIST",
    "27ae3e4e09519cfbb04c329615203637": "MNIST",
    "f4a8712d7a061bf5bd6d2ca38dc4d50a": "FashionMNIST",
    "9018921c3c673c538a1fc5bad174d6f9": "FashionMNIST",
    "8181f5470baa50b63fa0f6fddb340f0a": "FashionMNIST",
    "15d484375f8d13e6eb1aabb0c3f46965": "FashionMNIST",
}


def refuse_foreign(path: Path, name: str) -> None:
    """UsageError if a file is one of another data set, as torchvision lists it."""
    if (owner := owner_of(path)) not in ("", name):
        raise UsageError(f"{path} is a file of {owner}; put those of {name} into {path.parent / name}/")


def owner_of(path: Path) -> str:
    """The data set that a packed or unpacked idx file belongs to, '' if it is not known."""
    known = {md5: n for n in ("MNIST", "FashionMNIST", "KMNIST") for _, md5 in getattr(torchvision.datasets, n).resources}
    return (known | UNPACKED).get(md5(path), "")


def read_idx(path: Path, magic: int, what: str) -> np.ndarray:
    """The unsigned bytes of an idx file, packed or not, in the shape that its header gives. magic: IMAGES or LABELS."""
    expected = f"an idx file of {what} (header {magic:08x})"
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as e:
        refuse(path, f"is truncated or damaged ({e})", expected)
    dimensions = magic & 255
    header = np.frombuffer(content[: 4 + 4 * dimensions], ">u4") if len(content) >= 4 + 4 * dimensions else np.zeros(1, ">u4")
    if header[0] != magic:
        swapped = "has the bytes of its header in reverse order (little-endian)" if header[0].byteswap() == magic else ""
        refuse(path, swapped or f"begins with {content[:4].hex() or 'nothing'}", expected)
    shape, body = tuple(header[1:].tolist()), len(content) - 4 - 4 * dimensions
    if body != int(np.prod(shape, dtype=np.int64)):
        refuse(path, f"contains {body:,} bytes of {what}", f"{np.prod(shape, dtype=np.int64):,} as its header {shape} says")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape).copy()


def read_idx_pair(images: Path, labels: Path, classes: int) -> tuple[Tensor, Tensor]:
    """(images uint8 (N, 1, H, W), labels (N,) in 0 ... classes - 1) of two idx files."""
    x, y = read_idx(images, IMAGES, "images"), read_idx(labels, LABELS, "labels")
    if len(x) != len(y):
        refuse(labels, f"contains {len(y):,} labels", f"{len(x):,}, one for each image of {images.name}")
    check_labels(labels, y, classes)
    return torch.from_numpy(x)[:, None], torch.from_numpy(y.astype(np.int64))


def check_labels(path: Path, y: np.ndarray, classes: int) -> None:
    """UsageError where a label is not in 0 ... classes - 1, or there is none."""
    if not len(y):
        refuse(path, "contains no labels", "one for each image")
    if y.min() < 0 or y.max() >= classes:
        refuse(path, f"contains labels from {y.min()} to {y.max()}", f"labels from 0 to {classes - 1}")


# ---- Matlab


def read_mat(path: Path) -> tuple[Tensor, Tensor]:
    """(images uint8 (N, 3, H, W), labels (N,) from 0 to 9) of a file in SVHN's layout, where label 10 is the digit 0."""
    from scipy.io import loadmat

    expected = "X, uint8 (H, W, 3, N), and y (N), as SVHN's files"
    try:
        with open(path, "rb") as f:
            content = loadmat(f)
    except FileNotFoundError:
        raise
    except Exception as e:  # SciPy raises what it likes: ValueError, NotImplementedError, zlib.error, TypeError
        refuse(path, f"is not a readable .mat file ({' '.join(str(e).split())[:80]})", expected)
    if lacking := [k for k in ("X", "y") if k not in content]:
        there = ", ".join(k for k in content if not k.startswith("__")) or "nothing"
        refuse(path, f"has no key {' or '.join(lacking)} (it has: {there})", expected)
    x, y = content["X"], content["y"].astype(np.int64).flatten()
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[2] != 3 or x.shape[3] != len(y):
        refuse(path, f"contains X, {x.dtype} {x.shape}, and {len(y)} labels", expected)
    check_labels(path, y % 10 if (y == 10).any() else y, 10)
    return torch.as_tensor(x).permute(3, 2, 0, 1).contiguous(), torch.from_numpy(y) % 10


# ---- CIFAR


def check_cifar(folder: str | Path, name: str) -> None:
    """UsageError that names the damaged or missing files, if CIFAR10 or CIFAR100 is there and damaged. Nothing where it is not there."""
    kind, folder = getattr(torchvision.datasets, name), Path(folder)
    if not hasattr(kind, "train_list"):
        return
    batches, archive = folder / kind.base_folder, folder / kind.filename
    if archive.is_file() and md5(archive) == kind.tgz_md5:
        return  # torchvision unpacks it where a batch is damaged
    files = [*kind.train_list, *kind.test_list, [kind.meta["filename"], kind.meta["md5"]]]
    bad = [batches / f for f, known in files if batches.is_dir() and not ((batches / f).is_file() and md5(batches / f) == known)]
    if bad:
        is_there = bad[0].is_file()
        found = (looks_like(bad[0]) or "is damaged (its MD5 differs)") if is_there else "is missing"
        more = f", and so are {', '.join(p.name for p in bad[1:])}" if len(bad) > 1 else ""
        raise UsageError(f"{bad[0]} {found}{more}; put {kind.filename} into {folder}/, or delete {batches}/ to download it again")
    if archive.is_file() and not batches.is_dir():
        refuse(archive, f"is truncated or damaged (its MD5 is {md5(archive)})", f"{kind.tgz_md5}")


def md5(path: Path) -> str:
    """The MD5 of a file in hexadecimal digits."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "md5").hexdigest()


# ---- pickles


class ArrayUnpickler(pickle.Unpickler):
    """Reads a pickle of NumPy arrays and plain containers; whatever else it asks for is refused, so that nothing in it is executed."""

    SAFE = ("_reconstruct", "_frombuffer", "ndarray", "dtype", "scalar")

    def find_class(self, module: str, name: str) -> object:
        if module.split(".")[0] == "numpy" and name in self.SAFE:
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise UsageError(f"the pickle calls {module}.{name}, which could run code; use a file with only NumPy arrays and lists")


def read_pickle(path: Path, *keys: str) -> dict:
    """The dictionary with these keys in a pickle of arrays and plain values."""
    expected = f"a pickle of a dictionary with {' and '.join(keys)}"
    try:
        with open(path, "rb") as f:
            content = ArrayUnpickler(f, encoding="latin1").load()
    except (UsageError, FileNotFoundError):
        raise
    except Exception as e:  # a damaged pickle raises what its bytes happen to mean
        refuse(path, f"is truncated or no pickle ({' '.join(str(e).split())[:60]})", expected)
    if not isinstance(content, dict) or not set(keys) <= set(content):
        there = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        refuse(path, f"contains {there[:80] or 'nothing'}", expected)
    return content


def check_pixels(path: Path, x: np.ndarray, labels: Sequence) -> None:
    """UsageError unless x is uint8 (N, H, W, 3) with a label for each image."""
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] != 3 or len(x) != len(labels):
        refuse(path, f"contains images {x.dtype} {x.shape} and {len(labels)} labels", "uint8 (N, 84, 84, 3) and N labels")
