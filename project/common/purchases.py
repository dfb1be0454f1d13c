"""The queries of a run, and the answers it buys once and keeps in a transfer set."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .batches import Batches, Map, Streamed, batches_of
from .blackbox import BlackBox, OutOfBudget, Remembered
from .checkpoints import identity, read
from .cli import UsageError, allocating, say
from .datasets import Data, Images, spec_of
from .earlier import data_changes
from .forms import KEPT
from .measures import infer
from .options import Base, settings
from .record import Record
from .training import Stop
from .transfer import Columns, Transfer
from .utils import check_regular, misfit, save


class Purchases:
    """What one run asks about. source: the data set that is asked about; queryable: its images, the private ones or those of --pool.

    transfer: the run's transfer set. inherited: counts of the queries of the files that this run is made from.
    """

    def __init__(
        self,
        args: Base,
        record: Record,
        transfer: Transfer,
        data: Data,
        private: Images,
        teacher: BlackBox | None,
        stop: Stop,
        load: Callable[[str], Data],
    ):
        """load(name): the data set of that name with the size and the channels that the teacher's has."""
        self.args, self.record, self.transfer, self.stop = args, record, transfer, stop
        self.data, self.private, self.teacher = data, private, teacher
        self.device, self.number, self.inherited = data.mean.device, 0, {}
        given = self.take(Path(args.transfer)) if args.transfer else None
        name = given["dataset"] if given else args.pool or data.name
        self.source = data if name == data.name else load(name)
        self.check_images()
        if given and (changed := data_changes(given.get("data") or self.source.identity(), self.source.identity())):
            raise UsageError(f"{args.transfer} was bought for other images of {name}: {'; '.join(changed)}; buy answers anew")
        self.queryable = private if self.source is data else self.source.train

    def take(self, path: Path) -> dict:
        """Begins with the answers in the transfer set `path`, of this teacher and response; its metadata. UsageError for another."""
        if not path.exists():
            raise UsageError(f"no file {path}; a method that buys answers once leaves one in its folder: transfer.safetensors")
        given, own = Transfer(path), self.transfer
        if off := self.misfits(given.about):
            raise UsageError(f"{path} does not belong to this run: {'; '.join(off)}; buy answers anew, without --transfer")
        self.record.sources[str(path)] = identity(path)
        self.add_inherited_counts(given.about["counts"])
        if not own:
            own.columns = given.whole()
            own.ends, own.made = [len(own.columns["answers"])], given.made
        say(f"{path}: {own.ends[0]:,} answers bought before")
        return given.about

    def misfits(self, about: dict) -> list[str]:
        """What the metadata of a transfer set say otherwise of teacher, answers and images than this run does, a phrase each.

        The options are compared, too: older files have the identity of the teacher's file, whatever made the net of it.
        """
        a, known, spec = self.args, self.teacher.identity, spec_of(self.args.dataset)[1]
        then, (channels, size, _) = vars(a) | about["options"], self.data.shape
        mine = {"response": a.response, "classes": self.data.classes, "val": a.val}
        mine |= {"teacher": known} if known else {"model of the teacher": a.teacher}  # no weights here
        mine |= {"channels": channels, "image size": size}
        theirs = about | {"model of the teacher": then["teacher"]}
        theirs |= {"channels": then["channels"] or spec.channels, "image size": then["img_size"] or spec.size}
        if a.teacher.startswith("py:"):
            mine, theirs = ({**v, "function": name.rpartition(":")[2]} for v, name in ((mine, a.teacher), (theirs, str(then["teacher"]))))
        for name in ("weights", "teacher_normalize", *a.READING):
            if known or getattr(a, name):
                mine[f"--{name}"], theirs[f"--{name}"] = (value or "not given" for value in (getattr(a, name), then[name]))
        return [f"its {k} is {theirs[k]}, this run's is {v}" for k, v in mine.items() if theirs[k] != v]

    def check_images(self) -> None:
        """UsageError where the transfer set holds images of another shape than this run's."""
        images = self.transfer.columns.get("images")
        if images is not None and tuple(images.shape[1:]) != tuple(self.data.shape):
            shape, here = ("x".join(map(str, s)) for s in (images.shape[1:], self.data.shape))
            raise UsageError(f"{self.transfer.path} holds images of {shape}, this run's are {here}; buy answers anew")

    # ---- counts

    def add_inherited_counts(self, counts: dict[str, int]) -> None:
        """Queries that another run has asked for what this one is made from: they count, and are part of the budget."""
        self.inherited = {k: v + self.inherited.get(k, 0) for k, v in counts.items()}
        self.teacher.earlier = self.inherited.get("queries", 0)

    def total_counts(self) -> dict[str, int]:
        """Counts of this run and of the files it is made from."""
        own = self.teacher.billed() if self.teacher else BlackBox.zero()
        return {k: v + self.inherited.get(k, 0) for k, v in own.items()}

    def resume_counts(self, counts: dict[str, int]) -> None:
        """Takes up the counts of what a killed run has asked for files that are there."""
        if counts.get("queries", 0) > self.teacher.counts["queries"]:
            self.teacher.load_state_dict(counts)

    def clip_to_budget(self, n: int) -> int:
        """n queries, or as many as --query_budget still allows, which is said; UsageError where that is too little to train on.

        A dry run makes do with two batches.
        """
        left = self.teacher.allowance
        n = min(n, 2 * self.args.batch_size) if self.args.dry_run and not self.teacher.quote else n
        if left < min(n, 2):
            before = f" ({self.teacher.earlier:,} were asked for what this run is made from)" if self.teacher.earlier else ""
            raise UsageError(f"--query_budget {self.args.query_budget} leaves {left} queries{before}, too few to train on; raise it")
        if left < n:
            say(f"{left:,} queries are asked instead of {n:,} (--query_budget {self.args.query_budget})")
        return min(n, left)

    # ---- buying

    def random_plan(self, n: int) -> Callable[[torch.Generator], Columns]:
        """A plan for `buy`: n of the queryable images, or as many as the budget allows, drawn by the generator that it is given."""

        def plan(g: torch.Generator) -> Columns:
            m = self.clip_to_budget(n)
            chosen = torch.randperm(len(self.queryable), generator=g)[:m].sort().values
            return {"index": self.queryable.index[chosen]}

        return plan

    def buy(self, plan: Callable[[torch.Generator], Columns], make: Callable[[Columns], Columns] | None = None, size: int = 0) -> Columns:
        """Columns of the transfer set: all that was bought so far with this purchase, kept as it is bought and never paid for twice.

        plan(g) names what is asked about, as columns of a transfer set; it draws from the generator g alone, and is not called where
        a killed run, or --transfer, has the images already. make(rows): other columns than the answers to those images, for `size`
        rows at a time, the answers among them.
        """
        t, script, augment = self.transfer, self.record.script, self.args.augment
        if augment != "none":
            raise UsageError(
                f"{script} buys answers to images as they are, once; --augment {augment} would change them: use --augment none"
            )
        self.number += 1
        if len(t.ends) < self.number:
            with allocating("the images to ask about", "--queries", "--query_budget", "--img_size"):
                t.add_rows(plan(torch.Generator().manual_seed(1000 * self.args.seed + self.number)))
        stop = t.ends[self.number - 1]
        self.teacher.expect(stop)
        return self.grow(make or self.answers, "answers", size or max(1000, stop // 20), stop)

    def grow(self, make: Callable[[Columns], Columns], name: str, size: int, stop: int) -> Columns:
        """The first `stop` rows of the transfer set, with the columns, one of them `name`, that `make(rows)` gives for `size` rows."""
        t, a = self.transfer, self.args
        self.resume_counts(t.about.get("own", {}))
        about = {"dataset": self.source.name, "images": len(self.source.train), "val": a.val, "classes": self.data.classes}
        about |= {
            "data": self.source.identity(),
            "script": self.record.script,
            "response": a.response,
            "teacher": self.teacher.identity,
            "options": settings(a),
            "sources": self.record.sources,
        }
        printed = time.monotonic()
        for end in self.within_limits(make, name, size, stop):
            if time.monotonic() - printed > 30:
                say(f"{name}: {end:,} of {stop:,}, {self.teacher.counts['queries']:,} queries")
                printed = time.monotonic()
            self.teacher.check_finite()
            self.record.claim()
            t.save(about | {"made": t.made, "own": self.teacher.state_dict(), "counts": self.total_counts()})
            if self.stop.requested:
                self.stop.leave()
        stop = min(stop, t.ends[-1])
        return {k: v[:stop].to(self.device) for k, v in t.columns.items() if len(v) >= stop}

    def within_limits(self, make: Callable[[Columns], Columns], name: str, size: int, stop: int) -> Iterator[int]:
        """Transfer.fill; where --max_cost is reached, the purchase ends with the rows that it has, if training can begin with them."""
        t = self.transfer
        try:
            yield from t.fill(make, name, size, stop)
        except OutOfBudget as e:
            at = len(t.columns.get(name, ()))
            if make == self.answers and e.answers is not None:
                new = e.answers.cpu()
                t.columns[name] = torch.cat([t.columns[name], new]) if at else new
                at += len(new)
            if not self.args.max_cost or at < 2:
                raise
            say(f"{e}; the run goes on with {at:,} of {stop:,} images (for all of them: a higher limit, and --overwrite)")
            t.cut(at)
            yield at

    def keep(self, name: str, make: Callable[[], Columns], **shapes: Sequence[int]) -> Columns:
        """The tensors that make() gives by name, made once: they stay in the run's folder as NAME.pt, with the queries they took.

        shapes: of the tensors, by name; none for those of a net. UsageError where the file has others, or values that are no numbers.
        """
        self.record.claim()
        path = self.record.folder / f"{name}.pt"
        check_regular(path)
        if not path.exists():
            save(path, {"kept": make(), "counts": self.teacher.state_dict()})
        content = read(path, **KEPT)
        self.resume_counts(content["counts"])
        kept = content["kept"]
        problem = misfit(kept, {...: Tensor}, "kept") or misfit(kept, dict.fromkeys(shapes, Tensor), "kept")
        for k, v in kept.items() if not problem else ():
            if (shapes and k not in shapes) or v.shape != shapes.get(k, v.shape) or v.isnan().any():
                problem = f"{k} has the shape {tuple(v.shape)}, or values that are no numbers"
        if problem:
            raise UsageError(f"{path}: its {problem}; it is damaged, or not of this project; move it away and run again")
        return kept

    def answers(self, rows: Columns) -> Columns:
        """The teacher's answers (n, K) to rows of a transfer set; OutOfBudget, with those to the first rows, where a limit is met."""
        got = []

        def ask(x: Tensor, kind: str) -> Tensor:
            try:
                got.append(self.teacher(x, kind))
            except OutOfBudget as e:
                if e.answers is not None:
                    got.append(e.answers)
                elif e.fits:
                    ask(x[: e.fits], kind)
                e.answers = torch.cat(got) if got else None
                raise
            return got[-1]

        kind = "synthetic" if "images" in rows else "private" if self.source is self.data else "public"
        if "index" in rows and "weight" not in rows:
            images = self.source.train.subset(rows["index"])
            return {"answers": infer(lambda x: ask(x, kind), images, self.data.view, self.args.amp)}
        mixed = kind == "private" and (rows["index"][:, 0] != rows["index"][:, 1]).any()
        return {"answers": ask(self.to_images(rows), "mixed" if mixed else kind)}

    def to_images(self, rows: Columns) -> Tensor:
        """The images (n, C, H, W) of rows of a transfer set, as a net sees them."""
        rows = {k: v.to(self.device) for k, v in rows.items()}
        if "images" in rows:
            return rows["images"]
        return self.mix(rows["index"], rows["weight"]) if "weight" in rows else self.data.view(self.source.train.x[rows["index"]])

    def mix(self, index: Tensor, weight: Tensor) -> Tensor:
        """weight * first + (1 - weight) * second image of each row of index (n, 2): floats (n, C, H, W)."""
        a, b = (self.data.view(self.source.train.x[index[:, i]]) for i in (0, 1))
        return torch.lerp(b, a, weight.view(-1, 1, 1, 1))

    # ---- batches of images and answers

    def batches(self, bought: Columns, *rows: Tensor, steps: int | None = None) -> Batches | Map | Streamed:
        """Shuffled batches (x, t, *rows) of what `buy` gave, and of tensors with a row for each; `steps` an epoch, without it one pass."""
        rows, size = (bought["answers"], *rows), self.args.batch_size
        if "images" in bought:
            return Batches(bought["images"], *rows, size=size, steps=steps)
        if "weight" in bought:
            mixes = Batches(bought["index"], bought["weight"], *rows, size=size, steps=steps)
            return Map(mixes, lambda index, weight, *rows: (self.mix(index, weight), *rows))
        return batches_of(self.source.train.subset(bought["index"]), *rows, size=size, view=self.data.view, steps=steps)

    def two_views(self, *rows: Tensor) -> Map:
        """Batches (x, t, *rows, x', t') of two views of the private images, a weakly and a strongly augmented one; t, t': the answers."""
        a, data = self.args, self.data
        x = resident(self.private, self.record.script).to_augment(a.augment)
        self.teacher.plan(2 * len(x) * a.epochs)

        def look(x: Tensor, *rows: Tensor) -> tuple[Tensor, ...]:
            weak, strong = data.view(x, a.augment), data.view(x, a.augment, strong=True)
            return weak, self.teacher(weak), *rows, strong, self.teacher(strong)

        return Map(Batches(x, *rows, size=a.batch_size), look)

    def asked(self) -> Batches | Map | Streamed:
        """Batches of the queryable images and the teacher's answers (x, t). Images that never change are asked about once."""
        if self.args.augment == "none" or self.args.transfer:
            return self.batches(self.buy(self.random_plan(len(self.queryable))))
        return self.viewed()

    def viewed(self, *rows: Tensor, change: Callable[..., tuple[Tensor, ...]] | None = None) -> Map:
        """Batches (x, t, *rows) of views of the private images, the teacher's answers to them, and tensors with a row for each.

        With --cache each view is asked about once. change: a function of (x, *rows) of a batch, before the teacher sees it.
        """
        a, data, n = self.args, self.data, len(self.private)
        if not a.cache:
            self.teacher.plan(n * a.epochs)
            seen = batches_of(self.private, *rows, size=a.batch_size, view=data.view, augment=a.augment)
            return Map(Map(seen, change) if change else seen, lambda x, *rows: (x, self.teacher(x), *rows))
        x, views = resident(self.private, self.record.script).x, data.views(a.augment)
        self.teacher.plan(n * min(views, a.epochs))
        with allocating(f"the answers to {views} views of each image (--cache)", "--lamda"):
            kept = Remembered(self.teacher, n, views, data.classes, self.device)
        say(f"answers to {views} views of each image take up to {kept.kept.nbytes / 1e9:.2f} GB")

        def ask(i: Tensor, *rows: Tensor) -> tuple[Tensor, ...]:
            which = torch.randint(views, (len(i),), device=self.device)
            seen = data.view(x[i], a.augment, which)
            return seen, kept(i, which, seen), *rows

        return Map(Batches(torch.arange(n, device=self.device), *rows, size=a.batch_size), ask)


def resident(images: Images, script: str) -> Images:
    """`images`, where they lie on the device; UsageError where they are streamed."""
    if images.stream:
        raise UsageError(f"{script} needs its images in memory, and this data set is too large for it; use a smaller --img_size")
    return images
