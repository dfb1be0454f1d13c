"""Options: a dataclass a script. A field is an option; a plain default of a subclass, `lr: float = 0.02`, keeps the help that it has."""

import argparse
import inspect
import os
import re
import sys
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cache
from typing import Any, ClassVar, Literal, get_args, get_origin

from .api.options import ApiOptions
from .arguments import Joined, Parser, opt
from .blackbox import rank
from .cli import UsageError
from .fast import FastOptions
from .losses import Scale
from .utils import is_url, run_name
from .values import check, check_normalisation, interval, real, whole

MAX_SEED = 2**32 - 1
GROUPS = ("method", "server", "export", "access", "training", "data", "teacher", "API", "run")  # of --help, in this order
WEIGHTS_INIT = Literal["torch", "fan_out"]
AUGMENT = Literal["none", "crop", "crop_flip", "resized_crop", "auto"]


@dataclass
class RunOptions:
    """What every script shares. A class has its options in the group GROUP of --help; those of a script itself are its method's."""

    GROUP: ClassVar = "run"
    DATA: ClassVar = True  # whether the script trains on images of the data set
    AUGMENTS: ClassVar = True  # whether it augments the student's images
    SOURCE_CROPS: ClassVar = False  # whether random resized crops are taken from images before they are resized, bilinear
    NEEDS: ClassVar = ""  # the least response that the method can work with
    BEGINS: ClassVar = ""  # the script whose net of the same model and seed the student begins with
    LR_START: ClassVar = 1e-4  # where the warm-up of the learning rate begins
    ALIASES: ClassVar = {}  # {option: (other names, ...)} of a paper's code, for options that are inherited
    FREE: ClassVar = {"device", "workers", "data_dir", "checkpoints_dir", "logs_dir", "local_rank"}
    FREE |= {"overwrite", "extend", "dry_run", "debug"}  # may differ on resume

    model = teacher = private = pool = transfer = ""  # how a script without these options is seen
    response, query_budget, cache, weights_init = "soft", 0, False, "torch"

    seed: int = opt(0, "random seed (subset, initial weights, shuffling)", ge=0, le=MAX_SEED)
    tag: str = opt("", "suffix of the run's folder name, to keep runs with other options apart")
    device: str = opt("auto", "device: auto (a GPU if there is one), cpu, cuda, or cuda:1 (also 1)")
    amp: Literal["off", "bf16"] = opt("off", "number format of forward passes: float32 (off) or bfloat16 (bf16)")
    compile: bool = opt(False, "compile the trained network with torch.compile, and on a GPU record training steps as a CUDA graph")
    deterministic: bool = opt(False, "use deterministic GPU kernels: bit-identical repetition, slower")
    sync_bn: bool = opt(
        True, "with torchrun: batch-norm statistics of each process's part of a batch instead of the whole batch (not synchronised)"
    )
    local_rank: int = opt(-1, "index of this process's GPU, as torch.distributed.launch passes it; -1: as set by torchrun", ge=-1, le=1024)
    workers: int = opt(-1, "number of processes that read a data set too large for memory; -1: one per core, at most 8", ge=-1, le=1024)
    data_dir: str = opt("data", "folder of the data sets, to which missing ones are downloaded")
    checkpoints_dir: str = opt("checkpoints", "folder of weights and results")
    logs_dir: str = opt("logs", "folder of log.jsonl, TensorBoard events and pictures")
    overwrite: bool = opt(False, "start again; the earlier run is kept as seed<k>.before until the new one has saved its first epoch")
    extend: bool = opt(
        False, "continue a finished run from its last epoch to a higher --epochs, if the learning rates of its epochs stay the same"
    )
    dry_run: bool = opt(False, "run two steps and save nothing, as a test (queries are sent; to a server none: its price is printed)")
    debug: bool = opt(False, "print the traceback of an error")

    def presets(self) -> dict[str, Any]:
        """{option: value} that follow from other options, for those that the command line does not give."""
        return {}

    def fixed_length(self) -> str:
        """Why a run with more --epochs would have begun otherwise, so that --extend cannot train it further; empty where it can."""
        return ""

    def validate(self) -> None:
        """UsageError for options that do not go together, before anything is read or bought."""
        for name in (n for n in ("data_dir", "checkpoints_dir", "logs_dir") if not getattr(self, n)):
            raise UsageError(f"--{name} is empty; name a folder, or leave the option out for {getattr(RunOptions, name)}/")


@dataclass
class DataOptions(RunOptions):
    GROUP: ClassVar = "data"

    dataset: str = opt("MNIST", "data set: a name of the list below, or folder:PATH (one subfolder per class)")
    img_size: int = opt(0, "side length of the images in pixels; 0: the data set's usual one", ge=0, le=4096)
    normalize: str = opt(
        "half", "normalisation of pixels: half (to [-1, 1]), unit (to [0, 1]), imagenet, dataset, or mean and std: M,S or M,M,M,S,S,S"
    )
    channels: int = opt(0, "number of channels that images are converted to: 1 (grey) or 3 (colour); 0: those of the data set", ge=0, le=3)
    skip_broken: bool = opt(False, "leave out image files that cannot be read, instead of an error that names them")
    augment: AUGMENT = opt(
        "none", "augmentation: random crop (crop), crop and flip (crop_flip), random resized crop (resized_crop), AutoAugment (auto)"
    )
    zoom: bool = opt(False, "evaluate on the central 7/8 of each image, enlarged to full size, as timm does")
    lamda: float = opt(0.1, "fraction of the training set that is used (class-balanced; the subset depends on --seed only)", ge=1e-6, le=1)
    val: float = opt(0.0, "fraction of the training set that is held out and evaluated instead of the test set", ge=0, le=0.9)

    def validate(self) -> None:
        super().validate()
        if self.augment != "none" and not self.AUGMENTS:
            raise UsageError(f"--augment {self.augment} has no effect: the student sees generated images as they are; leave it out")
        if self.channels == 2:
            raise UsageError("--channels 2: there are 1 (grey), 3 (colour) and 0 (as the data set has)")
        if self.normalize != "dataset":
            check_normalisation(self.normalize, "--normalize")


@dataclass
class Base(FastOptions, DataOptions):
    """The options of a script that trains a net on labels."""

    GROUP: ClassVar = "training"

    epochs: int = opt(240, "number of epochs", ge=1)
    batch_size: int = opt(128, "batch size in images", ge=1)
    optimizer: Literal["sgd", "adam"] = opt("sgd", "optimizer of the trained network")
    lr: float = opt(0.1, "learning rate", gt=0)
    momentum: float = opt(0.9, "momentum of SGD", ge=0, lt=1)
    nesterov: bool = opt(False, "use Nesterov momentum with SGD")
    weight_decay: float = opt(5e-4, "weight decay (L2 penalty)", ge=0, le=1)
    decay: Literal["all", "weights"] = opt("all", "parameters that weight decay applies to: all, or weights (no biases, no batch norm)")
    schedule: Literal["multistep", "cosine"] = opt("multistep", "learning-rate schedule: steps at --milestones, or cosine decay")
    milestones: str = opt(
        "1/3,2/3", "epochs after which the learning rate is multiplied by --gamma, or fractions of --epochs, with commas or spaces"
    )
    gamma: float = opt(0.1, "factor of the learning rate at each milestone", gt=0, le=1)
    lr_warmup: int = opt(0, "number of epochs over which the learning rate rises from 1e-4 to --lr", ge=0)
    lr_min: float = opt(0.0, "learning rate at the end of the cosine schedule", ge=0)
    eval_every: int = opt(1, "number of epochs between evaluations; the last epoch is always evaluated", ge=1)

    def round_epochs(self) -> int:
        """Number of epochs after which the learning-rate schedule starts anew."""
        return self.epochs

    def validate(self) -> None:
        super().validate()
        if self.nesterov and not self.momentum:
            raise UsageError("--nesterov with --momentum 0: it needs a momentum above 0; use --momentum 0.9, or --no_nesterov")


@dataclass
class NetOptions:
    """The initial weights of the nets that a script trains: PyTorch's, as in the released code of MEKD and DB3KD, or mdistiller's."""

    GROUP: ClassVar = "training"

    weights_init: WEIGHTS_INIT = opt(
        "torch",
        "initial weights of the student: PyTorch's defaults (torch), or convolutions with the variance 2 / (kernel size^2 * output "
        "channels), as in the mdistiller library (fan_out); some networks have only one of them (docs/running.md)",
    )


@dataclass
class TeacherOptions(ApiOptions, Base):
    """A script that asks a teacher."""

    GROUP: ClassVar = "teacher"
    NEEDS: ClassVar = "hard"
    FREE: ClassVar = Base.FREE | ApiOptions.LIMITS

    teacher: str = opt("ResNet32", "architecture of the teacher: a model of the list, py:FILE.py:FUNCTION, hf:PATH, or a server's URL")
    teacher_seed: int = opt(0, "seed of the teacher.py run that trained the teacher", ge=0, le=MAX_SEED)
    weights: str = opt("", "key of the teacher's weights in its checkpoint file, if the file has several (A.B: nested key)")
    teacher_normalize: str = opt(
        "", "normalisation that the teacher was trained with (half, unit, imagenet, numbers); left out: that of its file, else --normalize"
    )
    teacher_path: str = opt("", "checkpoint file of the teacher, instead of the one from teacher.py")
    response: str = opt(
        "soft", "response of the teacher: hard (class), topk:K, soft (probabilities), logits, or inside (white box)", alias="res_type"
    )
    query_budget: int = opt(0, "maximum number of queries to the teacher (also those answered by a ledger); 0: no limit", ge=0)
    private: str = opt("", "data set of the private and the test images, if it differs from the teacher's (--dataset)")

    def validate(self) -> None:
        super().validate()
        rank(self.response)
        self.check_api()
        if self.teacher_normalize:
            check_normalisation(self.teacher_normalize, "--teacher_normalize")

    def presets(self) -> dict[str, Any]:
        return {"ledger": True} if is_url(self.teacher) else {}

    def teacher_checkpoint(self) -> tuple[str, str]:
        """(the script that the teacher is of, the name under which that saves it)."""
        return "teacher", "teacher"


@dataclass
class StudentOptions(NetOptions, TeacherOptions):
    """A script that trains a student from a teacher."""

    GROUP: ClassVar = "method"

    model: str = opt("ResNet8", "architecture of the student: a model of the list below", alias="student")


@dataclass
class TransferOptions(StudentOptions):
    """A script that can train on answers bought once."""

    GROUP: ClassVar = "teacher"

    transfer: str = opt("", "transfer.safetensors of another run with this teacher and response, whose answers replace queries")
    cache: bool = opt(False, "with --augment crop, crop_flip: keep the teacher's answers to all views in memory; a resumed run asks again")

    def validate(self) -> None:
        super().validate()
        if self.cache and self.augment not in ("crop", "crop_flip"):
            raise UsageError(f"--cache keeps answers to views that can be counted: use --augment crop or crop_flip, not {self.augment}")


@dataclass
class KLOptions(TransferOptions):
    """A script of MEKD's table whose loss has a KL term with a temperature."""

    GROUP: ClassVar = "method"

    kl_scale: Scale = opt("t2", "factor of the KL term: temperature squared (t2), temperature (t, as in MEKD's released code) or 1")
    standardise: bool = opt(False, "standardise the logits of each image before the softmax of the KL term; not with hard responses")

    def validate(self) -> None:
        super().validate()
        if self.standardise and self.response == "hard":
            raise UsageError("--standardise with --response hard: a class has no logits to standardise; use soft answers, or leave it out")
        self.NEEDS = "topk" if self.standardise and self.NEEDS == "hard" else self.NEEDS


# ---- the command line


@cache
def described(cls: type[RunOptions]) -> dict[str, dict]:
    """{option: {help, bounds, alias, group}}, each as the nearest class that gives it says."""
    found = {}
    for c in (c for c in reversed(cls.__mro__) if is_dataclass(c)):
        own = inspect.get_annotations(c)
        for f in (f for f in fields(c) if f.name in own):
            inherited = found.get(f.name, {"help": "", "bounds": {}, "alias": (), "group": c.__dict__.get("GROUP", "method")})
            found[f.name] = inherited | dict(f.metadata)
    for name in cls.ALIASES.keys() & found.keys():
        found[name]["alias"] = (*found[name]["alias"], *cls.ALIASES[name])
    return found


def parse(cls: type[RunOptions], argv: list[str] | None = None, script: str = "script.py", epilog: str = "") -> Any:
    """An instance of the dataclass `cls` from a command line; names with `_` or `-`, `--name value` or `--name=value`.

    UsageError for an unknown option, a value that is not allowed, and options that do not go together.
    """
    argv = sys.argv[1:] if argv is None else argv
    argv = [re.sub(r"^--[^=]+", lambda m: "--" + m[0][2:].replace("-", "_"), a) for a in argv]
    given = vars(parser_of(cls, script, epilog).parse_args(argv))
    given = {k: os.path.expanduser(v) if isinstance(v, str) and v.startswith("~") else v for k, v in given.items()}
    args = cls(**given)
    check_all(args)  # before presets, which look names up
    set_presets(args, {*given})
    check_all(args)
    args.validate()
    return args


def set_presets(args: RunOptions, given: set[str]) -> None:
    """Sets the `presets` of all classes of the options; a script's own come first, and those that it inherits may follow from them."""
    for c in (c for c in type(args).__mro__ if "presets" in c.__dict__):
        new = {name: value for name, value in c.__dict__["presets"](args).items() if name not in given}
        given |= new.keys()
        for name, value in new.items():
            setattr(args, name, value)


def check_all(args: RunOptions) -> None:
    """UsageError for a value that `check` refuses."""
    for name, about in described(type(args)).items():
        check(name, getattr(args, name), about["bounds"])


@cache  # a table parses thousands of command lines
def parser_of(cls: type[RunOptions], script: str, epilog: str) -> Parser:
    doc = inspect.getdoc(sys.modules[cls.__module__]) or ""
    if cls.NEEDS:
        doc += f"\n\nNeeds: a teacher that answers {cls.NEEDS} or more (hard < topk < soft < logits < inside)."
    how = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False, "argument_default": argparse.SUPPRESS}
    parser = Parser(prog=script, usage=f"python {script} [options]", description=doc, epilog=epilog, **how)
    groups = {name: parser.add_argument_group(f"{name} options") for name in GROUPS}
    for f in sorted(fields(cls), key=lambda f: f.name not in inspect.get_annotations(cls)):  # a script's own come first
        about = described(cls)[f.name]
        names, add = [f"--{n}" for n in (f.name, *about["alias"])], groups[about["group"]].add_argument
        text = about["help"].replace("%", "%%")
        if f.type is bool:  # --NAME and --no_NAME, of which help shows the one that changes something
            add(*names, action="store_true", help=argparse.SUPPRESS if f.default else text)
            add(f"--no_{f.name}", dest=f.name, action="store_false", help=text if f.default else argparse.SUPPRESS)
            continue
        choices = get_args(f.type) if get_origin(f.type) is Literal else None
        bounds, default = about["bounds"], f"{f.default:g}" if f.type is float else f.default
        text += f", {interval(bounds)}" * (len(bounds) > 1 and bounds.get("le") != MAX_SEED) + f" (default: {default})" * (f.default != "")
        if f.name == "milestones":  # the released code's spelling: 80 160
            add(*names, nargs="+", action=Joined, metavar="TEXT", help=text)
            continue
        kind, metavar = (str, None) if choices else {int: (whole, "N"), float: (real, "X")}.get(f.type, (str, "TEXT"))
        add(*names, type=kind, choices=choices, metavar=metavar, help=text)
    return parser


# ---- options as a result keeps them

BEFORE = {"weights_init": "fan_out", "rounds": 0, "views": "1", "standardise": False}  # what runs did before there was the option
BEFORE |= {"fast": False, "reset_at": 0, "beta2": 0.999, "adv": "kl", "w_sbn": 0.0, "w_tv": 0.0}


def settings(args: RunOptions) -> dict[str, Any]:
    """The options that make a result what it is."""
    return {k: v for k, v in asdict(args).items() if k not in args.FREE}


def differences(args: RunOptions, then: dict[str, Any]) -> list[str]:
    """What an earlier run's settings `then` have otherwise, a phrase each; an option may have had another name then."""
    then = BEFORE | then
    known = {k: next((n for n in (k, *about["alias"]) if n in then), None) for k, about in described(type(args)).items()}
    return [f"--{k} {then[known[k]]} (now {v})" for k, v in settings(args).items() if known[k] and then[known[k]] != v]


def flags(**options: Any) -> list[str]:
    """The command line of these options; True is --NAME, False --no_NAME."""
    return [word for k, v in options.items() for word in ((f"--{k}" if v else f"--no_{k}",) if isinstance(v, bool) else (f"--{k}", str(v)))]


# ---- names of a run


def run_name_of(args: RunOptions) -> str:
    """`run_name` of a run's options."""
    return run_name(args.teacher, args.model, args.response, args.query_budget, args.tag)


def dataset_tag(args: RunOptions) -> str:
    """The name of a run's data: the data set, and the private one where it is another, `MNIST-USPS`."""
    return "-".join(filter(None, (args.dataset, args.private)))
