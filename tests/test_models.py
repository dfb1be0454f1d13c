"""Models: published parameter counts, logits and penultimate feature, any channels and the sizes a family allows."""

from common.cli import UsageError

import copy
import dataclasses
import importlib

import pytest
import torch
import torch.nn as nn
from conftest import ROOT

from common.models import MODELS, build, canonical, num_parameters
from common.options import differences, parse, settings
from common.run import Run

# method cards: 3 channels unless said otherwise
COUNTS_10 = {
    "ResNet8": 78_042, "ResNet20": 272_474, "ResNet32": 466_906, "ResNet56": 855_770, "ResNet110": 1_730_714,
    "ResNet8x4": 1_210_410, "ResNet32x4": 7_410_730, "ResNet18": 11_173_962, "ResNet34": 21_282_122, "ResNet50": 23_520_842,
    "WRN16_1": 175_066, "WRN16_2": 691_674, "WRN40_1": 563_930, "WRN40_2": 2_243_546,
    "VGG8_BN": 3_918_858, "VGG11_BN": 9_231_114, "VGG13_BN": 9_416_010, "ShuffleNetV2": 1_263_278, "MobileNet": 3_217_226,
    "AlexNet": 23_290_954, "AlexNet_half": 5_840_426, "AlexNet_quarter": 1_468_954, "torchvision:mobilenet_v2": 2_236_682,
}  # fmt: skip
COUNTS_100 = {
    "ResNet14": 181_108,
    "ResNet44": 667_188,
    "ResNet80": 1_250_484,
    "ShuffleNetV1": 949_258,
    "ShuffleNetV2": 1_355_528,
    "MobileNetV2": 812_836,
}
COUNTS_28 = {"LeNet5": 187_780, "LeNet5_half": 47_645, "LeNet5_fifth": 7_964}  # one channel, 28 x 28
COUNTS_32 = {"LeNet5_1998": 61_706, "LeNet5_1998_half": 15_738}  # one channel, 32 x 32


@pytest.mark.parametrize(
    "name, classes, shape, count",
    [(n, 10, (3, 32, 32), c) for n, c in COUNTS_10.items()]
    + [(n, 100, (3, 32, 32), c) for n, c in COUNTS_100.items()]
    + [(n, 10, (1, 28, 28), c) for n, c in COUNTS_28.items()]
    + [(n, 10, (1, 32, 32), c) for n, c in COUNTS_32.items()],
)
def test_parameter_counts(name, classes, shape, count):
    with torch.device("meta"):
        assert num_parameters(build(name, classes, shape, "meta")) == count


def test_vgg_without_batch_norm_lacks_just_its_parameters():
    for depth, channels in {8: 64 + 128 + 256 + 512 + 512, 19: 2 * 64 + 2 * 128 + 4 * 256 + 8 * 512}.items():
        assert (
            num_parameters(build(f"VGG{depth}_BN", 10, (3, 32, 32))) - num_parameters(build(f"VGG{depth}", 10, (3, 32, 32))) == 2 * channels
        )


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_feature(name):
    size = 16 if name.startswith(("LeNet", "AlexNet", "ConvNet", "ResNet12")) or "bottle" in name else 8
    torch.manual_seed(0)
    net = build(name, 7, (2, size, size)).eval()
    x = torch.randn(3, 2, size, size)
    with torch.no_grad():
        s, f = net(x, feature=True)
        assert s.shape == (3, 7) and f.shape[0] == 3 and f.dim() == 2
        assert torch.equal(net(x), s)
        assert torch.allclose(getattr(net, net.HEAD)(f), s, atol=1e-6)


def test_two_passes_of_a_train_step_lower_the_loss():
    torch.manual_seed(0)
    net, x, y = build("ResNet8", 4, (1, 8, 8)), torch.randn(16, 1, 8, 8), torch.arange(16) % 4
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    losses = []
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_torchvision_takes_other_channels_and_gives_the_feature():
    net = build("torchvision:ResNet-18", 5, (1, 64, 64)).eval()
    with torch.no_grad():
        s, f = net(torch.zeros(2, 1, 64, 64), feature=True)
    assert s.shape == (2, 5) and f.shape == (2, 512)
    assert torch.allclose(net.fc(f), s, atol=1e-6)


@pytest.mark.parametrize(
    "given, name", [("wrn-40-2", "WRN40_2"), ("RESNET_32x4", "ResNet32x4"), ("torchvision:resnet-18", "torchvision:resnet18")]
)
def test_names_without_regard_to_case_and_dashes(given, name):
    assert canonical(given) == name


@pytest.mark.parametrize("name, shape, words", [
    ("LeNet5", (1, 8, 8), "--img_size 16"), ("VGG13", (3, 4, 4), "--img_size 8"), ("AlexNet", (3, 8, 8), "--img_size 16"),
    ("ResNet9", (3, 32, 32), "did you mean ResNet"), ("torchvision:nothing", (3, 32, 32), "resnet18"),
])  # fmt: skip
def test_what_cannot_be_is_said(name, shape, words):
    with pytest.raises(UsageError, match=words):
        build(name, 10, shape)


# ---- nets of other libraries and of the user


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_0"])
def test_a_plain_torchvision_file_loads_and_ours_is_one(name, tmp_path):
    """torchvision's own parameter names, nothing besides, so that safetensors takes it too."""
    import torchvision
    from safetensors.torch import save_file

    from common.checkpoints import load_weights, read_weights

    theirs = torchvision.models.get_model(name, weights=None, num_classes=7)
    torch.save(theirs.state_dict(), tmp_path / "plain.pth")
    net = build(f"torchvision:{name}", 7, (3, 64, 64))
    load_weights(net, read_weights(tmp_path / "plain.pth")[0], "plain.pth", name)
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(net.eval()(x), theirs.eval()(x)) and list(net.state_dict()) == list(theirs.state_dict())
    save_file(net.state_dict(), tmp_path / "ours.safetensors")
    torch.save({f"net.{k}": v for k, v in theirs.state_dict().items()} | {"last.weight": torch.zeros(3)}, tmp_path / "old.pth")
    load_weights(net, read_weights(tmp_path / "old.pth")[0], "old.pth", name)
    assert torch.equal(net.eval()(x), theirs(x))


OWN = """
import torch.nn as nn

class Mine(nn.Module):
    def __init__(self, classes, channels, size):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.out = nn.Linear(8, classes)

    def forward(self, x):
        return self.out(self.body(x))
"""


@pytest.mark.parametrize("names", [["last"], ["net"], ["net", "last"]])
def test_a_net_of_the_user_may_call_its_layers_net_and_last(names, tmp_path):
    """A file of November 2026 had the layers of a library's net behind net., and a last. beside them."""
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "class Mine(torch.nn.Module):\n"
        "    def __init__(self, classes, channels, size):\n"
        "        super().__init__()\n"
        f"        for i, name in enumerate({names}):\n"
        "            setattr(self, name, torch.nn.Linear(classes if i else channels * size * size, classes))\n"
        "    def forward(self, x):\n"
        f"        for name in {names}:\n"
        "            x = getattr(self, name)(x.flatten(1))\n"
        "        return x\n"
    )
    net, other = (build(f"{tmp_path / 'mine.py'}:Mine", 10, (1, 8, 8), torch.device("cpu")) for _ in range(2))
    other.load_state_dict(other.adapt(net.state_dict()))
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in net.state_dict().items())


def test_a_net_of_the_users_own(tmp_path, script):
    (tmp_path / "my_nets.py").write_text(OWN)
    name = f"{tmp_path / 'my_nets.py'}:Mine"
    net = build(name, 10, (1, 8, 8)).eval()
    s, f = net(torch.rand(3, 1, 8, 8), feature=True)
    assert s.shape == (3, 10) and f.shape == (3, 8) and torch.allclose(net.out(f), s, atol=1e-6)
    assert script("teacher", model=name, epochs=2)["accuracy"] > 5
    result = script("KD", teacher=name, model=name, epochs=1, lamda=0.2)
    assert "file-my_nets_Mine-" in result["line"] and result["queries"] == 259
    for bad, words in {f"{tmp_path}/none.py:Mine": "no file", f"{tmp_path}/my_nets.py:Yours": "has no Yours; it has: Mine"}.items():
        with pytest.raises(UsageError, match=words):
            build(bad, 10, (1, 8, 8))


def test_timm_where_it_is_not_installed(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match="timm:NAME needs the package timm, which is not installed; run: pip install timm"):
        build("timm:resnet18", 10, (3, 32, 32))


@pytest.mark.parametrize("name, size, words", [
    ("torchvision:vit_b_16", 8, r"torchvision:vit_b_16 cannot take 3x8x8 images \(AssertionError: Input shape indivisible by patch size!\); use --img_size 16"),
    ("torchvision:alexnet", 8, r"cannot take 3x8x8 images \(RuntimeError: .*\); use --img_size 64"),
])  # fmt: skip
def test_a_librarys_net_that_cannot_take_the_images_says_which_size_it_takes(name, size, words):
    with pytest.raises(UsageError, match=words) as e:
        build(name, 10, (3, size, size))
    assert "\n" not in str(e.value)


ODD = (
    OWN
    + """
class Values(Mine):
    def forward(self, x):
        return super().forward(x / 2 if x.max() > 1 else x)  # the meta device has no values

class Pair(Mine):
    def forward(self, x):
        return super().forward(x), x

class Bug(Mine):
    def forward(self, x):
        return undefined

class Leaves(Mine):
    def __init__(self, *a):
        raise SystemExit(3)

class Classes(Mine):
    def __init__(self, classes, channels, size):
        super().__init__(classes, channels, size)
        self.more = nn.Linear(classes, classes + 1)

    def forward(self, x):
        return self.more(super().forward(x))

class NoArguments(nn.Module):
    def __init__(self):
        super().__init__()

number = 3
"""
)


@pytest.mark.parametrize("name, words", [
    ("Pair", r"odd.py:Pair cannot take 1x8x8 images \(of 2 images it gives tuple, not logits \(2, 10\)\); use another model"), ("Bug", "NameError: name 'undefined' is not defined"),
    ("Leaves", "SystemExit: 3"), ("Classes", r"of 2 images it gives \(2, 11\), not logits \(2, 10\)"), ("NoArguments", "TypeError: NoArguments.__init__"), ("number", "odd.py:number is of type int; give a class"),
    ("", "has no name after the colon; it has: Mine"),
])  # fmt: skip
def test_a_net_of_the_users_own_that_fails_is_one_line(name, words, tmp_path):
    (tmp_path / "odd.py").write_text(ODD)
    with pytest.raises(UsageError, match=words) as e:
        build(f"{tmp_path / 'odd.py'}:{name}", 10, (1, 8, 8))
    assert "\n" not in str(e.value)
    assert build(f"{tmp_path / 'odd.py'}:Values", 10, (1, 8, 8))(torch.ones(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("text, words", [
    ("import sys; sys.exit(0)", "fails: SystemExit: 0"), ("def (", "fails: SyntaxError"), ("raise ValueError('a\\nb')", "fails: ValueError: a b"), (None, "is a pipe, not a file"),
])  # fmt: skip
def test_a_python_file_that_fails_is_one_line(text, words, tmp_path):
    import os

    path = tmp_path / "net.py"
    path.write_text(text) if text else os.mkfifo(path)
    with pytest.raises(UsageError, match=f"net.py {words}") as e:
        canonical(f"{path}:Net")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["py:x", ".py:", "~nobody_of_this_name/x.py:a"])
def test_names_that_are_no_files(name):
    with pytest.raises(UsageError, match="no file '.*'; give path/to/file.py:NAME"):
        canonical(name)


# ---- initial weights. Sources: the models of MEKD (HAIV-Lab/MEKD), mdistiller, AEAHL-RG (datafree) and DB3KD / ZSDB3KD (zwang84)

STARTS = {  # net: {weights_init: (convolutions, linear layers)}; torch is PyTorch's default, fan_out N(0, 2 / (k^2 * out)), a number N(0, x^2)
    "ResNet20": {"torch": ("torch", "torch"), "fan_out": ("fan_out", "torch")},
    "ResNet8x4": {"torch": ("torch", "torch"), "fan_out": ("fan_out", "torch")},
    "ResNet18": {"torch": ("torch", "torch"), "fan_out": ("fan_out", "torch")},
    "ResNet12": {"torch": ("torch", "torch"), "fan_out": ("fan_out", "torch")},
    "WRN16_2": {"torch": ("torch", "torch"), "fan_out": ("fan_out", "torch")},
    "VGG8": {"torch": ("fan_out", "torch"), "fan_out": ("fan_out", 0.01)},
    "VGG11_BN": {"torch": ("fan_out", "torch"), "fan_out": ("fan_out", 0.01)},
    "MobileNet": {"torch": ("torch", "torch"), "fan_out": ("fan_out", "torch")},
    "MobileNetV2": {"torch": ("torch", "torch"), "fan_out": ("fan_out", 0.01)},
    "ShuffleNetV1": {"torch": ("torch", "torch"), "fan_out": ("torch", "torch")},
    "ShuffleNetV2": {"torch": ("torch", "torch"), "fan_out": ("torch", "torch")},
    "LeNet5": {"torch": ("torch", "torch"), "fan_out": ("torch", "torch")},
    "AlexNet_quarter": {"torch": ("torch", "torch"), "fan_out": ("torch", "torch")},
    "ConvNet4": {"torch": ("torch", "torch"), "fan_out": ("torch", "torch")},
}


@pytest.mark.parametrize("name, how", [(name, how) for name, starts in STARTS.items() for how in starts])
def test_golden_start(name, how):
    torch.manual_seed(0)
    net, forms, layers = build(name, 10, (3, 32, 32), weights_init=how), STARTS[name][how], 0
    for m in net.modules():
        if not isinstance(m, (torch.nn.Conv2d, torch.nn.Linear)):
            continue
        form, w = forms[isinstance(m, torch.nn.Linear)], m.weight.detach()
        fan_in, fan_out = w[0].numel(), len(w) * w[0, 0].numel()
        wanted = {"torch": (1 / 3 / fan_in) ** 0.5, "fan_out": (2 / fan_out) ** 0.5}.get(form, form)
        tolerance = 5 * wanted / (2 * w.numel()) ** 0.5  # five standard errors of a normal distribution's standard deviation
        assert w.std().item() == pytest.approx(wanted, abs=tolerance) and abs(w.mean().item()) < 5 * wanted / w.numel() ** 0.5
        assert form != "torch" or w.abs().max() <= fan_in**-0.5  # uniform
        if m.bias is not None:
            zero = form != "torch" or (name.startswith("WRN") and how == "fan_out")
            assert (m.bias == 0).all() if zero else 0 < m.bias.abs().max() <= fan_in**-0.5
        layers += 1
    assert layers > 3


def test_the_initial_weights_follow_the_system():
    mdistiller = {"GDA", "AEAHL", "fewshot_classifier", "fewshot_meta"}
    for path in (ROOT / "project").glob("*.py"):
        Args = getattr(importlib.import_module(path.stem), "Args", None)
        if Args and "weights_init" in {f.name for f in dataclasses.fields(Args)}:
            assert Args().weights_init == ("fan_out" if path.stem in mdistiller else "torch"), path.stem
    AEAHL = importlib.import_module("AEAHL")
    assert [parse(AEAHL.Args, ["--model", m]).weights_init for m in ("WRN16_1", "ResNet18")] == ["fan_out", "torch"]
    assert parse(AEAHL.Args, ["--model", "ResNet18", "--weights_init", "fan_out"]).weights_init == "fan_out"


def test_a_student_starts_as_the_option_says_and_another_start_is_another_run(script):
    stds = {}
    for how in ("torch", "fan_out"):
        with pytest.MonkeyPatch.context() as m:
            m.setattr(Run, "fit", lambda run, *a, how=how, **k: stds.update({how: run.student.layer3[0].conv2.weight.std().item()}))
            script("CE", model="ResNet8", lamda=0.1, epochs=1, weights_init=how, tag=how)
    assert stds["torch"] == pytest.approx((1 / 3 / 64 / 9) ** 0.5, rel=0.02) and stds["fan_out"] == pytest.approx(
        (2 / 64 / 9) ** 0.5, rel=0.02
    )
    args = parse(importlib.import_module("CE").Args, [])
    assert differences(args, settings(args)) == []
    before = {k: v for k, v in settings(args).items() if k != "weights_init"}  # a run of before there was the option
    assert differences(args, before) == ["--weights_init fan_out (now torch)"]


@pytest.mark.parametrize("name, channels", [("LeNet5", 1), ("AlexNet_quarter", 3)])
def test_relu_behind_the_pool_is_relu_before_it(name, channels):
    torch.manual_seed(0)
    convs = build(name, 10, (channels, 32, 32)).convs
    naive = copy.deepcopy(convs)
    pools = [i for i, m in enumerate(naive) if isinstance(m, nn.MaxPool2d)]
    for i in pools:
        naive[i], naive[i + 1] = nn.ReLU(), nn.MaxPool2d(2)
    x = torch.randn(16, channels, 32, 32)
    found = []
    for net in (convs, naive):
        y = net(x)
        y.square().sum().backward()
        found.append([y.detach(), *(p.grad for p in net.parameters())])
    assert len(pools) in (2, 3)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)) and (found[0][0] == 0).any()
