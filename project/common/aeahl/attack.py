"""Adversarial attack of AEAHL (AEA): the teacher misclassifies a few of the student's images, so that its answer contradicts their label.

A network learns to perturb images by at most eps, so that the teacher predicts the class that it considered least likely.
These are generative adversarial perturbations (Poursaeed et al. 2018, https://arxiv.org/abs/1712.02328).
The student sees a few attacked images, with the teacher's answer to the attacked image and the hard label of the original one.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cli import UsageError, allocating
from ..datasets import Data
from ..run import Run
from ..states import restore
from ..utils import holding, read_json
from .nets import Perturbation

LR = 2e-4  # learning rate of the attack network (Adam, beta1 0.5)
LOG_FLOOR = 1e-6  # added to the cross-entropy before the logarithm
MIN_ATTACKED, ATTACKED_PER_PENDING = 8, 4  # images attacked per batch: at least 8, and 4 for each contradiction still to be made


def perturb(net: Perturbation, data: Data, x: Tensor, eps: float, compat: bool = False) -> Tensor:
    """Returns normalised images x (B, C, H, W) attacked by `net`: each pixel changes by at most eps and stays in [0, 1].

    compat: as in the released code, which normalises the perturbation like an image. It is then never zero and not bounded by eps;
    each channel is clipped to its range in the batch.
    """
    d = net(x).float()  # (B, C, H, W) in (-1, 1)
    if compat:
        low, high = x.amin((0, 2, 3), keepdim=True), x.amax((0, 2, 3), keepdim=True)
        return (x + data.std * d + data.mean).clamp(low, high)
    return ((x * data.std + data.mean + eps * d).clamp(0, 1) - data.mean) / data.std


class Attack:
    """Attacks batches of the student: `attack(x, t)` returns images x (B, C, H, W), the teacher's logits t (B, K) and hard labels (B,).

    Options of the run that it uses. pa: fraction of images whose hard label the teacher's answer contradicts. swap: the more confident
    of an image and its attacked version counts as the natural image, if both have the same class. require_flip: only images whose class
    the attack changed are shown. aea_compat: as in the released code.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.args, self.compat = run, run.args, run.args.aea_compat
        self.swap = self.args.swap or self.compat
        with torch.random.fork_rng(devices=[]):  # the run draws the same random numbers with and without an attack
            torch.manual_seed(self.args.seed)
            with allocating("the attack network", "--gap_width"):
                self.net = Perturbation(run.data.shape[0], self.args.gap_width).to(run.device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(self.net.parameters(), LR, (0.5, 0.999), fused=True)
        self.pending, self.g = 0, torch.Generator().manual_seed(self.args.seed)  # pending: number of contradictions still to be made
        self.seen, self.counts = 0, torch.zeros(4, device=run.device)  # attacked, class changed, swapped, contradicting

    def perturb(self, x: Tensor) -> Tensor:
        """Returns the attacked images: see the function `perturb`."""
        return perturb(self.net, self.run.data, x, self.args.eps, self.compat)

    def learn(self, x: Tensor, t: Tensor) -> None:
        """Trains the attack network for one step towards the least likely class of the teacher's logits t (B, K).

        Uses the first --gap_images of the images x. Does nothing where gradients are disabled.
        """
        if not torch.is_grad_enabled():
            return
        x, t = (x, t) if self.compat else (x[: self.args.gap_images], t[: self.args.gap_images])
        self.net.train()
        wrong = F.cross_entropy(self.run.teacher.inside(self.perturb(x))[0].float(), t.argmin(1))
        self.optimizer.zero_grad()
        (wrong + LOG_FLOOR).log().backward()
        self.optimizer.step()

    @torch.no_grad()
    def __call__(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.net.eval()  # few rows make no batch-norm statistics
        b, y = len(x), t.argmax(1)
        self.seen += b
        self.pending = min(b, self.pending + int(torch.empty(b).uniform_(generator=self.g).lt(self.args.pa).sum()))
        n = b if self.swap else min(b, max(MIN_ATTACKED, ATTACKED_PER_PENDING * self.pending)) if self.pending else 0
        if not n:
            return x, t, y
        rows = torch.randperm(b, generator=self.g)[:n].to(x.device, non_blocking=True)
        natural, before = x[rows], t[rows]  # copies
        attacked = self.perturb(natural)
        if self.compat:
            attacked = self.run.data.view(attacked, self.args.augment)  # crops and normalises a second time
        after = self.run.teacher.inside(attacked)[0].float()
        changed = after.argmax(1) != y[rows]
        swapped = ~changed & (self.confidence(after) >= self.confidence(before)) if self.swap else torch.zeros_like(changed)
        pick = lambda where, a, b: torch.where(where.view(-1, *[1] * (a.dim() - 1)), a, b)  # noqa: E731
        first, second = pick(swapped, attacked, natural), pick(swapped, natural, attacked)
        t_first, t_second = pick(swapped, after, before), pick(swapped, before, after)
        if self.compat:  # the released code copies where it should exchange, and does not check that the class has changed
            second, t_second = attacked, after
            taken = torch.empty(n).uniform_(generator=self.g).lt(self.args.pa).to(x.device, non_blocking=True)
        else:
            ready = changed if self.args.require_flip else torch.ones_like(changed)
            taken = ready & (ready.cumsum(0) <= self.pending)
        x, t = x.clone(), t.clone()
        x[rows], t[rows] = pick(taken, second, first), pick(taken, t_second, t_first)
        if self.pending:
            self.pending -= min(self.pending, int(taken.sum()))
        wrong = t.argmax(1) != y
        self.counts += torch.stack([torch.full_like(self.counts[0], n), changed.sum(), swapped.sum(), wrong.sum()])
        return x, t, y

    @staticmethod
    def confidence(t: Tensor) -> Tensor:
        """Returns the largest class probability (B,) of logits t (B, K)."""
        return t.softmax(1).amax(1)

    def log(self) -> dict[str, float]:
        """Returns rates since the last call, and resets the counts.

        aea_changed, aea_swapped: fractions of the attacked images. aea_wrong: fraction of all images that contradict their label.
        """
        attacked, changed, swapped, wrong = self.counts.tolist()
        rates = {
            "aea_changed": changed / max(1, attacked),
            "aea_swapped": swapped / max(1, attacked),
            "aea_wrong": wrong / max(1, self.seen),
        }
        self.seen = 0
        self.counts.zero_()
        return rates

    def state_dict(self) -> dict:
        return {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict(), "owed": self.pending, "g": self.g.get_state()}

    def load_state_dict(self, state: dict) -> None:
        restore(self.net, state["net"], "the attack")
        restore(self.optimizer, state["optimizer"])
        self.pending = state["owed"]
        self.g.set_state(state["g"])


def load_attack(run: Run, folder: str | Path) -> Callable[[Tensor], Tensor]:
    """Returns the attack of an earlier run: a function of normalised images (B, C, H, W) that returns attacked ones.

    folder: checkpoint folder of a finished run of AEAHL.py --hard_loss. Raises UsageError if it has no attack network, or one for
    images of another shape.
    """
    path, result = Path(folder) / "attack.pt", read_json(Path(folder) / "result.json", options=dict)
    if not path.exists() or not result:
        raise UsageError(
            f"no attack.pt with a result.json in {folder}; use the checkpoint folder of a finished run of AEAHL.py --hard_loss"
        )
    options = holding(result["options"], Path(folder) / "result.json", gap_width=int, eps=float, aea_compat=bool)
    net = Perturbation(run.data.shape[0], options["gap_width"]).to(run.device, memory_format=torch.channels_last)
    run.load_weights(net, path, same=("shape",), kind="an attack network")
    return lambda x: perturb(net.eval(), run.data, x, options["eps"], options["aea_compat"])
