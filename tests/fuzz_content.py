"""The content of a file changed in one place: a key, a type, a shape, a value; and saved again in a valid form with a correct checksum."""

import csv
import io
import json
import pickle
import random
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

SCALARS = [
    None,
    True,
    "",
    "x",
    "²",
    "\n",
    -1,
    0,
    1,
    2**31,
    2**63,
    10**30,
    -0.5,
    0.5,
    1e300,
    float("nan"),
    float("inf"),
    [],
    {},
    [[]],
    {"a": 1},
    b"x",
    (1,),
]


# as other programs write weights; as a run that is buying leaves its answers
PLAUSIBLE = ("lacks 'meta'", "columns.answers: no rows", "columns.answers: row less")


class Unwritable(Exception):
    """The changed content has no form that can be saved."""


# ---- one place changed. Each function gives (the new value, what was done, whether the new content may well be another valid one)


def change(value: Any, r: random.Random) -> tuple[Any, str, bool]:
    """A value with a change that suits its type."""
    if isinstance(value, Tensor):
        return change_tensor(value, r)
    if isinstance(value, np.ndarray):
        new, what, plausible = change_tensor(torch.from_numpy(value.copy()), r)
        return as_array(new), what, plausible
    if isinstance(value, (dict, list)) and r.random() < 0.7:
        return (change_dict if isinstance(value, dict) else change_list)(value, r)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and r.random() < 0.3:
        new = r.choice([value + 1, value - 1, value * 2, -value])
        return new, f"{value} -> {new}", True
    if isinstance(value, str) and r.random() < 0.2:
        return value + "x", f"{value[:20]!r} -> with an x", True
    new = r.choice([s for s in SCALARS if type(s) is not type(value) or s != value])
    plausible = type(new) is type(value) or {type(new), type(value)} <= {int, float, bool}
    return new, f"{str(value)[:20]!r} -> {new!r}", plausible


def change_dict(value: dict, r: random.Random) -> tuple[dict, str, bool]:
    keys, new = [*value], dict(value)
    kind = r.choice(["lacks", "renamed", "more", "number", "empty"] if keys else ["more"])
    key = r.choice(keys) if keys else "x"
    if kind in ("lacks", "renamed", "number"):
        moved = new.pop(key)
        if kind != "lacks":
            new["other" if kind == "renamed" else 7] = moved
    elif kind == "more":
        new["unknown"] = r.choice(SCALARS)
    else:
        new = {}
    return new, f"{kind} {str(key)[:40]!r}", kind == "more"


def change_list(value: list, r: random.Random) -> tuple[list, str, bool]:
    kind = r.choice(["shorter", "longer", "empty", "reversed", "twice"])
    other = {"shorter": value[:-1], "longer": [*value, r.choice(SCALARS)], "empty": [], "reversed": value[::-1], "twice": value * 2}
    return other[kind], kind, other[kind] == value


def change_tensor(x: Tensor, r: random.Random) -> tuple[Any, str, bool]:
    """Another shape, type or value."""
    name = r.choice([*TENSORS])
    try:
        new = TENSORS[name](x, r)
    except (RuntimeError, IndexError, TypeError, ValueError, NotImplementedError) as e:
        raise Unwritable from e
    same = isinstance(new, Tensor) and new.shape == x.shape and new.dtype == x.dtype and new.layout == x.layout and torch.equal(new, x)
    return new, name, same or name in ("near", "half", "double")


def put(x: Tensor, value: float, r: random.Random) -> Tensor:
    """x with another value in one place."""
    new = x.clone()
    new.view(-1)[r.randrange(new.numel())] = value
    return new


TENSORS: dict[str, Callable[[Tensor, random.Random], Any]] = {
    "near": lambda x, r: put(x, x.reshape(-1)[0].item() * 1.01 + (0.01 if x.is_floating_point() else 0), r),
    "half": lambda x, r: x.half() if x.is_floating_point() else x.to(torch.int32),
    "double": lambda x, r: x.double() if x.is_floating_point() else x.clone(),
    "negative": lambda x, r: put(x, -5, r),
    "huge": lambda x, r: put(x, 2**40 if not x.is_floating_point() else float("inf"), r),
    "nan": lambda x, r: put(x, float("nan"), r),
    "row less": lambda x, r: x[:-1],
    "row more": lambda x, r: torch.cat([x, x[-1:]]),
    "column less": lambda x, r: x[:, :-1],
    "column more": lambda x, r: torch.cat([x, x[:, -1:]], 1),
    "no rows": lambda x, r: x[:0],
    "flat": lambda x, r: x.reshape(-1),
    "deeper": lambda x, r: x[None],
    "scalar": lambda x, r: x.reshape(-1)[0],
    "endless": lambda x, r: x.reshape(-1)[:1].expand(10**11),
    "complex": lambda x, r: x.to(torch.complex64),
    "bool": lambda x, r: x.bool(),
    "bytes": lambda x, r: x.to(torch.uint8),
    "float8": lambda x, r: x.to(torch.float8_e4m3fn),
    "integers": lambda x, r: x.to(torch.int16),
    "sparse": lambda x, r: x.to_sparse(),
    "quantised": lambda x, r: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8),
    "parameter": lambda x, r: torch.nn.Parameter(x),
    "list": lambda x, r: x.tolist() if x.numel() < 100 else [x],
    "other": lambda x, r: r.choice(SCALARS),
}


def as_array(value: Any) -> Any:
    if isinstance(value, Tensor) and value.numel() > 10**8:  # an array of equal values has no small form
        raise Unwritable
    try:
        return value.detach().numpy() if isinstance(value, Tensor) else value
    except (RuntimeError, TypeError) as e:
        raise Unwritable from e


def places(value: Any, path: tuple = (), depth: int = 0) -> Iterator[tuple]:
    """The paths to all values in nested dictionaries and lists; of a long list only the first and the last."""
    yield path
    if depth < 8 and isinstance(value, (dict, list)):
        items = [*value.items()] if isinstance(value, dict) else [*enumerate(value)]
        for key, inner in items if len(items) < 200 else [items[0], items[-1]]:
            yield from places(inner, (*path, key), depth + 1)


def mutate(content: Any, r: random.Random) -> tuple[Any, str, bool]:
    """The content with one change somewhere: (content, what was done where, whether it may well be valid). Shallow places come as often."""
    by_depth: dict[int, list] = {}
    for path in places(content):
        by_depth.setdefault(len(path), []).append(path)
    path = r.choice(by_depth[r.choice([*by_depth])])
    return changed_at(content, path, r)


def changed_at(content: Any, path: tuple, r: random.Random) -> tuple[Any, str, bool]:
    if not path:
        return change(content, r)
    inner, what, plausible = changed_at(content[path[0]], path[1:], r)
    new = dict(content) if isinstance(content, dict) else [*content]
    new[path[0]] = inner
    return new, f"{path[0]}.{what}" if len(path) > 1 else f"{path[0]}: {what}", plausible


# ---- forms of files


def load_transfer(path: Path) -> dict:
    from common.transfer import Transfer

    t = Transfer(path)
    return {"columns": dict(t.columns), "about": t.about}


def save_transfer(path: Path, content: dict) -> None:
    from common.transfer import Transfer

    t = Transfer(path)
    t.columns, t.ends = content["columns"], content["about"].get("ends", t.ends)
    if not all(isinstance(v, Tensor) and isinstance(k, str) for k, v in t.columns.items()):
        raise Unwritable
    without = {k: v for k, v in content["about"].items() if k not in ("ends", "checksum")}
    if "ends" not in content["about"]:
        raise Unwritable  # `save` would add them
    t.save(without)


def save_torch(path: Path, content: Any) -> None:
    from common.utils import save

    try:
        save(path, {k: v for k, v in content.items() if k != "checksum"})
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):  # no dictionary, or a tensor that has no checksum
        torch.save(content, path)


def save_json(path: Path, content: Any) -> None:
    from common import utils

    if isinstance(content, dict):
        return utils.save_json(path, {k: v for k, v in content.items() if k != "checksum"})
    path.write_text(json.dumps(content))


def load_csv(path: Path) -> list:
    with open(path, newline="") as f:
        return [*csv.reader(f)]


def save_csv(path: Path, rows: Any) -> None:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    path.write_text(text.getvalue())


def toml(value: Any, top: bool = False) -> str:
    """TOML of nested values."""
    if isinstance(value, dict):
        pairs = [f"{json.dumps(str(k))} = {toml(v)}" for k, v in value.items()]
        return "\n".join(pairs) if top else f"{{ {', '.join(pairs)} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value)
    raise Unwritable


def save_array(path: Path, value: Any) -> None:
    with open(path, "wb") as f:
        np.save(f, value)


FORMS: dict[str, tuple[Callable[[Path], Any], Callable[[Path, Any], None]]] = {
    "torch": (lambda p: torch.load(p, weights_only=False), save_torch),
    "transfer": (load_transfer, save_transfer),
    "json": (lambda p: json.loads(p.read_text()), save_json),
    "pickle": (lambda p: pickle.loads(p.read_bytes()), lambda p, v: p.write_bytes(pickle.dumps(v, 2))),
    "npy": (np.load, save_array),
    "toml": (lambda p: tomllib.loads(p.read_text()), lambda p, v: p.write_text(toml(v, True))),
    "csv": (load_csv, save_csv),
}


def rewrite(path: Path, form: str, r: random.Random) -> tuple[str, bool]:
    """Changes the content of a file; (what was done, whether the new content may well be valid). Unwritable where it cannot be saved."""
    load, save = FORMS[form]
    for _ in range(20):
        content, what, plausible = mutate(load(path), r)
        try:
            save(path, content)
        except (
            Unwritable,
            TypeError,
            ValueError,
            RuntimeError,
            OverflowError,
            csv.Error,
            AttributeError,
            KeyError,
            UnicodeEncodeError,
            pickle.PicklingError,
        ):
            continue
        return what, plausible or what in PLAUSIBLE
    raise Unwritable
