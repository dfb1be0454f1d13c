"""Checked readers of the files of built-in data sets: idx, .mat, CIFAR's batches, pickles. A bad file is one line that names it.

Each raises UsageError with the file, what was found and what was expected.
"""

import bz2
import csv
import gzip
import hashlib
import math
import pickle
import zlib
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
import torchvision
from torch import Tensor

from ..cli import UsageError
from ..utils import check_regular

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


def is_there(path: Path) -> bool:
    """Whether there is a file; UsageError for a pipe, a device, a folder or a link to nothing, which a download would run into."""
    check_regular(path)
    return path.is_file()


# ---- idx, the format of MNIST


def find_idx(folder: str | Path, name: str, stem: str) -> Path | None:
    """The file of an MNIST-like data set, None if there is none. stem: train-images-idx3-ubyte and the like.

    In folder/NAME/raw, folder/NAME and folder, with and without .gz, also with a dot (train-images.idx3-ubyte).
    UsageError if the file beside other data sets' folders is known to belong to another data set, or is no regular file.
    """
    folder = Path(folder)
    for place in (folder / name / "raw", folder / name, folder):
        for spelled in (stem, stem.replace("-idx", ".idx")):
            for path in (place / spelled, place / f"{spelled}.gz"):
                if is_there(path):
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
    if not body:
        refuse(path, f"contains no {what}", "one or more")
    if body != math.prod(shape):
        refuse(path, f"contains {body:,} bytes of {what}", f"{math.prod(shape):,} as its header {shape} says")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape).copy()


def read_idx_pair(images: Path, labels: Path, classes: int) -> tuple[Tensor, Tensor]:
    """(images uint8 (N, 1, H, W), labels (N,) in 0 ... classes - 1) of two idx files."""
    x, y = read_idx(images, IMAGES, "images"), read_idx(labels, LABELS, "labels")
    if x.shape[1] != x.shape[2]:
        refuse(images, f"contains images of {x.shape[1]} x {x.shape[2]} pixels", "square ones")
    if len(x) != len(y):
        refuse(labels, f"contains {len(y):,} labels", f"{len(x):,}, one for each image of {images.name}")
    check_labels(labels, y, classes - 1)
    return torch.from_numpy(x)[:, None], torch.from_numpy(y.astype(np.int64))


def check_labels(path: Path, y: np.ndarray, last: int) -> None:
    """UsageError where a label is not an integer from 0 to `last`, or there is none."""
    if not y.size or y.dtype.kind not in "uif":
        refuse(path, f"contains {y.size} labels of type {y.dtype}", "a number for each image")
    if not (np.isfinite(y) & (y == np.round(y)) & (y >= 0) & (y <= last)).all():
        refuse(path, f"contains labels from {y.min()} to {y.max()}", f"labels from 0 to {last}")


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
    if lacking := [k for k in ("X", "y") if not isinstance(content.get(k), np.ndarray)]:
        there = ", ".join(k for k in content if not k.startswith("__")) or "nothing"
        refuse(path, f"has no array {' or '.join(lacking)} (it has: {there})", expected)
    x, y = content["X"], content["y"].flatten()
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[2:] != (3, y.size) or x.shape[0] != x.shape[1] or not x.size:
        refuse(path, f"contains X, {x.dtype} {x.shape}, and {y.size} labels", expected)
    check_labels(path, y, 10)
    return torch.as_tensor(x).permute(3, 2, 0, 1).contiguous(), torch.from_numpy(y.astype(np.int64)) % 10


# ---- USPS, in LIBSVM's format


def read_usps(path: Path) -> tuple[Tensor, Tensor]:
    """(images uint8 (N, 1, 16, 16), labels (N,) from 0 to 9) of lines `label 1:value ... 256:value`, values from -1 to 1, bzip2."""
    expected, rows = "USPS in LIBSVM's format (a label from 1 to 10, 1:value to 256:value in [-1, 1]), packed with bzip2", []
    names = [str(k) for k in range(1, 257)]
    try:
        with bz2.open(path, "rt", encoding="ascii") as f:
            for line in f:
                label, *values = line.split()
                pairs = [v.split(":") for v in values]
                if [p[0] for p in pairs] != names:
                    refuse(path, f"has {len(pairs)} values in line {len(rows) + 1}, or other numbers before them", expected)
                rows.append([label, *(value for _, value in pairs)])
        table = np.asarray(rows, dtype=np.float32)
    except (OSError, EOFError, ValueError) as e:
        refuse(path, f"is truncated or damaged after line {len(rows)} ({' '.join(str(e).split())[:60]})", expected)
    if not len(table) or not (np.abs(table[:, 1:]) <= 1).all():
        refuse(path, f"contains {len(table):,} images, or values outside of [-1, 1]", expected)
    check_labels(path, table[:, 0] - 1, 9)
    x = ((table[:, 1:].reshape(-1, 1, 16, 16) + 1) / 2 * 255).astype(np.uint8)
    return torch.from_numpy(x), torch.from_numpy(table[:, 0].astype(np.int64) - 1)


# ---- CIFAR


def check_cifar(folder: str | Path, name: str) -> None:
    """UsageError that names the damaged or missing files, if CIFAR10 or CIFAR100 is there and damaged. Nothing where it is not there."""
    kind, folder = getattr(torchvision.datasets, name), Path(folder)
    if not hasattr(kind, "train_list"):
        return
    batches, archive = folder / kind.base_folder, folder / kind.filename
    files = [*kind.train_list, *kind.test_list, [kind.meta["filename"], kind.meta["md5"]]]
    for path in (archive, *(batches / f for f, _ in files)):
        check_regular(path)
    if archive.is_file() and md5(archive) == kind.tgz_md5:
        return  # torchvision unpacks it where a batch is damaged
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
    check_regular(path)
    try:
        with open(path, "rb") as f:
            content = ArrayUnpickler(f, encoding="latin1").load()
    except FileNotFoundError:
        raise
    except UsageError as e:
        raise UsageError(f"{path} is refused: {e}") from None
    except Exception as e:  # a damaged pickle raises what its bytes happen to mean
        refuse(path, f"is truncated or no pickle ({' '.join(str(e).split())[:60] or type(e).__name__})", expected)
    if not isinstance(content, dict) or not set(keys) <= set(content):
        there = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        refuse(path, f"contains {there[:80] or 'nothing'}", expected)
    return content


def pixels(path: Path, x: object, n: int | None = None) -> Tensor:
    """The images of a pickle, uint8 (N, 3, H, W), N = n where n is given. UsageError unless x is an array of them, channels last."""
    try:
        x = np.asarray(x)
    except ValueError:  # rows of several lengths
        x = np.empty(0)
    fits = x.dtype == np.uint8 and x.ndim == 4 and x.shape[3] == 3 and x.shape[1] == x.shape[2]
    if not fits or not x.size or n not in (None, len(x)):
        labels = "" if n is None else f" and {n:,} labels"
        refuse(path, f"contains images {x.dtype} {x.shape}{labels}", "uint8 (N, 84, 84, 3), with a label each")
    return torch.as_tensor(np.ascontiguousarray(x)).permute(0, 3, 1, 2)


def class_labels(path: Path, value: object) -> list[str] | list[int]:
    """The labels of a pickle's images, all of them names or all integers. UsageError for anything else."""
    value = value.tolist() if isinstance(value, np.ndarray) else value
    kinds = {type(v) for v in value} if isinstance(value, (list, tuple)) else {type(value)}
    if not isinstance(value, (list, tuple)) or kinds not in ({str}, {int}):
        names = ", ".join(sorted(k.__name__ for k in kinds)) or "none"
        refuse(path, f"contains labels of type {names}", "a list of names, or of integers")
    return list(value)


# ---- lists


def read_csv(path: Path, *columns: str) -> list[tuple[str, ...]]:
    """The rows of a CSV file in these columns. UsageError where one is missing or empty; FileNotFoundError where there is no file."""
    expected = f"a CSV file in UTF-8 with the columns {' and '.join(columns)}"
    check_regular(path)
    try:
        with open(path, newline="", encoding="utf-8") as f:
            reader = csv.DictReader(f)
            rows, names = [tuple(row.get(c) or "" for c in columns) for row in reader], list(reader.fieldnames or ())
    except (ValueError, csv.Error) as e:
        refuse(path, f"cannot be read ({e})", expected)
    if not rows or not {*columns} <= {*names}:
        refuse(path, f"has {len(rows)} rows and the columns {', '.join(names)[:80] or 'none'}", expected)
    if bad := next((i for i, row in enumerate(rows, 2) if not all(v.strip() and v.isprintable() for v in row)), 0):
        refuse(path, f"has an empty value or control characters in line {bad}", expected)
    return rows
