"""A net as a program of torch.export, from which all files are made; its preprocessing; the packages that the formats need."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from importlib.metadata import version

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..cli import RunError, Stopped, UsageError, allocating

PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "pt2": (), "executorch": ("executorch",)}
BATCH = {0: torch.export.Dim("batch")}
NEEDED = {"executorch": "executorch.exir"}  # the module of a package that is tried
SIZES = {2: torch.export.Dim("height"), 3: torch.export.Dim("width")}


class Pixels(nn.Module):
    """uint8 images (N, C, H, W) -> normalised floats (N, C, size, size), as load_model's preprocess gives them.

    mean, std: (1, C, 1, 1), for pixels in [0, 1]. resize: H and W are any; without it they are `size`.
    """

    def __init__(self, size: int, mean: Tensor, std: Tensor, resize: bool):
        super().__init__()
        self.size, self.resize = size, resize
        self.register_buffer("mean", mean * 255)
        self.register_buffer("std", std * 255)

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        if self.resize:
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True).round().clamp(0, 255)
        return (x - self.mean) / self.std


def check_packages(to: str) -> None:
    """UsageError, with the command that installs them, where packages of the format `to` are missing, or do not run with this PyTorch."""
    missing = []
    for name in PACKAGES[to]:
        try:
            with quiet():
                __import__(NEEDED.get(name, name))
        except ModuleNotFoundError as e:
            missing.append((e.name or name).partition(".")[0])
        except Exception as e:  # a package made for another PyTorch fails in its own way
            what = f"{name} {version(name)} does not run with torch {torch.__version__}"
            reason = f"{type(e).__name__}: {next(iter(str(e).splitlines()), '')[:200]}"
            raise UsageError(f"--to {to}: {what} ({reason}); use the versions of constraints.txt") from None
    if missing:
        what = f"package {missing[0]} is" if len(missing) == 1 else f"packages {', '.join(missing)} are"
        raise UsageError(f"--to {to}: the {what} not installed; run: pip install {' '.join(PACKAGES[to])} -c constraints.txt")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """A block in which libraries print no warnings."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def exporting(what: str, to: str) -> Iterator[None]:
    """A block that makes a graph of a network: an error of the exporter is one line."""
    try:
        with quiet(), allocating(f"the graph of {what}", "--img_size"):
            yield
    except (UsageError, RunError, Stopped, OSError, MemoryError):
        raise
    except Exception as e:  # torch's and onnx's exporters raise what they like
        reason = next((line.strip() for line in str(e).splitlines() if line.strip(" =-")), "")[:200]
        raise RunError(f"{what} cannot be exported to {to} ({type(e).__name__}: {reason}); use another network or format") from e


def program(net: nn.Module, x: Tensor, what: str, free: dict[int, torch.export.Dim] = BATCH) -> torch.export.ExportedProgram:
    """The program of a net in eval mode. x: example images; their dimensions in `free` may be of any size, the others are fixed.

    RunError for a net that torch.export does not support.
    """
    with exporting(what, "torch.export"), torch.no_grad():
        found = torch.export.export(net, (x,), dynamic_shapes=(free,))
    for module in found.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # paths of this machine
    return found
