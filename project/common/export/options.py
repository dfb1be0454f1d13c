"""The options of an export."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..cli import UsageError
from ..options import RunOptions, described, opt

FORMATS = ("onnx", "pt2", "executorch")
DEBUG = described(RunOptions)["debug"]["help"]


@dataclass
class ExportOptions:
    GROUP: ClassVar = "export"
    NEEDS: ClassVar = ""
    ALIASES: ClassVar = {}

    run: str = opt("", "folder of a finished run, with result.json and student.pt or teacher.pt")
    file: str = opt("", "file of the run's folder to export; left out: student.pt or teacher.pt")
    to: str = opt("onnx", "formats, separated by commas: onnx (ONNX), pt2 (torch.export), executorch (ExecuTorch with XNNPACK)")
    int8: bool = opt(False, "also write 8-bit versions (weights and activations) of the ONNX and ExecuTorch files of --to")
    qat: int = opt(0, "number of epochs of quantisation-aware training on the calibration images (needs --int8); 0: none", ge=0)
    qat_lr: float = opt(1e-4, "learning rate of --qat (Adam; it falls to 0 along a cosine)", gt=0)
    preprocess: Literal["none", "pixels", "resize"] = opt(
        "none",
        "preprocessing inside the exported graph: none (its input is normalised floats), pixels (uint8 images of the network's size) or "
        "resize (uint8 images of any size)",
    )
    calibrate: Literal["private", "transfer", "synthetic"] = opt(
        "private", "calibration images of --int8: the run's private images, those of its transfer set, or a generator's"
    )
    calibration_images: int = opt(512, "maximum number of calibration images", ge=1, le=2**20)
    generator_path: str = opt("", "generator.pt for --calibrate synthetic; left out: the generator or the synthetic images of the run")
    seconds: float = opt(0.5, "duration of each latency measurement in seconds; 0: none", ge=0, le=3600)
    seed: int = opt(0, "random seed of the choice of calibration images", ge=0, le=2**32 - 1)
    data_dir: str = opt("data", "folder of the data sets")
    out: str = opt("", "folder of the exported files; left out: RUN/export")
    overwrite: bool = opt(False, "replace an earlier export")
    debug: bool = opt(False, DEBUG)

    def formats(self) -> list[str]:
        """The names in --to, each once; UsageError for an unknown one."""
        names = list(dict.fromkeys(name.strip().lower() for name in self.to.split(",")))
        if unknown := next((name for name in names if name not in FORMATS), None):
            raise UsageError(f"--to {self.to}: there is no format {unknown!r}; there are {', '.join(FORMATS)}, with commas between them")
        return names

    def validate(self) -> None:
        """UsageError for options that do not go together."""
        if not self.run:
            raise UsageError("--run is missing; give the folder of a finished run, such as checkpoints/KD/MNIST/ResNet32_to_ResNet8/seed0")
        if "" in self.to.split(",") or not self.formats():
            raise UsageError(f"--to {self.to!r}: give {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, with commas between them")
        if self.int8 and self.formats() == ["pt2"]:
            hint = "add onnx or executorch to --to, or leave --int8 out"
            raise UsageError(f"--int8 with --to {self.to}: 8-bit integers are for ONNX and ExecuTorch; {hint}")
        if self.qat and not self.int8:
            raise UsageError(f"--qat {self.qat} trains the network of the 8-bit files; add --int8")
        if self.generator_path and self.calibrate != "synthetic":
            raise UsageError(f"--generator_path has no effect with --calibrate {self.calibrate}; use --calibrate synthetic")
