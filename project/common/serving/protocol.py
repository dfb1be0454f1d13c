"""The Open Inference Protocol (V2) of one model: its metadata, requests for answers, and answers.

https://github.com/kserve/open-inference-protocol, with its binary tensor data extension.
"""

from dataclasses import dataclass

import numpy as np

from ..api import wire
from .answers import check_outputs, outputs_of
from .keys import Key
from .model import Model
from .refusals import Refused

SERVER = {"name": "serve.py", "version": "1", "extensions": ["binary_tensor_data"]}
PIXELS = {"uint8": "UINT8", "float32": "FP32"}  # value of --input: datatype


@dataclass
class Ask:
    """A request: images (N, C, H, W) uint8 or float32, the outputs that it wants, those of them as bytes, and its id."""

    images: np.ndarray
    outputs: list[str]
    binary: set[str]
    id: str | None


def metadata(model: Model, key: Key, datatype: str, max_batch: int) -> dict:
    """What the model takes and gives, as this key sees it. datatype: the value of --input."""
    mean, std = model.mean.flatten().tolist(), model.std.flatten().tolist()
    outputs = outputs_of(key.response, len(model.classes)).items()
    classes = {"classes": model.classes} if model.named else {}
    return {
        "name": model.name,
        "versions": [model.version],
        "platform": model.platform,
        "inputs": [{"name": "images", "datatype": PIXELS[datatype], "shape": [-1, *model.shape]}],
        "outputs": [{"name": name, "datatype": kind, "shape": shape} for name, (kind, shape) in outputs],
        "parameters": {"max_batch": max_batch, "normalize": {"mean": mean, "std": std}, **classes},
    }


def read_ask(body: bytes, json_size: str | None, model: Model, key: Key, max_batch: int) -> Ask:
    """The request in a body. json_size: its header wire.JSON_SIZE. Refused: 400 for a malformed one, 403 for outputs above the response."""
    try:
        with np.errstate(all="ignore"):  # numbers too large for float32 are refused below
            head, tensors = wire.unpack(body, json_size, "inputs")
    except (ValueError, OverflowError, TypeError) as e:
        raise Refused(400, str(e)) from None
    if [*tensors] != ["images"] or len(head["inputs"]) != 1:
        raise Refused(400, f"the model has one input, images; the request has {', '.join(tensors)}")
    return Ask(checked_images(tensors["images"], model, max_batch), *wanted(head, model, key), checked_id(head.get("id")))


def checked_images(images: np.ndarray, model: Model, max_batch: int) -> np.ndarray:
    """The images of a request, in an array of their own; Refused where the model does not take them."""
    shape, form = list(images.shape), f"[N, {', '.join(map(str, model.shape))}]"
    if len(shape) != 4 or shape[1:] != list(model.shape):
        raise Refused(400, f"images has the shape {shape}; the model takes {form}")
    if not shape[0]:
        raise Refused(400, "images has no image; send at least 1")
    if shape[0] > max_batch:
        raise Refused(413, f"the request has {shape[0]:,} images; at most {max_batch:,} are answered together")
    dtype = {"u1": np.uint8, "f4": np.float32}.get(images.dtype.str[1:])
    if dtype is None:
        raise Refused(400, f"images has the data type {wire.NAMES.get(images.dtype, 'BYTES')}; the model takes UINT8 and FP32")
    images = images.astype(dtype)
    if dtype == np.float32 and not np.isfinite(images).all():
        raise Refused(400, "images has values that are not finite")
    return images


def checked_id(text: object) -> str | None:
    """The id of a request; Refused where it is no text."""
    if text is not None and (not isinstance(text, str) or not text.isprintable() or len(text) > 200):
        raise Refused(400, "id must be a text of at most 200 printable letters")
    return text


def wanted(head: dict, model: Model, key: Key) -> tuple[list[str], set[str]]:
    """(outputs, those of them as bytes) that a request selects; by default the first output of the key's response."""
    every, entries = flag(head, "binary_data_output", False), head.get("outputs")
    entries = [] if entries is None else entries
    if not isinstance(entries, list) or not all(isinstance(e, dict) and isinstance(e.get("name"), str) for e in entries):
        raise Refused(400, "outputs must be a list of entries that have a name")
    binary = {e["name"]: flag(e, "binary_data", every) for e in entries}
    if not binary:
        binary = {next(iter(outputs_of(key.response, len(model.classes)))): every}
    check_outputs([*binary], key.response, len(model.classes))
    return [*binary], {name for name, is_binary in binary.items() if is_binary}


def flag(entry: dict, name: str, default: bool) -> bool:
    """The parameter `name` of a request or of one of its outputs; Refused where it is no boolean."""
    parameters = entry.get("parameters")
    parameters = {} if parameters is None else parameters
    value = parameters.get(name, default) if isinstance(parameters, dict) else None
    if not isinstance(value, bool):
        raise Refused(400, f"parameters must be an object, and {name} in it true or false")
    return value


def answer(model: Model, ask: Ask, outputs: dict[str, np.ndarray]) -> tuple[bytes, dict[str, str]]:
    """(body, headers) of the answer to a request."""
    head = {"model_name": model.name, "model_version": model.version} | ({"id": ask.id} if ask.id is not None else {})
    try:
        return wire.pack(head, outputs, "outputs", ask.binary)
    except ValueError as e:
        raise Refused(500, f"{e}; JSON cannot show them, binary data can") from None
