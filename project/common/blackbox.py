"""The teacher as its API shows it: it answers without gradient, counts queries, and stops before the first query over the budget."""

import math
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .cli import RunError, UsageError
from .utils import check_regular

RESPONSES = ("hard", "topk", "soft", "logits", "inside")  # each gives all that the ones before it give
KINDS = ("private", "mixed", "public", "synthetic")  # images asked about; mixed: of private images, or points between two


def rank(response: str) -> int:
    """Place in RESPONSES of `logits | soft | topk:k | hard | inside`; UsageError for anything else."""
    kind, _, k = response.partition(":")
    if kind not in RESPONSES or (kind == "topk") != bool(k) or (k and not re.fullmatch("[1-9][0-9]{0,8}", k)):
        raise UsageError(f"--response {response}: there are logits, soft, topk:k (such as topk:5), hard, and inside (a white box)")
    return RESPONSES.index(kind)


class Ledger:
    """Counts of what was sent, in a file. A count is in the file before the images are sent, and never goes back.

    The file is mapped into memory, so that a count costs nothing and survives the end of the process, whatever ends it. It holds the counts
    twice, each copy with a checksum: a kill while one is written, or a damage of one, leaves the other.
    """

    NAMES = ("queries", *KINDS, "bytes")

    def __init__(self, path: Path, fresh: bool = False, before: Callable[[], None] | None = None):
        """Goes on with the counts of the file `path`, from 0 where there is none or `fresh`. before: called before the file is made.

        UsageError where it is damaged, or another kind of file.
        """
        self.path, self.before, self.copies, self.now = path, before, None, np.zeros(len(self.NAMES), np.int64)
        check_regular(path)
        if not fresh and path.exists():
            self.open("r+")

    def open(self, mode: str) -> None:
        """Maps the file into memory, and reads the newer copy."""
        shape = (2, len(self.NAMES) + 1)
        if mode == "r+" and self.path.stat().st_size != 8 * math.prod(shape):
            size = f"{self.path.stat().st_size} bytes, not {8 * math.prod(shape)}"
            raise UsageError(f"{self.path} has {size}: it does not hold counts of queries; move it away and run again")
        self.copies = np.memmap(self.path, np.int64, mode, shape=shape)
        whole = [copy[:-1] for copy in self.copies if copy[-1] == self.checksum(copy[:-1])]
        if not whole and self.copies.any():
            raise UsageError(f"{self.path} is damaged: its counts of queries are lost; move it away, and run again with --overwrite")
        self.now = max(whole, key=lambda counts: counts[0], default=self.now).copy()

    @staticmethod
    def checksum(counts: np.ndarray) -> int:
        """Of one copy."""
        return zlib.crc32(counts.tobytes(), 1)

    def add(self, counts: dict[str, int]) -> None:
        """Adds counts by name."""
        if self.copies is None:
            if self.before:
                self.before()
            self.open("w+")
        for name, n in counts.items():
            self.now[self.NAMES.index(name)] += n
        for i in range(2):
            self.copies[i] = *self.now, self.checksum(self.now)

    def counts(self) -> dict[str, int]:
        """All counts by name."""
        return dict(zip(self.NAMES, self.now.tolist(), strict=True))


class Renormalised(nn.Module):
    """A net that is given images of another normalisation than its own.

    here, its: (mean, std) of the images that come and of those that the net was trained on, (1, C, 1, 1) each, for pixels in [0, 1].
    """

    def __init__(self, net: nn.Module, here: tuple[Tensor, Tensor], its: tuple[Tensor, Tensor]):
        super().__init__()
        self.net = net
        self.register_buffer("scale", here[1] / its[1])
        self.register_buffer("shift", (here[0] - its[0]) / its[1])

    def forward(self, x: Tensor, feature: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        return self.net(torch.addcmul(self.shift, x, self.scale), feature=feature)


class BlackBox:
    """`teacher(x)`: images (N, C, H, W) -> answers (N, K) for any N, in evaluation mode, without gradient; N queries are counted.

    What comes back are logits as far as the response lets one know them:
      logits   the teacher's own; so does `inside`, which alone allows `teacher.inside(x)`
      soft     probabilities are sent; their logarithm, centred: the logits up to a constant of each row
      topk:k   the k largest probabilities are sent; the missing mass is spread evenly over the other classes, then as soft
      hard     a class is sent; its one-hot vector

    budget: queries it may answer, None without limit; `earlier`: those that others have spent of it. chunk: images a forward pass, by
    default as many as make 4 million pixel values on a GPU, half a million on the CPU (its caches), 256 to 8,192. identity: letters that
    tell it from other teachers.
    counts: queries, of them those about images of each kind of KINDS, bytes (float32 images sent, the paper's measure). ledger: a Ledger,
    where what is sent is to be counted whatever becomes of the process. free_audit: whether `audit` costs nothing. stop: called before a
    query, to leave in the midst of a purchase.
    """

    def __init__(self, net: nn.Module, response: str = "soft", budget: int | None = None, chunk: int | None = None, identity: str = ""):
        self.net, self.response, self.budget, self.chunk = net.eval().requires_grad_(False), response, budget, chunk
        self.rank, self.earlier, self.identity = rank(response), 0, identity
        self.counts, self.ledger, self.stop, self.finite, self.free_audit = self.zero(), None, None, True, True

    @staticmethod
    def zero() -> dict[str, int]:
        """Counts of nothing."""
        return dict.fromkeys(("queries", *KINDS, "bytes"), 0)

    @property
    def hard(self) -> bool:
        """Whether it answers with a class only."""
        return self.response == "hard"

    def inside(self, x: Tensor, kind: str = "synthetic") -> tuple[Tensor, Tensor]:
        """Logits (N, K) and penultimate features (N, F) with gradient, for a method that looks inside; counted, but nothing is sent.

        UsageError where the teacher is a black box.
        """
        self.require_inside()
        self.afford(len(x))
        self.count(x, kind, sent=0)
        logits, feature = self.net(x, feature=True)
        self.note_finite(logits)
        return logits, feature

    def norms(self) -> list[nn.BatchNorm2d]:
        """Its batch-norm layers, which know mean and variance of what they were trained on; UsageError where it has none."""
        self.require_inside()
        found = [m for m in self.net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        if not found:
            hint = "take one that has (VGG11_BN for VGG11), or go without: --w_bn 0"
            raise UsageError(f"the teacher has no batch norm, whose statistics could be matched; {hint}")
        return found

    def require_inside(self) -> None:
        """UsageError where the teacher is a black box."""
        if self.response != "inside":
            hint = "of a teacher of your own: --response inside"
            raise UsageError(f"this method looks inside the teacher, and --response {self.response} is a black box; {hint}")

    def __call__(self, x: Tensor, kind: str = "private") -> Tensor:
        if self.stop:
            self.stop()
        self.afford(len(x))
        self.count(x, kind)
        return torch.cat([self.recover(self.api(c)) for c in self.chunks(x)])  # (N, K)

    def chunks(self, x: Tensor) -> tuple[Tensor, ...]:
        """x, a forward pass each."""
        values = 2**22 if x.is_cuda else 2**19
        return x.split(self.chunk or min(8192, max(256, values // max(1, x[:1].numel()))))

    def count(self, x: Tensor, kind: str, sent: int = 1) -> None:
        """Counts a query for each image of x (N, C, H, W); sent: 0 where nothing leaves the device."""
        new = {"queries": len(x), kind: len(x), "bytes": x.numel() * 4 * sent}
        for name, n in new.items():
            self.counts[name] += n
        if self.ledger:
            self.ledger.add(new)

    def billed(self) -> dict[str, int]:
        """Counts of all that was sent, also by earlier parts of the run whose answers were lost."""
        sent = self.ledger.counts() if self.ledger else self.counts
        return {k: max(n, sent[k]) for k, n in self.counts.items()}

    def note_finite(self, logits: Tensor) -> None:
        """Remembers, on the device, whether all logits so far were finite."""
        self.finite = self.finite & logits.detach().isfinite().all()

    def check_finite(self) -> None:
        """RunError where an answer since the beginning was not finite; waits for the device."""
        if not bool(self.finite):
            raise RunError("the teacher answered with NaN or infinity; check its weights and its normalisation (--teacher_normalize)")

    @property
    def allowance(self) -> float:
        """Queries that the budget allows this run altogether, infinity without one; the same before and after a stop."""
        return math.inf if self.budget is None else max(0, self.budget - self.earlier)

    @property
    def left(self) -> float:
        """Queries that the budget still allows, infinity without one."""
        return math.inf if self.budget is None else max(0, self.budget - self.earlier - self.billed()["queries"])

    def plan(self, n: int) -> None:
        """UsageError if a run of n queries is over its budget, which is said before the first one; the same before and after a stop."""
        if n > self.allowance:
            raise self.over_budget(n, self.allowance, self.earlier)

    def afford(self, n: int) -> None:
        """UsageError if n more queries would go over the budget; a method that knows its number asks first."""
        if n > self.left:
            raise self.over_budget(n, self.left, self.earlier + self.billed()["queries"])

    def over_budget(self, n: int, left: float, asked: int) -> UsageError:
        """The error for n queries where `left` are allowed and `asked` have been sent."""
        left = f"--query_budget {self.budget} allows {left} more queries ({asked} asked so far)"
        return UsageError(f"{left}, {n} are wanted; raise it, or ask about fewer images")

    @torch.no_grad()
    def audit(self, x: Tensor) -> Tensor:
        """Log-probabilities (N, K) as the one who runs the experiment sees them. Not counted, and no method may learn from them."""
        return torch.cat([self.net(c).float().log_softmax(1) for c in self.chunks(x)])

    @torch.no_grad()
    def api(self, x: Tensor) -> Tensor | tuple:
        """What the server would send: logits, probabilities (N, K), values and classes (N, k) each, or classes (N,)."""
        logits = self.net(x).float()
        self.note_finite(logits)
        if self.rank >= RESPONSES.index("logits"):
            return logits
        if self.hard:
            return logits.argmax(1), logits.shape[1]
        p = logits.softmax(1)
        return p if self.response == "soft" else (*p.topk(min(int(self.response[5:]), p.shape[1])), p.shape[1])

    def recover(self, answer: Tensor | tuple) -> Tensor:
        """Logits up to a constant of each row (N, K) from what was sent; the one-hot vector from a class."""
        if self.rank >= RESPONSES.index("logits"):
            return answer
        if self.hard:
            return F.one_hot(*answer).float()
        if self.response != "soft":
            values, classes, k = answer
            rest = (1 - values.sum(1, keepdim=True)).clamp_min(0) / max(1, k - values.shape[1])
            answer = rest.expand(-1, k).scatter(1, classes, values)
        log_p = answer.clamp_min(torch.finfo(answer.dtype).tiny).log()
        return log_p - log_p.mean(1, keepdim=True)

    def state_dict(self) -> dict[str, int]:
        return dict(self.counts)

    def load_state_dict(self, counts: dict[str, int]) -> None:
        if counts.keys() != self.zero().keys() or any(type(n) is not int or n < 0 for n in counts.values()):
            raise ValueError(f"counts of queries are {counts}")
        self.counts = dict(counts)


class Remembered:
    """`remembered(i, which, x)`: what `ask` answers (B, K) to views `which` (B,) of images i (B,), x as a net sees them; each asked once.

    All of them are kept in memory, float32.
    """

    def __init__(self, ask: Callable[[Tensor], Tensor], images: int, views: int, classes: int, device: torch.device):
        self.ask, self.kept = ask, torch.full((images, views, classes), torch.nan, device=device)

    def __call__(self, i: Tensor, which: Tensor, x: Tensor) -> Tensor:
        t = self.kept[i, which]
        if len(new := t[:, 0].isnan().nonzero()[:, 0]):
            t[new] = self.kept[i[new], which[new]] = self.ask(x[new])
        return t
