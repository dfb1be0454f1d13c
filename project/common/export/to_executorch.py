"""--to executorch: a program for ExecuTorch with XNNPACK, which runs on phones; with --int8 a second one, of 8 bits.

The programs take one image: their memory is planned in advance, for the largest input, and a device classifies one image at a time.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn as nn
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
from executorch.exir import to_edge_transform_and_lower
from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
from executorch.runtime import Runtime
from torch import Tensor
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from ..cli import RunError
from ..losses import kl
from . import measured
from .graphs import exporting, program

if TYPE_CHECKING:
    from .writing import Export

CALIBRATED = 64  # calibration images in one batch
SIDE = 1024  # largest height and width of images that a program resizes, in pixels; or eight times the network's size if that is more


@contextmanager
def silent() -> Iterator[None]:
    """A block in which nothing is written to stderr, also by C++: ExecuTorch's runtime logs the processor and the number of threads."""
    before, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nothing)


class Program:
    """A file of ExecuTorch in its runtime on the CPU: x (N, C, H, W) -> its output (N, ...), a call for each image."""

    def __init__(self, path: Path, threads: int = 1):
        with silent():
            _unsafe_reset_threadpool(threads)
            self.program = Runtime.get().load_program(path)  # kept: its method reads its memory
            self.method = self.program.load_method("forward")

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([self.method.execute([image.contiguous()])[0] for image in x.split(1)])


def write(export: "Export") -> None:
    """Writes the program, and compares it with PyTorch; with --int8 also the 8-bit one, whose quality is measured."""
    what = export.report["model"]

    def content(net: nn.Module, **metadata: str) -> bytes:
        return lowered(export, export.behind_front(net), what, export.metadata() | {"batch": "1"} | metadata)

    def small(core: torch.export.ExportedProgram) -> tuple[bytes, bool]:
        net, per_channel = quantised(core, export.calibration, export.target, what)
        return content(net, weights="int8"), per_channel

    if export.resize:
        check_resize(export)
    path = export.save(f"{export.role}.pte", content(export.run.net))
    export.compared(path.name, opened(path, export.example(1), what))
    paths = {"float": path}
    if export.programs_to_quantise:
        paths["int8"] = export.write_int8(f"{export.role}.int8.pte", "int8_executorch", small, Program)
    for kind, path in paths.items():
        export.timed[f"{export.role}, ExecuTorch {kind}"] = measured.Timed(partial(Program, path), export.images, (1,))


def opened(path: Path, example: Tensor, what: str) -> Program:
    """The program of a file, which ran once. RunError where the runtime lacks an operator, or needs another PyTorch."""
    with exporting(what, "ExecuTorch"):
        found = Program(path)
    try:
        found(example)
    except RuntimeError as e:
        both = f"executorch {version('executorch')} does not run with torch {torch.__version__}"
        raise RunError(f"{path.name}: {both} ({next(iter(str(e).splitlines()), '')}); use the versions of constraints.txt") from None
    return found


def check_resize(export: "Export") -> None:
    """Compares the resizing of the preprocessing with load_model's. RunError where they differ by more than one grey level."""
    path, what = export.folder / "front.pte", "the preprocessing"
    path.write_bytes(lowered(export, export.front, what, {}))
    check = measured.resize_check(opened(path, export.example(1), what), export.run.preprocess, export.run.data.shape, export.run.data.std)
    export.report["preprocessing_executorch"] = {"resize": check}
    path.unlink()


def lowered(export: "Export", net: nn.Module, what: str, metadata: dict[str, str]) -> bytes:
    """The content of a .pte file for `net`, which takes what the export takes, one image; its method `metadata` gives JSON.

    RunError for an operator that ExecuTorch lacks.
    """
    largest = max(SIDE, 8 * export.run.data.shape[1])
    free = {2: torch.export.Dim("height", max=largest), 3: torch.export.Dim("width", max=largest)} if export.resize else {}
    core = program(net, export.example(1), what, free)
    with exporting(what, "ExecuTorch"):
        edge = to_edge_transform_and_lower(core, partitioner=[XnnpackPartitioner()], constant_methods={"metadata": json.dumps(metadata)})
        return edge.to_executorch().buffer


def quantised(core: torch.export.ExportedProgram, x: Tensor, s: Tensor, what: str) -> tuple[nn.Module, bool]:
    """(The network of a program with 8-bit weights and activations, whether its weights have a scale per channel).

    core: normalised images (N, C, H, W) -> logits (N, K). x: calibration images (n, C, H, W). s: the float student's logits (n, K)
    of x. RunError where it cannot be quantised.
    """
    with exporting(what, "int8"), torch.no_grad():
        nets = [quantised_once(core.module(), x, per_channel) for per_channel in (False, True)]
        found = [torch.cat([net(part) for part in x.split(CALIBRATED)]) for net in nets]
    per_channel = measured.per_channel_helps(*(kl(q, s).item() for q in found))
    return nets[per_channel], per_channel


def quantised_once(net: nn.Module, x: Tensor, per_channel: bool) -> nn.Module:
    """`net`, the module of a program, with 8-bit numbers; the logits are rounded to 256 values, too."""
    quantiser = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=per_channel))
    prepared = prepare_pt2e(net, quantiser)
    for part in x.split(CALIBRATED):
        prepared(part)
    return convert_pt2e(prepared)
