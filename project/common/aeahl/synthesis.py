"""Synthesis of images with a white-box teacher: what the data-free methods share.

Iterating a `Synthesiser` gives one epoch of batches for the student. It synthesises images before every `kd_steps` of these batches.
A synthesis trains a copy of the generator and a batch of latents for `g_steps` steps on the method's loss. The best batch of images
goes into the `Pool`. The copy's gradients then update the generator itself (FastDFKD, Fang et al. 2022, https://arxiv.org/abs/2112.15278).
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
from torch import Tensor
from torchvision.utils import save_image

from ..batches import Batches
from ..blackbox import Remembered
from ..cli import RunError, allocating, say
from ..gan import Generator, draw_anew
from ..pictures import save_grid
from ..pool import Pool, read_pool
from ..run import Run
from ..states import restore
from ..utils import atomic, exact
from .attack import Attack
from .inversion import BatchNormHooks, Contrast
from .nets import Pixels, recalibrate
from .options import TERMS, SynthesisOptions

REPTILE = 67  # factor of Reptile's update, as in the released code of FastDFKD
ADAPTING = ("fomaml", "reptile")  # values of --meta that train a copy, and update the generator afterwards


def max_queries(args: SynthesisOptions, calls: int) -> int:
    """Returns the largest number of queries of an AEAHL.py run with `calls` syntheses; an attack may need fewer."""
    a, views = args, 1 + (args.w_cr > 0)  # the contrastive term needs a second view of each image
    queries = a.batch_size * (calls * a.g_steps * views + a.epochs * a.ep_steps)
    if a.hard_loss and a.aea:
        learning = a.g_steps * a.batch_size if a.aea_compat else min(a.gap_steps, a.g_steps) * min(a.gap_images, a.batch_size)
        queries += calls * learning + a.epochs * a.ep_steps * a.batch_size
    if a.generator == "rg" and a.keep in ("activation", "loss"):
        queries += 2 * a.batch_size * (1 if a.keep == "activation" else 1 + views)
    return queries


class Synthesiser:
    """Gives one epoch of the student per iteration: `ep_steps` batches (x, t) of augmented synthetic images and the teacher's logits.

    G: the generator, latents (B, latent) -> images (B, C, H, W) in [0, 1].
    loss(x, y): the terms by name, for images x (B, C, H, W) in [0, 1] and target classes y (B,); a synthesis minimises their sum.
    taps, contrast: parts of the loss that have a state. lr_factors: {beginning of parameter names: factor of their learning rates};
    parameters with factor 0 are not trained. attack: processes each batch of the student last, `attack(x, t) -> (x, t, y)`.
    """

    def __init__(
        self,
        run: Run,
        G: nn.Module,
        loss: Callable[[Tensor, Tensor], dict[str, Tensor]],
        taps: BatchNormHooks,
        lr_factors: dict[str, float] | None = None,
        attack: Attack | None = None,
        contrast: Contrast | None = None,
    ) -> None:
        self.run, self.args, self.loss, self.taps, self.attack, self.contrast = run, run.args, loss, taps, attack, contrast
        a, shape = self.args, run.data.shape
        self.calls, self.curves, self.G, self.lr_factors = 0, [], G, lr_factors or {"": 1.0}
        self.adapts = a.meta in ADAPTING
        self.names = [name for name in TERMS if getattr(a, f"w_{name}")]
        for name, p in G.named_parameters():
            p.requires_grad_(self.lr_factor(name) > 0)
        with allocating("a copy of the generator", "--ngf", "--latent"):
            self.inner = copy.deepcopy(G) if self.adapts else G  # the network that a synthesis trains
        self.outer = self.make_adam(G, a.lr_g if a.meta == "none" else a.lr_g_meta or a.g_steps * a.lr_g)
        self.warmup, self.steps = (min(1, a.warmup), min(2, a.g_steps)) if a.dry_run else (a.warmup, a.g_steps)
        calls = self.warmup + (1 if a.dry_run else a.epochs) * -(-a.ep_steps // a.kd_steps)
        self.initial = torch.from_numpy(read_pool(a.init_pool, shape)) if a.init_pool else torch.empty(0, *shape)
        capacity = (calls * a.batch_size + len(self.initial)) * (a.images == "pool")
        views, syntheses = run.data.views(a.augment), ("--epochs", "--ep_steps", "--warmup", "--batch_size")
        with allocating(f"the pool of {capacity:,} synthetic images", *syntheses, "--img_size"):
            self.pool = Pool(run.record.folder / "pool.npy", capacity, shape, run.device)
        with allocating(f"the teacher's answers to {views} views of {capacity:,} images (--cache)", *syntheses):
            self.cached = Remembered(self.teacher_logits, capacity, views, run.data.classes, run.device) if a.cache else None
        run.teacher.plan(max_queries(a, calls))
        if self.adapts and (lr := self.outer.param_groups[0]["lr"]) > 0.03:
            say(f"the learning rate of the generator's update after a synthesis is high ({lr:g}); --lr_g_meta sets it")

    def lr_factor(self, name: str) -> float:
        """Returns the learning-rate factor of the parameter `name`."""
        return next(v for part, v in self.lr_factors.items() if name.startswith(part))

    def make_adam(self, net: nn.Module, lr: float, more: Sequence[dict] = ()) -> torch.optim.Adam:
        """Returns Adam over the parameters of `net`, with `lr` times their factors, and over the parameter groups `more`."""
        groups = {f: [p for n, p in net.named_parameters() if self.lr_factor(n) == f] for f in self.lr_factors.values() if f}
        parts = [*({"params": ps, "lr": lr * f} for f, ps in groups.items()), *more]
        return torch.optim.Adam(parts, betas=(0.5, self.args.beta2), fused=True)

    def __len__(self) -> int:
        return self.args.ep_steps

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        a = self.args
        if not self.calls and len(self.initial):
            self.pool.add(self.initial.to(self.run.device) / 255)
        while self.calls < self.warmup:
            self.synthesise()
        for step in range(a.ep_steps):
            if step % a.kd_steps == 0:
                self.synthesise()
                batches = iter(self.batches())
            x, t = next(batches)
            yield self.attack(x, t) if self.attack else (x, t)

    # ---- batches for the student

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Returns an iterator over kd_steps batches of views x (B, C, H, W) and the teacher's logits t (B, K)."""
        a, run = self.args, self.run
        if a.images == "fresh":
            return (self.fresh() for _ in range(a.kd_steps))
        rows = Batches(torch.arange(self.pool.n, device=run.device), size=a.batch_size, steps=a.kd_steps)
        return (self.views(i) for (i,) in rows)

    @torch.no_grad()
    def fresh(self) -> tuple[Tensor, Tensor]:
        """Returns a batch of new images (B, C, H, W), and the teacher's logits (B, K)."""
        x = self.run.data.view(self.images(self.G, self.noise()), self.args.augment)
        return x, self.teacher_logits(x)

    def teacher_logits(self, x: Tensor) -> Tensor:
        """Returns the teacher's logits (B, K), float32, of normalised images x (B, C, H, W)."""
        return self.run.teacher.inside(x)[0].float()

    @torch.no_grad()
    def views(self, i: Tensor) -> tuple[Tensor, Tensor]:
        """Returns a random view of each of the pool's images i (B,), and the teacher's logits (B, K)."""
        data, augment = self.run.data, self.args.augment
        which = torch.randint(data.views(augment), (len(i),), device=i.device)
        x = data.view(self.pool.x[i], augment, which)
        if self.args.contrast:
            twice = torch.rand(len(x), 1, 1, 1, device=x.device) < self.args.contrast
            x = torch.where(twice, (x - data.mean) / data.std, x)
        return x, self.cached(i, which, x) if self.cached else self.teacher_logits(x)

    # ---- images

    def images(self, G: nn.Module, z: Tensor) -> Tensor:
        """Returns G(z), images (B, C, H, W) in [0, 1], always in float32: bfloat16 does not resolve 256 values near 1."""
        with exact(z):
            return G(z)

    def noise(self) -> Tensor:
        """Returns a batch of latents (B, latent) from N(0, I)."""
        return torch.randn(self.args.batch_size, self.args.latent, device=self.run.device)

    def synthesise(self) -> None:
        """Synthesises one batch of images and updates the generator. The student and the teacher do not change."""
        a, run, student = self.args, self.run, self.run.student
        self.calls += 1
        student.eval().requires_grad_(False)
        if self.calls == a.reset_at:
            self.reset_first_layers()
        y = torch.randint(run.data.classes, (a.batch_size,), device=run.device)
        z = self.noise().requires_grad_(a.lr_z > 0)
        optimizer, sums = self.start_inner(z), None
        best, kept, history = torch.full((), torch.inf, device=run.device), None, []
        for step in range(self.steps):
            self.step, x = step, self.images(self.inner, z)
            terms = self.loss(x, y)
            total = sum(terms.values())
            better = total.detach() < best
            best, kept = torch.where(better, total.detach(), best), x.detach() if kept is None else torch.where(better, x.detach(), kept)
            optimizer.zero_grad()
            total.backward()
            gradients = [p.grad for p in self.inner.parameters() if p.requires_grad]
            sums = [s + g for s, g in zip(sums, gradients, strict=True)] if sums else gradients
            optimizer.step()
            if self.contrast:
                self.contrast.step(better)
            history.append({k: v.detach() for k, v in terms.items()})
        self.update_outer(sums)
        self.taps.remember()
        if self.contrast:
            self.contrast.remember()
        if a.images == "pool":
            self.pool.add(kept)
        student.train().requires_grad_(True)
        self.keep_curves(history)

    def start_inner(self, z: Tensor) -> torch.optim.Optimizer:
        """Returns the optimizer of one synthesis, over the network that it trains and the latents z (if these are trained)."""
        a, latents = self.args, [{"params": [z], "lr": self.args.lr_z}] if z.requires_grad else []
        if a.meta == "none":
            return self.outer
        if a.meta == "fresh":
            if isinstance(self.inner, Pixels):
                self.inner.reset_parameters()
            else:
                draw_anew(self.inner)
        else:
            self.inner.load_state_dict(self.G.state_dict())
        return self.make_adam(self.inner, a.lr_g, latents)

    @torch.no_grad()
    def reset_first_layers(self) -> None:
        """Draws the linear layer of each generator and the batch norm behind it anew, from N(0, 0.02^2) with biases 0 (FastDFKD)."""
        for m in self.G.modules():
            for layer in (m.linear, m.bn) if isinstance(m, Generator) else ():
                nn.init.normal_(layer.weight, 0, 0.02)
                nn.init.zeros_(layer.bias)

    @torch.no_grad()
    def update_outer(self, sums: list[Tensor]) -> None:
        """Updates the generator with the sum of the copy's gradients (first-order MAML), or towards the copy (Reptile)."""
        if not self.adapts:
            return
        pairs = [(p, q) for p, q in zip(self.G.parameters(), self.inner.parameters(), strict=True) if p.requires_grad]
        for (p, q), g in zip(pairs, sums, strict=True):
            p.grad = g if self.args.meta == "fomaml" else REPTILE * (p - q)
        self.outer.step()

    def keep_curves(self, history: list[dict[str, Tensor]]) -> None:
        """Stores the terms of each step of a synthesis as (g_steps, terms), nan for a term that was not computed."""
        nan = torch.full((), torch.nan, device=self.run.device)
        self.curves.append(torch.stack([torch.stack([terms.get(n, nan).float() for n in self.names]) for terms in history]).cpu())

    def weights(self) -> dict[str, float]:
        """Returns {term: weight} for this synthesis. The adversarial term starts with the last synthesis of the warm-up."""
        return {n: getattr(self.args, f"w_{n}") for n in self.names if n != "adv" or self.calls >= self.warmup}

    def log(self) -> dict[str, list[float] | int]:
        """Returns the terms of the last synthesis at its first and last step, and the number of images in the pool.

        Raises RunError if a term is not finite.
        """
        pairs = {n: self.curves[-1][[0, -1], i].tolist() for i, n in enumerate(self.names)}
        if off := [f"{n} is {v[1]}" for n, v in pairs.items() if not math.isfinite(sum(v))]:
            raise RunError(f"the synthesis diverged: its term {off[0]} in the last step; try a smaller --lr_g or --lr_g_meta")
        return {f"syn_{n}": v for n, v in pairs.items()} | {"pool": self.pool.n}

    # ---- results

    def save_curves(self, path: str | Path) -> None:
        """Saves the terms of all syntheses as a .npy file, a structured array (syntheses, steps) with the terms' names."""
        values = torch.stack(self.curves).numpy()
        with atomic(path) as f:
            np.save(f, np.rec.fromarrays(np.moveaxis(values, 2, 0), names=",".join(self.names)).view(np.ndarray))

    def latest_images(self, n: int = 100) -> Tensor:
        """Returns the latest n images (n, C, H, W) in [0, 1]."""
        with torch.no_grad():
            return self.pool.x[-n:].float() / 255 if self.pool.n else self.G(self.noise())[:n]

    def recalibrated(self) -> nn.Module:
        """Returns the generator in evaluation mode, with the batch-norm statistics of its own images."""
        return recalibrate(self.G, self.noise)

    def state_dict(self) -> dict:
        kept = {
            "G": self.G.state_dict(),
            "main": self.outer.state_dict(),
            "past": self.taps.past,
            "bank": self.contrast.state_dict() if self.contrast else {},
            "calls": self.calls,
        }
        return kept | {"curves": torch.stack(self.curves), "pool": self.pool.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        device = self.run.device
        restore(self.G, state["G"], "the generator")
        restore(self.outer, state["main"])
        self.taps.past = [tuple(v.to(device) for v in pair) for pair in state["past"]]
        if self.contrast:
            self.contrast.load_state_dict(state["bank"])
        self.calls, self.curves = state["calls"], list(state["curves"])
        if self.args.images == "pool":
            self.pool.load_state_dict(state["pool"])


def save_pictures(run: Run, syn: Synthesiser, export: int = 0) -> None:
    """Saves into the logs a picture of the latest images, the terms of all syntheses, and `export` images of the pool as PNG files."""
    save_grid(syn.latest_images(), run.record.logs / "synthetic.png", 10, 32)
    syn.save_curves(run.record.logs / "synthesis.npy")
    if export:
        folder = run.record.logs / "pool"
        folder.mkdir(exist_ok=True)
        for i, x in enumerate(syn.pool.x[:export]):
            save_image(x.float() / 255, folder / f"{i:06}.png")
