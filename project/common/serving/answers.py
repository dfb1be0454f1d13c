"""What answers to a request may contain, by response, and how they are made of logits."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ..blackbox import RESPONSES, rank
from .refusals import Refused

LEAST = {"logits": "logits", "probabilities": "soft", "scores": "topk", "labels": "topk", "label": "hard"}  # output: the least response


def outputs_of(response: str, classes: int) -> dict[str, tuple[str, list[int]]]:
    """{output: (datatype, shape)} of a response, the first one first; -1 stands for the number of images."""
    full, label = {"probabilities": ("FP32", [-1, classes])}, {"label": ("INT64", [-1])}
    if response == "hard":
        return label
    if response.startswith("topk"):
        k = top(response, classes)
        return {"scores": ("FP32", [-1, k]), "labels": ("INT64", [-1, k])}
    return full | label if response == "soft" else {"logits": ("FP32", [-1, classes])} | full | label


def top(response: str, classes: int) -> int:
    """K of `topk:K`, at most the number of classes."""
    return min(int(response[5:]), classes)


def check_outputs(names: Sequence[str], response: str, classes: int) -> None:
    """Refused for outputs that there are not (400), and for those above the response (403)."""
    there_are = ", ".join(outputs_of(response, classes))
    for name in names:
        if name not in LEAST:
            raise Refused(400, f"there is no output {name!r}; there are: {there_are}")
        if RESPONSES.index(LEAST[name]) > rank(response):
            raise Refused(403, f"the output {name} needs the response {LEAST[name]}, and yours is {response}: {there_are}")
        if name not in outputs_of(response, classes):
            raise Refused(400, f"the response {response} has no output {name}; there are: {there_are}")


def make_outputs(logits: Tensor, names: Sequence[str], response: str, digits: int) -> dict[str, np.ndarray]:
    """{output: values} for the outputs `names` of logits (N, K); digits: decimals of probabilities, 0 for all."""
    made = {}
    if not {"probabilities", "scores", "labels"}.isdisjoint(names):
        made["probabilities"] = p = logits.softmax(1)
        if response.startswith("topk"):
            made["scores"], made["labels"] = p.topk(top(response, p.shape[1]))
    if "label" in names:
        made["label"] = logits.argmax(1)
    found = {name: (made[name] if name != "logits" else logits).numpy() for name in names}
    if digits:
        found |= {name: rounded(found[name], digits) for name in ("probabilities", "scores") if name in found}
    return found


def rounded(values: np.ndarray, digits: int) -> np.ndarray:
    """float32 values with so many decimals."""
    return values.astype(np.float64).round(digits).astype(np.float32)
