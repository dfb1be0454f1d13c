"""The learning rate of each epoch, and the optimizer that has it."""

import math

import torch
import torch.nn as nn

from .cli import UsageError
from .options import Base


def milestones(args: Base) -> list[int]:
    """The epochs after which the learning rate falls, from `80,160` or fractions such as `1/3,0.75` of a round; UsageError for others."""
    try:
        marks = [m.strip() for m in args.milestones.split(",") if m.strip()]
        values = [float(m.partition("/")[0]) / float(m.partition("/")[2] or 1) for m in marks]
        if any(not math.isfinite(v) or v <= 0 for v in values):
            raise ValueError
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"--milestones {args.milestones}: give epochs such as 80,160, or fractions such as 1/3,2/3") from None
    return [round(v * args.round_epochs()) if v < 1 else round(v) for v in values]


def lr_at(args: Base, epoch: int) -> float:
    """The learning rate of epoch 1, 2, ..., args.epochs; after a warm-up it is what it would be without one, as in timm.

    It starts anew in each round of `args.round_epochs()` epochs; the rest of --epochs, if any, has the last round's final learning rate.
    """
    length = args.round_epochs()
    epoch = min(length, epoch - length * min((epoch - 1) // length, args.epochs // length - 1))
    if epoch <= args.lr_warmup:
        return args.LR_START + (epoch - 1) * (args.lr - args.LR_START) / args.lr_warmup
    if args.schedule == "cosine":
        return args.lr_min + (args.lr - args.lr_min) * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / length))
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
