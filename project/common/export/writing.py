"""Writes an export: makes the graphs, checks and measures them, and notes everything in export.json and README.md."""

import json
import platform
import re
import shlex
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn as nn
from torch import Tensor

from ..checkpoints import identity
from ..cli import UsageError, say
from ..devices import versions
from ..measures import infer
from ..options import flags
from ..utils import atomic, save_json, save_text
from . import graphs, measured
from .card import card
from .finished import Finished, calibration_images
from .folder import REPORT
from .int8 import quantised
from .options import ExportOptions


class Export:
    """One export of a run into a folder. report: what export.json will hold."""

    def __init__(self, args: ExportOptions, run: Finished, folder: Path):
        self.args, self.run, self.folder, self.role = args, run, folder, run.path.stem
        crop = run.meta["data"]["crop_from"]
        if args.preprocess == "resize" and crop:
            hint = "use --preprocess pixels, and give images of the network's size"
            raise UsageError(f"--preprocess resize: the resizing of image files (shorter side to {crop}) has no equal in ONNX; {hint}")
        self.pixels = args.preprocess != "none"
        self.front = graphs.Pixels(run.data.shape[1], run.data.mean, run.data.std, args.preprocess == "resize").eval()
        self.view = (lambda x: x) if self.pixels else run.data.view
        self.report = about(args, run)

    def write(self) -> dict:
        """Makes, checks and measures all files; gives the report. RunError where a graph's logits are not those of PyTorch."""
        run = self.run
        s = infer(run.net, run.test, run.data.view)  # (N, K)
        y, shape = run.test.y, (2, *run.data.shape)
        self.report["float"] = measured.quality_of(s, y)
        self.report["size"] = measured.size_of(run.net, torch.zeros(1, *run.data.shape))
        t = self.teacher_logits()
        if t is not None:
            self.report["teacher"] = measured.quality_of(t, y) | {"path": str(run.teacher[0])}
            self.report["float"]["teacher_agreement"] = measured.percent(s.argmax(1) == t.argmax(1))
        x = calibration_images(self.args, run) if self.args.int8 else None
        core = graphs.program(run.net, torch.zeros(shape), run.meta["model"])
        if "pt2" in self.args.formats():
            self.check_pt2(s, core)
        if "onnx" in self.args.formats():
            self.check_onnx(s, t, x, graphs.to_onnx(core, run.meta["model"]))
        self.measure()
        self.report["command"] = command(self.args)
        save_json(self.folder / REPORT, self.report)
        save_text(self.folder / "README.md", card(self.report))
        return self.report

    def teacher_logits(self) -> Tensor | None:
        """The teacher's logits (N, K) of the test images; None where it is not there, or has other classes."""
        if self.run.teacher is None:
            return None
        _, net, preprocess = self.run.teacher
        t = infer(lambda x: net(preprocess(x)), self.run.test, lambda x: x)
        return t if t.shape[1] == len(self.run.classes) else None

    def save(self, name: str, content: bytes) -> Path:
        """A file of the export; notes its size."""
        with atomic(self.folder / name) as f:
            f.write(content)
        self.report["files"][name] = {"bytes": len(content), "sha256": identity(self.folder / name)}
        return self.folder / name

    def compared(self, name: str, s: Tensor, f: Callable[[Tensor], Tensor]) -> dict:
        """Parity of an export f with the logits s on all test images."""
        found = measured.parity(name, s, infer(f, self.run.test, self.view))
        if found["largest_difference"] >= self.report["parity"].get("largest_difference", 0):
            self.report["parity"] = found
        say(f"{name}: logits differ from PyTorch's by at most {found['largest_difference']:.2g} ({found['images']:,} test images)")
        return found

    def check_pt2(self, s: Tensor, core: torch.export.ExportedProgram) -> None:
        """Writes and compares the program of torch.export."""
        if self.pixels:
            example = torch.zeros(2, *self.run.data.shape, dtype=torch.uint8)
            if self.args.preprocess == "resize":  # a size of its own for each free dimension
                example = torch.zeros(2, example.shape[1], example.shape[2] + 5, example.shape[3] + 9, dtype=torch.uint8)
            whole = nn.Sequential(self.front, self.run.net)
            core = graphs.program(whole, example, self.run.meta["model"], self.args.preprocess == "resize")
        path = self.save(f"{self.role}.pt2", graphs.to_pt2(core, metadata(self.report)))
        with graphs.quiet():
            loaded = torch.export.load(path).module()
        self.compared(path.name, s, loaded)

    def check_onnx(self, s: Tensor, t: Tensor | None, x: Tensor | None, core: "graphs.onnx.ModelProto") -> None:
        """Writes and compares the ONNX model; with calibration images x also the 8-bit one, whose quality is measured."""
        r, front = self.report, self.front_onnx() if self.pixels else None
        joined = (lambda model: graphs.behind(model, front)) if front else lambda model: model
        small, per_channel = (None, False) if x is None else quantised(core, x, r["model"])
        path = self.save(f"{self.role}.onnx", graphs.to_bytes(joined(core), metadata(r)))
        self.compared(path.name, s, measured.Session(path))
        if small:
            path = self.save(f"{self.role}.int8.onnx", graphs.to_bytes(joined(small), metadata(r) | {"weights": "int8"}))
            q = infer(measured.Session(path), self.run.test, self.view)
            r["int8"] = measured.int8_quality(q, s, self.run.test.y, t) | {"per_channel": per_channel}
            r["int8"] |= {
                "calibrate": self.args.calibrate,
                "calibration_images": len(x),
                "drop": r["float"]["accuracy"] - r["int8"]["accuracy"],
            }
            say(
                f"{path.name}: accuracy {r['int8']['accuracy']:.2f} % (float {r['float']['accuracy']:.2f} %), KL {r['int8']['kl']:.2g} nats"
            )

    def front_onnx(self) -> "graphs.onnx.ModelProto":
        """The preprocessing as an ONNX model, compared with that of load_model."""
        run, resize = self.run, self.args.preprocess == "resize"
        c, h, w = run.data.shape
        example = torch.zeros(2, c, h + 5 * resize, w + 9 * resize, dtype=torch.uint8)
        model = graphs.to_onnx(graphs.program(self.front, example, "the preprocessing", resize), "the preprocessing", "pixels", "view")
        session = measured.Session(model.SerializeToString())
        few = run.test.subset(torch.arange(min(1000, len(run.test))))
        wanted = run.data.view if run.meta["data"]["crop_from"] else run.preprocess  # image files are cropped before
        a, b = (infer(f, few, lambda x: x) for f in (wanted, session))
        self.report["preprocessing"] = measured.parity("the preprocessing", a, b, measured.PIXELS)
        if resize:
            self.report["preprocessing"]["resize"] = measured.resize_check(session, run.preprocess, run.data.shape, run.data.std)
        return model

    def measure(self) -> None:
        """Latency of the net, of its files and of its teacher; memory of the ONNX files."""
        run, nets = self.run, {}
        few = run.test.subset(torch.arange(min(128, len(run.test))))
        raw, seen = (infer(lambda x: x, few, view) for view in (lambda x: x, run.data.view))
        taken = raw if self.pixels else seen
        nets[f"{self.role}, PyTorch"] = (nn.Sequential(self.front, run.net) if self.pixels else run.net, taken)
        for name in (n for n in self.report["files"] if n.endswith(".onnx")):
            kind = "int8" if "int8" in name else "float"
            nets[f"{self.role}, ONNX {kind}"] = (self.folder / name, taken)
            self.report["files"][name]["peak_mb"] = measured.peak_mb(self.folder / name, taken[:1])
        if run.teacher:
            _, net, preprocess = run.teacher
            x = preprocess(raw).contiguous()
            nets["teacher, PyTorch"] = (net, x)
            self.report["teacher"] = self.report.get("teacher", {}) | measured.size_of(net, x[:1])
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
    packages = {p: version(p) for p in graphs.PACKAGES if "onnx" in args.formats()}
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


def metadata(report: dict) -> dict[str, str]:
    """What each file says of itself: {key: text}; lists are JSON."""
    s = report["source"]
    found = {k: report[k] for k in ("model", "dataset", "preprocess")}
    found |= {k: json.dumps(report[k]) for k in ("classes", "shape", "mean", "std", "crop_from")}
    return found | {k: str(s[k]) for k in ("script", "teacher", "seed", "commit", "queries")}


def command(args: ExportOptions) -> str:
    """The command line of this export: the options that are not their defaults."""
    given = {k: v for k, v in vars(args).items() if v != getattr(ExportOptions, k) and k not in ("overwrite", "debug")}
    return shlex.join(["python", "project/export.py", *flags(**given)])
