"""What is measured of an export: agreement with PyTorch, quality in 8 bits, latency, size."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn
from torch import Tensor

from ..cli import RunError
from ..losses import kl
from ..measures import calibration_error, multiply_adds, percent

TOLERANCE = 1e-4  # largest difference of a logit between PyTorch and an export, over the largest absolute logit (at least 1)
PIXELS = 1e-5  # the same of normalised pixels
BATCHES = (1, 128)  # batch sizes of which the latency is measured
GAIN = 0.9  # weights get one scale per channel where this lowers KL(float || int8) on the calibration images below this fraction
WARM_UP, LEAST = 10, 20  # calls before, and at least during, a measurement
# ---- parity


def parity(name: str, s: Tensor, found: Tensor, tolerance: float = TOLERANCE) -> dict[str, float]:
    """How far the values `found` (N, ...) of an export are from those of PyTorch, s (N, ...), as floats.

    RunError where the largest absolute difference is above `tolerance` times the largest absolute value of s, at least 1, or no number.
    """
    size = s.abs().max().item()
    difference = (s - found).abs().max().item() if s.shape == found.shape else float("inf")
    limit = tolerance * max(1.0, size)
    if not difference <= limit:
        what = f"differs from PyTorch by up to {difference:.3g} on {len(s):,} test images (allowed: {limit:.3g})"
        raise RunError(f"{name} {what}; nothing was written")
    return {"images": len(s), "largest_difference": difference, "largest_value": size, "allowed": limit}


def resize_check(front: Callable[[Tensor], Tensor], preprocess: Callable[[Tensor], Tensor], shape: tuple[int, ...], std: Tensor) -> dict:
    """How far the resizing of a graph is from PyTorch's, in grey levels, on random images of six sizes.

    Values at .5 may be rounded up or down. RunError for a difference of more than one level.
    """
    (channels, size, _), g = shape, torch.Generator().manual_seed(0)
    sizes = [(2 * size, 2 * size), (2 * size + 3, size + 1), (size - 1, size + 2), (7 * size, 3 * size), (28, 28), (100, 77)]
    differences = []
    for h, w in sizes:
        x = torch.randint(0, 256, (20, channels, h, w), dtype=torch.uint8, generator=g)
        differences.append(((front(x) - preprocess(x)) * std * 255).abs().round().flatten())
    levels = torch.cat(differences)
    if levels.max() > 1:
        raise RunError(f"the graph resizes images otherwise than PyTorch, by {levels.max():.0f} of 255 levels; use --preprocess pixels")
    return {
        "sizes": [list(s) for s in sizes],
        "largest_levels": levels.max().item(),
        "pixels_that_differ": (levels > 0).float().mean().item(),
    }


# ---- quality


def quality_of(s: Tensor, y: Tensor) -> dict[str, float]:
    """Accuracy and expected calibration error in percent of logits s (N, K) for labels y (N,)."""
    return {"accuracy": percent(s.argmax(1) == y), "ece": 100 * calibration_error(s.softmax(1), y).item()}


def int8_quality(q: Tensor, s: Tensor, y: Tensor, t: Tensor | None = None) -> dict[str, float]:
    """`quality_of` 8-bit logits q (N, K), and how they differ from the float student's, s, and the teacher's, t.

    agreement, teacher_agreement: percentages of images with the same class. kl: mean of KL(float || int8), in nats. largest_change: of a
    logit.
    """
    found = quality_of(q, y) | {"agreement": percent(q.argmax(1) == s.argmax(1)), "kl": kl(q, s).item()}
    found["largest_change"] = (q - s).abs().max().item()
    return found | ({} if t is None else {"teacher_agreement": percent(q.argmax(1) == t.argmax(1))})


def per_channel_helps(tensor: float, channel: float) -> bool:
    """Whether weights get one scale per channel, which costs bytes, and not one per tensor.

    tensor, channel: KL(float || int8) with each kind on the calibration images.
    """
    return channel < GAIN * tensor


# ---- size


def size_of(net: nn.Module, x: Tensor) -> dict[str, int]:
    """Parameters of a net, and its multiply-adds for one image x (1, C, H, W)."""
    return {"parameters": sum(p.numel() for p in net.parameters()), "multiply_adds": multiply_adds(net, x)}


# ---- latency


def latency(f: Callable[[Tensor], Tensor], x: Tensor, seconds: float) -> dict[str, float]:
    """Median and 95th percentile of the milliseconds that f(x) takes, over `seconds` and at least LEAST calls, after a warm-up."""
    begin = time.perf_counter()
    for i in range(WARM_UP):
        f(x)
        if i and time.perf_counter() - begin > seconds:
            break
    times, end = [], time.perf_counter() + seconds
    while len(times) < LEAST or (time.perf_counter() < end and len(times) < 100_000):
        begin = time.perf_counter()
        f(x)
        times.append(1000 * (time.perf_counter() - begin))
    median, high = np.percentile(times, (50, 95))
    return {"median_ms": round(float(median), 4), "p95_ms": round(float(high), 4), "calls": len(times)}


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def threads_of_torch(n: int) -> Iterator[None]:
    """A block in which PyTorch computes with n threads, without gradients."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)


@dataclass
class Timed:
    """A network whose latency is measured.

    opened: (threads=n) -> a function that takes images. images: (n, C, H, W), of which batches are made.
    """

    opened: Callable[..., Callable[[Tensor], Tensor]]
    images: Tensor
    batches: tuple[int, ...] = BATCHES


def latencies(nets: dict[str, Timed], seconds: float) -> list[dict]:
    """A row for each net, batch size and number of threads (1, all cores)."""
    rows = []
    for threads in sorted({1, cores()}):
        for name, net in nets.items():
            call = net.opened(threads=threads)
            for batch in net.batches:
                x = net.images.repeat(-(-batch // len(net.images)), 1, 1, 1)[:batch].contiguous()
                with threads_of_torch(threads):
                    rows.append({"net": name, "batch": batch, "threads": threads} | latency(call, x, seconds))
    return rows
