"""GDA: beside a loss that compares student and teacher image by image, the distributions of their logits over a batch are aligned.
The released code of «Logit Distillation via Global Distribution Alignment», 2025; no paper could be had.

    python project/teacher.py --dataset CIFAR100 --model ResNet56 --augment crop_flip
    python project/GDA.py --dataset CIFAR100 --teacher ResNet56 --model ResNet20 --base dkd --augment crop_flip
    python project/GDA.py --dataset CIFAR100 --teacher ResNet20 --model ResNet56 --base adaptconf --no_gda    weak to strong, the base alone

Differs: both terms are added once, to every base, with weights of their own (released: dkd lacks the first, its few-shot code adds them up
to 42 times). The Sinkhorn term is a mean over the batch: w_sk 12.8 is the released 0.1 of a sum over 128. Its sweeps end at a tolerance
(--sk_tolerance 0: all 20). Fisher-Rao by arsinh, finite where the released form is not. DKD's parts rise over 20 epochs, as in its paper.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F

from common.alignment import fisher_rao, sinkhorn
from common.bases import BASES
from common.datasets import Map
from common.options import Buys
from common.run import start
from common.utils import UsageError, cli


@dataclass
class Args(Buys):
    NEEDS: ClassVar = "logits"

    base: Literal["none", "kd", "dkd", "dist", "augconf", "adaptconf"] = "kd"  # the loss beside which the terms stand
    gda: bool = True  # switched off: the base alone
    gt_source: Literal["label", "teacher"] = "label"  # the cross-entropy's target: the label, or the teacher's probabilities
    response: str = "logits"  # what the teacher answers; Fisher-Rao needs logits as they are
    lamda: float = 1.0  # share of the training images that is used, class-balanced, drawn by the seed alone, in (0, 1]
    t: float = 4.0  # temperature of the base, in (0, 1000]
    w_gt: float = 2.0  # weight of the cross-entropy, in [0, 1000000]
    w_kd: float = 1.0  # weight of the base, in [0, 1000000]
    w_fr: float = 0.02  # weight of the Fisher-Rao term, in [0, 1000000]
    w_sk: float = 12.8  # weight of the Sinkhorn term, in [0, 1000000]
    centre: bool = False  # Fisher-Rao of deviations alone: a softmax does not see the logits' mean
    sk_t: float = 2.0  # temperature of the predictions that are carried over, in (0, 1000]
    sk_eps: float = 0.1  # entropy of the plan, in (0, 1000]
    sk_sweeps: int = 20  # at most, in [1, 1000000]
    sk_tolerance: float = 1e-4  # how far a row's sum may be off, 0: all sweeps, in [0, 1]
    debias: bool = False  # less what each side costs against itself
    standardise: bool = False  # kd: of standardised logits
    dkd_alpha: float = 1.0  # weight of DKD's target part, in [0, 1000000]
    dkd_beta: float = 2.0  # of its other part, in [0, 1000000]
    dkd_warmup: int = 20  # epochs over which both rise from 0, in [0, 1000000]
    dist_beta: float = 2.0  # weight of DIST's correlation between classes, in [0, 1000000]
    dist_gamma: float = 2.0  # of that between images, in [0, 1000000]
    alpha_max: float = 0.5  # augconf: share that the student's own class takes over, in [0, 1)
    ramp: float = 0.3  # share of the epochs over which it rises to that, in [0, 1]
    softness: float = 0.5  # adaptconf: of the choice between its own class and the teacher's, in (0, 1000000]


def main(argv=None):
    run = start(Args, argv)
    args, base = run.args, BASES[run.args.base]
    how = args.sk_t, args.sk_eps, args.sk_sweeps, args.sk_tolerance, args.debias
    terms = {"fr": (args.w_fr, lambda s, t: fisher_rao(s, t, args.centre)), "sk": (args.w_sk, lambda s, t: sinkhorn(s, t, *how))}

    def loss(x, t, y):  # images, the teacher's logits (B, K), labels (B,)
        s = run.student(x).float()
        gt = F.cross_entropy(s, y if args.gt_source == "label" else t.softmax(1))
        found = {"gt": args.w_gt * gt} | {k: args.w_kd * v for k, v in base(s, t, y, args, run.epoch - 1).items()}
        return found | {k: w * term(s, t) for k, (w, term) in terms.items() if args.gda and w}

    if args.augment == "none" or args.transfer:
        bought = run.buy(run.some(len(run.askable)))
        known = "index" in bought and "weight" not in bought
        if not known and args.gt_source == "label":
            raise UsageError(f"{args.transfer} holds images that have no label; take --gt_source teacher")
        batches = run.batches(bought, run.source.train.y[bought["index"]] if known else bought["answers"].argmax(1))
    else:
        run.teacher.afford(len(run.private) * args.epochs)
        batches = Map(run.images(run.private.y), lambda x, y: (x, run.teacher(x), y))
    run.fit(batches, loss)
    return run.finish()


if __name__ == "__main__":
    cli(main)
