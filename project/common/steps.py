"""One training step: loss, gradients, optimizers. With --compile on a GPU it is recorded as a CUDA graph once, and then replayed.

A replay starts all operations of a step at once, so that a small net does not wait for Python. It repeats the operations on the same
memory: a batch is copied to where the recorded one was; weights and the optimizers' states change where they lie. Numbers that Python
handed to the operations, such as the learning rate, stay what they were. A step is therefore recorded only where nothing but the batch, the
nets and the learning rate decides what it computes, and anew when the learning rate changes. All other steps are taken as without a graph.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from .cli import say
from .options import Base
from .processes import world_size
from .utils import autocast

WARM_UP = 3  # steps before the recording: they compile, choose kernels, and make the optimizers' states

Terms = dict[str, Tensor]


class Step:
    """step(*batch): minimises the sum of the terms that loss(*batch) returns by name, with one step of each optimizer; gives the terms."""

    def __init__(self, loss: Callable[..., Terms], optimizers: Sequence[torch.optim.Optimizer], device: torch.device, amp: str):
        self.loss, self.optimizers, self.device, self.amp = loss, optimizers, device, amp

    def __call__(self, *batch: Tensor) -> Terms:
        with autocast(self.device, self.amp):
            terms = self.loss(*batch)
            total = sum(terms.values())
        for o in self.optimizers:
            o.zero_grad()
        total.backward()
        for o in self.optimizers:
            o.step()
        return terms


class Graph:
    """Operations on a GPU that are recorded once, and can then be replayed."""

    def __init__(self):
        self.graph = torch.cuda.CUDAGraph()

    def record(self, f: Callable[[], Terms]) -> Terms:
        """Records what f() does, which is not carried out; gives its result, whose values each replay writes."""
        # the first context brings the present stream back after a recording that failed; `thread_local`: other threads, which read a
        # streamed data set, go on allocating memory
        with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            return f()

    def replay(self) -> None:
        """Carries out what was recorded."""
        self.graph.replay()


@cache
def side_stream() -> torch.cuda.Stream:
    """Always the same stream, since each has memory of its own."""
    return torch.cuda.Stream()


def on_side_stream(f: Callable[[], Terms]) -> Terms:
    """f(), on another stream than the present one, as the steps before a recording have to be."""
    here, side = torch.cuda.current_stream(), side_stream()
    side.wait_stream(here)
    with torch.cuda.stream(side):
        made = f()
    here.wait_stream(side)
    return made


@contextmanager
def capturable(optimizers: Sequence[torch.optim.Optimizer]) -> Iterator[None]:
    """A block in which Adam may be recorded. Fused, it counts its steps on the device in any case; its saved state does not change."""
    groups = [group for o in optimizers for group in o.param_groups if "capturable" in group]
    for group in groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group in groups:
            group["capturable"] = False


class RecordedStep:
    """A Step that is recorded after WARM_UP steps, and then replayed for batches of the first one's shapes.

    Batches of other shapes (the last of an epoch) take the plain step. So do all after a recording that failed; refuse(why) is told.
    """

    def __init__(self, step: Step, refuse: Callable[[str], None]):
        self.step, self.refuse, self.shapes, self.rates, self.taken, self.graph, self.failed = step, refuse, None, None, 0, None, False

    def __call__(self, *batch: Tensor) -> Terms:
        shapes = [(t.shape, t.dtype) for t in batch]
        self.shapes = self.shapes or shapes
        if self.failed or shapes != self.shapes:
            return self.step(*batch)
        rates = [group["lr"] for o in self.step.optimizers for group in o.param_groups]
        if rates != self.rates:  # after one more plain step: what is compiled may have become another since
            self.rates, self.graph, self.taken = rates, None, min(self.taken, WARM_UP - 1)
        if self.taken < WARM_UP:
            self.taken += 1
            return on_side_stream(lambda: self.step(*batch))
        if self.graph is None and not self.record(batch):
            return self.step(*batch)
        for mine, new in zip(self.batch, batch, strict=True):
            mine.copy_(new)
        self.graph.replay()
        return {name: term.clone() for name, term in self.terms.items()}

    def record(self, batch: tuple[Tensor, ...]) -> bool:
        """Records the step; whether that was possible."""
        self.terms = None  # an earlier recording's memory
        self.batch = [t.clone() for t in batch]
        graph = Graph()
        try:
            with capturable(self.step.optimizers):
                terms = graph.record(lambda: self.step(*self.batch))
        except RuntimeError as e:  # an operation that waits, or too little memory for a second set of activations
            self.failed, self.batch = True, None
            self.refuse(str(e).splitlines()[0][:200])
            return False
        self.graph, self.terms = graph, {name: term.detach() for name, term in terms.items()}
        return True


class Recorder:
    """Makes the training steps of a run: plain ones, or recorded ones where --compile asks for it and nothing stands against it."""

    def __init__(self, args: Base, device: torch.device):
        self.args, self.device, self.told = args, device, False

    def step(self, loss: Callable[..., Terms], optimizers: Sequence[torch.optim.Optimizer], repeatable: bool) -> Step | RecordedStep:
        """A training step. repeatable: the loss does nothing but compute, from its batch, the nets and constants."""
        step = Step(loss, optimizers, self.device, self.args.amp)
        if not self.args.compile or self.device.type != "cuda":
            return step
        obstacles = {
            "the processes exchange gradients": world_size() > 1,
            "this method does more in a step than compute": not repeatable,
            "a network from a file may do more in a step than compute": ".py:" in self.args.model,
            "an optimizer is not fused": not all(o.defaults.get("fused") for o in optimizers),
        }
        if why := next((words for words, there in obstacles.items() if there), ""):
            self.refuse(why)
            return step
        return RecordedStep(step, self.refuse)

    def refuse(self, why: str) -> None:
        """Says once that steps are not recorded."""
        if not self.told:
            self.told = True
            say(f"--compile: the training steps are not recorded as a CUDA graph ({why})")
