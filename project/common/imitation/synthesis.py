"""Synthesis of images against the student alone, without a query, and the pool that they go into."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..batches import Batches
from ..cli import RunError, allocating
from ..gan import Generator
from ..options import opt
from ..pool import Pool
from ..run import Run
from ..states import restore
from ..utils import exact
from .options import GeneratorOptions


@dataclass
class SynthesisOptions(GeneratorOptions):
    """Options of a generator that is trained against the student, and of the pool."""

    GROUP: ClassVar = "method"
    NEEDS: ClassVar = "hard"

    response: str = "hard"
    g_steps: int = opt(30, "number of training steps of the generator per synthesis", ge=1)
    lr_g: float = opt(1e-3, "learning rate of the generator (Adam)", gt=0)
    lr_z: float = opt(0.0, "learning rate of the latents (Adam); 0: fixed latents", ge=0)
    steps: int = opt(0, "number of training steps of the student per epoch; 0: one pass over the pool", ge=0)


class AnsweredPool(Pool):
    """Pool with the teacher's answers (n, K). ask(x): uint8 images (b, C, H, W) -> answers (b, K), called once for each image."""

    def __init__(self, *args, ask: Callable[[Tensor], Tensor], classes: int) -> None:
        super().__init__(*args)
        self.ask, self.answers = ask, torch.empty(0, classes, device=self.storage.device)

    def add(self, x: Tensor) -> None:
        super().add(x)
        self.answers = torch.cat([self.answers, self.ask(self.x[-len(x) :])])

    def state_dict(self) -> dict:
        return super().state_dict() | {"answers": self.answers}

    def load_state_dict(self, state: dict) -> None:
        answers, shape = state["answers"], (state["n"], self.answers.shape[1])
        if answers.shape != shape or answers.dtype != self.answers.dtype or not answers.isfinite().all():
            raise ValueError(f"the pool's answers are {answers.dtype} {tuple(answers.shape)}, not finite numbers {shape}")
        super().load_state_dict(state)
        self.answers = answers.to(self.storage.device)


class Synthesis:
    """One epoch of the student per iteration: a batch of images is synthesised and added to the pool, then `batch(i)` for rows of the pool.

    loss(s, y): the terms by name, for the student's logits s (B, K) on views of the images and target classes y (B,); their sum is
    minimised. targets(n): target classes (n,). batch(i): what the student learns from the pool's images i (B,). anew: draw the generator's
    weights anew for each synthesis. ask: with it the pool is an AnsweredPool.
    The teacher is not asked during a synthesis. Of its steps, the batch with the lowest loss is kept.
    """

    def __init__(
        self,
        run: Run,
        loss: Callable[[Tensor, Tensor], dict[str, Tensor]],
        targets: Callable[[int], Tensor],
        batch: Callable[[Tensor], tuple[Tensor, ...]],
        anew: bool = False,
        ask: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.run, self.args, self.loss, self.targets, self.batch, self.anew = run, run.args, loss, targets, batch, anew
        a, shape = run.args, run.data.shape
        with allocating("the generator", "--ngf", "--latent", "--img_size"):
            self.G = Generator(a.latent, shape, a.ngf, pixels=True).to(run.device, memory_format=torch.channels_last)
        capacity = a.batch_size * (1 if a.dry_run else a.epochs)
        place = run.record.folder / "pool.npy", capacity, shape, run.device
        with allocating(f"the pool of {capacity:,} synthetic images", "--epochs", "--batch_size", "--img_size"):
            self.pool = AnsweredPool(*place, ask=ask, classes=run.data.classes) if ask else Pool(*place)

    def __len__(self) -> int:
        """Number of batches of the next epoch."""
        return self.args.steps or self.run.epoch  # an epoch adds a batch to the pool

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        self.synthesise()
        rows = Batches(torch.arange(self.pool.n, device=self.run.device), size=self.args.batch_size, steps=self.args.steps or None)
        return (self.batch(i) for (i,) in rows)

    def synthesise(self) -> None:
        """Trains the generator against the student, which does not change, and adds a batch of images to the pool."""
        a, run, student, G = self.args, self.run, self.run.student, self.G
        run.record.claim()  # the pool is a file
        if self.anew:
            for m in G.modules():
                getattr(m, "reset_parameters", lambda: None)()
        z = torch.randn(a.batch_size, a.latent, device=run.device).requires_grad_(a.lr_z > 0)
        latents = [{"params": [z], "lr": a.lr_z}] if a.lr_z else []
        optimizer = torch.optim.Adam([{"params": [*G.parameters()]}, *latents], a.lr_g, (0.5, 0.999), fused=True)
        y, best, kept, history = self.targets(a.batch_size), torch.full((), torch.inf, device=run.device), None, []
        student.eval().requires_grad_(False)
        for _ in range(min(2, a.g_steps) if a.dry_run else a.g_steps):
            with exact(z):
                x = G(z)  # (B, C, H, W) in [0, 1]
            terms = self.loss(student(run.data.view(x, a.augment)), y)
            total = sum(terms.values())
            kept = x.detach() if kept is None else torch.where(total.detach() < best, x.detach(), kept)
            best = torch.minimum(best, total.detach())
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            history.append({k: v.detach() for k, v in terms.items()})
        student.train().requires_grad_(True)
        self.names, self.ends = [*history[0]], torch.stack([v.float() for i in (0, -1) for v in history[i].values()])
        self.pool.add(kept)

    def log(self) -> dict[str, list[float] | int]:
        """Returns the terms of the last synthesis at its first and last step, and the number of images in the pool.

        Raises RunError if a term is not finite.
        """
        values, n = self.ends.tolist(), len(self.names)
        pairs = {k: [values[i], values[n + i]] for i, k in enumerate(self.names)}
        if off := [f"{k} is {v[1]}" for k, v in pairs.items() if not math.isfinite(sum(v))]:
            raise RunError(f"the synthesis diverged: its term {off[0]} in the last step; try a smaller --lr_g")
        return {f"syn_{k}": v for k, v in pairs.items()} | {"pool": self.pool.n}

    def latest_images(self, n: int = 100) -> Tensor:
        """Returns the latest n images of the pool (n, C, H, W) in [0, 1]."""
        return self.pool.x[-n:].float() / 255

    def state_dict(self) -> dict:
        return {"G": self.G.state_dict(), "pool": self.pool.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        restore(self.G, state["G"], "the generator")
        self.pool.load_state_dict(state["pool"])
