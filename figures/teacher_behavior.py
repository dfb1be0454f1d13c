"""teacher_behavior: tests whether the attack of AEAHL.py --hard_loss changes the teacher's class as real errors do.

    python project/AEAHL.py --dataset Digits --teacher ResNet20 --model ResNet8 --hard_loss
    python figures/teacher_behavior.py --dataset Digits --teacher ResNet20 \\
        --run_path checkpoints/AEAHL/Digits/ResNet20_to_ResNet8-inside/seed0

It compares the teacher's class and confidence (top probability) on four groups of images:

    real test images, classified correctly and wrongly
    synthetic images of the run
    the same synthetic images, attacked by the run's attack network
    correctly classified real images, attacked by Carlini and Wagner's L2 attack (2017, https://arxiv.org/abs/1608.04644)

It reports the fraction of wrong classes (synthetic images: of changed classes), the mean confidence, and the overlap in [0, 1] of two
distributions of class pairs (before, after): that of the attacked images and that of the real errors. For comparison it reports the overlap
of uniformly drawn pairs.

Differs:
  - All images of a group count (released notebook: 20 images of one batch).
  - The images of the attack are normalised (released: they are not).
  - The true class is masked by -inf in the attack (released: the mask lets a wrong class win).
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "project"))
from common.cli import cli, say

from common.aeahl.attack import load_attack
from common.measures import calibration_error
from common.options import TeacherOptions, opt
from common.pictures import pyplot, save_figure
from common.pool import read_pool
from common.run import start
from common.utils import save_json

SHOWN = 10  # images per row of the picture


@dataclass
class Args(TeacherOptions):
    NEEDS: ClassVar = "inside"
    DATA: ClassVar = False

    response: str = "inside"
    run_path: str = opt("", "checkpoint folder of a finished AEAHL.py --hard_loss run with this teacher")
    samples: int = opt(2000, "number of synthetic images that are attacked", ge=2)
    cw_samples: int = opt(100, "number of real images that Carlini and Wagner's attack is applied to", ge=1)
    cw_steps: int = opt(1000, "number of Adam steps of Carlini and Wagner's attack", ge=1)
    cw_c: float = opt(0.1, "weight of the class term in Carlini and Wagner's attack (the distance term has weight 1)", gt=0)
    cw_lr: float = opt(0.01, "learning rate of Carlini and Wagner's attack (Adam)", gt=0)


def carlini_wagner(net: Callable[[Tensor], Tensor], pixels: Tensor, y: Tensor, steps: int, c: float, lr: float) -> tuple[Tensor, Tensor]:
    """Returns the nearest images found (N, C, H, W) whose class is not y (N,), and whether one was found for each image (N,).

    net: maps images in [0, 1] to logits. pixels: images (N, C, H, W) in [0, 1]. Where none was found, the image itself is returned.
    Minimises ||x' - x||^2 + c * max(Z_y - max_{j != y} Z_j, 0) over w with x' = (tanh(w) + 1) / 2; -inf masks the true class.
    """
    w = torch.atanh((pixels * 2 - 1).clamp(-1 + 1e-6, 1 - 1e-6)).requires_grad_()
    optimizer = torch.optim.Adam([w], lr)
    best, found = torch.full((len(pixels),), torch.inf, device=pixels.device), pixels.clone()
    true_class = F.one_hot(y, net(pixels[:1]).shape[1]).bool()
    for _ in range(steps):
        x = (w.tanh() + 1) / 2
        z = net(x).float()
        margin = z[true_class] - z.masked_fill(true_class, -torch.inf).amax(1)  # (N,)
        distance = (x - pixels).flatten(1).square().sum(1)
        with torch.no_grad():
            better = (margin < 0) & (distance < best)
            best = torch.where(better, distance, best)
            found = torch.where(better.view(-1, 1, 1, 1), x, found)
        optimizer.zero_grad()
        (distance + c * margin.clamp_min(0)).sum().backward()
        optimizer.step()
    return found, best.isfinite()


def pairs(before: Tensor, after: Tensor, K: int) -> Tensor:
    """Returns the fraction (K, K), float64, of each pair (class before, class after) among the images whose class differs."""
    counts = torch.zeros(K, K, dtype=torch.double)
    differs = before != after
    ones = torch.ones(int(differs.sum()), dtype=torch.double)
    counts.index_put_((before[differs].cpu(), after[differs].cpu()), ones, accumulate=True)
    return counts / counts.sum().clamp_min(1)


def overlap(p: Tensor, q: Tensor) -> float:
    """Returns the overlap in [0, 1] of two distributions of class pairs (K, K): the sum of their minima."""
    return torch.minimum(p, q).sum().item()


def by_chance(n: int, K: int, q: Tensor, tries: int = 200) -> float:
    """Returns the mean overlap with q (K, K) of n uniformly drawn pairs of different classes, over `tries` draws."""
    if not n:
        return 0.0
    g, different = torch.Generator().manual_seed(0), (~torch.eye(K, dtype=torch.bool)).flatten().nonzero()[:, 0]
    drawn = different[torch.randint(len(different), (tries, n), generator=g)]
    return sum(overlap((d.bincount(minlength=K * K) / n).view(K, K).double(), q) for d in drawn) / tries


def draw(groups: dict[str, list[float]], rows: dict[str, tuple[Tensor, list[str]]], title: str, path: Path) -> None:
    """Draws a histogram of the confidence in each group, and below a row of images with their captions for each kind of image."""
    plt = pyplot()

    fig = plt.figure(figsize=(11, 3.2 + 1.15 * len(rows)), layout="constrained")
    above, below = fig.subfigures(2, 1, height_ratios=(3.2, 1.15 * len(rows)))
    for ax, (name, confidence) in zip(above.subplots(1, len(groups)), groups.items(), strict=True):
        ax.hist(confidence, torch.linspace(0, 1, 26).tolist())
        ax.set_title(f"{name}: {len(confidence):,}", fontsize=8)
        ax.set_xlabel("confidence", fontsize=8)
    axes = below.subplots(len(rows), SHOWN, squeeze=False)
    for line, (name, (images, captions)) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(name, fontsize=7)
        for ax in line:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        for ax, x, caption in zip(line, images, captions, strict=False):
            ax.imshow(x.permute(1, 2, 0).clamp(0, 1).cpu().numpy(), cmap="gray", vmin=0, vmax=1)
            ax.set_title(caption, fontsize=7, pad=2)
    fig.suptitle(title, fontsize=10)
    save_figure(fig, path)


def main(argv=None):
    run = start(Args, argv)
    args, data, K, teacher = run.args, run.data, run.data.classes, run.teacher
    attack = load_attack(run, args.run_path)
    pool = read_pool(Path(args.run_path) / "pool.npy", data.shape)
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(args.seed))[: 50 if args.dry_run else args.samples]
    synthetic = torch.from_numpy(pool[order.numpy()]).to(run.device).float() / 255

    def classify(pixels):  # (N, C, H, W) in [0, 1] -> classes (N,), confidence (N,)
        p = torch.cat([teacher.audit(data.view(x)).exp() for x in pixels.split(500)])
        return p.argmax(1), p.amax(1)

    @torch.no_grad()
    def attacked(pixels):
        return torch.cat([attack(data.view(x)) * data.std + data.mean for x in pixels.split(500)])

    y, real = run.test.y, run.resident(run.test).x.float() / 255
    real_class, real_confidence = classify(real)
    right = real_class == y
    before, before_confidence = classify(synthetic)
    moved = attacked(synthetic)
    after, after_confidence = classify(moved)
    flipped = after != before
    cw_rows = right.nonzero()[: 2 if args.dry_run else args.cw_samples, 0]
    cw_steps, cw_y = 2 if args.dry_run else args.cw_steps, y[cw_rows]
    cw, done = carlini_wagner(lambda x: teacher.inside(data.view(x))[0], real[cw_rows], cw_y, cw_steps, args.cw_c, args.cw_lr)
    cw_class, cw_confidence = classify(cw)
    errors, n = pairs(y, real_class, K), int((~right).sum())
    table = {"real": {"images": len(y), "wrong": 1 - right.double().mean().item(), "certainty": means(real_confidence, right)}}
    table["real"]["ece"] = calibration_error(run.truth.log_p.exp(), y).item()
    table["real"]["reliability"] = reliability(real_confidence, right)
    table["made up"] = {"images": len(synthetic), "certainty": [mean(before_confidence)]}
    table["attacked"] = {"images": len(synthetic), "wrong": flipped.double().mean().item(), "certainty": means(after_confidence, ~flipped)}
    table["attacked"] |= {"overlap": overlap(pairs(before, after, K), errors), "by chance": by_chance(int(flipped.sum()), K, errors)}
    cw_flipped = done & (cw_class != cw_y)
    table["carlini wagner"] = {
        "images": len(cw),
        "wrong": cw_flipped.double().mean().item(),
        "certainty": means(cw_confidence, ~cw_flipped),
    }
    table["carlini wagner"] |= {"overlap": overlap(pairs(cw_y[cw_flipped], cw_class[cw_flipped], K), errors)}
    table["carlini wagner"] |= {
        "by chance": by_chance(int(cw_flipped.sum()), K, errors),
        "l2": mean((cw - real[cw_rows]).flatten(1).norm(dim=1)[cw_flipped]),
    }
    for name, row in zip(("real", "synthetic", "attacked", "Carlini Wagner"), table.values(), strict=True):
        numbers = [f"{'overlap of uniform pairs' if k == 'by chance' else k} {v:.3f}" for k, v in row.items() if isinstance(v, float)]
        kinds = "confidence if right or unchanged", "confidence if wrong or changed"
        numbers += [f"{k} {v:.3f}" for k, v in zip(kinds, row["certainty"], strict=False) if v is not None]
        say(f"{name:>14}: {row['images']:,} images, {', '.join(numbers)}")
    say(f"the teacher classifies {n} real test images wrongly")
    groups = {
        "real, right": real_confidence[right],
        "real, wrong": real_confidence[~right],
        "synthetic": before_confidence,
        "attacked, class changed": after_confidence[flipped],
        "Carlini and Wagner": cw_confidence[cw_flipped],
    }
    rows = {}
    for name, images, old, new, confidence, shown in (
        ("real, right", real, y, real_class, real_confidence, right),
        ("real, wrong", real, y, real_class, real_confidence, ~right),
        ("synthetic", synthetic, before, before, before_confidence, torch.ones_like(flipped)),
        ("attacked", moved, before, after, after_confidence, flipped),
        ("C. and W.", cw, cw_y, cw_class, cw_confidence, cw_flipped),
    ):
        i = shown.nonzero()[:SHOWN, 0]
        values = zip(old[i].tolist(), new[i].tolist(), confidence[i].tolist(), strict=True)
        rows[name] = images[i], [f"{a} > {b}, {c:.2f}" for a, b, c in values]  # class before > class after, confidence
    draw({k: v.tolist() for k, v in groups.items()}, rows, f"{args.teacher} on {args.dataset}", run.record.logs / "teacher_behavior.png")
    save_json(run.record.logs / "teacher_behavior.json", table)
    run.notes["teacher_behavior"] = table
    say(f"written: {run.record.logs}/teacher_behavior.png, .json")
    return run.finish()


def mean(values: Tensor) -> float | None:
    """Returns the mean of the values (n,), None if there are none."""
    return values.mean().item() if len(values) else None


def means(confidence: Tensor, same: Tensor) -> list[float | None]:
    """Returns the mean confidence of the images with `same` (N,), whose class is right or unchanged, and that of the others."""
    return [mean(confidence[same]), mean(confidence[~same])]


def reliability(confidence: Tensor, right: Tensor, bins: int = 10) -> list[list]:
    """Returns [mean confidence, fraction right, number of images] for each of `bins` bins of equal width in confidence."""
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    return [[mean(confidence[index == b]), mean(right[index == b].double()), int((index == b).sum())] for b in range(bins)]


if __name__ == "__main__":
    cli(main)
