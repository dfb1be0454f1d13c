"""The teacher as its API shows it: it answers without gradient, counts queries, and stops before the first query over the budget."""

import math
import re
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .cli import RunError, UsageError
from .counter import KINDS
from .processes import afford, answers
from .rounding import Zeros

RESPONSES = ("hard", "topk", "soft", "logits", "inside")  # each gives all that the ones before it give


def rank(response: str) -> int:
    """Place in RESPONSES of `logits | soft | topk:k | hard | inside`; UsageError for anything else."""
    kind, _, k = response.partition(":")
    if kind not in RESPONSES or (kind == "topk") != bool(k) or (k and not re.fullmatch("[1-9][0-9]{0,8}", k)):
        raise UsageError(f"--response {response}: there are logits, soft, topk:k (such as topk:5), hard, and inside (a white box)")
    return RESPONSES.index(kind)


class OutOfBudget(UsageError):
    """The next query would go over a limit of queries or of cost.

    fits: how many of the images that were wanted are within it, where nothing was sent. answers: those (n, K) to the first images, where
    the limit was met on the way; None where there are none.
    """

    def __init__(self, message: str, fits: int = 0, answers: Tensor | None = None):
        super().__init__(message)
        self.fits, self.answers = fits, answers


class Asked(Protocol):
    """What a BlackBox asks: a net of this process (Local), or a server and the answers that were bought before (api.paid.Paid).

    identity: letters that tell it from other teachers. divisible: whether each process of a run asks for a part of the images.
    """

    identity: str
    divisible: bool

    def afford(self, x: Tensor) -> None:
        """OutOfBudget where a limit of cost does not allow answers to all of x (N, C, H, W); called before they are counted and sent."""

    def answer(self, x: Tensor, stage: str = "train") -> Tensor:
        """Answers (N, K) to images x (N, C, H, W): logits, probabilities (NaN where none was told), or the one-hot vectors of classes.

        stage: what they are for, train or audit.
        """

    def audit(self, x: Tensor) -> Tensor:
        """Log-probabilities (N, K) of a net of this process, whatever its response shows."""

    def check_finite(self) -> None:
        """RunError where an answer since the beginning was not finite."""


class Local:
    """A net that answers as an API would. chunk: images a forward pass, by default as many as make 4 million pixel values on a GPU, half a
    million on the CPU (its caches), 256 to 8,192. identity: letters that tell it from other teachers."""

    divisible = True

    def __init__(self, net: nn.Module, response: str, chunk: int | None = None, identity: str = ""):
        self.net, self.response, self.chunk, self.identity = net.eval().requires_grad_(False), response, chunk, identity
        self.rank, self.finite = rank(response), True

    def chunks(self, x: Tensor) -> tuple[Tensor, ...]:
        """x, a forward pass each."""
        values = 2**22 if x.is_cuda else 2**19
        return x.split(self.chunk or min(8192, max(256, values // max(1, x[:1].numel()))))

    def afford(self, x: Tensor) -> None:
        """See Asked: a net of this process costs nothing."""

    @torch.no_grad()
    def answer(self, x: Tensor, stage: str = "train") -> Tensor:
        """See Asked."""
        return torch.cat([self.shown(self.net(c).float()) for c in self.chunks(x)])

    def shown(self, logits: Tensor) -> Tensor:
        """What the API shows of logits (N, K)."""
        self.note_finite(logits)
        if self.rank >= RESPONSES.index("logits"):
            return logits
        if self.rank == RESPONSES.index("hard"):
            return F.one_hot(logits.argmax(1), logits.shape[1]).float()
        p = logits.softmax(1)
        if self.rank == RESPONSES.index("soft"):
            return p
        values, classes = p.topk(min(int(self.response[5:]), p.shape[1]))
        return torch.full_like(p, torch.nan).scatter(1, classes, values)

    def note_finite(self, logits: Tensor) -> None:
        """Remembers, on the device, whether all logits so far were finite."""
        self.finite = self.finite & logits.detach().isfinite().all()

    def check_finite(self) -> None:
        """RunError where an answer since the beginning was not finite; waits for the device."""
        if not bool(self.finite):
            raise RunError("the teacher answered with NaN or infinity; check its weights and its normalisation (--teacher_normalize)")

    @torch.no_grad()
    def audit(self, x: Tensor) -> Tensor:
        """Its log-probabilities (N, K), whatever it shows."""
        return torch.cat([self.net(c).float().log_softmax(1) for c in self.chunks(x)])


class BlackBox:
    """`teacher(x)`: images (N, C, H, W) -> answers (N, K) for any N, in evaluation mode, without gradient; N queries are counted.

    What comes back are logits as far as the response lets one know them:
      logits   the teacher's own; so does `inside`, which alone allows `teacher.inside(x)`
      soft     probabilities are sent; their logarithm, centred: the logits up to a constant of each row
      topk:k   the k largest probabilities are sent; the missing mass is spread evenly over the other classes, then as soft
               (an exact 0 of rounded probabilities stands for half a unit of the last decimal: see rounding.Zeros)
      hard     a class is sent; its one-hot vector

    asked: a net, or another object that answers. budget: queries it may answer, None without limit; `earlier`: those that others have
    spent of it. chunk, identity: of a net, see Local.
    counts: queries, of them those about images of each kind of KINDS, bytes (float32 images sent, the paper's measure). counter: a Counter,
    where what is sent is to be counted whatever becomes of the process. free_audit: whether `audit` costs nothing; audited: how many images
    it had to ask about. planned: the most queries that the run takes, as far as it is known. stop: called before a query, to leave in the
    midst of a purchase. quote: called with `planned` and the images before a query, to say its price instead of sending it.
    """

    def __init__(
        self, asked: nn.Module | Asked, response: str = "soft", budget: int | None = None, chunk: int | None = None, identity: str = ""
    ):
        self.asked = Local(asked, response, chunk, identity) if isinstance(asked, nn.Module) else asked
        self.response, self.budget, self.rank, self.earlier, self.planned = response, budget, rank(response), 0, 0
        self.counts, self.counter, self.stop, self.free_audit, self.audited = self.zero(), None, None, True, 0
        self.quote, self.zeros = None, Zeros()

    @property
    def identity(self) -> str:
        """Letters that tell the teacher from others."""
        return self.asked.identity

    @property
    def net(self) -> nn.Module:
        """The net of a teacher of this process, for a method that looks inside."""
        return self.asked.net

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
        self.asked.note_finite(logits)
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
        if self.quote:
            self.quote(self.planned, x)
        afford(self.asked, x)
        self.count(x, kind)
        try:
            return self.recover(answers(self.asked, x))  # (N, K)
        except OutOfBudget as e:
            e.answers = None if e.answers is None else self.recover(e.answers.to(x.device))
            raise

    def count(self, x: Tensor, kind: str, sent: int = 1) -> None:
        """Counts a query for each image of x (N, C, H, W); sent: 0 where nothing leaves the device."""
        new = {"queries": len(x), kind: len(x), "bytes": x.numel() * 4 * sent}
        for name, n in new.items():
            self.counts[name] += n
        if self.counter:
            self.counter.add(new)

    def billed(self) -> dict[str, int]:
        """Counts of all that was sent, also by earlier parts of the run whose answers were lost."""
        sent = self.counter.counts() if self.counter else self.counts
        return {k: max(n, sent[k]) for k, n in self.counts.items()}

    def check_finite(self) -> None:
        """RunError where an answer since the beginning was not finite; waits for the device."""
        self.asked.check_finite()

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
        self.expect(n)

    def expect(self, n: int) -> None:
        """Notes that the run takes at most n queries altogether."""
        self.planned = max(self.planned, int(n))

    def afford(self, n: int) -> None:
        """UsageError if n more queries would go over the budget; a method that knows its number asks first."""
        if n > self.left:
            raise self.over_budget(n, self.left, self.earlier + self.billed()["queries"])

    def over_budget(self, n: int, left: float, asked: int) -> OutOfBudget:
        """The error for n queries where `left` are allowed and `asked` have been sent."""
        left = f"--query_budget {self.budget} allows {left} more queries ({asked} asked so far)"
        return OutOfBudget(f"{left}, {n} are wanted; raise it, or ask about fewer images")

    def audit(self, x: Tensor) -> Tensor:
        """Log-probabilities (N, K) as the one who runs the experiment sees them. No query of the run, and no method may learn from them."""
        if self.free_audit:
            return self.asked.audit(x)
        afford(self.asked, x)
        self.audited += len(x)
        return self.recover(answers(self.asked, x, "audit")).log_softmax(1)

    def recover(self, answer: Tensor) -> Tensor:
        """Logits up to a constant of each row (N, K) from what was sent; the one-hot vector from a class."""
        if self.hard or self.rank >= RESPONSES.index("logits"):
            return answer
        told, tiny = answer.isfinite(), torch.finfo(answer.dtype).tiny
        zero = tiny if isinstance(self.asked, Local) else self.zeros.stand_for(answer)  # a net's own probabilities are not rounded
        rest = (1 - answer.nansum(1, keepdim=True)).clamp_min(0)
        p = answer.where(told, rest.where(rest >= zero, 0) / (~told).sum(1, keepdim=True).clamp_min(1))
        log_p = p.where(p > 0, zero).clamp_min(tiny).log()
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
