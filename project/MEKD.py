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
from pathlib import Path
from typing import Literal

import torch

from common.batches import Draw
from common.checkpoints import first_run
from common.gan import Generator
from common.losses import centred, kl
from common.options import TransferOptions, opt
from common.run import start
from common.utils import UsageError, cli, dataset_tag, run_folder, run_name, say


@dataclass
class Args(TransferOptions):
    temperature: float = opt(5.0, "temperature of the KL term", alias="t", gt=0)
    gen_t: float = opt(5.0, "temperature of the logits that the generator is given", gt=0)
    w_f: float = opt(1.0, "weight of the image term", ge=0)
    w_kl: float = opt(1.0, "weight of the KL term", ge=0)
    F: Literal["1", "2"] = opt("1", "distance of the image term: L1 (1) or L2 (2)")
    kl_scale: Literal["t2", "t", "1"] = opt(
        "t2", "factor of the KL term: temperature squared (t2), temperature (t, MEKD's released code), or 1"
    )
    steps: int = opt(500, "number of steps in an epoch", ge=1)
    queries: int = opt(0, "number of images drawn and asked about once; 0: new images at every step, where the budget allows it", ge=0)
    generator_path: str = opt("", "checkpoint file of the generator, instead of the one from DCGAN.py")
    generator_tag: str = opt("", "--tag of the DCGAN.py run that made the generator")


def find_generator(run):
    """DCGAN.py's generator for this data set, teacher and seed, frozen, in evaluation mode; one made with the same response first."""
    a = run.args
    names = [run_name(a.teacher, response=r, tag=a.generator_tag) for r in (a.response, "soft")]
    places = [run_folder(a.checkpoints_dir, "DCGAN", dataset_tag(a), name, a.seed) / "generator.pt" for name in names]
    path = Path(a.generator_path or next((p for p in places if p.exists()), places[1]))
    more = {k: v for k, v in {"private": a.private, "tag": a.generator_tag}.items() if v}
    first = first_run(a, "DCGAN", teacher=a.teacher, seed=a.seed, lamda=a.lamda, **more)
    if path == places[1] and not path.exists():
        raise UsageError(f"no generator in {path.parent}; first run: {first}")
    state, meta = run.record.source(path)
    made = {"dataset": dataset_tag(a), "lamda": a.lamda, "teacher": run.teacher.identity}
    if off := [f"its {k} was {meta[k]}, this run's is {v}" for k, v in made.items() if meta.get(k, v) != v]:
        raise UsageError(f"{path} does not belong to this run: {'; '.join(off)}; run again: {first} --overwrite")
    G = Generator(meta.get("latent", run.data.classes), run.data.shape).to(run.device, memory_format=torch.channels_last)
    run.purchases.add_inherited_counts(meta.get("counts", {}))
    say(f"generator {path}: {meta.get('counts', {}).get('queries', 0):,} queries in its training")
    return run.load_weights(G, path, kind="a generator", content=(state, meta)).eval().requires_grad_(False)


def main(argv=None):
    run = start(Args, argv)
    args, student, teacher, K = run.args, run.student, run.teacher, run.data.classes
    G = find_generator(run)
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
            "kl": args.w_kl * kl(s, t, args.temperature, args.kl_scale, teacher.hard),
        }

    if args.queries or args.transfer or teacher.left < fresh:
        bought = run.buy(lambda g: {"images": pictures(torch.randn(run.purchases.clip_to_budget(args.queries or fresh), K, generator=g))})
        batches = run.batches(bought, pictures(centred(bought["answers"]) / args.gen_t), steps=args.steps)
    else:
        batches = Draw(args.steps, draw)
    run.fit(batches, loss)
    return run.finish()


if __name__ == "__main__":
    cli(main)
