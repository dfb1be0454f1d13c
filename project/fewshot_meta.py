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

from common.checkpoints import first_run
from common.fewshot.episodes import EpochOfEpisodes, FewShotOptions, Novel, Prototypes, Sampler, classes_of, temperature_of
from common.gda.bases import compared
from common.options import opt
from common.run import start
from common.utils import UsageError, cli, run_folder


@dataclass
class Args(FewShotOptions):
    NEEDS: ClassVar = "inside"
    BEGINS: ClassVar = "fewshot_classifier"

    teacher_stage: Literal["classifier", "meta"] = opt("classifier", "script that the teacher is of: fewshot_classifier, or fewshot_meta")
    response: str = "inside"
    init: str = opt("", "checkpoint file that the student starts from, instead of the one from fewshot_classifier.py")
    w_sk: float = 0.24
    shot: int = opt(1, "number of labelled images per class", ge=1)
    episodes: int = opt(4, "number of episodes in a step", ge=1)
    steps: int = opt(200, "number of steps in an epoch", ge=1)
    epochs: int = 20
    lr: float = 1e-3
    milestones: str = ""

    def teacher_checkpoint(self):
        return f"fewshot_{self.teacher_stage}", "student"


def main(argv=None):
    run = start(Args, argv)
    args, student = run.args, run.student
    path = Path(args.init or run_folder(args.checkpoints_dir, args.BEGINS, args.dataset, args.model, args.seed) / "student.pt")
    if not path.exists():
        raise UsageError(
            f"no classifier to begin with in {path}; first run: {first_run(args, args.BEGINS, model=args.model, seed=args.seed)}"
        )
    run.load_weights(student, path)
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
