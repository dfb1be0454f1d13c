"""GDA: beside a loss that compares student and teacher image by image, the distributions of their logits over a batch are aligned.
The released code of «Logit Distillation via Global Distribution Alignment», 2025; no paper could be had.

    python project/teacher.py --dataset CIFAR100 --model ResNet56 --augment crop_flip --normalize dataset
    python project/GDA.py --dataset CIFAR100 --teacher ResNet56 --model ResNet20 --preset mdistiller --base dkd
    python project/GDA.py --dataset CIFAR100 --teacher ResNet20 --model ResNet56 --preset mdistiller --base adaptconf --no_gda

The second is weak to strong, and the base alone.

Differs: both terms are added once, to every base, with weights of their own (released: dkd lacks the first, its few-shot code adds them up
to 42 times). The Sinkhorn term is a mean over the batch: w_sk 12.8 is the released 0.1 of a sum over 128. Its sweeps end at a tolerance
(--sk_tolerance 0: all 20). Fisher-Rao by arsinh, finite where the released form is not. DKD's parts rise over 20 epochs, as in its paper.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F

from common.alignment import fisher_rao, sinkhorn
from common.bases import BASES, Bases
from common.datasets import Map
from common.hints import HINTS, Hints
from common.run import start
from common.utils import UsageError, cli


@dataclass
class Args(Bases):
    NEEDS: ClassVar = "logits"

    gda: bool = True  # switched off: the base alone
    gt_source: Literal["label", "teacher"] = "label"  # the cross-entropy's target: the label, or the teacher's probabilities
    response: str = "logits"  # what the teacher answers; Fisher-Rao needs logits as they are
    lamda: float = 1.0  # share of the training images that is used, class-balanced, drawn by the seed alone, in (0, 1]
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


def main(argv=None):
    run = start(Args, argv)
    args, hints = run.args, Hints(run, run.args.base) if run.args.base in HINTS else None
    how = args.sk_t, args.sk_eps, args.sk_sweeps, args.sk_tolerance, args.debias
    aligned = {"fr": (args.w_fr, lambda s, t: fisher_rao(s, t, args.centre)), "sk": (args.w_sk, lambda s, t: sinkhorn(s, t, *how))}

    def compared(x, t, y):  # the student's and the teacher's logits (B, K), the base's terms
        if hints:
            return hints(x)
        s = run.student(x).float()
        return s, t, BASES[args.base](s, t, y, args, run.epoch - 1)

    def loss(x, t, y):  # images, the teacher's logits, labels (B,)
        s, t, terms = compared(x, t, y)
        gt = F.cross_entropy(s, y if args.gt_source == "label" else t.softmax(1))
        terms = {"gt": args.w_gt * gt} | {k: args.w_kd * v for k, v in terms.items()}
        return terms | {k: w * term(s, t) for k, (w, term) in aligned.items() if args.gda and w}

    if args.transfer or (args.augment == "none" and not hints):
        bought = run.buy(run.some(len(run.askable)))
        known = "index" in bought and "weight" not in bought
        if not known and args.gt_source == "label":
            raise UsageError(f"{args.transfer} holds images that have no label; take --gt_source teacher")
        batches = run.batches(bought, run.source.train.y[bought["index"]] if known else bought["answers"].argmax(1))
    else:
        run.teacher.afford(len(run.private) * args.epochs)
        batches = Map(run.images(run.private.y), lambda x, y: (x, None if hints else run.teacher(x), y))
    run.fit(batches, loss, beside=hints and hints.net)
    return run.finish()


if __name__ == "__main__":
    cli(main)
