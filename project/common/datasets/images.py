"""Images of a data set as uint8 tensors on the device, and the view of them that a net sees."""

import math
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop, rgb_to_grayscale

from ..augment import auto_augment, crop_flip, resized_crop
from ..utils import UsageError, exact
from .stream import Stream


@dataclass
class Images:
    """One part of a data set: x uint8 (N, C, H, W) and y (N,) on the device; where it is streamed, `stream` stands for x.

    index: each image's row in the whole part, (N,) on the CPU.
    """

    x: Tensor
    y: Tensor
    stream: Stream | None = None
    index: Tensor = None

    def __post_init__(self):
        if self.index is None:
            self.index = torch.arange(len(self.y))

    def __len__(self):
        return len(self.y)

    def subset(self, rows: Tensor) -> "Images":
        rows, cpu = rows.to(self.y.device), rows.cpu()
        if self.stream is None:
            return Images(self.x[rows], self.y[rows], index=self.index[cpu])
        return Images(None, self.y[rows], replace(self.stream, index=self.stream.index[cpu]), self.index[cpu])


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

    def view(self, x: Tensor, augment: str = "none", which: Tensor | None = None) -> Tensor:
        """uint8, or float in [0, 1], (B, C, H, W) -> float (B, C, H, W), normalised; `augment`: as the option.

        which: the number of each image's view (B,), drawn where there is none; there are `views(augment)`.
        """
        if augment in ("resized_crop", "auto"):
            with exact(x):
                x = resized_crop(x if x.is_floating_point() else x / 255)
                x = auto_augment(x) if augment == "auto" else x
        elif augment != "none":
            pad, flip = self.shape[-1] // 8 or 1, augment == "crop_flip"
            x = crop_flip(x, pad, flip, torch.randint(self.views(augment), (len(x),), device=x.device) if which is None else which)
        return normalised(x, self.mean, self.std)

    def views(self, augment: str) -> int:
        """How many views an image has: shifts by up to an eighth of its side, mirrored or not; 0 for countless ones."""
        shifts = (2 * (self.shape[-1] // 8 or 1) + 1) ** 2
        return {"none": 1, "crop": shifts, "crop_flip": 2 * shifts}.get(augment, 0)


def zoomed(images: Images) -> Images:
    """The images, each enlarged by 8/7 and its middle taken, as timm evaluates; UsageError where they are streamed."""
    if images.stream:
        raise UsageError("--zoom is for images in memory; streamed ones are evaluated so already, where they are larger than 64 pixels")
    size = images.x.shape[-1]
    return replace(images, x=center_crop(resize(images.x, int(size / 0.875)), [size, size]))


def resize(x: Tensor, size: int) -> Tensor:
    """uint8 (N, C, H, W) -> uint8 (N, C, size, size), bilinear with antialiasing, in chunks."""
    if x.shape[-2:] == (size, size):
        return x
    chunks = [
        F.interpolate(c.float(), (size, size), mode="bilinear", antialias=True).round_().clamp_(0, 255).to(torch.uint8)
        for c in x.split(5000)
    ]
    return torch.cat(chunks)


def normalised(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8, or float in [0, 1], (N, C, H, W) -> float (N, C, H, W) less the mean, over the standard deviation, (1, C, 1, 1) each."""
    top = 1 if x.is_floating_point() else 255
    return ((x - mean * top) / (std * top)).contiguous(memory_format=torch.channels_last)


def recoloured(x: Tensor, channels: int) -> Tensor:
    """Images (N, 1 or 3, H, W) with `channels` channels: grey ones repeated, colour ones made grey."""
    if x.shape[1] == channels:
        return x
    return x.expand(-1, 3, -1, -1) if channels == 3 else rgb_to_grayscale(x)


def moments(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of the training images, in [0, 1]."""
    if images.stream is not None:
        raise UsageError("--normalize dataset is not known for a streamed folder; use --normalize half")
    n, _, h, w = images.x.shape
    sums = torch.stack([torch.stack([x.sum((0, 2, 3)), x.square().sum((0, 2, 3))]) for x in map(torch.Tensor.double, images.x.split(1000))])
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
