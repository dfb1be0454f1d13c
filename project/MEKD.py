"""MEKD: mapping-emulation knowledge distillation. The teacher is asked about a generator's images; the student matches its answers,
and the images that the generator makes of both answers. Ma et al. 2024, https://arxiv.org/abs/2205.10490

    python project/DCGAN.py --teacher ResNet32
    python project/MEKD.py --teacher ResNet32 --model ResNet8 --res_type hard

Differs: the KL term has the factor t^2; `--kl_scale t` is the released code. From hard answers the KL term is cross-entropy on the
class: with the one-hot vector as logits at temperature 5, all targets are nearly uniform (Digits, validation: 88 % against 94 %).
"""

from dataclasses import dataclass
from typing import Literal

import torch

from common.datasets import Batches, Draw
from common.losses import kl
from common.options import Distill
from common.run import start
from common.utils import cli


@dataclass
class Args(Distill):
    t: float = 5.0  # temperature of the KL term, in (0, 1000]
    gen_t: float = 5.0  # temperature of the logits that the generator is given, in (0, 1000]
    w_f: float = 1.0  # weight of the image term, in [0, 1000000]
    w_kl: float = 1.0  # weight of the KL term, in [0, 1000000]
    F: Literal["1", "2"] = "1"  # the image term's distance: L1 or L2
    kl_scale: Literal["t2", "t", "1"] = "t2"  # factor on the KL term
    steps: int = 500  # an epoch, in [1, 1000000]
    queries: int = 0  # images that are drawn and asked about once; 0: fresh noise at every step, in [0, 1000000000]
    generator_path: str = ""  # a generator.pt instead of DCGAN.py's


def main(argv=None):
    run = start(Args, argv)
    args, student, teacher, K = run.args, run.student, run.teacher, run.data.classes
    G = run.generator(args.generator_path)

    def noise(n):
        return torch.randn(n, K, device=run.device)

    @torch.no_grad()
    def make(z, t=None):  # all that does not depend on the student: image, answer, the image made of the answer
        x = G(z)  # (B, C, H, W)
        t = teacher(x, synthetic=True) if t is None else t  # (B, K)
        return x, t, G(t / args.gen_t)

    def loss(x, t, image):
        s = student(x)  # (B, K)
        off = G(s / args.gen_t) - image  # (B, C, H, W)
        return {
            "image": args.w_f * (off.abs().mean() if args.F == "1" else off.square().mean()),
            "kl": args.w_kl * kl(s, t, args.t, args.kl_scale, teacher.hard),
        }

    if args.queries:
        z = noise(args.queries)
        z, t = run.once("answers", len(z), lambda: (z, torch.cat([teacher(G(c), synthetic=True) for c in z.split(1000)])))
        parts = zip(*map(make, z.split(1000), t.split(1000)), strict=True)
        batches = Batches(*map(torch.cat, parts), size=args.batch_size, steps=args.steps)
    else:
        teacher.afford(args.epochs * args.steps * args.batch_size)
        batches = Draw(args.steps, lambda: make(noise(args.batch_size)))
    run.fit(batches, loss)
    return run.finish()


if __name__ == "__main__":
    cli(main)
