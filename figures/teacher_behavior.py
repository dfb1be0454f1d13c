"""teacher_behavior: does the attack of AEAHL.py --hard_loss contradict the teacher in the way in which real images do?

    python project/AEAHL.py --dataset Digits --teacher ResNet20 --model ResNet8 --hard_loss
    python figures/teacher_behavior.py --dataset Digits --teacher ResNet20 \
        --run_path checkpoints/AEAHL/Digits/ResNet20_to_ResNet8-inside/seed0

The teacher's class and certainty on: real test images, right and wrong; the run's made-up images; the same, attacked by the run's net;
real images it gets right, attacked by Carlini and Wagner's L2 (2017, https://arxiv.org/abs/1608.04644). Told are: how often it is wrong
(made-up images: how often the attack changes its class), how certain it then is, and how much the pairs (class before, class after)
have in common with those of its real errors: the overlap of both distributions, in [0, 1], and that of pairs drawn evenly.
Differs: the released notebook shows 20 images of one batch; its attack feeds images that are not normalised and lets a false class win.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "project"))
from common.aeahl.attack import perturber
from common.aeahl.pool import read_pool
from common.measures import calibration_error
from common.options import TeacherOptions, opt
from common.pictures import pyplot, save_figure
from common.run import start
from common.utils import cli, save_json, say

SHOWN = 10  # images in a row of the picture


@dataclass
class Args(TeacherOptions):
    NEEDS: ClassVar = "inside"
    DATA: ClassVar = False

    response: str = "inside"
    run_path: str = opt("", "checkpoint folder of a finished AEAHL.py --hard_loss run with this teacher")
    samples: int = opt(2000, "number of synthetic images that are attacked", ge=2)
    cw_samples: int = opt(100, "number of real images that Carlini and Wagner's attack is run on", ge=1)
    cw_steps: int = opt(1000, "number of Adam steps of that attack", ge=1)
    cw_c: float = opt(0.1, "weight of that attack's class term against its distance term", gt=0)
    cw_lr: float = opt(0.01, "learning rate of that attack", gt=0)


def carlini_wagner(net, pixels, y, steps, c, lr):
    """The nearest images (N, C, H, W) in [0, 1] found that `net` (of pixels) does not call y (N,), and whether there is one for each (N,).

    Minimises ||x' - x||^2 + c * max(Z_y - max_{j != y} Z_j, 0) over w, x' = (tanh(w) + 1) / 2; the true class is left out by -inf.
    """
    w = torch.atanh((pixels * 2 - 1).clamp(-1 + 1e-6, 1 - 1e-6)).requires_grad_()
    optimizer = torch.optim.Adam([w], lr)
    best, found = torch.full((len(pixels),), torch.inf, device=pixels.device), pixels.clone()
    own = F.one_hot(y, net(pixels[:1]).shape[1]).bool()
    for _ in range(steps):
        x = (w.tanh() + 1) / 2
        z = net(x).float()
        margin = z[own] - z.masked_fill(own, -torch.inf).amax(1)  # (N,)
        distance = (x - pixels).flatten(1).square().sum(1)
        with torch.no_grad():
            better = (margin < 0) & (distance < best)
            best = torch.where(better, distance, best)
            found = torch.where(better.view(-1, 1, 1, 1), x, found)
        optimizer.zero_grad()
        (distance + c * margin.clamp_min(0)).sum().backward()
        optimizer.step()
    return found, best.isfinite()


def pairs(before, after, K):
    """The share (K, K) of each pair of classes, of those where they differ."""
    counts = torch.zeros(K, K, dtype=torch.double)
    off = before != after
    counts.index_put_((before[off].cpu(), after[off].cpu()), torch.ones(int(off.sum()), dtype=torch.double), accumulate=True)
    return counts / counts.sum().clamp_min(1)


def overlap(p, q):
    return torch.minimum(p, q).sum().item()


def by_chance(n, K, q, tries=200):
    """The overlap with q of n pairs of different classes drawn evenly, on average."""
    if not n:
        return 0.0
    g, off = torch.Generator().manual_seed(0), (~torch.eye(K, dtype=torch.bool)).flatten().nonzero()[:, 0]
    drawn = off[torch.randint(len(off), (tries, n), generator=g)]
    return sum(overlap((d.bincount(minlength=K * K) / n).view(K, K).double(), q) for d in drawn) / tries


def draw(groups, rows, title, path):
    """Histograms of the certainty in each group; below, a row of images a kind, each with `class before > after, certainty`."""
    plt = pyplot()

    fig = plt.figure(figsize=(11, 3.2 + 1.15 * len(rows)), layout="constrained")
    above, below = fig.subfigures(2, 1, height_ratios=(3.2, 1.15 * len(rows)))
    for ax, (name, certainty) in zip(above.subplots(1, len(groups)), groups.items(), strict=True):
        ax.hist(certainty, torch.linspace(0, 1, 26).tolist())
        ax.set_title(f"{name}: {len(certainty):,}", fontsize=8)
        ax.set_xlabel("certainty", fontsize=8)
    axes = below.subplots(len(rows), SHOWN, squeeze=False)
    for line, (name, (images, words)) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(name, fontsize=7)
        for ax in line:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        for ax, x, word in zip(line, images, words, strict=False):
            ax.imshow(x.permute(1, 2, 0).clamp(0, 1).cpu().numpy(), cmap="gray", vmin=0, vmax=1)
            ax.set_title(word, fontsize=7, pad=2)
    fig.suptitle(title, fontsize=10)
    save_figure(fig, path)


def main(argv=None):
    run = start(Args, argv)
    args, data, K, teacher = run.args, run.data, run.data.classes, run.teacher
    attack = perturber(run, args.run_path)
    pool = read_pool(Path(args.run_path) / "pool.npy", data.shape)
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(args.seed))[: 50 if args.dry_run else args.samples]
    made = torch.from_numpy(pool[order.numpy()]).to(run.device).float() / 255

    def seen(pixels):  # (N, C, H, W) in [0, 1] -> classes (N,), certainty (N,)
        p = torch.cat([teacher.audit(data.view(x)).exp() for x in pixels.split(500)])
        return p.argmax(1), p.amax(1)

    @torch.no_grad()
    def attacked(pixels):
        return torch.cat([attack(data.view(x)) * data.std + data.mean for x in pixels.split(500)])

    y, real = run.test.y, run.resident(run.test).x.float() / 255
    said, sure = seen(real)
    right = said == y
    plain, plain_sure = seen(made)
    moved = attacked(made)
    after, after_sure = seen(moved)
    flipped = after != plain
    few = right.nonzero()[: 2 if args.dry_run else args.cw_samples, 0]
    cw, done = carlini_wagner(
        lambda x: teacher.inside(data.view(x))[0], real[few], y[few], 2 if args.dry_run else args.cw_steps, args.cw_c, args.cw_lr
    )
    cw_said, cw_sure = seen(cw)
    errors, n = pairs(y, said, K), int((~right).sum())
    table = {"real": {"images": len(y), "wrong": 1 - right.double().mean().item(), "certainty": means(sure, right)}}
    table["real"]["ece"] = calibration_error(run.truth.exp(), y).item()
    table["real"]["reliability"] = reliability(sure, right)
    table["made up"] = {"images": len(made), "certainty": [mean(plain_sure)]}
    table["attacked"] = {"images": len(made), "wrong": flipped.double().mean().item(), "certainty": means(after_sure, ~flipped)}
    table["attacked"] |= {"overlap": overlap(pairs(plain, after, K), errors), "by chance": by_chance(int(flipped.sum()), K, errors)}
    cw_flipped = done & (cw_said != y[few])
    table["carlini wagner"] = {"images": len(few), "wrong": cw_flipped.double().mean().item(), "certainty": means(cw_sure, ~cw_flipped)}
    table["carlini wagner"] |= {"overlap": overlap(pairs(y[few][cw_flipped], cw_said[cw_flipped], K), errors)}
    table["carlini wagner"] |= {
        "by chance": by_chance(int(cw_flipped.sum()), K, errors),
        "l2": mean((cw - real[few]).flatten(1).norm(dim=1)[cw_flipped]),
    }
    for name, row in table.items():
        words = [f"{k} {v:.3f}" for k, v in row.items() if isinstance(v, float)]
        words += [f"{k} {v:.3f}" for k, v in zip(("certainty kept", "certainty wrong"), row["certainty"], strict=False) if v is not None]
        say(f"{name:>14}: {row['images']:,} images, {', '.join(words)}")
    say(f"the teacher has {n} real errors")
    groups = {
        "real, right": sure[right],
        "real, wrong": sure[~right],
        "made up": plain_sure,
        "attacked, class changed": after_sure[flipped],
    }
    groups["Carlini and Wagner"] = cw_sure[cw_flipped]
    rows = {}
    for name, images, before, now, certainty, which in (
        ("real, right", real, y, said, sure, right),
        ("real, wrong", real, y, said, sure, ~right),
        ("made up", made, plain, plain, plain_sure, torch.ones_like(flipped)),
        ("attacked", moved, plain, after, after_sure, flipped),
        ("C. and W.", cw, y[few], cw_said, cw_sure, cw_flipped),
    ):
        i = which.nonzero()[:SHOWN, 0]
        rows[name] = (
            images[i],
            [f"{b} > {a}, {c:.2f}" for b, a, c in zip(before[i].tolist(), now[i].tolist(), certainty[i].tolist(), strict=True)],
        )
    draw({k: v.tolist() for k, v in groups.items()}, rows, f"{args.teacher} on {args.dataset}", run.record.logs / "teacher_behavior.png")
    save_json(run.record.logs / "teacher_behavior.json", table)
    run.notes["teacher_behavior"] = table
    say(f"written: {run.record.logs}/teacher_behavior.png .json")
    return run.finish()


def mean(values):
    return values.mean().item() if len(values) else None


def means(certainty, same):
    """Mean certainty of those whose class is right or kept, and of the others."""
    return [mean(certainty[same]), mean(certainty[~same])]


def reliability(certainty, right, bins=10):
    """[[mean certainty, share that is right, number], ...] of equal bins of certainty."""
    index = (certainty * bins).ceil().long().clamp(1, bins) - 1
    return [[mean(certainty[index == b]), mean(right[index == b].double()), int((index == b).sum())] for b in range(bins)]


if __name__ == "__main__":
    cli(main)
