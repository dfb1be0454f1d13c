"""AEAHL: trains the student on images that a generator synthesises with the help of the teacher (data-free, AEAHL-RG and others).
Two generators share a decoder. A later run can reuse one generator and the decoder. --hard_loss adds hard labels, which a few
adversarial images contradict.
Released code of AEAHL-RG, 2024, https://github.com/sunyafeng1996/AEAHL-RG.
It extends FastDFKD, Fang et al. 2022, https://arxiv.org/abs/2112.15278 (--preset fastdfkd).

    python project/AEAHL.py --dataset CIFAR10 --teacher ResNet34 --model ResNet18
    python project/AEAHL.py ... --teacher VGG11_BN --mode reuse_common --hard_loss --reuse_generator_path .../generator.pt

Differs:
  - The two generators have independent initial weights (released, and --twins: equal weights, which stay equal).
  - The attack changes a pixel by at most --eps (released, and --aea_compat: no bound).
  - Attacked images are normalised once (released, and --aea_compat: twice).
  - The fraction --pa really contradicts its label (released, and --aea_compat: attacked images count even if their class is unchanged).
  - The attack network learns on 64 images in the last three steps of a synthesis (released: on all images in all steps).
  - The pixels of the pool are rounded to 8 bits (released: truncated).
  - The accuracy is that of the last epoch (released: of the best epoch on test images).
  - A saved generator has the batch-norm statistics of its own images (released: initial statistics).
  - --epochs does not include the warm-up. The cosine schedule ends at 0 (released: 2e-4).
  - --preset dfq and zskt maximise the divergence of student and teacher (released: of the teacher and itself, which is 0).
  - --preset cmi keeps features of 4,096 earlier images (released: of 40,960), also for ResNet34 of all batch-norm layers.
  - --preset adi mirrors a batch only with --augment crop_flip; its L2 prior, of weight 0 in the released code, is left out.
"""

from common.cli import allocating, cli

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from common.aeahl.attack import Attack
from common.aeahl.inversion import BatchNormHooks, Contrast, InstanceMeans, disagreement, js, norms_of, rolled, total_variation
from common.aeahl.reuse import ReuseOptions, make_generator, nets_to_keep
from common.aeahl.synthesis import ADAPTING, Synthesiser, save_pictures
from common.augment import random_boxes, resized_crop
from common.losses import balance, kl
from common.options import opt
from common.run import start

PART = 0.25, 1.0  # smallest and largest area of a part of an image in the contrastive term, as a fraction


@dataclass
class Args(ReuseOptions):
    ALIASES: ClassVar = {"epochs": ("epoch",), "weight_decay": ("wd",), "milestones": ("lr_decay_milestones",)}
    ALIASES |= {"data_dir": ("data_root",), "checkpoints_dir": ("save_dir",), "device": ("gpu",)}

    temperature: float = opt(20.0, "temperature of the student's KL term", alias="t", ge=1e-3, le=1e3)
    hard_loss: bool = opt(False, "add a cross-entropy with hard labels to the student's loss", alias="hl")
    alpha: float = opt(0.9, "weight of the student's KL term, if --hard_loss is given", ge=0)
    beta: float = opt(0.1, "weight of the student's cross-entropy, if --hard_loss is given", ge=0)
    aea: bool = opt(True, "with --hard_loss: no adversarial attack; the hard label is the teacher's class")
    pa: float = opt(
        0.001, "fraction of the student's images that are attacked, so that the teacher's class contradicts their hard label", ge=0, le=1
    )
    eps: float = opt(10 / 255, "largest change of a pixel value by the attack, as a fraction of the pixel range", ge=0, le=1)
    swap: bool = opt(False, "treat the more confident of an image and its attacked version as the natural image (attacks all images: slow)")
    require_flip: bool = opt(True, "show the student also attacked images whose class did not change")
    gap_width: int = opt(64, "number of channels in the attack network's first layer", ge=1, le=1024)
    gap_steps: int = opt(3, "number of final steps of a synthesis in which the attack network is trained", ge=0)
    gap_images: int = opt(64, "number of images per step on which the attack network is trained", ge=2)
    aea_compat: bool = opt(False, "use the attack of the released code (no bound, images normalised twice)")
    export: int = opt(0, "number of synthetic images saved as PNG files in the log folder", ge=0)


def main(argv=None):
    run = start(Args, argv)
    args, teacher, student, view = run.args, run.teacher, run.student, run.data.view
    with allocating("the generator", "--ngf", "--latent", "--img_size"):
        G, lr_factors = make_generator(run)
    taps = BatchNormHooks(teacher.norms() if args.w_bn else [], 0.9 if args.meta in ADAPTING else 0.0)
    student_taps = BatchNormHooks(norms_of(student) if args.w_sbn else [], 0.0)
    means = InstanceMeans(teacher.norms() if args.w_cr else [])
    contrast = Contrast(means.width, args.lr_g, run.device) if args.w_cr else None
    attack = Attack(run) if args.hard_loss and args.aea else None
    flips = args.augment == "crop_flip"

    def part_features(images):  # of the teacher, for random parts of the images
        n = len(images)
        mirrored = (torch.rand(n, device=run.device) < 0.5) & flips
        box = random_boxes(n, run.data.shape[-1], PART, device=run.device)
        with means:
            teacher.inside(view(resized_crop(images, box, mirrored, torch.zeros_like(mirrored))))
        return means.features

    def synthesis_loss(images, target):  # images (B, C, H, W) in [0, 1], target classes (B,)
        x = view(rolled(images, flips)) if args.generator == "pixels" else view(images, args.augment)
        with taps, means:
            t, f = teacher.inside(x)  # (B, K), (B, F)
        weights, whole = syn.weights(), means.features if contrast else None
        with student_taps:
            s = student(x) if {"adv", "sbn"} & weights.keys() else None
        terms = {
            "bn": taps.loss,
            "oh": lambda: F.cross_entropy(t, target if args.wanted == "drawn" else t.argmax(1)),
            "adv": lambda: -js(s, t) if args.adv == "js" else -disagreement(s, t, args.images == "pool"),
            "even": lambda: balance(t),
            "act": lambda: -f.abs().mean(),
            "cr": lambda: contrast(whole, part_features(images)),
            "sbn": lambda: -student_taps.loss(),
            "tv": lambda: total_variation(view(images)),
        }
        if attack and (args.aea_compat or syn.step >= syn.steps - args.gap_steps):
            attack.learn(x.detach(), t.detach())
        return {name: weight * terms[name]() for name, weight in weights.items()}

    def loss(x, t, y=None):  # images (B, C, H, W), the teacher's logits (B, K), hard labels (B,)
        s = student(x)
        if not args.hard_loss:
            return {"kl": kl(s, t, args.temperature)}
        hard = F.cross_entropy(s, t.argmax(1) if y is None else y)
        return {"kl": args.alpha * kl(s, t, args.temperature), "hard": args.beta * hard}

    syn = Synthesiser(run, G, synthesis_loss, taps, lr_factors, attack, contrast)
    more = {"attack": attack} if attack else {}
    run.fit(syn, loss, evaluate=lambda: run.accuracy() | syn.log() | (attack.log() if attack else {}), synthesis=syn, **more)
    save_pictures(run, syn, args.export)
    nets = nets_to_keep(run, syn.recalibrated(), synthesis_loss) | ({"attack": attack.net} if attack else {})
    return run.finish(student=student, **nets)


if __name__ == "__main__":
    cli(main)
