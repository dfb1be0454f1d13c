"""A net as a graph that runs without this project: an ONNX model, a program of torch.export; its preprocessing; its metadata."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..cli import RunError, Stopped, UsageError, allocating

if TYPE_CHECKING:
    import onnx

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


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


def check_packages() -> None:
    """UsageError, with the command that installs them, where packages of ONNX are missing."""
    missing = []
    for name in PACKAGES:
        try:
            __import__(name)
        except ModuleNotFoundError as e:
            missing.append(e.name or name)
    if missing:
        what = f"package {missing[0]} is" if len(missing) == 1 else f"packages {', '.join(missing)} are"
        raise UsageError(f"--to onnx: the {what} not installed; run: pip install {' '.join(PACKAGES)}")


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


def program(net: nn.Module, x: Tensor, what: str, sizes: bool = False) -> torch.export.ExportedProgram:
    """The program of a net for batches of any size, x (2, C, H, W) being an example; sizes: H and W are free, too.

    RunError for a net that torch.export does not support.
    """
    free = {0: torch.export.Dim("batch")} | ({2: torch.export.Dim("height"), 3: torch.export.Dim("width")} if sizes else {})
    with exporting(what, "torch.export"), torch.no_grad():
        found = torch.export.export(net.eval(), (x,), dynamic_shapes=(free,))
    for module in found.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # paths of this machine
    return found


def to_pt2(found: torch.export.ExportedProgram, metadata: dict[str, str]) -> bytes:
    """The content of a .pt2 file, with metadata.json in it."""
    whole = io.BytesIO()  # a full disk is then an OSError, and not one of torch's writer
    with quiet():
        torch.export.save(found, whole, extra_files={"metadata.json": json.dumps(metadata)})
    return whole.getvalue()


def to_onnx(found: torch.export.ExportedProgram, what: str, inputs: str = "images", outputs: str = "logits") -> "onnx.ModelProto":
    """The ONNX model of a program, without the notes of the exporter. RunError for an operator that ONNX lacks."""
    with exporting(what, "ONNX"):
        model = torch.onnx.export(found, input_names=[inputs], output_names=[outputs], dynamo=True, verbose=False).model_proto
    return bare(model)


def bare(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """`model` without what a runtime does not need: names of nodes, shapes of inner tensors, traces that name the exporter's files."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        if hasattr(part, "metadata_props"):
            del part.metadata_props[:]
        part.doc_string = ""
    for node in graph.node:
        node.name = ""
    del graph.value_info[:]
    graph.name = "main"
    return model


def behind(model: "onnx.ModelProto", front: "onnx.ModelProto") -> "onnx.ModelProto":
    """`front` (pixels -> view) and then `model` (images -> logits) as one model."""
    import onnx.compose

    front = onnx.compose.add_prefix(front, "preprocess_", rename_inputs=False, rename_outputs=False)
    joined = onnx.compose.merge_models(front, model, [(front.graph.output[0].name, model.graph.input[0].name)])
    return bare(joined)


def to_bytes(model: "onnx.ModelProto", metadata: dict[str, str]) -> bytes:
    """The content of an ONNX file with this metadata; the model is checked. RunError for one of more than 2 GB."""
    import onnx

    del model.metadata_props[:]
    onnx.helper.set_model_props(model, metadata)
    model.producer_name, model.producer_version = "", ""
    try:
        onnx.checker.check_model(model, full_check=True)
        return model.SerializeToString()
    except ValueError as e:
        raise RunError(f"the ONNX model is larger than 2 GB ({e}); use a smaller network, or --to pt2") from None
