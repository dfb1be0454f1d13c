"""DATASETS by name. A data set is two tensors on the device, uint8 images and labels; one that does not fit is streamed.

Images are resized once. `view` turns uint8 into the floats that a net sees, in [-1, 1] unless the data set's mean and
standard deviation are asked for, and augments whole batches on the device.
"""

import math
import os
import urllib.error
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import center_crop, rgb_to_grayscale

from . import fewsets
from .augment import auto, resized_crop
from .utils import RunError, UsageError, exact, lookup

RESIDENT_BYTES = 4e9  # a folder whose uint8 images need more than this is streamed


@dataclass(frozen=True)
class Spec:
    """One row of DATASETS. `read(folder, train)` gives (images uint8 (N, C, H, W), labels (N,)), or an ImageFolder."""

    classes: int
    channels: int
    size: int
    read: callable
    files: str
    mean: tuple = ()
    std: tuple = ()
    novel: callable = None  # few-shot sets: read(folder, "val" or "test") gives images of classes of their own


# ---- readers


def digits(folder, train):
    """The 1,797 handwritten digits of scikit-learn (UCI optdigits, 8 x 8, 17 grey levels): 50 of each class are the test set."""
    from sklearn.datasets import load_digits

    content = load_digits()
    x = torch.tensor(content.images * (255 / 16)).round().to(torch.uint8)[:, None]
    y = torch.tensor(content.target)
    test, rest = split(y, 50, seed=0)
    chosen = rest if train else test
    return x[chosen], y[chosen]


def torchvision_set(name, **parts):
    """A reader for a torchvision data set that holds all its images in memory."""

    def read(folder, train):
        options = {k: v[0 if train else 1] for k, v in parts.items()} or {"train": train}
        content = getattr(torchvision.datasets, name)(folder, download=True, **options)
        x = torch.as_tensor(np.asarray(content.data))
        y = torch.as_tensor(np.asarray(getattr(content, "targets", getattr(content, "labels", None))), dtype=torch.long)
        if x.dim() == 3:
            return x[:, None], y  # grey
        return (x.permute(0, 3, 1, 2) if x.shape[3] == 3 else x), y

    return read


def syndigits(folder, train):
    """Synthetic Digits (Ganin & Lempitsky 2015) in its authors' two files, of SVHN's layout."""
    from scipy.io import loadmat

    with open(Path(folder) / "SynDigits" / f"synth_{'train' if train else 'test'}_32x32.mat", "rb") as f:
        content = loadmat(f)
    x = torch.as_tensor(content["X"]).permute(3, 2, 0, 1).contiguous()  # (32, 32, 3, N)
    return x, torch.as_tensor(content["y"].astype(np.int64)).flatten() % 10


def tiny_imagenet(folder, train):
    """tiny-imagenet-200 as it is distributed: val/ is one folder of images and a list of their classes."""
    root = Path(folder) / "tiny-imagenet-200"
    content = ImageFolder(root / "train")
    if not train:
        rows = [line.split("\t")[:2] for line in (root / "val" / "val_annotations.txt").read_text().splitlines()]
        content.samples = [(str(root / "val" / "images" / name), content.class_to_idx[wnid]) for name, wnid in rows]
    return content


def imagenet(folder, train):
    return ImageFolder(Path(folder) / "imagenet" / ("train" if train else "val"))


def own_folder(root):
    """The user's images: PATH/train and PATH/test (or val) with a folder a class; or a folder a class, a fifth kept for testing."""

    def read(folder, train):
        path = Path(root).expanduser()
        if (path / "train").is_dir():
            other = next((path / n for n in ("test", "val", "valid", "validation") if (path / n).is_dir()), None)
            if other is None:
                raise UsageError(f"{path} has train/ but neither test/ nor val/; add one, each with a folder a class")
            first, second = ImageFolder(path / "train"), ImageFolder(other)
            if first.classes != second.classes:
                raise UsageError(f"{path}: the classes of train/ and {other.name}/ differ: {len(first.classes)} and {len(second.classes)}")
            return first if train else second
        content = ImageFolder(path)
        test, rest = split(torch.tensor(content.targets), 0.2, seed=0)
        content.samples = [content.samples[i] for i in (rest if train else test)]
        return content

    return read


def few(read):
    """The readers of a few-shot set: its base classes are an ordinary data set, whose test images are those held out of them."""
    return {"read": lambda folder, train: read(folder, "base" if train else "held"), "novel": read}


def idx_files(name):
    return f"{name}/raw/train-images-idx3-ubyte.gz and the three beside it (train-labels-idx1, t10k-images-idx3, t10k-labels-idx1)"


CIFAR10 = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
CIFAR100 = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DATASETS = {
    "Digits": Spec(10, 1, 8, digits, "nothing: it comes with scikit-learn"),
    "MNIST": Spec(10, 1, 32, torchvision_set("MNIST"), idx_files("MNIST"), (0.1307,), (0.3081,)),
    "FashionMNIST": Spec(10, 1, 32, torchvision_set("FashionMNIST"), idx_files("FashionMNIST")),
    "KMNIST": Spec(10, 1, 32, torchvision_set("KMNIST"), idx_files("KMNIST")),
    "USPS": Spec(10, 1, 32, torchvision_set("USPS"), "usps.bz2 and usps.t.bz2"),
    "SVHN": Spec(10, 3, 32, torchvision_set("SVHN", split=("train", "test")), "train_32x32.mat and test_32x32.mat"),
    "SynDigits": Spec(
        10, 3, 32, syndigits, "SynDigits/synth_train_32x32.mat and SynDigits/synth_test_32x32.mat (no host offers them steadily)"
    ),
    "CIFAR10": Spec(10, 3, 32, torchvision_set("CIFAR10"), "cifar-10-python.tar.gz, or its folder cifar-10-batches-py", *CIFAR10),
    "CIFAR100": Spec(100, 3, 32, torchvision_set("CIFAR100"), "cifar-100-python.tar.gz, or its folder cifar-100-python", *CIFAR100),
    "TinyImageNet": Spec(200, 3, 64, tiny_imagenet, "tiny-imagenet-200/, the unpacked tiny-imagenet-200.zip"),
    "DigitsFS": Spec(64, 1, 16, files="nothing: it comes with scikit-learn", **few(fewsets.digits)),
    "CIFARFS": Spec(
        64, 3, 32, files="cifar-100-python.tar.gz, or its folder cifar-100-python", mean=CIFAR100[0], std=CIFAR100[1], **few(fewsets.cifar)
    ),
    "miniImageNet": Spec(0, 3, 80, files=fewsets.MINI, mean=IMAGENET[0], std=IMAGENET[1], **few(fewsets.mini)),
    "Omniglot": Spec(0, 1, 28, files="omniglot-py/images_background/ and omniglot-py/images_evaluation/", **few(fewsets.omniglot)),
    "ImageNet": Spec(1000, 3, 224, imagenet, "imagenet/train/ and imagenet/val/ with a folder a class each", *IMAGENET),
}


# ---- a data set


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


def load(name, data_dir="data", device="cpu", img_size=0, normalize="half", workers=-1, channels=0, imagined=0):
    """The data set `name` (a key of DATASETS or `folder:PATH`), downloaded into `data_dir` if it is not there.

    img_size: pixels, 0 for the data set's usual size; workers: processes that read a folder, -1 for one a core up to 8;
    channels: 1 makes colour images grey, 3 repeats grey ones, 0 leaves them as they are; imagined: a number of classes, for a data set of
    that many classes and no image, for which nothing is read.
    normalize: `half` (range [-1, 1]) or `dataset` (mean 0, standard deviation 1).
    Raises UsageError for an unknown name or unusable folder, RunError where a download failed.
    """
    name, spec = spec_of(name)
    size = img_size or spec.size
    workers = min(8, os.cpu_count() or 1) if workers < 0 else workers
    if imagined:
        nothing = torch.empty(0, channels or spec.channels, size, size, dtype=torch.uint8, device=device)
        parts = [Images(nothing, torch.empty(0, dtype=torch.long, device=device))] * 2
        spec = replace(spec, classes=imagined)
        if normalize == "dataset" and not spec.mean:
            raise UsageError(f"--normalize dataset: nobody knows the mean of {name} without its images; take --normalize half")
    else:
        parts = [part(spec.read, name, spec, Path(data_dir), train, size, device, workers) for train in (True, False)]
    if channels not in (0, spec.channels):
        parts = [recolour(p, channels) for p in parts]
        spec = replace(spec, channels=channels, mean=(), std=())
    classes = spec.classes or max(len(set(p.y.tolist())) for p in parts)
    if normalize == "half":
        mean = std = (0.5,) * spec.channels
    elif spec.mean:
        mean, std = spec.mean, spec.std
    else:
        mean, std = moments(parts[0])
    per_channel = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (mean, std))
    return Data(name, classes, (spec.channels, size, size), *parts, *per_channel)


def novel(name, which, data_dir="data", device="cpu", size=0):
    """The Images of a few-shot set's `val` or `test` classes, labels from 0; UsageError for a data set that has none."""
    name, spec = spec_of(name)
    if not spec.novel:
        there_are = ", ".join(n for n, s in DATASETS.items() if s.novel)
        raise UsageError(f"{name} keeps no classes for few-shot episodes; these do: {there_are}")
    return part(spec.novel, name, spec, Path(data_dir), which, size or spec.size, device, 0)


def spec_of(name):
    """(canonical name, Spec)."""
    if name.lower().startswith("folder:"):
        path = name.partition(":")[2]
        return f"folder:{path}", Spec(0, 3, 32, own_folder(path), path)
    name = lookup(name, DATASETS, "data set", "folder:PATH")
    return name, DATASETS[name]


def part(read, name, spec, data_dir, train, size, device, workers):
    ready = "DigitsFS" if spec.novel else "Digits"
    missing = f"put {spec.files} into {data_dir}/ (--data_dir names another folder); --dataset {ready} needs no download"
    try:
        content = read(str(data_dir), train)
    except FileNotFoundError as e:
        where = f" ({e.filename})" if e.filename else ""
        raise UsageError(f"{name} is not there{where}: {missing if name in DATASETS else e}") from None
    except (urllib.error.URLError, RuntimeError, OSError, EOFError, ValueError, zlib.error) as e:
        raise RunError(f"{name} could not be downloaded or read ({e}): {missing}") from None
    if isinstance(content, tuple):
        x, y = content
        return Images(resize(x.to(device), size), y.to(device))
    y = torch.tensor([label for _, label in content.samples])
    stream = Stream(content.samples, torch.arange(len(y)), size, workers)
    if len(y) * spec.channels * size * size > RESIDENT_BYTES:
        return Images(None, y.to(device), stream)
    x = torch.cat([x for x, _ in stream.loader(500, shuffle=False, augment="none")])
    return Images(x.to(device), y.to(device))


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


def crop_flip(x, pad, flip, which):
    """View number `which` (B,) of each image: shifted by up to `pad` pixels (black comes in), mirrored where that and `flip` say so.

    The number's digits: row shift, column shift (2 pad + 1 each), mirrored. One gather for the batch; a float x keeps its gradient.
    """
    (b, _, h, w), n = x.shape, 2 * pad + 1
    which = which[:, None]
    rows = which % n + torch.arange(h, device=x.device)  # (B, H)
    cols = which // n % n + torch.arange(w, device=x.device)  # (B, W)
    if flip:
        cols = torch.where(which // n**2 == 1, cols.flip(1), cols)
    padded = F.pad(x, (pad,) * 4).permute(0, 2, 3, 1)  # (B, H + 2 pad, W + 2 pad, C)
    return padded[torch.arange(b, device=x.device)[:, None, None], rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)


# ---- what one can iterate


class Batches:
    """Shuffled mini-batches of tensors of equal length that lie on the device: `for x, answers in Batches(x, answers, size=128)`.

    first: a function of the first tensor of each batch (a data set's view). steps: batches an epoch; without it, one pass.
    A single image left over is dropped, since batch norm cannot train on one.
    """

    def __init__(self, *tensors, size, first=None, steps=None):
        self.tensors, self.size, self.first = tensors, min(size, len(tensors[0])), first
        n = len(tensors[0])
        self.a_pass = n // self.size + (n % self.size > 1)
        self.steps = steps or self.a_pass

    def __len__(self):
        return self.steps

    def __iter__(self):
        n = len(self.tensors[0])
        for step in range(self.steps):
            k = step % self.a_pass
            if k == 0:
                order = torch.randperm(n, device=self.tensors[0].device)
            index = order[k * self.size : (k + 1) * self.size]
            batch = [t[index] for t in self.tensors]
            if self.first:
                batch[0] = self.first(batch[0])
            yield tuple(batch)


class Draw:
    """`steps` batches an epoch, each a fresh `make()`: noise, images from a generator, mixes."""

    def __init__(self, steps, make):
        self.steps, self.make = steps, make

    def __len__(self):
        return self.steps

    def __iter__(self):
        for _ in range(self.steps):
            yield self.make()


class Map:
    """Batches, each passed through f."""

    def __init__(self, batches, f):
        self.batches, self.f = batches, f

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return (self.f(*batch) for batch in self.batches)


@dataclass
class Stream:
    """Files read anew at every pass by worker processes, for a data set that does not fit."""

    samples: list
    index: torch.Tensor
    size: int
    workers: int

    def loader(self, batch_size, shuffle, augment):
        """Batches of uint8 (B, 3, size, size) and of the images' places in `index` (B,), on the CPU; augmented ones are resized crops."""
        crop = [v2.RandomResizedCrop(self.size), v2.RandomHorizontalFlip(), *([v2.AutoAugment()] if augment == "auto" else [])]
        read = [v2.Resize(self.resize_to()), v2.CenterCrop(self.size)] if augment == "none" else crop
        files = Files(self.samples, self.index, v2.Compose([*read, v2.PILToTensor()]))
        pin = torch.cuda.is_available()
        return torch.utils.data.DataLoader(
            files, batch_size, shuffle, num_workers=self.workers, pin_memory=pin, drop_last=shuffle and len(files) > batch_size
        )

    def resize_to(self):
        return round(self.size / 0.875) if self.size > 64 else self.size  # 224 is cut out of 256; small images are used whole


class Files(torch.utils.data.Dataset):
    def __init__(self, samples, index, transform):
        self.samples, self.index, self.transform = samples, index, transform

    def __len__(self):
        return len(self.index)

    def __getitem__(self, i):
        path, _ = self.samples[self.index[i]]
        try:
            return self.transform(torchvision.datasets.folder.pil_loader(path)), i
        except OSError as e:
            raise RunError(f"{path} is no readable image ({e}); take it out of the folder") from None


class Streamed:
    """A streamed Images with the face of Batches: (view of x, *rows of the tensors), on the device."""

    def __init__(self, images, *tensors, size, first, augment):
        self.loader = images.stream.loader(size, shuffle=True, augment=augment)
        self.tensors, self.first, self.device = tensors, first, images.y.device

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        for x, i in self.loader:
            i = i.to(self.device, non_blocking=True)
            yield self.first(x.to(self.device, non_blocking=True)), *(t[i] for t in self.tensors)
