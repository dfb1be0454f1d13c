"""Few-shot learning: episodes, prototypes, and the accuracy on classes that a network was not trained on.

An episode has `way` classes. Each class has `shot` support images with labels, and `query` query images to classify.
Each image is encoded once, even if it is in many episodes.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..checkpoints import read_weights
from ..cli import UsageError, allocating, say
from ..datasets import Images, novel
from ..gda.alignment import AlignmentOptions
from ..gda.bases import BaseLossOptions
from ..options import WEIGHTS_INIT, StudentOptions, opt
from ..run import Run
from ..utils import check_regular, exact, save
from ..values import short

SHOTS = (1, 5)  # numbers of support images per class for which every model is evaluated
CHUNK_VALUES = 2**24  # largest number of feature values that are gathered at a time


@dataclass
class EpisodeOptions:
    """Options of the episodes for evaluation."""

    GROUP: ClassVar = "method"

    dataset: str = opt("DigitsFS", "few-shot data set: DigitsFS, CIFARFS, miniImageNet or Omniglot")
    normalize: str = "dataset"
    way: int = opt(5, "number of classes in an episode", ge=2, le=1000)
    query: int = opt(15, "number of query images per class in an episode", ge=1, le=1000)
    metric: Literal["cos", "sqr"] = opt("cos", "similarity of query and prototype: cosine (cos), or negative squared distance (sqr)")
    test_episodes: int = opt(8000, "number of episodes with test classes at the end of the run", ge=2, le=10**7)


@dataclass
class FewShotOptions(EpisodeOptions, AlignmentOptions, BaseLossOptions, StudentOptions):
    """Options of both few-shot stages.

    The weights of GDA's terms are those of the released few-shot code; that of the Sinkhorn term is converted from a sum to a mean.
    """

    ALIASES: ClassVar = {"w_kd": ("loss_weight",)}
    SOURCE_CROPS: ClassVar = True
    RAMP: ClassVar = 0.25
    ADAPTCONF_RAMP: ClassVar = 0.25
    FIRST_EPOCH: ClassVar = 1
    SOFTNESS: ClassVar = 8.0

    teacher: str = opt(
        "", "architecture of the teacher: a model of the list below; empty: the student trains without a teacher", alias="teacher_res_type"
    )
    model: str = opt("ResNet12", "architecture of the student: a model of the list below", alias=("student", "res_type"))
    response: str = opt("logits", alias=())
    weights_init: WEIGHTS_INIT = "fan_out"
    lamda: float = 1.0
    val_episodes: int = opt(800, "number of episodes with validation classes at each evaluation", ge=2, le=10**7)
    base: Literal["none", "kd", "dkd", "rld", "dist", "mlkd", "augconf", "adaptconf"] = "kd"
    w_gt: float = 1.0
    w_fr: float = 0.1
    w_sk: float = 0.1
    temperature: float = opt(1.0, "temperature of the base loss; 10 for the base losses augconf and adaptconf")
    dkd_beta: float = 0.5
    kd_warmup: int = 0
    alpha_max: float = 0.25

    def presets(self) -> dict[str, Any]:
        return {"temperature": 10.0} if self.base in ("augconf", "adaptconf") else {}

    def validate(self) -> None:
        super().validate()
        if self.private:
            raise UsageError(
                f"--private {self.private}: few-shot learning uses one data set, whose classes are divided into base, validation and test "
                "classes; use --dataset instead"
            )


class Prototypes(nn.Module):
    """Classifies query images by their similarity to prototypes: the mean support features of each class (Meta-Baseline).

    metric: `cos` gives temp * cosine, `sqr` gives -temp * squared distance. temp: initial value of the learned temperature.
    Source: Chen et al. 2021, https://arxiv.org/abs/2003.04390.
    """

    def __init__(self, metric: Literal["cos", "sqr"] = "cos", temp: float = 10.0) -> None:
        super().__init__()
        self.metric, self.temp = metric, nn.Parameter(torch.tensor(temp))

    def forward(self, shots: Tensor, queries: Tensor) -> Tensor:
        """Returns logits (E, Q, W) from features of E episodes: support images (E, W, S, D) and query images (E, Q, D)."""
        prototypes = shots.mean(2)  # (E, W, D)
        if self.metric == "sqr":
            return -self.temp * torch.cdist(queries, prototypes).square()
        with exact(shots):
            return self.temp * F.normalize(queries, dim=2) @ F.normalize(prototypes, dim=2).transpose(1, 2)

    def episode_logits(self, features: Tensor, way: int, shot: int) -> Tensor:
        """Returns logits (E, W * Q, W) of the query images, ordered by class, from features (E, W, S + Q, D) of episodes."""
        return self(features[:, :, :shot], features[:, :, shot:].flatten(1, 2))


def learned_temperature(path: Path) -> float:
    """Returns the temperature that belongs to the checkpoint `path`: the learned one if it was trained on episodes, otherwise 10."""
    head = path.with_name("head.pt")
    check_regular(head)
    source, default = (head, {}) if head.exists() else (path, {"temp": torch.tensor(10.0)})
    temp = (default | read_weights(source)[0]).get("temp", torch.empty(0))
    if temp.numel() != 1 or not 0 < temp.item() < math.inf:
        raise UsageError(f"{source}: its temperature temp is {short(str(temp.tolist()))}; expected one number above 0: train it again")
    return temp.item()


def query_classes(way: int, query: int, device: torch.device | str | None = None) -> Tensor:
    """Returns the classes (W * Q,), from 0 to way - 1, of an episode's query images, ordered by class."""
    return torch.arange(way, device=device).repeat_interleave(query)


class EpisodeSampler:
    """Draws episodes with `way` different classes and `each` different images per class.

    y: class labels (N,) of all images. what: name of the images in error messages.
    Raises UsageError if there are too few classes or images.
    """

    def __init__(self, y: Tensor, way: int, each: int, what: str = "in these images") -> None:
        y, counts = y.cpu(), y.cpu().bincount()
        if way > len(counts):
            raise UsageError(
                f"--way {way}: an episode needs {way} classes, but there are {len(counts)} ({what}); use --way {len(counts)} or less"
            )
        if each > counts.min():
            least = f"one class has only {counts.min()} ({what})"
            raise UsageError(
                f"an episode needs {each} images per class (support and query), but {least}; use a smaller --query, or fewer support images"
            )
        self.way, self.each = way, each
        self.rows = torch.full((len(counts), int(counts.max())), -1)
        for k in range(len(counts)):
            self.rows[k, : counts[k]] = (y == k).nonzero()[:, 0]

    def draw(self, n: int, g: torch.Generator) -> Tensor:
        """Returns the images of n episodes as rows of y, (n, way, each), drawn by the generator g."""
        k = torch.rand(n, len(self.rows), generator=g).topk(self.way).indices  # (n, way)
        keys = torch.rand(n, self.way, self.rows.shape[1], generator=g).masked_fill(self.rows[k] < 0, -1)
        return self.rows[k].gather(2, keys.topk(self.each).indices)


class EpisodeBatches:
    """Batches for training on episodes: `steps` tuples (rows,) per epoch, rows (episodes, way, each) of the sampler's images.

    The episodes depend on the run's seed and the epoch only.
    """

    def __init__(self, run: Run, sampler: EpisodeSampler, steps: int, episodes: int) -> None:
        self.run, self.sampler, self.steps, self.episodes = run, sampler, steps, episodes

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor]]:
        g = torch.Generator().manual_seed(100_000 * self.run.args.seed + self.run.epoch)
        for _ in range(self.steps):
            yield (self.sampler.draw(self.episodes, g).to(self.run.device, non_blocking=True),)


# ---- evaluation


def episode_accuracies(features: Tensor, y: Tensor, args: EpisodeOptions, shot: int, n: int, what: str = "in these images") -> Tensor:
    """Returns the accuracies (n,), in percent, of n episodes of features (N, D) with class labels y (N,).

    The episodes are the same at each call. args: way, query and metric. shot: number of support images per class.
    """
    sampler, head = EpisodeSampler(y, args.way, shot + args.query, what), Prototypes(args.metric)
    right, g = query_classes(args.way, args.query, features.device), torch.Generator().manual_seed(0)
    chunk = max(1, CHUNK_VALUES // (args.way * (shot + args.query) * features.shape[1]))
    found = []
    for start in range(0, n, chunk):
        rows = sampler.draw(min(chunk, n - start), g).to(features.device)
        with torch.no_grad():
            found.append((head.episode_logits(features[rows], args.way, shot).argmax(2) == right).float().mean(1))
    return 100 * torch.cat(found).cpu()


def roc_areas(features: Tensor, y: Tensor, args: EpisodeOptions, shot: int, n: int) -> Tensor:
    """Returns the areas under the ROC curve (n,), in percent, of n random pairs of classes.

    A query image's score is its cosine with the prototype of the first class; query images of the first class are the positives.
    features (N, D); y: class labels (N,). args: query. shot: number of support images per class.
    """
    sampler, g = EpisodeSampler(y, 2, shot + args.query), torch.Generator().manual_seed(0)
    found = []
    for rows in sampler.draw(n, g).to(features.device).split(500):
        f = features[rows]  # (E, 2, S + Q, D)
        score = F.cosine_similarity(f[:, :, shot:], f[:, :1, :shot].mean(2, keepdim=True), dim=3)  # (E, 2, Q)
        positive, negative = score[:, 0, :, None], score[:, 1, None]
        found.append(((positive > negative).float() + (positive == negative) / 2).mean((1, 2)))
    return 100 * torch.cat(found).cpu()


def features_of(run: Run, net: nn.Module, images: Images) -> Tensor:
    """Returns a network's penultimate features (N, D), float32, of images, each encoded once."""
    net.eval()
    return run.infer(lambda x: net(x, feature=True)[1], images).float()


def episodes_in_memory() -> AbstractContextManager:
    """A block that evaluates episodes."""
    return allocating("the features and the episodes", "--way", "--query", "--test_episodes", "--img_size")


def confidence_interval(values: Tensor) -> tuple[float, float]:
    """Returns the mean of n > 1 values (n,), and half the width of its 95 % interval (Student's t)."""
    from scipy.stats import t

    n = len(values)
    return values.mean().item(), float(t.ppf(0.975, n - 1)) * values.std().item() / n**0.5


class NovelClasses:
    """Evaluates networks on the validation and test classes of a run's data set, and keeps the best weights on the validation classes.

    shot: number of support images per class by which the best epoch is chosen.
    best: accuracy (percent) and state dict (`net`) of the best epoch so far.
    Raises UsageError before training if an episode needs more classes or images than there are.
    """

    def __init__(self, run: Run, shot: int = 1) -> None:
        self.run, self.args, self.shot = run, run.args, shot
        self.best = {"accuracy": -1.0, "net": copy.deepcopy(run.student.state_dict())}
        a = run.args
        self.parts = {k: novel(a.dataset, k, a.data_dir, run.device, a.img_size) for k in ("val", "test")}
        for name, images in self.parts.items():
            for s in {*SHOTS, shot}:
                EpisodeSampler(images.y, a.way, s + a.query, f"the {name} classes of {a.dataset}")  # only checks the numbers

    def accuracies(self, part: Literal["val", "test"], n: int, net: nn.Module) -> dict[int, Tensor]:
        """Returns {number of support images per class: accuracies (n,) in percent} of a network over n episodes."""
        with episodes_in_memory():
            features, y = features_of(self.run, net, self.parts[part]), self.parts[part].y
            return {s: episode_accuracies(features, y, self.args, s, n) for s in sorted({*SHOTS, self.shot})}

    def val(self) -> dict[str, float]:
        """Returns the student's accuracies on validation classes, {"1shot": percent, ...}; keeps its weights if it is the best so far."""
        found = {f"{s}shot": a.mean().item() for s, a in self.accuracies("val", self.args.val_episodes, self.run.student).items()}
        if found[f"{self.shot}shot"] > self.best["accuracy"]:
            self.best = {"accuracy": found[f"{self.shot}shot"], "net": copy.deepcopy(self.run.student.state_dict())}
        return found

    def test(self) -> nn.Module:
        """Evaluates the student of the last epoch and of the best epoch on the test classes, and returns the best one.

        Prints the accuracies with 95 % intervals and adds them to result.json; saves those of every episode in episodes.pt.
        """
        run, n = self.run, self.args.val_episodes if self.args.dry_run else self.args.test_episodes
        best, last, kept = copy.deepcopy(run.student), run.student, {}
        best.load_state_dict(self.best["net"])
        for name, net in (("last", last), ("best", best)):
            kept[name] = self.accuracies("test", n, net)
        found = {name: {s: confidence_interval(a) for s, a in by_shot.items()} for name, by_shot in kept.items()}
        run.notes |= {"accuracy": found["last"][self.shot][0], "best": found["best"][self.shot][0], "split": "test classes"}
        run.notes["fewshot"] = {name: {f"{s}shot": [*pair] for s, pair in by_shot.items()} for name, by_shot in found.items()}
        run.summary_parts += [f"{self.args.way}-way {s}-shot {mean:.2f} ± {half:.2f} %" for s, (mean, half) in found["last"].items()]
        say(f"accuracy in percent over {n:,} episodes of test classes (95 % intervals), of the last epoch and of the best on validation:")
        for s in kept["last"]:
            both = ", ".join(f"{name} {found[name][s][0]:.2f} ± {found[name][s][1]:.2f}" for name in found)
            say(f"  {self.args.way}-way {s}-shot: {both}")
        save(run.record.folder / "episodes.pt", {f"{name} {s}shot": a for name, by_shot in kept.items() for s, a in by_shot.items()})
        return best

    def state_dict(self) -> dict:
        return self.best

    def load_state_dict(self, state: dict) -> None:
        self.best = state
