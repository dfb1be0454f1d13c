"""State dicts as people have them: where they lie in a checkpoint, whether nets can take them, and their names against our nets'."""

import math
import re
from collections.abc import Iterator

import torch
import torch.nn as nn
from torch import Tensor

from .cli import UsageError
from .forms import META, present
from .utils import holding
from .values import short

StateDict = dict[str, Tensor]
NESTS = ("model", "state_dict", "net", "model_sd", "model_state_dict", "model_state", "student", "teacher", "weights", "params")
AVERAGES = ("ema", "model_ema", "state_dict_ema", "ema_state_dict")  # exponential moving averages of the weights
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "student.", "backbone.")  # that wrappers put before every name
COUNTERS = ("total_ops", "total_params")  # that thop leaves
SAME = (  # names of one thing in several code bases -> one of them
    (re.compile(r"\b(shortcut|downsample|convShortcut|skip)\b"), "shortcut"),
    (re.compile(r"^(fc|linear|classifier|head|output|last_linear)(\.\d+)?\.(weight|bias)$"), r"head.\3"),
)


FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # types that a weight can have
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)  # of counters and tables of indices


def is_state(value: object) -> bool:
    """Whether a value is a state dict: a dictionary of tensors by name."""
    return isinstance(value, dict) and bool(value) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def find_state(content: object, path: object, key: str = "") -> tuple[StateDict, str]:
    """(the state dict in a checkpoint's content, words on what was left aside).

    key: where it lies, `a.b` for content["a"]["b"]; by default it is found, plain or under one of NESTS; raw weights before AVERAGES.
    UsageError where there is none, or several, or where it holds something that no net can take.
    """
    state, aside = locate_state(content, path, key)
    for name, v in state.items():
        if what := oddity(name, v):
            hint = "save the state dict of the float net, made dense and on the CPU"
            raise UsageError(f"{path}: its {name} is {what}; expected an ordinary tensor of real numbers: {hint}")
    return state, aside


def oddity(name: str, v: Tensor) -> str:
    """Why a tensor cannot be copied into a net: sparse, quantised, complex and so on; empty where it can."""
    kinds = {"nested": v.is_nested, f"sparse ({v.layout})": v.layout != torch.strided, "quantised": v.is_quantized}
    kinds |= {"complex": v.is_complex(), "without values (on the meta device)": v.is_meta}
    is_weight = name.rpartition(".")[2] in ("weight", "bias", "running_mean", "running_var")
    kinds[f"of type {v.dtype}"] = v.dtype not in (FLOATS if is_weight else FLOATS + INTEGERS)
    return next((words for words, so in kinds.items() if so), "")


def checked_meta(content: object, path: object) -> dict:
    """What a file of this project says about itself (its `meta`); empty for others' files. UsageError where that cannot be."""
    meta = content.get("meta") if isinstance(content, dict) else None
    if not isinstance(meta, dict) or "script" not in meta:  # others' files may call anything `meta`
        return {}
    holding(meta, path, **present(meta, META))
    fits = {
        "shape": lambda v: len(v) == 3 and all(type(n) is int and 0 < n < 2**16 for n in v),
        "classes": lambda v: 0 < v < 2**24,
        "latent": lambda v: 0 < v < 2**24,
        "ngf": lambda v: 0 < v < 2**16,
        "data": lambda v: moments_fit(v["mean"], v["std"]) and 0 <= v["crop_from"] < 2**16,
    }
    if bad := next((k for k, fit in fits.items() if k in meta and not fit(meta[k])), ""):
        raise UsageError(f"{path} is damaged: its {bad} is {short(str(meta[bad]))}, which no script of this project writes; make it anew")
    return meta


def moments_fit(mean: list, std: list) -> bool:
    """Whether two lists are mean and standard deviation of the channels of images in [0, 1]."""
    numbers = all(isinstance(v, float) and math.isfinite(v) for v in (*mean, *std))
    return numbers and len(mean) == len(std) > 0 and all(v > 0 for v in std)


def locate_state(content: object, path: object, key: str = "") -> tuple[StateDict, str]:
    """(the state dict in a checkpoint's content, words on what was left aside): see `find_state`."""
    if key:
        value = content
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if not is_state(value):
            raise UsageError(f"{path} holds no state dict under {key!r}; there are: {', '.join(places(content)) or 'none'} (--weights KEY)")
        return value, ""
    if is_state(content):
        return content, ""
    found = places(content)
    raw = [k for k in found if k not in AVERAGES]
    if not found:
        there = f"the keys {', '.join(map(short, map(str, [*content][:5])))}" if isinstance(content, dict) else type(content).__name__
        raise UsageError(f"{path} holds no state dict, neither plain nor under {', '.join(NESTS[:-1])} or {NESTS[-1]}; it holds {there}")
    if len(raw) > 1:
        raise UsageError(f"{path} holds several nets: {', '.join(found)}; name one with --weights KEY")
    chosen, others = (raw or found)[0], [k for k in found if k in AVERAGES and raw]
    return content[chosen], f"it also holds averaged weights: --weights {others[0]} takes them" if others else ""


def places(content: object) -> list[str]:
    """The keys of a checkpoint's content under which a state dict lies."""
    return [k for k in (*NESTS, *AVERAGES) if isinstance(content, dict) and is_state(content.get(k))]


def unwrapped(state: StateDict) -> Iterator[StateDict]:
    """The state, then the state without the prefix that all names share, and so on; of a student beside its teacher the student's part."""
    state = {k: v for k, v in state.items() if k.rsplit(".", 1)[-1] not in COUNTERS}
    while state:
        yield state
        heads = {k.split(".")[0] for k in state}
        if heads == {"student", "teacher"}:
            state = {k: v for k, v in state.items() if k.startswith("student.")}
            continue
        prefix = next((p for p in PREFIXES if all(k.startswith(p) for k in state)), None)
        state = {k.removeprefix(prefix): v for k, v in state.items()} if prefix else {}


def canonical_name(name: str) -> str:
    """A parameter's name with the words of SAME made one."""
    for pattern, word in SAME:
        name = pattern.sub(word, name)
    return name


def renamed(state: StateDict, wanted: StateDict, in_order: bool) -> StateDict:
    """The state under the names of `wanted`, where it is the same net under other names; unchanged elsewhere.

    in_order: the net is one sequence of layers, so that tensors of the same shapes in the same order are the same.
    """
    if state.keys() == wanted.keys():
        return state
    known, new = ({canonical_name(k): k for k in names} for names in (wanted, state))
    if len(known) == len(wanted) and len(new) == len(state) and known.keys() == new.keys():
        return {known[k]: state[name] for k, name in new.items()}
    shapes, theirs = ([v.shape for v in values.values()] for values in (wanted, state))
    return dict(zip(wanted, state.values(), strict=True)) if in_order and shapes == theirs else state


def with_counters(state: StateDict, wanted: StateDict) -> StateDict:
    """The state with `num_batches_tracked` of zero where it lacks them all, as files of old versions of PyTorch do."""
    lacking = [k for k in wanted if k.endswith("num_batches_tracked")]
    if any(k.endswith("num_batches_tracked") for k in state) or not lacking:
        return state
    beside = {k.removesuffix("running_var") + "num_batches_tracked": k for k in state if k.endswith("running_var")}
    out = {}
    for k, v in state.items():
        out[k] = v
        out |= {counter: torch.zeros((), dtype=torch.long) for counter, name in beside.items() if name == k}
    return out


def matched(state: StateDict, net: nn.Module) -> StateDict:
    """The state as `net` names it, or what comes nearest to that; see `unwrapped`, `renamed`, `with_counters`."""
    best, least = state, None
    for candidate in unwrapped(state):
        candidate = net.adapt(candidate) if hasattr(net, "adapt") else candidate
        wanted = net.state_dict()
        candidate = renamed(with_counters(candidate, wanted), wanted, getattr(net, "IN_ORDER", False))
        off = len(candidate.keys() ^ wanted.keys())
        if least is None or off < least:
            best, least = candidate, off
        if not off:
            break
    return best


# ---- files that are no checkpoints

STARTS = (  # what a file begins with -> what it is
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: run git lfs pull"),
    (b"<!DOCTYPE", "a web page: the download failed"),
    (b"<html", "a web page: the download failed"),
    (b"\x08", "an ONNX model: it has no PyTorch weights; export a state dict from the original net"),
)


def what_it_is(path: object, start: bytes) -> str:
    """What a file that is no checkpoint is, by its first bytes and its name; empty where that is not known."""
    name = str(path)
    if re.match(r"https?://", name):
        return "a URL: download it first, and give the file"
    if name.endswith(".onnx"):
        return STARTS[-1][1]
    return next((words for beginning, words in STARTS[:-1] if start.lstrip().startswith(beginning)), "")
