"""Few-shot learning: episodes of a few classes, prototypes, and the accuracy on classes that a net was not trained on.

An episode has `way` classes; of each, `shot` images are labelled and `query` others are to be told apart. An image is encoded once,
however many episodes it is in.
"""

import copy
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn as nn
import torch.nn.functional as F

from ..checkpoints import read, read_weights
from ..datasets import novel
from ..gda.alignment import AlignmentOptions
from ..gda.bases import BaseLossOptions
from ..options import StudentOptions, opt
from ..utils import UsageError, exact, save, say

SHOTS = (1, 5)  # that are evaluated
LOGITS = 2**24  # numbers that a chunk of episodes gathers at most


@dataclass
class EpisodeOptions:
    """The options of episodes that are evaluated."""

    GROUP: ClassVar = "method"

    dataset: str = opt("DigitsFS", "few-shot data set: DigitsFS, CIFARFS, miniImageNet or Omniglot")
    normalize: Literal["half", "dataset"] = "dataset"
    way: int = opt(5, "number of classes in an episode", ge=2, le=1000)
    query: int = opt(15, "number of query images per class in an episode", ge=1, le=1000)
    metric: Literal["cos", "sqr"] = opt("cos", "similarity of query and prototype: cosine (cos), or negative squared distance (sqr)")
    test_episodes: int = opt(8000, "number of episodes of test classes, at the end", ge=2)


@dataclass
class FewShotOptions(EpisodeOptions, AlignmentOptions, BaseLossOptions, StudentOptions):
    """The options of both stages; the weights of GDA's terms are those of the released few-shot code, the second's as a mean."""

    ALIASES: ClassVar = {"w_kd": ("loss_weight",)}
    RAMP: ClassVar = 0.25
    SOFTNESS: ClassVar = 8.0

    teacher: str = opt(
        "", "architecture of the teacher: a model of the list below; left out: the student trains alone", alias="teacher_res_type"
    )
    model: str = opt("ResNet12", "architecture of the student: a model of the list below", alias=("student", "res_type"))
    response: str = opt("logits", alias=())
    lamda: float = 1.0
    val_episodes: int = opt(800, "number of episodes of validation classes at each evaluation", ge=2)
    base: Literal["none", "kd", "dkd", "dist", "mlkd", "augconf", "adaptconf"] = "kd"
    w_gt: float = 1.0
    w_fr: float = 0.1
    w_sk: float = 0.1
    temperature: float = opt(1.0, "temperature of the base loss (augconf, adaptconf: 10)")
    dkd_beta: float = 0.5
    dkd_warmup: int = 0
    alpha_max: float = 0.25

    def presets(self):
        return {"temperature": 10.0} if self.base in ("augconf", "adaptconf") else {}

    def validate(self):
        super().validate()
        if self.private:
            raise UsageError(
                f"--private {self.private}: few-shot learning has one data set, whose classes are shared out; give it as --dataset"
            )


class Prototypes(nn.Module):
    """Logits of queries (E, Q, D) against the mean of each class's shots (E, W, S, D): (E, Q, W); `temp` is learned.

    cos: temp * cosine; sqr: -temp * squared distance. Chen et al. 2021, https://arxiv.org/abs/2003.04390.
    """

    def __init__(self, metric="cos", temp=10.0):
        super().__init__()
        self.metric, self.temp = metric, nn.Parameter(torch.tensor(temp))

    def forward(self, shots, queries):
        mean = shots.mean(2)  # (E, W, D)
        if self.metric == "sqr":
            return -self.temp * torch.cdist(queries, mean).square()
        with exact(shots):
            return self.temp * F.normalize(queries, dim=2) @ F.normalize(mean, dim=2).transpose(1, 2)

    def of(self, features, way, shot):
        """Logits (E, W * Q, W) from the features (E, W, S + Q, D) of episodes, queries class by class."""
        return self(features[:, :, :shot], features[:, :, shot:].flatten(1, 2))


def temperature_of(path):
    """What the net in `path` has learned to multiply its cosines with, where it was trained on episodes; 10 elsewhere, as at first."""
    if (beside := path.with_name("head.pt")).exists():
        return read(beside, "model")["model"]["temp"].item()
    return float(read_weights(path)[0].get("temp", 10.0))


def classes_of(way, query, device=None):
    """The classes (W * Q,) of an episode's queries."""
    return torch.arange(way, device=device).repeat_interleave(query)


class Sampler:
    """`draw(n, g)`: the images (n, way, each) of n episodes, rows of the labels y (N,); classes and images are distinct in an episode."""

    def __init__(self, y, way, each, what="these images"):
        y, counts = y.cpu(), y.cpu().bincount()
        if way > len(counts):
            raise UsageError(f"--way {way}: {what} have {len(counts)} classes; take fewer")
        if each > counts.min():
            few = f"{what} have a class of {counts.min()}"
            raise UsageError(f"an episode takes {each} images of a class (shots and queries), and {few}; give a smaller --query or --shot")
        self.way, self.each = way, each
        self.rows = torch.full((len(counts), int(counts.max())), -1)
        for k in range(len(counts)):
            self.rows[k, : counts[k]] = (y == k).nonzero()[:, 0]

    def draw(self, n, g):
        k = torch.rand(n, len(self.rows), generator=g).topk(self.way).indices  # (n, way)
        keys = torch.rand(n, self.way, self.rows.shape[1], generator=g).masked_fill(self.rows[k] < 0, -1)
        return self.rows[k].gather(2, keys.topk(self.each).indices)


class EpochOfEpisodes:
    """`steps` batches (rows,), rows (episodes, way, each) of one Sampler, the same in every run of a seed and an epoch."""

    def __init__(self, run, sampler, steps, episodes):
        self.run, self.sampler, self.steps, self.episodes = run, sampler, steps, episodes

    def __len__(self):
        return self.steps

    def __iter__(self):
        g = torch.Generator().manual_seed(100_000 * self.run.args.seed + self.run.epoch)
        for _ in range(self.steps):
            yield (self.sampler.draw(self.episodes, g).to(self.run.device),)


# ---- evaluation


def episodic(features, y, args, shot, n, what="these images"):
    """The accuracies (n,), in percent, of n episodes among features (N, D) with labels y (N,); always the same episodes."""
    sampler, head = Sampler(y, args.way, shot + args.query, what), Prototypes(args.metric)
    right, g = classes_of(args.way, args.query, features.device), torch.Generator().manual_seed(0)
    chunk = max(1, LOGITS // (args.way * (shot + args.query) * features.shape[1]))
    found = []
    for start in range(0, n, chunk):
        rows = sampler.draw(min(chunk, n - start), g).to(features.device)
        with torch.no_grad():
            found.append((head.of(features[rows], args.way, shot).argmax(2) == right).float().mean(1))
    return 100 * torch.cat(found).cpu()


def areas(features, y, args, shot, n):
    """The areas (n,), in percent, under the ROC curve of n pairs of classes: queries of the first against those of the second, by their
    cosine with the first's prototype."""
    sampler, g = Sampler(y, 2, shot + args.query), torch.Generator().manual_seed(0)
    found = []
    for rows in sampler.draw(n, g).to(features.device).split(500):
        f = features[rows]  # (E, 2, S + Q, D)
        near = F.cosine_similarity(f[:, :, shot:], f[:, :1, :shot].mean(2, keepdim=True), dim=3)  # (E, 2, Q)
        mine, others = near[:, 0, :, None], near[:, 1, None]
        found.append(((mine > others).float() + (mine == others) / 2).mean((1, 2)))
    return 100 * torch.cat(found).cpu()


def features_of(run, net, images):
    """A net's features (N, D) of images, each encoded once."""
    net.eval()
    return run.infer(lambda x: net(x, feature=True)[1], images).float()


def interval(values):
    """(mean, half the width of its 95 % interval by Student's t) of n values, n > 1."""
    from scipy.stats import t

    n = len(values)
    return values.mean().item(), float(t.ppf(0.975, n - 1)) * values.std().item() / n**0.5


class Novel:
    """The validation and test classes of a run's data set. `val()`, `test(nets)`: accuracies of nets; `best`: what `val` found best so far.

    shot: the number of shots by which the best is chosen.
    """

    def __init__(self, run, shot=1):
        self.run, self.args, self.shot = run, run.args, shot
        self.best = {"accuracy": -1.0, "net": copy.deepcopy(run.student.state_dict())}
        a = run.args
        self.parts = {k: novel(a.dataset, k, a.data_dir, run.device, a.img_size) for k in ("val", "test")}
        for name, images in self.parts.items():
            for s in {*SHOTS, shot}:
                Sampler(images.y, a.way, s + a.query, f"the {name} classes of {a.dataset}")  # an error is said before training

    def accuracies(self, part, n, net):
        """{shots: accuracies (n,)}."""
        features, y = features_of(self.run, net, self.parts[part]), self.parts[part].y
        return {s: episodic(features, y, self.args, s, n) for s in sorted({*SHOTS, self.shot})}

    def val(self):
        """{"1shot": percent, ...} on validation classes; keeps the student's weights where it is the best so far."""
        found = {f"{s}shot": a.mean().item() for s, a in self.accuracies("val", self.args.val_episodes, self.run.student).items()}
        if found[f"{self.shot}shot"] > self.best["accuracy"]:
            self.best = {"accuracy": found[f"{self.shot}shot"], "net": copy.deepcopy(self.run.student.state_dict())}
        return found

    def test(self):
        """Evaluates the student of the last epoch, and the one that the validation classes chose, on the test classes, once; says and notes
        it, with every episode's accuracy in episodes.pt. Gives the chosen net."""
        run, n = self.run, self.args.val_episodes if self.args.dry_run else self.args.test_episodes
        best, last, kept = copy.deepcopy(run.student), run.student, {}
        best.load_state_dict(self.best["net"])
        for name, net in (("last", last), ("best", best)):
            kept[name] = self.accuracies("test", n, net)
        found = {name: {s: interval(a) for s, a in of.items()} for name, of in kept.items()}
        run.notes |= {"accuracy": found["last"][self.shot][0], "best": found["best"][self.shot][0], "split": "test classes"}
        run.notes["fewshot"] = {name: {f"{s}shot": [*pair] for s, pair in of.items()} for name, of in found.items()}
        run.summary_parts += [f"{self.args.way}-way {s}-shot {mean:.2f} ± {half:.2f} %" for s, (mean, half) in found["last"].items()]
        say(f"test classes, {n:,} episodes, 95 % intervals; the last epoch, and the one that the validation classes chose:")
        for s in kept["last"]:
            both = ", ".join(f"{name} {found[name][s][0]:.2f} ± {found[name][s][1]:.2f}" for name in found)
            say(f"  {self.args.way}-way {s}-shot: {both}")
        save(run.record.folder / "episodes.pt", {f"{name} {s}shot": a for name, of in kept.items() for s, a in of.items()})
        return best

    def state_dict(self):
        return self.best

    def load_state_dict(self, state):
        self.best = state
