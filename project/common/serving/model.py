"""The model that a server shows: its net as a run builds it, without reading an image of its data set."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
from torch import Tensor

from ..blackbox import Local
from ..checkpoints import check_meta, fit_pixels, identity, load_weights, read_weights, teacher_file
from ..cli import UsageError
from ..datasets import Data, load, spec_of
from ..datasets.images import normalised
from ..devices import device_of
from ..forms import NUMBER
from ..models import build, canonical
from ..teachers import check_teacher, class_names, known_normalisation, renormalised, teacher_normalisation
from ..utils import misfit, net_name, safe
from .options import ModelOptions


@dataclass
class Model:
    """A model under its name in URLs.

    api: images as a net sees them (N, C, H, W) -> logits (N, K). shape: (C, H, W). mean, std: of FP32 images, (1, C, 1, 1) each.
    classes: the K names. named: whether they are the model's own, not numbers in their place. crop_from: the resize rule, as
    Data.crop_from. version: 12 letters of the file's content.
    """

    name: str
    dataset: str
    api: Callable[[Tensor], Tensor]
    shape: tuple[int, int, int]
    mean: Tensor
    std: Tensor
    classes: list[str]
    named: bool
    crop_from: int
    version: str
    platform: str

    def view(self, images: np.ndarray) -> Tensor:
        """What the net sees of images (N, C, H, W): uint8 pixels are normalised, float32 ones are so already."""
        x = torch.from_numpy(images).to(self.mean.device)
        if x.dtype == torch.uint8:
            return normalised(x, self.mean, self.std)
        return x.contiguous(memory_format=torch.channels_last)

    def logits(self, x: Tensor) -> Tensor:
        """Logits (N, K) on the CPU, of one forward pass."""
        return self.api(x).cpu()

    def to_pixels(self, picture: Tensor) -> np.ndarray:
        """uint8 (1, C, H, W) of a picture, uint8 (1 or 3, h, w) of any size: as load_model's preprocess resizes it."""
        return fit_pixels(picture[None], self.shape[1], self.shape[0], self.crop_from).contiguous().numpy()


def open_model(args: ModelOptions, name: str = "") -> Model:
    """The model that the options name; `name`: another one for URLs. UsageError, with the command to run first, where there is none."""
    if name and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name):
        raise UsageError(f"--name {name!r}: it is part of a URL; use letters, digits, '.', '-' and '_'")
    args.dataset, device = spec_of(args.dataset)[0], device_of(args)
    torch.backends.cudnn.benchmark = False  # batches have any size
    if args.onnx:
        return open_onnx(args, name)
    args.teacher = canonical(args.teacher)
    path = teacher_file(args)
    state, meta = read_weights(path, args.weights)
    data = data_without_images(args, meta, device)
    check_teacher(path, meta, args, data)
    check_meta(path, meta, {"shape": list(data.shape), "classes": data.classes})
    c, h, w = data.shape
    net = build(args.teacher, data.classes, data.shape, device).to(memory_format=torch.channels_last)
    net = load_weights(net, state, path, f"{args.teacher} for {data.classes} classes of {c}x{h}x{w} images")
    return shown(name or safe(net_name(args.teacher)), args, net, meta, data, path, "pytorch")


def shown(name: str, args: ModelOptions, net: nn.Module, meta: dict, data: Data, path: Path, platform: str) -> Model:
    """The Model of a net of the file `path`, which says `meta` of itself; its images come as those of `data`."""
    here, its = (data.mean, data.std), teacher_normalisation(meta, args, data)
    api = Local(renormalised(net, here, its), "logits").answer
    classes, crop_from = data.names or [str(k) for k in range(data.classes)], meta["data"]["crop_from"] if "data" in meta else 0
    return Model(name, args.dataset, api, data.shape, *here, list(classes), bool(data.names), crop_from, identity(path), platform)


def data_without_images(args: ModelOptions, meta: dict, device: torch.device) -> Data:
    """The data set of the options without its images, normalised as a run has it, with the class names of the model's file.

    It has no names where the file does not say them, but for those of a folder's listing: the order of classes of others' files is unknown.
    """
    _, spec = spec_of(args.dataset)
    names, classes = meta["data"]["names"] if "data" in meta else [], spec.classes or meta.get("classes", 0)
    if not names and not classes:
        names = class_names(args, spec)
    known = known_normalisation(args, args.channels or spec.channels, meta)
    how = "half" if known else "dataset"
    data = load(args.dataset, args.data_dir, device, args.img_size, how, channels=args.channels, classes_without_data=len(names) or classes)
    if known:
        data.mean, data.std = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in known)
    data.names = names
    return data


# ---- ONNX

EXPORTED = {"names": [str], "mean": [NUMBER], "std": [NUMBER], "crop_from": range(2**20)}


class OnnxNet(nn.Module):
    """Logits (N, K) of images (N, C, H, W), computed by an ONNX session."""

    def __init__(self, session: object):
        super().__init__()
        self.session, self.input = session, session.get_inputs()[0].name

    def forward(self, x: Tensor, feature: bool = False) -> Tensor:
        """One run of the session, on the CPU; it has no features."""
        return torch.from_numpy(self.session.run(None, {self.input: x.contiguous().cpu().numpy()})[0])


def open_onnx(args: ModelOptions, name: str) -> Model:
    """The model of an ONNX file. UsageError where onnxruntime is missing, or the file does not take and give what the data set has."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise UsageError(f"--onnx {args.onnx}: the package onnxruntime is not installed; run: pip install onnxruntime") from None
    path = Path(args.onnx)
    if not path.is_file():
        raise UsageError(f"no file {path}")
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as e:  # onnxruntime has an exception for each of its states
        raise UsageError(f"{path} is not a readable ONNX file ({' '.join(str(e).split())[:150]})") from None
    meta = exports_meta(session.get_modelmeta().custom_metadata_map, args.channels or spec_of(args.dataset)[1].channels)
    data = data_without_images(args, meta, torch.device("cpu"))
    inputs, outputs = session.get_inputs(), session.get_outputs()
    wanted = f"one input of float32 images (N, {', '.join(map(str, data.shape))}), any N, and logits (N, {data.classes}) first"
    found = f"{', '.join(f'{i.type} {i.shape}' for i in inputs)} -> {outputs[0].type} {outputs[0].shape}"
    fits = len(inputs) == 1 and inputs[0].type == outputs[0].type == "tensor(float)"
    fits = fits and agrees(inputs[0].shape, data.shape) and agrees(outputs[0].shape, (data.classes,))
    if not fits:
        hint = "see --dataset, --img_size and --channels, and export it with a dynamic batch size"
        raise UsageError(f"{path} has {found}; expected {wanted}: {hint}")
    return shown(name or safe(path.stem) or "onnx", args, OnnxNet(session), meta, data, path, "onnxruntime_onnx")


def exports_meta(about: dict[str, str], channels: int) -> dict:
    """What the metadata of an ONNX file that export.py wrote say of its data, as the meta of a checkpoint; {} for others' files."""
    try:
        data = {key: json.loads(about[name]) for key, name in zip(EXPORTED, ("classes", "mean", "std", "crop_from"), strict=True)}
    except (KeyError, ValueError):
        return {}
    fits = not misfit(data, EXPORTED, "metadata") and len(data["mean"]) == len(data["std"]) == channels and data["names"]
    return {"data": data} if fits else {}


def agrees(shape: list, wanted: tuple[int, ...]) -> bool:
    """Whether a shape of an ONNX file, whose free sizes are texts or None, is (any, *wanted)."""
    sizes = [n if isinstance(n, int) else None for n in shape]
    return len(sizes) == len(wanted) + 1 and sizes[0] is None and all(n in (None, w) for n, w in zip(sizes[1:], wanted, strict=True))
