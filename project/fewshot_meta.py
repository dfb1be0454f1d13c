"""fewshot_meta: trains an encoder on episodes of the base classes, alone or from a teacher; it starts from a classifier.
Stage 2 of Meta-Baseline (https://arxiv.org/abs/2003.04390), with the distillation losses of GDA's released code.

    python project/fewshot_meta.py --dataset miniImageNet --model ResNet12
    python project/fewshot_meta.py --dataset miniImageNet --teacher ResNet12 --model ResNet36_bottle
    python project/fewshot_meta.py --dataset miniImageNet --teacher ResNet12 --teacher_stage meta --model ResNet36_bottle

The student starts from fewshot_classifier.py's student with the same model and seed.
The teacher is a classifier in the second command, and a network from fewshot_meta.py (meta teacher) in the third.

Differs:
  - best.pt changes only if the accuracy on validation classes improves (released: at every epoch).
  - Test classes are evaluated once.
  - A meta teacher keeps the temperature that it learned.
  - The teacher encodes each image once, because without augmentation its input never changes.
"""

from common.cli import UsageError, cli

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch.nn.functional as F

from common.checkpoints import first_run
from common.fewshot.episodes import (
    EpisodeBatches,
    EpisodeSampler,
    FewShotOptions,
    NovelClasses,
    Prototypes,
    learned_temperature,
    query_classes,
)
from common.gda.bases import distillation_terms
from common.options import opt
from common.run import start
from common.utils import run_folder


@dataclass
class Args(FewShotOptions):
    NEEDS: ClassVar = "inside"
    BEGINS: ClassVar = "fewshot_classifier"

    teacher_stage: Literal["classifier", "meta"] = opt(
        "classifier", "script that trained the teacher: fewshot_classifier (classifier) or fewshot_meta (meta)"
    )
    response: str = "inside"
    init: str = opt("", "checkpoint file that the student starts from, instead of the one from fewshot_classifier.py")
    w_sk: float = 30.0
    shot: int = opt(1, "number of labelled images per class in a training episode", ge=1)
    episodes: int = opt(4, "number of training episodes per step", ge=1)
    steps: int = opt(200, "number of steps per epoch", ge=1)
    epochs: int = 20
    lr: float = 1e-3
    milestones: str = ""

    def teacher_checkpoint(self) -> tuple[str, str]:
        return f"fewshot_{self.teacher_stage}", "student"


def main(argv=None):
    run = start(Args, argv)
    args, student = run.args, run.student
    path = Path(args.init or run_folder(args.checkpoints_dir, args.BEGINS, args.dataset, args.model, args.seed) / "student.pt")
    if not path.exists():
        first = first_run(args, args.BEGINS, model=args.model, seed=args.seed)
        raise UsageError(f"no classifier to start from: {path} does not exist; first run: {first}")
    run.load_weights(student, path)
    head, classes = Prototypes(args.metric).to(run.device), NovelClasses(run, args.shot)
    x = run.resident(run.private).to_augment(args.augment)
    y = query_classes(args.way, args.query, run.device).repeat(args.episodes)  # (E * W * Q,)
    sampler = EpisodeSampler(run.labels, args.way, args.shot + args.query, f"the base classes of {args.dataset}")
    if run.teacher:
        teacher_head = Prototypes(args.metric, learned_temperature(run.teacher_path)).to(run.device).requires_grad_(False)
        teacher_features = run.infer(lambda x: run.teacher.inside(x, "private")[1].float(), run.private) if args.augment == "none" else None

    def logits(head, features):  # features (E * W * (S + Q), D) -> logits of the query images (E * W * Q, W)
        return head.episode_logits(features.float().unflatten(0, (args.episodes, args.way, -1)), args.way, args.shot).flatten(0, 1).float()

    def loss(rows):  # rows (E, W, S + Q) of the images of E episodes, with W classes, S shots and Q query images each
        rows = rows.flatten()
        images = run.data.view(x[rows], args.augment)
        s = logits(head, student(images, feature=True)[1])
        terms = {"gt": args.w_gt * F.cross_entropy(s, y)}
        if run.teacher:
            t = logits(teacher_head, run.teacher.inside(images, "private")[1] if teacher_features is None else teacher_features[rows])
            terms |= distillation_terms(s, t, y, args, run.epoch - 1)
        return terms

    run.fit(EpisodeBatches(run, sampler, args.steps, args.episodes), loss, evaluate=classes.val, beside=head, novel=classes)
    return run.finish(student=student, head=head, best=classes.test())


if __name__ == "__main__":
    cli(main)
