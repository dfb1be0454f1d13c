"""Probabilities that a teacher rounds to some decimals: how many they are, and what an exact 0 among them stands for."""

import math

import torch
from torch import Tensor

from .cli import say

MOST, CHANCE = 8, 1e-3  # decimals that are looked for; how probable it may be that numbers which nobody rounded look rounded


def decimals(p: Tensor) -> int | None:
    """The decimals that probabilities of any shape, NaN where none was told, are rounded to; None where they are not, or are only 0 and 1.

    All of them must be multiples of 10^-d within float32's precision, which a few numbers are by chance if d is large.
    """
    p = p[p.isfinite() & (p > 0) & (p != 1)].double()
    for d in range(1, MOST + 1) if len(p) else ():
        scaled, room = p * 10.0**d, p * 10.0**d * torch.finfo(torch.float32).eps
        if ((scaled - scaled.round()).abs() <= 2 * room).all():
            return d if (4 * room).clamp_max(1).log10().sum() < math.log10(CHANCE) else None
    return None


def half_unit(p: Tensor) -> float:
    """Half a unit of the last decimal of probabilities, by which rounding changes each of them at most; 0 where they are not rounded."""
    d = decimals(p)
    return 0.5 * 10.0**-d if d else 0.0


class Zeros:
    """What an exact 0 among a teacher's probabilities stands for; remembers the decimals of what it has seen."""

    def __init__(self):
        self.decimals = 0

    def stand_for(self, p: Tensor) -> float:
        """The probability that is taken for a 0 of probabilities p (N, K), NaN where none was told.

        Of rounded ones half a unit of the last decimal, at most so much that all K together have a tenth; else float32's smallest number,
        to which a softmax may underflow.
        """
        if (found := decimals(p) or 0) > self.decimals:
            self.decimals = found
            say(f"the teacher's probabilities are rounded to {found} decimals: 0 is taken as {self.floor(p):g}")
        return self.floor(p) if self.decimals else torch.finfo(torch.float32).tiny

    def floor(self, p: Tensor) -> float:
        """See stand_for, of rounded ones."""
        return min(0.5 * 10.0**-self.decimals, 0.1 / p.shape[1])
