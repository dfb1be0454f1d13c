"""Readers of few-shot data sets: `reader(folder, part)` returns uint8 images (N, C, H, W) and class labels (N,) from 0, or a Listing.

Parts: `base` (images of the classes to train on), `held` (held-out images of the same classes), `val` and `test` (other classes).
If a data set does not define held-out images, every tenth image of a base class is held out.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor

from ..cli import UsageError
from .files import check_cifar, class_labels, is_there, pixels, read_csv, read_pickle, refuse
from .listing import Listing, listing_of_files


def hold_out_tenth(x: Tensor | list[Path], y: Tensor, part: str) -> tuple[Tensor | list[Path], Tensor]:
    """Returns nine tenths of each class for part `base`, every tenth image for `held`, and all images for other parts.

    x: images (N, ...) or a list of N files; y: class labels (N,).
    """
    if part not in ("base", "held"):
        return x, y
    order = y.argsort(stable=True)
    starts = torch.cat([torch.zeros(1, dtype=torch.long), y.bincount().cumsum(0)])
    place = torch.empty_like(y)
    place[order] = torch.arange(len(y)) - starts[y[order]]  # number of each image within its class
    rows = ((place % 10 == 9) == (part == "held")).nonzero()[:, 0]
    return ([x[i] for i in rows.tolist()] if isinstance(x, list) else x[rows]), y[rows]


def digits(folder: str, part: str) -> tuple[Tensor, Tensor]:
    """Returns a part of DigitsFS: pairs of handwritten digits from scikit-learn side by side, 16 x 16 pixels.

    The 64 pairs of the digits 0 to 7 are base classes. The 16 pairs of an 8 and one of these digits are validation classes.
    The other 20 pairs are test classes. The four parts use different images of a digit: the first 100, the next 24, the next 24, the rest.
    """
    from sklearn.datasets import load_digits

    content = load_digits()
    x = torch.tensor(content.images * (255 / 16)).round().to(torch.uint8)  # (1797, 8, 8)
    pairs = {"val": [(a, b) for a in range(9) for b in range(9) if (a == 8) != (b == 8)]}
    pairs["base"] = pairs["held"] = [(a, b) for a in range(8) for b in range(8)]
    pairs["test"] = [(a, b) for a in range(10) for b in range(10) if 9 in (a, b) or (a, b) == (8, 8)]
    first, last = {"base": (0, 100), "held": (100, 124), "val": (124, 148), "test": (148, 1797)}[part]
    rows = [torch.tensor((content.target == d).nonzero()[0][first:last]) for d in range(10)]
    # number of images per class: at least as many as the part has of a digit, so that all of them are used
    each, g = {"base": 100, "held": 24}.get(part, 60), torch.Generator().manual_seed(0)
    images = []
    for pair in pairs[part]:
        halves = [rows[d][torch.cat([torch.randperm(len(rows[d]), generator=g) for _ in range(3)])[:each]] for d in pair]
        images.append(torch.cat([x[h] for h in halves], 2).repeat_interleave(2, 1))  # (each, 16, 16)
    return torch.cat(images)[:, None], torch.arange(len(images)).repeat_interleave(each)


# split of Bertinetto et al. 2019, https://arxiv.org/abs/1805.08136; all other classes are base classes
CIFARFS = {
    "val": "beaver beetle butterfly camel cattle crab crocodile flatfish lamp maple_tree motorcycle otter sea shark television tractor",
    "test": "baby bed bicycle chimpanzee fox leopard man pickup_truck plain poppy rocket rose snail sweet_pepper table telephone "
    "wardrobe whale woman worm",
}


def cifar(folder: str, part: str) -> tuple[Tensor, Tensor]:
    """Returns a part of CIFAR-FS: the 600 images of each class of CIFAR-100, from its training and its test set."""
    check_cifar(folder, "CIFAR100")
    parts = [torchvision.datasets.CIFAR100(folder, train, download=True) for train in (True, False)]
    names, split = parts[0].classes, {k: v.split() for k, v in CIFARFS.items()}
    wanted = split.get(part) or [n for n in names if n not in split["val"] + split["test"]]
    x, y = torch.cat([torch.as_tensor(p.data) for p in parts]), torch.cat([torch.as_tensor(p.targets) for p in parts])
    new = torch.full((100,), -1)
    new[[names.index(n) for n in wanted]] = torch.arange(len(wanted))
    chosen = new[y] >= 0
    return hold_out_tenth(x[chosen].permute(0, 3, 1, 2), new[y][chosen], part)


MINI = "miniImageNet/miniImageNet_category_split_{train_phase_train,train_phase_val,val,test}.pickle, or miniImageNet/images/ and "
MINI += "miniImageNet/{train,val,test}.csv, or miniImageNet/mini-imagenet-cache-{train,val,test}.pkl"
PICKLES = {"base": "train_phase_train", "held": "train_phase_val", "val": "val", "test": "test"}


def mini(folder: str, part: str) -> tuple[Tensor, Tensor] | Listing:
    """Returns a part of miniImageNet (84 x 84 pixels), read from miniImageNet/ in `folder`.

    Formats: the four pickles of Gidaris & Komodakis 2018; mini-imagenet-cache-train.pkl, -val.pkl and -test.pkl; or images/ with
    train.csv, val.csv and test.csv, which have the columns filename and label. The last two have the split of Ravi & Larochelle 2017.
    Raises FileNotFoundError for missing files, UsageError for other content.
    """
    root, third = Path(folder) / "miniImageNet", "train" if part in ("base", "held") else part
    path = root / f"miniImageNet_category_split_{PICKLES[part]}.pickle"
    if is_there(path):
        content = read_pickle(path, "data", "labels")
        names = class_labels(path, content["labels"])
        return pixels(path, content["data"], len(names)), class_indices(names)
    if is_there(cache := root / f"mini-imagenet-cache-{third}.pkl"):
        return hold_out_tenth(*read_cache(cache), part)
    rows = read_csv(root / f"{third}.csv", "filename", "label")
    names = [label for _, label in rows]
    files, y = hold_out_tenth([root / "images" / file for file, _ in rows], class_indices(names), part)
    return listing_of_files(root, files, y.tolist(), sorted(set(names)), pixels=84)


def read_cache(path: Path) -> tuple[Tensor, Tensor]:
    """Returns images and labels of mini-imagenet-cache-*.pkl: image_data uint8 (N, 84, 84, 3), class_dict {name: rows of its images}."""
    content = read_pickle(path, "image_data", "class_dict")
    x, by_class = pixels(path, content["image_data"]), content["class_dict"]
    lists = isinstance(by_class, dict) and all(isinstance(rows, (list, tuple, np.ndarray)) for rows in by_class.values())
    if not lists or not all(map(len, by_class.values())):
        refuse(path, f"has a class_dict that is a {type(by_class).__name__}, or lists no images", "{name: rows of its images}")
    class_labels(path, list(by_class))
    rows = [int(i) if isinstance(i, (int, np.integer)) else -1 for name in sorted(by_class) for i in by_class[name]]
    if sorted(rows) != [*range(len(x))]:
        off = f"{len(rows):,} rows from {min(rows, default=0)} to {max(rows, default=0)}, {len({*rows}):,} of them different"
        refuse(path, f"has a class_dict that does not fit: {off}", f"each of 0 to {len(x) - 1:,} once, the rows of its images")
    y = torch.empty(len(x), dtype=torch.long)
    y[rows] = torch.arange(len(by_class)).repeat_interleave(torch.tensor([len(by_class[name]) for name in sorted(by_class)]))
    return x, y


def class_indices(names: Sequence) -> Tensor:
    """Returns class labels (N,) from 0 for N class names, numbered in the sorted order of the names."""
    index = {name: i for i, name in enumerate(sorted(set(names)))}
    return torch.tensor([index[n] for n in names])


def omniglot(folder: str, part: str) -> Listing:
    """Returns a part of Omniglot (Lake et al. 2015), 105 x 105 pixels, white strokes on black.

    Classes: 864 base characters, 100 validation characters (the last ones of the background set), 659 test characters (the evaluation
    set).
    """
    name = "images_evaluation" if part == "test" else "images_background"
    root = Path(folder) / "omniglot-py" / name
    if not root.is_dir():
        torchvision.datasets.Omniglot(folder, background=part != "test", download=True)
    characters = sorted(p for p in root.glob("*/*") if p.is_dir())
    if len(characters) < 2:
        raise UsageError(f"{root} has {len(characters)} folders ALPHABET/CHARACTER/; unpack {name}.zip there again")
    n = max(1, round(len(characters) * 100 / 964))
    characters = {"val": characters[-n:], "test": characters}.get(part, characters[:-n])
    files = [sorted(c.glob("*.png")) for c in characters]
    if empty := [c for c, of_class in zip(characters, files, strict=True) if not of_class]:
        raise UsageError(f"{empty[0]} has no .png image, nor have {len(empty) - 1} other characters; unpack {name}.zip again")
    y = torch.arange(len(files)).repeat_interleave(torch.tensor([len(f) for f in files]))
    files, y = hold_out_tenth([f for of_class in files for f in of_class], y, part)
    names = ["/".join(c.parts[-2:]) for c in characters]
    return listing_of_files(root, files, y.tolist(), names, pixels=105, grey=True, invert=True)
