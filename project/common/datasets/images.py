"""Images of a data set as uint8 tensors on the device, and the view of them that a net sees."""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torchvision.transforms.v2.functional import center_crop, rgb_to_grayscale

from ..augment import auto, crop_flip, resized_crop
from ..utils import UsageError, exact


@dataclass
class Images:
    """One part of a data set: x uint8 (N, C, H, W) and y (N,) on the device; where it is streamed, `stream` stands for x.

    index: each image's row in the whole part, (N,) on the CPU.
    """

    x: torch.Tensor
    y: torch.Tensor
    stream: object = None
    index: torch.Tensor = None

    def __post_init__(self):
        if self.index is None:
            self.index = torch.arange(len(self.y))

    def __len__(self):
        return len(self.y)

    def subset(self, rows):
        rows, cpu = rows.to(self.y.device), rows.cpu()
        if self.stream is None:
            return Images(self.x[rows], self.y[rows], index=self.index[cpu])
        return Images(None, self.y[rows], replace(self.stream, index=self.stream.index[cpu]), self.index[cpu])


@dataclass
class Data:
    """train and test (Images), and `view`, which makes of uint8 images what a net sees."""

    name: str
    classes: int
    shape: tuple  # (C, H, W)
    train: Images
    test: Images
    mean: torch.Tensor  # (1, C, 1, 1), in [0, 1], on the device
    std: torch.Tensor

    def view(self, x, augment="none", which=None):
        """uint8, or float in [0, 1], (B, C, H, W) -> float (B, C, H, W), normalised; `augment`: as the option.

        which: the number of each image's view (B,), drawn where there is none; there are `views(augment)`.
        """
        if augment in ("resized_crop", "auto"):
            with exact(x):
                x = resized_crop(x if x.is_floating_point() else x / 255)
                x = auto(x) if augment == "auto" else x
        elif augment != "none":
            pad, flip = self.shape[-1] // 8 or 1, augment == "crop_flip"
            x = crop_flip(x, pad, flip, torch.randint(self.views(augment), (len(x),), device=x.device) if which is None else which)
        top = 1 if x.is_floating_point() else 255
        return ((x - self.mean * top) / (self.std * top)).contiguous(memory_format=torch.channels_last)

    def views(self, augment):
        """How many views an image has: shifts by up to an eighth of its side, mirrored or not; 0 for countless ones."""
        shifts = (2 * (self.shape[-1] // 8 or 1) + 1) ** 2
        return {"none": 1, "crop": shifts, "crop_flip": 2 * shifts}.get(augment, 0)


def zoomed(images):
    """The images, each enlarged by 8/7 and its middle taken, as timm evaluates; UsageError where they are streamed."""
    if images.stream:
        raise UsageError("--zoom is for images in memory; streamed ones are evaluated so already, where they are larger than 64 pixels")
    size = images.x.shape[-1]
    return replace(images, x=center_crop(resize(images.x, int(size / 0.875)), [size, size]))


def resize(x, size):
    """uint8 (N, C, H, W) -> uint8 (N, C, size, size), bilinear with antialiasing, in chunks."""
    if x.shape[-2:] == (size, size):
        return x
    chunks = [
        F.interpolate(c.float(), (size, size), mode="bilinear", antialias=True).round_().clamp_(0, 255).to(torch.uint8)
        for c in x.split(5000)
    ]
    return torch.cat(chunks)


def recolour(images, channels):
    if images.stream:
        raise UsageError("a folder that is streamed has colour images; take a smaller --img_size, so that it fits into memory")
    return replace(images, x=images.x.expand(-1, 3, -1, -1) if channels == 3 else rgb_to_grayscale(images.x))


def moments(images):
    """Mean and standard deviation of each channel of the training images, in [0, 1]."""
    if images.stream is not None:
        raise UsageError("--normalize dataset is not known for a streamed folder; use --normalize half")
    n, _, h, w = images.x.shape
    sums = torch.stack([torch.stack([x.sum((0, 2, 3)), x.square().sum((0, 2, 3))]) for x in map(torch.Tensor.double, images.x.split(1000))])
    mean, square = sums.sum(0) / (n * h * w * 255)  # (C,) each
    std = (square / 255 - mean.square()).clamp_min(1e-6).sqrt()
    return tuple(mean.tolist()), tuple(std.tolist())


def split(y, share, seed):
    """Indices (chosen, rest) of a class-balanced draw: of each class a share in (0, 1), or an integer number; at least one."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    y, chosen = y.cpu(), torch.zeros(len(y), dtype=torch.bool)
    for label in y.unique():
        of_class = order[y[order] == label]
        take = share if isinstance(share, int) else math.floor(share * len(of_class) + 0.5)
        chosen[of_class[: max(1, take)]] = True
    return chosen.nonzero()[:, 0], (~chosen).nonzero()[:, 0]
