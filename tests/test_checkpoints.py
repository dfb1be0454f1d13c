"""Checkpoint files: others' formats, what is refused, what ours say, and `load_model`."""

from common.cli import UsageError

import argparse
import collections
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn

from common import checkpoints
from common.datasets import load
from common.models import build
from common.models.fewshot import Block
from common.utils import save, save_json


def net():
    torch.manual_seed(1)
    return build("ResNet8", 10, (1, 8, 8))


def test_plain_values_of_python_and_numpy_are_read(tmp_path):
    """As timm (args: a Namespace), RepDistiller (opt, NumPy accuracies) and mdistiller's trainer leave them."""
    state = net().state_dict()
    more = {
        "args": argparse.Namespace(lr=0.1, names=["a"], path=Path("x")),
        "opt": collections.defaultdict(list, {"best": [np.float64(3.5), np.int64(2)]}),
        "accuracy": np.float32(0.5),
        "curve": np.arange(3.0),
        "seen": {1, 2},
    }
    torch.save({"state_dict": state, **more}, tmp_path / "timm.pth.tar")
    found, meta = checkpoints.read_weights(tmp_path / "timm.pth.tar")
    assert found.keys() == state.keys() and meta == {}
    assert checkpoints.read(tmp_path / "timm.pth.tar")["args"].lr == 0.1


@pytest.mark.parametrize("old", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numpy_scalars_under_the_name_before_numpy_2(old, tmp_path):
    torch.save({"model": net().state_dict(), "best": np.float64(3.5)}, tmp_path / "a.pth")
    content = (tmp_path / "a.pth").read_bytes()
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.pth") as z, zipfile.ZipFile(tmp_path / "b.pth", "w") as out:
        for item in z.infolist():
            out.writestr(item.filename, z.read(item).replace(b"numpy._core.multiarray", old.encode()))
    assert content and checkpoints.read(tmp_path / "b.pth")["best"] == 3.5


def test_an_mdistiller_trainers_file_gives_the_student(tmp_path):
    student, teacher = net().state_dict(), build("VGG8", 10, (1, 8, 8)).state_dict()
    both = {f"module.student.{k}": v for k, v in student.items()} | {f"module.teacher.{k}": v for k, v in teacher.items()}
    torch.save({"epoch": 3, "model": both, "best_acc": 70.0}, tmp_path / "latest")
    found = loaded(tmp_path / "latest")
    assert all(torch.equal(found[k], v) for k, v in student.items())


def test_what_does_not_fit_is_said_with_counts_and_names(tmp_path):
    state = net().state_dict()
    del state["fc.weight"], state["fc.bias"]
    with pytest.raises(UsageError, match=r"x.pth is not a checkpoint of ResNet8: 2 keys \(fc.weight, fc.bias\) missing, no key unexpected"):
        checkpoints.load_weights(net(), state, "x.pth", "ResNet8")
    state = net().state_dict() | {"fc.bias": torch.zeros(7)}
    with pytest.raises(UsageError, match=r"not a checkpoint of ResNet8: it has 7 classes, not 10 \(fc.bias is \(7,\), not \(10,\)\)"):
        checkpoints.load_weights(net(), state, "x.pth", "ResNet8")


class Evil:
    def __reduce__(self):
        return os.mkdir, ("/tmp/this_must_never_be_made",)


@pytest.mark.parametrize("where", ["args", "model"])
def test_a_program_in_a_file_is_named_and_never_run(where, tmp_path):
    torch.save({"model": net().state_dict()} | {where: Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UsageError, match="evil.pth is refused: to read it would run posix.mkdir"):
        checkpoints.read_weights(tmp_path / "evil.pth")
    assert not os.path.exists("/tmp/this_must_never_be_made")


def test_a_runs_student_is_loaded_with_its_preprocessing_and_classes(script):
    result = script("KD", epochs=2, lamda=0.2)
    path = next((script.home / "checkpoints/KD").rglob("student.pt"))
    student, preprocess, classes = checkpoints.load_model(path)
    assert classes == [str(k) for k in range(10)] and not student.training
    data = load("Digits")
    s = student(preprocess(data.test.x))
    assert 100 * (s.argmax(1) == data.test.y).double().mean().item() == pytest.approx(result["accuracy"])
    big = preprocess(torch.randint(0, 256, (2, 3, 30, 40), dtype=torch.uint8))
    assert big.shape == (2, 1, 8, 8) and big.min() >= -1 and big.max() <= 1
    meta = checkpoints.read(path)["meta"]["data"]
    assert (meta["mean"], meta["std"], meta["names"]) == ([0.5], [0.5], classes)


def test_a_students_preprocessing_is_that_of_its_folder(tmp_path):
    """Names, mean and deviation of a folder of colour images; the shorter side is resized and the middle taken, as in training."""
    from conftest import run
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(rng.integers(0, 255, (20, 26, 3), dtype=np.uint8)).save(tmp_path / "mine" / name / f"{i}.png")
    dataset = f"folder:{tmp_path / 'mine'}"
    run("CE", tmp_path, dataset=dataset, model="ResNet8", img_size=12, normalize="dataset", lamda=1.0, epochs=1, workers=0)
    _, preprocess, classes = checkpoints.load_model(next((tmp_path / "checkpoints").rglob("student.pt")))
    data = load(dataset, img_size=12, normalize="dataset", workers=0)
    file = Image.open(tmp_path / "mine" / "cat" / "0.png")
    x = torch.from_numpy(np.asarray(file).copy()).permute(2, 0, 1)[None]
    mine = preprocess(x)
    among = torch.cat([data.view(data.train.x), data.view(data.test.x)])
    assert classes == ["cat", "dog"] and (among - mine).abs().amax((1, 2, 3)).min() < 0.05


def test_a_file_that_does_not_say_what_it_is_is_no_model(tmp_path):
    torch.save(net().state_dict(), tmp_path / "plain.pth")
    with pytest.raises(UsageError, match="does not say its classes, data, model, shape; teacher.pt and student.pt"):
        checkpoints.load_model(tmp_path / "plain.pth")


def test_files_have_the_modes_that_the_umask_leaves(tmp_path):
    old = os.umask(0o027)
    try:
        save_json(tmp_path / "a.json", {})
        save(tmp_path / "b.pt", {})
    finally:
        os.umask(old)
    assert {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()} == {0o640}


# ---- GDA's released ResNet-12 has the names of the pooling one and never pools


@pytest.mark.parametrize("pools", [True, False])
def test_a_resnet12_without_pooling_is_told_by_its_statistics(pools):
    torch.manual_seed(0)
    theirs, x = build("ResNet12", 5, (3, 16, 16)), torch.randn(64, 3, 1, 1) + 0.5 * torch.randn(64, 3, 16, 16)
    for m in theirs.modules():
        if isinstance(m, Block):
            m.pools = pools
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = None
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias)
    with torch.no_grad():
        for part in x.split(16):
            theirs.train()(part)
    mine = checkpoints.load_weights(build("ResNet12", 5, (3, 16, 16)), theirs.state_dict(), "x.pth", "ResNet12").eval()
    complaint = mine.misfit(x[:32])
    assert (complaint == "") == pools and ("without pooling" in complaint) != pools
    assert all(b.pools for b in mine.modules() if isinstance(b, Block)) and not mine.training


def test_a_released_file_without_pooling_is_refused_by_the_script(script, tmp_path):
    from conftest import run

    torch.manual_seed(0)
    theirs, data = build("ConvNet4", 64, (1, 16, 16)), load("DigitsFS", normalize="dataset")
    theirs = build("ResNet12", 64, (1, 16, 16))
    for m in theirs.modules():
        if isinstance(m, Block):
            m.pools = False
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = None
            nn.init.normal_(m.bias)
    with torch.no_grad():
        for part in data.view(data.train.x[:64]).split(16):
            theirs.train()(part)
    flat = {f"encoder.{k}".replace(".0.", ".", 1): v for k, v in theirs.state_dict().items() if not k.startswith("fc")}
    flat |= {f"classifier.linear.{k[3:]}": v for k, v in theirs.state_dict().items() if k.startswith("fc")}
    torch.save({"model": "classifier", "model_sd": flat}, tmp_path / "resnet12.pth")
    with pytest.raises(
        UsageError, match="resnet12.pth is not a checkpoint of ResNet12: its batch-norm statistics are those of the network without"
    ):
        run("fewshot_test", tmp_path, dataset="DigitsFS", model="ResNet12", path=tmp_path / "resnet12.pth", test_episodes=10)


# ---- names and places of other code bases


def loaded(path, key="", name="ResNet8", shape=(1, 8, 8)):
    """The state dict of a new net with the weights of a file."""
    other = build(name, 10, shape)
    state, _ = checkpoints.read_weights(path, key)
    return checkpoints.load_weights(other, state, path, name).state_dict()


def prefixed(state, prefix):
    return {f"{prefix}{k}": v for k, v in state.items()}


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "net.", "student.", "module.student.", "backbone.", "model.module."]
)
@pytest.mark.parametrize("nest", ["model_state_dict", "model_state", "student", "teacher", "weights", "params", "net"])
def test_wrappers_and_places(prefix, nest, tmp_path):
    state = net().state_dict()
    torch.save({nest: prefixed(state, prefix), "epoch": 3}, tmp_path / "x.pth")
    found = loaded(tmp_path / "x.pth")
    assert all(torch.equal(found[k], v) for k, v in state.items())


@pytest.mark.parametrize("name", ["ResNet8", "ResNet20", "ResNet8x4", "ResNet18", "WRN16_1"])
@pytest.mark.parametrize("words", [("shortcut", "linear"), ("downsample", "fc"), ("skip", "classifier")])
def test_names_of_other_code_bases(name, words, tmp_path):
    """MEKD's released code says shortcut and linear where ours says downsample and fc, and so on for all residual nets here."""
    torch.manual_seed(1)
    state = build(name, 10, (3, 16, 16)).state_dict()
    shortcut, head = words
    swap = {"downsample": shortcut, "shortcut": shortcut, "convShortcut": shortcut}
    theirs = {".".join(swap.get(part, part) for part in k.split(".")): v for k, v in state.items()}
    theirs = {
        k.replace("fc.", f"{head}.").replace("linear.", f"{head}.") if k.split(".")[0] in ("fc", "linear") else k: v
        for k, v in theirs.items()
    }
    torch.save(theirs, tmp_path / "teacher.pth")
    found = loaded(tmp_path / "teacher.pth", name=name, shape=(3, 16, 16))
    assert all(torch.equal(found[k], v) for k, v in state.items())


def test_files_without_counters_and_with_thops(tmp_path):
    state = net().state_dict()
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    torch.save(old | {"total_ops": torch.zeros(1), "layer1.0.conv1.total_params": torch.zeros(1)}, tmp_path / "old.pth")
    found = loaded(tmp_path / "old.pth")
    assert all(torch.equal(found[k], v) for k, v in old.items())


def test_several_nets_and_averages_are_chosen_by_the_user(tmp_path, capsys):
    raw, other = net().state_dict(), build("ResNet8", 10, (1, 8, 8)).state_dict()
    torch.save({"model": raw, "ema": other}, tmp_path / "ema.pth")
    assert torch.equal(loaded(tmp_path / "ema.pth")["fc.weight"], raw["fc.weight"])
    assert "it also holds averaged weights: --weights ema takes them" in capsys.readouterr().out
    assert torch.equal(loaded(tmp_path / "ema.pth", "ema")["fc.weight"], other["fc.weight"])
    torch.save({"student": raw, "teacher": other}, tmp_path / "two.pth")
    with pytest.raises(UsageError, match="two.pth holds several nets: student, teacher; name one with --weights KEY"):
        loaded(tmp_path / "two.pth")
    assert torch.equal(loaded(tmp_path / "two.pth", "teacher")["fc.weight"], other["fc.weight"])
    torch.save({"nets": {"a": raw}}, tmp_path / "deep.pth")
    assert torch.equal(loaded(tmp_path / "deep.pth", "nets.a")["fc.weight"], raw["fc.weight"])
    with pytest.raises(UsageError, match="holds no state dict under 'b'; there are: model, ema"):
        loaded(tmp_path / "ema.pth", "b")


def test_safetensors(tmp_path):
    from safetensors.torch import save_file

    state = net().state_dict()
    save_file({k: v.clone() for k, v in state.items()}, tmp_path / "x.safetensors")
    assert torch.equal(loaded(tmp_path / "x.safetensors")["fc.weight"], state["fc.weight"])


@pytest.mark.parametrize("content, name, words", [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "x.pth", "is a Git LFS pointer, not the file itself: run git lfs pull"),
    (b"<!DOCTYPE html><html>", "x.pth", "is a web page: the download failed"), (b"\x08\x07\x12\x07pytorch", "x.onnx", "is an ONNX model"),
    (b"", "x.pth", "it is empty"), (b"{}", "x.pth", "refused|not a readable checkpoint"),
])  # fmt: skip
def test_files_of_other_kinds_are_named(content, name, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=words) as e:
        checkpoints.read_weights(tmp_path / name)
    assert "\n" not in str(e.value)


def test_a_url_a_folder_and_a_program_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"https://x/y.pth is a URL: download it first"):
        checkpoints.read_weights("https://x/y.pth")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match=r"is a folder; give a file of it: model.safetensors"):
        checkpoints.read_weights(tmp_path)
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "s.pt"))
    with pytest.raises(UsageError, match="s.pt is a TorchScript program, which is not run"):
        checkpoints.read_weights(tmp_path / "s.pt")


@pytest.mark.parametrize("name", ["VGG8_BN", "VGG11", "MobileNet", "LeNet5", "AlexNet_half"])
def test_sequences_of_layers_load_by_their_order(name, tmp_path):
    """features.0, features.1, ... of others are block0.0, block0.1, ... here; a net of other shapes is refused."""
    torch.manual_seed(1)
    state = build(name, 10, (3, 32, 32)).state_dict()
    owners = list(dict.fromkeys(k.rpartition(".")[0] for k in state))
    theirs = {f"features.{3 * owners.index(k.rpartition('.')[0])}.{k.rpartition('.')[2]}": v for k, v in state.items()}
    torch.save(theirs, tmp_path / "theirs.pth")
    found = loaded(tmp_path / "theirs.pth", name=name, shape=(3, 32, 32))
    assert all(torch.equal(found[k], v) for k, v in state.items())
    first = next(iter(theirs))
    torch.save(theirs | {first: theirs[first][:1]}, tmp_path / "other.pth")
    with pytest.raises(UsageError, match=f"other.pth is not a checkpoint of {name}: .* missing"):
        loaded(tmp_path / "other.pth", name=name, shape=(3, 32, 32))


def test_what_a_run_saves_can_be_saved_as_safetensors(script, tmp_path):
    """Contiguous tensors that share no memory, whatever the memory format of training."""
    from safetensors.torch import load_file, save_file

    script("CE", epochs=1, lamda=0.2)
    state = checkpoints.read(next((script.home / "checkpoints/CE").rglob("student.pt")))["model"]
    assert all(v.is_contiguous() for v in state.values())
    save_file(state, tmp_path / "student.safetensors")
    assert all(torch.equal(v, state[k]) for k, v in load_file(tmp_path / "student.safetensors").items())


def test_grey_pixels_of_a_colour_folder_are_what_they_were_in_training(tmp_path):
    """--channels 1: three equal channels keep their value, in training and in load_model's preprocessing alike."""
    from conftest import run
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for i in range(6):
            grey = rng.integers(0, 255, (12, 12, 1), dtype=np.uint8)
            Image.fromarray(np.repeat(grey, 3, 2)).save(tmp_path / "mine" / name / f"{i}.png")
    dataset = f"folder:{tmp_path / 'mine'}"
    run("CE", tmp_path, dataset=dataset, model="ResNet8", img_size=12, channels=1, lamda=1.0, epochs=1, workers=0)
    _, preprocess, _ = checkpoints.load_model(next((tmp_path / "checkpoints").rglob("student.pt")))
    x = torch.from_numpy(np.asarray(Image.open(tmp_path / "mine" / "cat" / "0.png")).copy()).permute(2, 0, 1)[None]
    data = load(dataset, img_size=12, channels=1, workers=0)
    among = torch.cat([data.view(data.train.x), data.view(data.test.x)])
    assert (among - preprocess(x)).abs().amax((1, 2, 3)).min() == 0


def test_a_shape_without_dimensions_is_a_mismatch_like_others():
    state = net().state_dict() | {"bn1.num_batches_tracked": torch.zeros(1, dtype=torch.long)}
    with pytest.raises(UsageError, match=r"bn1.num_batches_tracked is \(1,\), not \(\)"):
        checkpoints.load_weights(net(), state, "x.pth", "ResNet8")
