"""Counts of queries in a file, which no end of a process loses."""

import math
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .cli import UsageError
from .utils import check_regular

KINDS = ("private", "mixed", "public", "synthetic")  # images asked about; mixed: of private images, or points between two


class Counter:
    """Counts of what was sent, in a file. A count is in the file before the images are sent, and never goes back.

    The file is mapped into memory, so that a count costs nothing and survives the end of the process, whatever ends it. It holds the counts
    twice, each copy with a checksum: a kill while one is written, or a damage of one, leaves the other.
    """

    NAMES = ("queries", *KINDS, "bytes")

    def __init__(self, path: Path, fresh: bool = False, before: Callable[[], None] | None = None):
        """Goes on with the counts of the file `path`, from 0 where there is none or `fresh`. before: called before the file is made.

        UsageError where it is damaged, or another kind of file.
        """
        self.path, self.before, self.copies, self.now = path, before, None, np.zeros(len(self.NAMES), np.int64)
        check_regular(path)
        if not fresh and path.exists():
            self.open("r+")

    def open(self, mode: str) -> None:
        """Maps the file into memory, and reads the newer copy."""
        shape = (2, len(self.NAMES) + 1)
        if mode == "r+" and self.path.stat().st_size != 8 * math.prod(shape):
            size = f"{self.path.stat().st_size} bytes, not {8 * math.prod(shape)}"
            raise UsageError(f"{self.path} has {size}: it does not hold counts of queries; move it away and run again")
        self.copies = np.memmap(self.path, np.int64, mode, shape=shape)
        whole = [copy[:-1] for copy in self.copies if copy[-1] == self.checksum(copy[:-1])]
        if not whole and self.copies.any():
            raise UsageError(f"{self.path} is damaged: its counts of queries are lost; move it away, and run again with --overwrite")
        self.now = max(whole, key=lambda counts: counts[0], default=self.now).copy()

    @staticmethod
    def checksum(counts: np.ndarray) -> int:
        """Of one copy."""
        return zlib.crc32(counts.tobytes(), 1)

    def add(self, counts: dict[str, int]) -> None:
        """Adds counts by name."""
        if self.copies is None:
            if self.before:
                self.before()
            self.open("w+")
        for name, n in counts.items():
            self.now[self.NAMES.index(name)] += n
        for i in range(2):
            self.copies[i] = *self.now, self.checksum(self.now)

    def counts(self) -> dict[str, int]:
        """All counts by name."""
        return dict(zip(self.NAMES, self.now.tolist(), strict=True))
