"""One run of one script: `start` gives what a script needs, its loss states the method, `fit` trains.

`start` reads the options, loads data, teacher and student, opens folders and log, and resumes an interrupted run. The work itself is in
other modules: `training` (the loop), `purchases` (queries and their answers), `record` (files).
"""

import inspect
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn as nn
from torch import Tensor

from . import processes
from .api.paid import Paid, opened, quote
from .api.remote import Remote
from .audit import audit
from .batches import Batches, Map, Streamed, batches_of
from .blackbox import RESPONSES, BlackBox, Local, rank
from .checkpoints import check_meta, load_weights, meta_of, teacher_file
from .cli import UsageError, say
from .counter import Counter
from .datasets import CROPPING, DATASETS, Data, Images, is_flat, load, spec_of
from .devices import device_name, device_of, peak_mb
from .measures import copying, folded, infer, quality
from .models import MODELS, build, canonical, check_fit
from .models.base import Classifier
from .models.library import named_file
from .options import Base, dataset_tag, parse
from .purchases import Purchases, resident
from .record import Record
from .schedule import milestones
from .teachers import (
    AbsentTeacher,
    check_teacher,
    foreign_teacher,
    known_normalisation,
    num_classes_without_data,
    renormalised,
    teacher_identity,
    teacher_normalisation,
    with_teachers_classes,
)
from .training import Stop, Training, command_of
from .transfer import Columns, Transfer
from .utils import is_url
from .weights import StateDict


def start(Args: type[Base], argv: list[str] | None = None) -> "Run":
    """A Run for the options in `argv` (the command line if None). Raises Finished where the run is finished."""
    return processes.first_and_then(partial(Run, Args, argv))


class Run:
    """What a script works with.

    args: the options. data, private, test: the data set, the images to train on, those that are evaluated. teacher: a BlackBox, None where
    no teacher is asked; truth: what it says of `test`. student: the net that is trained, None where the script trains its
    own. notes: what a script adds to result.json; summary_parts: what it adds to the last line.
    """

    def __init__(self, Args: type[Base], argv: list[str] | None = None):
        file = Path(inspect.getfile(Args))
        path = f"{file.parent.name}/{file.name}"
        there_is = f"data sets: {', '.join(DATASETS)}, folder:PATH\nmodels: {', '.join(MODELS)}, torchvision:NAME, timm:NAME, FILE.py:CLASS"
        self.args = args = parse(Args, argv, path, there_is)
        for name in ("dataset", "private", "pool"):
            if getattr(args, name):
                setattr(args, name, spec_of(getattr(args, name))[0])
        for name in ("model", "teacher"):
            if getattr(args, name) or getattr(Args, name):  # none is for scripts whose default is none
                setattr(args, name, canonical(getattr(args, name)))
        milestones(args)
        self.device, self.command, self.notes, self.summary_parts = device_of(args), command_of(path, argv), {}, []
        self.record = Record(file.stem, args)
        transfer = Transfer(self.record.folder / "transfer.safetensors", fresh=args.overwrite)
        self.record.take_up(transfer.about)
        self.record.note_process(device_name(self.device))
        stop = Stop(self.record, self.command)
        teacher_content = self.find_teacher() if args.teacher else None
        self.teacher_meta = teacher_content[2] if teacher_content else {}
        self.check_nets()
        self.data = self.load(args.private or args.dataset, num_classes_without_data(args, self.teacher_meta))
        self.record.check_data(self.data.identity())
        self.split_private()
        self.teacher = self.truth = None
        if teacher_content:
            self.open_teacher(*teacher_content)
        torch.manual_seed(args.seed)
        self.student = processes.share(self.net(args.model), args.sync_bn) if args.model else None
        if args.compile and self.student:
            self.student.compile()
        if self.teacher:
            self.teacher.counter = Counter(self.record.folder / "queries", fresh=args.overwrite, before=self.record.claim)
            self.teacher.stop = stop.check
            if isinstance(paid := self.teacher.asked, Paid):
                paid.pause = stop.check
                self.teacher.quote = partial(quote, paid) if args.dry_run else None
        self.purchases = Purchases(args, self.record, transfer, self.data, self.private, self.teacher, stop, self.load)
        self.training = Training(args, self.device, self.record, self.teacher, stop, self.save_student)
        used = f"{len(self.private):,} of {len(self.data.train):,} training images" if args.DATA else "no training image"
        say(f"{self.record.title}: {used}; {device_name(self.device)}")

    # ---- data, teacher, nets

    def check_nets(self) -> None:
        """UsageError for a net that cannot take images of the run's size, before the data is read."""
        a, (_, spec) = self.args, spec_of(self.args.dataset)
        for name in (a.model, a.teacher):
            if name and not name.startswith(("py:", "hf:")) and not is_url(name):
                check_fit(name, spec.classes or 10, a.channels or spec.channels, a.img_size or spec.size)

    def load(self, name: str, classes_without_data: int = 0) -> Data:
        """The data set `name` with the size, the channels and the normalisation that the teacher's has. A flat folder has no labels."""
        a, (_, spec) = self.args, spec_of(self.args.dataset)
        channels = a.channels or spec.channels
        known = known_normalisation(a, channels, self.teacher_meta)
        if a.private and not known:
            raise UsageError(
                f"--private {a.private} has another mean than {a.dataset}, and the teacher's file does not say its own; use --normalize M,S"
            )
        size, labels = a.img_size or spec.size, name == a.dataset or not is_flat(name)
        how = "half" if known else "dataset"
        crops = a.SOURCE_CROPS and a.augment in CROPPING  # source images are kept where a crop is taken from them
        data = load(name, a.data_dir, self.device, size, how, a.workers, channels, classes_without_data, labels, a.skip_broken, crops)
        if known:
            data.mean, data.std = (torch.tensor(v, device=self.device).view(1, -1, 1, 1) for v in known)
        return data if labels and name != a.private else with_teachers_classes(data, a, self.teacher_meta, labels)

    def split_private(self) -> None:
        """private: the subset that is trained on. test: the test images or, with --val, training images kept from everyone."""
        a = self.args
        self.private, self.test = self.data.parts(a.lamda, a.seed, a.val, a.zoom)
        self.split = "validation" if a.val else "held-out" if spec_of(a.dataset)[1].novel else "test"
        if a.DATA and len(self.private) < 2:
            n, least = len(self.data.train) - len(self.test) * bool(a.val), len(self.private)
            raise UsageError(f"--lamda {a.lamda:g} leaves {least} of {n:,} training images; training takes at least 2")

    def find_teacher(self) -> tuple[Path, StateDict, dict]:
        """(path, state dict, meta), before the data is read: a missing teacher is said at once."""
        a = self.args
        if rank(a.response) < RESPONSES.index(a.NEEDS):
            hint = f"use --response {a.NEEDS}, where the teacher gives it, or a script that needs less (docs/running.md)"
            raise UsageError(f"{self.record.script} needs {a.NEEDS} answers, --response {a.response} gives less; {hint}")
        if is_url(a.teacher):
            return Path(), {}, {}
        if a.teacher.startswith(("py:", "hf:")):
            return named_file(a.teacher), {}, {}
        try:
            path = teacher_file(a)
        except UsageError:
            if not a.transfer:
                raise
            return Path(), {}, {}  # its answers are bought already
        return path, *self.record.source(path, a.weights)

    def open_teacher(self, path: Path, state: StateDict, meta: dict) -> None:
        """Makes what answers for the teacher, and lets it classify the test images (--audit)."""
        a, here = self.args, (self.data.mean, self.data.std)
        its = teacher_normalisation(meta, a, self.data)
        if is_url(a.teacher):
            source = Remote(a, self.data.names, self.data.shape, here, its)
        else:
            net = AbsentTeacher()
            if a.teacher.startswith(("py:", "hf:")):
                net = foreign_teacher(a, self.data, here, its)
            elif state:
                check_teacher(path, meta, a, self.data)
                net = self.load_weights(self.net(a.teacher), path, same=("shape", "classes"), kind=a.teacher, content=(state, meta))
                net = renormalised(net, here, its)
            source = Local(net, a.response, identity=teacher_identity(self.record.sources.get(str(path), ""), a, its))
        self.teacher = BlackBox(opened(a, source, self.data.classes, str(self.record.folder)), a.response, a.query_budget or None)
        self.teacher_path = path
        if isinstance(source, Local) and isinstance(net, AbsentTeacher):
            return say(f"teacher {a.teacher}: no weights; its answers are those of {a.transfer}")
        self.teacher.free_audit = isinstance(source, Local) and not a.teacher.startswith("py:")
        self.truth = audit(a, self.teacher, self.test, self.split, self.infer, a.teacher if is_url(a.teacher) else str(path))

    def net(self, name: str) -> nn.Module:
        """A new net of this name for the run's classes and images."""
        return build(name, self.data.classes, self.data.shape, self.device, self.args.weights_init).to(memory_format=torch.channels_last)

    def load_weights(
        self,
        net: nn.Module,
        path: Path | str,
        same: Sequence[str] = ("shape", "classes", "normalize"),
        kind: str = "",
        content: tuple[StateDict, dict] | None = None,
    ) -> nn.Module:
        """`net` with the weights of the file `path`, which the run is then made from; UsageError for a file that does not fit.

        same: what the file's meta must have as this run has it. content: (state dict, meta) of the file, where it is read already.
        """
        state, meta = content or self.record.source(path)
        here = {"shape": list(self.data.shape), "classes": self.data.classes, "normalize": self.args.normalize}
        check_meta(path, meta, {k: here[k] for k in same} | meta_of(net))
        c, h, w = self.data.shape
        load_weights(net, state, path, f"{kind or self.args.model} for {self.data.classes} classes of {c}x{h}x{w} images")
        images = self.data.train
        if not meta and isinstance(net, Classifier) and not images.stream and len(images):  # somebody else's file
            complaint = net.misfit(self.data.view(images.x[:: max(1, len(images) // 64)][:64]))
            if complaint:
                raise UsageError(f"{path} is not a checkpoint of {kind or self.args.model}: {complaint}")
        return net

    def resident(self, images: Images) -> Images:
        """`images`, where they lie on the device; UsageError where they are streamed."""
        return resident(images, self.record.script)

    @property
    def labels(self) -> Tensor:
        """Labels (N,) of the private images; UsageError where they have none."""
        if self.args.private and is_flat(self.args.private):
            raise UsageError(f"--private {self.args.private} has no labels (no class folders), and {self.record.script} needs them here")
        return self.private.y

    # ---- short ways to what the rooms do

    @property
    def epoch(self) -> int:
        """The present epoch, from 1."""
        return self.training.epoch

    @property
    def queryable(self) -> Images:
        """The images that a method may ask about: the private ones, or those of --pool."""
        return self.purchases.queryable

    def fit(
        self,
        batches: Iterable,
        loss: Callable[..., dict[str, Tensor]],
        optimizers: Sequence = (),
        evaluate: Callable[[], dict] | None = None,
        **more,
    ) -> None:
        """Trains the student: see Training.fit. evaluate: the student's quality on `test` by default."""
        self.training.fit(self.student, batches, loss, optimizers, evaluate or self.accuracy, **more)

    def epochs(self, evaluate: Callable[[], dict], **objects) -> Iterator[int]:
        """The epochs still to do, for a script that has a loop of its own: see Training.epochs."""
        return self.training.epochs(evaluate, **objects)

    def buy(self, plan: Callable[[torch.Generator], Columns], make: Callable[[Columns], Columns] | None = None, size: int = 0) -> Columns:
        """Columns of images and of the teacher's answers, bought once: see Purchases.buy."""
        return self.purchases.buy(plan, make, size)

    def random_plan(self, n: int) -> Callable[[torch.Generator], Columns]:
        """A plan for `buy`: n random ones of the queryable images, or as many as the budget allows."""
        return self.purchases.random_plan(n)

    def images(self, *rows: Tensor) -> Batches | Streamed:
        """Shuffled batches (x, *rows) of the private images, augmented as the options want, and of tensors with a row for each."""
        return batches_of(self.private, *rows, size=self.args.batch_size, view=self.data.view, augment=self.args.augment)

    def batches(self, bought: Columns, *rows: Tensor, steps: int | None = None) -> Batches | Map | Streamed:
        """Shuffled batches (x, t, *rows) of what `buy` gave: see Purchases.batches."""
        return self.purchases.batches(bought, *rows, steps=steps)

    def asked(self) -> Batches | Map | Streamed:
        """Batches (x, t) of the queryable images and the teacher's answers: see Purchases.asked."""
        return self.purchases.asked()

    def infer(self, f: Callable[[Tensor], Tensor], images: Images) -> Tensor:
        """f(x) over all images in order, joined; without gradient."""
        return infer(f, images, self.data.view, self.args.amp)

    def accuracy(self) -> dict[str, float]:
        """The student's quality on `test`, beside the teacher's: see measures.quality."""
        net = folded(self.student, self.test, self.data.view) if self.args.fast else self.student
        return quality(net, self.test, self.data.view, self.truth, self.args.amp)

    def copying(self, x: Tensor) -> None:
        """Notes how near the synthetic images x (N, C, H, W) come to private ones, with a picture of the closest pairs in the logs."""
        few = torch.randperm(len(self.private), generator=torch.Generator().manual_seed(0))[: min(5000, 2**28 // x[0].numel())]
        own = self.infer(lambda own: own, self.private.subset(few))
        self.record.claim()
        x, own = (images * self.data.std + self.data.mean for images in (x, own))
        self.notes["copying"] = copying(x, own, self.record.logs / "copying.png")

    # ---- the end

    def finish(self, **nets: nn.Module) -> dict:
        """Saves what was trained, each net as NAME.pt (the student by default), and result.json, which it returns; prints a summary."""
        a, rows = self.args, self.record.rows
        last = next((r for r in reversed(rows) if "accuracy" in r), {})
        total, own = self.purchases.total_counts(), dict(self.teacher.counts) if self.teacher else {}
        billed = self.teacher.billed() if self.teacher else {}
        of = f"of {len(self.test):,} {self.split} images"
        summary = [f"{last['accuracy']:.2f} % last, {self.record.best:.2f} % best {of}"] if last else []
        result = {k: last[k] for k in ("accuracy", "top5", "agreement", "teacher_kl", "ece") if k in last} | {"split": self.split}
        if self.teacher:
            summary += [f"agreement {last['agreement']:.2f} %"] if "agreement" in last else []
            self.teacher.check_finite()
            result["repeated"] = billed["queries"] - own["queries"]
            again = f" ({result['repeated']:,} of them twice, after a stop)" if result["repeated"] else ""
            summary += [f"{total['queries']:,} queries{again}, {total['bytes'] / 1e6:.1f} MB sent"]
            result |= {"teacher_accuracy": self.truth.accuracy if self.truth else None, "audited": self.teacher.audited}
            if isinstance(self.teacher.asked, Paid) and (bought := self.teacher.asked.bought()):
                result["api"], words = bought
                summary += words
        summary += [*self.summary_parts, f"{self.record.seconds() / 60:.1f} min"]
        seconds = self.training.epoch_seconds
        result["epoch_seconds"] = round(statistics.median(seconds), 4) if seconds else None
        result |= {
            **total,
            "own": own,
            "images": len(self.private) * a.DATA,
            "device": device_name(self.device),
            "peak_mb": peak_mb(self.device),
        }
        result |= {"needs": a.NEEDS, **self.notes, "command": self.command}
        nets = nets or ({"student": self.student} if self.student else {})
        self.training.stop.restore()
        processes.leave_others()
        return self.record.finish(nets, self.meta(*nets.values()), f"{self.record.title}: {', '.join(summary)}", result)

    def meta(self, *nets: nn.Module) -> dict:
        """What the file of a net says about itself."""
        a, data = self.args, self.data
        meta = {"script": self.record.script, "dataset": dataset_tag(a), "shape": list(data.shape), "classes": data.classes}
        meta |= {"data": self.record.data, "normalize": a.normalize, "lamda": a.lamda, "model": a.model}
        meta |= {"counts": self.teacher.billed(), "teacher": self.teacher.identity} if self.teacher else {"counts": {}}
        for net in nets:
            meta |= meta_of(net)
        return meta

    def save_student(self, name: str) -> None:
        """Saves the student as NAME.pt: as `best` after the best epoch so far on held-out images."""
        self.record.claim()
        self.record.save_net(name, self.student, self.meta(self.student))
