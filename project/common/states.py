"""How optimizers and nets take back a saved state: nothing of another type is converted in silence."""

from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from .forms import FLAG, NUMBER
from .utils import misfit


def restore(o: Any, saved: dict, name: str = "network") -> None:
    """Calls o.load_state_dict(saved). ValueError for a state of an optimizer or a net that torch takes and that cannot be its own."""
    o.load_state_dict(saved)
    if isinstance(o, torch.optim.Optimizer):
        check_optimizer(o, saved)
    elif isinstance(o, nn.Module) and (
        k := converted(o, saved) or next((k for k, v in o.state_dict().items() if not v.isfinite().all()), "")
    ):
        raise ValueError(f"the {k} of {name} is {saved[k].dtype}, or has values that are not finite")


def converted(net: nn.Module, saved: dict[str, Tensor]) -> str:
    """The name of a tensor that `net` has in another number format than `saved`; empty where there is none."""
    return next((k for k, v in net.state_dict().items() if k in saved and saved[k].dtype != v.dtype), "")


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
    tensors = [(name, v) for values in saved["state"].values() for name, v in values.items() if isinstance(v, Tensor)]
    if odd := [(name, v.dtype) for name, v in tensors if v.dtype not in (torch.float32, torch.float64)]:
        raise ValueError(f"an optimizer's {odd[0][0]} is {odd[0][1]}")  # torch would convert it
    for p, values in optimizer.state.items():
        for name, v in values.items():
            if isinstance(v, Tensor) and not (v.shape in (p.shape, ()) and v.isfinite().all()):
                raise ValueError(f"an optimizer's {name} has the shape {tuple(v.shape)} or values that are not finite")
            if not isinstance(v, Tensor) and v is not None:
                raise ValueError(f"an optimizer's {name} is {v!r}")
