"""fewshot_test: evaluates a network on few-shot episodes of new classes, and prints accuracies with 95 % intervals.
The protocol of Meta-Baseline, https://arxiv.org/abs/2003.04390: 5 classes and 15 query images per class in an episode.

    python project/fewshot_test.py --model ResNet12 --path checkpoints/fewshot_meta/DigitsFS/ResNet12/seed0/student.pt
    python project/fewshot_test.py --dataset miniImageNet --model ResNet12 --path resnet12.pth --shots 1,5,10 --auc

Differs:
  - Each image is encoded once (released: once per episode).
  - Intervals are over episodes (released: over batches of four episodes).
  - --auc uses the first image of a class and half of the query images, as the released code does.
"""

from common.cli import UsageError, cli, say

from dataclasses import dataclass
from typing import ClassVar, Literal

from common.datasets import novel
from common.fewshot.episodes import EpisodeOptions, confidence_interval, episode_accuracies, episodes_in_memory, features_of, roc_areas
from common.options import Base, opt
from common.run import start
from common.utils import save
from common.values import is_count


@dataclass
class Args(EpisodeOptions, Base):
    DATA: ClassVar = False

    model: str = opt("ResNet12", "architecture of the evaluated network: a model of the list below")
    path: str = opt("", "checkpoint file of the evaluated network, from a script of this project or published")
    part: Literal["val", "test"] = opt("test", "classes of the episodes: validation classes (val) or test classes (test)")
    shots: str = opt("1,5", "numbers of labelled images per class in an episode, with commas")
    auc: bool = opt(False, "also report the area under the ROC curve of two classes, in percent")

    def validate(self) -> None:
        super().validate()
        if not self.path:
            raise UsageError("--path is missing: give a checkpoint file of --model, such as checkpoints/fewshot_meta/.../student.pt")
        if not all(is_count(s) for s in self.shots.split(",")):
            raise UsageError(f"--shots {self.shots} is not a list of positive integers; give numbers of images such as 1,5")


def main(argv=None):
    run = start(Args, argv)
    args = run.args
    images = novel(args.dataset, args.part, args.data_dir, run.device, args.img_size)
    run.load_weights(run.student, args.path, same=("shape", "normalize"))
    with episodes_in_memory():
        features, found, n = features_of(run, run.student, images), {}, args.test_episodes
        for shot in map(int, args.shots.split(",")):
            found[f"{shot}shot"] = episode_accuracies(features, images.y, args, shot, n, f"the {args.part} classes of {args.dataset}")
            if args.auc:
                found[f"{shot}shot_auc"] = roc_areas(features, images.y, args, shot, n)
    run.notes["fewshot"] = {"last": {name: [*confidence_interval(values)] for name, values in found.items()}}
    say(f"{args.part} classes of {args.dataset}, {args.test_episodes:,} episodes, {len(images):,} images, each encoded once:")
    for name, (mean, half) in run.notes["fewshot"]["last"].items():
        task = f"{args.way}-way" if name.endswith("shot") else "2-way area under the ROC curve,"
        say(f"  {task} {name.partition('shot')[0]}-shot: {mean:.2f} ± {half:.2f} %")
    save(run.record.folder / "episodes.pt", found)
    return run.finish()


if __name__ == "__main__":
    cli(main)
