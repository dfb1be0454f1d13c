"""Few-shot learning: encoders, heads, episodes, intervals, data sets, and both stages with their distillation."""

from common.cli import RunError, UsageError

import csv
import json
import pickle

import fewshot_classifier
import fewshot_meta
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import FEWSHOT, ROOT, home_flags, killed_after
from PIL import Image
from scipy.stats import chisquare, ttest_1samp
from torchvision.transforms.v2 import functional as V

from common.augment import random_boxes, resized_crop
from common.checkpoints import read_weights
from common.datasets import fewshot as fewsets
from common.datasets import load, novel
from common.fewshot.episodes import (
    EpisodeSampler,
    NovelClasses,
    Prototypes,
    confidence_interval,
    episode_accuracies,
    query_classes,
    roc_areas,
)
from common.models import MODELS, build, num_parameters
from common.models.base import Cosine
from common.options import flags, parse

# ---- encoders and heads


COUNTS = {"ResNet12": 7_996_800, "ResNet18_bottle": 10_210_944, "ResNet36_bottle": 23_159_040, "ResNet50_bottle": 32_565_120}
COUNTS |= {"ResNet12_wide": 12_424_320, "ConvNet4": 113_088}


@pytest.mark.parametrize("name, count", COUNTS.items())
def test_encoders_have_the_cards_parameters_and_halve_four_times(name, count):
    with torch.device("meta"):
        net = MODELS[name](64, 3, 80)
    head = 64 * (net.fc.in_features + 1)
    assert num_parameters(net) == count + head and net.fc.in_features == {"ConvNet4": 1600, "ResNet12_wide": 640}.get(name, 512)
    seen = []
    last = net.encoder[-1] if name == "ConvNet4" else net.layer4[-1]
    last.register_forward_hook(lambda m, i, o: seen.append(tuple(o.shape[2:])))
    net(torch.empty(2, 3, 80, 80, device="meta"))
    assert seen == [(5, 5)]
    pools = sum(b.enter for i in (1, 2, 3, 4) for b in getattr(net, f"layer{i}")) if name != "ConvNet4" else 4
    assert pools == 4


def test_published_files_load_whatever_they_call_the_parts(tmp_path):
    """Meta-Baseline's resnet12 has no lists; its heads are classifier.linear, classifier.proto, or nothing but a temperature."""
    net, x = build("ResNet12", 5, (3, 16, 16)).eval(), torch.rand(2, 3, 16, 16)
    s, f = net(x, feature=True)
    body = {f"encoder.{k.replace('.0.', '.', 1)}": v for k, v in net.state_dict().items() if not k.startswith("fc.")}
    heads = {
        "linear": {"classifier.linear.weight": net.fc.weight, "classifier.linear.bias": net.fc.bias},
        "meta": {"temp": torch.tensor(7.0)},
    }
    heads["cosine"] = {"classifier.proto": torch.randn(5, 512), "classifier.temp": torch.tensor(3.0)}
    for name, head in heads.items():
        torch.save({"model": "classifier", "model_args": {}, "model_sd": body | head}, tmp_path / f"{name}.pth")
        other = build("ResNet12_bottle", 5, (3, 16, 16)).eval()
        other.load_state_dict(other.adapt(read_weights(tmp_path / f"{name}.pth")[0]))
        again = other(x, feature=True)
        assert torch.equal(again[1], f) and (name != "linear" or torch.equal(again[0], s))
    assert isinstance(build("ResNet12", 5, (3, 16, 16)).fc, torch.nn.Linear)
    net.use_cosine_head()  # our own file of a net with that head, into a net without
    other = build("ResNet12", 5, (3, 16, 16)).eval()
    other.load_state_dict(other.adapt(net.state_dict()))
    assert torch.equal(other(x), net(x))
    mine = build("ConvNet4", 5, (3, 16, 16)).state_dict()
    assert build("ConvNet4", 5, (3, 16, 16)).adapt(mine).keys() == mine.keys()


def test_cosine_head():
    torch.manual_seed(0)
    head, f = Cosine(6, 4), torch.randn(3, 6)
    s = head(f)
    assert s.abs().max() <= 10 and torch.allclose(head(5 * f), s, atol=1e-6)
    (grad,) = torch.autograd.grad(s[0, 0], head.temp)
    assert grad.item() == pytest.approx(F.cosine_similarity(f[0], head.proto[0], dim=0).item(), abs=1e-6)


def test_prototypes():
    torch.manual_seed(0)
    shots, queries = torch.randn(2, 5, 3, 8, dtype=torch.double), torch.randn(2, 10, 8, dtype=torch.double)
    head = Prototypes().double()
    s = head(shots, queries)
    assert s.shape == (2, 10, 5) and s.abs().max() <= 10
    naive = F.cosine_similarity(queries[1, 7], shots[1, 4].mean(0), dim=0) * 10
    assert s[1, 7, 4].item() == pytest.approx(naive.item(), abs=1e-12)
    assert torch.allclose(head(3 * shots, queries * torch.rand(2, 10, 1)), s)  # scales do not count
    assert torch.allclose(head(shots.repeat(1, 1, 2, 1), queries), s)  # every shot twice
    order = torch.randperm(5)
    assert torch.allclose(head(shots[:, order], queries), s[:, :, order])
    assert head(shots[:, :, :1], shots[:, :1, 0])[0, 0, 0].item() == pytest.approx(10)  # a query that is the shot
    unit = F.normalize(shots[:, :, :1], dim=3), F.normalize(queries, dim=2)  # for unit vectors -|q - p|^2 = 2 cos - 2
    assert torch.allclose(Prototypes("sqr", 3.0).double()(*unit).softmax(2), Prototypes("cos", 6.0).double()(*unit).softmax(2))
    mean_first = F.normalize(torch.tensor([[3.0, 0.0], [0.0, 1.0]]).mean(0), dim=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(Prototypes()(shots.float(), queries.float()).double(), s, atol=1e-5)
    assert not torch.allclose(mean_first, torch.full((2,), 0.5**0.5))  # not the mean of the normalised


# ---- episodes


def test_episodes_are_distinct_repeatable_and_even():
    y = torch.arange(12).repeat_interleave(9 + torch.arange(12) % 4)
    sampler = EpisodeSampler(y, 5, 9)
    state = torch.get_rng_state()
    rows = sampler.draw(3000, torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's random numbers are taken
    assert rows.shape == (3000, 5, 9) and torch.equal(sampler.draw(3000, torch.Generator().manual_seed(1)), rows)
    classes = y[rows]
    assert (classes == classes[:, :, :1]).all()  # a row is of one class
    assert all(len(set(c)) == 5 for c in classes[:, :, 0].tolist())
    assert all(len(set(r)) == 9 for r in rows.flatten(0, 1).tolist())  # so that no shot is a query
    assert chisquare(classes[:, :, 0].flatten().bincount()).pvalue > 1e-3
    assert query_classes(2, 3).tolist() == [0, 0, 0, 1, 1, 1]


def test_an_episode_that_asks_for_too_much_is_refused():
    y = torch.tensor([0] * 20 + [1] * 12)
    with pytest.raises(UsageError, match="needs 16 images per class .support and query., but one class has only 12 .the base classes"):
        EpisodeSampler(y, 2, 16, "the base classes")
    with pytest.raises(UsageError, match="--way 5: an episode needs 5 classes, but there are 2"):
        EpisodeSampler(y, 5, 3)


def test_interval_is_students():
    assert confidence_interval(torch.full((9,), 3.0)) == (3.0, 0.0)
    mean, half = confidence_interval(torch.tensor([1.0, 4.0]))
    assert (mean, half) == (2.5, pytest.approx(12.7062 * 3 / 2, abs=1e-3))
    x = torch.rand(40)
    low, high = ttest_1samp(x.numpy(), 0).confidence_interval()
    mean, half = confidence_interval(x)
    assert (mean - half, mean + half) == pytest.approx((low, high), abs=1e-5)


def options(**given):
    return parse(fewshot_classifier.Args, flags(**given))


def test_an_image_encoded_once_is_as_good_as_encoded_in_each_episode():
    torch.manual_seed(0)
    net, x = build("ConvNet4", 5, (1, 16, 16)).eval(), torch.rand(60, 1, 16, 16)
    y, args = torch.arange(6).repeat_interleave(10), options(query=4)
    with torch.no_grad():
        kept = episode_accuracies(net(x, feature=True)[1], y, args, 2, 50)
        rows, right = EpisodeSampler(y, 5, 6).draw(50, torch.Generator().manual_seed(0)), query_classes(5, 4)
        for i, episode in enumerate(rows):
            f = net(x[episode.flatten()], feature=True)[1].view(1, 5, 6, -1)
            assert kept[i] == 100 * (Prototypes().episode_logits(f, 5, 2)[0].argmax(1) == right).float().mean()
    assert torch.equal(kept, episode_accuracies(net(x, feature=True)[1].detach(), y, options(query=4), 2, 50))


def test_areas_are_those_of_ranks():
    from sklearn.metrics import roc_auc_score

    torch.manual_seed(0)
    features, y, args = torch.randn(40, 3), torch.arange(2).repeat_interleave(20), options(query=6)
    found = roc_areas(features, y, args, 1, 3)
    rows = EpisodeSampler(y, 2, 7).draw(3, torch.Generator().manual_seed(0))
    for got, episode in zip(found, rows, strict=True):
        score = F.cosine_similarity(features[episode[:, 1:].flatten()], features[episode[0, :1]])
        assert got.item() == pytest.approx(100 * roc_auc_score([1] * 6 + [0] * 6, score), abs=1e-3)


# ---- data sets


def test_digitsfs_keeps_classes_and_images_apart():
    data, val, test = load("digitsfs"), novel("DigitsFS", "val"), novel("DigitsFS", "test")
    assert (data.classes, data.shape) == (64, (1, 16, 16))
    assert [len(p.y.unique()) for p in (data.train, data.test, val, test)] == [64, 64, 16, 20]
    assert [len(p) for p in (data.train, data.test, val, test)] == [6400, 1536, 960, 1200]
    halves = [{h.numpy().tobytes() for x in p.x for h in (x[..., :8], x[..., 8:])} for p in (data.train, data.test, val, test)]
    assert all(not halves[i] & halves[j] for i in range(4) for j in range(i))  # no digit is in two parts
    assert torch.equal(novel("DigitsFS", "test").x, test.x)
    with pytest.raises(
        UsageError, match="Digits keeps no classes for few-shot episodes; these do: DigitsFS, CIFARFS, miniImageNet, Omniglot"
    ):
        novel("Digits", "val")


def test_crops_are_taken_from_images_before_they_are_resized(tmp_path):
    made_mini(tmp_path / "miniImageNet")
    plain, data = (load("miniImageNet", tmp_path, source_crops=crops) for crops in (False, True))
    source = data.train.source
    assert (source.shape, source.dtype, data.train.x.shape) == ((54, 3, 84, 84), torch.uint8, (54, 3, 80, 80))
    rows = torch.tensor([5, 0, 7])
    part = data.train.subset(rows)
    assert torch.equal(part.source, source[rows]) and torch.equal(part.to_augment("resized_crop"), source[rows])
    assert torch.equal(part.to_augment("crop_flip"), part.x) and part.in_channels(1).source.shape == (3, 1, 84, 84)
    torch.manual_seed(3)
    got = data.view(part.source, "resized_crop")
    torch.manual_seed(3)
    box, mirrored = random_boxes(3, 84), torch.rand(3) < 0.5
    for i, (top, left, h, w) in enumerate(box.T.tolist()):
        one = V.resized_crop(source[rows[i]] / 255, top, left, h, w, [80, 80], antialias=True)
        one = one.flip(2) if mirrored[i] else one
        assert torch.allclose(got[i], (one - data.mean[0]) / data.std[0], atol=1e-4)
    # evaluation and the identity of the data are as without
    assert data.identity() == plain.identity() and data.test.source is None and novel("miniImageNet", "val", tmp_path).source is None
    for a, b in ((data.train, plain.train), (data.test, plain.test)):
        assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y) and torch.equal(data.view(a.x), plain.view(b.x))


def test_without_larger_images_crops_are_as_before():
    """Images that are not larger than img_size are not kept twice; without source_crops the interpolation is drawn, and x is cropped."""
    for name, size, bilinear in (
        ("DigitsFS", 8, False),
        ("Digits", 0, False),
        ("Digits", 8, True),
        ("DigitsFS", 0, True),
        ("DigitsFS", 32, True),
    ):
        data, views = load(name, img_size=size, source_crops=bilinear), []
        x = data.train.to_augment("resized_crop")[:40]
        assert data.train.source is None and x.shape[1:] == data.shape
        torch.manual_seed(0)
        views.append(data.view(x, "resized_crop"))
        torch.manual_seed(0)
        box, mirrored, smooth = random_boxes(40, x.shape[-1]), torch.rand(40) < 0.5, (torch.rand(40) < 0.5) & (not bilinear)
        views.append((resized_crop(x / 255, box, mirrored, smooth) - data.mean) / data.std)
        assert torch.equal(*views)


def test_every_tenth_image_of_a_class_is_held_out():
    y = torch.tensor([0, 1] * 15)
    (a, ya), (b, yb) = (fewsets.hold_out_tenth(torch.arange(30), y, part) for part in ("base", "held"))
    assert sorted([*a.tolist(), *b.tolist()]) == list(range(30)) and ya.bincount().tolist() == [14, 14] and yb.bincount().tolist() == [1, 1]
    assert len(fewsets.hold_out_tenth(torch.arange(30), y, "val")[0]) == 30


def test_cifarfs_splits_the_hundred_classes(tmp_path, monkeypatch):
    names = sorted(
        "apple aquarium_fish bear bee boy bottle bowl bridge bus can castle caterpillar chair clock cloud cockroach couch cup dinosaur dolphin "
        "elephant forest girl hamster house kangaroo keyboard lawn_mower lion lizard lobster mountain mouse mushroom oak_tree orange orchid "
        "palm_tree pear pine_tree plate porcupine possum rabbit raccoon ray road seal shrew skunk skyscraper snake spider squirrel streetcar "
        "sunflower tank tiger train trout tulip turtle willow_tree wolf".split()
        + fewsets.CIFARFS["val"].split()
        + fewsets.CIFARFS["test"].split()
    )
    assert len(set(names)) == 100

    class Made:
        def __init__(self, folder, train, download):
            self.classes, each = names, 18 if train else 2
            self.targets = [k for k in range(100) for _ in range(each)]
            self.data = np.repeat(np.array(self.targets, dtype=np.uint8), 32 * 32 * 3).reshape(-1, 32, 32, 3)

    monkeypatch.setattr(fewsets.torchvision.datasets, "CIFAR100", Made)
    data = load("cifar-fs", tmp_path)
    assert (len(data.train), len(data.test), data.classes) == (64 * 18, 64 * 2, 64)
    for part, count in (("val", 16), ("test", 20)):
        images = novel("CIFARFS", part, tmp_path)
        told = {names[k] for k in images.x[:, 0, 0, 0].tolist()}
        assert told == set(fewsets.CIFARFS[part].split()) and images.y.bincount().tolist() == [20] * count


def made_mini(root, classes=(6, 5, 5), each=10):
    """miniImageNet in small: images and csv files, colours by class."""
    (root / "images").mkdir(parents=True)
    k = 0
    for part, n in zip(("train", "val", "test"), classes, strict=True):
        with open(root / f"{part}.csv", "w", newline="") as f:
            rows = csv.writer(f)
            rows.writerow(["filename", "label"])
            for _ in range(n):
                for i in range(each):
                    x = np.random.default_rng(k * 100 + i).integers(0, 60, (84, 84 + 4 * (i == 0), 3)) + 10 * k
                    Image.fromarray(x.astype(np.uint8)).save(root / "images" / f"n{k:02}_{i}.jpg")
                    rows.writerow([f"n{k:02}_{i}.jpg", f"n{k:02}"])
                k += 1


def test_miniimagenet_from_csv_files_and_from_pickles(tmp_path):
    made_mini(tmp_path / "miniImageNet")
    data = load("mini_imagenet", tmp_path, img_size=16)
    assert (data.classes, data.shape, len(data.train), len(data.test)) == (6, (3, 16, 16), 54, 6)
    test = novel("miniImageNet", "test", tmp_path, size=16)
    assert test.x.shape == (50, 3, 16, 16) and test.y.bincount().tolist() == [10] * 5
    assert test.x[test.y == 4].float().mean() > test.x[test.y == 0].float().mean() + 30
    for part, labels in (("train_phase_train", (3, 4)), ("train_phase_val", (3, 4)), ("val", (70, 80)), ("test", (90, 95))):
        content = {"data": np.full((4, 84, 84, 3), labels[0], dtype=np.uint8), "labels": [labels[1], labels[0]] * 2}
        with open(tmp_path / "miniImageNet" / f"miniImageNet_category_split_{part}.pickle", "wb") as f:
            pickle.dump(content, f, protocol=2)
    data = load("miniImageNet", tmp_path)
    assert data.train.x.shape == (4, 3, 80, 80) and data.train.y.tolist() == [1, 0, 1, 0] and data.train.x.unique().tolist() == [3]
    assert novel("miniImageNet", "val", tmp_path).x.unique().tolist() == [70]


def test_a_pickle_runs_nothing(tmp_path):
    (tmp_path / "miniImageNet").mkdir()

    class Evil:
        def __reduce__(self):
            return print, ("run",)

    with open(tmp_path / "miniImageNet/miniImageNet_category_split_val.pickle", "wb") as f:
        pickle.dump({"data": Evil()}, f)
    with pytest.raises(UsageError, match="calls builtins.print"):
        novel("miniImageNet", "val", tmp_path)
    with pytest.raises(UsageError, match="miniImageNet is not there"):
        novel("miniImageNet", "test", tmp_path)
    (tmp_path / "miniImageNet/test.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="test.csv has 1 rows and the columns a, b; expected .* the columns filename and label"):
        novel("miniImageNet", "test", tmp_path)
    (tmp_path / "miniImageNet/images").mkdir()
    (tmp_path / "miniImageNet/images/1.jpg").write_text("no image")
    (tmp_path / "miniImageNet/test.csv").write_text("filename,label\n1.jpg,a\n")
    with pytest.raises(RunError, match="could not be downloaded or read"):
        novel("miniImageNet", "test", tmp_path)


def test_omniglot_by_characters(tmp_path):
    for name, alphabets in (("background", ("A", "B")), ("evaluation", ("C",))):
        for alphabet in alphabets:
            for c in range(5):
                folder = tmp_path / f"omniglot-py/images_{name}/{alphabet}/character{c:02}"
                folder.mkdir(parents=True)
                for i in range(10):
                    Image.fromarray(np.full((105, 105), 255 - 20 * c, dtype=np.uint8)).save(folder / f"{i}.png")
    data = load("Omniglot", tmp_path)
    assert (data.classes, data.shape, len(data.train), len(data.test)) == (9, (1, 28, 28), 81, 9)
    assert data.train.x[data.train.y == 0].unique().tolist() == [0]  # white paper becomes black
    assert len(novel("Omniglot", "val", tmp_path)) == 10 and novel("Omniglot", "test", tmp_path).y.bincount().tolist() == [10] * 5


# ---- the scripts


SMALL = {"dataset": "DigitsFS", "val_episodes": 20, "test_episodes": 50, "model": "ConvNet4", "lamda": 0.2, "query": 5, "batch_size": 64}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home with both stages of a ConvNet4."""
    home = tmp_path_factory.mktemp("fewshot")
    torch.set_num_threads(1)
    for main, more in ((fewshot_classifier, {"epochs": 2}), (fewshot_meta, {"epochs": 1, "steps": 5})):
        main.main(flags(**home_flags(home) | SMALL | more))
    return home


@pytest.fixture
def call(home):
    def call(module, **given):
        return module.main(flags(**home_flags(home) | SMALL | given))

    call.folder = lambda script, who: home / "checkpoints" / script / "DigitsFS" / who / "seed0"
    return call


def test_both_stages_learn_and_leave_what_one_needs(home, call):
    for script, nets in (("fewshot_classifier", {"student"}), ("fewshot_meta", {"student", "head"})):
        folder = call.folder(script, "ConvNet4")
        result = json.loads((folder / "result.json").read_text())
        episodes = torch.load(folder / "episodes.pt", weights_only=True)
        for shot in (1, 5):
            accuracy = episodes[f"last {shot}shot"]
            assert len(accuracy) == 50 and result["fewshot"]["last"][f"{shot}shot"] == pytest.approx([*confidence_interval(accuracy)])
        assert result["accuracy"] == result["fewshot"]["last"]["1shot"][0] > 30 and result["split"] == "test classes"
        assert {*nets, "best", "episodes", "state"} == {p.stem for p in folder.glob("*.pt")}
    assert torch.load(folder / "head.pt", weights_only=True)["model"]["temp"] != 10


@pytest.mark.parametrize("base", ["kd", "dkd", "augconf", "adaptconf", "mlkd", "dist", "none"])
def test_a_student_from_a_classifier(base, call):
    result = call(fewshot_classifier, teacher="ConvNet4", epochs=1, base=base, tag=base, model="ResNet8")
    assert {"gt", "fr", "sk"} < set(result["log"]) and result["queries"] == 1280
    weighed = [v for k, v in result["log"].items() if k in ("kd", "target", "others", "own", "inter", "intra", "batch", "class")]
    assert all(v >= 0 for v in weighed) and bool(weighed) == (base != "none")


@pytest.mark.parametrize("stage", ["classifier", "meta"])
def test_a_student_from_episodes_of_a_teacher_that_encodes_once(stage, call, monkeypatch):
    given = {"teacher": "ConvNet4", "teacher_stage": stage, "epochs": 2, "steps": 3, "tag": stage}
    told, build_head = [], fewshot_meta.Prototypes
    monkeypatch.setattr(fewshot_meta, "Prototypes", lambda *a: told.append(a) or build_head(*a))
    result = call(fewshot_meta, **given)
    assert result["queries"] == 1280 and {"gt", "kd", "fr", "sk"} <= set(result["log"])
    learned = torch.load(call.folder("fewshot_meta", "ConvNet4") / "head.pt", weights_only=True)["model"]["temp"].item()
    assert told[1][1] == (learned if stage == "meta" else 10.0)
    each_time = call(fewshot_meta, **given | {"augment": "crop", "tag": f"{stage}-crop"})
    assert each_time["queries"] == 2 * 3 * 4 * 5 * 6


def test_what_the_teacher_knows_is_what_it_would_say(call, monkeypatch):
    """A student that is its teacher, on images that do not change: with its batch norm in evaluation mode too, both say the same."""
    train = torch.nn.Module.train
    monkeypatch.setattr(torch.nn.Module, "train", lambda self, mode=True: train(self, False))
    log = call(fewshot_meta, teacher="ConvNet4", epochs=1, steps=1, lr=1e-9, tag="same")["log"]
    assert log["kd"] == pytest.approx(0, abs=1e-6) and log["fr"] == pytest.approx(0, abs=1e-4)


def test_killed_and_resumed_runs_end_the_same(call, monkeypatch):
    for module, given in ((fewshot_classifier, {"epochs": 3, "eval_every": 1}), (fewshot_meta, {"epochs": 3, "steps": 3})):
        given |= {"teacher": "ConvNet4"}
        whole = call(module, **given, tag="whole")
        killed_after(2, monkeypatch, lambda module=module, given=given: call(module, **given, tag="killed"))
        again = call(module, **given, tag="killed")
        for name in ("student.pt", "best.pt", "episodes.pt"):
            a, b = (
                torch.load(
                    call.folder(module.__name__, f"ConvNet4_to_ConvNet4-{'logits' if module is fewshot_classifier else 'inside'}-{who}")
                    / name,
                    weights_only=True,
                )
                for who in ("whole", "killed")
            )
            a, b = ({k: v for k, v in c.get("model", c).items() if k != "checksum"} for c in (a, b))
            assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
        assert whole["fewshot"] == again["fewshot"]


def test_both_stages_crop_images_of_source_size_and_resume_the_same(tmp_path, monkeypatch):
    """DigitsFS has 16 pixels; at --img_size 8 crops go from 16 to 8, with and without a teacher, also after a kill."""
    from common.datasets import images

    seen, crop = set(), images.resized_crop
    monkeypatch.setattr(
        images, "resized_crop", lambda x, **kw: seen.add((x.shape[-1], kw["size"], bool(kw["smooth"].any()))) or crop(x, **kw)
    )
    given = home_flags(tmp_path) | SMALL | {"model": "ResNet8", "img_size": 8, "epochs": 3, "eval_every": 1, "augment": "resized_crop"}
    for module, more in ((fewshot_classifier, {}), (fewshot_classifier, {"teacher": "ResNet8"}), (fewshot_meta, {"steps": 3})):
        seen.clear()
        more = given | more | ({"teacher": "ResNet8"} if module is fewshot_meta else {})
        whole = module.main(flags(**more))
        assert seen == {(16, 8, False)}
        killed_after(2, monkeypatch, lambda module=module, more=more: module.main(flags(**more, tag="killed")))
        again = module.main(flags(**more, tag="killed"))
        assert whole["fewshot"] == again["fewshot"] and whole["log"] == again["log"]


def test_the_best_changes_only_where_it_is_better(call):
    class Run:
        student, args, notes, said, device = torch.nn.Linear(1, 1), options(**SMALL), {}, [], "cpu"

    classes, said = NovelClasses(Run), iter([50.0, 70.0, 60.0])
    classes.accuracies = lambda *_: {1: torch.full((2,), next(said))}
    for i, best in enumerate([0.0, 1.0, 1.0]):
        torch.nn.init.constant_(Run.student.weight, i)
        classes.val()
        assert classes.best["net"]["weight"].item() == best
    assert classes.best["accuracy"] == 70


def test_the_released_workflow_on_images_from_files(tmp_path):
    """Its README's commands, in its spelling: baselines, KD, episodes, both teachers."""
    made_mini(tmp_path / "data" / "miniImageNet")
    home = {"data_dir": tmp_path / "data", "checkpoints_dir": tmp_path / "c", "logs_dir": tmp_path / "l", "device": "cpu"}
    small = {"img_size": 16, "query": 4, "val_episodes": 5, "test_episodes": 5, "batch_size": 18, "epochs": 1, "dataset": "mini-imagenet"}
    told = [
        (fewshot_classifier, "--res_type resnet12_bottle"),
        (fewshot_classifier, "--res_type convnet4 --head cosine"),
        (fewshot_classifier, "--res_type convnet4 --teacher_res_type resnet12_bottle --loss_weight 1 --temperature 1 --base dkd"),
        (fewshot_meta, "--res_type resnet12_bottle --steps 1"),
        (fewshot_meta, "--res_type convnet4 --teacher_res_type resnet12_bottle --steps 1"),
        (fewshot_meta, "--res_type convnet4 --teacher_res_type resnet12_bottle --steps 1 --teacher_stage meta --tag meta"),
    ]
    for module, words in told:
        result = module.main([*flags(**home | small), *words.split()])
        assert result["options"]["model"] in ("ResNet12_bottle", "ConvNet4") and 0 <= result["accuracy"] <= 100
        assert result["log"].keys() >= ({"gt", "fr", "sk"} if "teacher" in words else {"gt"})


def test_a_net_is_tested_alone(home, call, capsys):
    import fewshot_test

    path = call.folder("fewshot_meta", "ConvNet4") / "student.pt"
    told = {"dataset": "DigitsFS", "model": "ConvNet4", "path": path, "test_episodes": 50, "query": 5}
    result = fewshot_test.main(flags(**home_flags(home) | told | {"shots": "1,2", "auc": True}))
    before = json.loads((path.parent / "result.json").read_text())["fewshot"]["last"]["1shot"]
    assert result["fewshot"]["last"]["1shot"] == before and {"2shot", "1shot_auc"} <= set(result["fewshot"]["last"])
    assert "each encoded once" in capsys.readouterr().out
    for given, words in ({"path": ""}, "--path is missing"), ({"shots": "1,x"}, "give numbers of images"):
        with pytest.raises(UsageError, match=words):
            fewshot_test.main(flags(**home_flags(home) | told | given))


def test_the_released_codes_spellings():
    words = "--res_type resnet36_bottle --teacher_res_type resnet12_bottle --loss_weight 2 --temperature 4 --fisher_rao_lamda 0.3"
    a = parse(fewshot_classifier.Args, words.split())
    assert (a.model, a.teacher, a.w_kd, a.temperature, a.w_fr, a.response) == ("resnet36_bottle", "resnet12_bottle", 2, 4, 0.3, "logits")


BAD = [
    (fewshot_classifier, {"dataset": "Digits", "model": "ResNet8"}, "Digits keeps no classes for few-shot episodes"),
    (fewshot_classifier, {"teacher": "ResNet8"}, "no teacher for DigitsFS in .*; first run: python project/fewshot_classifier.py .*--model ResNet8"),
    (fewshot_meta, {"teacher": "ResNet8", "teacher_stage": "meta"}, "first run: python project/fewshot_meta.py .*--model ResNet8"),
    (fewshot_meta, {"model": "ResNet8"}, "no classifier to start from: .*; first run: python project/fewshot_classifier.py .*--model ResNet8"),
    (fewshot_meta, {"query": 90}, "an episode needs 91 images per class"),
    (fewshot_meta, {"way": 30}, r"--way 30: an episode needs 30 classes, but there are 16 \(the val classes of DigitsFS\)"),
    (fewshot_classifier, {"alpha_max": 8}, "--alpha_max 8.0: it must be at least 0 and less than 1"),
    (fewshot_classifier, {"private": "Digits"}, "--private Digits: few-shot learning uses one data set"),
    (fewshot_classifier, {"base": "kdd"}, "invalid choice: 'kdd'"),
    (fewshot_classifier, {"head": "cosine", "model": "torchvision:resnet18", "img_size": 32}, "keeps its own last layer"),
    (fewshot_meta, {"teacher": "ConvNet4", "response": "logits"}, "needs inside answers, --response logits gives less"),
    (fewshot_classifier, {"model": "ResNet12", "img_size": 8}, "ResNet12 cannot take 1x8x8 images; use --img_size 16"),
]  # fmt: skip


@pytest.mark.parametrize("module, given, words", BAD)
def test_bad_input_is_answered_in_one_line(module, given, words, call):
    with pytest.raises(UsageError, match=words):
        call(module, **{"epochs": 1, "tag": "bad"} | given)


@pytest.mark.parametrize("name", FEWSHOT[:2])
def test_a_dry_run_keeps_nothing(name, home, call):
    before = sorted(home.rglob("*"))
    module = {"fewshot_classifier": fewshot_classifier, "fewshot_meta": fewshot_meta}[name]
    call(module, dry_run=True, overwrite=True)
    assert sorted(home.rglob("*")) == before


def test_the_tables_rows_begin_with_their_classifiers(tmp_path, monkeypatch, capsys):
    import table

    monkeypatch.chdir(tmp_path)
    table.main(["fewshot-digits", "--dry_run", "--seeds", "1"])
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) == 13 and sum("fewshot_meta.py" in c and "--model ConvNet4" in c for c in commands) == 1
    assert (ROOT / "tables/fewshot.toml").exists()


def test_another_start_and_another_metric(trained, tmp_path):
    """--init: the file itself as a start is the same run; --metric sqr compares by distances."""
    from conftest import run

    short = {"dataset": "DigitsFS", "model": "ConvNet4", "epochs": 1, "val_episodes": 10, "test_episodes": 20}
    run("fewshot_classifier", tmp_path, **short, lamda=0.1)
    path = next((tmp_path / "checkpoints/fewshot_classifier").rglob("student.pt"))
    meta = short | {"steps": 2, "lamda": 0.3}
    own = run("fewshot_meta", tmp_path, **meta)["fewshot"]
    assert run("fewshot_meta", tmp_path, **meta, init=path, tag="init")["fewshot"] == own
    assert run("fewshot_meta", tmp_path, **meta, metric="sqr", tag="sqr")["fewshot"] != own


def test_a_temperature_is_one_number_above_0(tmp_path):
    from common.fewshot.episodes import learned_temperature

    path = tmp_path / "student.pt"
    torch.save({"x": torch.ones(1)}, path)
    assert learned_temperature(path) == 10
    for temp in (torch.tensor(5.0), torch.ones(1).half() * 5):
        torch.save({"model": {"temp": temp}}, tmp_path / "head.pt")
        assert learned_temperature(path) == 5
    for temp, shown in ((torch.tensor(torch.nan), "nan"), (torch.tensor(-1.0), "-1.0"), (torch.ones(2), r"\[1.0, 1.0\]")):
        torch.save({"model": {"temp": temp}}, tmp_path / "head.pt")
        with pytest.raises(UsageError, match=f"head.pt: its temperature temp is '{shown}'; expected one number above 0"):
            learned_temperature(path)
    torch.save({"model": {"other": torch.ones(1)}}, tmp_path / "head.pt")
    with pytest.raises(UsageError, match=r"head.pt: its temperature temp is '\[\]'"):
        learned_temperature(path)
    (tmp_path / "head.pt").unlink()
    (tmp_path / "head.pt").symlink_to("/nowhere/head.pt")
    with pytest.raises(UsageError, match="head.pt is a link to /nowhere/head.pt, which does not exist"):
        learned_temperature(path)
