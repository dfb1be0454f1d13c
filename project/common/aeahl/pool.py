"""The pool of a data-free method: all images that it ever made, on the device and on disk."""

import os
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..utils import UsageError


class Pool:
    """uint8 images (n, C, H, W) of a room for `capacity`, and the same in a .npy file that can be read at any time."""

    def __init__(self, path, capacity, shape, device):
        self.path, self.room, self.n, self.crc = Path(path), torch.empty(capacity, *shape, dtype=torch.uint8, device=device), 0, 0

    @property
    def x(self):
        return self.room[: self.n]

    def add(self, x):
        """Images in [0, 1], (b, C, H, W), rounded to the nearest of 256 values."""
        new = x.mul(255).round().to(torch.uint8)
        self.room[self.n : self.n + len(x)] = new
        content = new.cpu().numpy().tobytes()
        with open(self.path, "r+b" if self.n else "w+b") as f:
            header = self.header(f, self.n)
            f.seek(header + self.n * new[0].numel())
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
            self.n, self.crc = self.n + len(x), zlib.crc32(content, self.crc)
            self.header(f, self.n)

    def header(self, f, n):
        """Writes .npy's header for n images, whose length does not depend on n; gives that length."""
        f.seek(0)
        np.lib.format.write_array_header_1_0(f, {"descr": "|u1", "fortran_order": False, "shape": (n, *self.room.shape[1:])})
        return f.tell()

    def state_dict(self):
        return {"n": self.n, "crc": self.crc}

    def load_state_dict(self, state):
        x = read_pool(self.path, self.room.shape[1:])[: state["n"]]
        if len(x) < state["n"] or zlib.crc32(x.tobytes()) != state["crc"]:
            raise UsageError(f"{self.path} is not the pool that this run made; put that back, or start anew with --overwrite")
        self.n, self.crc = state["n"], state["crc"]
        self.room[: self.n] = torch.from_numpy(x)


def read_pool(path, shape):
    """The images uint8 (N, C, H, W) of a pool.npy or of the files in a folder; UsageError where one is not of this shape (C, H, W)."""
    try:
        x = pictures(Path(path), shape) if Path(path).is_dir() else np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UsageError(f"no pool {path}; AEAHL.py leaves one in its folder: pool.npy") from None
    except (ValueError, OSError, EOFError) as e:
        raise UsageError(f"{path} cannot be read as a pool ({e}); it is truncated or of another kind") from None
    what = f"{x.dtype} {x.shape}" if isinstance(x, np.ndarray) else "no array"
    if not isinstance(x, np.ndarray) or x.dtype != np.uint8 or x.shape[1:] != tuple(shape):
        raise UsageError(f"{path} holds {what}, not uint8 images (N, {', '.join(map(str, shape))}); a pool of another run?")
    return x


def pictures(folder, shape):
    """The PNG and JPEG files of a folder by name, uint8 (N, C, H, W); ValueError where there is none, or one of another size."""
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
    read = [np.asarray(Image.open(f).convert("RGB" if shape[0] == 3 else "L")) for f in files]
    if off := [f"{f.name} is {x.shape[1]} x {x.shape[0]}" for f, x in zip(files, read, strict=True) if x.shape[:2] != tuple(shape[1:])]:
        raise ValueError(f"{off[0]} pixels, not {shape[2]} x {shape[1]}")
    if not read:
        raise ValueError("no PNG or JPEG file in it")
    return np.stack(read).reshape(len(read), *shape[1:], shape[0]).transpose(0, 3, 1, 2).copy()
