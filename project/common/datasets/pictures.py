"""The one reader of picture files, for folders, few-shot sets and pools: any file that Pillow decodes -> 8-bit RGB or grey pixels.

EXIF orientation is applied, transparency is composited on white, 16-bit and 32-bit integers are scaled by the range of their type.
"""

import functools
import os
import struct
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ..values import cut

NOT_DECODED = {"PDF", "EPS", "MPEG", "HDF5", "GRIB", "BUFR", "WMF"}  # Pillow names these types, but has no decoder of its own for them
UNSIGNED, SIGNED = 1, 2  # values of TIFF's tag SampleFormat
BITS, PHOTOMETRIC, SAMPLE_FORMAT, ORIENTATION = 258, 262, 339, 274  # tags of TIFF and EXIF
NAMED = 5  # a message names so many unreadable files
NARROW = 200  # longer over shorter side above which a picture is refused: resizing its shorter side would take gigabytes
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # twice that size is an error, which names the file
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # on metadata: two lines for each picture


class Unreadable(Exception):
    """A picture that cannot be read; the message is the reason in a few words."""


@functools.cache
def extensions() -> frozenset[str]:
    """The extensions of the file types that this Pillow decodes, in lower case, with the dot."""
    Image.init()
    return frozenset(e.lower() for e, kind in Image.registered_extensions().items() if kind in Image.OPEN and kind not in NOT_DECODED)


# ---- one picture


def read_picture(path: str | Path | BinaryIO, mode: str = "RGB") -> Image.Image:
    """The picture of a file, or of its content, upright, on white, with 8 bits per channel; its first frame where it has several.

    mode: RGB or L (grey). Raises Unreadable for a file that is broken or whose range of values is not known.
    """
    try:
        with (
            open_picture(path) as f,
            Image.open(f) as image,
        ):  # given a path, Pillow maps uncompressed TIFF into memory, and turns it wrongly
            check_kind(image)
            image.load()
            turn = TURNS.get(orientation(image))
            picture = on_white(to_eight_bits(image), mode)
    except Unreadable:
        raise
    except Exception as e:  # Pillow's decoders raise what they like: OSError, SyntaxError, struct.error, IndexError
        raise Unreadable(reason(e, path)) from None
    return picture if turn is None else picture.transpose(turn)


def read_square(path: str | Path, size: int, grey: bool = False, invert: bool = False) -> Tensor:
    """The picture of a file as uint8 (C, size, size); another size is resized by its shorter side, and its centre is cut out.

    grey: C is 1 instead of 3. invert: 255 minus the value, for black ink on white. Raises Unreadable.
    """
    x = F.pil_to_tensor(read_picture(path, "L" if grey else "RGB"))
    x = x if x.shape[1:] == (size, size) else F.center_crop(F.resize(x, size, antialias=True), size)
    return 255 - x if invert else x


def check_header(path: str | Path) -> None:
    """Raises Unreadable for a file that is no picture, not accessible, too large or of float pixels; the pixels are not read."""
    try:
        with open_picture(path) as f, Image.open(f) as image:
            check_kind(image)
    except Unreadable:
        raise
    except Exception as e:
        raise Unreadable(reason(e, path)) from None


def open_picture(path: str | Path | BinaryIO) -> BinaryIO:
    """A file, open for reading; content that is open stays as it is.

    Raises Unreadable for a pipe, a socket or a device, which would be waited for, and a link to nothing.
    """
    if not isinstance(path, (str, Path)):
        return path
    if os.path.exists(path) and not os.path.isfile(path):
        raise Unreadable("a folder" if os.path.isdir(path) else "a pipe, a socket or a device")
    if os.path.islink(path) and not os.path.exists(path):
        raise Unreadable("a link to a file that does not exist")
    return open(path, "rb")


def check_kind(image: Image.Image) -> None:
    """Raises Unreadable for float pixels, and for a picture that is much longer than wide."""
    if image.mode == "F":
        raise Unreadable("float pixels, whose range is not known; convert it to 8 or 16 bits")
    if max(image.size) > NARROW * min(image.size):
        raise Unreadable(f"{image.width} x {image.height} pixels, longer than {NARROW} times its width")


def reason(e: Exception, path: str | Path | BinaryIO) -> str:
    """Why a picture cannot be read, in a few words."""
    words = " ".join(str(e).split())
    if isinstance(e, MemoryError):
        return "more pixels than fit into memory"
    if isinstance(e, PermissionError):
        return "no permission"
    if isinstance(e, FileNotFoundError):
        return "no such file"
    if isinstance(e, Image.DecompressionBombError):
        return f"more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels"
    if isinstance(e, UnidentifiedImageError):
        return "empty" if isinstance(path, (str, Path)) and not os.path.getsize(path) else "not an image that Pillow can read"
    cut = ("truncat", "unexpected end", "end of file", "broken data stream", "unpack requires", "not enough")
    if isinstance(e, (EOFError, struct.error)) or any(c in words.lower() for c in cut):
        return "truncated"
    return f"damaged: {words[:60]}" if words else "damaged"


def orientation(image: Image.Image) -> int:
    """EXIF orientation from 1 to 8; 1 where there is none, or where the EXIF block is damaged. TIFF is upright once it is loaded."""
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # a picture is not refused because of its metadata
        return 1


def to_eight_bits(image: Image.Image) -> Image.Image:
    """A picture of 16-bit or 32-bit integers as 8-bit grey, scaled by the range of its type and rounded; others as they are."""
    if not image.mode.startswith("I"):
        return image
    raw = np.asarray(image)
    bits, sample_format = integer_type(image)
    if bits == 32 and sample_format == UNSIGNED:
        raw = raw.view(np.uint32)
    top, values = 2 ** (bits - (sample_format == SIGNED)) - 1, raw.astype(np.int64)
    if values.min() < 0:
        raise Unreadable("negative pixel values; convert it to 8 or 16 bits")
    if bits == 32 and values.max() * 255 <= top:
        raise Unreadable("uses less than 1/255 of the range of 32-bit integers; convert it to 8 or 16 bits")
    grey = ((values * 255 + top // 2) // top).clip(0, 255)
    if image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC) == 0:  # white is zero; Pillow inverts 8-bit pictures only
        grey = 255 - grey
    transparent = image.info.get("transparency")  # PNG: one value that is transparent
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey.astype(np.uint8))


def integer_type(image: Image.Image) -> tuple[int, int]:
    """(bits, UNSIGNED or SIGNED) of the integers that a file holds. Mode I alone does not say: older Pillow gives it to 16-bit PNG."""
    if image.format == "TIFF":
        bits, sample_format = image.tag_v2.get(BITS, (1,)), image.tag_v2.get(SAMPLE_FORMAT, (UNSIGNED,))
        return bits[0], sample_format[0]
    if image.mode.startswith("I;16") or image.format in ("PNG", "PPM"):
        return 16, UNSIGNED
    return 32, SIGNED


def on_white(image: Image.Image, mode: str) -> Image.Image:
    """The picture in this mode (RGB, L); what is transparent shows white."""
    if not image.has_transparency_data:
        return image.convert(mode)
    image = image.convert("LA") if image.mode == "La" else image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert(mode)


def recoloured(x: Tensor, channels: int) -> Tensor:
    """Images (N, 1 or 3, H, W) with `channels` channels: grey ones are repeated, colour ones are converted to grey."""
    if x.shape[1] == channels:
        return x
    return x.expand(-1, 3, -1, -1) if channels == 3 else F.rgb_to_grayscale(x)


def exact_grey(x: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) -> (N, 1, H, W); a pixel whose channels are equal keeps its value, which rgb_to_grayscale lowers by one."""
    same = (x[:, :1] == x[:, 1:2]) & (x[:, :1] == x[:, 2:])
    return torch.where(same, x[:, :1], F.rgb_to_grayscale(x))


# ---- many pictures


def in_threads(f: Callable[[int], None], n: int, threads: int) -> dict[int, str]:
    """Calls f(0) ... f(n - 1); {row: reason} of the calls that raised Unreadable. Threads share memory without /dev/shm."""
    broken = {}

    def call(i: int) -> None:
        try:
            f(i)
        except Unreadable as e:
            broken[i] = str(e)

    if threads < 2 or n < 2:
        for i in range(n):
            call(i)
        return dict(sorted(broken.items()))
    pool = ThreadPoolExecutor(threads)
    try:
        list(pool.map(call, range(n)))
    finally:
        pool.shutdown(cancel_futures=True)
    return dict(sorted(broken.items()))


def read_all(
    paths: Sequence[str], read: Callable[[str], Tensor], shape: tuple[int, int, int], threads: int
) -> tuple[Tensor, dict[int, str]]:
    """(uint8 (N, C, H, W), {row: reason} of the files that cannot be read, whose images are undefined); read(path) gives uint8 `shape`."""
    x = torch.empty(len(paths), *shape, dtype=torch.uint8)

    def fill(i: int) -> None:
        x[i] = read(paths[i])

    return x, in_threads(fill, len(paths), threads)


def unreadable(broken: Sequence[tuple[str, str]], n: int, skipped: bool = False) -> str:
    """One line on the unreadable ones, (name, reason) each, of n images: five are named. skipped: they are left out."""
    named = ", ".join(f"{cut(name)} ({why})" for name, why in broken[:NAMED])
    more = f" and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
    line = f"{len(broken)} of {n} images cannot be read{' and are left out' * skipped}: {named}{more}"
    those = "it" if len(broken) == 1 else "them"
    return line if skipped else f"{line}; remove {those}, or use --skip_broken to leave {those} out"


def read_pool_folder(folder: Path, shape: Sequence[int]) -> np.ndarray:
    """The pictures of a folder by name, uint8 (N, C, H, W). shape: (C, H, W).

    Raises ValueError where there is no picture, one of another size, or one that cannot be read.
    """
    channels, height, width = shape
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in extensions() and not p.name.startswith(".") and not p.is_dir())
    if not files:
        raise ValueError("it contains no PNG or JPEG file, nor another picture")
    read, broken = [], []
    for f in files:
        try:
            picture = read_picture(f, "RGB" if channels == 3 else "L")
        except Unreadable as e:
            broken.append((f.name, str(e)))
            continue
        if picture.size != (width, height):
            raise ValueError(f"{f.name} is {picture.width} x {picture.height} pixels, not {width} x {height}")
        read.append(np.asarray(picture))
    if broken:
        raise ValueError(unreadable(broken, len(files)).partition(";")[0])
    return np.stack(read).reshape(len(read), height, width, channels).transpose(0, 3, 1, 2).copy()
