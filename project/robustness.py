"""robustness: measures the distances from test images to a model's decision boundary, and prints their statistics per class.
The untargeted distance of Wang 2021, https://arxiv.org/abs/2106.03310. The model returns classes only.

    python project/robustness.py --dataset MNIST --img_size 28 --teacher LeNet5
    python project/robustness.py --teacher ResNet8 --teacher_path checkpoints/KD/MNIST/ResNet32_to_ResNet8/seed0/student.pt

Differs:
  - Rays go to the nearest training images of other classes (released: to random points).
  - Every query is counted.
  - A distance is an upper bound. A point just before it on the same ray still has the class of the image.
"""

from common.cli import RunError, allocating, cli, say

from dataclasses import dataclass

import torch

from common.db3kd.boundary import nearest_of_class, nearest_other_class
from common.db3kd.labels import ALGORITHMS, parse_basis, search_stages, teacher_classifier
from common.db3kd.search import Search
from common.measures import histograms
from common.options import TeacherOptions, opt
from common.run import start


@dataclass
class Args(TeacherOptions):
    response: str = "hard"
    samples: int = opt(500, "number of test images whose distance is measured", ge=1)
    budget: int = opt(1000, "maximum number of queries per image", ge=200)
    neighbours: int = opt(5000, "number of training images that are searched for end points of the rays", ge=1)
    candidates: int = opt(8, "number of rays per image", ge=1)
    algorithm: ALGORITHMS = opt("arc", "search algorithm that follows the boundary: arc, signopt (the paper's) or hsja (HopSkipJump)")
    basis: str = opt(
        "dct",
        "bases of the search directions, one after the other, joined by +: dct:K (K x K cosines), full (all pixels), dct (three sizes)",
    )

    def validate(self) -> None:
        super().validate()
        parse_basis(self)


def main(argv=None):
    run = start(Args, argv)
    args, K, label = run.args, run.data.classes, teacher_classifier(run, "synthetic")
    (stages, _), n = search_stages(args, run.data.shape, run.device), min(len(run.test), 2 if args.dry_run else args.samples)

    def draw_pixels(images, n):  # n random images (n, C, H, W) in [0, 1], and their rows
        rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(args.seed))[:n]
        return images.subset(rows).x.float() / 255, rows

    def measure():
        x, rows = draw_pixels(run.resident(run.test), n)
        bank, _ = draw_pixels(run.resident(run.data.train), args.neighbours)
        run.teacher.expect(len(bank) + len(x) * (args.budget + 1))
        run.teacher.afford(len(bank) + len(x) * (args.budget + 1))
        s, classes = label(x), label(bank)
        rays = nearest_other_class(*nearest_of_class(x, s, bank, classes, K, args.candidates))
        search = Search(x, s, label, 0, rows.to(run.device), [args.budget])
        search.start(bank, *rays)
        search.bisect_rays(bank, *rays)
        search.minimise(stages, args.seed)
        return {"distance": search.r, "class": s, "right": s == run.test.y[rows.to(run.device)], "queries": search.count}

    with allocating("the search for boundary points", "--samples", "--neighbours", "--candidates", "--img_size"):
        shapes = dict.fromkeys(("distance", "class", "right", "queries"), (n,))
        found = {k: v.cpu() for k, v in run.purchases.keep("distances", measure, **shapes).items()}
    right = found["right"].double()
    say(f"accuracy {100 * right.mean():.2f} % of {len(right):,} images; distances are Euclidean, of pixel values in [0, 1]")
    say("class  images    mean  median   5 %  95 %")
    if not found["distance"].isfinite().any():
        classes = ", ".join(map(str, found["class"].unique().tolist()))
        raise RunError(f"no decision boundary was found: the model calls all {len(right):,} images class {classes}; is it trained?")
    table = {}
    for k in ["all", *range(K)]:
        d = found["distance"][found["class"] == k] if k != "all" else found["distance"]
        if len(d := d[d < float("inf")].double()):
            low, median, high = d.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.double)).tolist()
            table[k] = {"images": len(d), "mean": d.mean().item(), "median": median, "low": low, "high": high}
            say(f"{k!s:>5}  {len(d):6,}  {d.mean():6.3f}  {median:6.3f}  {low:.3f}  {high:.3f}")
    histograms({k: found["distance"][found["class"] == k].tolist() for k in table if k != "all"}, run.record.logs / "distances.png")
    run.notes["distances"] = table
    return run.finish()


if __name__ == "__main__":
    cli(main)
