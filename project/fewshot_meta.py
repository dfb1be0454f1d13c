"""fewshot_meta: an encoder trained on episodes of the base classes, beginning with a classifier's, alone or from a teacher's episodes.
The second stage of Meta-Baseline (https://arxiv.org/abs/2003.04390), with the distillation of GDA's released code.

    python project/fewshot_meta.py --dataset miniImageNet --model ResNet12
    python project/fewshot_meta.py --dataset miniImageNet --teacher ResNet12 --model ResNet36_bottle
    python project/fewshot_meta.py --dataset miniImageNet --teacher ResNet12 --teacher_stage meta --model ResNet36_bottle

They begin with fewshot_classifier.py's student of the same model and seed; the last two have a classifier and a meta teacher.

Differs: best.pt changes only where the validation classes are told apart better (released: at every epoch), and test classes are looked at
once. A meta teacher keeps the temperature it has learned. What a teacher sees never changes, so that it encodes each image once.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch.nn.functional as F

from common.fewshot.episodes import EpochOfEpisodes, FewShot, Novel, Prototypes, Sampler, classes_of, temperature_of
from common.gda.bases import compared
from common.run import start
from common.utils import UsageError, cli, place


@dataclass
class Args(FewShot):
    NEEDS: ClassVar = "inside"
    BEGINS: ClassVar = "fewshot_classifier"

    teacher_stage: Literal["classifier", "meta"] = "classifier"  # which of the two scripts the teacher is of
    response: str = "inside"  # what the teacher answers: it must be open, since episodes are told apart by features
    init: str = ""  # the checkpoint that the student begins with, instead of fewshot_classifier.py's
    w_sk: float = 0.24  # weight of the Sinkhorn term, in [0, 1000000]
    shot: int = 1  # labelled images of a class, in [1, 1000]
    episodes: int = 4  # in a step, in [1, 1000]
    steps: int = 200  # an epoch, in [1, 1000000]
    epochs: int = 20  # in [1, 1000000]
    lr: float = 1e-3  # learning rate, in (0, 1000]
    milestones: str = ""  # epochs at which it is multiplied by gamma, or shares of all epochs

    def taught(self):
        return f"fewshot_{self.teacher_stage}", "student"


def main(argv=None):
    run = start(Args, argv)
    args, student = run.args, run.student
    path = Path(args.init or place(args.checkpoints_dir, args.BEGINS, args.dataset, args.model, args.seed) / "student.pt")
    if not path.exists():
        raise UsageError(f"no classifier to begin with in {path}; first run: {run.before(args.BEGINS, model=args.model, seed=args.seed)}")
    run.fill(student, path, *run.record.source(path), kind=args.model)
    head, classes, x = Prototypes(args.metric).to(run.device), Novel(run, args.shot), run.resident(run.private).x
    y = classes_of(args.way, args.query, run.device).repeat(args.episodes)  # (E * W * Q,)
    sampler = Sampler(run.private.y, args.way, args.shot + args.query, f"the base classes of {args.dataset}")
    if run.teacher:
        told = Prototypes(args.metric, temperature_of(run.teacher_path)).to(run.device).requires_grad_(False)
        known = run.infer(lambda x: run.teacher.inside(x, "private")[1].float(), run.private) if args.augment == "none" else None

    def logits(head, features):  # (E * W * each, D) -> (E * W * Q, W)
        return head.of(features.float().unflatten(0, (args.episodes, args.way, -1)), args.way, args.shot).flatten(0, 1).float()

    def loss(rows):  # the images (E, W, S + Q) of episodes
        rows = rows.flatten()
        seen = run.data.view(x[rows], args.augment)
        s = logits(head, student(seen, feature=True)[1])
        terms = {"gt": args.w_gt * F.cross_entropy(s, y)}
        if run.teacher:
            t = logits(told, run.teacher.inside(seen, "private")[1] if known is None else known[rows])
            terms |= compared(s, t, y, args, run.epoch - 1)
        return terms

    run.fit(EpochOfEpisodes(run, sampler, args.steps, args.episodes), loss, evaluate=classes.val, beside=head, novel=classes)
    return run.finish(student=student, head=head, best=classes.test())


if __name__ == "__main__":
    cli(main)
