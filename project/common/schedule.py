"""The learning rate of each epoch, and the optimizer that has it."""

import math

import torch
import torch.nn as nn
from torch import Tensor

from .cli import UsageError
from .forms import FLAG, NUMBER
from .options import Base
from .utils import misfit


def milestones(args: Base) -> list[int]:
    """The epochs after which the learning rate falls, from `80,160` or fractions of --epochs such as `1/3,0.75`; UsageError for others."""
    try:
        marks = [m.strip() for m in args.milestones.split(",") if m.strip()]
        values = [float(m.partition("/")[0]) / float(m.partition("/")[2] or 1) for m in marks]
        if any(not math.isfinite(v) or v <= 0 for v in values):
            raise ValueError
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"--milestones {args.milestones}: give epochs such as 80,160, or fractions such as 1/3,2/3") from None
    return [round(v * args.epochs) if v < 1 else round(v) for v in values]


def lr_at(args: Base, epoch: int) -> float:
    """The learning rate of epoch 1, 2, ..., args.epochs; after a warm-up it is what it would be without one, as in timm."""
    if epoch <= args.lr_warmup:
        return args.LR_START + (epoch - 1) * (args.lr - args.LR_START) / args.lr_warmup
    if args.schedule == "cosine":
        return args.lr_min + (args.lr - args.lr_min) * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / args.epochs))
    return args.lr * args.gamma ** sum(epoch > m for m in milestones(args))


def optimizer_of(args: Base, net: nn.Module) -> torch.optim.Optimizer:
    """SGD or Adam over the net's parameters, with the options' weight decay."""
    parts = [{"params": [*net.parameters()]}]
    if args.decay == "weights":
        vectors = [p for p in net.parameters() if p.dim() < 2]
        parts = [{"params": [p for p in net.parameters() if p.dim() >= 2]}, {"params": vectors, "weight_decay": 0.0}]
    if args.optimizer == "adam":
        return torch.optim.Adam(parts, args.lr, weight_decay=args.weight_decay, fused=True)
    return torch.optim.SGD(parts, args.lr, args.momentum, weight_decay=args.weight_decay, nesterov=args.nesterov, fused=True)


def check_optimizer(optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """ValueError where an optimizer was given a state that cannot be one of its own, which torch does not check.

    saved: the state dict that it was given.
    """
    own = optimizer.state_dict()["param_groups"]
    numbers = [p for group in own for p in group["params"]]
    if [p for group in saved["param_groups"] for p in group["params"]] != numbers or not set(saved["state"]) <= set(numbers):
        raise ValueError("an optimizer's parameters are others")
    for name, value in (item for group in own for item in group.items() if item[0] != "params"):
        form = {"betas": (tuple, list)}.get(name, NUMBER if name in ("lr", "momentum", "dampening", "weight_decay", "eps") else FLAG)
        if problem := misfit(value, form, name) or (name == "betas" and misfit([*value], [NUMBER], name)):
            raise ValueError(f"an optimizer's {problem}")
    if len({tuple((name, isinstance(v, Tensor)) for name, v in sorted(values.items())) for values in optimizer.state.values()}) > 1:
        raise ValueError("an optimizer's parameters have values of different names")
    if odd := [
        name for values in saved["state"].values() for name, v in values.items() if isinstance(v, Tensor) and not v.is_floating_point()
    ]:
        raise ValueError(f"an optimizer's {odd[0]} has no floating-point numbers")  # torch would convert them
    for p, values in optimizer.state.items():
        for name, v in values.items():
            if isinstance(v, Tensor) and not (v.shape in (p.shape, ()) and v.isfinite().all()):
                raise ValueError(f"an optimizer's {name} has the shape {tuple(v.shape)} or values that are not finite")
            if not isinstance(v, Tensor) and v is not None:
                raise ValueError(f"an optimizer's {name} is {v!r}")
