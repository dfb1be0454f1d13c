"""Images of a data set as uint8 tensors on the device, and the view of them that a net sees."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop

from ..augment import auto_augment, crop_flip, rand_augment, resized_crop
from ..cli import UsageError, allocating
from ..utils import exact
from .listing import plain
from .pictures import exact_grey, recoloured
from .stream import Stream

CROPPING = ("resized_crop", "auto")  # the augmentations that begin with a random resized crop


@dataclass
class Images:
    """One part of a data set: x uint8 (N, C, H, W) and y (N,) on the device; where it is streamed, `stream` stands for x.

    index: each image's row in the whole part, (N,) on the CPU. paths: of a `folder:` data set, relative ("class/a.png"); None elsewhere.
    hash: 12 hexadecimal digits of the whole part's content, "" if unknown. source: the images before they were resized, uint8
    (N, C, S, S) with S > H, from which random resized crops are taken; None where crops are taken from x.
    """

    x: Tensor
    y: Tensor
    stream: Stream | None = None
    index: Tensor = None
    paths: list[str] | None = None
    hash: str = ""
    source: Tensor | None = None

    def __post_init__(self):
        if self.index is None:
            self.index = torch.arange(len(self.y))

    def __len__(self):
        return len(self.y)

    def subset(self, rows: Tensor) -> "Images":
        """The images of these rows: indices (n,), on any device."""
        rows, cpu = rows.to(self.y.device), rows.cpu()
        paths = None if self.paths is None else [self.paths[i] for i in cpu.tolist()]
        stream = None if self.stream is None else replace(self.stream, index=self.stream.index[cpu])
        source = None if self.source is None else self.source[rows]
        return Images(None if stream else self.x[rows], self.y[rows], stream, self.index[cpu], paths, source=source)

    def to_augment(self, augment: str) -> Tensor:
        """The images that `Data.view` augments: `source` for random resized crops, where it is kept, or else x."""
        return self.source if augment in CROPPING and self.source is not None else self.x

    def split(self, part: float, seed: int, purpose: str) -> tuple[Tensor, Tensor]:
        """Indices (chosen, rest), on the CPU, of a draw of the fraction `part` of each class.

        Where paths are known, an image's path decides (hash_split), so that other files change nothing; `purpose` separates draws of
        one seed. Elsewhere the draw is that of `split`. UsageError where a held-out set (`val`) leaves a class without an image.
        """
        chosen, rest = split(self.y, part, seed) if self.paths is None else hash_split(self.paths, self.y, part, f"{purpose}{seed}")
        y = self.y.cpu()
        if purpose == "val" and (lost := len(y.unique()) - len(y[rest].unique())):
            least = y.bincount()[y].min()
            raise UsageError(f"--val {part:g} leaves no training image of {lost} classes (one has {least} images); use a smaller --val")
        return chosen, rest

    def in_channels(self, channels: int) -> "Images":
        """The images with `channels` channels, 1 or 3."""
        if self.stream:
            return replace(self, stream=replace(self.stream, channels=channels))
        exactly = channels == 1 and self.paths is not None and self.x.shape[1] == 3 and len(self)  # of files

        def convert(x: Tensor) -> Tensor:
            return torch.cat([exact_grey(part) for part in x.split(5000)]) if exactly else recoloured(x, channels)

        return replace(self, x=convert(self.x), source=None if self.source is None else convert(self.source))


@dataclass
class Data:
    """train and test (Images), and `view`, which makes of uint8 images what a net sees."""

    name: str
    classes: int
    shape: tuple[int, int, int]  # (C, H, W)
    train: Images
    test: Images
    mean: Tensor  # (1, C, 1, 1), in [0, 1], on the device
    std: Tensor
    names: list[str] = field(default_factory=list)  # of the classes
    crop_from: int = 0  # files: the shorter side is resized to so many pixels, and the middle taken; 0: images are stretched
    source_crops: bool = False  # random resized crops are bilinear, from Images.source; False: bilinear or bicubic at random, from x

    def identity(self) -> dict:
        """The fingerprint of the data: images and hash of both parts, class names, mean, std, resize rule. Equal on every machine."""
        parts = {name: {"images": len(part), "hash": part.hash} for name, part in (("train", self.train), ("test", self.test))}
        mean, std = self.mean.flatten().tolist(), self.std.flatten().tolist()
        return parts | {"names": list(self.names), "mean": mean, "std": std, "crop_from": self.crop_from}

    def parts(self, lamda: float, seed: int, val: float = 0.0, zoom: bool = False) -> tuple[Images, Images]:
        """(private, test) images of a run with these options. private: the subset of the training set that it trains on. test: the test
        images or, with `val`, the training images that are held out."""
        train, test = self.train, self.test
        if val:
            held, rest = train.split(val, 1, "val")
            test, train = train.subset(held), train.subset(rest)
        private = train.subset(train.split(lamda, seed, "private")[0]) if lamda < 1 else train
        return private, zoomed(test) if zoom else test

    def view(self, x: Tensor, augment: str = "none", which: Tensor | None = None, strong: bool = False) -> Tensor:
        """uint8, or float in [0, 1], (B, C, H, W) -> float (B, C, H, W), normalised; `augment`: as the option.

        which: the number of each image's view (B,), drawn where there is none; there are `views(augment)`. strong: RandAugment comes next.
        x for a random resized crop may be larger than `shape`: see Images.to_augment.
        """
        if augment in CROPPING:
            bilinear = torch.zeros(len(x), dtype=torch.bool, device=x.device) if self.source_crops else None
            with exact(x):
                x = resized_crop(x if x.is_floating_point() else x / 255, smooth=bilinear, size=self.shape[-1])
                x = auto_augment(x) if augment == "auto" else x
        elif augment != "none":
            pad, flip = self.shape[-1] // 8 or 1, augment == "crop_flip"
            x = crop_flip(x, pad, flip, torch.randint(self.views(augment), (len(x),), device=x.device) if which is None else which)
        if strong:
            with exact(x):
                x = rand_augment(x if x.is_floating_point() else x / 255)
        return normalised(x, self.mean, self.std)

    def view_of_tanh(self) -> Callable[[Tensor], Tensor]:
        """A function that turns a generator's images in [-1, 1] into what a net sees; where that is their range, it changes nothing."""
        if bool((self.mean == 0.5).all() and (self.std == 0.5).all()):
            return lambda x: x
        scale, shift = 0.5 / self.std, (0.5 - self.mean) / self.std
        return lambda x: torch.addcmul(shift, x, scale)

    def views(self, augment: str) -> int:
        """How many views an image has: shifts by up to an eighth of its side, mirrored or not; 0 for countless ones."""
        shifts = (2 * (self.shape[-1] // 8 or 1) + 1) ** 2
        return {"none": 1, "crop": shifts, "crop_flip": 2 * shifts}.get(augment, 0)


def zoomed(images: Images) -> Images:
    """The images, each enlarged by 8/7 and its middle taken, as timm evaluates; UsageError where they are streamed."""
    if images.stream:
        raise UsageError("--zoom is for images in memory; streamed ones are evaluated so already, where they are larger than 64 pixels")
    size = images.x.shape[-1]
    with allocating("the enlarged test images (--zoom)", "--img_size"):
        return replace(images, x=center_crop(resize(images.x, int(size / 0.875)), [size, size]))


def resize(x: Tensor, size: int) -> Tensor:
    """uint8 (N, C, H, W) -> uint8 (N, C, size, size), bilinear with antialiasing, in chunks of 64 million values."""
    if x.shape[-2:] == (size, size):
        return x
    out = x.new_empty(*x.shape[:2], size, size)  # before the work, so that a lack of memory shows at once
    chunk = max(1, 2**26 // (x.shape[1] * max(size, *x.shape[2:]) ** 2))
    for a, b in zip(out.split(chunk), x.split(chunk), strict=True):
        a.copy_(F.interpolate(b.float(), (size, size), mode="bilinear", antialias=True).round_().clamp_(0, 255))
    return out


def to_pixels(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalised floats (N, C, H, W) -> uint8; mean, std: (1, C, 1, 1), for pixels in [0, 1]."""
    return ((x.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def normalised(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8, or float in [0, 1], (N, C, H, W) -> float (N, C, H, W) less the mean, over the standard deviation, (1, C, 1, 1) each."""
    top = 1 if x.is_floating_point() else 255
    return ((x - mean * top) / (std * top)).contiguous(memory_format=torch.channels_last)


def moments(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of the training images, in [0, 1]."""
    if images.stream is not None:
        raise UsageError("--normalize dataset is not known for a streamed folder; use --normalize half")
    n, _, h, w = images.x.shape
    chunks = map(torch.Tensor.double, images.x.split(max(1, min(1000, 2**28 // images.x[0].numel()))))
    sums = torch.stack([torch.stack([x.sum((0, 2, 3)), x.square().sum((0, 2, 3))]) for x in chunks])
    mean, square = sums.sum(0) / (n * h * w * 255)  # (C,) each
    std = (square / 255 - mean.square()).clamp_min(1e-6).sqrt()
    return tuple(mean.tolist()), tuple(std.tolist())


def split(y: Tensor, part: float | int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices (chosen, rest) of a class-balanced draw: of each class a fraction in (0, 1), or an integer number; at least one."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    y, chosen = y.cpu(), torch.zeros(len(y), dtype=torch.bool)
    for label in y.unique():
        of_class = order[y[order] == label]
        take = part if isinstance(part, int) else math.floor(part * len(of_class) + 0.5)
        chosen[of_class[: max(1, take)]] = True
    return chosen.nonzero()[:, 0], (~chosen).nonzero()[:, 0]


def number(text: str) -> float:
    """The number in [0, 1) that the SHA-256 of a text gives: its first 53 bits."""
    digest = hashlib.sha256(plain(text).encode("utf-8", "surrogateescape")).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def hash_test(paths: Sequence[str], y: Tensor, part: float) -> tuple[Tensor, Tensor]:
    """Indices (test, training) of a folder without a test set: an image is for testing if the number of its path is below `part`.

    The image with the largest number of its class is always for training. If no image is for testing, the one with the smallest
    number becomes so, of the classes with two images or more.
    """
    numbers, y = np.array([number(p) for p in paths]), y.cpu().numpy()
    smallest, largest = ends(numbers, y)
    chosen = numbers < part
    chosen[largest] = False
    if not chosen.any() and len(rows := smallest[smallest != largest]):
        chosen[rows[numbers[rows].argmin()]] = True
    return both_ways(chosen)


def hash_split(paths: Sequence[str], y: Tensor, part: float, salt: str) -> tuple[Tensor, Tensor]:
    """Indices (chosen, rest): an image is chosen if the number in [0, 1) of sha256("salt:path") is below `part`.

    paths: of N images, relative, POSIX form. y: labels (N,). Adding or removing a file moves no other, but for these two rules: of each
    class the image with the smallest number is chosen if part > 0, and the one with the largest is not if part < 1 and there are two.
    """
    numbers, y = np.array([number(f"{salt}:{p}") for p in paths]), y.cpu().numpy()
    smallest, largest = ends(numbers, y)
    chosen = numbers < part
    if part < 1:
        chosen[largest] = False
    if part > 0:
        chosen[smallest] = True
    return both_ways(chosen)


def ends(numbers: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows (smallest, largest) by number of each class, (K,) each."""
    order = np.lexsort((numbers, y))
    border = np.flatnonzero(np.diff(y[order]))
    first = np.concatenate([[0], border + 1]) if len(y) else border
    last = np.concatenate([border, [len(y) - 1]]) if len(y) else border
    return order[first], order[last]


def both_ways(chosen: np.ndarray) -> tuple[Tensor, Tensor]:
    """Indices (chosen, rest) of a mask."""
    return torch.from_numpy(np.flatnonzero(chosen)), torch.from_numpy(np.flatnonzero(~chosen))


def hash_arrays(x: Tensor, y: Tensor) -> str:
    """12 hexadecimal digits of images (N, C, H, W) and labels (N,), computed on the CPU."""
    digest = hashlib.blake2b(f"{x.dtype} {tuple(x.shape)}".encode(), digest_size=6)
    for chunk in x.split(5000):
        digest.update(chunk.cpu().contiguous().numpy())
    digest.update(y.cpu().numpy().astype("<i8"))
    return digest.hexdigest()
