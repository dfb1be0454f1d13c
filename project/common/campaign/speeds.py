"""How long an epoch of a run takes: measured, or guessed from its nets and corrected by what was measured of other runs."""

import contextlib
import statistics
from collections import defaultdict
from collections.abc import Iterable
from functools import cache

import torch

from ..cli import UsageError
from ..datasets import spec_of
from ..measures import multiply_adds
from ..models import MODELS, build
from ..runner import Task
from .book import CPU, kind_of

IMAGES = {"Digits": 1_297, "USPS": 7_291}  # of training sets much smaller than others
USUAL = 50_000  # of the others, which are not read
STEP = 0.01  # seconds that a step takes beside its arithmetic
RATE = {True: 5e12, False: 1.5e10}  # multiplications a second, on a GPU and on a CPU


def levels(kind: str) -> list[tuple[str, ...]]:
    """What a kind of run has in common with ever more others: script, data set and nets; script and data set; script; nothing."""
    script, dataset, nets = kind.split("/")
    return [(script, dataset, nets.partition("-")[0]), (script, dataset), (script,), ()]


@cache
def multiplications(name: str, classes: int, shape: tuple[int, int, int]) -> int:
    """Multiplications as a net classifies an image (C, H, W); 0 for a net that is not of this project."""
    if name in MODELS:
        with contextlib.suppress(UsageError), torch.device("meta"):  # images too small for a net: its run will say so
            return multiply_adds(build(name, classes, shape, "meta").eval(), torch.empty(1, *shape))
    return 0


def guess(task: Task, gpu: bool) -> float:
    """Seconds that an epoch of a run takes, by the multiplications of its student, forward and backward, and of its teacher."""
    a, spec = task.args, spec_of(task.args.dataset)[1]
    shape = (a.channels or spec.channels, *[a.img_size or spec.size] * 2)
    steps = next((n for name in ("ep_steps", "steps") if (n := getattr(a, name, 0))), a.lamda * IMAGES.get(a.dataset, USUAL) / a.batch_size)
    work = 3 * multiplications(a.model, spec.classes or 10, shape) + multiplications(a.teacher, spec.classes or 10, shape)
    return steps * (STEP + a.batch_size * work / RATE[gpu])


class Speeds:
    """Seconds that an epoch of each kind of run takes on one device.

    measured: {kind: seconds an epoch} on it. tasks: runs whose speeds are asked for.
    """

    def __init__(self, measured: dict[str, float], tasks: Iterable[Task], device: str):
        self.measured, ratios = measured, defaultdict(list)
        self.guesses = {kind_of(task): guess(task, device != CPU) for task in tasks}
        for kind in measured.keys() & self.guesses.keys():
            for level in levels(kind):
                ratios[level].append(measured[kind] / self.guesses[kind])
        self.ratios = {level: statistics.median(found) for level, found in ratios.items()}

    def of(self, task: Task) -> tuple[float, str]:
        """(seconds an epoch, where they are from): measured; estimated, a guess corrected by the nearest kinds of runs; or guessed."""
        kind = kind_of(task)
        if kind in self.measured:
            return self.measured[kind], "measured"
        ratio = next((self.ratios[level] for level in levels(kind) if level in self.ratios), None)
        return self.guesses[kind] * (ratio or 1), "estimated" if ratio else "guessed"
