"""DB3KD: the teacher answers with a class only; how far an image is from its other classes tells what else the teacher sees in it.
Wang 2021, https://arxiv.org/abs/2106.03310

    python project/DB3KD.py --teacher ResNet32 --model ResNet8
    python project/DB3KD.py --teacher ResNet32 --model ResNet8 --mode sd

Differs: an image's own class is the teacher's answer, not the data set's label, also in the cross-entropy. Rays go to the 8 nearest
images that the teacher itself calls by the other class (paper: 200 random ones by their labels: --pick random --candidates 200).
Distances are divided by their median (--scale none: they are not), so that the temperature means the same on every data set. The KL term
is a mean over the batch with t^2 and the weight 1.28, which equals the released sum at batch 512. With --query_budget, labels come
first; what is left refines distances (bd), image by image, and the others keep the distance to the nearest image (sd).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F

from common.boundary import boundary_distances, halvings, nearest_of_class, soft_labels
from common.losses import kl
from common.options import Buys
from common.run import start
from common.utils import cli


@dataclass
class Args(Buys):
    NEEDS: ClassVar = "hard"

    response: str = "hard"  # what the teacher answers; more than a class is not looked at
    mode: Literal["bd", "sd"] = "bd"  # bd: distance to the boundary on rays; sd: to the nearest image of the class, without a query
    candidates: int = 8  # images of each other class, the rays' ends, in [1, 100000]
    pick: Literal["nearest", "random"] = "nearest"  # which they are
    tolerance: float = 1e-3  # of a ray's length, to which the boundary is found, in [1e-6, 0.5]
    scale: Literal["median", "none"] = "median"  # what distances are divided by before they become logits
    t: float = 20.0  # temperature, in (0, 1000]
    w_kl: float = 1.28  # weight of the KL term, in [0, 1000000]
    w_ce: float = 1.0  # weight of the cross-entropy on the teacher's classes, in [0, 1000000]


def main(argv=None):
    run = start(Args, argv)
    args, data, teacher, K = run.args, run.data, run.teacher, run.data.classes

    def pixels(rows):  # images in [0, 1]
        return run.see(rows) * data.std + data.mean

    def label(x):  # points between two private images, in [0, 1]
        return teacher((x - data.mean) / data.std, "mixed").argmax(1)

    bought = run.buy(run.some(len(run.resident(run.askable))))
    bank, classes = pixels(bought), bought["answers"].argmax(1)
    worst = args.candidates * (1 + halvings(args.tolerance)) * (K - 1)  # queries of one image

    def measure(rows):
        own = pixels(rows)
        s, g = rows["answers"].argmax(1).to(run.device), torch.Generator().manual_seed(args.seed)
        index, distance = nearest_of_class(own, s, bank, classes, K, args.candidates, args.pick, g)
        d, n = distance[:, :, 0].clone(), len(own) if args.mode == "bd" else 0
        n = int(min(n, teacher.left // worst))  # images that the budget allows to refine
        if n:
            d[:n], _ = boundary_distances(own[:n], s[:n], bank, index[:n], distance[:n], label, args.tolerance)
        return d

    bought = run.grow("distances", measure, 1000, len(bank))
    logits = soft_labels(bought["distances"], classes, args.scale)  # (N, K)

    def loss(x, t, logits):  # t: the teacher's classes, one-hot
        s = run.student(x)  # (B, K)
        return {"kl": args.w_kl * kl(s, logits, args.t), "ce": args.w_ce * F.cross_entropy(s, t.argmax(1))}

    run.fit(run.batches(bought, logits), loss)
    return run.finish()


if __name__ == "__main__":
    cli(main)
