"""bfa: how far a few flipped bits bring an 8-bit teacher down, by the images that tell which bits: real ones, those of a generator, noise.
Progressive bit search, Rakin et al. 2019, https://arxiv.org/abs/1903.12269. If made-up images guide it nearly as well as real ones, their
generator has learned what the teacher knows.

    python project/AEAHL.py --dataset Digits --teacher ResNet20 --model ResNet8
    python figures/bfa.py --dataset Digits --teacher ResNet20 --run_path checkpoints/AEAHL/Digits/ResNet20_to_ResNet8-inside/seed0

Sources: real (training images), random (uniform noise), pool (the run's images), reuse and waiver (the net that the run kept, and the
other, each with its decoder and a new net beside it). All are normalised alike; labels are the teacher's own classes.
Differs: the released notebook drops all biases, feeds some sources as they are, and its search does not end where nothing raises the loss.
"""

import copy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn as nn
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "project"))
from common.aeahl.pool import read_pool
from common.aeahl.reuse import taken_up
from common.measures import percent
from common.options import TeacherOptions, opt
from common.pictures import pyplot, save_figure
from common.run import start
from common.utils import cli, save_json, say

BITS = torch.tensor([-128, 64, 32, 16, 8, 4, 2, 1])  # of two's complement, the sign's first


@dataclass
class Args(TeacherOptions):
    NEEDS: ClassVar = "inside"

    response: str = "inside"
    lamda: float = opt(1.0, "fraction of the training set from which the real images are drawn")
    run_path: str = opt("", "checkpoint folder of a finished AEAHL.py run with this teacher")
    batch_size: int = opt(128, "number of images that guide a search", ge=2)
    iterations: int = opt(20, "number of iterations of a search, one flip or more each", ge=1)
    repetitions: int = opt(5, "number of searches per source of images, each on other images", ge=1)
    samples: int = opt(2000, "number of test images on which the accuracy after each flip is measured", ge=1)
    top: int = opt(10, "number of weights per layer that are candidates for a flip", ge=1)


def quantise(net):
    """[(layer, integers int16, step)] of all convolutions and linear layers, whose weights become integers (-127 ... 127) times the step.

    The step begins at max |w| / 127 and is fitted in turn with the integers, so that the mean squared error falls. Biases stay.
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


def bits_of(q):
    """The eight bits (n, 8) of integers (n,) in -128 ... 127, as 0 and 1."""
    return (q[:, None].long() >> torch.arange(7, -1, -1, device=q.device)) & 1


def candidates(q, gradient, top, n):
    """(places (n,), changes (n,)): the bits, of the `top` weights of largest gradient, whose flip promises to raise the loss most."""
    place = gradient.abs().topk(min(top, gradient.numel())).indices
    change = BITS.to(q.device) * (1 - 2 * bits_of(q[place]))  # (top, 8)
    gain = gradient[place, None] * change
    best = gain.flatten().topk(min(n, gain.numel()))
    chosen = best.indices[best.values > 0]
    return place[chosen // 8], change.flatten()[chosen]


def search(net, layers, x, y, iterations, top):
    """Flips bits of `net` in place, yields after each iteration the number of flips; ends where no flip raises the loss on (x, y)."""
    flips = 0

    def loss():
        return F.cross_entropy(net(x), y)

    for _ in range(iterations):
        net.zero_grad()
        with torch.enable_grad():
            now = loss()
            now.backward()
        gradients = [(m.weight.grad * step).flatten() for m, _, step in layers]
        for n in range(1, 8 * top + 1):
            tried = []
            for i, (m, q, step) in enumerate(layers):
                place, change = candidates(q.flatten(), gradients[i], top, n)
                before = m.weight.data.clone()
                m.weight.data.view(-1).index_add_(0, place, change * step)
                tried.append((loss().item() if len(place) else -1.0, i, place, change))
                m.weight.data = before
            worst, i, place, change = max(tried, key=lambda t: t[0])
            if worst > now.item():
                break
        else:
            return
        m, q, step = layers[i]
        q.view(-1).index_add_(0, place, change.to(torch.int16))
        m.weight.data = q * step
        flips += len(place)
        yield flips


def draw(curves, title, path):
    """A line a source with a band from its worst to its best search, and a box of where the searches end."""
    plt = pyplot()

    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), width_ratios=(3, 2), layout="constrained", sharey=True)
    for i, (name, searches) in enumerate(curves.items()):
        n = max(map(len, searches))
        y = torch.tensor([s + s[-1:] * (n - len(s)) for s in searches])  # one that ended early stays where it ended
        left.plot(range(n), y.mean(0), color=f"C{i}", label=name)
        left.fill_between(range(n), y.amin(0), y.amax(0), color=f"C{i}", alpha=0.15)
    right.boxplot([[s[-1] for s in searches] for searches in curves.values()], tick_labels=list(curves))
    left.xaxis.get_major_locator().set_params(integer=True)
    left.set(xlabel="iterations of the search", ylabel="test accuracy, %")
    right.set(xlabel="at the end")
    left.legend(frameon=False)
    left.grid(alpha=0.3)
    right.grid(alpha=0.3)
    fig.suptitle(title, fontsize=10)
    save_figure(fig, path)


def main(argv=None):
    run = start(Args, argv)
    args, shape = run.args, run.data.shape

    def sources():
        """{name: images(n) in [0, 1]}"""
        train, pool = run.resident(run.private).x, torch.from_numpy(read_pool(Path(args.run_path) / "pool.npy", shape)).to(run.device)
        some = lambda x: lambda n: x[torch.randint(len(x), (n,), device=x.device)].float() / 255  # noqa: E731
        found = {"real": some(train), "pool": some(pool), "random": lambda n: torch.rand(n, *shape, device=run.device)}
        for name, which in {"reuse": "generator", "waiver": "abandoned"}.items():
            G = taken_up(run, args.run_path, which)
            found[name] = lambda n, G=G: G(torch.randn(n, G.g1.latent, device=run.device))
        return found

    some = torch.randperm(len(run.test), generator=torch.Generator().manual_seed(args.seed))[: args.samples].sort().values
    test = run.test.subset(some)

    def accuracy(net):
        return percent(run.infer(net, test).argmax(1) == test.y)

    found = sources()
    whole, small = run.teacher.net, copy.deepcopy(run.teacher.net)
    quantise(small)
    table = {"teacher": accuracy(whole), "8 bits": (first := accuracy(small)), "sources": {}}
    say(f"{table['teacher']:.2f} %, with 8-bit weights {first:.2f} %")
    for name, images in found.items():
        curves, counts = [], []
        for _ in range(args.repetitions):
            net = copy.deepcopy(whole).requires_grad_(True)
            with torch.no_grad():
                layers = quantise(net)
                x = run.data.view(images(args.batch_size), args.augment)
                y = whole(x).argmax(1)
                steps = [(flips, accuracy(net)) for flips in search(net, layers, x, y, 2 if args.dry_run else args.iterations, args.top)]
            counts.append([0, *(f for f, _ in steps)])
            curves.append([first, *(a for _, a in steps)])
        ends = [c[-1] for c in curves]
        table["sources"][name] = {"accuracy": curves, "flips": counts, "ended early": sum(len(c) <= args.iterations for c in curves)}
        say(f"{name:>7}: {sum(ends) / len(ends):6.2f} % after {max(c[-1] for c in counts)} flips, {min(ends):.2f} to {max(ends):.2f}")
    title = f"{args.teacher} on {args.dataset}, 8-bit weights: accuracy by flipped bits"
    draw({k: v["accuracy"] for k, v in table["sources"].items()}, title, run.record.logs / "bfa.png")
    save_json(run.record.logs / "bfa.json", table)
    run.notes["bfa"] = {k: v["accuracy"] for k, v in table["sources"].items()}
    say(f"written: {run.record.logs}/bfa.png bfa.json")
    return run.finish()


if __name__ == "__main__":
    cli(main)
