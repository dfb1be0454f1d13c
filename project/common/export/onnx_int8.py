"""Static 8-bit quantisation of an ONNX model: 8-bit unsigned activations, 8-bit signed weights, in the QDQ format.

S8 activations are several times slower than U8 ones in onnxruntime on x86. Per-channel scales of the weights cost bytes, so they are used
only where they help on the calibration images.
"""

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from torch import Tensor

from ..losses import kl
from .graphs import exporting
from .measured import per_channel_helps
from .onnx_runtime import Session

BATCH = 64  # calibration images in one batch


class Reader:
    """Calibration images x (n, C, H, W) in batches, as onnxruntime's quantiser asks for them (its CalibrationDataReader)."""

    def __init__(self, name: str, x: Tensor):
        """name: of the model's input."""
        self.name, self.batches = name, iter(x.split(BATCH))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch by the name of the input; None at the end."""
        x = next(self.batches, None)
        return None if x is None else {self.name: x.contiguous().numpy()}


def quantised(model: onnx.ModelProto, x: Tensor, s: Tensor, what: str) -> tuple[onnx.ModelProto, bool]:
    """(`model` with 8-bit weights and activations, whether its weights have a scale per channel).

    model: normalised images (N, C, H, W) -> logits (N, K). x: calibration images (n, C, H, W); the ranges of activations are their smallest
    and largest values (MinMax). s: the float student's logits (n, K) of x. RunError for a network that onnxruntime cannot quantise.
    """
    with exporting(what, "int8"), tempfile.TemporaryDirectory(prefix="export_") as folder:
        found = [quantised_once(model, x, Path(folder), per_channel) for per_channel in (False, True)]
        tensor, channel = (kl(Session(m.SerializeToString())(x), s).item() for m in found)
    per_channel = per_channel_helps(tensor, channel)
    return found[per_channel], per_channel


def quantised_once(model: onnx.ModelProto, x: Tensor, folder: Path, per_channel: bool) -> onnx.ModelProto:
    """`model`, quantised; its logits are floats that are not rounded to 8 bits."""
    source, target = str(folder / "float.onnx"), str(folder / "int8.onnx")
    onnx.save(model, source)  # a model in memory would be changed
    quantize_static(
        source,
        target,
        Reader(model.graph.input[0].name, x),
        quant_format=QuantFormat.QDQ,
        per_channel=per_channel,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
    )
    return with_float_logits(onnx.load(target))


def with_float_logits(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` without the last QuantizeLinear and DequantizeLinear, which would round the logits to 256 values."""
    graph = model.graph
    by_output = {name: node for node in graph.node for name in node.output}
    last = by_output[graph.output[0].name]
    before = by_output.get(last.input[0]) if last.op_type == "DequantizeLinear" else None
    maker = by_output.get(before.input[0]) if before is not None and before.op_type == "QuantizeLinear" else None
    if maker is None or sum(before.input[0] in node.input for node in graph.node) > 1:
        return model
    scales = {name for node in (before, last) for name in node.input[1:]}
    maker.output[list(maker.output).index(before.input[0])] = graph.output[0].name
    for node in (last, before):
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    for initializer in [i for i in graph.initializer if i.name in scales - used]:
        graph.initializer.remove(initializer)
    return model
