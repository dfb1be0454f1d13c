"""Lists of picture files: what lies in a folder, which files are left out, and in which order classes are numbered."""

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..cli import UsageError
from .pictures import extensions

NOT_DATA = {"__macosx", "thumbs.db", "desktop.ini"}  # what systems put beside images; names that begin with a dot, too


class File(NamedTuple):
    """A picture: its path, the same relative to the folder that was scanned (POSIX form), its size in bytes (-1: not known)."""

    path: str
    relative: str
    size: int


@dataclass
class Tree:
    """The pictures below a folder, by folder and name; its direct subfolders; what was left out, counted by kind."""

    files: list[File]
    folders: list[str]
    left_out: Counter


@dataclass
class Listing:
    """The picture files of one part of a data set, of N images.

    samples: (path, label) of each. classes: their names, [] if unknown. paths: relative to the part's folder. sizes: bytes.
    root: the folder that names in messages are relative to. left_out: numbers of files that are not read, by kind. own: a `folder:` data
    set, whose subsets are drawn by path. pixels: the size at which images are read (few-shot sets), 0 for the wanted size.
    grey, invert: see read_square.
    """

    root: str
    samples: list[tuple[str, int]]
    classes: list[str]
    paths: list[str]
    sizes: list[int]
    left_out: Counter = field(default_factory=Counter)
    own: bool = False
    pixels: int = 0
    grey: bool = False
    invert: bool = False

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def y(self) -> Tensor:
        """Labels (N,)."""
        return torch.tensor([label for _, label in self.samples], dtype=torch.long)

    def keep(self, rows: Iterable[int]) -> "Listing":
        """The listing of these rows alone."""
        rows = list(rows)
        samples, paths, sizes = ([column[i] for i in rows] for column in (self.samples, self.paths, self.sizes))
        return replace(self, samples=samples, paths=paths, sizes=sizes)

    def name(self, row: int) -> str:
        """The file of a row, relative to the root."""
        return os.path.relpath(self.samples[row][0], self.root).replace(os.sep, "/")

    def hash(self) -> str:
        """12 hexadecimal digits of relative paths, sizes in bytes, labels and class names; the same on every machine."""
        rows = sorted((plain(p), size, label) for p, size, (_, label) in zip(self.paths, self.sizes, self.samples, strict=True))
        digest = hashlib.blake2b(digest_size=6)
        for part in (*(plain(c) for c in self.classes), *(f"{p}\0{size}\0{label}" for p, size, label in rows)):
            digest.update(f"{part}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def plain(path: str) -> str:
    """A path in one Unicode form: macOS decomposes accents."""
    return path if path.isascii() else unicodedata.normalize("NFC", path)


def hidden(name: str) -> bool:
    """Whether a name is never data: .ipynb_checkpoints, ._a.png, __MACOSX, Thumbs.db, desktop.ini."""
    return name.startswith(".") or name.lower() in NOT_DATA


def entries(folder: str | Path) -> list[os.DirEntry]:
    """What lies in a folder, by name. FileNotFoundError if it does not exist, UsageError if it cannot be listed."""
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda e: e.name)
    except (PermissionError, NotADirectoryError) as e:
        raise UsageError(f"folder {folder} cannot be listed ({e.strerror}); change its permissions or move it away") from None


def kind(name: str) -> str:
    """What a file that is not read is counted as: its extension."""
    return os.path.splitext(name)[1].lower() or "without extension"


def scan(base: str | Path, deep: bool = True) -> Tree:
    """All pictures below a folder. deep: also those in subfolders.

    A symbolic link to a folder is followed once, and not at all where it leads into the folder or above it. A file that links lead to
    several times is read once per class.
    """
    base_real = os.path.realpath(base)
    found, links, folders, left_out, seen = [], [], [], Counter(), {base_real}
    todo = [(str(base), "", base_real)]
    while todo:
        folder, prefix, real = todo.pop()
        for e in entries(folder):
            relative = f"{prefix}{e.name}"
            if hidden(e.name):
                left_out["hidden"] += 1
            elif is_folder(e):
                target = os.path.realpath(e.path) if e.is_symlink() else f"{real}/{e.name}"
                if deep and (target in seen or (e.is_symlink() and related(target, base_real))):
                    left_out["repeated by a link"] += 1
                    continue
                if not prefix:
                    folders.append(e.name)
                if deep:
                    seen.add(target)
                    todo.append((e.path, f"{relative}/", target))
            elif os.path.splitext(e.name)[1].lower() not in extensions():
                left_out[kind(e.name)] += 1
            else:
                (links if e.is_symlink() else found).append((File(e.path, relative, size_of(e)), f"{real}/{e.name}"))
    files = [f for f, _ in found] + distinct_links(found, links, left_out)
    return Tree(sorted(files, key=lambda f: os.path.split(f.relative)), folders, left_out)


def is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder or a link to one; False for a link that leads to itself."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def related(target: str, base: str) -> bool:
    """Whether one of two real paths contains the other."""
    return f"{base}/".startswith(f"{target.rstrip('/')}/") or f"{target}/".startswith(f"{base.rstrip('/')}/")


def size_of(entry: os.DirEntry) -> int:
    """A file's size in bytes, -1 for a link that leads nowhere."""
    try:
        return entry.stat().st_size
    except OSError:
        return -1


def distinct_links(found: list[tuple[File, str]], links: list[tuple[File, str]], left_out: Counter) -> list[File]:
    """The linked files that are not in their class already, under another name."""
    if not links:
        return []
    seen = {(class_of(f), real) for f, real in found}
    kept = []
    for f, _ in sorted(links):
        key = class_of(f), os.path.realpath(f.path)
        if key in seen:
            left_out["repeated by a link"] += 1
            continue
        seen.add(key)
        kept.append(f)
    return kept


def in_order(names: Iterable[str]) -> list[str]:
    """Class names in the order of their labels: by number where all are integers, by character otherwise."""
    names = list(names)
    if all(re.fullmatch(r"-?[0-9]+", n) for n in names):
        return sorted(names, key=lambda n: (int(n), n))
    return sorted(names)


def class_of(file: File) -> str | None:
    """The class folder of a file, None for a file outside of class folders."""
    name, found, _ = file.relative.partition("/")
    return name if found else None


def class_listing(base: str | Path, tree: Tree, classes: Sequence[str], root: str | Path = "", own: bool = False) -> Listing:
    """The listing of a folder with one folder per class, by class, then folder and name. root: what names are relative to, `base` if ''."""
    label = {name: k for k, name in enumerate(classes)}
    files = sorted((f for f in tree.files if class_of(f) in label), key=lambda f: label[class_of(f)])  # stable: the tree's order in a class
    samples = [(f.path, label[class_of(f)]) for f in files]
    left_out = tree.left_out + Counter({"outside class folders": sum(class_of(f) is None for f in tree.files)})
    return Listing(str(root or base), samples, list(classes), [f.relative for f in files], [f.size for f in files], left_out, own)


def listing_of_files(root: Path, files: Sequence[Path], labels: Sequence[int], classes: Sequence[str], **how: object) -> Listing:
    """The listing of given files, which need not exist, with their labels. how: pixels, grey, invert."""
    samples = [(str(f), int(label)) for f, label in zip(files, labels, strict=True)]
    relative = [os.path.relpath(f, root).replace(os.sep, "/") for f, _ in samples]
    return Listing(str(root), samples, list(classes), relative, [file_size(f) for f, _ in samples], **how)


def file_size(path: str) -> int:
    """A file's size in bytes, -1 if it does not exist, or cannot (a name with a null byte)."""
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):
        return -1
