"""Options: a dataclass a script. A field is an option, its comment the help; a range in the comment, `in (0, 1]`, is enforced."""

import argparse
import difflib
import inspect
import math
import re
import sys
from dataclasses import asdict, dataclass, fields
from typing import ClassVar, Literal, get_args, get_origin

from .utils import UsageError

ALIASES = {  # the spellings of the papers' code
    "model": ["student"],
    "response": ["res_type"],
    "sr_mode": ["mode"],
    "hard_loss": ["hl"],
    "epochs": ["epoch"],
    "weight_decay": ["wd"],
    "milestones": ["lr_decay_milestones"],
    "data_dir": ["data_root"],
    "checkpoints_dir": ["save_dir"],
    "device": ["gpu"],
    "base": ["distiller"],
    "w_gt": ["gt_loss_weight"],
    "w_kd": ["kd_loss_weight"],
    "w_fr": ["fisher_rao_lamda"],
    "teacher_path": ["teacher_pretrained"],
}


@dataclass
class Base:
    """What every script shares. DATA: whether it trains on images of the data set."""

    DATA: ClassVar = True

    dataset: str = "MNIST"  # a data set of the list below, or folder:PATH with a folder a class
    img_size: int = 0  # side of the images in pixels, 0 for the data set's usual one, in [0, 4096]
    normalize: Literal["half", "dataset"] = "half"  # half: range [-1, 1]; dataset: the data set's mean and standard deviation
    augment: Literal["none", "crop", "crop_flip", "resized_crop", "auto"] = "none"  # shifts; resized crops; these and AutoAugment
    zoom: bool = False  # evaluate on images enlarged by 8/7 and cut to their size, as timm does
    lamda: float = 0.1  # share of the training images that is used, class-balanced, drawn by the seed alone, in (0, 1]
    val: float = 0.0  # share of the training images held out of everything and evaluated instead of the test images, in [0, 1)
    seed: int = 0  # of the run: the private share, the initial weights, the order of images, in [0, 4294967295]
    tag: str = ""  # a name added to the run's folder, so that runs of other options lie beside each other
    epochs: int = 240  # in [1, 1000000]
    batch_size: int = 128  # in [1, 1000000]
    optimizer: Literal["sgd", "adam"] = "sgd"  # of the net that is trained
    lr: float = 0.1  # learning rate, in (0, 1000]
    momentum: float = 0.9  # of SGD, in [0, 1)
    nesterov: bool = False  # SGD with Nesterov's momentum
    weight_decay: float = 5e-4  # in [0, 1]
    decay: Literal["all", "weights"] = "all"  # what it is of; weights: neither of biases nor of batch norm
    schedule: Literal["multistep", "cosine"] = "multistep"  # how the learning rate falls
    milestones: str = "1/3,2/3"  # epochs at which it is multiplied by gamma, or shares of all epochs
    gamma: float = 0.1  # in (0, 1]
    lr_warmup: int = 0  # epochs over which the learning rate rises from lr_start, in [0, 1000000]
    lr_start: float = 1e-4  # in (0, 1000]
    lr_min: float = 0.0  # what the cosine falls to, in [0, 1000]
    eval_every: int = 1  # epochs between evaluations; the last epoch is always evaluated, in [1, 1000000]
    device: str = "auto"  # auto, cpu, cuda, cuda:1 or 1 ...
    amp: Literal["off", "bf16"] = "off"  # bf16: forward passes in bfloat16
    compile: bool = False  # torch.compile the net that is trained
    deterministic: bool = False  # bit-identical repetition on a GPU too, slower
    workers: int = -1  # processes that read a streamed data set, -1 for one a core up to 8, in [-1, 1024]
    data_dir: str = "data"  # where data sets lie or are downloaded to
    checkpoints_dir: str = "checkpoints"  # where weights and results go
    logs_dir: str = "logs"  # where log.jsonl, TensorBoard's events and pictures go
    overwrite: bool = False  # start anew where this run has been before
    dry_run: bool = False  # one epoch of two steps, nothing kept

    # what may differ when a run is taken up
    FREE: ClassVar = {"device", "workers", "data_dir", "checkpoints_dir", "logs_dir", "overwrite", "dry_run"}

    def presets(self):
        """{option: value} that follow from other options, for those that the command line does not give."""
        return {}

    def validate(self):
        """UsageError for options that do not go together, before anything is read or bought."""


@dataclass
class Asks(Base):
    """A script that asks a teacher. NEEDS: the least response that its method can work with. BEGINS: the script whose net of the same model
    and seed the student begins with."""

    NEEDS: ClassVar = "hard"
    BEGINS: ClassVar = ""

    teacher: str = "ResNet32"  # the teacher's architecture, a model of the list below
    teacher_seed: int = 0  # which run of teacher.py, in [0, 4294967295]
    teacher_path: str = ""  # any checkpoint file of that architecture, instead of teacher.py's
    response: str = "soft"  # what the teacher answers: logits | soft (probabilities) | topk:k | hard (a class) | inside (a white box)
    query_budget: int = 0  # queries that it may be asked, 0 without limit, in [0, 1000000000000]
    private: str = ""  # the edge's data set where it is not the teacher's: private and test images are of it, made alike in size

    def taught(self):
        """(the script that the teacher is of, the name under which that saves it)."""
        return "teacher", "teacher"


@dataclass
class Distill(Asks):
    """A script that trains a student from a teacher."""

    model: str = "ResNet8"  # the student's architecture, a model of the list below


@dataclass
class Buys(Distill):
    """A script that can train on answers bought once."""

    transfer: str = ""  # a transfer.safetensors of any run with this teacher and response: train on what it holds
    cache: bool = False  # keep the answers to each shifted, mirrored view in memory (162 an image, float32); a killed run asks again

    def validate(self):
        super().validate()
        if self.cache and self.augment not in ("crop", "crop_flip"):
            raise UsageError(
                f"--cache keeps answers to views that can be counted, those of --augment crop or crop_flip, not {self.augment}"
            )


def helps(cls):
    """{field: the comment beside it}, the nearest class first."""
    found = {}
    for c in reversed(cls.__mro__[:-1]):
        for line in inspect.getsource(c).splitlines():
            if m := re.match(r"    (\w+): [^#]*  # (.*)", line):
                found[m[1]] = m[2]
    return found


class Parser(argparse.ArgumentParser):
    def error(self, message):
        """One line; for an unknown option the nearest there is."""
        if unknown := re.match(r"unrecognized arguments: (--\w+)", message):
            near = difflib.get_close_matches(unknown[1], self._option_string_actions, 1)
            message = f"unknown option {unknown[1]}" + (f" (did you mean {near[0]}?)" if near else "")
        raise UsageError(f"{message}; python {self.prog} --help lists the options")


def parse(cls, argv=None, script="script.py", epilog=""):
    """An instance of the dataclass `cls` from a command line; names with `_` or `-`, `--name value` or `--name=value`."""
    argv = sys.argv[1:] if argv is None else argv
    argv = [re.sub(r"^--[^=]+", lambda m: "--" + m[0][2:].replace("-", "_"), a) for a in argv]
    doc = inspect.getdoc(sys.modules[cls.__module__]) or ""
    if needs := getattr(cls, "NEEDS", ""):
        doc += f"\n\nNeeds: a teacher that answers {needs} or more (hard < topk < soft < logits < inside)."
    parser = Parser(
        prog=script,
        description=doc,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    texts, aliases = helps(cls), ALIASES | getattr(cls, "ALIASES", {})
    for f in fields(cls):
        names = [f"--{n}" for n in (f.name, *aliases.get(f.name, []))]
        text = texts.get(f.name, "").replace("%", "%%")
        if f.type is bool:  # --NAME and --no_NAME, of which help shows the one that changes something
            parser.add_argument(*names, action="store_true", help=argparse.SUPPRESS if f.default else text)
            parser.add_argument(f"--no_{f.name}", dest=f.name, action="store_false", help=text if f.default else argparse.SUPPRESS)
            continue
        default = f"(default: {f.default})" if f.default != "" else ""
        choices = get_args(f.type) if get_origin(f.type) is Literal else None
        kind = str if choices else f.type
        parser.add_argument(*names, type=kind, choices=choices, metavar="" if not choices else None, help=f"{text} {default}")
    given = vars(parser.parse_args(argv))
    args = cls(**given)
    for name, value in args.presets().items():
        if name not in given:
            setattr(args, name, value)
    for name, text in texts.items():
        if bounds := re.search(r"in ([(\[])(\S+), (\S+)([)\]])", text):
            check(name, getattr(args, name), *bounds.groups())
    args.validate()
    return args


def settings(args):
    """The options that make a result what it is."""
    return {k: v for k, v in asdict(args).items() if k not in args.FREE}


def differences(args, then):
    """What an earlier run's settings `then` have otherwise, a phrase each."""
    return [f"--{k} {then[k]} (now {v})" for k, v in settings(args).items() if k in then and then[k] != v]


def flags(**options):
    """The command line of these options, a list; True is --NAME, False --no_NAME."""
    return [word for k, v in options.items() for word in ((f"--{k}" if v else f"--no_{k}",) if isinstance(v, bool) else (f"--{k}", str(v)))]


def check(name, value, left, low, high, right):
    above = value >= float(low) if left == "[" else value > float(low)
    below = value <= float(high) if right == "]" else value < float(high)
    if not (math.isfinite(value) and above and below):
        raise UsageError(f"--{name} {value}: it must be in {left}{low}, {high}{right}")


def milestones(args):
    """Epochs at which the learning rate falls, from `80,160` or shares such as `1/3,0.75`."""
    try:
        marks = [m.strip() for m in args.milestones.split(",") if m.strip()]
        shares = [float(m.partition("/")[0]) / float(m.partition("/")[2] or 1) for m in marks]
        if any(not math.isfinite(v) or v <= 0 for v in shares):
            raise ValueError
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"--milestones {args.milestones}: give epochs such as 80,160, or shares such as 1/3,2/3") from None
    return [round(v * args.epochs) if v < 1 else round(v) for v in shares]


def lr_at(args, epoch):
    """The learning rate of epoch 1, 2, ..., args.epochs; after a warm-up it is what it would be without one, as in timm."""
    if epoch <= args.lr_warmup:
        return args.lr_start + (epoch - 1) * (args.lr - args.lr_start) / args.lr_warmup
    if args.schedule == "cosine":
        return args.lr_min + (args.lr - args.lr_min) * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / args.epochs))
    return args.lr * args.gamma ** sum(epoch > m for m in milestones(args))
