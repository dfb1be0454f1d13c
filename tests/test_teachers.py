"""Teachers as people have them: other normalisations, other data sets, no weights worth the name; and counts that hold."""

from common.cli import RunError, UsageError

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn as nn
from conftest import Death, run

from common.blackbox import BlackBox
from common.counter import Counter
from common.models import build
from common.teachers import Renormalised
from common.transfer import Transfer
from common.utils import safe, save
from common.values import normalisation


def teacher_file(script):
    return next((script.home / "checkpoints/teacher").rglob("teacher.pt"))


# ---- normalisation


@pytest.mark.parametrize("value, channels, mean, std", [
    ("half", 3, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), ("unit", 1, (0.0,), (1.0,)), ("imagenet", 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ("0.1,0.2", 3, (0.1, 0.1, 0.1), (0.2, 0.2, 0.2)), ("0.1,0.2,0.3,1,2,3", 3, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0)), ("0.1307,0.3081", 1, (0.1307,), (0.3081,)),
])  # fmt: skip
def test_normalisations(value, channels, mean, std):
    assert normalisation(value, channels, "--normalize") == (mean, std)


@pytest.mark.parametrize("value", ["halt", "0.5", "0.5,0", "0.5,-1", "0.1,0.2,0.3,1", "nan,1", "", "1,inf"])
def test_other_words_are_one_line(value):
    with pytest.raises(UsageError, match=r"--normalize .*: there are half, unit, imagenet, or mean and std above 0 \(2 or 6 numbers\)"):
        normalisation(value, 3, "--normalize")


def test_a_net_sees_images_as_it_was_trained_on_them():
    net, pixels = build("ResNet8", 10, (3, 8, 8)).eval(), torch.rand(5, 3, 8, 8)
    of = lambda v: tuple(torch.tensor(u).view(1, -1, 1, 1) for u in normalisation(v, 3, ""))  # noqa: E731
    half, imagenet = of("half"), of("imagenet")
    wrapped = Renormalised(net, half, imagenet).eval()
    seen, wanted = (pixels - half[0]) / half[1], (pixels - imagenet[0]) / imagenet[1]
    assert torch.allclose(wrapped(seen), net(wanted), atol=1e-5) and torch.allclose(
        wrapped(seen, feature=True)[1], net(wanted, feature=True)[1], atol=1e-5
    )


def test_a_teacher_of_unit_range_is_as_good_by_its_own_file_and_by_option(script, tmp_path):
    """Trained on [0, 1]: its own file says so; a plain state dict needs --teacher_normalize, and is worth little without."""
    own = run("teacher", script.home, model="ResNet8", epochs=6, normalize="unit", tag="unit")
    path = next((script.home / "checkpoints/teacher").rglob("*-unit/seed0/teacher.pt"))
    torch.save(torch.load(path, weights_only=True)["model"], tmp_path / "plain.pth")
    found = {
        "file": script("KD", epochs=1, lamda=0.2, teacher_path=path, tag="file"),
        "option": script("KD", epochs=1, lamda=0.2, teacher_path=tmp_path / "plain.pth", teacher_normalize="unit", tag="option"),
        "numbers": script("KD", epochs=1, lamda=0.2, teacher_path=tmp_path / "plain.pth", teacher_normalize="0,1", tag="numbers"),
        "same": script("KD", epochs=1, lamda=0.2, teacher_path=tmp_path / "plain.pth", normalize="unit", tag="same"),
        "wrong": script("KD", epochs=1, lamda=0.2, teacher_path=tmp_path / "plain.pth", tag="wrong"),
    }
    accuracy = {k: v["teacher_accuracy"] for k, v in found.items()}
    assert own["accuracy"] > 80
    assert all(accuracy[k] == pytest.approx(own["accuracy"], abs=0.21) for k in ("file", "option", "numbers", "same"))
    assert accuracy["wrong"] < own["accuracy"] - 10


def test_a_gda_teacher_that_is_looked_into_is_renormalised_too(script):
    run("teacher", script.home, model="ResNet8", epochs=4, normalize="unit", tag="unit")
    path = next((script.home / "checkpoints/teacher").rglob("*-unit/seed0/teacher.pt"))
    result = script("GDA", epochs=1, lamda=0.1, base="fitnet", response="inside", teacher_path=path)
    assert result["teacher_accuracy"] > 60 and result["queries"] == 128


# ---- the wrong teacher


def test_a_teacher_of_another_data_set_is_refused(script, monkeypatch):
    from common import datasets

    g = torch.Generator().manual_seed(0)
    x, y = torch.randint(0, 256, (60, 1, 8, 8), dtype=torch.uint8, generator=g), torch.arange(60) % 10
    monkeypatch.setitem(datasets.DATASETS, "Other", datasets.Spec(10, 1, 8, lambda folder, train: (x, y), "nothing"))
    path = teacher_file(script)
    with pytest.raises(
        UsageError, match="is a teacher of Digits, not of Other; use --dataset Digits, with --private Other for images of Other"
    ):
        script("KD", dataset="Other", teacher_path=path, epochs=1)
    assert script("KD", private="Other", lamda=0.5, epochs=1)["queries"] == 30


def test_a_teacher_of_other_classes_is_refused(script):
    path = teacher_file(script)
    content = torch.load(path, weights_only=True)
    content["meta"]["data"]["names"] = [*"abcdefghij"]
    save(path, content)
    with pytest.raises(UsageError, match="has the classes a, b, c, .*; Digits now has 0, 1, 2, .*; train it again"):
        script("KD", epochs=1)


def test_a_teacher_near_chance_is_said_with_likely_causes(script, capsys, tmp_path):
    torch.manual_seed(1)
    torch.save(build("ResNet8", 10, (1, 8, 8)).state_dict(), tmp_path / "untrained.pth")
    script("KD", epochs=1, lamda=0.1, teacher_path=tmp_path / "untrained.pth", tag="untrained")
    out = capsys.readouterr().out
    assert "WARNING: the teacher is near chance (10.00 %): its normalisation (--teacher_normalize), the order of its classes" in out
    script("KD", epochs=1, lamda=0.1)
    assert "WARNING" not in capsys.readouterr().out


@pytest.mark.parametrize("response", ["soft", "hard"])
def test_a_teacher_that_answers_nan_is_refused_before_anything_is_asked(response, script, tmp_path):
    state = torch.load(teacher_file(script), weights_only=True)["model"]
    torch.save(state | {"fc.bias": torch.full((10,), torch.nan)}, tmp_path / "nan.pth")
    with pytest.raises(UsageError, match=r"nan.pth holds a weight that is not finite \(fc.bias\)"):
        script("KD", epochs=1, teacher_path=tmp_path / "nan.pth", response=response)


@pytest.mark.parametrize(
    "name, more",
    [("KD", {"response": "hard"}), ("KD", {"augment": "crop"}), ("DB3KD", {"sr_mode": "sd"}), ("DAFL", {"steps": 2, "batch_size": 8})],
)
def test_an_answer_that_is_not_finite_stops_the_run_wherever_it_comes_from(name, more, script, monkeypatch):
    """The teacher is fine on the test images, and fails on others."""
    audit = BlackBox.audit

    def after_audit(self, x):
        found = audit(self, x)
        if len(x) < 500:  # the last of the test images has been seen
            return found
        self.net.fc.bias.data[0] = torch.nan
        return found

    monkeypatch.setattr(BlackBox, "audit", after_audit)
    with pytest.raises(RunError, match="the teacher answered with NaN or infinity; check its weights"):
        script(name, epochs=1, lamda=0.2, **more)


# ---- counts


def test_a_ledger_goes_on_and_refuses_another_file(tmp_path):
    Counter(tmp_path / "queries").add({"queries": 5, "private": 5, "bytes": 40})
    again = Counter(tmp_path / "queries")
    again.add({"queries": 2, "mixed": 2})
    assert Counter(tmp_path / "queries").counts() == {"queries": 7, "private": 5, "mixed": 2, "public": 0, "synthetic": 0, "bytes": 40}
    (tmp_path / "other").write_text("no counts")
    with pytest.raises(UsageError, match="other has 9 bytes, not 112: it does not hold counts of queries"):
        Counter(tmp_path / "other")


@pytest.mark.parametrize(
    "name, more, lost",
    [
        ("MEKD", {"steps": 4, "batch_size": 10}, 30),
        ("DAFL", {"steps": 4, "batch_size": 10}, 30),
        ("KD", {"augment": "crop", "batch_size": 40}, 120),
    ],
)
def test_what_was_asked_before_a_kill_stays_counted(name, more, lost, script, monkeypatch):
    """The process dies after the third batch of epoch 2; that epoch is asked about again, and both are billed."""
    options = {"epochs": 3, "lamda": 0.2} | more
    whole = script(name, **options, tag="whole")
    monkeypatch.setattr("common.record.SAVE_EVERY", 0.0)
    from common.training import Training

    tally, steps = Training.tally, []

    def dying(self, **terms):
        steps.append(1)
        if self.epoch == 2 and len(steps) == len([s for s in steps if s]) and steps.count(1) == dying.at:
            raise Death
        return tally(self, **terms)

    per_epoch = 4 if name != "KD" else 7
    dying.at = per_epoch + 3
    with monkeypatch.context() as m:
        m.setattr(Training, "tally", dying)
        with pytest.raises(Death):
            script(name, **options, tag="cut")
    resumed = script(name, **options, tag="cut")
    assert resumed["own"] == whole["own"] and resumed["accuracy"] == whole["accuracy"]
    assert resumed["repeated"] == lost and resumed["queries"] == whole["queries"] + lost and whole["repeated"] == 0
    assert json.loads(next((script.home / "checkpoints" / name).rglob("*-cut/seed0/result.json")).read_text())["repeated"] == lost


def test_a_budget_holds_over_a_kill(script, monkeypatch):
    """MEKD may ask 60 of its own; after 30 lost ones the other epochs cannot be paid for, which is said and not overspent."""
    monkeypatch.setattr("common.record.SAVE_EVERY", 0.0)
    from common.training import Training

    options = {"epochs": 2, "lamda": 0.2, "steps": 3, "batch_size": 10, "query_budget": 518 + 60}
    tally, steps = Training.tally, []

    def dying(self, **terms):
        steps.append(1)
        if len(steps) == 5:
            raise Death
        return tally(self, **terms)

    with monkeypatch.context() as m:
        m.setattr(Training, "tally", dying)
        with pytest.raises(Death):
            script("MEKD", **options)
    with pytest.raises(UsageError, match=r"--query_budget 578 allows \d+ more queries"):
        script("MEKD", **options)
    ledger = Counter(next((script.home / "checkpoints/MEKD").rglob("queries")))
    assert ledger.counts()["queries"] <= 60


# ---- places


def test_folders_of_other_paths_have_other_places():
    names = [safe(f"folder:{p}") for p in ("x/y", "x-y", "z/y", "~/y", "x/y/", "./x/y")]
    assert len({*names[:4]}) == 4 and names[4] == names[5] == names[0] and names[0].startswith("folder-y-")
    assert safe("MNIST-folder:a/b") != safe("MNIST-folder:a-b") and safe("torchvision:resnet18") == "torchvision-resnet18"


def test_milestones_in_the_released_codes_spelling():
    import importlib

    from common.options import parse
    from common.schedule import milestones

    kd = importlib.import_module("KD").Args
    assert (
        milestones(parse(kd, ["--milestones", "80", "160", "--seed", "1"]))
        == milestones(parse(kd, ["--milestones", "80,160"]))
        == [80, 160]
    )


# ---- teachers that are functions, or whose weights are not here


OWN = """
import torch

def soft(images):
    assert images.dtype == torch.uint8 and images.shape[1:] == (1, 8, 8)
    return torch.softmax(images.float().flatten(1)[:, 18:28] / 20, 1)

def hard(images):
    return soft(images).argmax(1).numpy()

def logits(images):
    return images.float().flatten(1)[:, 18:28] / 20

def wide(images):
    return torch.zeros(len(images), 3)

def four(images):
    return soft(images).double().mul(1e4).round().div(1e4).float()
"""


@pytest.mark.parametrize("name", ["KD", "DB3KD", "MEKD"])
def test_a_teacher_that_is_a_function(name, script, tmp_path):
    (tmp_path / "api.py").write_text(OWN)
    given = {"epochs": 1, "lamda": 0.1, "teacher": f"py:{tmp_path / 'api.py'}:{'hard' if name == 'DB3KD' else 'soft'}"}
    if name == "MEKD":
        script("DCGAN", epochs=1, lamda=0.1, teacher=given["teacher"])
        given["steps"] = 2
    result = script(name, **given, **({"sr_mode": "sd"} if name == "DB3KD" else {}))
    assert result["queries"] >= 128 and "file-api_" in result["line"] and result["teacher_accuracy"] is None


def test_answers_of_a_function_are_what_the_response_says(script, tmp_path):
    (tmp_path / "api.py").write_text(OWN)
    a, b = (script("KD", epochs=1, lamda=0.1, teacher=f"py:{tmp_path / 'api.py'}:{f}", response=f)["log"] for f in ("soft", "logits"))
    assert a["kl"] == pytest.approx(b["kl"], rel=1e-3)
    for function, response, words in [
        ("wide", "soft", r"returned \(129, 3\) for 129 images; --response soft takes \(129, 10\)"), ("logits", "soft", "no probabilities .* use --response logits"),
        ("hard", "soft", r"returned \(129,\) for 129 images"), ("missing", "soft", "has no missing; it has: "),
    ]:  # fmt: skip
        with pytest.raises(UsageError, match=words):
            script("KD", epochs=1, lamda=0.1, teacher=f"py:{tmp_path / 'api.py'}:{function}", response=response, tag=f"{function}1")
    with pytest.raises(UsageError, match="is a function, which can be a teacher, not a student"):
        script("KD", model=f"py:{tmp_path / 'api.py'}:soft", epochs=1)


def test_zeros_of_a_function_that_rounds_are_half_a_unit(script, tmp_path, capsys):
    (tmp_path / "api.py").write_text(OWN)
    a, b = (script("ML", epochs=1, lamda=0.1, teacher=f"py:{tmp_path / 'api.py'}:{f}")["log"] for f in ("soft", "four"))
    assert "the teacher's probabilities are rounded to 4 decimals: 0 is taken as 5e-05" in capsys.readouterr().out
    answers = [Transfer(p).whole()["answers"] for p in sorted((script.home / "checkpoints/ML").rglob("transfer.safetensors"))]
    assert min(t.min() for t in answers) > -25 and a.keys() == b.keys()  # a zero of float32 would be -70 or less


def test_a_transfer_set_needs_no_weights_of_its_teacher(script):
    first = script("KD", epochs=1, lamda=0.2)
    bought = next((script.home / "checkpoints/KD").rglob("transfer.safetensors"))
    teacher_file(script).unlink()
    again = script("KD", epochs=1, lamda=0.2, transfer=bought, tag="again")
    assert again["accuracy"] == first["accuracy"] and again["own"]["queries"] == 0 and "agreement" not in again
    with pytest.raises(UsageError, match="no teacher for Digits"):
        script("ML", epochs=1)
    with pytest.raises(UsageError, match="its model of the teacher is ResNet8, this run's is ResNet20"):
        script("KD", epochs=1, lamda=0.2, transfer=bought, teacher="ResNet20")
    with pytest.raises(UsageError, match="the weights of the teacher are not here"):
        script("AM", epochs=5, lamda=0.2, queries=5, pairs=50, transfer=bought)


def test_another_number_of_classes_is_said(script, tmp_path):
    torch.save(build("ResNet8", 100, (1, 8, 8)).state_dict(), tmp_path / "hundred.pth")
    with pytest.raises(UsageError, match=r"it has 100 classes, not 10 \(fc.weight is \(100, 64\), not \(10, 64\)\)"):
        script("KD", epochs=1, teacher_path=tmp_path / "hundred.pth")


@pytest.mark.parametrize("name, more, budget", [
    ("KN", {"budget": 60, "choice": "adaptive", "rounds": 3, "epochs": 18}, 60), ("AM", {"first": 40, "queries": 30, "pairs": 200, "epochs": 5}, 100),
    ("DAFL", {"steps": 3, "batch_size": 10, "epochs": 3}, 90), ("KD", {"augment": "crop", "epochs": 3}, 3 * 259),
])  # fmt: skip
def test_a_run_that_is_stopped_between_epochs_keeps_its_plan_under_a_budget(name, more, budget, script, monkeypatch):
    """What is bought and asked does not depend on a stop: the same weights, the same counts, nothing twice."""
    from conftest import killed_after

    options = {"lamda": 0.2, "query_budget": budget} | more
    whole = script(name, **options, tag="whole")
    killed_after(1, monkeypatch, lambda: script(name, **options, tag="cut"))
    resumed = script(name, **options, tag="cut")
    assert resumed["own"] == whole["own"] and resumed["repeated"] == 0 and resumed["queries"] == whole["queries"] <= budget
    nets = [
        torch.load(next((script.home / "checkpoints" / name).rglob(f"*-{t}/seed0/student.pt")), weights_only=True)["model"]
        for t in ("whole", "cut")
    ]
    assert all(torch.equal(nets[0][k], nets[1][k]) for k in nets[0])


class HubModel(nn.Module):
    """What transformers makes of a folder: logits are the mean pixels of ten of 64 places, as its configuration orders them."""

    def __init__(self, folder):
        super().__init__()
        self.config = SimpleNamespace(**json.loads((folder / "config.json").read_text()))
        self.config.id2label = {int(k): v for k, v in self.config.id2label.items()}

    def forward(self, pixel_values):
        return SimpleNamespace(logits=8 * pixel_values.flatten(1)[:, 20:30])


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """hub(**config): the name of a teacher of transformers, in a folder of its own."""
    library = ModuleType("transformers")
    library.AutoModelForImageClassification = SimpleNamespace(from_pretrained=lambda folder, **how: HubModel(folder))
    monkeypatch.setitem(sys.modules, "transformers", library)

    def make(normalisation=None, **config):
        folder = tmp_path / "net"
        folder.mkdir(exist_ok=True)
        (folder / "model.safetensors").write_bytes(b"weights")
        names = {str(k): str(k) for k in range(10)}
        (folder / "config.json").write_text(json.dumps({"num_labels": 10, "num_channels": 1, "id2label": names} | config))
        if normalisation:
            (folder / "preprocessor_config.json").write_text(json.dumps(normalisation))
        return f"hf:{folder}"

    return make


def test_a_teacher_of_transformers_answers_in_the_data_sets_order_and_normalisation(hub, script):
    first = script("KD", teacher=hub(), epochs=1, lamda=0.2)
    order = {str(k): str((k + 3) % 10) for k in range(10)}
    for more in ({"id2label": order}, {"normalisation": {"image_mean": [0.0], "image_std": [1.0]}}):
        other = script("KD", teacher=hub(**more), epochs=1, lamda=0.2, tag=[*more][0])
        assert other["queries"] == first["queries"] == 259 and other["log"]["kl"] != first["log"]["kl"]
    from common.models.hub import HubNet, hub_normalisation

    x = torch.rand(5, 1, 8, 8)
    plain, ordered = (HubNet(hub(id2label=names), [str(k) for k in range(10)], (1, 8, 8))(x) for names in ({k: k for k in order}, order))
    assert torch.equal(plain, 8 * x.flatten(1)[:, 20:30]) and torch.equal(ordered[:, [int(v) for v in order.values()]], plain)
    assert hub_normalisation(hub()) == ([0.0], [1.0])


@pytest.mark.parametrize(
    "config, why",
    [
        ({"num_labels": 3}, "has 3 classes, not 10"), ({"num_channels": 3}, "images with 3 channels, the run's have 1; give --channels 3"),
        ({"image_size": 16, "patch_size": 4}, "takes images of 16 pixels, the run's have 8; give --img_size 16"),
    ],
)  # fmt: skip
def test_models_of_transformers_that_do_not_fit(config, why, hub, script):
    with pytest.raises(UsageError, match=why):
        script("KD", teacher=hub(**config), epochs=1)


def test_a_folder_without_a_model_or_the_package(hub, script, tmp_path, monkeypatch):
    name = hub()
    with pytest.raises(UsageError, match="which can be a teacher, not a student"):
        script("KD", model=name, epochs=1)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match="needs the package transformers, which is not installed; run: pip install transformers"):
        script("KD", teacher=name, epochs=1)
    with pytest.raises(UsageError, match="does not hold model.safetensors and config.json.*; models are not downloaded"):
        script("KD", teacher=f"hf:{tmp_path}", epochs=1)
