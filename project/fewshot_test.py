"""fewshot_test: how well a net's features tell new classes apart: accuracies over episodes of a data set's test classes, 95 % intervals.
The protocol of Meta-Baseline, https://arxiv.org/abs/2003.04390: 5 classes, 15 queries of each.

    python project/fewshot_test.py --model ResNet12 --path checkpoints/fewshot_meta/DigitsFS/ResNet12/seed0/student.pt
    python project/fewshot_test.py --dataset miniImageNet --model ResNet12 --path resnet12.pth --shots 1,5,10 --auc

Differs: each image is encoded once, however many episodes it is in (released: in each); intervals are over episodes (released: over
batches of four). --auc has the first image of a class and half the queries, as released.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from common.datasets import novel
from common.fewshot.episodes import EpisodeOptions, areas, episodic, features_of, interval
from common.options import Base, opt
from common.run import start
from common.utils import UsageError, cli, save, say


@dataclass
class Args(EpisodeOptions, Base):
    DATA: ClassVar = False

    model: str = opt("ResNet12", "architecture: a model of the list below")
    path: str = opt("", "checkpoint file of the model: of any script here, or a published one")
    part: Literal["val", "test"] = opt("test", "classes of the episodes: validation (val) or test classes")
    shots: str = opt("1,5", "numbers of labelled images per class, with commas")
    auc: bool = opt(False, "also report the area under the ROC curve of one class's queries against another's, as released")

    def validate(self):
        super().validate()
        if not self.path:
            raise UsageError("--path is missing: give the weights of --model, such as checkpoints/fewshot_meta/.../student.pt")
        if not all(s.strip().isdigit() and int(s) for s in self.shots.split(",")):
            raise UsageError(f"--shots {self.shots}: give numbers of images such as 1,5")


def main(argv=None):
    run = start(Args, argv)
    args = run.args
    images = novel(args.dataset, args.part, args.data_dir, run.device, args.img_size)
    run.load_weights(run.student, args.path, same=("shape", "normalize"))
    features, found = features_of(run, run.student, images), {}
    for shot in map(int, args.shots.split(",")):
        found[f"{shot}shot"] = episodic(features, images.y, args, shot, args.test_episodes, f"the {args.part} classes of {args.dataset}")
        if args.auc:
            found[f"{shot}shot_auc"] = areas(features, images.y, args, shot, args.test_episodes)
    run.notes["fewshot"] = {"last": {name: [*interval(values)] for name, values in found.items()}}
    say(f"{args.part} classes of {args.dataset}, {args.test_episodes:,} episodes, {len(images):,} images, each encoded once:")
    for name, (mean, half) in run.notes["fewshot"]["last"].items():
        said = f"{args.way}-way" if name.endswith("shot") else "2-way area under the curve,"
        say(f"  {said} {name.partition('shot')[0]}-shot: {mean:.2f} ± {half:.2f} %")
    save(run.record.folder / "episodes.pt", found)
    return run.finish()


if __name__ == "__main__":
    cli(main)
