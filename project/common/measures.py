"""What is measured of a net and of images: accuracy, agreement, calibration; how near synthetic images come to private ones."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
from torch import Tensor, fx
from torch.fx.experimental.optimization import fuse
from torch.utils.flop_counter import FlopCounterMode

from .datasets import Images
from .losses import kl
from .models.base import Classifier
from .pictures import pyplot, save_figure
from .processes import world_size
from .utils import autocast

FOLD_FROM = 2000  # images: making a folded copy takes as long as it saves on about so many


def infer(f: Callable[[Tensor], Tensor], images: Images, view: Callable[[Tensor], Tensor], amp: str = "off") -> Tensor:
    """f(view(x)) over all images in order, joined; without gradient."""
    device = images.y.device
    if images.stream:
        batches = (view(x) for x, _ in images.stream.loader(500, shuffle=False, augment="none").on(device))
    else:
        batches = (view(x) for x in images.x.split(1000))
    with torch.no_grad(), autocast(device, amp):
        return torch.cat([f(x) for x in batches])


@dataclass
class Audited:
    """What the teacher says of test images: log-probabilities (n, K) of the images `rows` (n,), None: of all.

    soft: whether these are all known, not only the largest. accuracy: the teacher's on these images, in percent.
    """

    log_p: Tensor
    rows: Tensor | None
    soft: bool
    accuracy: float


def quality(
    net: nn.Module, images: Images, view: Callable[[Tensor], Tensor], truth: Audited | None = None, amp: str = "off"
) -> dict[str, float]:
    """The net on labelled images: accuracy, top-5 where K > 10, expected calibration error, in percent; beside a teacher, which
    says `truth`, agreement in percent and KL(teacher || student) in nats over the images that it has classified. Nothing where there are no
    images."""
    if not len(images):
        return {}
    s, y = infer(net.eval(), images, view, amp).float(), images.y  # (N, K)
    row = {"accuracy": percent(s.argmax(1) == y), "ece": 100 * calibration_error(s.softmax(1), y).item()}
    if s.shape[1] > 10:
        row["top5"] = percent((s.topk(5).indices == y[:, None]).any(1))
    if truth is not None:
        s, t = s if truth.rows is None else s[truth.rows], truth.log_p
        row |= {"agreement": percent(s.argmax(1) == t.argmax(1))} | ({"teacher_kl": kl(s, t).item()} if truth.soft else {})
    return row


def folded(net: nn.Module, images: Images, view: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of `net` for evaluation: each batch norm that follows a convolution or a linear layer is in that layer's weights.

    It is `net` itself where no such copy can be made, where it answers otherwise on the first of the images (in float32), or would take
    longer than it saves.
    """
    net.eval()
    if len(images) < FOLD_FROM or world_size() > 1:  # each process computes a part of a batch, by hooks that a copy does not have
        return net
    few = images.subset(torch.arange(16))
    try:
        copy = fuse(fx.symbolic_trace(net, {"feature": False} if isinstance(net, Classifier) else None), no_trace=True)
        wanted, found = infer(net, few, view), infer(copy, few, view)
    except Exception:  # whatever somebody else's net raises when it is traced
        return net
    return copy if (found - wanted).abs().max() <= 1e-3 * wanted.abs().max() else net


def multiply_adds(net: nn.Module, x: Tensor) -> int:
    """The multiply-adds of a net for images x (N, C, H, W): half the FLOPs of its convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    return counter.get_total_flops() // 2


def percent(hits: Tensor) -> float:
    """The percentage of true values in (N,)."""
    return 100 * hits.sum().item() / len(hits)


def calibration_error(p: Tensor, y: Tensor, bins: int = 15) -> Tensor:
    """Expected calibration error in [0, 1] of probabilities p (N, K) for labels y (N,); Guo et al. 2017, 1706.04599, equation 3.

    The mean over equal bins of top probability of |accuracy - mean top probability|, weighted by the bins' sizes.
    """
    top, predicted = p.max(1)
    index = (top * bins).ceil().long().clamp(1, bins) - 1  # bins are open on the left
    gap = torch.zeros(bins, device=p.device).index_add_(0, index, (predicted == y).float() - top)
    return gap.abs().sum() / len(p)


# ---- is a generator copying?


def nearest(x: Tensor, y: Tensor, same: bool = False) -> tuple[Tensor, Tensor]:
    """Euclidean distance (N,) of each row of x to the nearest row of y, and that row's index; same: x is y, a row is not its own."""
    distances, indices = [], []
    for at, chunk in enumerate(x.split(1000)):
        d = torch.cdist(chunk, y)
        if same:
            rows = torch.arange(len(chunk), device=x.device)
            d[rows, rows + 1000 * at] = math.inf
        best = d.min(1)
        distances.append(best.values)
        indices.append(best.indices)
    return torch.cat(distances), torch.cat(indices)


def copying(synthetic: Tensor, private: Tensor, path: Path, pairs: int = 10) -> dict[str, float]:
    """How near synthetic images (N, C, H, W) come to private ones (M, C, H, W), pixels in [0, 1], against the latter among themselves.

    Gives the medians of both nearest-neighbour distances (Euclidean), and `closer`, the fraction of synthetic
    images that are nearer to a private one than all but 1 % of the private images are to another: some 0.01 or less where
    nothing is copied. Writes both histograms and the closest pairs as a picture to `path`.
    """
    s, p = (x.detach().float().flatten(1) for x in (synthetic, private))
    d, index = nearest(s, p)
    own, _ = nearest(p, p, same=True)
    closest = d.argsort()[:pairs]
    draw_copying(d, own, synthetic[closest], private[index[closest]], path)
    closer = (d < own.quantile(0.01)).double().mean().item()
    return {"synthetic_median": d.median().item(), "private_median": own.median().item(), "closer": closer}


def draw_copying(d: Tensor, own: Tensor, synthetic: Tensor, private: Tensor, path: Path) -> None:
    """Histograms of the distances d and own; below, each synthetic image over the private one that is nearest to it."""
    plt = pyplot()
    from torchvision.utils import make_grid

    fig, (above, below) = plt.subplots(2, 1, figsize=(6.4, 5.2), height_ratios=(2, 1), layout="constrained")
    bins = np.linspace(0, max(d.max().item(), own.max().item()) * 1.02 + 1e-6, 60)
    for values, label in ((own, "a private image to the nearest other"), (d, "a synthetic image to the nearest private")):
        above.hist(values.cpu().numpy(), bins, density=True, alpha=0.6, label=label)
    above.set(xlabel="Euclidean distance of pixels in [0, 1]", ylabel="density")
    above.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1))
    grid = make_grid(torch.cat([synthetic, private]).float(), len(synthetic), pad_value=1).clamp(0, 1)
    below.imshow(grid.permute(1, 2, 0).cpu().numpy())
    below.set(xticks=[], yticks=[], xlabel="the closest pairs: synthetic above, private below")
    save_figure(fig, path)


def histograms(values: dict, path: Path) -> None:
    """A picture of distances: {class: values}, a row a class on a common axis, with the median of each."""
    plt = pyplot()

    finite = {k: [v for v in of if math.isfinite(v)] for k, of in values.items()}
    bins = np.linspace(0, max((max(of) for of in finite.values() if of), default=1) * 1.02, 50)
    fig, axes = plt.subplots(len(finite), 1, figsize=(6.4, 0.6 * len(finite) + 1), sharex=True, squeeze=False, layout="constrained")
    for ax, (k, of) in zip(axes[:, 0], finite.items(), strict=True):
        ax.hist(of, bins)
        if of:
            ax.axvline(statistics.median(of), color="black", lw=1)
        ax.set(yticks=[])
        ax.set_ylabel(f"{k} ({len(of)})", rotation=0, ha="right", va="center")
        ax.spines[["top", "left", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel("Euclidean distance to the decision boundary, pixels in [0, 1]; the line is the median")
    save_figure(fig, path)
