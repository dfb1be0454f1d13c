"""bfa: flips bits of an 8-bit teacher until its accuracy drops, and compares the image sources that guide the search (bit-flip attack).
Progressive bit search, Rakin et al. 2019, https://arxiv.org/abs/1903.12269.
If synthetic images guide the search nearly as well as real ones, their generator has learned what the teacher knows.

    python project/AEAHL.py --dataset Digits --teacher ResNet20 --model ResNet8
    python figures/bfa.py --dataset Digits --teacher ResNet20 --run_path checkpoints/AEAHL/Digits/ResNet20_to_ResNet8-inside/seed0

Sources:

    real      training images
    random    uniform noise
    pool      the synthetic images of the AEAHL.py run
    reuse     the run's kept generator (generator.pt) with its decoder, beside a new generator
    waiver    the run's other generator (abandoned.pt) with its decoder, beside a new generator

All sources are normalised alike. The labels are the teacher's own classes.

Differs:
  - Biases stay as they are (released notebook: all are dropped).
  - All sources are normalised (released: some are not).
  - A search ends if no flip raises the loss (released: it does not end).
"""

import copy
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "project"))
from common.cli import cli, say

from common.aeahl.reuse import reused_generator
from common.measures import percent
from common.options import TeacherOptions, opt
from common.pictures import pyplot, save_figure
from common.pool import read_pool
from common.run import start
from common.utils import save_json

BITS = torch.tensor([-128, 64, 32, 16, 8, 4, 2, 1])  # values of the bits in two's complement, sign bit first


@dataclass
class Args(TeacherOptions):
    NEEDS: ClassVar = "inside"

    response: str = "inside"
    lamda: float = opt(1.0, "fraction of the training set from which the real images are drawn (class-balanced)")
    run_path: str = opt("", "checkpoint folder of a finished AEAHL.py run with this teacher")
    batch_size: int = opt(128, "number of images that guide one search", ge=2)
    iterations: int = opt(20, "number of iterations per search; each flips one bit or more", ge=1)
    repetitions: int = opt(5, "number of searches per image source, each with other images", ge=1)
    samples: int = opt(2000, "number of test images on which the accuracy after each flip is measured", ge=1)
    top: int = opt(10, "number of weights per layer that are candidates for a bit flip", ge=1)


def quantise(net: nn.Module) -> list[tuple[nn.Module, Tensor, Tensor]]:
    """Quantises the weights of all convolutions and linear layers of `net` to 8 bits, in place.

    Returns (layer, integers, step) for each layer: its weights are integers (int16, -127 to 127) times the step. The step starts at
    max |w| / 127. Step and integers are then fitted in turn, which reduces the mean squared error. Biases do not change.
    """
    found = []
    for m in net.modules():
        if isinstance(m, (nn.Conv2d, nn.Linear)):
            w = m.weight.detach().contiguous()
            step = w.abs().max() / 127
            for _ in range(50):
                q = (w / step).round().clamp(-127, 127)
                step = (w * q).sum() / q.square().sum().clamp_min(1)
            q = (w / step).round().clamp(-127, 127)
            m.weight.data = q * step
            found.append((m, q.to(torch.int16), step))
    return found


def bits_of(q: Tensor) -> Tensor:
    """Returns the eight bits (n, 8), 0 or 1, of integers (n,) in -128 to 127."""
    return (q[:, None].long() >> torch.arange(7, -1, -1, device=q.device)) & 1


def candidates(q: Tensor, gradient: Tensor, top: int, n: int) -> tuple[Tensor, Tensor]:
    """Returns the n bit flips that raise the loss most, to first order: indices (n,) of the weights and changes (n,) of their integers.

    q: integers (N,) of a layer. gradient: the loss by the integers (N,). Only the `top` weights with the largest gradient are considered.
    Fewer flips are returned if fewer raise the loss.
    """
    place = gradient.abs().topk(min(top, gradient.numel())).indices
    change = BITS.to(q.device) * (1 - 2 * bits_of(q[place]))  # (top, 8)
    gain = gradient[place, None] * change
    best = gain.flatten().topk(min(n, gain.numel()))
    chosen = best.indices[best.values > 0]
    return place[chosen // 8], change.flatten()[chosen]


def search(
    net: nn.Module, layers: list[tuple[nn.Module, Tensor, Tensor]], x: Tensor, y: Tensor, iterations: int, top: int
) -> Iterator[int]:
    """Flips bits of `net` in place, and yields the number of flips so far after each iteration.

    layers: the result of `quantise(net)`. x: images (B, C, H, W). y: classes (B,). The search ends early if no flip raises the loss.
    """
    flips = 0

    def loss():
        return F.cross_entropy(net(x), y)

    for _ in range(iterations):
        net.zero_grad()
        with torch.enable_grad():
            current = loss()
            current.backward()
        gradients = [(m.weight.grad * step).flatten() for m, _, step in layers]
        for n in range(1, 8 * top + 1):
            trials = []  # (loss, layer, weights, changes) with n flips in one layer
            for i, (m, q, step) in enumerate(layers):
                place, change = candidates(q.flatten(), gradients[i], top, n)
                before = m.weight.data.clone()
                m.weight.data.view(-1).index_add_(0, place, change * step)
                trials.append((loss().item() if len(place) else -1.0, i, place, change))
                m.weight.data = before
            highest, i, place, change = max(trials, key=lambda t: t[0])
            if highest > current.item():
                break
        else:
            return
        m, q, step = layers[i]
        q.view(-1).index_add_(0, place, change.to(torch.int16))
        m.weight.data = q * step
        flips += len(place)
        yield flips


def draw(curves: dict[str, list[list[float]]], title: str, path: Path) -> None:
    """Draws the accuracies of the searches of each source: mean and range by iteration, and a box plot of the last values.

    curves: {source: [accuracies of a search in percent]}.
    """
    plt = pyplot()

    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), width_ratios=(3, 2), layout="constrained", sharey=True)
    for i, (name, searches) in enumerate(curves.items()):
        n = max(map(len, searches))
        y = torch.tensor([s + s[-1:] * (n - len(s)) for s in searches])  # a search that ended early keeps its last value
        left.plot(range(n), y.mean(0), color=f"C{i}", label=name)
        left.fill_between(range(n), y.amin(0), y.amax(0), color=f"C{i}", alpha=0.15)
    right.boxplot([[s[-1] for s in searches] for searches in curves.values()], tick_labels=list(curves))
    left.xaxis.get_major_locator().set_params(integer=True)
    left.set(xlabel="iterations of the search", ylabel="test accuracy, %")
    right.set(xlabel="after the search")
    left.legend(frameon=False)
    left.grid(alpha=0.3)
    right.grid(alpha=0.3)
    fig.suptitle(title, fontsize=10)
    save_figure(fig, path)


def main(argv=None):
    run = start(Args, argv)
    args, shape = run.args, run.data.shape

    def sources():  # {name: function of n that returns images (n, C, H, W) in [0, 1]}
        train, pool = run.resident(run.private).x, torch.from_numpy(read_pool(Path(args.run_path) / "pool.npy", shape)).to(run.device)
        draw_from = lambda x: lambda n: x[torch.randint(len(x), (n,), device=x.device)].float() / 255  # noqa: E731
        found = {"real": draw_from(train), "pool": draw_from(pool), "random": lambda n: torch.rand(n, *shape, device=run.device)}
        for name, which in {"reuse": "generator", "waiver": "abandoned"}.items():
            G = reused_generator(run, args.run_path, which)
            found[name] = lambda n, G=G: G(torch.randn(n, G.g1.latent, device=run.device))
        return found

    rows = torch.randperm(len(run.test), generator=torch.Generator().manual_seed(args.seed))[: args.samples].sort().values
    test = run.test.subset(rows)

    def accuracy(net):
        return percent(run.infer(net, test).argmax(1) == test.y)

    image_sources = sources()
    teacher, quantised = run.teacher.net, copy.deepcopy(run.teacher.net)
    quantise(quantised)
    table = {"teacher": accuracy(teacher), "8 bits": (before := accuracy(quantised)), "sources": {}}
    say(f"teacher {table['teacher']:.2f} %, with 8-bit weights {before:.2f} %")
    for name, images in image_sources.items():
        curves, counts = [], []
        for _ in range(args.repetitions):
            net = copy.deepcopy(teacher).requires_grad_(True)
            with torch.no_grad():
                layers = quantise(net)
                x = run.data.view(images(args.batch_size), args.augment)
                y = teacher(x).argmax(1)
                steps = [(flips, accuracy(net)) for flips in search(net, layers, x, y, 2 if args.dry_run else args.iterations, args.top)]
            counts.append([0, *(f for f, _ in steps)])
            curves.append([before, *(a for _, a in steps)])
        ends = [c[-1] for c in curves]
        table["sources"][name] = {"accuracy": curves, "flips": counts, "ended early": sum(len(c) <= args.iterations for c in curves)}
        flips = max(c[-1] for c in counts)
        say(f"{name:>7}: mean {sum(ends) / len(ends):6.2f} % after at most {flips} flips ({min(ends):.2f} to {max(ends):.2f} %)")
    title = f"{args.teacher} on {args.dataset}, 8-bit weights: accuracy during the bit-flip attack"
    draw({k: v["accuracy"] for k, v in table["sources"].items()}, title, run.record.logs / "bfa.png")
    save_json(run.record.logs / "bfa.json", table)
    run.notes["bfa"] = {k: v["accuracy"] for k, v in table["sources"].items()}
    say(f"written: {run.record.logs}/bfa.png, bfa.json")
    return run.finish()


if __name__ == "__main__":
    cli(main)
