"""AM: active mixup. The student itself says about which mixes of two private images it is least sure; the teacher is asked about those.
Wang et al. 2020, https://arxiv.org/abs/2003.13960

    python project/AM.py --teacher ResNet32 --model ResNet8

Differs: all pairs and weights are scored in batches on the device (released: a NumPy loop). A pair is asked about once. The fall of the
learning rate between rounds is the schedule's, so that --epochs scales the whole. With --query_budget the first purchase is half of it.
From hard answers the target is the class; the mass that topk:k answers keep back is spread over the other classes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from common.losses import probabilities
from common.options import TransferOptions, opt
from common.run import start
from common.training import milestones
from common.utils import cli

WEIGHTS = 0.3, 0.72, 0.04  # of a pair's first image: 0.30, 0.34, ... 0.70


@dataclass
class Args(TransferOptions):
    epochs: int = opt(200, "number of epochs of all rounds together")
    batch_size: int = 1000
    lr: float = 0.01
    milestones: str = opt(
        "0.4,0.7,0.9", "epochs at which a round ends (answers are bought, the learning rate falls), or fractions of --epochs"
    )
    first: int = opt(5000, "number of private images asked about before the rounds", ge=2)
    queries: int = opt(10000, "number of mixed images asked about in each round", ge=0)
    pairs: int = opt(500000, "number of image pairs from which the mixed images of a round are chosen", ge=1)


def draw_pairs(n, m, g):
    """m pairs (m, 2), i < j, of n images, each pair at most once; all pairs where there are fewer."""
    if n * (n - 1) // 2 <= 4 * m:
        every = torch.triu_indices(n, n, 1).T  # (n (n - 1) / 2, 2)
        return every[torch.randperm(len(every), generator=g)[:m]]
    a, b = (torch.randint(n, (2 * m,), generator=g) for _ in range(2))
    key = (torch.minimum(a, b) * n + torch.maximum(a, b))[a != b].unique()
    key = key[torch.randperm(len(key), generator=g)[:m]]
    return torch.stack([key // n, key % n], 1)


@torch.no_grad()
def least_sure(net, view, x, pairs, weights, size=0):
    """For each pair (P, 2) of images x (uint8): the net's lowest top log-probability over mixes by `weights` (W,), and that weight."""
    found, size = [], size or (4096 if x.is_cuda else 512)  # mixes a pass; more would overflow a CPU's caches
    for i in pairs.split(max(1, size // len(weights))):
        a, b = view(x[i.flatten()]).unflatten(0, (-1, 2)).unbind(1)  # (p, C, H, W) each
        mixes = torch.lerp(b[:, None], a[:, None], weights.view(1, -1, 1, 1, 1)).flatten(0, 1)  # (p W, C, H, W)
        s = net(mixes.contiguous(memory_format=torch.channels_last)).float()
        found.append((s.amax(1) - s.logsumexp(1)).view(len(i), -1).min(1))
    return torch.cat([f.values for f in found]), weights[torch.cat([f.indices for f in found])]


def main(argv=None):
    run = start(Args, argv)
    args, images, marks = run.args, run.resident(run.queryable), [*sorted(milestones(run.args)), run.args.epochs]
    weights = torch.arange(*WEIGHTS, device=run.device)
    first, each = min(args.first, len(images)), args.queries
    if args.query_budget:
        left = run.purchases.clip_to_budget(args.query_budget)
        first = min(first, max(2, left // 2))
        each = min(each, (left if args.transfer else left - first) // max(1, len(marks) - 1))

    def uncertain(g):  # the mixes of a round
        known = bought["index"].cpu() if "weight" in bought else torch.zeros(0, 2, dtype=torch.long)
        tried, n = 1000 if args.dry_run else args.pairs, len(run.purchases.source.train)
        pairs = draw_pairs(len(images), tried + len(known), g)
        new = ~torch.isin(images.index[pairs] @ torch.tensor([n, 1]), known @ torch.tensor([n, 1]))  # asked about before: not again
        pairs = pairs[new][:tried]
        score, weight = least_sure(run.student.eval(), run.data.view, images.x, pairs.to(run.device), weights)
        chosen = score.topk(min(each, len(score)), largest=False).indices.cpu()
        return {"index": images.index[pairs[chosen]], "weight": weight.cpu()[chosen]}

    def loss(x, t):  # t: the teacher's answers (B, K)
        return {"ce": F.cross_entropy(run.student(x), probabilities(t, run.teacher.hard))}

    bought = run.buy(run.random_plan(first))
    for until in marks:
        run.fit(run.batches(bought), loss, until=until)
        if until < args.epochs and each:
            bought = run.buy(uncertain)
    return run.finish()


if __name__ == "__main__":
    cli(main)
