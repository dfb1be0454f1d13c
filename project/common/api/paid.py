"""Answers that are bought from a teacher once: what the ledger has is taken from it, the rest is asked for, within a limit of cost."""

import math
import threading
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..blackbox import Local, OutOfBudget
from ..cli import RunError, Stopped, UsageError, say
from ..options import TeacherOptions
from ..utils import clock, net_name, safe
from .client import Attempts, Refused
from .ledger import Ledger, key_of
from .remote import Remote

CANARIES = 3  # images that are asked about again when a run goes on
MOVED = 0.01  # change of a probability from which on an answer counts as another


class Paid:
    """What a BlackBox asks where answers are bought: see blackbox.Asked.

    source: the server (Remote), or a net of this process (Local), whose answers are kept too. ledger: None where nothing is kept. run: the
    name of the run in the ledger. pause: called while requests are waited for, to leave if the run is to stop.
    """

    divisible = False

    def __init__(self, args: TeacherOptions, source: Remote | Local, ledger: Ledger | None, classes: int, run: str):
        self.args, self.source, self.ledger, self.classes, self.run = args, source, ledger, classes, run
        self.identity, self.local, self.pause = source.identity, isinstance(source, Local), None
        self.price = 0.0 if self.local else args.price_per_1k / 1000
        self.canaries = ledger.canaries() if ledger and not self.local else []
        self.checked, self.spent = not self.canaries, ledger.spent(run) if ledger and self.price else 0.0
        self.looked = None  # what `afford` found out: (images, what is sent for each, keys, {key: answer} of those in the ledger)
        self.limit, self.paying = args.max_cost if self.price and args.max_cost else np.inf, threading.Lock()
        self.pool = None if self.local else ThreadPoolExecutor(args.concurrency, thread_name_prefix="api")

    def audit(self, x: Tensor) -> Tensor:
        """See Asked."""
        return self.source.audit(x)

    def check_finite(self) -> None:
        """See Asked."""
        if self.local:
            self.source.check_finite()

    def bought(self) -> tuple[dict, list[str]] | None:
        """(counts and cost of the run, what the run's last line says of them); None where there is no ledger."""
        if not self.ledger:
            return None
        counts = self.ledger.totals(self.run) | {"currency": self.args.currency}
        words = f"{counts['images']:,} bought" + (f" for {counts['cost']:.2f} {counts['currency']}" if self.price else "")
        return counts, [f"{words}, {counts['hits']:,} from the ledger"]

    def afford(self, x: Tensor) -> None:
        """See Asked. What is looked up here serves the next `answer`, if it is of the same tensor."""
        self.looked = None
        if self.limit == np.inf:
            return
        parts, keys, found = self.encoded(x)
        with self.buying():
            found |= self.ledger.find(keys) if self.ledger else {}
            self.keep_within(keys, found)
        self.looked = x, parts, keys, found

    def encoded(self, x: Tensor) -> tuple[list[bytes], list[bytes], dict[bytes, np.ndarray]]:
        """(what is sent for each image, keys, {key: answer} of those that were looked up)."""
        looked, self.looked = self.looked, None
        if looked and looked[0] is x:
            return looked[1:]
        parts = [row.tobytes() for row in x.detach().float().cpu().contiguous().numpy()] if self.local else self.source.encode(x)
        return parts, [key_of(p) for p in parts], {}

    def buying(self) -> AbstractContextManager:
        """A block in which no other process buys for this ledger."""
        return self.ledger.exclusive(self.pause) if self.ledger else nullcontext()

    def answer(self, x: Tensor, stage: str = "train") -> Tensor:
        """See Asked. OutOfBudget where --max_cost does not allow all: before anything is sent, or when further attempts use it up."""
        parts, keys, found = self.encoded(x)
        with self.buying():
            found |= self.ledger.find([key for key in keys if key not in found]) if self.ledger else {}
            new = [i for i, key in enumerate(keys) if key not in found]
            first = sorted({keys[i]: i for i in reversed(new)}.values()) if self.ledger else new  # there, one that comes twice is sent once
            if new:
                self.keep_within(keys, found)
                self.check_canaries()
                self.obtain(x, first, keys, parts, stage, found)
            if self.ledger and len(first) < len(keys):
                self.ledger.add_hits(self.run, stage, len(keys) - len(first))
        return self.tensor([found[key] for key in keys], x.device)

    def obtain(
        self, x: Tensor, rows: Sequence[int], keys: Sequence[bytes], parts: Sequence[bytes], stage: str, found: dict[bytes, np.ndarray]
    ) -> None:
        """Adds {key: answer} of these rows of x to `found`. OutOfBudget with the answers to the first images of x: see `buy`."""
        wanted = [keys[i] for i in rows]
        if self.local:
            found |= self.compute(wanted, stage, x if len(rows) == len(x) else x[torch.tensor(rows, device=x.device)])
            return
        try:
            self.buy(wanted, [parts[i] for i in rows], stage, found)
        except OutOfBudget as e:
            n = next((i for i, key in enumerate(keys) if key not in found), len(keys))
            if self.ledger and (hits := n - sum(i < n for i in rows)):
                self.ledger.add_hits(self.run, stage, hits)
            e.answers = self.tensor([found[key] for key in keys[:n]], torch.device("cpu")) if n else None
            raise

    def tensor(self, answers: Sequence[np.ndarray], device: torch.device) -> Tensor:
        """Answers (N, K) as a tensor; of classes the one-hot vectors."""
        found = torch.from_numpy(np.stack(answers)).to(device)
        return F.one_hot(found.long(), self.classes).float() if found.dim() == 1 else found

    @property
    def left(self) -> float:
        """How many images --max_cost still allows, infinity without it."""
        return np.inf if self.limit == np.inf else max(0, int((self.limit - self.spent) / self.price + 1e-6))

    def keep_within(self, keys: Sequence[bytes], found: dict) -> None:
        """OutOfBudget where the images that are not in `found` would cost more than is left when the canaries are paid for.

        Its `fits` counts the first images that do not.
        """
        left, known = self.left - (0 if self.checked else len(self.canaries)), set(found)
        for i, key in enumerate(keys if left < np.inf else ()):
            if key not in known:
                if left < 1:
                    raise self.over_limit(f"{len(keys)} images are wanted", i)
                left -= 1
                if self.ledger:
                    known.add(key)

    def over_limit(self, why: str, fits: int = 0) -> OutOfBudget:
        """The error for what --max_cost does not allow."""
        reached = f"--max_cost {self.args.max_cost:g} {self.args.currency} is reached: {self.spent:.4f} are spent"
        return OutOfBudget(f"{reached}, and {why}", fits)

    def pay(self, images: int, lost: str = "") -> None:
        """Adds the price of images that are about to be sent to what is spent; OutOfBudget where --max_cost does not allow it.

        lost: what became of the attempt before, where they are sent again. Requests call this from threads of their own.
        """
        with self.paying:
            if images > self.left:
                again = f"{images} images without an answer ({lost}) are not sent again"
                raise self.over_limit(again if lost else f"{images} images are wanted")
            self.spent += self.price * images

    def pay_again(self, call: int, images: int, attempts: Sequence[tuple]) -> None:
        """Pays for another attempt of a call, when these attempts, of which the last may have been billed, are in the ledger: see `pay`."""
        self.pay(images, attempts[-1][2])
        if self.ledger:
            self.ledger.note_attempts(call, attempts)

    # ---- asking

    def buy(self, keys: Sequence[bytes], parts: Sequence[bytes], stage: str, found: dict[bytes, np.ndarray]) -> None:
        """Adds {key: answer} of images to `found`, when they are in the ledger.

        An error is raised when all requests that are under way have ended, so that no answer is lost. OutOfBudget where further attempts
        of requests have used up what --max_cost allows.
        """
        at, pending, error = 0, {}, None
        try:
            while at < len(keys) or pending:
                while at < len(keys) and len(pending) < self.args.concurrency and not error:
                    size = min(self.source.batch, self.left or self.source.batch)
                    some, images = keys[at : at + size], parts[at : at + size]
                    try:
                        pending[self.submit(some, images, stage)] = some
                    except OutOfBudget as e:
                        error = e
                    at += len(some)
                    if self.source.protocol.untried:
                        break
                for future in self.done(pending):
                    some, answers, problem = self.settle(future, pending.pop(future))
                    error = error or problem
                    if answers is not None:
                        found |= zip(some, answers, strict=True)
                if error and not pending:
                    raise error
        finally:
            if pending:
                self.source.client.stopped.set()
                for future in list(pending):
                    self.settle(future, pending.pop(future))
                self.source.client.stopped.clear()

    def submit(self, keys: Sequence[bytes], parts: Sequence[bytes], stage: str) -> Future:
        """Notes a call, and sends it. OutOfBudget, before that, where --max_cost does not allow it."""
        request, size = uuid.uuid4().hex, sum(map(len, parts))
        self.pay(len(keys))
        call = self.ledger.intend(request, self.run, stage, keys, size, self.price * len(keys)) if self.ledger else 0
        attempts = Attempts(partial(self.pay_again, call, len(keys)))
        future = self.pool.submit(self.source.send, list(parts), request, attempts)
        future.call, future.attempts, future.parts = call, attempts, parts
        return future

    def done(self, pending: dict[Future, Sequence[bytes]]) -> list[Future]:
        """The requests that have ended, at least one if there is any, in the order in which they were sent."""
        while pending:
            ended, _ = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
            if ended:
                return [f for f in pending if f in ended]
            if self.pause:
                self.pause()
        return []

    def settle(self, future: Future, keys: Sequence[bytes]) -> tuple[Sequence[bytes], np.ndarray | None, Exception | None]:
        """(keys, answers, error) of a request, when its end is in the ledger. Whatever its error is, the other requests do not share it."""
        try:
            answers, error = future.result(), None
        except Exception as e:
            answers, error = None, e
        attempts = future.attempts
        unexpected = bool(attempts) and not isinstance(error, (RunError, UsageError))
        state = "answered" if error is None else "lost" if unexpected or attempts.lost else "refused"
        billed = {"answered": 1 + attempts.lost, "lost": max(1, attempts.lost), "refused": 0}[state]  # as Ledger.spent counts them
        with self.paying:
            self.spent += self.price * len(keys) * (billed - attempts.paid)
        if self.ledger:
            self.ledger.end(future.call, state, answers, attempts[attempts.noted :], keys)
            if answers is not None and (lacking := CANARIES - len(self.canaries)) > 0:
                new = list(zip(keys, future.parts, answers, strict=True))[:lacking]
                self.ledger.add_canaries(new)
                self.canaries = [*self.canaries, *new]
        return keys, answers, error

    def compute(self, keys: Sequence[bytes], stage: str, x: Tensor) -> dict[bytes, np.ndarray]:
        """{key: answer} of a net of this process to images x, when they are in the ledger."""
        began = time.time()
        found = self.source.answer(x)
        self.check_finite()
        answers = (found.argmax(1) if self.ledger.hard else found).cpu().numpy()
        self.ledger.add(self.run, stage, keys, x.numel() * 4, answers, began)
        return dict(zip(keys, answers, strict=True))

    # ---- the same teacher still?

    def check_canaries(self) -> None:
        """RunError where the teacher now answers otherwise than when the ledger began.

        It is asked once a process, before anything new is bought.
        """
        if self.checked:
            return
        keys, images, before = zip(*self.canaries, strict=True)
        now = {}
        self.buy(keys, images, "canary", now)
        changes = [self.change(now[key], then) for key, then in zip(keys, before, strict=True)]
        if moved := [c for c in changes if c > MOVED]:
            what = f"{len(moved)} of {len(keys)} images have other answers than before (a probability moved by {max(moved):.2f})"
            hint = f"to start anew with its present model, move {self.ledger.path} away and give --overwrite"
            raise RunError(f"the teacher at {self.args.teacher} has changed: {what}; {hint}")
        self.checked = True

    def change(self, now: np.ndarray, then: np.ndarray) -> float:
        """How far two answers to one image are apart: the largest change of a probability; 1 for another class."""
        if self.ledger.hard:
            return float(now != then)
        if self.args.response == "logits":
            now, then = (np.exp(v - v.max()) / np.exp(v - v.max()).sum() for v in (now, then))
        return float(np.nanmax(np.abs(np.nan_to_num(now) - np.nan_to_num(then))))


# ---- opening


def opened(args: TeacherOptions, source: Remote | Local, classes: int, run: str) -> Paid | Local:
    """What a BlackBox asks: `source` itself, or Paid with the ledger of this teacher and response. run: the run's name in the ledger.

    RunError where a server cannot be reached of which nothing was bought before.
    """
    local = isinstance(source, Local)
    if local and (not args.ledger or args.dry_run):
        return source
    identity = source.identity if local else source.answers_identity
    name = f"{net_name(args.teacher)}-{identity}-{safe(args.response)}.sqlite"
    path, ledger = Path(args.checkpoints_dir) / "ledgers" / name, None
    about = {"teacher": args.teacher, "identity": identity, "response": args.response, "classes": classes}
    if args.ledger and path.exists():
        ledger = Ledger(path, about, durable=not local)
    if not local:
        try:
            source.describe()
        except RunError as e:
            known = bool(ledger and ledger.old)
            if isinstance(e, Refused) or not (known or args.transfer):
                raise
            source.protocol.form = ledger.described().get("form", source.protocol.form) if known else source.protocol.form
            say(f"WARNING: {e}; the answers in {path if known else args.transfer} are used as far as they go")
    if args.ledger and not ledger and not args.dry_run:
        ledger = Ledger(path, about, durable=not local)
    if ledger and args.overwrite and not args.dry_run:
        ledger.rename_run(run)
    if ledger and not local:
        ledger.describe("form", source.protocol.form)
    return Paid(args, source, ledger, classes, run)


def quote(paid: Paid, planned: int, x: Tensor) -> None:
    """Says what a run will cost, before anything is asked, and ends it (--dry_run). planned: queries; x: the images of the first one."""
    a, source = paid.args, paid.source
    if not planned:
        say("the number of queries depends on the answers: limit it with --query_budget or --max_cost")
    n = planned or len(x)
    known = len(paid.ledger.find([key_of(p) for p in source.encode(x)])) if paid.ledger else 0
    requests, size = math.ceil(n / source.protocol.batch), len(source.encode(x[:1])[0])
    seconds = paid.ledger.seconds_per_request() if paid.ledger else None
    pace = ([requests / a.rps] if a.rps else []) + ([requests * seconds / a.concurrency] if seconds else [])
    cost = f"{n * paid.price:,.2f} {a.currency}" if paid.price else "no price (--price_per_1k)"
    time = f"about {clock(max(pace))}" if pace else "unknown time (--rps)"
    say(f"estimate: at most {n:,} images in {requests:,} requests, {n * size / 1e6:,.3g} MB; {cost}; {time}")
    say(f"in the ledger: {known:,} of the first {len(x):,} images; nothing was sent")
    raise Stopped(0)
