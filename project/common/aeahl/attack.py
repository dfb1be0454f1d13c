"""AEA: images on which the teacher is made to err on purpose, so that now and then a hard label contradicts its soft answer.

A net learns to perturb images, by eps at most, until the teacher takes them for the class it held least likely (generative adversarial
perturbations, Poursaeed et al. 2018, 1712.02328). A student is shown a few, with the teacher's wrong answer and the label from before.
"""

from pathlib import Path

import torch
import torch.nn.functional as F

from ..utils import UsageError, read_json
from .nets import Perturbation

LR = 2e-4  # Adam, beta1 0.5
FLOOR = 1e-6  # of the cross-entropy whose logarithm is made small
LEAST, MORE = 8, 4  # images attacked where a contradiction is owed: at least so many, and so many for each


def perturb(net, data, x, eps, compat=False):
    """x (B, C, H, W), normalised, attacked by `net`: pixels moved by eps at most, and in [0, 1]."""
    d = net(x).float()  # (B, C, H, W) in (-1, 1)
    if compat:  # a difference normalised as if it were an image: never zero; then each channel within the batch's own range
        low, high = x.amin((0, 2, 3), keepdim=True), x.amax((0, 2, 3), keepdim=True)
        return (x + data.std * d + data.mean).clamp(low, high)
    return ((x * data.std + data.mean + eps * d).clamp(0, 1) - data.mean) / data.std


class Attack:
    """Call it with a batch of the student's, `attack(x, t) -> (x, t, y)`: images, the teacher's logits, hard labels (B,).

    Of the run's options: pa, the share of images that shall contradict their label; swap: the more certain of an image and its attacked
    version, where both are of one class, counts as the natural one; require_flip: only images whose class the attack changed are shown;
    aea_compat: what the released code did.
    """

    def __init__(self, run):
        self.run, self.args, self.compat = run, run.args, run.args.aea_compat
        self.swap = self.args.swap or self.compat
        with torch.random.fork_rng(devices=[]):  # the run's own random numbers are as without it
            torch.manual_seed(self.args.seed)
            self.net = Perturbation(run.data.shape[0], self.args.gap_width)
        self.net.to(run.device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(self.net.parameters(), LR, (0.5, 0.999), fused=True)
        self.owed, self.g = 0, torch.Generator().manual_seed(self.args.seed)
        self.seen, self.counts = 0, torch.zeros(4, device=run.device)  # attacked, class changed, swapped, contradicting

    def perturb(self, x):
        return perturb(self.net, self.run.data, x, self.args.eps, self.compat)

    def learn(self, x, t):
        """One step towards the class that the teacher's logits t (B, K) hold least likely, on the first of the images x."""
        if not torch.is_grad_enabled():
            return
        x, t = (x, t) if self.compat else (x[: self.args.gap_images], t[: self.args.gap_images])
        self.net.train()
        wrong = F.cross_entropy(self.run.teacher.inside(self.perturb(x))[0].float(), t.argmin(1))
        self.optimizer.zero_grad()
        (wrong + FLOOR).log().backward()
        self.optimizer.step()

    @torch.no_grad()
    def __call__(self, x, t):
        self.net.eval()  # few rows make no statistics
        b, y = len(x), t.argmax(1)
        self.seen += b
        self.owed = min(b, self.owed + int(torch.empty(b).uniform_(generator=self.g).lt(self.args.pa).sum()))
        n = b if self.swap else min(b, max(LEAST, MORE * self.owed)) if self.owed else 0
        if not n:
            return x, t, y
        rows = torch.randperm(b, generator=self.g)[:n].to(x.device)
        natural, before = x[rows], t[rows]  # copies
        attacked = self.perturb(natural)
        if self.compat:
            attacked = self.run.data.view(attacked, self.args.augment)  # cropped again, and normalised twice
        after = self.run.teacher.inside(attacked)[0].float()
        changed = after.argmax(1) != y[rows]
        more = ~changed & (self.sure(after) >= self.sure(before)) if self.swap else torch.zeros_like(changed)
        pick = lambda where, a, b: torch.where(where.view(-1, *[1] * (a.dim() - 1)), a, b)  # noqa: E731
        first, second = pick(more, attacked, natural), pick(more, natural, attacked)
        t_first, t_second = pick(more, after, before), pick(more, before, after)
        if self.compat:  # in place on shared memory: copied, not exchanged; then shown whether or not the class has changed
            second, t_second = attacked, after
            taken = torch.empty(n).uniform_(generator=self.g).lt(self.args.pa).to(x.device)
        else:
            ready = changed if self.args.require_flip else torch.ones_like(changed)
            taken = ready & (ready.cumsum(0) <= self.owed)
        x, t = x.clone(), t.clone()
        x[rows], t[rows] = pick(taken, second, first), pick(taken, t_second, t_first)
        if self.owed:
            self.owed -= min(self.owed, int(taken.sum()))
        wrong = t.argmax(1) != y
        self.counts += torch.stack([torch.full_like(self.counts[0], n), changed.sum(), more.sum(), wrong.sum()])
        return x, t, y

    @staticmethod
    def sure(t):
        return t.softmax(1).amax(1)

    def log(self):
        """Since the last call: the shares changed and swapped of the images attacked, and those of all that contradict their label."""
        attacked, changed, swapped, wrong = self.counts.tolist()
        rates = {
            "aea_changed": changed / max(1, attacked),
            "aea_swapped": swapped / max(1, attacked),
            "aea_wrong": wrong / max(1, self.seen),
        }
        self.seen = 0
        self.counts.zero_()
        return rates

    def state_dict(self):
        return {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict(), "owed": self.owed, "g": self.g.get_state()}

    def load_state_dict(self, state):
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.owed = state["owed"]
        self.g.set_state(state["g"])


def perturber(run, folder):
    """The attack that the AEAHL.py --hard_loss run in `folder` learned: images (B, C, H, W), normalised -> attacked. UsageError where
    it has none, or of another size."""
    path, result = Path(folder) / "attack.pt", read_json(Path(folder) / "result.json", "options")
    if not path.exists() or not result:
        raise UsageError(
            f"no attack.pt with a result.json in {folder}; give the checkpoints' folder of a finished AEAHL.py --hard_loss run"
        )
    then = result["options"]
    net = Perturbation(run.data.shape[0], then["gap_width"]).to(run.device, memory_format=torch.channels_last)
    run.load_weights(net, path, same=("shape",), kind="an attack net")
    return lambda x: perturb(net.eval(), run.data, x, then["eps"], then["aea_compat"])
