"""One run of one script: start gives, loss says, fit does.

`start` reads the options, draws the private share, fetches teacher and student, opens folders and log, and takes up a run that
was cut short. `fit` trains. Both are here once, so that methods differ in their loss alone.
"""

import contextlib
import inspect
import math
import os
import shlex
import signal
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch
from tqdm import tqdm

from .batches import Batches, Map, Streamed
from .blackbox import RESPONSES, BlackBox, Remembered, rank
from .datasets import DATASETS, load, spec_of, zoomed
from .datasets.images import split
from .gan import Generator
from .losses import kl
from .measures import calibration_error, copying
from .models import MODELS, build, canonical
from .models.base import Classifier
from .options import Base, flags, lr_at, milestones, parse, settings
from .record import Record, peak_mb
from .transfer import Transfer
from .utils import RunError, UsageError, clock, domain, identity, place, read, save, say, who

PATIENCE = 2.0  # seconds that a stop waits for the epoch's end


class Stopped(SystemExit):
    """SIGTERM or Ctrl-C: what was done is saved; the status is 128 + the signal's number."""


def start(Args, argv=None):
    """A Run for the options in `argv` (the command line if None). A finished run says so and exits with status 0."""
    return Run(Args, argv)


class Run:
    """args, device, data, private (the edge's Images), student (where one is trained), teacher (a BlackBox, where one is asked).

    askable: the Images that a method may ask about, the private ones or those of --pool; source: the data set they are of.
    notes: what a script adds to its result.
    """

    def __init__(self, Args, argv=None):
        file = Path(inspect.getfile(Args))
        script, path = file.stem, f"{file.parent.name}/{file.name}"
        self.command = shlex.join(["python", "-u", *sys.argv] if argv is None else ["python", "-u", path, *argv])
        there_is = f"data sets: {', '.join(DATASETS)}, folder:PATH\nmodels: {', '.join(MODELS)}, torchvision:NAME"
        self.args = args = parse(Args, argv, path, there_is)
        for field in ("dataset", "private", "pool"):
            if getattr(args, field, ""):
                setattr(args, field, spec_of(getattr(args, field))[0])
        for field in ("model", "teacher"):
            if getattr(args, field, "") or getattr(Args, field, ""):  # none is for scripts whose default is none
                setattr(args, field, canonical(getattr(args, field)))
        milestones(args)
        self.device, self.stopping, self.done, self.purchases, self.printed, self.laps = device_of(args), None, 0, 0, 0.0, []
        self.handlers, self.spent, self.notes = {}, {}, {}  # the signals' former handlers; what was asked for files this run is made from
        self.said = []  # what a script adds to its last line
        self.record = Record(script, args)
        with contextlib.suppress(ValueError):  # not in the main thread
            self.handlers = {number: signal.signal(number, self.stop) for number in (signal.SIGTERM, signal.SIGINT)}
        trained = self.find_teacher() if getattr(args, "teacher", "") else None
        self.source = self.data = self.load(getattr(args, "private", "") or args.dataset, imagined(trained, args))
        self.share_out()
        self.teacher = self.truth = None
        if trained:
            self.ask_teacher(*trained)
        torch.manual_seed(args.seed)
        self.student = self.net(args.model) if hasattr(args, "model") else None
        if args.compile and self.student:
            self.student.compile()
        self.open_transfer()
        used = f"{len(self.private):,} of {len(self.data.train):,} training images" if args.DATA else "no training image"
        say(f"{self.record.title}: {used}; {self.device_name()}")

    def load(self, name, imagined=0):
        """A data set with the size and the channels that the teacher's has; imagined: see datasets.load."""
        a, (_, spec) = self.args, spec_of(self.args.dataset)
        if getattr(a, "private", "") and a.normalize != "half":
            raise UsageError("--private goes with --normalize half: the teacher's mean is not that of another data set")
        return load(name, a.data_dir, self.device, a.img_size or spec.size, a.normalize, a.workers, spec.channels, imagined)

    def share_out(self):
        """private: what the edge owns. test: what is evaluated, the test images or, with --val, training images kept from everyone."""
        a, train, self.test = self.args, self.data.train, self.data.test
        if a.val:
            held, rest = split(train.y, a.val, seed=1)
            self.test, train = train.subset(held), train.subset(rest)
        self.test = zoomed(self.test) if a.zoom else self.test
        self.part = "validation" if a.val else "held-out" if spec_of(a.dataset)[1].novel else "test"
        self.private = train.subset(split(train.y, a.lamda, a.seed)[0]) if a.lamda < 1 else train

    def open_transfer(self):
        """What may be asked about, and the answers that --transfer holds."""
        a, own, name = self.args, self.record.transfer, getattr(self.args, "pool", "") or self.data.name
        if path := getattr(a, "transfer", ""):
            if not Path(path).exists():
                raise UsageError(f"no file {path}; a method that buys answers once leaves one in its folder: transfer.safetensors")
            given = Transfer(Path(path))
            mine = {"response": a.response, "teacher": self.teacher_identity, "classes": self.data.classes, "val": a.val}
            if off := [f"its {k} is {given.about[k]}, this run's is {v}" for k, v in mine.items() if given.about[k] != v]:
                raise UsageError(f"{path} is of another kind: {'; '.join(off)}; buy answers anew, without --transfer")
            self.record.sources[path] = identity(path)
            self.spend(given.about["counts"])
            name = given.about["dataset"]
            if not own:
                own.columns = given.whole()
                own.ends = [len(own.columns["answers"])]
                own.made = given.made
            say(f"{path}: {own.ends[0]:,} answers bought before")
        if name != self.data.name:
            self.source = self.load(name)
        if path and given.about["images"] != (there := len(self.source.train)):
            raise UsageError(f"{path} counts {given.about['images']} training images in {name}, which now has {there}; buy answers anew")
        self.askable = self.private if self.source is self.data else self.source.train

    def spend(self, counts):
        """Queries that another run has asked for what this one is made from: they count, and are of the budget."""
        self.spent = {k: v + self.spent.get(k, 0) for k, v in counts.items()}
        self.teacher.earlier = self.spent.get("queries", 0)

    # ---- teacher, student, generator

    def net(self, name):
        return build(name, self.data.classes, self.data.shape, self.device).to(memory_format=torch.channels_last)

    def find_teacher(self):
        """(path, state dict, meta), before the data is read: a missing teacher is said at once."""
        a = self.args
        if rank(a.response) < RESPONSES.index(a.NEEDS):
            hint = f"--response {a.NEEDS}, where the teacher gives it, or a script that needs less (README)"
            raise UsageError(f"{self.record.script} needs {a.NEEDS} answers, --response {a.response} gives less; take {hint}")
        script, net = a.taught()
        path = Path(a.teacher_path or place(a.checkpoints_dir, script, a.dataset, a.teacher, a.teacher_seed) / f"{net}.pt")
        if not path.exists() and not a.teacher_path:
            first = self.before(script, model=a.teacher, seed=a.teacher_seed)
            raise UsageError(f"no teacher for {a.dataset} in {path.parent}; first run: {first}")
        return path, *self.record.source(path)

    def before(self, script, **options):
        """The command of another script that this run builds upon, with what they must share."""
        shared = {k: getattr(self.args, k) for k in ("img_size", "normalize", "val", "data_dir", "checkpoints_dir", "logs_dir")}
        options |= {k: v for k, v in shared.items() if v != getattr(Base, k)}
        return shlex.join(["python", f"project/{script}.py", *flags(dataset=self.args.dataset, **options)])

    def ask_teacher(self, path, state, meta):
        a = self.args
        self.teacher = BlackBox(self.fill(self.net(a.teacher), path, state, meta), a.response, a.query_budget or None)
        self.teacher_path, self.teacher_identity = path, self.record.sources[str(path)]
        self.teacher_accuracy, seen = None, "there are no images to test it with"
        if len(self.test):
            self.truth = self.infer(self.teacher.audit, self.test)  # (N, K) the teacher's log-probabilities, to compare with
            self.teacher_accuracy = percent(self.truth.argmax(1) == self.test.y)
            seen = f"{self.teacher_accuracy:.2f} % of {len(self.test):,} {self.part} images"
        say(f"teacher {a.teacher}: {seen}; it answers {a.response}")

    def fill(self, net, path, state, meta, same=("shape", "classes", "normalize"), kind=""):
        """`net` with the weights `state`, or a UsageError that says in one line what does not fit. same: what `meta` must have as here."""
        made = {"shape": list(self.data.shape), "classes": self.data.classes, "normalize": self.args.normalize}
        made |= {"latent": net.latent, "ngf": net.ngf} if isinstance(net, Generator) else {}
        state = net.adapt(state) if isinstance(net, Classifier) else state
        off = [f"it was made for {k} {meta[k]}, not {v}" for k, v in made.items() if k in (*same, "latent", "ngf") and meta.get(k, v) != v]
        wanted, given = ({k: tuple(v.shape) for k, v in weights.items()} for weights in (net.state_dict(), state))
        off += [
            f"{k} is {given.get(k, 'missing')}, not {wanted.get(k, 'wanted')}" for k in (wanted | given) if wanted.get(k) != given.get(k)
        ]
        if off:
            c, h, w = self.data.shape
            kind = kind or ("a generator" if isinstance(net, Generator) else self.args.teacher)
            more = f" (and {len(off) - 1} more)" if len(off) > 1 else ""
            raise UsageError(f"{path} does not fit {kind} for {self.data.classes} classes of {c}x{h}x{w} images: {off[0]}{more}")
        net.load_state_dict(state)
        return net

    def reuse(self, net, path):
        """`net` with the weights of an earlier run's generator or decoder, whatever teacher it was for."""
        return self.fill(
            net, path, *self.record.source(path), same=("shape",), kind=f"a generator of {self.args.latent} latents, or its decoder,"
        )

    def generator(self, path="", tag=""):
        """DCGAN.py's generator for this data set, teacher and seed, frozen, in evaluation mode; one made with the same response first."""
        a = self.args
        names = [who(a.teacher, response=r, tag=tag) for r in (a.response, "soft")]
        places = [place(a.checkpoints_dir, "DCGAN", domain(a), name, a.seed) / "generator.pt" for name in names]
        path = Path(path or next((p for p in places if p.exists()), places[1]))
        more = {k: v for k, v in {"private": a.private, "tag": tag}.items() if v}
        first = self.before("DCGAN", teacher=a.teacher, seed=a.seed, lamda=a.lamda, **more)
        if path == places[1] and not path.exists():
            raise UsageError(f"no generator in {path.parent}; first run: {first}")
        state, meta = self.record.source(path)
        made = {"dataset": domain(a), "lamda": a.lamda, "teacher": self.teacher_identity}
        if off := [f"its {k} was {meta[k]}, this run's is {v}" for k, v in made.items() if meta.get(k, v) != v]:
            raise UsageError(f"{path} is of another run: {'; '.join(off)}; run again: {first} --overwrite")
        G = Generator(meta.get("latent", self.data.classes), self.data.shape).to(self.device, memory_format=torch.channels_last)
        self.spend(meta.get("counts", {}))
        say(f"generator {path}: {meta.get('counts', {}).get('queries', 0):,} queries in its training")
        return self.fill(G, path, state, meta).eval().requires_grad_(False)

    # ---- what is asked

    def within(self, n):
        """n queries, or as many as --query_budget still allows, which is said; UsageError where that is too little to train on.

        A dry run makes do with two batches.
        """
        left = self.teacher.left
        n = min(n, 2 * self.args.batch_size) if self.args.dry_run else n
        if left < min(n, 2):
            before = f" ({self.teacher.earlier:,} were asked for what this run is made from)" if self.teacher.earlier else ""
            raise UsageError(f"--query_budget {self.args.query_budget} leaves {left} queries{before}, too few to train on; raise it")
        if left < n:
            say(f"{left:,} queries are asked instead of {n:,} (--query_budget {self.args.query_budget})")
        return min(n, left)

    def some(self, n):
        """A plan of n of the images that may be asked about, or as many as the budget allows."""

        def plan(g):
            m = self.within(n)
            chosen = torch.randperm(len(self.askable), generator=g)[:m].sort().values
            return {"index": self.askable.index[chosen]}

        return plan

    def buy(self, plan, make=None, size=0):
        """Columns of the transfer set: all that was bought so far with this purchase, kept as it is bought and never paid for twice.

        plan(g) names what is asked about, as columns of a transfer set; it draws from the generator g alone, and is not called
        where a killed run, or --transfer, has the images already. make(rows): other columns than the answers to those images, for `size`
        rows at a time, the answers among them.
        """
        t, script, augment = self.record.transfer, self.record.script, self.args.augment
        if augment != "none":
            raise UsageError(f"{script} buys answers to images as they are, once; --augment {augment} would change them: --augment none")
        self.purchases += 1
        if len(t.ends) < self.purchases:
            t.plan(plan(torch.Generator().manual_seed(1000 * self.args.seed + self.purchases)))
        stop = t.ends[self.purchases - 1]
        return self.grow(make or self.answers, "answers", size or max(1000, stop // 20), stop)

    def grow(self, make, name, size, stop):
        """The first `stop` rows of the transfer set, with the columns, one of them `name`, that `make(rows)` gives for `size` rows."""
        t, a = self.record.transfer, self.args
        self.recount(t.about.get("own", {}))
        about = {"dataset": self.source.name, "images": len(self.source.train), "val": a.val, "classes": self.data.classes}
        about |= {"response": a.response, "teacher": self.teacher_identity, "options": settings(a), "sources": self.record.sources}
        said = time.time()
        for end in t.fill(make, name, size, stop):
            if time.time() - said > 30:
                say(f"{name}: {end:,} of {stop:,}, {self.teacher.counts['queries']:,} queries")
                said = time.time()
            t.save(about | {"made": t.made, "own": self.teacher.state_dict(), "counts": self.total()})
            if self.stopping:
                self.leave()
        return {k: v[:stop].to(self.device) for k, v in t.columns.items() if len(v) >= stop}

    def recount(self, counts):
        """Takes up the counts of what a killed run has asked for files that are there."""
        if counts.get("queries", 0) > self.teacher.counts["queries"]:
            self.teacher.load_state_dict(counts)

    def keep(self, name, make):
        """The tensors {name: ...} that make() gives, made once: they stay in the run's folder as NAME.pt, with the queries they took."""
        path = self.record.folder / f"{name}.pt"
        if not path.exists():
            save(path, {"kept": make(), "counts": self.teacher.state_dict()})
        content = read(path, "kept", "counts")
        self.recount(content["counts"])
        return content["kept"]

    def answers(self, rows):
        """The teacher's answers (n, K) to rows of a transfer set."""
        kind = "synthetic" if "images" in rows else "private" if self.source is self.data else "public"
        if "index" in rows and "weight" not in rows:
            return {"answers": self.infer(lambda x: self.teacher(x, kind), self.source.train.subset(rows["index"]))}
        mixed = kind == "private" and (rows["index"][:, 0] != rows["index"][:, 1]).any()
        return {"answers": self.teacher(self.see(rows), "mixed" if mixed else kind)}

    def see(self, rows):
        """The images (n, C, H, W) of rows of a transfer set, as a net sees them."""
        rows = {k: v.to(self.device) for k, v in rows.items()}
        if "images" in rows:
            return rows["images"]
        return self.mix(rows["index"], rows["weight"]) if "weight" in rows else self.data.view(self.source.train.x[rows["index"]])

    def mix(self, index, weight):
        """weight * first + (1 - weight) * second image of each row of index (n, 2): floats (n, C, H, W)."""
        a, b = (self.data.view(self.source.train.x[index[:, i]]) for i in (0, 1))
        return torch.lerp(b, a, weight.view(-1, 1, 1, 1))

    def resident(self, images):
        """`images`, where they lie on the device; UsageError where they are streamed."""
        if images.stream:
            what = f"{self.record.script} needs its images in memory, and {self.source.name} is streamed"
            raise UsageError(f"{what}; take a smaller --img_size")
        return images

    # ---- what one can iterate

    def images(self, *rows):
        """Shuffled batches of the private images, as the options want them seen, and of tensors with a row for each: (x, *rows)."""
        return self.batches_of(self.private, rows, self.args.augment)

    def batches_of(self, images, rows, augment="none", steps=None):
        if images.stream:
            return Streamed(images, *rows, size=self.args.batch_size, first=self.data.view, augment=augment)
        return Batches(images.x, *rows, size=self.args.batch_size, first=lambda x: self.data.view(x, augment), steps=steps)

    def batches(self, bought, *rows, steps=None):
        """Shuffled batches (x, t, *rows) of what `buy` gave, and of tensors with a row for each; `steps` an epoch, without it one pass."""
        rows, size = (bought["answers"], *rows), self.args.batch_size
        if "images" in bought:
            return Batches(bought["images"], *rows, size=size, steps=steps)
        if "weight" in bought:
            mixes = Batches(bought["index"], bought["weight"], *rows, size=size, steps=steps)
            return Map(mixes, lambda index, weight, *rows: (self.mix(index, weight), *rows))
        return self.batches_of(self.source.train.subset(bought["index"]), rows, steps=steps)

    def asked(self):
        """Batches of the askable images and the teacher's answers (x, t). Images that never change are asked about once."""
        if self.args.augment == "none" or getattr(self.args, "transfer", ""):
            return self.batches(self.buy(self.some(len(self.askable))))
        return self.viewed()

    def viewed(self, *rows, change=None):
        """Batches (x, t, *rows) of views of the private images, the teacher's answers to them, and tensors with a row for each.

        With --cache each view is asked about once. change: a function of (x, *rows) of a batch, before the teacher sees it.
        """
        a, data, n = self.args, self.data, len(self.private)
        if not getattr(a, "cache", False):
            self.teacher.afford(n * a.epochs)
            seen = Map(self.images(*rows), change) if change else self.images(*rows)
            return Map(seen, lambda x, *rows: (x, self.teacher(x), *rows))
        x, views = self.resident(self.private).x, data.views(a.augment)
        self.teacher.afford(n * min(views, a.epochs))
        kept = Remembered(self.teacher, n, views, data.classes, self.device)
        say(f"answers to {views} views of each image take up to {kept.kept.nbytes / 1e9:.2f} GB")

        def ask(i, *rows):
            which = torch.randint(views, (len(i),), device=self.device)
            seen = data.view(x[i], a.augment, which)
            return seen, kept(i, which, seen), *rows

        return Map(Batches(torch.arange(n, device=self.device), *rows, size=a.batch_size), ask)

    # ---- training

    def fit(self, batches, loss, optimizers=(), evaluate=None, until=None, beside=None, **objects):
        """Minimises the sum of the terms that `loss(*batch)` returns by name, up to the epoch `until`, and logs each under its name.

        The student's own optimizer follows the options; those given step beside it. evaluate: gives the numbers to log, the
        student's accuracy by default. until: the last epoch of args.epochs by default. beside: a net that the student's optimizer trains
        too. objects: more that has a state to resume.
        """
        main = optimizer_of(self.args, torch.nn.ModuleList([self.student, *([beside] if beside else [])]))
        objects |= {"beside": beside} if beside else {}
        every = [main, *optimizers]
        named = {f"optimizer{i}": o for i, o in enumerate(every)}
        for epoch in self.epochs(evaluate or self.accuracy, until, student=self.student, **named, **objects):
            for group in main.param_groups:
                group["lr"] = lr_at(self.args, epoch)
            self.student.train()
            for batch in self.steps(batches):
                with self.autocast():
                    terms = loss(*batch)
                    total = sum(terms.values())
                for o in every:
                    o.zero_grad()
                total.backward()
                for o in every:
                    o.step()
                self.tally(**terms)

    def epochs(self, evaluate, until=None, **objects):
        """Yields the epochs still to do up to `until`; logs, evaluates and saves after each. `objects`: all that has a state to resume."""
        total = self.args.epochs
        until = min(total if until is None else until, self.done + 1 if self.args.dry_run else total)
        if self.teacher:
            objects["queries"] = self.teacher
        done = self.record.resume(self.done, until, objects, self.device)
        self.done, began = max(self.done, until), time.time()
        for epoch in range(done + 1, until + 1):
            self.epoch, self.epoch_began = epoch, time.time()
            self.sums, self.terms, self.stepped = defaultdict(float), [], 0
            yield epoch
            row = {"epoch": epoch, **self.means()}
            if epoch % self.args.eval_every == 0 or epoch == until:
                row |= evaluate()
            self.record.log(row)
            self.report(row, total, (total - epoch) * (time.time() - began) / (epoch - done))
            self.record.save_state(epoch, objects, self.device, force=epoch == until or self.stopping)
            self.laps.append(time.time() - self.epoch_began)
            if self.stopping and epoch < total:
                self.leave()

    def steps(self, batches):
        """The batches of one epoch, with a progress bar on a terminal. A stop is heard here, and a dry run ends after two."""
        total, batches = min(len(batches), 2 if self.args.dry_run else len(batches)), iter(batches)
        for _ in tqdm(range(total), f"epoch {self.epoch}", leave=False, disable=not sys.stderr.isatty()):
            if self.stopping and time.time() - self.epoch_began > PATIENCE:
                self.leave()
            with self.autocast():  # a batch may be made by nets
                batch = next(batches)
            yield batch

    def tally(self, **terms):
        """Notes one step's terms, scalars on the device; they are read, summed and checked every 200 steps."""
        self.terms.append({k: v.detach() for k, v in terms.items()})
        if len(self.terms) == 200:
            self.sum_up()

    def sum_up(self):
        if not self.terms:
            return
        values = torch.stack([torch.stack(list(t.values())) for t in self.terms]).cpu().double().tolist()  # (steps, terms)
        for step, row in enumerate(values, self.stepped + 1):
            for name, value in zip(self.terms[0], row, strict=True):
                if not math.isfinite(value):
                    kept = f"epoch {self.record.saved_epoch} is saved in {self.record.folder}"
                    raise RunError(f"the loss term {name} is {value} at epoch {self.epoch}, step {step}; a smaller --lr may help; {kept}")
                self.sums[name] += value
        self.stepped += len(self.terms)
        self.terms = []

    def means(self):
        self.sum_up()
        return {k: v / self.stepped for k, v in self.sums.items()}

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.amp == "bf16")

    # ---- evaluation and result

    def infer(self, f, images):
        """f(x) over all images in order, joined."""
        if images.stream:
            batches = (self.data.view(x.to(self.device)) for x, _ in images.stream.loader(500, shuffle=False, augment="none"))
        else:
            batches = (self.data.view(x) for x in images.x.split(1000))
        with torch.no_grad(), self.autocast():
            return torch.cat([f(x) for x in batches])

    def accuracy(self):
        """The student on the evaluation images: accuracy, top-5 where K > 10, expected calibration error, in percent; beside the teacher
        agreement in percent and KL(teacher || student) in nats. Nothing where there are no images."""
        if not len(self.test):
            return {}
        self.student.eval()
        s = self.infer(self.student, self.test).float()  # (N, K)
        row = {"accuracy": percent(s.argmax(1) == self.test.y), "ece": 100 * calibration_error(s.softmax(1), self.test.y).item()}
        if self.data.classes > 10:
            row["top5"] = percent((s.topk(5).indices == self.test.y[:, None]).any(1))
        if self.teacher:
            row |= {"agreement": percent(s.argmax(1) == self.truth.argmax(1)), "teacher_kl": kl(s, self.truth).item()}
        return row

    def copying(self, x):
        """Notes how near the synthetic images x (N, C, H, W) come to private ones, with a picture of the closest pairs in the logs."""
        few = torch.randperm(len(self.private), generator=torch.Generator().manual_seed(0))[: min(5000, 2**28 // x[0].numel())]
        own = self.infer(lambda own: own, self.private.subset(few))
        x, own = (images * self.data.std + self.data.mean for images in (x, own))
        self.notes["copying"] = copying(x, own, self.record.logs / "copying.png")

    def finish(self, **nets):
        """Saves what was trained, each net as NAME.pt (the student by default), and result.json; says how it went."""
        a, data = self.args, self.data
        last = next((r for r in reversed(self.record.rows) if "accuracy" in r), {})
        total, own = self.total(), dict(self.teacher.counts) if self.teacher else {}
        meta = {"script": self.record.script, "dataset": domain(a), "shape": list(data.shape), "classes": data.classes}
        meta |= {"normalize": a.normalize, "lamda": a.lamda, "model": getattr(a, "model", ""), "counts": own}
        said = [f"{last['accuracy']:.2f} % last, {self.record.best:.2f} % best of {len(self.test):,} {self.part} images"] if last else []
        result = {k: last[k] for k in ("accuracy", "top5", "agreement", "teacher_kl", "ece") if k in last} | {"split": self.part}
        if self.teacher:
            meta["teacher"] = self.teacher_identity
            said += [f"agreement {last['agreement']:.2f} %"] if last else []
            said += [f"{total['queries']:,} queries, {total['bytes'] / 1e6:.1f} MB sent"]
            result["teacher_accuracy"] = self.teacher_accuracy
        said += [*self.said, f"{self.record.seconds() / 60:.1f} min"]
        result["epoch_seconds"] = round(statistics.median(self.laps), 4) if self.laps else None
        result |= {**total, "own": own, "images": len(self.private) * a.DATA, "device": self.device_name(), "peak_mb": peak_mb(self.device)}
        result |= {"needs": getattr(a, "NEEDS", ""), **self.notes}
        nets = nets or ({"student": self.student} if self.student else {})
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        meta |= {k: getattr(net, k) for net in nets.values() if isinstance(net, Generator) for k in ("latent", "ngf")}
        return self.record.finish(nets, meta, f"{self.record.title}: {', '.join(said)}", result | {"command": self.command})

    def total(self):
        """Counts of this run and of the files it is made from."""
        own = self.teacher.counts if self.teacher else BlackBox.zero()
        return {k: v + self.spent.get(k, 0) for k, v in own.items()}

    def report(self, row, total, left):
        """A line a second at most, and the first and the last."""
        if row["epoch"] not in (1, total) and time.time() - self.printed < 1:
            return
        words = [word(k, v) for k, v in row.items() if k != "epoch"]
        words += [f"{self.teacher.counts['queries']:,} queries"] if self.teacher else []
        took = time.time() - self.epoch_began
        say(f"epoch {row['epoch']}/{total}  {'  '.join(words)}  {took:{'.2g' if took < 99 else '.0f'}} s, {clock(left)} left")
        self.printed = time.time()

    def device_name(self):
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"CPU, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"

    # ---- stopping

    def stop(self, number, frame):
        """A signal: a short epoch is finished and saved, a long one is left. A second signal leaves at once."""
        if self.stopping:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.stopping = number

    def leave(self):
        done = f"{self.record.saved_epoch} of {self.args.epochs} epochs are saved"
        say(f"stopped by {signal.Signals(self.stopping).name}; {done}; the same command goes on from there: {self.command}")
        raise Stopped(128 + self.stopping)


def imagined(trained, args):
    """The classes of a data set whose images are not to be read (--no_eval), 0 where they are."""
    if getattr(args, "eval", True):
        return 0
    classes = spec_of(args.dataset)[1].classes or trained[2].get("classes", 0)
    if not classes:
        raise UsageError(f"--no_eval: nobody knows how many classes {args.dataset} has; train its teacher with teacher.py, which notes it")
    return classes


def device_of(args):
    name = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    name = f"cuda:{name}" if name.isdigit() else name
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        raise UsageError(f"--device {name} is not to be had ({str(e).splitlines()[0]}); --device cpu always is") from None
    torch.backends.cudnn.benchmark = not args.deterministic
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(args.deterministic)
    return device


def optimizer_of(args, net):
    parts = [{"params": [*net.parameters()]}]
    if args.decay == "weights":
        vectors = [p for p in net.parameters() if p.dim() < 2]
        parts = [{"params": [p for p in net.parameters() if p.dim() >= 2]}, {"params": vectors, "weight_decay": 0.0}]
    if args.optimizer == "adam":
        return torch.optim.Adam(parts, args.lr, weight_decay=args.weight_decay, fused=True)
    return torch.optim.SGD(parts, args.lr, args.momentum, weight_decay=args.weight_decay, nesterov=args.nesterov, fused=True)


def percent(hits):
    return 100 * hits.sum().item() / len(hits)


def word(name, value):
    if isinstance(value, list):
        return f"{name} {' '.join(f'{v:.2g}' for v in value)}"
    in_percent = name in ("accuracy", "top5", "agreement", "ece") or name.endswith("shot")
    return f"{name} {value:.2f} %" if in_percent else f"{name} {value:.4g}"
