"""One worker thread that runs the net: requests that wait are joined to one batch."""

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import torch

from .accounts import Accounts
from .answers import make_outputs
from .keys import Key
from .metrics import Metrics
from .model import Model
from .refusals import Refused


@dataclass
class Job:
    """One request: images (N, C, H, W), the outputs that it wants, and the future of {output: values}."""

    key: Key
    images: np.ndarray
    outputs: Sequence[str]
    future: Future = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)


class Batcher:
    """Answers jobs in order, as many in one forward pass as have `max_batch` images together, or each in one of its own."""

    def __init__(
        self, model: Model, accounts: Accounts, metrics: Metrics, max_batch: int, max_wait: float, max_queue: int, join: bool = True
    ):
        """max_wait: seconds that a job waits for others. max_queue: jobs that may wait. join: whether a forward pass may have several."""
        self.model, self.accounts, self.metrics = model, accounts, metrics
        self.max_batch, self.max_wait, self.max_queue, self.join = max_batch, max_wait, max_queue, join
        self.waiting, self.changed, self.closing = deque(), threading.Condition(), False
        metrics.queue.set_function(lambda: len(self.waiting))
        self.thread = threading.Thread(target=self.work, name="forward", daemon=True)
        self.thread.start()

    def check_room(self) -> None:
        """Refused (503) where as many jobs wait as may."""
        if self.closing or len(self.waiting) >= self.max_queue:
            raise Refused(503, f"{len(self.waiting):,} requests are waiting; ask again in 1 s", {"Retry-After": "1"})

    def put(self, job: Job) -> Future:
        """Adds a job; its images have been reserved. Returns the future of its outputs."""
        with self.changed:
            self.waiting.append(job)
            self.changed.notify()
        return job.future

    def close(self, seconds: float) -> None:
        """Ends the thread once it has answered what waits, or after so many seconds."""
        with self.changed:
            self.closing = True
            self.changed.notify()
        self.thread.join(seconds)

    # ---- in the worker thread

    def work(self) -> None:
        """Answers jobs until `close`."""
        while jobs := self.take():
            jobs = [job for job in jobs if self.wanted(job)]
            if not jobs:
                continue
            try:
                self.answer(jobs)
            except Exception as e:
                for job in jobs:
                    self.accounts.release(job.key, len(job.images))
                    job.future.set_exception(e)

    def take(self) -> list[Job]:
        """The next jobs, waited for; none where the server closes."""
        with self.changed:
            self.changed.wait_for(lambda: self.waiting or self.closing)
            if not self.waiting:
                return []
            if self.max_wait and self.join:
                due = self.waiting[0].arrived + self.max_wait
                full = lambda: self.closing or sum(len(job.images) for job in self.waiting) >= self.max_batch  # noqa: E731
                self.changed.wait_for(full, max(0.0, due - time.monotonic()))
            jobs, n = [], 0
            while self.waiting and (not jobs or (self.join and n + len(self.waiting[0].images) <= self.max_batch)):
                jobs.append(self.waiting.popleft())
                n += len(jobs[-1].images)
            return jobs

    def wanted(self, job: Job) -> bool:
        """Whether a job was not cancelled; what is cancelled is not counted."""
        if job.future.set_running_or_notify_cancel():
            return True
        self.accounts.release(job.key, len(job.images))
        return False

    @torch.no_grad()
    def answer(self, jobs: list[Job]) -> None:
        """One forward pass; the images are counted before the futures are set."""
        began = time.perf_counter()
        views = [self.model.view(job.images) for job in jobs]
        x = views[0] if len(views) == 1 else torch.cat(views).contiguous(memory_format=torch.channels_last)
        logits = self.model.logits(x)
        parts = logits.split([len(v) for v in views])
        found = [make_outputs(part, job.outputs, job.key.response, job.key.digits) for part, job in zip(parts, jobs, strict=True)]
        self.metrics.forward.observe(time.perf_counter() - began)
        self.metrics.batch.observe(len(x))
        self.accounts.answered((job.key, len(job.images)) for job in jobs)
        for job, outputs in zip(jobs, found, strict=True):
            self.metrics.images.labels(job.key.name).inc(len(job.images))
            job.future.set_result(outputs)
