"""How near the boundary is found, by queries: DB3KD.py's ways of looking for it, and what a query costs beside a bare forward pass.

    python benchmarks/distances.py                                    digits rendered from a font, made here: no download
    python benchmarks/distances.py --dataset MNIST --data_dir data    real ones
    python benchmarks/distances.py --images 40 --budgets 100,300,1000,4000 --only surrogate

A LeNet-5 teacher is trained on 28 x 28 pixels (14 epochs), then images are drawn and each pair of an image and another class is looked
at. A row: mean distance of all pairs at each budget, as known by then, over the nearest that descent through the teacher's own gradients
found (the optimum, which no label-only method can see), mean queries taken at the largest budget, teacher calls, seconds a million
queries, and that over the same passes of the bare net. `signopt` is the paper's algorithm with its errors mended. Queries of priors
(a label for each image; the bank's pilots) are shared by all pairs and stand apart.
"""

import argparse
import contextlib
import io
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "project"))
import DB3KD
import teacher

from common import datasets
from common.db3kd.labels import Measure, budgets_of
from common.db3kd.priors import crossing
from common.options import flags
from common.run import start

ROWS = {
    "signopt, all pixels (the paper's)": {"algorithm": "signopt", "basis": "full"},
    "hsja, all pixels": {"algorithm": "hsja", "basis": "full"},
    "arc, all pixels": {"basis": "full"},
    "arc, cosines (the default)": {"basis": "dct"},
    "surrogate, then cosines": {"basis": "surrogate+dct"},
    "bank, then cosines": {"basis": "bank+dct", "pilots": 16},
}


def rendered(n, seed):
    """n digits (n, 1, 28, 28) uint8 and their classes: a font, its size, place, slant, turn, weight and blur at random."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % 10)
    x = np.zeros((n, 28, 28), np.uint8)
    for i, k in enumerate(y):
        image, at = Image.new("L", (56, 56)), 28 + rng.uniform(-3, 3, 2)
        font, weight = ImageFont.load_default(int(rng.integers(34, 47))), int(rng.integers(0, 3))
        ImageDraw.Draw(image).text(tuple(at), str(k), fill=255, font=font, anchor="mm", stroke_width=weight, stroke_fill=255)
        slant = rng.uniform(-0.25, 0.25)
        image = image.transform((56, 56), Image.Transform.AFFINE, (1, slant, -28 * slant, 0, 1, 0), Image.Resampling.BILINEAR)
        image = image.rotate(rng.uniform(-18, 18), Image.Resampling.BILINEAR).filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 1.5)))
        x[i] = image.resize((28, 28), Image.Resampling.BILINEAR)
    x[x < 13] = 0  # most of the page is blank, as in MNIST
    return torch.as_tensor(x)[:, None], torch.as_tensor(y)


def timed(f, device):
    """(what f() gives, seconds)"""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    value = f()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return value, time.perf_counter() - began


def begin(shared, name, options, budgets, lamda):
    """A DB3KD run with its answers bought, up to where distances are measured: (run, Measure)."""
    given = {"teacher": "LeNet5", "model": "LeNet5_half", "sr_mode": "mbd", "budgets": budgets, "lamda": lamda}
    with contextlib.redirect_stdout(io.StringIO()):
        run = start(DB3KD.Args, flags(**shared, **given, **options, tag="".join(c for c in name if c.isalnum())))
        return run, Measure(run, run.buy(run.random_plan(len(run.queryable))), budgets_of(run.args)[0])


def bare(run, size):
    """Seconds of a million images through the bare net, `size` at a time (the call in which a median image is sent), the median of five."""
    ready = torch.randn(size, *run.data.shape, device=run.device)
    with torch.no_grad():
        run.teacher.net(ready)
        return 1e6 / (10 * size) * sorted(timed(lambda: [run.teacher.net(ready) for _ in range(10)], run.device)[1] for _ in range(5))[2]


def optimum_of(run, x, search, p):
    """Mean distance of the nearest points that descent through the teacher finds."""
    net, images = run.teacher.net, x[search.image[p]]
    ends = crossing(lambda z: net((z - run.data.mean) / run.data.std), images, search.target[p], search.near[p].view_as(images), 300)
    return (ends - images).flatten(1).norm(dim=1).mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="rendered")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--lamda", type=float, default=1.0, help="share of the images that are there as neighbours")
    parser.add_argument("--teacher_epochs", type=int, default=14)
    parser.add_argument("--images", type=int, default=20, help="whose distances are measured")
    parser.add_argument("--budgets", default="100,300,1000,4000")
    parser.add_argument("--only", default="", help="rows whose name begins so")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    datasets.DATASETS["rendered"] = datasets.Spec(10, 1, 28, lambda _, train: rendered(6000, 0) if train else rendered(1000, 1), "nothing")
    with tempfile.TemporaryDirectory() as home:
        shared = {"dataset": args.dataset, "img_size": 28, "data_dir": args.data_dir, "device": args.device}
        shared |= {"checkpoints_dir": f"{home}/c", "logs_dir": f"{home}/l"}
        adam = {"optimizer": "adam", "lr": 5e-4, "weight_decay": 0, "epochs": args.teacher_epochs, "eval_every": 1000}
        with contextlib.redirect_stdout(io.StringIO()):
            result = teacher.main(flags(**shared, model="LeNet5", lamda=1, schedule="cosine", **adam))
        print(f"{args.dataset}: LeNet5 {result['accuracy']:.2f} %, {result['device']}, torch {torch.__version__}", flush=True)
        optimum = None
        for name, options in ROWS.items():
            if not name.startswith(args.only):
                continue
            run, measure = begin(shared, name, options, args.budgets, args.lamda)
            rows = torch.randperm(len(measure.bank), generator=torch.Generator().manual_seed(1))[: args.images].to(run.device)
            x, s, before, calls, api = measure.bank[rows], measure.classes[rows], run.teacher.counts["queries"], [], run.teacher.api
            run.teacher.api = lambda z, api=api, calls=calls: (calls.append(len(z)), api(z))[1]
            search, took = timed(lambda m=measure, x=x, s=s, rows=rows: m.solve(x, s, rows, m.budgets), run.device)
            asked, p = run.teacher.counts["queries"] - before, (search.r < float("inf")).nonzero()[:, 0]
            assert asked == search.count.sum()
            if optimum is None:
                optimum = optimum_of(run, x, search, p)
                print(f"{len(p)} pairs, distance of the optimum {optimum:.3f}; budgets {args.budgets}")
            means = "  ".join(f"{v:.3f} ({v / optimum:.3f})" for v in search.curve[p].mean(0).tolist())
            ratio = 1e6 * took / asked / bare(run, int(np.median(np.repeat(calls, calls))))
            queries = f"{asked / len(p):5.0f} queries, {len(calls):,} calls of {asked / len(calls):,.0f}"
            print(
                f"{name:34} {means}  {queries}, {1e6 * took / asked:.1f} s a million, {ratio:.2f} of the bare net; before: {before:,}",
                flush=True,
            )


if __name__ == "__main__":
    main()
