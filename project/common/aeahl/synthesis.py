"""Images made through a teacher that one may look into: what the data-free methods share.

A `Synthesiser` is one epoch of batches for the student when it is iterated; before every `kd_steps` of
them it makes images: a copy of the generator and a batch of latents are moved for `g_steps` steps against the method's loss, the best
batch goes into the `Pool`, and the copy's gradients move the generator itself (FastDFKD, Fang et al. 2022, 2112.15278).
"""

import copy
import math

import numpy as np
import torch
from torchvision.utils import save_image

from ..batches import Batches
from ..blackbox import Remembered
from ..pictures import save_grid
from ..utils import RunError, atomic, exact, say
from .inversion import Bank
from .nets import recalibrate
from .options import TERMS
from .pool import Pool, read_pool

REPTILE = 67  # the authors' factor on the generator's way, as a gradient
ADAPTING = ("fomaml", "reptile")  # a copy is moved, then the generator itself


class Synthesiser:
    """Iterate it for an epoch of the student: `ep_steps` batches (x, t) of views of images that it makes, and the teacher's logits.

    loss(x, y): the terms, by name, for images x (B, C, H, W) in [0, 1] and the wanted classes y (B,); their sum is made small.
    shares: {beginning of parameters' names: their share of the learning rates}; a share of 0 leaves them as they are.
    attack: sees each batch of the student last, `attack(x, t) -> (x, t, ...)`. taps and bank: what the loss knows of earlier syntheses.
    """

    def __init__(self, run, G, loss, taps, shares=None, attack=None, bank=None):
        self.run, self.args, self.loss, self.taps, self.attack, self.bank = run, run.args, loss, taps, attack, bank or Bank()
        a, shape = self.args, run.data.shape
        self.calls, self.curves, self.G, self.shares = 0, [], G, shares or {"": 1.0}
        self.adapts = a.meta in ADAPTING
        self.names = [name for name in TERMS if getattr(a, f"w_{name}")]
        for name, p in G.named_parameters():
            p.requires_grad_(self.share(name) > 0)
        self.moved = copy.deepcopy(G) if self.adapts else G
        self.main = self.adam(G, a.lr_g if a.meta == "none" else a.lr_g_meta or a.g_steps * a.lr_g)
        self.warmup, self.steps = (min(1, a.warmup), min(2, a.g_steps)) if a.dry_run else (a.warmup, a.g_steps)
        calls = self.warmup + (1 if a.dry_run else a.epochs) * -(-a.ep_steps // a.kd_steps)
        self.given = torch.from_numpy(read_pool(a.init_pool, shape)) if a.init_pool else torch.empty(0, *shape)
        room = (calls * a.batch_size + len(self.given)) * (a.images == "pool")
        self.pool = Pool(run.record.folder / "pool.npy", room, shape, run.device)
        views = run.data.views(a.augment)
        self.cached = Remembered(self.ask, room, views, run.data.classes, run.device) if a.cache else None
        run.teacher.afford(a.batch_size * (calls * a.g_steps + a.epochs * a.ep_steps))
        if self.adapts and self.main.param_groups[0]["lr"] > 0.03:
            say(f"the generator's learning rate from one synthesis to the next is {self.main.param_groups[0]['lr']:g}; --lr_g_meta sets it")

    def share(self, name):
        return next(v for part, v in self.shares.items() if name.startswith(part))

    def adam(self, net, lr, more=()):
        named = {s: [p for n, p in net.named_parameters() if self.share(n) == s] for s in self.shares.values() if s}
        return torch.optim.Adam([*({"params": ps, "lr": lr * s} for s, ps in named.items()), *more], betas=(0.5, 0.999), fused=True)

    def __len__(self):
        return self.args.ep_steps

    def __iter__(self):
        a = self.args
        if not self.calls and len(self.given):
            self.pool.add(self.given.to(self.run.device) / 255)
        while self.calls < self.warmup:
            self.synthesise()
        for step in range(a.ep_steps):
            if step % a.kd_steps == 0:
                self.synthesise()
                batches = iter(self.batches())
            x, t = next(batches)
            yield self.attack(x, t) if self.attack else (x, t)

    # ---- batches for the student

    def batches(self):
        """kd_steps batches (x, t)."""
        a, run = self.args, self.run
        if a.images == "fresh":
            return (self.fresh() for _ in range(a.kd_steps))
        rows = Batches(torch.arange(self.pool.n, device=run.device), size=a.batch_size, steps=a.kd_steps)
        return (self.views(i) for (i,) in rows)

    @torch.no_grad()
    def fresh(self):
        x = self.run.data.view(self.images(self.G, self.noise()), self.args.augment)
        return x, self.ask(x)

    def ask(self, x):
        return self.run.teacher.inside(x)[0].float()

    @torch.no_grad()
    def views(self, i):
        """A view of each of the pool's images i (B,), drawn, and the teacher's logits (B, K)."""
        data, augment = self.run.data, self.args.augment
        which = torch.randint(data.views(augment), (len(i),), device=i.device)
        x = data.view(self.pool.x[i], augment, which)
        if self.args.contrast:
            twice = torch.rand(len(x), 1, 1, 1, device=x.device) < self.args.contrast
            x = torch.where(twice, (x - data.mean) / data.std, x)
        return x, self.cached(i, which, x) if self.cached else self.ask(x)

    # ---- images

    def images(self, G, z):
        """G(z), (B, C, H, W) in [0, 1], float32 also where the rest is bfloat16, which has no 256 values near 1."""
        with exact(z):
            return G(z)

    def noise(self):
        return torch.randn(self.args.batch_size, self.args.latent, device=self.run.device)

    def synthesise(self):
        """One batch of images; the student and the teacher stay as they are."""
        a, run, student = self.args, self.run, self.run.student
        self.calls += 1
        student.eval().requires_grad_(False)
        y = torch.randint(run.data.classes, (a.batch_size,), device=run.device)
        z = self.noise().requires_grad_(a.lr_z > 0)
        optimizer, sums = self.begin(z), None
        best, kept, terms_of = torch.tensor(torch.inf, device=run.device), None, []
        for step in range(self.steps):
            self.step, x = step, self.images(self.moved, z)
            terms = self.loss(x, y)
            total = sum(terms.values())
            better = total.detach() < best
            best, kept = torch.where(better, total.detach(), best), x.detach() if kept is None else torch.where(better, x.detach(), kept)
            optimizer.zero_grad()
            total.backward()
            gradients = [p.grad for p in self.moved.parameters() if p.requires_grad]
            sums = [s + g for s, g in zip(sums, gradients, strict=True)] if sums else gradients
            optimizer.step()
            terms_of.append({k: v.detach() for k, v in terms.items()})
        self.end(sums)
        self.taps.remember()
        self.bank.remember()
        if a.images == "pool":
            self.pool.add(kept)
        student.train().requires_grad_(True)
        self.note(terms_of)

    def begin(self, z):
        """The optimizer of one synthesis, over the net that it moves and the latents."""
        a, latents = self.args, [{"params": [z], "lr": self.args.lr_z}] if z.requires_grad else []
        if a.meta == "none":
            return self.main
        if a.meta == "fresh":
            for m in self.moved.modules():
                getattr(m, "reset_parameters", lambda: None)()
        else:
            self.moved.load_state_dict(self.G.state_dict())
        return self.adam(self.moved, a.lr_g, latents)

    @torch.no_grad()
    def end(self, sums):
        """Moves the generator itself: by the sum of the copy's gradients (first-order MAML), or towards the copy (Reptile)."""
        if not self.adapts:
            return
        pairs = [(p, q) for p, q in zip(self.G.parameters(), self.moved.parameters(), strict=True) if p.requires_grad]
        for (p, q), g in zip(pairs, sums, strict=True):
            p.grad = g if self.args.meta == "fomaml" else REPTILE * (p - q)
        self.main.step()

    def note(self, terms_of):
        """Keeps the terms of each step of a synthesis, (g_steps, terms), nan where a term was not."""
        nan = torch.tensor(torch.nan, device=self.run.device)
        self.curves.append(torch.stack([torch.stack([terms.get(n, nan).float() for n in self.names]) for terms in terms_of]).cpu())

    def weights(self):
        """{term: its weight} of those that count in this synthesis; the adversarial one from the last of the warm-up on."""
        return {n: getattr(self.args, f"w_{n}") for n in self.names if n != "adv" or self.calls >= self.warmup}

    def log(self):
        """The last synthesis's terms at its first and its last step, and the pool's size."""
        pairs = {n: self.curves[-1][[0, -1], i].tolist() for i, n in enumerate(self.names)}
        if off := [f"{n} was {v[1]}" for n, v in pairs.items() if not math.isfinite(sum(v))]:
            raise RunError(f"the synthesis broke down, its term {off[0]}; a smaller --lr_g or --lr_g_meta may help")
        return {f"syn_{n}": v for n, v in pairs.items()} | {"pool": self.pool.n}

    # ---- what it leaves

    def save_curves(self, path):
        """A .npy file of all terms, with names: a structured array (syntheses, steps)."""
        values = torch.stack(self.curves).numpy()
        with atomic(path) as f:
            np.save(f, np.rec.fromarrays(np.moveaxis(values, 2, 0), names=",".join(self.names)).view(np.ndarray))

    def shown(self, n=100):
        """The latest n images (n, C, H, W) in [0, 1]."""
        with torch.no_grad():
            return self.pool.x[-n:].float() / 255 if self.pool.n else self.G(self.noise())[:n]

    def ready(self):
        """The generator with running statistics of its own images, so that it makes them in evaluation mode too."""
        return recalibrate(self.G, self.noise)

    def state_dict(self):
        kept = {
            "G": self.G.state_dict(),
            "main": self.main.state_dict(),
            "past": self.taps.past,
            "bank": self.bank.state_dict(),
            "calls": self.calls,
        }
        return kept | {"curves": torch.stack(self.curves), "pool": self.pool.state_dict()}

    def load_state_dict(self, state):
        device = self.run.device
        self.G.load_state_dict(state["G"])
        self.main.load_state_dict(state["main"])
        self.taps.past = [tuple(v.to(device) for v in pair) for pair in state["past"]]
        self.bank.load_state_dict(state["bank"])
        self.calls, self.curves = state["calls"], list(state["curves"])
        if self.args.images == "pool":
            self.pool.load_state_dict(state["pool"])


def show(run, syn, export=0):
    """Leaves in the logs the latest images as one picture, the synthesis's terms, and `export` images of the pool as PNG files."""
    save_grid(syn.shown(), run.record.logs / "synthetic.png", 10, 32)
    syn.save_curves(run.record.logs / "synthesis.npy")
    if export:
        folder = run.record.logs / "pool"
        folder.mkdir(exist_ok=True)
        for i, x in enumerate(syn.pool.x[:export]):
            save_image(x.float() / 255, folder / f"{i:06}.png")
