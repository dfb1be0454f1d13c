"""Pool of a data-free method: all synthetic images of a run, on the device and on disk."""

import os
import zlib
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from .cli import UsageError
from .datasets.pictures import read_pool_folder
from .utils import check_regular


class Pool:
    """Pool of up to `capacity` uint8 images (C, H, W), also written to a .npy file that can be read at any time.

    path: the .npy file. shape: (C, H, W).
    """

    def __init__(self, path: str | Path, capacity: int, shape: tuple[int, int, int], device: torch.device | str) -> None:
        self.path, self.storage, self.n, self.crc = Path(path), torch.empty(capacity, *shape, dtype=torch.uint8, device=device), 0, 0

    @property
    def x(self) -> Tensor:
        """The images so far, uint8 (n, C, H, W)."""
        return self.storage[: self.n]

    def add(self, x: Tensor) -> None:
        """Adds images x (b, C, H, W) in [0, 1], rounded to 8 bits."""
        new = x.mul(255).round().to(torch.uint8)
        self.storage[self.n : self.n + len(x)] = new
        content = new.cpu().numpy().tobytes()
        with open(self.path, "r+b" if self.n else "w+b") as f:
            header = self.write_header(f, self.n)
            f.seek(header + self.n * new[0].numel())
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
            self.n, self.crc = self.n + len(x), zlib.crc32(content, self.crc)
            self.write_header(f, self.n)

    def write_header(self, f: IO[bytes], n: int) -> int:
        """Writes the .npy header for n images and returns its length in bytes, which does not depend on n."""
        f.seek(0)
        np.lib.format.write_array_header_1_0(f, {"descr": "|u1", "fortran_order": False, "shape": (n, *self.storage.shape[1:])})
        return f.tell()

    def state_dict(self) -> dict[str, int]:
        return {"n": self.n, "crc": self.crc}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Reads the images from the file. Raises UsageError if it is not the file of this run."""
        x = read_pool(self.path, self.storage.shape[1:])[: state["n"]]
        if len(x) < state["n"] or zlib.crc32(x.tobytes()) != state["crc"]:
            raise UsageError(f"{self.path} is not the pool of this run ({state['n']} images); restore it, or start again with --overwrite")
        self.n, self.crc = state["n"], state["crc"]
        self.storage[: self.n] = torch.from_numpy(x)


def read_pool(path: str | Path, shape: tuple[int, int, int]) -> np.ndarray:
    """Returns uint8 images (N, C, H, W) from a pool.npy, or from the pictures in a folder.

    Raises UsageError if the file is missing or damaged, or if the images are not of `shape` (C, H, W).
    """
    try:
        x = read_pool_folder(Path(path), shape) if Path(path).is_dir() else read_array(path)
    except FileNotFoundError:
        raise UsageError(f"no pool {path}; a run of AEAHL.py saves one as pool.npy in its checkpoint folder") from None
    except (ValueError, OSError, EOFError) as e:
        raise UsageError(f"{path} cannot be read as a pool ({e}); use the pool.npy of a run of AEAHL.py, or a folder of images") from None
    if x.dtype != np.uint8 or x.shape[1:] != tuple(shape) or not len(x):
        hint = "use the pool.npy of a run with this image size"
        raise UsageError(f"{path} contains {x.dtype} {x.shape}, not uint8 images (N, {', '.join(map(str, shape))}); {hint}")
    return x


def read_array(path: str | Path) -> np.ndarray:
    """Returns the array of a .npy file. Raises ValueError, OSError or EOFError for another file or a damaged one, UsageError for a pipe."""
    check_regular(path)
    try:
        x = np.load(path, mmap_mode="r", allow_pickle=False)  # a mapped file is as long as its header says
    except (ValueError, OSError, EOFError):
        raise
    except Exception as e:  # of a damaged header or zip file: SyntaxError, struct.error, BadZipFile, ...
        raise ValueError(f"it is damaged: {' '.join(str(e).split())[:60]}") from None
    if not isinstance(x, np.ndarray):
        raise ValueError("it contains no array, but several")
    return np.array(x)
