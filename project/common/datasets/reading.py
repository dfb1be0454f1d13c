"""From what a reader gives, arrays or a Listing of files, to Images on the device: unreadable files, streaming, fingerprint."""

import os
import urllib.error
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..cli import RunError, UsageError, say, shortage
from .images import Images, hash_arrays, resize
from .listing import Listing
from .pictures import check_header, in_threads, read_all, read_picture, read_square, unreadable
from .stream import Stream

Content = tuple[Tensor, ...] | Listing
BUILT_IN = "could not be downloaded or read"


@dataclass(frozen=True)
class Source:
    """A data set that is read: its name, the files it consists of in words, a few-shot set or not, a folder of the user or not."""

    name: str
    files: str
    novel: bool
    own: bool

    def missing(self, data_dir: Path) -> str:
        """What to do where files are missing."""
        ready = "DigitsFS" if self.novel else "Digits"
        return f"put {self.files} into {data_dir}/ (--data_dir names another folder); --dataset {ready} needs no download"


@dataclass(frozen=True)
class How:
    """How files become Images. size: pixels. workers: processes or threads that read. limit: bytes of a part above which it is streamed.

    keep_source: keep images that are larger than `size` as they are, too (Images.source).
    """

    size: int
    device: torch.device | str
    workers: int
    limit: float
    skip_broken: bool
    keep_source: bool = False


@dataclass
class Part:
    """Images of one part of a data set; class names, [] if unknown; the resize rule as Data.crop_from."""

    images: Images
    names: list[str]
    crop_from: int = 0


def data_folder(source: Source, data_dir: str | Path) -> Path:
    """The folder of the data sets, `~` expanded; UsageError where it would be created on a drive that is not there."""
    path = Path(os.path.expanduser(data_dir))
    parent = path.absolute().parent
    if path.exists() and not path.is_dir():
        raise UsageError(f"--data_dir {data_dir} is not a folder; give the folder of the data sets")
    if not (source.own or source.files.startswith("nothing") or path.exists() or parent.exists()):
        raise UsageError(f"--data_dir {data_dir}: the folder {parent} does not exist; mount its drive, or use another --data_dir")
    return path


def read_content(read: Callable[[str, bool | str], Content], source: Source, data_dir: Path, part: bool | str) -> Content:
    """What `read(folder, part)` gives. UsageError where files are missing, RunError where a download failed."""
    try:
        return read(str(data_dir), part)
    except FileNotFoundError as e:
        where = f" ({e.filename})" if e.filename else ""
        raise UsageError(f"{source.name} is not there{where}: {e if source.own else source.missing(data_dir)}") from None
    except (urllib.error.URLError, RuntimeError, OSError, EOFError, ValueError, zlib.error) as e:
        if shortage(e) is not None:
            raise
        if source.own:
            raise RunError(f"{source.name} could not be read ({e})") from None
        raise RunError(f"{source.name} {BUILT_IN} ({e}): {source.missing(data_dir)}") from None


def to_parts(contents: Sequence[Content], source: Source, how: How) -> list[Part]:
    """The Images of each part. Files that cannot be read are refused in one line, or left out with how.skip_broken."""
    read = [array_part(c, how) if isinstance(c, tuple) else file_part(c, how, source) for c in contents]
    broken = [row for _, bad in read for row in bad]
    if broken:
        n = sum(map(len, contents))
        if not how.skip_broken:
            line = unreadable(broken, n)
            raise UsageError(f"{source.name}: {line}") if source.own else RunError(f"{source.name} {BUILT_IN}: {line}")
        say(f"{source.name}: {unreadable(broken, n, skipped=True)}")
    parts = [part for part, _ in read]
    if broken and source.own and parts[0].names:
        lost = [name for k, name in enumerate(parts[0].names) if not (parts[0].images.y == k).any()]
        if lost:
            raise UsageError(
                f"{source.name}: no training image of {', '.join(lost)} can be read; repair the images or remove the class folder"
            )
    return parts


def array_part(content: tuple[Tensor, ...], how: How) -> tuple[Part, list]:
    """A part that is in memory: (images, labels) or (images, labels, class names)."""
    x, y, *names = content
    images = resized_images(x, y.to(how.device), how, hash=hash_arrays(x, y))
    return Part(images, names[0] if names else []), []


def resized_images(x: Tensor, y: Tensor, how: How, **more: Any) -> Images:
    """Images of the size how.size from uint8 x (N, C, S, S), with labels y (N,) on the device; more: other fields of Images."""
    x = x.to(how.device)
    return Images(resize(x, how.size), y, source=x if how.keep_source and x.shape[-1] > how.size else None, **more)


def file_part(listing: Listing, how: How, source: Source) -> tuple[Part, list[tuple[str, str]]]:
    """A part that consists of files, and (name, reason) of those that cannot be read; streamed where it is large."""
    stream = Stream(listing.samples, torch.arange(len(listing)), how.size, how.workers, root=listing.root)
    streamed = not listing.pixels and len(listing) * 3 * how.size**2 > how.limit
    paths, x = [path for path, _ in listing.samples], None
    if streamed:
        check = read_picture if how.skip_broken else check_header if source.own else None
        broken = in_threads(lambda i: check(paths[i]), len(paths), max(1, how.workers)) if check else {}
    elif listing.pixels:
        read = partial(read_square, size=listing.pixels, grey=listing.grey, invert=listing.invert)
        shape = (1 if listing.grey else 3, listing.pixels, listing.pixels)
        x, broken = read_all(paths, read, shape, how.workers or min(8, os.cpu_count() or 1))
    else:
        x, broken = read_all(paths, stream.reader(), (3, how.size, how.size), how.workers)
    names = [(listing.name(i), why) for i, why in broken.items()]
    if broken:
        rows = [i for i in range(len(listing)) if i not in broken]
        listing, x = listing.keep(rows), None if x is None else x[rows]
        stream.samples, stream.index = listing.samples, torch.arange(len(rows))
    y = listing.y.to(how.device)
    shown = {"paths": listing.paths if listing.own else None, "hash": listing.hash()}
    images = Images(None, y, stream, **shown) if streamed else resized_images(x, y, how, **shown)
    return Part(images, listing.classes, 0 if listing.pixels else stream.resize_to()), names
