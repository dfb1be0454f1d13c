"""Pictures that runs wrote into their log folders, as data: URIs for the page: samples of generators, nearest private pairs."""

import base64
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ..cli import UsageError
from ..report import Cells, names_of, tasks_of
from ..utils import check_regular

MOST = 1_000_000  # bytes of all pictures of a page
SMALL = 320  # pixels up to which the pixels of a picture are shown larger
WORDS = {
    "copying": "distances of synthetic images to the nearest private one, and the nearest pairs (synthetic above, private below)",
    "samples": "samples of the generator",
    "synthetic": "synthetic images",
}


@dataclass
class Picture:
    """A picture: the row and the seed of its run, its file's name, what it shows, its size on the page in pixels and its content."""

    row: str
    seed: int
    name: str
    words: str
    width: int
    height: int
    uri: str


@dataclass
class Gallery:
    """Pictures that fit into MOST bytes, and lines about those that are left out."""

    left: int = MOST
    seen: set[Path] = field(default_factory=set)

    def of_pair(self, cells: Cells, pair: str) -> tuple[list[Picture], list[str]]:
        """(the pictures of one pair, lines about those that are not shown). A row shows those of its first seed that has any."""
        pictures, notes = [], []
        for name in names_of(cells, pair):
            tasks = {seed: task.log.parent for seed, task in tasks_of(cells, pair, name).items() if task.result}
            having = {seed: files for seed, folder in tasks.items() if (files := [*latest(folder)])}
            for path in next(iter(having.values()), []):
                self.add(path, name, next(iter(having)), pictures, notes)
            if len(having) > 1:
                notes.append(f"{name}: the pictures of seed {', '.join(map(str, [*having][1:]))} are in the log folders only.")
        return pictures, notes

    def add(self, path: Path, row: str, seed: int, pictures: list[Picture], notes: list[str]) -> None:
        """Adds a picture, or a line that says why it is not shown. A picture of another pair's table is not repeated."""
        if path in self.seen:
            return
        self.seen.add(path)
        try:
            content, size = read_picture(path)
        except UsageError as e:
            notes.append(f"{row}, seed {seed}: {e}")
            return
        if len(content) > self.left:
            notes.append(f"{row}: {path} ({len(content) / 1e3:,.0f} kB) is left out; a page has {MOST / 1e6:g} MB of pictures.")
            return
        self.left -= len(content)
        size = [max(1, SMALL // size[0]) * n for n in size]
        kind = path.stem.partition("_")[0]
        uri = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        pictures.append(Picture(row, seed, path.name, WORDS.get(kind, path.stem), *size, uri))


def latest(folder: Path) -> Iterator[Path]:
    """The PNG files in a folder, by name; of a series NAME_0020.png, NAME_0040.png, ... the last one."""
    series = {}
    for path in sorted(folder.glob("*.png")):
        stem, _, number = path.stem.rpartition("_")
        series[stem if number.isdigit() else path.stem] = path
    yield from series.values()


def read_picture(path: Path) -> tuple[bytes, tuple[int, int]]:
    """(content, (width, height)) of a PNG file. UsageError where it is damaged."""
    check_regular(path)
    try:
        content = path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of an image that is too large to be one of ours
            with Image.open(path, formats=["PNG"]) as image:
                image.verify()
                return content, image.size
    except (OSError, SyntaxError, ValueError, Warning, Image.DecompressionBombError):
        raise UsageError(f"{path} is damaged, or no PNG picture") from None
