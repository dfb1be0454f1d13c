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

import torch.nn.functional as F

from common.aeahl.attack import Attack
from common.aeahl.inversion import Bank, Taps, contrast, disagreement
from common.aeahl.reuse import Reuse, generator, left
from common.aeahl.synthesis import Synthesiser, show
from common.losses import balance, kl
from common.run import start
from common.utils import cli


@dataclass
class Args(Reuse):
    t: float = 20.0  # temperature of the student's KL term, in (0, 1000]
    hard_loss: bool = False  # add the cross-entropy to hard labels
    alpha: float = 0.9  # with it, weight of the KL term, in [0, 1000000]
    beta: float = 0.1  # weight of the cross-entropy to the hard labels, in [0, 1000000]
    aea: bool = True  # switched off: the hard label is the teacher's class, and nothing is attacked
    pa: float = 0.001  # share of the student's images on which soft answer and label shall contradict, in [0, 1]
    eps: float = 10 / 255  # how far the attack moves a pixel, of values in [0, 1], in [0, 1]
    swap: bool = False  # the more certain of an image and its attacked version is the natural one; every image is attacked for it
    require_flip: bool = True  # switched off: also attacked images whose class has not changed are shown
    gap_width: int = 64  # channels of the attacking net's first layer, in [1, 1024]
    gap_steps: int = 3  # of each synthesis, its last, in which that net learns, in [0, 1000000]
    gap_images: int = 64  # of a batch on which it learns, in [2, 1000000]
    aea_compat: bool = False  # the attack as the released code has it
    export: int = 0  # images of the pool that are written as PNG files into the logs, in [0, 1000000000]


def main(argv=None):
    run = start(Args, argv)
    args, teacher, student, view = run.args, run.teacher, run.student, run.data.view
    G, shares = generator(run)
    taps, bank = Taps(teacher.norms() if args.w_bn else [], args.bn_momentum), Bank()
    attack = Attack(run) if args.hard_loss and args.aea else None

    def inversion(images, wanted):  # (B, C, H, W) in [0, 1], (B,)
        x = view(images, args.augment)
        with taps:
            t, f = teacher.inside(x)  # (B, K), (B, F)
        terms = {
            "bn": taps.loss,
            "oh": lambda: F.cross_entropy(t, wanted if args.wanted == "drawn" else t.argmax(1)),
            "adv": lambda: -disagreement(student(x), t, args.adv_on == "agreed"),
            "even": lambda: balance(t),
            "act": lambda: -f.abs().mean(),
            "cr": lambda: contrast(f, teacher.inside(view(images, args.augment))[1], bank, args.cr_t),
        }
        if attack and (args.aea_compat or syn.step >= syn.steps - args.gap_steps):
            attack.learn(x.detach(), t.detach())
        return {name: weight * terms[name]() for name, weight in syn.weights().items()}

    def loss(x, t, y=None):  # images, the teacher's logits (B, K), hard labels (B,)
        s = student(x)
        if not args.hard_loss:
            return {"kl": kl(s, t, args.t)}
        return {"kl": args.alpha * kl(s, t, args.t), "hard": args.beta * F.cross_entropy(s, t.argmax(1) if y is None else y)}

    syn = Synthesiser(run, G, inversion, taps, shares, attack, bank)
    more = {"attack": attack} if attack else {}
    run.fit(syn, loss, evaluate=lambda: run.accuracy() | syn.log() | (attack.log() if attack else {}), synthesis=syn, **more)
    show(run, syn, args.export)
    nets = left(run, syn.ready(), inversion) | ({"attack": attack.net} if attack else {})
    return run.finish(student=student, **nets)


if __name__ == "__main__":
    cli(main)
