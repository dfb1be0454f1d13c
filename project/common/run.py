"""One run of one script: start gives, loss says, fit does.

`start` reads the options, draws the private share, fetches teacher and student, opens folders and log, and takes up a run that
was cut short. `fit` trains. Both are here once, so that methods differ in their loss alone.
"""

import contextlib
import fcntl
import inspect
import json
import os
import platform
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torchvision
from tqdm import tqdm

from .blackbox import RESPONSES, BlackBox, rank
from .datasets import DATASETS, Batches, Streamed, load, spec_of, split
from .gan import Generator
from .models import MODELS, build, canonical
from .options import Asks, lr_at, milestones, parse
from .utils import RunError, UsageError, identity, place, read, read_json, save, save_json, save_text, weights, who

PATIENCE = 2.0  # seconds that a stop waits for the epoch's end; states are saved at most every half of it


class Stopped(SystemExit):
    """SIGTERM or Ctrl-C: what was done is saved, the status is 128 + the signal's number."""


def start(Args, argv=None):
    """A Run for the options in `argv` (the command line if None); a finished run says so and exits with status 0."""
    return Run(Args, argv)


class Run:
    """args, data, private (Images), teacher (BlackBox, where one is asked), student (where one is trained), device."""

    def __init__(self, Args, argv=None):
        self.command = shlex.join(["python", "-u", *sys.argv]) if argv is None else f"main({argv})"
        self.script = Path(inspect.getfile(Args)).stem
        there_is = f"data sets: {', '.join(DATASETS)}, folder:PATH\nmodels: {', '.join(MODELS)}, torchvision:NAME"
        self.args = args = parse(Args, argv, self.script, there_is)
        args.dataset = spec_of(args.dataset)[0]
        for field in {"model", "teacher"} & set(asdict(args)):
            setattr(args, field, canonical(getattr(args, field)))
        milestones(args)
        self.device = device_of(args)
        self.open_folders()
        self.sources = {}  # files that this run is made from -> identity
        self.phase, self.rows, self.best, self.earlier, self.state = 0, [], None, 0.0, None
        self.take_up()
        net = self.load_teacher_weights() if isinstance(args, Asks) else None
        self.data = load(args.dataset, args.data_dir, self.device, args.img_size or None, args.normalize, None if args.workers < 0 else args.workers)
        held, rest = split(self.data.train.y, args.val, seed=1) if args.val else (None, None)
        self.train = self.data.train.subset(rest) if args.val else self.data.train
        self.test = self.data.train.subset(held) if args.val else self.data.test
        self.private = self.train.subset(split(self.train.y, args.lamda, args.seed)[0]) if args.lamda < 1 else self.train
        self.teacher = self.truth = None
        if net:
            self.ask_teacher(net)
        torch.manual_seed(args.seed)
        self.student = self.build(args.model) if hasattr(args, "model") else None
        self.began, self.saved, self.printed, self.stopping = time.time(), 0.0, 0.0, None
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(ValueError):  # not in the main thread
                signal.signal(number, self.stop)
        self.say(f"{self.title()}: {len(self.private):,} of {len(self.data.train):,} training images, {self.device_name()}")

    # ---- folders, and what an earlier process left there

    def who(self, **other):
        return who(**{k: getattr(self.args, k) for k in ("teacher", "model", "response", "tag") if hasattr(self.args, k)} | other)

    def open_folders(self):
        a, roots = self.args, (self.args.checkpoints_dir, self.args.logs_dir)
        if a.dry_run:
            self.temporary = tempfile.TemporaryDirectory(prefix="dry_run_")
            roots = (self.temporary.name,) * 2
        self.folder, self.logs = (place(root, self.script, a.dataset, self.who(), a.seed) for root in roots)
        for folder in (self.folder, self.logs):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self.lock = open(folder / ".lock", "w")
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(f"another process is at this run ({self.folder}); wait for it, or give --tag NAME") from None
            except OSError as e:
                raise UsageError(f"cannot write in {folder} ({e.strerror}); name other folders with --checkpoints_dir and --logs_dir") from None
        if a.overwrite:
            for path in [*self.folder.iterdir(), *self.logs.iterdir()]:
                if path.name != ".lock":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    def take_up(self):
        """Says so and exits where the run is finished; takes its state where it was cut short; UsageError where it was another run."""
        result = read_json(self.folder / "result.json")
        before = result
        if not result and (self.folder / "state.pt").exists():
            before = self.state = read(self.folder / "state.pt")
        if not before:
            return
        now, then = self.settings(), before["options"]
        changed = [f"--{k} {then[k]} (now {now[k]})" for k in now if k in then and then[k] != now[k]]
        changed += [f"{path} (changed since)" for path, known in before["sources"].items() if Path(path).exists() and identity(path) != known]
        if changed:
            raise UsageError(f"{self.folder} holds a run with {', '.join(changed)}; give --tag NAME to run beside it, or --overwrite to start anew")
        if result:
            self.say(f"finished before: {result['line']}\n(--overwrite runs it again)")
            sys.exit(0)

    def settings(self):
        return {k: v for k, v in asdict(self.args).items() if k not in self.args.FREE}

    # ---- teacher, student, generator

    def build(self, name):
        net = build(name, self.data.classes, self.data.shape, self.device).to(memory_format=torch.channels_last)
        if self.args.compile:
            net.compile()
        return net

    def load_teacher_weights(self):
        """(state dict, meta, path), before the data is read: a missing teacher is said at once."""
        a = self.args
        path = Path(a.teacher_path) if a.teacher_path else place(a.checkpoints_dir, "teacher", a.dataset, a.teacher, a.teacher_seed) / "teacher.pt"
        if not path.exists() and not a.teacher_path:
            first = f"python project/teacher.py --dataset {a.dataset} --model {a.teacher} --seed {a.teacher_seed}"
            raise UsageError(f"no teacher for {a.dataset} in {path.parent}; first run: {first}")
        if rank(a.response) < RESPONSES.index(a.NEEDS):
            raise UsageError(f"{self.script} needs {a.NEEDS} answers, --response {a.response} gives less")
        return (*self.source(path), path)

    def source(self, path):
        """(state dict, meta) of a file that this run is made from."""
        content = weights(path)
        self.sources[str(path)] = identity(path)
        return content

    def ask_teacher(self, net):
        state, meta, path = net
        a = self.args
        teacher = build(a.teacher, self.data.classes, self.data.shape, self.device).to(memory_format=torch.channels_last)
        self.fill(teacher, state, meta, path, a.teacher)
        self.teacher = BlackBox(teacher, a.response, a.query_budget or None)
        self.truth = self.infer(self.teacher.audit, self.test).argmax(1)
        self.teacher_accuracy = percent(self.truth == self.test.y)
        self.say(f"teacher {a.teacher}: {self.teacher_accuracy:.2f} % of {len(self.test):,} {self.part()} images; it answers {a.response}")

    def fill(self, net, state, meta, path, name):
        """Loads `state` into `net`, or says in one line what does not fit."""
        wanted = {k: tuple(v.shape) for k, v in net.state_dict().items()}
        given = {k: tuple(v.shape) for k, v in state.items()}
        off = [f"{k} is {given.get(k, 'missing')}, not {wanted.get(k, 'there')}" for k in sorted(wanted.keys() | given.keys()) if wanted.get(k) != given.get(k)]
        made = {"shape": list(self.data.shape), "normalize": self.args.normalize}
        off += [f"its {k} is {meta[k]}, not {v}" for k, v in made.items() if meta.get(k, v) != v]
        if off:
            c, h, w = self.data.shape
            more = f" and {len(off) - 1} more" if len(off) > 1 else ""
            raise UsageError(f"{path} does not fit {name} for {self.data.classes} classes and {c}x{h}x{w} images: {off[0]}{more}")
        net.load_state_dict(state)

    def generator(self, path=""):
        """DCGAN.py's generator for this data set, teacher and seed, frozen, in evaluation mode; one that had the same response first."""
        a = self.args
        roots = [place(a.checkpoints_dir, "DCGAN", a.dataset, who(a.teacher, response=r), a.seed) / "generator.pt" for r in (a.response, "soft")]
        path = Path(path) if path else next((p for p in roots if p.exists()), None)
        if path is None:
            raise UsageError(f"no generator in {roots[1].parent}; first run: python project/DCGAN.py --dataset {a.dataset} --teacher {a.teacher} --seed {a.seed} --lamda {a.lamda}")
        state, meta = self.source(path)
        if meta.get("lamda", a.lamda) != a.lamda or meta.get("teacher", self.teacher_identity()) != self.teacher_identity():
            raise UsageError(f"{path} was made with --lamda {meta.get('lamda')} and teacher {meta.get('teacher')}, this run has {a.lamda} and {self.teacher_identity()}; run DCGAN.py again")
        G = Generator(meta.get("latent", self.data.classes), self.data.shape).to(self.device, memory_format=torch.channels_last)
        self.fill(G, state, meta, path, "the generator")
        self.spent = meta.get("counts", {})
        return G.eval().requires_grad_(False)

    def teacher_identity(self):
        return next(iter(self.sources.values()))  # the teacher is a run's first source

    # ---- what one can iterate

    def images(self, labels=False):
        """Shuffled batches of the private share: (x,), or (x, y) for a script that may see labels."""
        a, p = self.args, self.private
        if p.stream is not None:
            batches = Streamed(p, a.batch_size, self.data.view, a.augment != "none")
            return batches if labels else Map(batches, lambda x, y: (x,))
        return Batches(p.x, *([p.y] if labels else []), size=a.batch_size, first=lambda x: self.data.view(x, a.augment))

    def asked(self):
        """Batches of private images and the teacher's answers (x, t). Images that never change are asked about once."""
        a, n = self.args, len(self.private)
        if a.augment == "none" and self.private.stream is None:
            t = self.once("answers", n, lambda: torch.cat([self.teacher(self.data.view(c)) for c in self.private.x.split(1000)]))
            return Batches(self.private.x, t, size=a.batch_size, first=self.data.view)
        self.teacher.afford(n * a.epochs)
        return Map(self.images(), lambda x: (x, self.teacher(x)))

    def once(self, name, n, make):
        """What `make()` buys with n queries, kept in the run's folder: a run that was killed finds it there and does not pay twice."""
        path = self.folder / f"{name}.pt"
        if path.exists():
            kept = read(path)
            self.teacher.load_state_dict(kept["counts"])
            torch.set_rng_state(kept["rng"])
        else:
            self.teacher.afford(n)
            kept = {"value": make(), "counts": self.teacher.state_dict(), "rng": torch.get_rng_state()}
            save(path, kept)
        value = kept["value"]
        return value.to(self.device) if isinstance(value, torch.Tensor) else [v.to(self.device) for v in value]

    # ---- training

    def fit(self, batches, loss, optimizers=(), evaluate=None):
        """Minimises the sum of the terms that `loss(*batch)` returns by name, for args.epochs epochs, and logs each under its name.

        The student's own optimizer follows the options; those given step beside it. evaluate: returns the numbers to log, `accuracy` by default.
        """
        steppers = {"student": optimizer_of(self.args, self.student)} | {f"optimizer{i}": o for i, o in enumerate(optimizers)}
        for epoch in self.epochs(evaluate or self.accuracy, student_net=self.student, **steppers):
            for group in steppers["student"].param_groups:
                group["lr"] = lr_at(self.args, epoch)
            self.student.train()
            for batch in self.steps(batches):
                with self.autocast():
                    terms = loss(*batch)
                    total = sum(terms.values())
                for o in steppers.values():
                    o.zero_grad(set_to_none=True)
                total.backward()
                for o in steppers.values():
                    o.step()
                self.tally(**terms)

    def epochs(self, evaluate, **objects):
        """Yields the epochs still to do, 1, 2, ...; after each it logs, evaluates and saves. `objects` is all that has a state to resume."""
        self.phase += 1
        total = 1 if self.args.dry_run else self.args.epochs
        if self.teacher:
            objects["asked_teacher"] = self.teacher
        for epoch in range(self.resume(objects) + 1, total + 1):
            self.epoch, self.epoch_began = epoch, time.time()
            self.sums, self.terms, self.stepped = defaultdict(float), [], 0
            yield epoch
            row = {"epoch": epoch, **self.means()}
            if epoch % self.args.eval_every == 0 or epoch == total:
                row |= evaluate()
            self.log(row, total)
            now = time.time()
            if epoch == total or self.stopping or now - self.saved > PATIENCE / 2:
                self.save_state(epoch, objects)
            if self.stopping:
                self.leave(epoch, total)

    def steps(self, batches):
        """The batches of one epoch, with a progress bar on a terminal; here a stop is heard, and a dry run ends after two."""
        with tqdm(batches, f"epoch {self.epoch}", leave=False, disable=not sys.stderr.isatty()) as bar:
            for i, batch in enumerate(bar):
                if self.stopping and time.time() - self.epoch_began > PATIENCE:
                    self.leave(self.epoch - 1, self.args.epochs)
                if self.args.dry_run and i == 2:
                    return
                yield batch

    def tally(self, **terms):
        """Notes one step's terms, scalars on the device; they are summed and checked every 200 steps."""
        self.terms.append({k: v.detach() for k, v in terms.items()})
        if len(self.terms) == 200:
            self.sum_up()

    def sum_up(self):
        if not self.terms:
            return
        values = torch.stack([torch.stack(list(t.values())) for t in self.terms]).double().cpu()  # (steps, terms)
        for step, row in enumerate(values.tolist()):
            for name, value in zip(self.terms[0], row, strict=True):
                if not np.isfinite(value):
                    raise RunError(f"loss term {name} is {value} at epoch {self.epoch}, step {self.stepped + step + 1}; a smaller --lr may help; {self.folder} keeps the last whole epoch")
                self.sums[name] += value
        self.stepped += len(self.terms)
        self.terms = []

    def means(self):
        self.sum_up()
        return {k: v / max(1, self.stepped) for k, v in self.sums.items()}

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.amp == "bf16")

    # ---- evaluation

    def infer(self, f, images):
        """f(x) over all images in order, joined."""
        if images.stream is not None:
            batches = (self.data.view(x.to(self.device)) for x, _ in images.stream.loader(500, shuffle=False, augment=False))
        else:
            batches = (self.data.view(x) for x in images.x.split(1000))
        with torch.no_grad(), self.autocast():
            return torch.cat([f(x) for x in batches])

    def accuracy(self):
        """The student on the evaluation images, in percent: top-1 accuracy; top-5 where K > 10; agreement with the teacher's classes."""
        self.student.eval()
        s = self.infer(self.student, self.test)  # (N, K)
        row = {"accuracy": percent(s.argmax(1) == self.test.y)}
        if self.data.classes > 10:
            row["top5"] = percent((s.topk(5).indices == self.test.y[:, None]).any(1))
        if self.truth is not None:
            row["agreement"] = percent(s.argmax(1) == self.truth)
        return row

    def part(self):
        return "validation" if self.args.val else "test"

    # ---- state, log, result

    def save_state(self, epoch, objects):
        rng = {"cpu": torch.get_rng_state()} | ({"cuda": torch.cuda.get_rng_state(self.device)} if self.device.type == "cuda" else {})
        states = {name: o.state_dict() for name, o in objects.items()}
        seconds = self.earlier + time.time() - self.began
        kept = {"phase": self.phase, "epoch": epoch, "objects": states, "rng": rng, "rows": self.rows, "best": self.best, "seconds": seconds}
        save(self.folder / "state.pt", kept | {"options": self.settings(), "sources": self.sources})
        self.saved = time.time()

    def resume(self, objects):
        """Puts the saved state into `objects`; the number of epochs done in this phase."""
        state = self.state
        if not state or state["phase"] < self.phase:
            return 0
        if state["phase"] > self.phase:
            return self.args.epochs
        for name, o in objects.items():
            o.load_state_dict(state["objects"][name])
        torch.set_rng_state(state["rng"]["cpu"])
        if "cuda" in state["rng"] and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["rng"]["cuda"], self.device)
        self.rows, self.best, self.earlier = state["rows"], state["best"], state["seconds"]
        save_text(self.logs / "log.jsonl", "".join(map(line, self.rows)))
        self.say(f"goes on after epoch {state['epoch']} of {self.args.epochs}")
        return state["epoch"]

    def log(self, row, total):
        if "accuracy" in row:
            self.best = max(self.best or 0.0, row["accuracy"])
        self.rows.append(row)
        try:
            with open(self.logs / "log.jsonl", "a" if len(self.rows) > 1 else "w") as f:
                f.write(line(row))
        except OSError as e:
            raise RunError(f"could not write {self.logs / 'log.jsonl'}: {e.strerror}; the same command goes on from the last saved epoch") from None
        for name, value in row.items():
            if not isinstance(value, list):
                self.board.add_scalar(name, value, row["epoch"])
        now, epoch = time.time(), row["epoch"]
        if epoch in (1, total) or now - self.printed > 1:
            words = [word(k, v) for k, v in row.items() if k != "epoch"]
            asked = [f"{self.teacher.counts['queries']:,} queries"] if self.teacher else []
            done = epoch - self.first_epoch + 1
            left = (total - epoch) * (now - self.began) / max(1, done)
            self.say(f"epoch {epoch}/{total}  {'  '.join(words + asked)}  {now - self.epoch_began:.2g} s, {clock(left)} left")
            self.printed = now

    @property
    def first_epoch(self):
        return (self.state["epoch"] + 1) if self.state and self.state["phase"] == self.phase else 1

    @property
    def board(self):
        """TensorBoard's writer, opened at its first use; a resumed run's later points are cut off."""
        if not hasattr(self, "_board"):
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self._board = SummaryWriter(self.logs, purge_step=self.rows[-1]["epoch"] if self.rows else 0)
        return self._board

    def finish(self, **nets):
        """Saves the trained nets, each as NAME.pt, and result.json; says how it went."""
        last = next((r for r in reversed(self.rows) if "accuracy" in r), {})
        counts = self.teacher.counts if self.teacher else {"queries": 0, "private": 0, "synthetic": 0, "bytes": 0}
        total = {k: v + getattr(self, "spent", {}).get(k, 0) for k, v in counts.items()}  # with what the generator's training asked
        seconds = self.earlier + time.time() - self.began
        meta = {"script": self.script, "dataset": self.args.dataset, "shape": list(self.data.shape), "classes": self.data.classes}
        meta |= {"normalize": self.args.normalize, "lamda": self.args.lamda, "counts": counts, "model": getattr(self.args, "model", "")}
        meta |= {"teacher": self.teacher_identity()} if self.teacher else {}
        for name, net in (nets or {"student": self.student}).items():
            extra = {"latent": net.latent} if isinstance(net, Generator) else {}
            save(self.folder / f"{name}.pt", {"model": net.state_dict(), "meta": meta | extra})
        numbers = {k: v for k, v in last.items() if k in ("accuracy", "top5", "agreement")}
        words = [f"{last['accuracy']:.2f} % last, {self.best:.2f} % best of {len(self.test):,} {self.part()} images"] if last else []
        words += [f"agreement {last['agreement']:.2f} %"] if "agreement" in last else []
        words += [f"{total['queries']:,} queries, {total['bytes'] / 1e6:.1f} MB sent"] if self.teacher else []
        said = f"{self.title()}: {', '.join([*words, f'{seconds / 60:.1f} min'])} -> {self.folder}"
        result = {"line": said, "script": self.script, "dataset": self.args.dataset, "seed": self.args.seed, **numbers, "best": self.best}
        result |= {"split": self.part(), "teacher_accuracy": getattr(self, "teacher_accuracy", None), **total, "own": counts}
        result |= {"images": len(self.private), "seconds": round(seconds, 1), "peak_mb": self.peak_mb(), "device": self.device_name(), "versions": versions()}
        result |= {"command": self.command, "options": self.settings(), "sources": self.sources, "last": self.rows[-1] if self.rows else {}}
        if not self.args.dry_run:
            save_json(self.folder / "result.json", result)
            (self.folder / "state.pt").unlink(missing_ok=True)
        self.board.close()
        self.say(said if not self.args.dry_run else f"{self.title()}: a dry run went through; nothing is kept")
        return result

    def title(self):
        a = self.args
        return f"{self.script} {self.who().replace('_to_', ' -> ')} on {a.dataset}, seed {a.seed}"

    def say(self, words):
        print(words, flush=True)

    def device_name(self):
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"

    def peak_mb(self):
        if self.device.type == "cuda":
            return round(torch.cuda.max_memory_allocated(self.device) / 2**20)
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)

    # ---- stopping

    def stop(self, number, frame):
        """A signal: a short epoch is finished and saved, a long one is left; a second signal leaves at once."""
        if self.stopping:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.stopping = number

    def leave(self, epoch, total):
        name = signal.Signals(self.stopping).name
        print(f"stopped by {name}; epochs saved: {epoch} of {total}; the same command goes on from there: {self.command}", flush=True)
        raise Stopped(128 + self.stopping)


class Map:
    """Batches, each passed through f."""

    def __init__(self, batches, f):
        self.batches, self.f = batches, f

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return (self.f(*batch) for batch in self.batches)


def device_of(args):
    name = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as e:
        raise UsageError(f"--device {name} is not to be had ({str(e).splitlines()[0]}); --device cpu always is") from None
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = not args.deterministic
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return device


def optimizer_of(args, net):
    if args.optimizer == "adam":
        return torch.optim.Adam(net.parameters(), args.lr, weight_decay=args.weight_decay, fused=True)
    return torch.optim.SGD(net.parameters(), args.lr, args.momentum, weight_decay=args.weight_decay, fused=True)


def percent(hits):
    return 100 * hits.double().mean().item()


def word(name, value):
    if isinstance(value, list):
        return f"{name} {' '.join(f'{v:.2g}' for v in value)}"
    return f"{name} {value:.2f} %" if name in ("accuracy", "top5", "agreement") else f"{name} {value:.4g}"


def clock(seconds):
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"


def versions():
    try:
        root = Path(__file__).parent
        commit = subprocess.run(["git", "-C", root, "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    except OSError:
        commit = ""
    found = {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__, "numpy": np.__version__}
    return found | {"commit": commit or "unknown"}


def line(row):
    return json.dumps(row) + "\n"
