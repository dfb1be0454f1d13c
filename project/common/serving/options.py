"""The options of a server: those that name a teacher, as every script spells them, and the server's own."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ..blackbox import RESPONSES, rank
from ..cli import UsageError
from ..options import TeacherOptions, check_normalisation, described, opt
from ..utils import is_url

KNOWN = described(TeacherOptions)
DIGITS = 15  # more decimals than a float32 has


def shared(name: str, default: Any = None) -> Any:
    """The option `name` of the scripts that ask a teacher: its help, bounds and other spellings, and its default if none is given."""
    about = KNOWN[name]
    return opt(getattr(TeacherOptions, name) if default is None else default, about["help"], alias=about["alias"], **about["bounds"])


@dataclass
class RunOptions:
    GROUP: ClassVar = "run"
    NEEDS: ClassVar = ""
    ALIASES: ClassVar = {}

    # how a script without these options is seen
    private, model, val, logs_dir, deterministic = "", "", 0.0, "logs", False

    device: str = shared("device")
    data_dir: str = opt("data", "folder of the data sets, read only for the class names of a folder:PATH")
    checkpoints_dir: str = shared("checkpoints_dir")
    debug: bool = shared("debug")


@dataclass
class ModelOptions(RunOptions):
    GROUP: ClassVar = "teacher"

    dataset: str = opt("MNIST", "data set that the teacher was trained on: a name, or folder:PATH; its images are not read")
    teacher: str = opt("ResNet32", "architecture of the teacher: a model of the list")
    teacher_seed: int = shared("teacher_seed")
    teacher_path: str = shared("teacher_path")
    weights: str = shared("weights")
    onnx: str = opt("", "ONNX file (images -> logits) that is served instead of a checkpoint; needs the package onnxruntime")
    teacher_normalize: str = shared("teacher_normalize")
    normalize: str = opt(
        "half", "normalisation of FP32 images in requests: half (to [-1, 1]), unit (to [0, 1]), imagenet, dataset, or mean and std"
    )
    img_size: int = shared("img_size")
    channels: int = shared("channels")

    def teacher_checkpoint(self) -> tuple[str, str]:
        """(the script that the teacher is of, the name under which that saves it)."""
        return "teacher", "teacher"


@dataclass
class AccessOptions(ModelOptions):
    GROUP: ClassVar = "access"

    keys: str = opt("", "TOML file of API keys, each with budget, rate and response (docs/serving.md); without it no key is needed")
    response: str = opt(
        "soft", "most that an answer may contain: hard (class), topk:K, soft (probabilities) or logits", alias=KNOWN["response"]["alias"]
    )
    query_budget: int = opt(0, "maximum number of images answered, over all restarts (a key: its own budget); 0: no limit", ge=0)
    rate: float = opt(0.0, "maximum number of images per second (a key: its own rate); 0: no limit", ge=0)
    digits: int = opt(0, "number of decimals that probabilities are rounded to; 0: not rounded", ge=0, le=DIGITS)
    accounts: str = opt("", "SQLite file that counts images and requests; left out: CHECKPOINTS_DIR/served/NAME.sqlite")


@dataclass
class ServingOptions(AccessOptions):
    GROUP: ClassVar = "server"

    name: str = opt("", "name of the model in URLs; left out: the name of the teacher")
    host: str = opt("127.0.0.1", "address that the server listens at; 0.0.0.0: all addresses of this machine")
    port: int = opt(8000, "port that the server listens at; 0: any free one", ge=0, le=65535)
    input: Literal["uint8", "float32"] = opt("uint8", "type of the images that the metadata names; requests may send either")
    max_batch: int = opt(1024, "maximum number of images in a request, and in a forward pass", ge=1, le=2**20)
    max_wait_ms: float = opt(0.0, "time that a request waits for others to share its forward pass, in milliseconds", ge=0, le=60_000)
    join: bool = opt(True, "answer each request in a forward pass of its own, so that other requests change no bit of an answer")
    max_queue: int = opt(256, "maximum number of waiting requests; further ones are refused with status 503", ge=1)
    max_body_mb: int = opt(64, "maximum size of a request's body in megabytes", ge=1, le=4096)

    def validate(self) -> None:
        """UsageError for options that do not go together."""
        if rank(self.response) == RESPONSES.index("inside"):
            raise UsageError("--response inside: a server shows no features and gradients; there are hard, topk:K, soft and logits")
        for option in ("normalize", "teacher_normalize"):
            if getattr(self, option) not in ("", "dataset"):
                check_normalisation(getattr(self, option), f"--{option}")
        if self.channels == 2:
            raise UsageError("--channels 2: there are 1 (grey), 3 (colour) and 0 (as the data set has)")
        if self.teacher.startswith("py:") or is_url(self.teacher):
            what = "a server" if is_url(self.teacher) else "a function"
            raise UsageError(f"--teacher {self.teacher}: {what} is not served; give a model of the list with its checkpoint")
        if self.onnx and (self.teacher_path or self.teacher_normalize or self.weights):
            raise UsageError("--onnx excludes --teacher_path, --teacher_normalize and --weights, which are of checkpoints; leave them out")
        if not self.checkpoints_dir:
            raise UsageError("--checkpoints_dir is empty; name a folder, or leave the option out for checkpoints/")
