"""Is a difference between two rows of a table chance? Paired tests over seeds."""

import math
import statistics
from collections.abc import Sequence

import numpy as np

TIE = 1e-4  # points: means that differ by less are equal; tables/measured has accuracies with four decimals


def paired(a: Sequence[float], b: Sequence[float]) -> tuple[float, tuple[float, float] | None, float]:
    """(mean difference of a - b, its 95 % interval (low, high) of Student's t, exact two-sided p) for values paired by seed.

    The p is that of the permutation test on the signs of the differences, all 2^n of them: its smallest value is 2 / 2^n. Beyond
    20 pairs it is of 2^17 random ones: its standard error at 5 % is 0.06 %. Accuracies are counts of images, so that means often tie;
    means whose sizes differ by less than TIE count as equal, because 92.2 - 91.8 and 91.6 - 91.2 are not equal in binary.
    The interval is None with fewer than two pairs.
    """
    from scipy import stats  # slow to import, and of use to the table alone

    d = np.subtract(a, b)
    if len(d) < 2:
        return float(d.mean()), None, 1.0
    half = half_width(d.tolist())
    how = {
        "permutation_type": "samples",
        "n_resamples": max(9999, 2 ** (len(d) if len(d) <= 20 else 17)),
        "vectorized": True,
        "batch": 2**14,
    }
    means = np.abs(stats.permutation_test((d,), lambda x, axis: np.mean(x, axis), **how, rng=0).null_distribution)
    drawn = len(means) < 2 ** len(d)  # random signs: the observed ones count as one of them
    p = (np.sum(means >= abs(d.mean()) - TIE) + drawn) / (len(means) + drawn)
    return float(d.mean()), (float(d.mean() - half), float(d.mean() + half)), float(p)


def half_width(values: Sequence[float], error: float = 0.0, runs: int = 2) -> float:
    """Half the width of the 95 % interval around the mean of two or more values, of Student's t.

    error: standard error of another mean, over `runs` runs, which is subtracted (Welch's interval); 0 for an exact number.
    """
    from scipy import stats

    ours, other = statistics.variance(values) / len(values), error**2
    freedom = (ours + other) ** 2 / (ours**2 / (len(values) - 1) + other**2 / (runs - 1)) if ours + other else 1
    return float(stats.t.ppf(0.975, freedom)) * math.sqrt(ours + other)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction of several p values, in their order; Holm 1979."""
    order, out, worst = sorted(range(len(p)), key=p.__getitem__), [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p) - rank) * p[i]))
        out[i] = worst
    return out


def seeds_needed(comparisons: int, level: float = 0.05) -> int:
    """Seeds with which `comparisons` exact paired tests can reach `level` after Holm's correction: 2 / 2^n <= level / comparisons."""
    return math.ceil(1 + math.log2(comparisons / level))
