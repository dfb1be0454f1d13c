"""KN: Knockoff Nets. A transfer set is bought once for a budget of images, and the student is trained on those pairs.
Orekondy et al. 2019, https://arxiv.org/abs/1812.02766

    python project/KN.py --teacher ResNet32 --model ResNet8 --pool FashionMNIST --budget 10000 --choice adaptive

Differs: the images are the edge's own share unless --pool names another data set. The adaptive choice buys in --rounds, not one by one;
its actions are the pool's classes, or k-means clusters of the edge's own images, whose labels it does not see. From topk:k answers the
mass that the API keeps back is spread evenly over the other classes.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from scipy.cluster.vq import kmeans2

from common.losses import kl, probabilities
from common.options import TransferOptions, opt
from common.run import start
from common.utils import cli


@dataclass
class Args(TransferOptions):
    temperature: float = opt(5.0, "temperature of the softened probabilities", alias="t", gt=0)
    budget: float = opt(0.2, "number of images to ask about; up to 1: fraction of the images that there are", gt=0)
    pool: str = opt("", "data set whose training images are asked about, instead of the private images")
    choice: Literal["random", "adaptive"] = opt(
        "random", "choice of the images: random, or adaptive (bandit rewarded by the answers so far)"
    )
    rounds: int = opt(10, "number of purchases of the adaptive choice", ge=1)


class Policy(nn.Module):
    """Gradient bandit over A actions: preferences H, times taken, mean reward; section 4.1.2 of the paper."""

    def __init__(self, actions):
        super().__init__()
        for name, size in {"H": actions, "taken": actions, "mean": ()}.items():
            self.register_buffer(name, torch.zeros(size))

    def learn(self, action, reward):  # (n,) each
        pi, self.taken = self.H.softmax(0), self.taken + action.bincount(minlength=len(self.H))
        self.mean += (reward - self.mean).sum() / self.taken.sum()
        gain = torch.zeros_like(pi).index_add_(0, action, reward - self.mean)  # (A,)
        self.H += (gain - pi * gain.sum()) / self.taken.clamp_min(1)


def worth(s, p, mean):
    """Rewards (n,) in [0, 3] of answers p (n, K) for which the student says s: sure, unlike the mean answer so far, not yet known."""
    top, loss = p.topk(2).values, F.cross_entropy(s, p, reduction="none")
    return top[:, 0] - top[:, 1] + (p - mean).clamp_min(0).sum(1) + loss / loss.max().clamp_min(1e-9)


def main(argv=None):
    run = start(Args, argv)
    args, images, hard, known = run.args, run.queryable, run.teacher.hard, torch.zeros(0, dtype=torch.long)
    n = min(len(images), round(args.budget * (len(images) if args.budget <= 1 else 1)))
    n = n if args.transfer else run.purchases.clip_to_budget(n)
    rounds, action = 1, torch.zeros_like(images.y)  # random: all are one action
    if args.choice == "adaptive" and not args.transfer:
        rounds, action = min(args.rounds, n), images.y if args.pool else None
        if action is None:
            pixels = run.resident(images).x.flatten(1).cpu().numpy() / 255
            action = torch.as_tensor(kmeans2(pixels, run.data.classes, minit="++", rng=args.seed)[1]).to(images.y)
    policy, initial = Policy(int(action.max()) + 1).to(run.device), {k: v.clone() for k, v in run.student.state_dict().items()}

    def plan(g):
        mass = (policy.H.softmax(0) / action.bincount().clamp_min(1))[action].cpu()  # an action, then one of its images
        mass = mass.clamp_min(1e-12) * ~torch.isin(images.index, known)
        return {"index": images.index[mass.multinomial(n * (i + 1) // rounds - len(known), generator=g).sort().values]}

    def loss(x, t):  # t: the teacher's answers (B, K)
        return {"kl": kl(run.student(x), t, args.temperature, hard=hard)}

    for i in range(rounds):  # of the adaptive choice, all in the first sixth of the epochs
        bought = run.buy(plan)
        if rounds > 1:
            new = torch.searchsorted(images.index, bought["index"].cpu()[len(known) :]).to(run.device)
            s, p = run.infer(run.student.eval(), images.subset(new)).float(), probabilities(bought["answers"], hard)
            policy.learn(action[new], worth(s, p[len(known) :], p.mean(0)))
            known = bought["index"].cpu()
        if i + 1 == rounds:  # what chose is not what is kept
            run.student.load_state_dict(initial)
        run.fit(run.batches(bought), loss, until=args.epochs // 6 * (i + 1) // rounds if i + 1 < rounds else None, policy=policy)
    return run.finish()


if __name__ == "__main__":
    cli(main)
