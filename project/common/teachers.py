"""Whether a checkpoint is the teacher that a run asks for, which classes it knows, and how its images are normalised."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .checkpoints import identity
from .cli import RunError, UsageError
from .datasets import Data, Spec, spec_of
from .datasets.images import to_pixels
from .models.hub import HubNet, hub_normalisation
from .models.library import named_file, own_object
from .options import Base, TeacherOptions, dataset_tag
from .rounding import Zeros, half_unit
from .utils import digest
from .values import few, normalisation
from .weights import oddity

Normalisation = tuple[Tensor, Tensor]  # mean, std, (1, C, 1, 1) each, for pixels in [0, 1]


class Renormalised(nn.Module):
    """A net that is given images of another normalisation than its own.

    here, its: (mean, std) of the images that come and of those that the net was trained on, (1, C, 1, 1) each, for pixels in [0, 1].
    """

    def __init__(self, net: nn.Module, here: Normalisation, its: Normalisation):
        super().__init__()
        self.net = net
        self.register_buffer("scale", here[1] / its[1])
        self.register_buffer("shift", (here[0] - its[0]) / its[1])

    def forward(self, x: Tensor, feature: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        return self.net(torch.addcmul(self.shift, x, self.scale), feature=feature)


def renormalised(net: nn.Module, here: Normalisation, its: Normalisation) -> nn.Module:
    """`net`, in Renormalised where its normalisation is another than that of the images that come."""
    return net if all(torch.equal(u, v) for u, v in zip(here, its, strict=True)) else Renormalised(net, here, its)


class OwnTeacher(nn.Module):
    """A teacher that is a function of the user's: f(images uint8 (N, C, H, W)) -> classes (N,), probabilities or logits (N, K).

    mean, std: of the images that come, (1, C, 1, 1). response: what f returns, hard, soft, topk:K or logits. UsageError, on a call, for
    answers that are not that, RunError where f fails.
    """

    def __init__(self, name: str, response: str, classes: int, mean: Tensor, std: Tensor):
        super().__init__()
        self.name, self.f, self.response, self.classes, self.mean, self.std = name, own_object(name[3:]), response, classes, mean, std
        self.zeros = Zeros()

    def forward(self, x: Tensor, feature: bool = False) -> Tensor:
        """Logits (N, K), up to a constant of each row; of a class the one-hot vector."""
        if feature:
            raise UsageError(f"{self.name} has no features; this method needs a net, and --response inside")
        answers = self.ask(to_pixels(x, self.mean, self.std))
        if what := oddity("answers", answers):
            raise UsageError(f"{self.name} returned a tensor that is {what}; return an ordinary tensor of real numbers")
        if not answers.isfinite().all():
            raise UsageError(f"{self.name} returned numbers that are not finite, for {len(x)} images")
        answers = answers.to(x.device)
        if answers.dim() == 1 and len(answers) == len(x) and self.response == "hard":
            if ((answers != answers.long()) | (answers < 0) | (answers >= self.classes)).any():
                found = f"classes from {answers.min().item():g} to {answers.max().item():g}"
                raise UsageError(f"{self.name} returned {found}; --response hard takes integers from 0 to {self.classes - 1}")
            return F.one_hot(answers.long(), self.classes).float()
        if answers.shape != (len(x), self.classes):
            what = f"classes ({len(x)},)" if self.response == "hard" else f"({len(x)}, {self.classes})"
            raise UsageError(f"{self.name} returned {tuple(answers.shape)} for {len(x)} images; --response {self.response} takes {what}")
        answers = answers.float()
        if self.response in ("hard", "logits"):
            return answers
        if answers.min() < 0 or answers.max() > 1.001 or (answers.sum(1) - 1).abs().max() > max(1e-3, self.classes * half_unit(answers)):
            raise UsageError(f"{self.name} returned rows that are no probabilities (they do not sum to 1); use --response logits")
        answers = answers.where(answers > 0, self.zeros.stand_for(answers))
        return answers.clamp_min(torch.finfo(answers.dtype).tiny).log()

    def ask(self, images: Tensor) -> Tensor:
        """What f returns for images (N, C, H, W), a tensor."""
        try:
            answers = self.f(images)
            answers = answers if isinstance(answers, Tensor) else torch.as_tensor(np.asarray(answers))
            return answers.detach()
        except (Exception, SystemExit) as e:
            raise RunError(f"{self.name} fails on {len(images)} images: {type(e).__name__}: {' '.join(str(e).split())}") from e


def foreign_teacher(args: TeacherOptions, data: Data, here: Normalisation, its: Normalisation) -> nn.Module:
    """The teacher py:FILE.py:FUNCTION or hf:PATH. here, its: the normalisation of the images that come, and that of hf:PATH."""
    if args.teacher.startswith("py:"):
        return OwnTeacher(args.teacher, args.response, data.classes, *here)
    return renormalised(HubNet(args.teacher, data.names, data.shape).to(data.mean.device), here, its)


class AbsentTeacher(nn.Module):
    """Stands for a teacher whose weights are not here: a transfer set has its answers."""

    def forward(self, x: Tensor, feature: bool = False) -> Tensor:
        raise UsageError("the weights of the teacher are not here, and the transfer set has no answers to these images")


def teacher_identity(known: str, args: TeacherOptions, its: Normalisation) -> str:
    """Letters that tell a teacher of this process from others. known: those of its file, "" where it is not here. its: its (mean, std).

    They are `known` where the file and the name are all that makes the net, so that transfer sets, generators and ledgers stay valid;
    otherwise a digest that includes --weights, --teacher_normalize, and the class and the code of FILE.py:CLASS.
    """
    code = named_file(args.teacher)
    if not known or args.teacher.startswith("py:"):  # a function has neither weights nor a normalisation
        return known
    own = [] if code is None or args.teacher.startswith("hf:") else [args.teacher.rpartition(":")[2], identity(code)]
    scale = [v.flatten().tolist() for v in its] if args.teacher_normalize else []
    return digest(known, args.weights, scale, own) if args.weights or scale or own else known


def check_teacher(path: Path, meta: dict, args: TeacherOptions, data: Data) -> None:
    """UsageError where the teacher's file says that it learned another data set, or other classes. Others' files say nothing."""
    tag = meta.get("dataset", args.dataset)
    if tag not in (args.dataset, dataset_tag(args)):
        hint = f"use --dataset {tag}, with --private {args.dataset} for images of {args.dataset}, or a teacher of {args.dataset}"
        raise UsageError(f"{path} is a teacher of {tag}, not of {args.dataset}; {hint}")
    names = meta["data"]["names"] if "data" in meta else data.names
    if not args.private and names != data.names:
        raise UsageError(f"{path} has the classes {', '.join(names)}; {args.dataset} now has {', '.join(data.names)}; train it again")


def teacher_normalisation(meta: dict, args: TeacherOptions, data: Data) -> Normalisation:
    """(mean, std), (1, C, 1, 1) each, for pixels in [0, 1]: of --teacher_normalize, else of the teacher's file, else the data set's."""
    if args.teacher_normalize:
        found = normalisation(args.teacher_normalize, data.shape[0], "--teacher_normalize")
    elif "data" in meta:
        found = meta["data"]["mean"], meta["data"]["std"]
    elif args.teacher.startswith("hf:") and (own := hub_normalisation(args.teacher)):
        found = own
    else:
        return data.mean, data.std
    return tuple(torch.tensor(v, device=data.mean.device).view(1, -1, 1, 1) for v in found)


def known_normalisation(args: Base, channels: int, meta: dict) -> tuple[Sequence[float], Sequence[float]] | None:
    """(mean, std) of each channel as --normalize says; None for `dataset`, unless the teacher's file `meta` says what that was."""
    if args.normalize != "dataset":
        return normalisation(args.normalize, channels, "--normalize")
    its = meta.get("data")
    return (its["mean"], its["std"]) if its and meta.get("normalize") == "dataset" else None


def near_chance(accuracy: float, n: int, classes: int) -> bool:
    """Whether an accuracy in percent on n images is no better than drawing one of the classes, within three standard deviations."""
    chance = 1 / classes
    return accuracy / 100 <= chance + 3 * (chance * (1 - chance) / n) ** 0.5


def class_names(args: Base, spec: Spec) -> list[str]:
    """The class names of the teacher's data set, from its folder's listing where it has no fixed number of classes."""
    if spec.classes:
        return [str(k) for k in range(spec.classes)]
    return spec.read(args.data_dir, True).classes


def with_teachers_classes(data: Data, args: Base, meta: dict, labels: bool) -> Data:
    """`data` with the class names and the order of classes that the teacher's file `meta` says, or the listing of its data set's folder.

    labels: whether the images have some of their own. UsageError as in `in_order_of`.
    """
    names = meta["data"]["names"] if "data" in meta else None
    if not labels:
        data.names = names or class_names(args, spec_of(args.dataset)[1])
        data.classes = len(data.names)
        return data
    if names is None and args.dataset.startswith("folder:"):
        with contextlib.suppress(UsageError):  # the folder need not be here
            names = class_names(args, spec_of(args.dataset)[1])
    return in_order_of(names, data) if names else data


def in_order_of(names: list[str], data: Data) -> Data:
    """`data` with labels that are places in the teacher's class names; classes are told by their names, without regard to case.

    Of other names altogether (MNIST and USPS) the order is the teacher's already. UsageError where only some of them are the teacher's.
    """
    theirs, own = (list(n) if len(set(map(str.casefold, n))) < len(n) else [*map(str.casefold, n)] for n in (names, data.names))
    if sorted(theirs) == sorted(own):
        place = torch.tensor([theirs.index(name) for name in own], device=data.mean.device)
        for part in (data.train, data.test):
            part.y = place[part.y]
    elif {*theirs} & {*own} and len(data.train):  # without images (--no_eval) its names are numbers that nobody gave
        hint = "name its class folders as the teacher's classes, or give its images without class folders"
        raise UsageError(f"{data.name} has the classes {few(data.names)}; the teacher has {few(names)}; {hint}")
    if len(names) == len(own):
        data.names = list(names)
    return data


def num_classes_without_data(args: Base, meta: dict) -> int:
    """The number of classes of a data set whose images are not read (--no_eval), 0 where they are."""
    if getattr(args, "eval", True):
        return 0
    classes = spec_of(args.dataset)[1].classes or meta.get("classes", 0)
    if not classes:
        raise UsageError(
            f"--no_eval: the number of classes of {args.dataset} is not known; train its teacher with teacher.py, which notes it"
        )
    return classes
