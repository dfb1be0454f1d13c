"""Writes an export: makes the files of each format, checks and measures them, and notes everything in export.json and README.md."""

import json
import platform
import re
import shlex
from collections.abc import Callable
from functools import cached_property
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn as nn
from torch import Tensor

from ..checkpoints import identity
from ..cli import UsageError, say
from ..datasets import Images
from ..devices import versions
from ..measures import infer
from ..options import flags
from ..utils import atomic, save_json, save_text
from . import graphs, measured, qat
from .card import card
from .finished import Finished, calibration_images
from .folder import REPORT
from .options import ExportOptions


class Export:
    """One export of a run into a folder; each format of --to is a module to_FORMAT, whose `write` uses it.

    report: what export.json will hold. view: test images -> what the files take; images: up to 128 of these, (n, C, H, W).
    core: the program of the net, normalised images (N, C, H, W) -> logits. timed: the nets whose latency is measured.
    calibration, target: normalised images (n, C, H, W) of --int8, and the net's logits (n, K) of them.
    programs_to_quantise: [core, that of the net trained with --qat].
    """

    def __init__(self, args: ExportOptions, run: Finished, folder: Path):
        self.args, self.run, self.folder, self.role = args, run, folder, run.path.stem
        crop = run.meta["data"]["crop_from"]
        self.pixels, self.resize = args.preprocess != "none", args.preprocess == "resize"
        if self.resize and crop:
            what = f"the resizing of image files (shorter side to {crop}) is not possible in a graph"
            raise UsageError(f"--preprocess resize: {what}; use --preprocess pixels, and give images of the network's size")
        self.front = graphs.Pixels(run.data.shape[1], run.data.mean, run.data.std, self.resize).eval()
        self.view = (lambda x: x) if self.pixels else run.data.view
        self.report, self.timed = about(args, run), {}

    def write(self) -> dict:
        """Makes, checks and measures all files; gives the report. RunError where a graph's logits are not those of PyTorch."""
        run = self.run
        s, y = self.logits, run.test.y
        self.report["float"] = measured.quality_of(s, y)
        self.report["size"] = measured.size_of(run.net, torch.zeros(1, *run.data.shape))
        if (t := self.teacher_logits) is not None:
            self.report["teacher"] = measured.quality_of(t, y) | {"path": str(run.teacher[0])}
            self.report["float"]["teacher_agreement"] = measured.percent(s.argmax(1) == t.argmax(1))
        self.core = self.program(run.net)
        self.programs_to_quantise = self.quantisable() if self.args.int8 else []
        for to in self.args.formats():
            import_module(f".to_{to}", __package__).write(self)  # now: its packages are optional
        self.measure()
        self.report["command"] = command(self.args)
        save_json(self.folder / REPORT, self.report)
        save_text(self.folder / "README.md", card(self.report))
        return self.report

    @cached_property
    def logits(self) -> Tensor:
        """The net's logits (N, K) of the test images."""
        return infer(self.run.net, self.run.test, self.run.data.view)

    @cached_property
    def teacher_logits(self) -> Tensor | None:
        """The teacher's logits (N, K) of the test images; None where it is not there, or has other classes."""
        if self.run.teacher is None:
            return None
        _, net, preprocess = self.run.teacher
        t = infer(lambda x: net(preprocess(x)), self.run.test, lambda x: x)
        return t if t.shape[1] == len(self.run.classes) else None

    @cached_property
    def images(self) -> Tensor:
        return infer(lambda x: x, self.few, self.view).contiguous()

    @cached_property
    def few(self) -> Images:
        """The first test images."""
        return self.run.test.subset(torch.arange(min(128, len(self.run.test))))

    def program(self, net: nn.Module) -> torch.export.ExportedProgram:
        """The program of a net that takes normalised images."""
        return graphs.program(net, torch.zeros(2, *self.run.data.shape), self.report["model"])

    def quantisable(self) -> list[torch.export.ExportedProgram]:
        """The programs whose 8-bit files are made one after the other; the last ones stay."""
        self.calibration = calibration_images(self.args, self.run)
        self.target = torch.cat([self.run.net(x) for x in self.calibration.split(500)])
        if not self.args.qat:
            return [self.core]
        training = self.args.qat, self.args.qat_lr, self.args.seed
        net, self.report["qat"] = qat.train(self.core.module(), self.calibration, self.target, *training)
        return [self.core, self.program(net)]

    def behind_front(self, net: nn.Module) -> nn.Module:
        """`net`, which takes normalised images, behind the preprocessing of the export."""
        return nn.Sequential(self.front, net) if self.pixels else net

    def example(self, n: int) -> Tensor:
        """n images such as the files take; where they resize, of another height than width."""
        c, h, w = self.run.data.shape
        return torch.zeros(n, c, h + 5 * self.resize, w + 9 * self.resize, dtype=torch.uint8 if self.pixels else torch.float32)

    def metadata(self) -> dict[str, str]:
        """What each file says of itself: {key: text}; lists are JSON."""
        s = self.report["source"]
        found = {k: self.report[k] for k in ("model", "dataset", "preprocess")}
        found |= {k: json.dumps(self.report[k]) for k in ("classes", "shape", "mean", "std", "crop_from")}
        return found | {k: str(s[k]) for k in ("script", "teacher", "seed", "commit", "queries")}

    def save(self, name: str, content: bytes) -> Path:
        """A file of the export; notes its size."""
        with atomic(self.folder / name) as f:
            f.write(content)
        self.report["files"][name] = {"bytes": len(content), "sha256": identity(self.folder / name)}
        return self.folder / name

    def compared(self, name: str, f: Callable[[Tensor], Tensor]) -> None:
        """Parity of an export f with PyTorch's logits on all test images. RunError where it is not given."""
        found = measured.parity(name, self.logits, infer(f, self.run.test, self.view))
        if found["largest_difference"] >= self.report["parity"].get("largest_difference", 0):
            self.report["parity"] = found
        say(f"{name}: logits differ from PyTorch's by at most {found['largest_difference']:.2g} ({found['images']:,} test images)")

    def write_int8(self, name: str, key: str, make: Callable, opened: Callable) -> Path:
        """The 8-bit file `name` of the last program to quantise; the quality of all of them is noted in report[key].

        make: a program -> (the file's content, whether its weights have a scale per channel). opened: a file -> images -> logits.
        """
        before, args, float_accuracy = {}, self.args, self.report["float"]["accuracy"]
        for core in self.programs_to_quantise:
            content, per_channel = make(core)
            path = self.save(name, content)
            q = infer(opened(path), self.run.test, self.view)
            found = measured.int8_quality(q, self.logits, self.run.test.y, self.teacher_logits) | {"per_channel": per_channel}
            found |= {"calibrate": args.calibrate, "calibration_images": len(self.calibration)}
            found |= {"drop": float_accuracy - found["accuracy"]} | before
            before = {"without_qat": found}
        self.report[key] = found
        without = f", without QAT {found['without_qat']['accuracy']:.2f} %" if args.qat else ""
        say(f"{name}: accuracy {found['accuracy']:.2f} % (float {float_accuracy:.2f} %{without}), KL {found['kl']:.2g} nats")
        return path

    def measure(self) -> None:
        """Latency of the net, of its files and of its teacher."""
        run, net = self.run, self.behind_front(self.run.net)
        nets = {f"{self.role}, PyTorch": measured.Timed(lambda threads: net, self.images)} | self.timed
        if run.teacher:
            _, teacher, preprocess = run.teacher
            x = preprocess(infer(lambda x: x, self.few, lambda x: x)).contiguous()
            nets["teacher, PyTorch"] = measured.Timed(lambda threads: teacher, x)
            self.report["teacher"] = self.report.get("teacher", {}) | measured.size_of(teacher, x[:1])
            self.report["teacher"]["bytes"] = run.teacher[0].stat().st_size
        if self.args.seconds:
            say(f"latency: {len(nets)} networks, {self.args.seconds:g} s for each measurement")
            self.report["latency"] = measured.latencies(nets, self.args.seconds)


def about(args: ExportOptions, run: Finished) -> dict:
    """What is known before anything is measured."""
    r, meta, o = run.result, run.meta, run.result["options"]
    source = {
        "script": r.get("script", meta["script"]),
        "seed": o["seed"],
        "teacher": o.get("teacher", ""),
        "response": o.get("response", ""),
    }
    source |= {"queries": r.get("queries", 0), "api": r.get("api"), "images": r.get("images", 0), "split": r.get("split", "test")}
    source |= {k: r.get(k) for k in ("accuracy", "best", "command")} | {"commit": r.get("versions", {}).get("commit", "unknown")}
    source |= {"file": str(run.path), "sha256": identity(run.path), "bytes": run.path.stat().st_size}
    packages = {p: version(p) for to in args.formats() for p in graphs.PACKAGES[to]}
    here = {k: v for k, v in versions().items() if k in ("python", "torch", "numpy")} | packages
    device = f"CPU, {measured.cores()} cores, {platform.machine()}"
    return {
        "role": run.path.stem,
        "model": meta["model"],
        "dataset": re.sub(r"folder:(?:(?!-folder:).)*/", "folder:", meta["dataset"]),  # without the path
        "classes": run.classes,
        "shape": meta["shape"],
        **{k: meta["data"][k] for k in ("mean", "std", "crop_from")},
        "preprocess": args.preprocess,
        "source": source,
        "files": {},
        "parity": {},
        "latency": [],
        "device": device,
        "versions": here,
        "versions_text": ", ".join(f"{k} {v}" for k, v in here.items()),
    }


def command(args: ExportOptions) -> str:
    """The command line of this export: the options that are not their defaults."""
    given = {k: v for k, v in vars(args).items() if v != getattr(ExportOptions, k) and k not in ("overwrite", "debug")}
    return shlex.join(["python", "project/export.py", *flags(**given)])
