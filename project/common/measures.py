"""What is measured beside accuracy: calibration, how near synthetic images come to private ones, whether a difference is chance."""

import math
import statistics

import numpy as np
import torch

from .pictures import pyplot, save_figure


def calibration_error(p, y, bins=15):
    """Expected calibration error in [0, 1] of probabilities p (N, K) for labels y (N,); Guo et al. 2017, 1706.04599, equation 3.

    The mean over equal bins of top probability of |accuracy - mean top probability|, weighted by the bins' sizes.
    """
    top, predicted = p.max(1)
    index = (top * bins).ceil().long().clamp(1, bins) - 1  # bins are open on the left
    gap = torch.zeros(bins, device=p.device).index_add_(0, index, (predicted == y).float() - top)
    return gap.abs().sum() / len(p)


# ---- is a generator copying?


def nearest(x, y, same=False):
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


def copying(synthetic, private, path, pairs=10):
    """How near synthetic images (N, C, H, W) come to private ones (M, C, H, W), pixels in [0, 1], against the latter among themselves.

    Gives the medians of both nearest-neighbour distances (Euclidean), and `closer`, the share of synthetic
    images that are nearer to a private one than all but 1 % of the private images are to another: some 0.01 or less where
    nothing is copied. Writes both histograms and the closest pairs as a picture to `path`.
    """
    s, p = (x.detach().float().flatten(1) for x in (synthetic, private))
    d, index = nearest(s, p)
    own, _ = nearest(p, p, same=True)
    closest = d.argsort()[:pairs]
    draw(d, own, synthetic[closest], private[index[closest]], path)
    closer = (d < own.quantile(0.01)).double().mean().item()
    return {"synthetic_median": d.median().item(), "private_median": own.median().item(), "closer": closer}


def draw(d, own, synthetic, private, path):
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


def histograms(values, path):
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


# ---- is a difference chance?


def paired(a, b):
    """(mean difference of a - b, its 95 % interval (low, high) of Student's t, exact two-sided p) for values paired by seed.

    The p is that of the permutation test on the signs of the differences, all 2^n of them: its smallest value is 2 / 2^n. Beyond
    20 pairs it is of 2^20 random ones.
    The interval is None with fewer than two pairs.
    """
    from scipy import stats  # slow to import, and of use to the table alone

    d = np.subtract(a, b)
    if len(d) < 2:
        return float(d.mean()), None, 1.0
    half = stats.t.ppf(0.975, len(d) - 1) * statistics.stdev(d.tolist()) / math.sqrt(len(d))
    how = {"permutation_type": "samples", "n_resamples": max(9999, 2 ** min(len(d), 20)), "vectorized": True}
    p = stats.permutation_test((d,), lambda x, axis: np.mean(x, axis), **how, rng=0).pvalue if np.any(d) else 1.0
    return float(d.mean()), (float(d.mean() - half), float(d.mean() + half)), float(p)


def holm(p):
    """Holm's correction of several p values, in their order; Holm 1979."""
    order, out, worst = sorted(range(len(p)), key=p.__getitem__), [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p) - rank) * p[i]))
        out[i] = worst
    return out


def seeds_needed(comparisons, level=0.05):
    """Seeds with which `comparisons` exact paired tests can reach `level` after Holm's correction: 2 / 2^n <= level / comparisons."""
    return math.ceil(1 + math.log2(comparisons / level))
