"""AEAHL-RG: data-free distillation. A generator of two nets and a decoder, which a later task can reuse, makes images through the
teacher; hard labels, which adversarial images contradict now and then, stand beside its soft answers.
The released code of AEAHL-RG, 2024; its frame is FastDFKD, Fang et al. 2022, https://arxiv.org/abs/2112.15278: --generator single.

    python project/AEAHL.py --dataset CIFAR10 --teacher ResNet34 --model ResNet18
    python project/AEAHL.py ... --teacher VGG11_BN --mode reuse_common --hard_loss --reuse_generator_path .../generator.pt

Differs: the two nets begin apart (released, and --twins: equal, and so for ever). The attack moves pixels by eps at most, images are
normalised once, and the share pa really contradicts its label (released, and --aea_compat: no bound, twice, shown whether or not the
class changed). It learns on 64 images of a synthesis's last three steps (released: all of all). The pool's pixels are rounded, not
truncated. The last epoch counts, not the best on test images. A saved generator has batch-norm statistics of its own images. --epochs are
the student's; the cosine ends at 0, not 2e-4. Other methods in the same frame are presets: cmi contrasts the teacher's features as they
are (CMI: behind a learned head), dfq, zskt and dafl show the student new images at each step, of the generator in training mode.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from common.aeahl.attack import Attack
from common.aeahl.inversion import Bank, Taps, contrast, disagreement
from common.aeahl.reuse import ReuseOptions, left, make_generator
from common.aeahl.synthesis import ADAPTING, Synthesiser, show
from common.losses import balance, kl
from common.options import opt
from common.run import start
from common.utils import cli


@dataclass
class Args(ReuseOptions):
    ALIASES: ClassVar = {"epochs": ("epoch",), "weight_decay": ("wd",), "milestones": ("lr_decay_milestones",)}
    ALIASES |= {"data_dir": ("data_root",), "checkpoints_dir": ("save_dir",), "device": ("gpu",)}

    temperature: float = opt(20.0, "temperature of the student's KL term", alias="t", gt=0)
    hard_loss: bool = opt(False, "add the cross-entropy to hard labels", alias="hl")
    alpha: float = opt(0.9, "weight of the KL term with --hard_loss", ge=0)
    beta: float = opt(0.1, "weight of the cross-entropy with --hard_loss", ge=0)
    aea: bool = opt(True, "no attack: the hard label is the teacher's class")
    pa: float = opt(0.001, "fraction of the student's images whose label the teacher's answer contradicts", ge=0, le=1)
    eps: float = opt(10 / 255, "largest change of a pixel by the attack, for pixels in [0, 1]", ge=0, le=1)
    swap: bool = opt(
        False, "of an image and its attacked version, take the one with the surer answer as the natural one (attacks every image)"
    )
    require_flip: bool = opt(True, "show attacked images even if the attack has not changed their class")
    gap_width: int = opt(64, "channels of the attack net's first layer", ge=1, le=1024)
    gap_steps: int = opt(3, "number of the last steps of a synthesis in which the attack net is trained", ge=0)
    gap_images: int = opt(64, "number of images of a batch on which the attack net is trained", ge=2)
    aea_compat: bool = opt(False, "the attack as the released code has it")
    export: int = opt(0, "number of synthetic images written as PNG files into the logs", ge=0)


def main(argv=None):
    run = start(Args, argv)
    args, teacher, student, view = run.args, run.teacher, run.student, run.data.view
    G, shares = make_generator(run)
    taps, bank = Taps(teacher.norms() if args.w_bn else [], 0.9 if args.meta in ADAPTING else 0.0), Bank()
    attack = Attack(run) if args.hard_loss and args.aea else None

    def inversion(images, wanted):  # (B, C, H, W) in [0, 1], (B,)
        x = view(images, args.augment)
        with taps:
            t, f = teacher.inside(x)  # (B, K), (B, F)
        terms = {
            "bn": taps.loss,
            "oh": lambda: F.cross_entropy(t, wanted if args.wanted == "drawn" else t.argmax(1)),
            "adv": lambda: -disagreement(student(x), t, args.images == "pool"),
            "even": lambda: balance(t),
            "act": lambda: -f.abs().mean(),
            "cr": lambda: contrast(f, teacher.inside(view(images, args.augment))[1], bank),
        }
        if attack and (args.aea_compat or syn.step >= syn.steps - args.gap_steps):
            attack.learn(x.detach(), t.detach())
        return {name: weight * terms[name]() for name, weight in syn.weights().items()}

    def loss(x, t, y=None):  # images, the teacher's logits (B, K), hard labels (B,)
        s = student(x)
        if not args.hard_loss:
            return {"kl": kl(s, t, args.temperature)}
        return {"kl": args.alpha * kl(s, t, args.temperature), "hard": args.beta * F.cross_entropy(s, t.argmax(1) if y is None else y)}

    syn = Synthesiser(run, G, inversion, taps, shares, attack, bank)
    more = {"attack": attack} if attack else {}
    run.fit(syn, loss, evaluate=lambda: run.accuracy() | syn.log() | (attack.log() if attack else {}), synthesis=syn, **more)
    show(run, syn, args.export)
    nets = left(run, syn.ready(), inversion) | ({"attack": attack.net} if attack else {})
    return run.finish(student=student, **nets)


if __name__ == "__main__":
    cli(main)
