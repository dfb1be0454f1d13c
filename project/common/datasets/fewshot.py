"""Readers of few-shot data sets: `read(folder, part)` gives (images uint8 (N, C, H, W), labels (N,) from 0).

Parts: base, the classes to train on; held, other images of these; val and test, classes of their own. Where nobody has held images out,
every tenth of a class is.
"""

import csv
import pickle
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision.transforms.v2 import functional as F

from ..utils import UsageError


def tenth(x, y, part):
    """The nine tenths of each class for `base`, the others for `held`; everything of another part."""
    if part not in ("base", "held"):
        return x, y
    order = y.argsort(stable=True)
    starts = torch.cat([torch.zeros(1, dtype=torch.long), y.bincount().cumsum(0)])
    place = torch.empty_like(y)
    place[order] = torch.arange(len(y)) - starts[y[order]]  # of each image in its class
    rows = ((place % 10 == 9) == (part == "held")).nonzero()[:, 0]
    return ([x[i] for i in rows.tolist()] if isinstance(x, list) else x[rows]), y[rows]


def digits(folder, part):
    """DigitsFS: two handwritten digits of scikit-learn's side by side, 16 x 16. The 64 pairs of 0 to 7 are base classes, the 16 with one 8
    and one of these are for validation, the 20 others for testing. The four parts have different images of a digit: 100, 24, 24, the rest.
    """
    from sklearn.datasets import load_digits

    content = load_digits()
    x = torch.tensor(content.images * (255 / 16)).round().to(torch.uint8)  # (1797, 8, 8)
    pairs = {"val": [(a, b) for a in range(9) for b in range(9) if (a == 8) != (b == 8)]}
    pairs["base"] = pairs["held"] = [(a, b) for a in range(8) for b in range(8)]
    pairs["test"] = [(a, b) for a in range(10) for b in range(10) if 9 in (a, b) or (a, b) == (8, 8)]
    first, last = {"base": (0, 100), "held": (100, 124), "val": (124, 148), "test": (148, 1797)}[part]
    of = [torch.tensor((content.target == d).nonzero()[0][first:last]) for d in range(10)]
    each, g = {"base": 100, "held": 24}.get(part, 60), torch.Generator().manual_seed(0)  # images of a class; all of a digit, if there are
    images = []
    for pair in pairs[part]:
        halves = [of[d][torch.cat([torch.randperm(len(of[d]), generator=g) for _ in range(3)])[:each]] for d in pair]
        images.append(torch.cat([x[h] for h in halves], 2).repeat_interleave(2, 1))  # (each, 16, 16)
    return torch.cat(images)[:, None], torch.arange(len(images)).repeat_interleave(each)


# the split of Bertinetto et al. 2019, https://arxiv.org/abs/1805.08136: what is in neither is a base class
CIFARFS = {
    "val": "beaver beetle butterfly camel cattle crab crocodile flatfish lamp maple_tree motorcycle otter sea shark television tractor",
    "test": "baby bed bicycle chimpanzee fox leopard man pickup_truck plain poppy rocket rose snail sweet_pepper table telephone "
    "wardrobe whale woman worm",
}


def cifar(folder, part):
    """CIFAR-FS: the 600 images of each class of CIFAR-100, from torchvision's training and test part."""
    parts = [torchvision.datasets.CIFAR100(folder, train, download=True) for train in (True, False)]
    names, other = parts[0].classes, {k: v.split() for k, v in CIFARFS.items()}
    wanted = other.get(part) or [n for n in names if n not in other["val"] + other["test"]]
    x, y = torch.cat([torch.as_tensor(p.data) for p in parts]), torch.cat([torch.as_tensor(p.targets) for p in parts])
    new = torch.full((100,), -1)
    new[[names.index(n) for n in wanted]] = torch.arange(len(wanted))
    mine = new[y] >= 0
    return tenth(x[mine].permute(0, 3, 1, 2), new[y][mine], part)


MINI = "miniImageNet/miniImageNet_category_split_{train_phase_train,train_phase_val,val,test}.pickle, or miniImageNet/images/ and "
MINI += "miniImageNet/{train,val,test}.csv"
PICKLES = {"base": "train_phase_train", "held": "train_phase_val", "val": "val", "test": "test"}


def mini(folder, part):
    """miniImageNet in miniImageNet/: the four pickles of Gidaris & Komodakis 2018, or images/ and train.csv, val.csv, test.csv of file
    name and label, the split of Ravi & Larochelle 2017."""
    root = Path(folder) / "miniImageNet"
    path = root / f"miniImageNet_category_split_{PICKLES[part]}.pickle"
    if path.exists():
        with open(path, "rb") as f:
            content = Arrays(f, encoding="latin1").load()
        x, names = torch.as_tensor(np.asarray(content["data"])).permute(0, 3, 1, 2), list(content["labels"])
        return x, numbered(names)
    with open(root / f"{'train' if part in ('base', 'held') else part}.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    if not rows or not {"filename", "label"} <= rows[0].keys():
        raise UsageError(f"{f.name} has no columns filename and label")
    files, y = tenth([root / "images" / r["filename"] for r in rows], numbered([r["label"] for r in rows]), part)
    return decoded(files, 84), y


def numbered(names):
    """Labels from 0, in the order of the names' sizes."""
    places = {name: i for i, name in enumerate(sorted(set(names)))}
    return torch.tensor([places[n] for n in names])


class Arrays(pickle.Unpickler):
    """Reads a pickle of NumPy arrays and plain containers; whatever else it asks for is refused, so that nothing in it is executed."""

    SAFE = ("_reconstruct", "ndarray", "dtype", "scalar")

    def find_class(self, module, name):
        if module.split(".")[0] == "numpy" and name in self.SAFE:
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise UsageError(f"a pickle that wants to run {module}.{name} is not read; it should hold arrays and lists alone")


def omniglot(folder, part):
    """Omniglot (Lake et al. 2015), white ink on black: 864 base characters and 100 of the last alphabets from its background set, 659 of
    its evaluation set to test with."""
    name = "images_evaluation" if part == "test" else "images_background"
    root = Path(folder) / "omniglot-py" / name
    if not root.is_dir():
        torchvision.datasets.Omniglot(folder, background=part != "test", download=True)
    characters = sorted(p for p in root.glob("*/*") if p.is_dir())
    n = max(1, round(len(characters) * 100 / 964))
    characters = {"val": characters[-n:], "test": characters}.get(part, characters[:-n])
    files = [sorted(c.glob("*.png")) for c in characters]
    y = torch.arange(len(files)).repeat_interleave(torch.tensor([len(f) for f in files]))
    files, y = tenth([f for of_one in files for f in of_one], y, part)
    return 255 - decoded(files, 105, grey=True), y


def decoded(files, size, grey=False):
    """Images (N, C, size, size) of files; one of another size is resized by its shorter side, and its middle taken."""

    def read(path):
        with Image.open(path) as image:
            x = F.pil_to_tensor(image.convert("L" if grey else "RGB"))
        return x if x.shape[1:] == (size, size) else F.center_crop(F.resize(x, size, antialias=True), size)

    return torch.stack([read(f) for f in files])
