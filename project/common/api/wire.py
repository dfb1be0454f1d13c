"""Messages of the Open Inference Protocol (KServe V2): tensors as JSON, or as binary data behind the JSON.

https://github.com/kserve/open-inference-protocol; binary data: the binary tensor data extension of the same protocol.
"""

import itertools
import json
import math
from collections.abc import Container
from typing import Any

import numpy as np
import orjson

JSON_SIZE = "Inference-Header-Content-Length"  # the header that says how many bytes of a body are JSON, where binary data follow
TYPES = {"BOOL": np.bool_, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64}
TYPES |= {"INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64}
TYPES |= {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64}
NAMES = {np.dtype(t): name for name, t in TYPES.items()}


class Incomplete(ValueError):
    """A body that is not JSON, or shorter than it says: it may have been cut off on its way."""


def pack(head: dict, tensors: dict[str, np.ndarray], field: str, binary: bool | Container[str] = False) -> tuple[bytes, dict[str, str]]:
    """(body, HTTP headers) of a message: the entries of `head`, and under `field` ("inputs" or "outputs") the tensors, by name.

    binary: whether the values follow the JSON as bytes, or the names of the tensors whose values do. ValueError for values that are not
    finite, which JSON does not know.
    """
    listed, raw = [], []
    for name, values in tensors.items():
        values = np.ascontiguousarray(values)
        entry = {"name": name, "shape": list(values.shape), "datatype": NAMES[values.dtype]}
        if binary is True or (binary and name in binary):
            raw.append(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
            entry["parameters"] = {"binary_data_size": len(raw[-1])}
        elif values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError(f"{name} has values that are not finite")
        else:
            entry["data"] = values.ravel() if values.dtype != np.float16 else values.ravel().astype(np.float32)
        listed.append(entry)
    text = orjson.dumps(head | {field: listed}, option=orjson.OPT_SERIALIZE_NUMPY)
    if not raw:
        return text, {"Content-Type": "application/json"}
    return b"".join([text, *raw]), {"Content-Type": "application/octet-stream", JSON_SIZE: str(len(text))}


def unpack(body: bytes, json_size: str | None, field: str) -> tuple[dict, dict[str, np.ndarray]]:
    """(all entries, {name: tensor}) of a message, with the tensors under `field`. json_size: the value of the header JSON_SIZE, if any.

    Tensors of the type BYTES are arrays of objects, str each. ValueError, in one line, for a body that is malformed.
    """
    size = len(body)
    if json_size is not None:
        if not json_size.isascii() or not json_size.isdecimal() or int(json_size) > len(body):
            raise Incomplete(f"{JSON_SIZE} is {json_size[:20]!r}, and the body has {len(body)} bytes")
        size = int(json_size)
    head, at, tensors = parsed(body[:size]), size, {}
    if not isinstance(head, dict) or not isinstance(head.get(field), list) or not head[field]:
        raise ValueError(f"the JSON has no list {field!r}")
    for entry in head[field]:
        name, dtype, shape = described(entry, field)
        length = entry["parameters"].get("binary_data_size") if isinstance(entry.get("parameters"), dict) else None
        if length is None:
            tensors[name] = from_json(entry.get("data"), dtype, shape, name)
            continue
        if type(length) is not int or length < 0 or at + length > len(body):
            raise Incomplete(f"{name} has binary_data_size {length!r}, and {len(body) - at} bytes are left")
        tensors[name] = from_bytes(body[at : at + length], dtype, shape, name)
        at += length
    if at != len(body):
        raise ValueError(f"{len(body) - at} bytes of the body belong to no tensor")
    return head, tensors


def parsed(text: bytes) -> Any:
    """What a JSON text holds; NaN and Infinity, which Python's servers write, are read. Incomplete for what is not JSON."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise Incomplete("the body is not JSON, or was cut short") from None


def described(entry: Any, field: str) -> tuple[str, str, list[int]]:
    """(name, data type, shape) of one tensor in a message; ValueError where it has none."""
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise ValueError(f"an entry of {field!r} has no name")
    name, dtype, shape = entry["name"], entry.get("datatype"), entry.get("shape")
    if not isinstance(dtype, str) or (dtype not in TYPES and dtype != "BYTES"):
        raise ValueError(f"{name} has the data type {str(dtype)[:20]!r}; there are {', '.join(TYPES)}, BYTES")
    if not isinstance(shape, list) or any(type(n) is not int or not 0 <= n < 2**31 for n in shape):
        raise ValueError(f"the shape of {name} is no list of sizes")
    return name, dtype, shape


def from_json(data: Any, dtype: str, shape: list[int], name: str) -> np.ndarray:
    """The tensor in a JSON list, flat or nested; ValueError for other values or another number of them."""
    values = flat(data, name)
    if len(values) != math.prod(shape):
        raise ValueError(f"{name} has {len(values)} values; its shape {shape} takes {math.prod(shape)}")
    kinds = set(map(type, values))  # before NumPy sees them: among texts it would make each as long as the longest
    if dtype == "BYTES" and kinds <= {str, int, float, bool}:
        return np.array([str(v) for v in values], object).reshape(shape)
    wanted = np.dtype(TYPES.get(dtype, object))
    fits = kinds <= {"b": {bool}, "f": {int, float}, "O": set()}.get(wanted.kind, {int})
    try:
        array = np.array(values if fits else [], wanted if wanted.kind != "f" else np.float64)
    except OverflowError:
        fits = False
    if not fits:
        raise ValueError(f"the values of {name} are no {dtype}")
    return array.astype(wanted).reshape(shape)


def flat(data: Any, name: str) -> list:
    """The values of a JSON list that is flat, or nested to any depth; ValueError where nested lists are of unequal length."""
    if not isinstance(data, list):
        return [] if data is None else [data]
    while data and isinstance(data[0], list):
        if set(map(type, data)) != {list} or len(set(map(len, data))) > 1:
            raise ValueError(f"the data of {name} are nested lists of unequal length")
        data = [*itertools.chain.from_iterable(data)]
    return data


def from_bytes(data: bytes, dtype: str, shape: list[int], name: str) -> np.ndarray:
    """The tensor in binary data, little-endian; ValueError for another number of bytes."""
    if dtype == "BYTES":
        return strings(data, name, math.prod(shape)).reshape(shape)
    wanted = np.dtype(TYPES[dtype]).newbyteorder("<")
    if len(data) != math.prod(shape) * wanted.itemsize:
        raise ValueError(f"{name} has {len(data)} bytes; {shape} of {dtype} take {math.prod(shape) * wanted.itemsize}")
    return np.frombuffer(data, wanted).reshape(shape)


def strings(data: bytes, name: str, n: int) -> np.ndarray:
    """n texts, each behind its length in four bytes; ValueError where they are not n."""
    found, at = [], 0
    while at + 4 <= len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        found.append(data[at + 4 : at + 4 + length].decode(errors="replace"))
        at += 4 + length
    if at != len(data) or len(found) != n:
        raise ValueError(f"{name} has {len(data)} bytes that are not {n} texts")
    return np.array(found, object)  # not as NumPy's texts, of which each takes as much as the longest
