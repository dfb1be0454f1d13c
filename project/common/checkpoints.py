"""Checkpoint files: reading them without ever running what is in them, loading their weights into a net, and where a run finds them."""

import argparse
import codecs
import hashlib
import pathlib
import pickle
import re
import shlex
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from safetensors.torch import load_file
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop
from torchvision.transforms.v2.functional import resize as resize_side

from .cli import UsageError, say
from .datasets.images import normalised, recoloured, resize
from .datasets.pictures import exact_grey
from .gan import Generator
from .models import build
from .options import Base, flags
from .utils import check_regular, checked, digest, holding, net_name, run_folder, without_checksum
from .values import cut
from .weights import StateDict, checked_meta, find_state, matched, what_it_is


# what else checkpoints of timm, RepDistiller and mdistiller hold: plain values, whose types run nothing when they are made
def plain_dict(*factory: object) -> dict:
    """Stands for defaultdict, which torch's reader cannot fill."""
    return {}


HARMLESS = [argparse.Namespace, (plain_dict, "collections.defaultdict"), pathlib.PosixPath, pathlib.PurePosixPath]
HARMLESS += [list, dict, set, int, float, str]
HARMLESS += [np.ndarray, np.dtype, codecs.encode, *{type(np.dtype(c)) for c in "?bBhHiIlLqQefdU"}]
for function in (np._core.multiarray.scalar, np._core.multiarray._reconstruct):
    HARMLESS += [function, (function, f"numpy.core.multiarray.{function.__name__}")]  # the name before NumPy 2


# ---- reading


def read(path: Path | str, **forms: Any) -> dict:
    """The content of a file of torch.save: tensors and plain values; nothing in it is ever executed.

    forms: what it must hold under each key. UsageError, in one line, where it cannot be read, is damaged or lacks one.
    """
    try:
        check_kind(path)
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(HARMLESS):  # warnings: of foreign files' formats
            content = load_file(path) if str(path).endswith(".safetensors") else torch.load(path, map_location="cpu", weights_only=True)
    except UsageError:
        raise
    except FileNotFoundError:
        raise UsageError(f"no file {path}") from None
    except pickle.UnpicklingError as e:
        named = re.search(r"GLOBAL (\S+)", str(e))
        why = f"to read it would run {named[1]}" if named else "it holds more than weights, or is not a checkpoint"
        raise UsageError(f"{path} is refused: {why}; save model.state_dict() instead") from None
    except Exception as e:
        reason = "it is empty" if Path(path).is_file() and not Path(path).stat().st_size else str(e).split("\n")[0] or type(e).__name__
        raise UsageError(
            f"{path} is not a readable checkpoint ({reason}); it is truncated, or another kind of file: make it anew"
        ) from None
    if forms:
        holding(content, path, **forms)
    if isinstance(content, dict) and re.fullmatch("[0-9a-f]{16}", str(content.get("checksum"))):
        try:
            mine = digest(without_checksum(content))
        except (RuntimeError, NotImplementedError):
            raise UsageError(f"{path} is damaged: it holds a sparse, quantised or empty tensor; make it anew") from None
        return checked(content, mine, path)
    return content


def check_kind(path: Path | str) -> None:
    """UsageError for a path that is no file of weights: a folder, a URL, a page, a pointer, a model of another program."""
    if Path(path).is_dir():
        there = sorted(p.name for p in Path(path).iterdir() if p.suffix in (".pt", ".pth", ".safetensors", ".bin"))
        raise UsageError(f"{path} is a folder; give a file of it{': ' if there else ''}{', '.join(there[:5])}")
    check_regular(path)
    start = b""
    if Path(path).is_file():
        with open(path, "rb") as f:
            start = f.read(64)
    if what := what_it_is(path, start):
        raise UsageError(f"{path} is {what}")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as z:
            if any(n.endswith("constants.pkl") for n in z.namelist()):
                raise UsageError(f"{path} is a TorchScript program, which is not run; save model.state_dict() instead")
            if damaged := z.testzip():  # torch does not look at the entries' checksums
                raise UsageError(f"{path} is damaged: the checksum of its entry {damaged} differs; bring a copy back, or make it anew")


def read_weights(path: Path | str, key: str = "") -> tuple[StateDict, dict]:
    """(state dict, meta) of a checkpoint, as weights.find_state finds it. meta is empty for others' files."""
    content = read(path)
    meta = checked_meta(content, path)
    state, aside = find_state(content, path, key)
    if aside:
        say(f"{path}: {aside}")
    return state, meta


def identity(path: Path | str) -> str:
    """Twelve letters that change when the file's content does."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()[:12]


# ---- loading


def load_weights(net: nn.Module, state: StateDict, path: Path | str, kind: str) -> nn.Module:
    """`net` with the weights `state` of the file `path`; UsageError where names or shapes differ. kind: what the net is, in words."""
    state = matched(state, net)
    wanted, given = ({k: tuple(v.shape) for k, v in weights.items()} for weights in (net.state_dict(), state))
    missing, unexpected = [k for k in wanted if k not in given], [k for k in given if k not in wanted]
    off = []
    if other := next((k for k in wanted if k in given and given[k] != wanted[k]), ""):
        a, b = given[other], wanted[other]
        off = [f"{other} is {a}, not {b}"]
        if a and b and a[1:] == b[1:] and not missing and not unexpected:
            off = [f"it has {a[0]} classes, not {b[0]} ({off[0]})"]
    if missing or unexpected:
        off.append(f"{named(missing)} missing, {named(unexpected)} unexpected")
    if off:
        raise UsageError(f"{path} is not a checkpoint of {kind}: {'; '.join(off)}")
    if bad := [k for k, v in state.items() if not v.isfinite().all()]:
        raise UsageError(f"{path} holds a weight that is not finite ({bad[0]}); it is damaged, or its training diverged")
    net.load_state_dict(state)
    return net


def named(keys: list[str]) -> str:
    """`no key`, `1 key (fc.bias)`, `62 keys (conv1.weight, bn1.weight, ...)`."""
    if not keys:
        return "no key"
    return f"{len(keys)} key{'s' * (len(keys) > 1)} ({', '.join(cut(k, 80) for k in keys[:2])}{', ...' * (len(keys) > 2)})"


def check_meta(path: Path | str, meta: dict, expected: dict) -> None:
    """UsageError where `meta` says otherwise than `expected`; what it does not say is taken as it should be."""
    if off := meta_differences(meta, expected):
        raise UsageError(f"{path} was made for {', '.join(off)}")


def meta_differences(meta: dict, expected: dict) -> list[str]:
    """What `meta` says otherwise than `expected`, a phrase each."""
    return [f"{k} {meta[k]} (this run: {v})" for k, v in expected.items() if meta.get(k, v) != v]


def meta_of(net: nn.Module) -> dict:
    """What a file of this net must say so that it can be built again."""
    return {"latent": net.latent, "ngf": net.ngf} if isinstance(net, Generator) else {}


def load_model(path: Path | str, device: str = "cpu") -> tuple[nn.Module, Callable[[Tensor], Tensor], list[str]]:
    """(net, preprocess, classes) of a file that a script of this project has saved: student.pt, teacher.pt.

    net: in evaluation mode, images (N, C, H, W) as preprocess gives them -> logits (N, K). preprocess: uint8 images (N, 1 or 3, H, W)
    of any size -> what the net sees. classes: the K names. UsageError for a file that does not say what its net is.

        net, preprocess, classes = load_model("checkpoints/KD/Digits/ResNet20_to_ResNet8/seed0/student.pt")
    """
    state, meta = read_weights(path)
    if lacking := {"model", "shape", "classes", "data"} - meta.keys():
        what = "teacher.pt and student.pt of this project's scripts do"
        raise UsageError(f"{path} does not say its {', '.join(sorted(lacking))}; {what}, of versions from November 2026 on")
    if not meta["model"]:
        raise UsageError(f"{path} is of {meta['script']}.py and holds no classifier; give a teacher.pt or a student.pt")
    data = meta["data"]
    (channels, size, _), device = meta["shape"], torch.device(device)
    net = load_weights(build(meta["model"], meta["classes"], meta["shape"], device), state, path, meta["model"])
    mean, std = (torch.tensor(data[k], device=device).view(1, -1, 1, 1) for k in ("mean", "std"))

    def preprocess(x: Tensor) -> Tensor:
        return normalised(fit_pixels(x.to(device), size, channels, data["crop_from"]), mean, std)

    return net.eval().requires_grad_(False), preprocess, list(data["names"])


def fit_pixels(x: Tensor, size: int, channels: int, crop_from: int) -> Tensor:
    """uint8 images (N, 1 or 3, H, W) of any size -> uint8 (N, channels, size, size). crop_from: the resize rule, as Data.crop_from."""
    if not crop_from:
        return recoloured(resize(x, size), channels)
    x = center_crop(resize_side(x, [crop_from], antialias=True), [size, size])  # files, whose grey pixels stay as they are
    return exact_grey(x) if channels == 1 < x.shape[1] else recoloured(x, channels)


# ---- finding


def first_run(args: Base, script: str, **options) -> str:
    """The command of another script that a run with `args` builds upon, with what they must share."""
    shared = {k: getattr(args, k) for k in ("img_size", "normalize", "val", "data_dir", "checkpoints_dir", "logs_dir")}
    options |= {k: v for k, v in shared.items() if v != getattr(Base, k)}
    return shlex.join(["python", f"project/{script}.py", *flags(dataset=args.dataset, **options)])


def teacher_file(args: Base) -> Path:
    """The checkpoint of the run's teacher; UsageError, with the command that trains it, where there is none."""
    script, net = args.teacher_checkpoint()
    path = Path(
        args.teacher_path or run_folder(args.checkpoints_dir, script, args.dataset, net_name(args.teacher), args.teacher_seed) / f"{net}.pt"
    )
    if not path.exists() and not args.teacher_path:
        first = first_run(args, script, model=args.teacher, seed=args.teacher_seed)
        raise UsageError(f"no teacher for {args.dataset} in {path.parent}; first run: {first}")
    return path
