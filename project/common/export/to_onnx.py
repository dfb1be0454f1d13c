"""--to onnx: an ONNX model, which runs with onnxruntime; with --int8 a second one, of 8 bits."""

from functools import partial
from typing import TYPE_CHECKING

import onnx
import onnx.compose
import torch

from ..cli import RunError
from ..measures import infer
from . import measured
from .graphs import BATCH, SIZES, exporting, program
from .onnx_int8 import quantised
from .onnx_runtime import Session, peak_mb

if TYPE_CHECKING:
    from .writing import Export


def write(export: "Export") -> None:
    """Writes the ONNX model, and compares it with PyTorch; with --int8 also the 8-bit one, whose quality is measured."""
    what, front = export.report["model"], front_model(export) if export.pixels else None

    def content(model: onnx.ModelProto, **metadata: str) -> bytes:
        return to_bytes(behind(model, front) if front else model, export.metadata() | metadata)

    def small(core: torch.export.ExportedProgram) -> tuple[bytes, bool]:
        model, per_channel = quantised(to_model(core, what), export.calibration, export.target, what)
        return content(bare(model), weights="int8"), per_channel

    path = export.save(f"{export.role}.onnx", content(to_model(export.core, what)))
    export.compared(path.name, Session(path))
    paths = {"float": path}
    if export.programs_to_quantise:
        paths["int8"] = export.write_int8(f"{export.role}.int8.onnx", "int8", small, Session)
    for kind, path in paths.items():
        export.report["files"][path.name]["peak_mb"] = peak_mb(path, export.images[:1])
        export.timed[f"{export.role}, ONNX {kind}"] = measured.Timed(partial(Session, path), export.images)


def front_model(export: "Export") -> onnx.ModelProto:
    """The preprocessing as an ONNX model (pixels -> view), compared with that of load_model."""
    run, what = export.run, "the preprocessing"
    free = BATCH | (SIZES if export.resize else {})
    model = to_model(program(export.front, export.example(2), what, free), what, "pixels", "view")
    session = Session(model.SerializeToString())
    few = run.test.subset(torch.arange(min(1000, len(run.test))))
    wanted = run.data.view if run.meta["data"]["crop_from"] else run.preprocess  # image files are cropped before
    a, b = (infer(f, few, lambda x: x) for f in (wanted, session))
    export.report["preprocessing"] = measured.parity(what, a, b, measured.PIXELS)
    if export.resize:
        export.report["preprocessing"]["resize"] = measured.resize_check(session, run.preprocess, run.data.shape, run.data.std)
    return model


def to_model(found: torch.export.ExportedProgram, what: str, inputs: str = "images", outputs: str = "logits") -> onnx.ModelProto:
    """The ONNX model of a program, without the notes of the exporter. RunError for an operator that ONNX lacks."""
    with exporting(what, "ONNX"):
        model = torch.onnx.export(found, input_names=[inputs], output_names=[outputs], dynamo=True, verbose=False).model_proto
    return bare(model)


def bare(model: onnx.ModelProto) -> onnx.ModelProto:
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


def behind(model: onnx.ModelProto, front: onnx.ModelProto) -> onnx.ModelProto:
    """`front` (pixels -> view) and then `model` (images -> logits) as one model."""
    front = onnx.compose.add_prefix(front, "preprocess_", rename_inputs=False, rename_outputs=False)
    joined = onnx.compose.merge_models(front, model, [(front.graph.output[0].name, model.graph.input[0].name)])
    return bare(joined)


def to_bytes(model: onnx.ModelProto, metadata: dict[str, str]) -> bytes:
    """The content of an ONNX file with this metadata; the model is checked. RunError for one of more than 2 GB."""
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, metadata)
    model.producer_name, model.producer_version = "", ""
    try:
        onnx.checker.check_model(model, full_check=True)
        return model.SerializeToString()
    except ValueError as e:
        raise RunError(f"the ONNX model is larger than 2 GB ({e}); use a smaller network, or --to pt2") from None
