"""Feature maps of the stages of a network of any family."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..cli import UsageError

RELUS = (F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)


class LastReLU(TorchFunctionMode):
    """Keeps the input and the output of the latest ReLU: `with LastReLU() as relu: net(x)`."""

    input = output = None

    def __torch_function__(self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict | None = None) -> Any:
        if func not in RELUS:
            return func(*args, **(kwargs or {}))
        self.input, self.output = args[0].clone(), func(*args, **(kwargs or {}))  # a ReLU in place overwrites its input
        return self.output


class Stages:
    """Records the feature maps of a network's stages: `with stages: net(x)` stores them in `stages.seen`.

    seen: maps (B, C, H, W), the largest first; shapes: their (C, H, W).
    The stages are found in one pass over an image of `shape` (C, H, W). For each height of the maps, the last map of that height is
    used; height 1 is used only if there is no other. The maps are outputs of the outermost blocks if these have at least three heights.
    Otherwise they are outputs of inner blocks, and finally of any layer. Raises UsageError if there is no feature map.
    before_relu: a map that a ReLU gives is replaced by the ReLU's input.
    """

    def __init__(self, net: nn.Module, shape: tuple[int, int, int], device: torch.device | str, before_relu: bool = False) -> None:
        self.relu = LastReLU() if before_relu else nullcontext()
        outputs, training = [], net.training  # (depth, is a block, height, module, (C, H, W)) in order of computation

        def note(name, module):
            def hook(module, inputs, output):
                if isinstance(output, Tensor) and output.dim() == 4:
                    block = any(True for _ in module.children())
                    outputs.append((name.count("."), block, output.shape[2], module, tuple(output.shape[1:])))

            return module.register_forward_hook(hook)

        hooks = [note(name, m) for name, m in net.named_modules() if name]
        with torch.no_grad():
            net.eval()(torch.zeros(1, *shape, device=device))
        net.train(training)
        for hook in hooks:
            hook.remove()
        for depth in (*range(4), None):
            chosen = {h: (m, size) for d, block, h, m, size in outputs if depth is None or (d <= depth and block)}
            if len(chosen) >= 3:
                break
        if not chosen:
            raise UsageError(
                f"{type(net).__name__} has no feature maps that could be compared; use a base loss of logits, such as --base kd"
            )
        order = sorted((h for h in chosen if h > 1 or len(chosen) == 1), reverse=True)
        self.modules, self.shapes = zip(*(chosen[h] for h in order), strict=True)
        self.seen = []

    def __enter__(self) -> None:
        self.seen = [None] * len(self.modules)
        self.relu.__enter__()

        def keep(i):
            def hook(module, inputs, output):
                self.seen[i] = self.relu.input if output is getattr(self.relu, "output", None) else output

            return hook

        self.hooks = [m.register_forward_hook(keep(i)) for i, m in enumerate(self.modules)]

    def __exit__(self, *error: object) -> None:
        self.relu.__exit__(*error)
        for hook in self.hooks:
            hook.remove()
