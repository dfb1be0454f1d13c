"""AM: trains the student on mixes of two private images that it is least confident about (active mixup).
Wang et al. 2020, https://arxiv.org/abs/2003.13960

    python project/AM.py --teacher ResNet32 --model ResNet8

Differs:
  - All pairs and mixing weights are scored in batches on the device (released: a NumPy loop).
  - No pair is bought twice.
  - A round begins with the student of the last epoch of the round before (released: of its best epoch on test images).
  - With --query_budget the first purchase takes at most half of the budget.
  - With hard responses the target is the teacher's class.
  - With topk:K responses the missing probability is spread evenly over the other classes.
"""

from common.cli import UsageError, allocating, cli, say

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from common.losses import probabilities
from common.options import TransferOptions, opt
from common.run import start

WEIGHTS = 0.3, 0.72, 0.04  # start, end and step of the first image's weight in a mix: 0.30, 0.34, ... 0.70


@dataclass
class Args(TransferOptions):
    epochs: int = opt(800, "total number of epochs, divided equally among the start and the rounds; the last round also gets the rest")
    batch_size: int = 1000
    lr: float = 0.01
    milestones: str = opt(
        "0.4,0.7,0.9",
        "epochs of the start and of each round after which the learning rate is multiplied by --gamma, or fractions of them, with commas",
    )
    rounds: int = opt(3, "number of rounds; each buys mixed images and trains on all images bought so far", ge=0)
    first: int = opt(5000, "number of private images bought at the start", ge=2)
    queries: int = opt(10000, "number of mixed images bought in each round", ge=0)
    pairs: int = opt(
        500000,
        "number of random image pairs scored in each round, at mixing weights 0.30 to 0.70; the least confident mixes are bought",
        ge=1,
    )

    def round_epochs(self) -> int:
        return max(1, self.epochs // (self.rounds + 1))

    def fixed_length(self) -> str:
        return "the rounds of AM have a part of --epochs each"

    def validate(self) -> None:
        super().validate()
        if self.epochs <= self.rounds:
            raise UsageError(
                f"--epochs {self.epochs} with --rounds {self.rounds}: the start and each round need at least one epoch; "
                f"use --epochs {self.rounds + 1} or more"
            )


def draw_pairs(n: int, m: int, g: torch.Generator) -> Tensor:
    """Returns m distinct random pairs (m, 2) of indices i < j below n, or all pairs if there are fewer than m."""
    if n * (n - 1) // 2 <= 4 * m:
        all_pairs = torch.triu_indices(n, n, 1).T  # (n (n - 1) / 2, 2)
        return all_pairs[torch.randperm(len(all_pairs), generator=g)[:m]]
    a, b = (torch.randint(n, (2 * m,), generator=g) for _ in range(2))
    key = (torch.minimum(a, b) * n + torch.maximum(a, b))[a != b].unique()
    key = key[torch.randperm(len(key), generator=g)[:m]]
    return torch.stack([key // n, key % n], 1)


@torch.no_grad()
def least_confident(
    net: nn.Module, view: Callable[[Tensor], Tensor], x: Tensor, pairs: Tensor, weights: Tensor, size: int = 0
) -> tuple[Tensor, Tensor]:
    """Returns the lowest top log-probability (P,) over the mixes of each pair, and the weight (P,) of that mix.

    net: a classifier in evaluation mode. view: maps uint8 images to the net's input. x: images (N, C, H, W), uint8. pairs: indices (P, 2).
    weights: mixing weights (W,) of a pair's first image. size: mixes per forward pass; 0: 4096 on a GPU, 512 on a CPU (its caches).
    """
    found, size = [], size or (4096 if x.is_cuda else 512)
    for i in pairs.split(max(1, size // len(weights))):
        a, b = view(x[i.flatten()]).unflatten(0, (-1, 2)).unbind(1)  # (p, C, H, W) each
        mixes = torch.lerp(b[:, None], a[:, None], weights.view(1, -1, 1, 1, 1)).flatten(0, 1)  # (p W, C, H, W)
        s = net(mixes.contiguous(memory_format=torch.channels_last)).float()
        found.append((s.amax(1) - s.logsumexp(1)).view(len(i), -1).min(1))
    return torch.cat([f.values for f in found]), weights[torch.cat([f.indices for f in found])]


def main(argv=None):
    run = start(Args, argv)
    args, images = run.args, run.resident(run.queryable)
    weights = torch.arange(*WEIGHTS, device=run.device)
    n_first, n_mixes = min(args.first, len(images)), args.queries
    if args.query_budget:
        remaining = run.purchases.clip_to_budget(args.query_budget)
        n_first = min(n_first, max(2, remaining // 2))
        n_mixes = min(n_mixes, (remaining if args.transfer else remaining - n_first) // max(1, args.rounds))

    possible = len(images) * (len(images) - 1) // 2
    if args.rounds * n_mixes > possible:
        say(f"{len(images):,} images make {possible:,} pairs: {possible // args.rounds:,} mixes are bought in each round, not {n_mixes:,}")
        n_mixes = possible // args.rounds
    if len(images) < 2:
        raise UsageError(f"AM mixes pairs of images, and there is {len(images)}; use a larger --lamda")

    run.teacher.expect(n_first + args.rounds * n_mixes)

    def plan_mixes(g):  # the purchase of a round: the mixes that the student is least confident about
        bought_pairs = bought["index"].cpu() if "weight" in bought else torch.zeros(0, 2, dtype=torch.long)
        n_pairs, n = 1000 if args.dry_run else args.pairs, len(run.purchases.source.train)
        with allocating("the pairs of images", "--pairs", "--lamda"):
            pairs = draw_pairs(len(images), n_pairs + len(bought_pairs), g)
            is_new = ~torch.isin(images.index[pairs] @ torch.tensor([n, 1]), bought_pairs @ torch.tensor([n, 1]))
        pairs = pairs[is_new][:n_pairs]
        score, weight = least_confident(run.student.eval(), run.data.view, images.x, pairs.to(run.device), weights)
        chosen = score.topk(min(n_mixes, len(score)), largest=False).indices.cpu()
        return {"index": images.index[pairs[chosen]], "weight": weight.cpu()[chosen]}

    def loss(x, t):  # x: images (B, C, H, W), t: the teacher's responses (B, K)
        return {"ce": F.cross_entropy(run.student(x), probabilities(t, run.teacher.hard))}

    bought = run.buy(run.random_plan(n_first))
    for number in range(1, args.rounds + 1):
        run.fit(run.batches(bought), loss, until=number * args.round_epochs(), repeatable=True)
        if n_mixes:
            bought = run.buy(plan_mixes)
    run.fit(run.batches(bought), loss, repeatable=True)
    return run.finish()


if __name__ == "__main__":
    cli(main)
