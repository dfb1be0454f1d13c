"""Training: `fit` minimises a loss over epochs that are logged, evaluated, saved and taken up again after a stop."""

import math
import os
import shlex
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

import torch
import torch.nn as nn
from torch import Tensor
from tqdm import tqdm

from .blackbox import BlackBox, OutOfBudget
from .cli import RunError, Stopped, allocating, say
from .options import Base
from .processes import rank
from .record import Record
from .schedule import lr_at, optimizer_of
from .steps import Recorder
from .utils import autocast, clock

PATIENCE = 2.0  # seconds that a stop waits for the epoch's end
READ_EVERY = 200  # steps between readings of the loss terms, each of which waits for the device


# ---- stopping


class Stop:
    """SIGTERM and Ctrl-C: `requested` is the signal's number from then on. A second signal ends the process at once."""

    def __init__(self, record: Record, command: str):
        self.record, self.command, self.requested, self.former = record, command, None, {}
        heard = [n for n in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(n) is not signal.SIG_IGN]  # a shell's `&` ignores Ctrl-C
        with suppress(ValueError):  # not in the main thread
            self.former = {number: signal.signal(number, self.note) for number in heard}

    def note(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self.requested:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.requested, self.at = number, time.monotonic()

    def restore(self) -> None:
        """Gives the signals back to their former handlers."""
        for number, handler in self.former.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Leaves if a stop was requested PATIENCE seconds ago: for work that is not divided into steps."""
        if self.requested and time.monotonic() - self.at > PATIENCE:
            self.leave()

    def leave(self) -> None:
        """Raises Stopped, after a line that says what is saved."""
        done = f"{self.record.saved_epoch} of {self.record.args.epochs} epochs are saved"
        say(f"stopped by {signal.Signals(self.requested).name}; {done}; run the same command to continue: {self.command}")
        raise Stopped(128 + self.requested)


# ---- the loop


class Training:
    """The epochs of one run. epoch: the present one, from 1; epoch_seconds: how long each took."""

    def __init__(
        self,
        args: Base,
        device: torch.device,
        record: Record,
        teacher: BlackBox | None,
        stop: Stop,
        save: Callable[[str], None],
    ):
        """save(name): saves the student as NAME.pt."""
        self.args, self.device, self.record, self.teacher, self.stop, self.save = args, device, record, teacher, stop, save
        self.epoch, self.done, self.printed, self.epoch_seconds, self.recorder = 0, 0, 0.0, [], Recorder(args, device)

    def fit(
        self,
        student: nn.Module,
        batches: Iterable,
        loss: Callable[..., dict[str, Tensor]],
        optimizers: Sequence[torch.optim.Optimizer] = (),
        evaluate: Callable[[], dict] = dict,
        until: int | None = None,
        beside: nn.Module | None = None,
        repeatable: bool = False,
        **objects,
    ) -> None:
        """Minimises the sum of the terms that `loss(*batch)` returns by name, up to the epoch `until`, and logs each under its name.

        The student's own optimizer follows the options; those given step beside it. evaluate: gives the numbers to log. until: the last
        epoch of --epochs by default. beside: a net that the student's optimizer trains too. repeatable: the loss does nothing but compute,
        from its batch, the nets and constants, so that a GPU can repeat its operations. objects: more that has a state to resume.
        """
        main = optimizer_of(self.args, nn.ModuleList([student, *([beside] if beside else [])]))
        objects |= {"beside": beside} if beside else {}
        every = [main, *optimizers]
        named, step = {f"optimizer{i}": o for i, o in enumerate(every)}, self.recorder.step(loss, every, repeatable)
        for epoch in self.epochs(evaluate, until, student=student, **named, **objects):
            for group in main.param_groups:
                group["lr"] = lr_at(self.args, epoch)
            student.train()
            with allocating("a training step", "--batch_size", "--img_size"), self.keeping_student():
                for batch in self.steps(batches):
                    self.tally(**step(*batch))

    @contextmanager
    def keeping_student(self) -> Iterator[None]:
        """A block that trains the student; where a limit of queries or of cost ends it, the student is saved as it is."""
        try:
            yield
        except OutOfBudget as e:
            self.save("student")
            what = f"the student of epoch {self.epoch} is in {self.record.folder / 'student.pt'}"
            raise OutOfBudget(f"{e}; {what}") from None

    def epochs(self, evaluate: Callable[[], dict], until: int | None = None, **objects) -> Iterator[int]:
        """Yields the epochs still to do up to `until`; logs, evaluates and saves after each. `objects`: all that has a state to resume."""
        total = self.args.epochs
        until = min(total if until is None else until, self.done + 1 if self.args.dry_run else total)
        if self.teacher:
            objects["queries"] = self.teacher
        done = self.record.resume(self.done, until, objects, self.device)
        self.done, began = max(self.done, until), time.monotonic()
        for epoch in range(done + 1, until + 1):
            self.epoch, self.epoch_began = epoch, time.monotonic()
            self.sums, self.terms, self.stepped = defaultdict(float), [], 0
            yield epoch
            row = {"epoch": epoch, **self.means()}
            if epoch % self.args.eval_every == 0 or epoch == until:
                row |= evaluate()
            improved = self.record.log(row)
            if improved and self.args.val and self.args.model:
                self.save("best")
            self.report(row, total, (total - epoch) * (time.monotonic() - began) / (epoch - done))
            self.record.save_state(epoch, objects, self.device, force=epoch == until or self.stop.requested)
            self.epoch_seconds.append(time.monotonic() - self.epoch_began)
            if self.stop.requested and epoch < total:
                self.stop.leave()

    def steps(self, batches: Iterable) -> Iterator[tuple[Tensor, ...]]:
        """The batches of one epoch, with a progress bar on a terminal. A stop is heard here, and a dry run ends after two."""
        total, batches = min(len(batches), 2 if self.args.dry_run else len(batches)), iter(batches)
        for _ in tqdm(range(total), f"epoch {self.epoch}", leave=False, disable=rank() > 0 or not sys.stderr.isatty()):
            if self.stop.requested and time.monotonic() - self.epoch_began > PATIENCE:
                self.stop.leave()
            with autocast(self.device, self.args.amp):  # a batch may be made by nets
                batch = next(batches)
            yield batch

    def tally(self, **terms: Tensor) -> None:
        """Notes one step's terms, scalars on the device; they are read, summed and checked every READ_EVERY steps."""
        self.terms.append({k: v.detach() for k, v in terms.items()})
        if len(self.terms) == READ_EVERY:
            self.read_terms()

    def read_terms(self) -> None:
        if not self.terms:
            return
        if self.teacher:
            self.teacher.check_finite()
        values = torch.stack([torch.stack(list(t.values())) for t in self.terms]).cpu().double().tolist()  # (steps, terms)
        for step, row in enumerate(values, self.stepped + 1):
            for name, value in zip(self.terms[0], row, strict=True):
                if not math.isfinite(value):
                    kept = f"epoch {self.record.saved_epoch} is saved in {self.record.folder}"
                    raise RunError(f"the loss term {name} is {value} at epoch {self.epoch}, step {step}; a smaller --lr may help; {kept}")
                self.sums[name] += value
        self.stepped += len(self.terms)
        self.terms = []

    def means(self) -> dict[str, float]:
        """The mean of each term over the epoch's steps."""
        self.read_terms()
        return {k: v / self.stepped for k, v in self.sums.items()}

    def report(self, row: dict, total: int, left: float) -> None:
        """A line a second at most, and the first and the last."""
        if row["epoch"] not in (1, total) and time.monotonic() - self.printed < 1:
            return
        words = [word(k, v) for k, v in row.items() if k != "epoch"]
        words += [f"{self.teacher.counts['queries']:,} queries"] if self.teacher else []
        took = time.monotonic() - self.epoch_began
        say(f"epoch {row['epoch']}/{total}  {'  '.join(words)}  {took:{'.2g' if took < 99 else '.0f'}} s, {clock(left)} left")
        self.printed = time.monotonic()


def word(name: str, value: float | list[float]) -> str:
    """A number of the log as a line shows it: `accuracy 95.20 %`, `kl 0.1234`."""
    if isinstance(value, list):
        return f"{name} {' '.join(f'{v:.2g}' for v in value)}"
    in_percent = name in ("accuracy", "top5", "agreement", "ece") or name.endswith("shot")
    return f"{name} {value:.2f} %" if in_percent else f"{name} {value:.4g}"


def command_of(path: str, argv: list[str] | None) -> str:
    """The command line of this run, to be copied: of the script `path`, or of the process where argv is None."""
    return shlex.join(["python", "-u", *sys.argv] if argv is None else ["python", "-u", path, *argv])
