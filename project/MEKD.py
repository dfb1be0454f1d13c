"""MEKD: trains the student on responses to a generator's images, and on images generated from the logits (mapping-emulation KD).
Ma et al. 2024, https://arxiv.org/abs/2205.10490

    python project/DCGAN.py --teacher ResNet32
    python project/MEKD.py --teacher ResNet32 --model ResNet8 --res_type hard

Differs:
  - The KL term has the factor temperature squared. The released code has the factor temperature (--kl_scale t).
  - With hard responses the KL term is the cross-entropy to the teacher's class. One-hot vectors as logits at temperature 5 give nearly
    uniform targets: 90.8 % instead of 96.4 % (Digits, validation, 1,000 steps, one seed).
  - The generator's input are centred logits, because probabilities determine logits only up to a constant per image.
  - With topk:K responses the missing probability is spread evenly over the other classes.
"""

from common.cli import UsageError, allocating, cli, say

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch

from common.batches import Draw
from common.checkpoints import first_run, meta_differences
from common.gan import Generator
from common.losses import centred, kl
from common.options import KLOptions, dataset_tag, opt
from common.processes import share
from common.run import Run, start
from common.utils import check_regular, run_folder, run_name


@dataclass
class Args(KLOptions):
    AUGMENTS: ClassVar = False

    temperature: float = opt(5.0, "temperature of the KL term", alias="t", ge=1e-3, le=1e3)
    gen_t: float = opt(5.0, "temperature that divides the logits before they enter the generator", ge=1e-3, le=1e3)
    w_f: float = opt(1.0, "weight of the image term (distance between the images generated from the logits of student and teacher)", ge=0)
    w_kl: float = opt(1.0, "weight of the KL term", ge=0)
    F: Literal["1", "2"] = opt("1", "distance in the image term: L1 (1) or L2 (2)")
    steps: int = opt(500, "number of steps per epoch", ge=1)
    queries: int = opt(0, "number of synthetic images bought once; 0: new images at every step, if the query budget allows it", ge=0)
    generator_path: str = opt("", "checkpoint file of the generator, instead of the one from DCGAN.py")
    generator_tag: str = opt("", "tag of the DCGAN.py run that trained the generator")


def find_generator(run: Run) -> Generator:
    """Returns the generator of the DCGAN.py run with this data set, teacher and seed, frozen and in evaluation mode.

    A generator trained with the same response takes precedence over one trained with probabilities (soft).
    UsageError if there is none, or if it belongs to another data set, fraction or teacher.
    """
    a = run.args
    names = [run_name(a.teacher, response=r, tag=a.generator_tag) for r in (a.response, "soft")]
    paths = [run_folder(a.checkpoints_dir, "DCGAN", dataset_tag(a), name, a.seed) / "generator.pt" for name in names]
    for path in paths:
        check_regular(path)
    path = Path(a.generator_path or next((p for p in paths if p.exists()), paths[1]))
    more = {k: v for k, v in {"private": a.private, "tag": a.generator_tag}.items() if v}
    first = first_run(a, "DCGAN", teacher=a.teacher, seed=a.seed, lamda=a.lamda, **more)
    if path == paths[1] and not path.exists():
        raise UsageError(f"no generator in {path.parent}; first run: {first}")
    state, meta = run.record.source(path)
    expected = {"dataset": dataset_tag(a), "lamda": a.lamda, "teacher": run.teacher.identity}
    if wrong := meta_differences(meta, expected):
        raise UsageError(f"the generator {path} does not fit this run: {', '.join(wrong)}; run: {first} --overwrite")
    with allocating("the generator", "--img_size"):
        G = Generator(meta.get("latent", run.data.classes), run.data.shape).to(run.device, memory_format=torch.channels_last)
    run.purchases.add_inherited_counts(meta.get("counts", {}))
    say(f"generator {path}: {meta.get('counts', {}).get('queries', 0):,} queries during its training")
    return share(run.load_weights(G, path, kind="a generator", content=(state, meta)).eval().requires_grad_(False), a.sync_bn)


def main(argv=None):
    run = start(Args, argv)
    args, student, teacher, K = run.args, run.student, run.teacher, run.data.classes
    G, seen = find_generator(run), run.data.view_of_tanh()
    n_fresh = args.epochs * args.steps * args.batch_size

    @torch.no_grad()
    def draw():
        x = seen(G(torch.randn(args.batch_size, K, device=run.device)))  # (B, C, H, W)
        t = teacher(x, "synthetic")  # (B, K)
        return x, t, G(centred(t) / args.gen_t)

    @torch.no_grad()
    def generate(z):  # (N, K) -> (N, C, H, W)
        return torch.cat([G(c.to(run.device)) for c in z.split(1000)])

    def loss(x, t, image):  # synthetic images, the teacher's responses (B, K), the images that G makes from them
        s = student(x)  # (B, K)
        difference = G(centred(s) / args.gen_t) - image  # (B, C, H, W)
        return {
            "image": args.w_f * (difference.abs().mean() if args.F == "1" else difference.square().mean()),
            "kl": args.w_kl * kl(s, t, args.temperature, args.kl_scale, teacher.hard, args.standardise),
        }

    teacher.expect(args.queries or n_fresh)
    if args.queries or args.transfer or teacher.allowance < n_fresh:  # not what is left: a resumed run goes on as it began
        bought = run.buy(
            lambda g: {"images": seen(generate(torch.randn(run.purchases.clip_to_budget(args.queries or n_fresh), K, generator=g)))}
        )
        with allocating("the images that the generator makes from the answers", "--queries", "--query_budget", "--img_size"):
            batches = run.batches(bought, generate(centred(bought["answers"]) / args.gen_t), steps=args.steps)
    else:
        batches = Draw(args.steps, draw)
    run.fit(batches, loss, repeatable=True)
    return run.finish()


if __name__ == "__main__":
    cli(main)
