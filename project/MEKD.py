"""MEKD: mapping-emulation knowledge distillation. The teacher is asked about a generator's images; the student matches its answers,
and the images that the generator makes of both answers. Ma et al. 2024, https://arxiv.org/abs/2205.10490

    python project/DCGAN.py --teacher ResNet32
    python project/MEKD.py --teacher ResNet32 --model ResNet8 --res_type hard

Differs: the KL term has the factor t^2; `--kl_scale t` is the released code. From hard answers the KL term is cross-entropy on the
class: with the one-hot vector as logits at temperature 5, all targets are nearly uniform (Digits, validation: 88 % against 94 %). The
generator is given centred logits of both sides, since probabilities tell them up to a constant of each row. From topk:k answers the
mass that the API keeps back is spread evenly over the other classes.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from common.batches import Draw
from common.losses import centred, kl
from common.options import Buys
from common.run import start
from common.utils import cli


@dataclass
class Args(Buys):
    t: float = 5.0  # temperature of the KL term, in (0, 1000]
    gen_t: float = 5.0  # temperature of the logits that the generator is given, in (0, 1000]
    w_f: float = 1.0  # weight of the image term, in [0, 1000000]
    w_kl: float = 1.0  # weight of the KL term, in [0, 1000000]
    F: Literal["1", "2"] = "1"  # the image term's distance: L1 or L2
    kl_scale: Literal["t2", "t", "1"] = "t2"  # factor on the KL term
    steps: int = 500  # an epoch, in [1, 1000000]
    queries: int = 0  # images drawn and asked about once; 0: fresh noise at every step, where the budget allows it, in [0, 1000000000]
    generator_path: str = ""  # a generator.pt instead of DCGAN.py's
    generator_tag: str = ""  # the --tag of the DCGAN.py run that made the generator


def main(argv=None):
    run = start(Args, argv)
    args, student, teacher, K = run.args, run.student, run.teacher, run.data.classes
    G = run.generator(args.generator_path, args.generator_tag)
    fresh = args.epochs * args.steps * args.batch_size

    @torch.no_grad()
    def draw():
        x = G(torch.randn(args.batch_size, K, device=run.device))  # (B, C, H, W)
        t = teacher(x, "synthetic")  # (B, K)
        return x, t, G(centred(t) / args.gen_t)

    @torch.no_grad()
    def pictures(z):
        return torch.cat([G(c.to(run.device)) for c in z.split(1000)])

    def loss(x, t, image):
        s = student(x)  # (B, K)
        off = G(centred(s) / args.gen_t) - image  # (B, C, H, W)
        return {
            "image": args.w_f * (off.abs().mean() if args.F == "1" else off.square().mean()),
            "kl": args.w_kl * kl(s, t, args.t, args.kl_scale, teacher.hard),
        }

    if args.queries or args.transfer or teacher.left < fresh:
        bought = run.buy(lambda g: {"images": pictures(torch.randn(run.within(args.queries or fresh), K, generator=g))})
        batches = run.batches(bought, pictures(centred(bought["answers"]) / args.gen_t), steps=args.steps)
    else:
        batches = Draw(args.steps, draw)
    run.fit(batches, loss)
    return run.finish()


if __name__ == "__main__":
    cli(main)
