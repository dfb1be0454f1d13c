"""What servers answer, as a BlackBox takes it: logits or probabilities (n, K), NaN where none was told, or classes (n,)."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..cli import UsageError
from ..rounding import half_unit
from ..values import few
from .wire import parsed


class Reading:
    """Turns a server's scores or labels into answers of one response. classes: names of the K classes; scale: of the scores, as the option.

    label_file: maps the server's labels to classes; labels that it does not have are left out. Without it, a label is a class name, its
    number or LABEL_number.
    """

    def __init__(self, response: str, scale: str, classes: Sequence[str], label_file: str = ""):
        self.response, self.scale, self.classes = response, scale, list(classes)
        self.kind, _, k = response.partition(":")
        self.k = min(int(k or len(classes)), len(classes))
        self.numbers = {name: i for i, name in enumerate(self.classes)}
        self.map, self.order = self.read_map(label_file) if label_file else None, None

    def take_order(self, names: Sequence[str], url: str) -> None:
        """Takes note of the order of the server's classes. UsageError where they are others than the data set's."""
        if sorted(names) != sorted(self.classes):
            raise UsageError(f"{url} has {len(names)} classes: {few(names)}; the data set has {len(self.classes)}: {few(self.classes)}")
        self.order = None if list(names) == self.classes else [*map(list(names).index, self.classes)]

    def ordered(self, values: np.ndarray) -> np.ndarray:
        """Scores (n, K) in the order of the data set's classes."""
        return values if self.order is None else values[:, self.order]

    def scores(self, values: np.ndarray, logit: bool = False) -> np.ndarray:
        """Answers to scores (n, K) of all classes; logit: whether they are logits where the scale does not say. ValueError for others."""
        scale = self.scale if self.scale != "auto" else "logit" if logit or self.kind == "logits" else "probability"
        if values.ndim != 2 or values.shape[1] != len(self.classes):
            raise ValueError(f"its scores have the shape {values.shape}; expected (images, {len(self.classes)})")
        values = self.ordered(values.astype(np.float32))
        if not np.isfinite(values).all():
            raise ValueError("its scores have values that are not finite")
        if self.kind == "hard":
            return values.argmax(1)
        if self.kind == "logits":
            if scale not in ("logit", "log"):
                raise ValueError(f"its scores are of the scale {scale}, from which --response logits cannot be had; use --response soft")
            return values
        p = softmax(values) if scale == "logit" else np.exp(values) if scale == "log" else values / (100 if scale == "percent" else 1)
        if p.min() < -1e-3 or p.max() > 1.02:
            what = f"from {values.min():.3g} to {values.max():.3g}"
            raise ValueError(f"its scores are no probabilities ({what}); if they are logits, give --api_scale logit")
        if (off := np.abs(p.sum(1) - 1).max()) > tolerance(p):
            what = f"the sums of rows differ from 1 by up to {off:.3g}"
            raise ValueError(f"its scores are no probabilities ({what}); choose an output with --api_output, or use --response hard")
        return self.top(p)

    def top(self, p: np.ndarray) -> np.ndarray:
        """Probabilities (n, K), NaN where none was told, as the response has them: with topk:k the k largest."""
        if self.kind == "topk" and self.k < p.shape[1]:
            keep = np.argpartition(-p, self.k - 1, axis=1)[:, : self.k]
            told = np.full_like(p, np.nan)
            np.put_along_axis(told, keep, np.take_along_axis(p, keep, 1), 1)
            return told
        return p

    def labels(self, values: np.ndarray) -> np.ndarray:
        """Classes (n,) of labels (n,) or (n, 1): numbers of classes, or texts. ValueError for another shape and for unknown labels."""
        if values.ndim not in (1, 2) or values.size != len(values):
            raise ValueError(f"its labels have the shape {values.shape}; expected (images,)")
        values = values.reshape(-1)
        if values.dtype.kind in "fiu":
            found = values.astype(np.int64)
            if (found != values).any() or (found < 0).any() or (found >= len(self.classes)).any():
                found = f"{values.min():g} to {values.max():g}"
                raise ValueError(f"its classes are {found}; expected integers from 0 to {len(self.classes) - 1}")
            return found if self.order is None else np.argsort(self.order)[found]
        found = [self.number(str(v)) for v in values]
        if None in found:
            raise ValueError(f"its label {values[found.index(None)]!r} stands for no class")
        return np.array(found)

    def lists(self, found: Sequence[Sequence[tuple[Any, float | None]]]) -> np.ndarray:
        """Answers to one list of (label, score) for each image. ValueError where too little is told."""
        rows = np.full((len(found), len(self.classes)), np.nan, np.float32)
        for row, pairs in zip(rows, found, strict=True):
            for label, score in pairs:
                if (number := self.number(label)) is not None:
                    row[number] = np.nan_to_num(row[number]) + self.probability(score)
        told = np.isfinite(rows).sum(1)
        if not len(rows) or told.min() == 0:
            raise ValueError("it names no class of this data set for an image; --api_classes FILE maps its labels to classes")
        if self.kind == "hard":
            return np.nanargmax(rows, 1)
        if self.kind == "logits":
            raise ValueError("it is a list of labels and scores, from which --response logits cannot be had; use --response soft or topk:5")
        if self.kind == "soft" and told.min() < len(self.classes):
            raise ValueError(f"it tells {told.min()} of {len(self.classes)} probabilities; use --response topk:{told.max()}, or hard")
        if np.nansum(rows, 1).max() > 1 + tolerance(rows):
            raise ValueError(f"its scores sum to {np.nansum(rows, 1).max():.3g}; say what they are with --api_scale")
        return self.top(rows)

    def probability(self, score: Any) -> float:
        """A score as a probability; for a class without a score 1 where only the class matters."""
        if score is None and self.kind == "hard":
            return 1.0
        if type(score) not in (int, float) or not np.isfinite(score):
            raise ValueError(f"a score is {str(score)[:30]!r}, which is no finite number")
        if self.kind == "hard":
            return float(score)
        p = {"percent": score / 100, "log": np.exp(min(score, 0.0))}.get(self.scale, score)
        if self.scale == "logit":
            raise ValueError("a list of some labels cannot have the scale logit: without the other classes there are no probabilities")
        if not -1e-3 <= p <= 1.02:
            raise ValueError(f"a score is {score:g}, which is no probability; say what it is with --api_scale")
        return max(0.0, p)

    def number(self, label: Any) -> int | None:
        """The class of a label, None where the label file leaves it out. ValueError for a label that stands for no class."""
        if self.map is not None:
            return self.map.get(str(label))
        text = str(label)
        if text in self.numbers:
            return self.numbers[text]
        match = re.fullmatch(r"(?:LABEL_|class_)?([0-9]{1,9})", text, re.IGNORECASE)
        if match and int(match[1]) < len(self.classes):
            return int(match[1])
        raise ValueError(f"its label {text[:40]!r} is no class ({few(self.classes)}); --api_classes FILE maps labels to classes")

    def read_map(self, path: str) -> dict[str, int]:
        """{label: class} of a JSON object or a CSV file. UsageError for another content and for classes that there are not."""
        try:
            text = Path(path).expanduser().read_text(encoding="utf-8")
            if text.lstrip().startswith("{"):
                pairs = parsed(text.encode()).items()
            else:
                pairs = [(row["label"], row["class"]) for row in csv.DictReader(text.splitlines())]
        except (OSError, ValueError, KeyError, csv.Error) as e:
            why = getattr(e, "strerror", None) or "it is neither a JSON object nor a CSV file with the columns label and class"
            raise UsageError(f"--api_classes {path} cannot be used: {why}") from None
        found = {}
        for label, name in pairs:
            number = self.numbers.get(str(name), int(name) if str(name).isdecimal() else -1)
            if not 0 <= number < len(self.classes):
                raise UsageError(
                    f"--api_classes {path}: {label!r} maps to {name!r}, which is no class; there are {', '.join(self.classes)}"
                )
            found[str(label)] = number
        if not found:
            raise UsageError(f"--api_classes {path} maps no label")
        return found


def tolerance(p: np.ndarray) -> float:
    """By how much sums of probabilities (n, K), NaN where none was told, may differ from 1: 0.02, or as much as their rounding explains."""
    return max(0.02, np.isfinite(p).sum(1).max() * half_unit(torch.from_numpy(p)))


def softmax(values: np.ndarray) -> np.ndarray:
    """Probabilities of logits (n, K)."""
    e = np.exp(values - values.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def at(content: Any, path: str) -> list[Any]:
    """All values at a path in JSON: keys and numbers of items, with dots, and [] for every item of a list.

    ValueError where there is nothing at it.
    """
    found = [content]
    for step in re.findall(r"\[\]|[^.\[\]]+", path):
        try:
            found = [v for c in found for v in c] if step == "[]" else [c[int(step)] if isinstance(c, list) else c[step] for c in found]
        except (KeyError, IndexError, TypeError, ValueError):
            raise ValueError(f"it has nothing at {path} (step {step})") from None
    return found
