"""distances: measures how close to the optimum DB3KD.py's searches find the decision boundary, and the cost of a query.

    python benchmarks/distances.py                                    digits rendered from a font: no download
    python benchmarks/distances.py --dataset MNIST --data_dir data    real digits
    python benchmarks/distances.py --images 40 --budgets 100,300,1000,4000 --only surrogate

A LeNet-5 teacher is trained on 28 x 28 pixels (14 epochs). The searches then measure all pairs of a random image and another class.
The optimum is the nearest point that gradient descent through the teacher finds, which no label-only method can see. A row prints:

    the mean distance over all pairs at each budget, and its ratio to the optimum
    the mean number of queries per pair, the number of calls of the teacher, and the queries per call
    seconds per million queries, their ratio to the same forward passes of the bare network, and the machine's floor of these: their FLOPs
    divided by the FLOPs per second of a large float32 matrix product
    the queries made before the search: a class for each image, and the pilots of --basis bank, which all pairs share

The row `signopt` is the paper's algorithm without the errors of its code.
"""

import argparse
import contextlib
import io
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "project"))
import DB3KD
import teacher
from floor import Machine, timed, work_of

from common import datasets
from common.db3kd.labels import BoundaryDistances, budgets_of
from common.db3kd.priors import adversarial_points
from common.db3kd.search import Search
from common.options import flags
from common.run import Run, start

ROWS = {
    "signopt, all pixels (the paper's)": {"algorithm": "signopt", "basis": "full"},
    "hsja, all pixels": {"algorithm": "hsja", "basis": "full"},
    "arc, all pixels": {"basis": "full"},
    "arc, cosines (the default)": {"basis": "dct"},
    "surrogate, then cosines": {"basis": "surrogate+dct"},
    "bank, then cosines": {"basis": "bank+dct", "pilots": 16},
}


def rendered(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Returns n digits (n, 1, 28, 28), uint8, and their classes (n,), with random size, position, slant, rotation, weight and blur."""
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
    x[x < 13] = 0  # most pixels are exactly 0, as in MNIST
    return torch.as_tensor(x)[:, None], torch.as_tensor(y)


def prepared_run(shared: dict[str, Any], name: str, options: dict[str, Any], budgets: str, lamda: float) -> tuple[Run, BoundaryDistances]:
    """Returns a DB3KD.py run whose classes are bought, and its BoundaryDistances."""
    given = {"teacher": "LeNet5", "model": "LeNet5_half", "sr_mode": "mbd", "budgets": budgets, "lamda": lamda}
    with contextlib.redirect_stdout(io.StringIO()):
        run = start(DB3KD.Args, flags(**shared, **given, **options, tag="".join(c for c in name if c.isalnum())))
        return run, BoundaryDistances(run, run.buy(run.random_plan(len(run.queryable))), budgets_of(run.args)[0])


def bare(run: Run, size: int, machine: Machine) -> tuple[float, float]:
    """Returns the seconds per million images of the bare network at batch size `size`, the median of five measurements, and their floor."""
    x = torch.randn(size, *run.data.shape, device=run.device)
    with torch.no_grad():
        work = work_of(lambda: run.teacher.net(x))
        seconds = [timed(lambda: [run.teacher.net(x) for _ in range(10)], run.device) for _ in range(5)]
    return 1e6 / (10 * size) * sorted(seconds)[2], 1e6 / size * machine.floor(work)[0]


def optimum_of(run: Run, x: Tensor, search: Search, p: Tensor) -> float:
    """Returns the mean distance over the pairs p (P,) to the nearest points that gradient descent through the teacher finds."""
    net, images = run.teacher.net, x[search.image[p]]
    ends = adversarial_points(
        lambda z: net((z - run.data.mean) / run.data.std), images, search.target[p], search.near[p].view_as(images), 300
    )
    return (ends - images).flatten(1).norm(dim=1).mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dataset", default="rendered", help="data set: rendered (digits from a font), or a name of docs/running.md (default: rendered)"
    )
    parser.add_argument("--data_dir", default="data", help="folder of the data sets (default: data)")
    parser.add_argument(
        "--lamda", type=float, default=1.0, help="fraction of the training set that is searched for end points of rays (default: 1)"
    )
    parser.add_argument("--teacher_epochs", type=int, default=14, help="number of epochs of the teacher (default: 14)")
    parser.add_argument("--images", type=int, default=20, help="number of images whose distances are measured (default: 20)")
    parser.add_argument(
        "--budgets", default="100,300,1000,4000", help="numbers of queries per pair, with commas (default: 100,300,1000,4000)"
    )
    parser.add_argument("--only", default="", help="first letters of the rows that are measured (default: all rows)")
    parser.add_argument("--device", default="auto", help="device: auto (a GPU if there is one), cpu, cuda or cuda:1 (default: auto)")
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
            run, measure = prepared_run(shared, name, options, args.budgets, args.lamda)
            rows = torch.randperm(len(measure.bank), generator=torch.Generator().manual_seed(1))[: args.images].to(run.device)
            x, s, before, calls, asked = measure.bank[rows], measure.classes[rows], run.teacher.counts["queries"], [], run.teacher.asked
            asked.answer = lambda z, stage, answer=asked.answer, calls=calls: (calls.append(len(z)), answer(z, stage))[1]
            found = []
            seconds = timed(lambda: found.append(measure.solve(x, s, rows, measure.budgets)), run.device)  # noqa: B023
            (search,) = found
            queries, p = run.teacher.counts["queries"] - before, (search.r < float("inf")).nonzero()[:, 0]
            assert queries == search.count.sum()
            if optimum is None:
                optimum = optimum_of(run, x, search, p)
                print(f"{len(p)} pairs, mean distance of the optimum {optimum:.3f}; mean distances at budgets {args.budgets}:")
            means = "  ".join(f"{v:.3f} ({v / optimum:.3f})" for v in search.curve[p].mean(0).tolist())
            per_million, (least, floor) = 1e6 * seconds / queries, bare(run, int(np.median(np.repeat(calls, calls))), Machine(run.device))
            cost = f"{queries / len(p):5.0f} queries per pair, {len(calls):,} calls of {queries / len(calls):,.0f} queries"
            speed = f"{per_million:.1f} s per million, {per_million / least:.2f} times the bare network, floor {floor:.1f} s"
            print(f"{name:34} {means}  {cost}, {speed}; queries before the search: {before:,}", flush=True)


if __name__ == "__main__":
    main()
