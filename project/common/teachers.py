"""Whether a checkpoint is the teacher that a run asks for, and how its images are normalised."""

from pathlib import Path

import torch
from torch import Tensor

from .datasets import Data
from .options import TeacherOptions, dataset_tag, normalisation
from .utils import UsageError


def check_teacher(path: Path, meta: dict, args: TeacherOptions, data: Data) -> None:
    """UsageError where the teacher's file says that it learned another data set, or other classes. Others' files say nothing."""
    tag = meta.get("dataset", args.dataset)
    if tag not in (args.dataset, dataset_tag(args)):
        hint = f"use --dataset {tag}, with --private {args.dataset} for images of {args.dataset}, or a teacher of {args.dataset}"
        raise UsageError(f"{path} is a teacher of {tag}, not of {args.dataset}; {hint}")
    names = meta["data"]["names"] if "data" in meta else data.names
    if not args.private and names != data.names:
        raise UsageError(f"{path} has the classes {', '.join(names)}; {args.dataset} now has {', '.join(data.names)}; train it again")


def teacher_normalisation(meta: dict, args: TeacherOptions, data: Data) -> tuple[Tensor, Tensor]:
    """(mean, std), (1, C, 1, 1) each, for pixels in [0, 1]: of --teacher_normalize, else of the teacher's file, else the data set's."""
    if args.teacher_normalize:
        found = normalisation(args.teacher_normalize, data.shape[0], "--teacher_normalize")
    elif "data" in meta:
        found = meta["data"]["mean"], meta["data"]["std"]
    else:
        return data.mean, data.std
    return tuple(torch.tensor(v, device=data.mean.device).view(1, -1, 1, 1) for v in found)


def near_chance(accuracy: float, n: int, classes: int) -> bool:
    """Whether an accuracy in percent on n images is no better than drawing one of the classes, within three standard deviations."""
    chance = 1 / classes
    return accuracy / 100 <= chance + 3 * (chance * (1 - chance) / n) ** 0.5
