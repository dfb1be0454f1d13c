"""A finished run as an export needs it: its net, its result, its images, its teacher; and images to calibrate 8-bit numbers with."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
from torch import Tensor

from ..checkpoints import check_meta, identity, load_model, load_weights, read_weights
from ..cli import UsageError, say
from ..datasets import Data, Images, is_flat, load
from ..datasets.images import normalised
from ..earlier import data_changes, finished_result
from ..gan import Generator
from ..measures import infer
from ..teachers import in_order_of
from ..transfer import Transfer
from .options import ExportOptions


@dataclass
class Finished:
    """One finished run, and the net of one of its files.

    path, meta: the file and what it says of itself. net: normalised floats (N, C, H, W) -> logits (N, K). preprocess: as load_model's.
    data: the run's data set, normalised as the net was trained; private, test: the images that it trained on, and was evaluated on.
    """

    folder: Path
    result: dict
    path: Path
    meta: dict
    net: nn.Module
    preprocess: Callable[[Tensor], Tensor]
    classes: list[str]
    data: Data
    private: Images
    test: Images

    @functools.cached_property
    def teacher(self) -> tuple[Path, nn.Module, Callable[[Tensor], Tensor]] | None:
        """(file, net, preprocess) of the run's teacher; None, which is said, where its file is not there or not of this project.

        preprocess: uint8 images of this run's size -> what the teacher sees.
        """
        path = teacher_checkpoint(self.result)
        if not path:
            return None
        try:
            net, preprocess, _ = load_model(path)
            meta = read_weights(path)[1]
        except UsageError as e:
            return say(f"no comparison with the teacher: {e}")
        if meta["shape"] != self.meta["shape"]:
            return path, net, preprocess
        mean, std = (torch.tensor(meta["data"][k]).view(1, -1, 1, 1) for k in ("mean", "std"))
        return path, net, lambda x: normalised(x, mean, std)  # the images are resized and cropped already


def open_finished(args: ExportOptions) -> Finished:
    """The finished run in the folder --run. UsageError for another folder, an unfinished run, a file that is no classifier, other data."""
    folder = Path(args.run)
    result = finished_result(folder) if folder.is_dir() else None
    if result is None:
        raise UsageError(unusable(folder))
    path = checkpoint_of(folder, result, args.file)
    net, preprocess, classes = load_model(path)
    meta = read_weights(path)[1]
    data = load_data(result["options"], meta, args.data_dir)
    if "data" in result and (changed := data_changes(result["data"], data.identity())):
        raise UsageError(f"the data of {data.name} have changed since {folder} was written: {'; '.join(changed)}; put the files back")
    o = result["options"]
    private, test = data.parts(o.get("lamda", 1.0), o["seed"], o.get("val", 0.0), o.get("zoom", False))
    if not len(test):
        raise UsageError(f"{folder}: its data set {data.name} has no labelled test images, with which an export is checked")
    return Finished(folder, result, path, meta, net, preprocess, classes, data, private, test)


def unusable(folder: Path) -> str:
    """Why a folder without result.json cannot be exported, and what to do."""
    if not folder.is_dir():
        return f"no folder {folder}; give the folder of a finished run, such as checkpoints/KD/MNIST/ResNet32_to_ResNet8/seed0"
    if (folder / "state.pt").exists():
        return f"{folder} is an unfinished run (no result.json); repeat its command, which resumes it"
    found = sorted(p.parent for p in folder.glob("*/result.json"))
    return f"{folder} is no folder of a run (no result.json){f'; did you mean {found[0]}?' if found else ''}"


def checkpoint_of(folder: Path, result: dict, name: str) -> Path:
    """The file of a run that is exported; name: that of --file. UsageError where the run has no such file, or no classifier."""
    there = [n for n in result.get("files", {}) if n.endswith(".pt")]
    if name:
        path = folder / Path(name).name
        if not path.is_file() or Path(name).parent not in (Path(), folder):
            raise UsageError(f"--file {name}: {folder} has no such file; it has: {', '.join(there)}")
        return path
    path = next((folder / n for n in ("student.pt", "teacher.pt") if (folder / n).is_file()), None)
    if path is None:
        raise UsageError(f"{folder} has no student.pt and no teacher.pt, only {', '.join(there) or 'no network'}; it cannot be exported")
    return path


def load_data(options: dict, meta: dict, data_dir: str) -> Data:
    """The data set that a run with these options was evaluated on, with size, channels and normalisation of the file that says `meta`."""
    name, (channels, size, _) = options.get("private") or options["dataset"], meta["shape"]
    labels = name == options["dataset"] or not is_flat(name)
    data = load(name, data_dir, "cpu", size, channels=channels, labels=labels, skip_broken=options.get("skip_broken", False))
    data.mean, data.std = (torch.tensor(meta["data"][k]).view(1, -1, 1, 1) for k in ("mean", "std"))
    if not labels:
        data.names, data.classes = list(meta["data"]["names"]), meta["classes"]
    elif name == options.get("private"):
        data = in_order_of(meta["data"]["names"], data)
    return data


def teacher_checkpoint(result: dict) -> Path | None:
    """The file of a run's teacher, None where it is not there or has changed since."""
    named = result["options"].get("teacher_path")
    return source_of(result, lambda path: str(path) == named or path.name == "teacher.pt")


def source_of(result: dict, wanted: Callable[[Path], bool]) -> Path | None:
    """The first of the files that a run was made from which is wanted, is there, and is as it was."""
    sources = ((Path(path), known) for path, known in result["sources"].items())
    return next((path for path, known in sources if wanted(path) and path.is_file() and identity(path) == known), None)


# ---- calibration


def calibration_images(args: ExportOptions, run: Finished) -> Tensor:
    """Normalised images (n, C, H, W) to calibrate with, n at most --calibration_images. UsageError where the run has none of this kind."""
    g = torch.Generator().manual_seed(args.seed)
    if args.calibrate == "private":
        if not len(run.private) or not run.result.get("images", 1):
            raise UsageError(f"no calibration images: {run.folder} used no private image; use --calibrate synthetic or transfer")
        return infer(lambda x: x, run.private.subset(drawn(len(run.private), args, g)), run.data.view).contiguous()
    if args.calibrate == "synthetic" and (path := generator_file(args, run)):
        return generated(path, args, run, g)
    return bought(args, run, g)


def drawn(n: int, args: ExportOptions, g: torch.Generator) -> Tensor:
    """The rows of --calibration_images of n images, or of all, in order."""
    return torch.randperm(n, generator=g)[: args.calibration_images].sort().values


def generator_file(args: ExportOptions, run: Finished) -> Path | None:
    """The generator's file: --generator_path, or the one that the run was made from."""
    return Path(args.generator_path) if args.generator_path else source_of(run.result, lambda path: path.name == "generator.pt")


def generated(path: Path, args: ExportOptions, run: Finished, g: torch.Generator) -> Tensor:
    """Images of the generator in a file. UsageError where it makes images of another shape, or says nothing of itself."""
    state, meta = read_weights(path)
    if lacking := {"latent", "ngf", "shape"} - meta.keys():
        raise UsageError(f"{path} does not say its {', '.join(sorted(lacking))}; give a generator.pt of DCGAN.py")
    check_meta(path, meta, {"shape": list(run.data.shape)})
    G = load_weights(Generator(meta["latent"], run.data.shape, meta["ngf"]), state, path, "a generator of DCGAN.py").eval()
    z, seen = torch.randn(args.calibration_images, meta["latent"], generator=g), run.data.view_of_tanh()
    with torch.no_grad():
        return torch.cat([seen(G(part)) for part in z.split(500)]).contiguous()


def bought(args: ExportOptions, run: Finished, g: torch.Generator) -> Tensor:
    """Images of the run's transfer set; with --calibrate synthetic only where they are a generator's. UsageError where there are none."""
    path = run.folder / "transfer.safetensors"
    transfer = Transfer(path)
    rows, about = transfer.whole() if transfer else {}, transfer.about
    if args.calibrate == "synthetic" and "images" not in rows:
        raise UsageError(f"no calibration images: {run.folder} has no synthetic images and no generator; give --generator_path")
    if not rows:
        others = "private" if run.result.get("images", 1) else "synthetic"
        raise UsageError(f"no calibration images: there is no {path}; use --calibrate {others}")
    chosen = drawn(len(rows["answers"]), args, g)
    if "images" in rows:
        return rows["images"][chosen]
    train, index = transfer_source(about, run, args.data_dir).train, rows["index"][chosen]
    if "weight" not in rows:
        return infer(lambda x: x, train.subset(index), run.data.view).contiguous()
    a, b = (infer(lambda x: x, train.subset(index[:, i]), run.data.view) for i in (0, 1))
    return torch.lerp(b, a, rows["weight"][chosen].view(-1, 1, 1, 1)).contiguous()


def transfer_source(about: dict, run: Finished, data_dir: str) -> Data:
    """The data set whose images a transfer set refers to. UsageError where its files have changed."""
    name = about["dataset"]
    if name == run.data.name:
        return run.data
    channels, size, _ = run.data.shape
    data = load(name, data_dir, "cpu", size, channels=channels, labels=not is_flat(name))
    data.mean, data.std = run.data.mean, run.data.std
    if changed := data_changes(about.get("data") or data.identity(), data.identity()):
        raise UsageError(f"no calibration images: {name} has changed since the transfer set was bought: {'; '.join(changed)}")
    return data
