"""KN: trains the student on images and responses that are bought once within a budget (Knockoff Nets).
Orekondy et al. 2019, https://arxiv.org/abs/1812.02766

    python project/KN.py --teacher ResNet32 --model ResNet8 --pool FashionMNIST --budget 10000 --choice adaptive

Differs:
  - The images are the private ones, unless --pool names another data set.
  - The KL term has the factor temperature squared. MEKD's released code has the factor temperature (--kl_scale t).
  - The adaptive choice buys in --rounds purchases, not image by image.
  - The actions of the adaptive choice are the classes of the pool, or k-means clusters of the private images without their labels.
  - With topk:K responses the missing probability is spread evenly over the other classes.
"""

from common.cli import UsageError, allocating, cli

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from scipy.cluster.vq import kmeans2
from torch import Tensor

from common.losses import kl, probabilities
from common.options import KLOptions, opt
from common.run import start


@dataclass
class Args(KLOptions):
    temperature: float = opt(5.0, "temperature of the softened probabilities", alias="t", ge=1e-3, le=1e3)
    budget: float = opt(0.2, "number of images to buy; up to 1: fraction of the available images", ge=1e-6)
    pool: str = opt("", "data set whose training images are bought instead of the private images")
    choice: Literal["random", "adaptive"] = opt(
        "random", "selection of the bought images: random, or adaptive (a bandit that is rewarded by the responses)"
    )
    rounds: int = opt(10, "number of purchases of the adaptive selection", ge=1)

    def validate(self) -> None:
        super().validate()
        if self.budget > 1 and self.budget % 1:
            raise UsageError(f"--budget {self.budget:g} is no number of images; give an integer, or a fraction up to 1")

    def fixed_length(self):
        return "--choice adaptive buys in the first sixth of --epochs" if self.choice == "adaptive" else ""


class Policy(nn.Module):
    """Gradient bandit over A actions (section 4.1.2 of the paper).

    H (A,): preferences. taken (A,): how often each action was taken. mean: mean reward.
    """

    def __init__(self, actions: int):
        super().__init__()
        for name, size in {"H": actions, "taken": actions, "mean": ()}.items():
            self.register_buffer(name, torch.zeros(size))

    def learn(self, action: Tensor, reward: Tensor) -> None:
        """Updates the preferences with the rewards (n,) of the actions (n,)."""
        pi, self.taken = self.H.softmax(0), self.taken + action.bincount(minlength=len(self.H))
        self.mean += (reward - self.mean).sum() / self.taken.sum()
        gain = torch.zeros_like(pi).index_add_(0, action, reward - self.mean)  # (A,)
        self.H += (gain - pi * gain.sum()) / self.taken.clamp_min(1)


def rewards(s: Tensor, p: Tensor, mean: Tensor) -> Tensor:
    """Returns the rewards (n,) in [0, 3] of responses p (n, K): certainty + diversity + loss of the student (section 4.1.2).

    s: the student's logits (n, K). p: the teacher's class probabilities. mean: their mean (K,) over all responses so far.
    """
    top, loss = p.topk(2).values, F.cross_entropy(s, p, reduction="none")
    return top[:, 0] - top[:, 1] + (p - mean).clamp_min(0).sum(1) + loss / loss.max().clamp_min(1e-9)


def main(argv=None):
    run = start(Args, argv)
    args, images, hard, bought_index = run.args, run.queryable, run.teacher.hard, torch.zeros(0, dtype=torch.long)
    n = min(len(images), round(args.budget * (len(images) if args.budget <= 1 else 1)))
    if n < 2:
        raise UsageError(f"--budget {args.budget:g} buys {n} of {len(images):,} images; a student needs at least 2")
    n = n if args.transfer else run.purchases.clip_to_budget(n)
    run.teacher.expect(n)
    rounds, action = 1, torch.zeros_like(images.y)  # random selection: one action for all images
    if args.choice == "adaptive" and not args.transfer:
        rounds, action = min(args.rounds, n), images.y if args.pool else None
        if action is None:
            with allocating("the clusters of the private images (--choice adaptive)", "--lamda", "--img_size"):
                pixels = run.resident(images).x.flatten(1).cpu().numpy() / 255
                action = torch.as_tensor(kmeans2(pixels, run.data.classes, minit="++", rng=args.seed)[1]).to(images.y)
    policy, initial = Policy(int(action.max()) + 1).to(run.device), {k: v.clone() for k, v in run.student.state_dict().items()}

    def plan(g):
        p = (policy.H.softmax(0) / action.bincount().clamp_min(1))[action].cpu()  # (N,): of an action, divided by its number of images
        p = p.clamp_min(1e-12) * ~torch.isin(images.index, bought_index)
        return {"index": images.index[p.multinomial(n * (i + 1) // rounds - len(bought_index), generator=g).sort().values]}

    def loss(x, t):  # x: images (B, C, H, W), t: the teacher's responses (B, K)
        return {"kl": kl(run.student(x), t, args.temperature, args.kl_scale, hard, args.standardise)}

    for i in range(rounds):  # the purchases of the adaptive selection are in the first sixth of the epochs
        bought = run.buy(plan)
        if rounds > 1:
            new = torch.searchsorted(images.index, bought["index"].cpu()[len(bought_index) :]).to(run.device)
            s, p = run.infer(run.student.eval(), images.subset(new)).float(), probabilities(bought["answers"], hard)
            policy.learn(action[new], rewards(s, p[len(bought_index) :], p.mean(0)))
            bought_index = bought["index"].cpu()
        if i + 1 == rounds:  # a new student learns all responses, as in the paper
            run.student.load_state_dict(initial)
        until = args.epochs // 6 * (i + 1) // rounds if i + 1 < rounds else None
        run.fit(run.batches(bought), loss, until=until, repeatable=True, policy=policy)
    return run.finish()


if __name__ == "__main__":
    cli(main)
