"""Small sets, odd options, other normalisations, flat folders, stops in a purchase: an answer in words, or the right value."""

from common.cli import RunError, UsageError

import importlib
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, home_flags
from PIL import Image

from common.counter import Counter
from common.options import flags, parse
from common.transfer import Transfer


def test_am_on_a_small_set_buys_the_pairs_that_there_are(script, capsys):
    """13 images make 78 pairs: 26 in each of three rounds, where 40 were wanted."""
    result = script("AM", epochs=8, lamda=0.01, first=13, queries=40, pairs=1000)
    assert result["private"] == 10 and result["mixed"] == 3 * (45 // 3)
    assert "10 images make 45 pairs: 15 mixes are bought in each round, not 40" in capsys.readouterr().out


def test_kn_with_less_than_two_images_is_answered_before_anything_is_paid(script):
    with pytest.raises(UsageError, match=r"--budget 0.003 buys 1 of 259 images; a student needs at least 2"):
        script("KN", epochs=1, lamda=0.2, budget=0.003)
    assert not any(Counter(path).counts()["queries"] for path in (script.home / "checkpoints/KN").rglob("queries"))


def test_robustness_of_a_model_of_one_class_says_that_there_is_no_boundary(script, tmp_path):
    state = torch.load(next((script.home / "checkpoints/teacher").rglob("teacher.pt")), weights_only=True)["model"]
    torch.save(state | {"fc.weight": torch.zeros(10, 64), "fc.bias": torch.eye(10)[3]}, tmp_path / "three.pth")
    with pytest.raises(RunError, match="no decision boundary was found: the model calls all 3 images class 3; is it trained?"):
        script("robustness", samples=3, budget=200, neighbours=50, teacher_path=tmp_path / "three.pth")


def test_parts_of_one_image_are_left_out_and_too_many_parts_refused(script):
    """259 images in batches of 12: the last has 7, which six parts of two at most would leave alone."""
    result = script("GDA", epochs=1, lamda=0.2, batch_size=12, ranks=6, base="kd")
    assert all(abs(v) < 1e4 for v in result["log"].values())
    with pytest.raises(UsageError, match="--ranks 6 needs at least two images in each part: use --batch_size 12 or more"):
        script("GDA", epochs=1, lamda=0.2, batch_size=11, ranks=6)


@pytest.mark.parametrize("base", ["dist", "augconf", "adaptconf"])
def test_standardise_is_refused_where_it_would_change_nothing(base):
    with pytest.raises(UsageError, match=f"--standardise works with --base kd, dkd, rld and mlkd, not with {base}"):
        parse(importlib.import_module("GDA").Args, ["--standardise", "--base", base])


@pytest.mark.parametrize("name", ["KD", "AL", "KN", "MEKD"])
def test_standardise_is_refused_with_classes(name):
    with pytest.raises(UsageError, match="--standardise with --response hard: a class has no logits to standardise; use soft answers"):
        parse(importlib.import_module(name).Args, ["--standardise", "--response", "hard"])


@pytest.mark.parametrize("given", [["--mixup", "0.5"], ["--transfer", "x"], ["--cache", "--augment", "crop"]])
def test_two_views_are_refused_where_answers_are_kept_or_images_mixed(given):
    with pytest.raises(UsageError, match=f"{given[0]}.* with --base mlkd: its strong view is new at every step; use --views 1"):
        parse(importlib.import_module("GDA").Args, ["--base", "mlkd", *given])
    parse(importlib.import_module("GDA").Args, ["--base", "mlkd", "--views", "1", *given])


@pytest.mark.parametrize("name", ["DAFL", "DFME", "MEKD"])
def test_augmentation_is_refused_where_it_would_change_nothing(name):
    with pytest.raises(UsageError, match="--augment crop has no effect: the student sees generated images as they are; leave it out"):
        parse(importlib.import_module(name).Args, ["--augment", "crop"])


def test_the_schedule_starts_anew_in_each_round_of_am_and_the_rest_ends_the_last():
    from common.schedule import lr_at

    args = parse(importlib.import_module("AM").Args, ["--epochs", "42", "--lr", "1"])  # four times 10, and 2
    rates = [lr_at(args, e) for e in range(1, 43)]
    one = [1] * 4 + [0.1] * 3 + [0.01] * 2 + [0.001]
    assert rates == pytest.approx(4 * one + 2 * [0.001])
    args = parse(importlib.import_module("AM").Args, ["--epochs", "10", "--rounds", "0", "--schedule", "cosine", "--lr", "1"])
    assert [lr_at(args, e) for e in (1, 6)] == pytest.approx([1, 0.5])


def test_a_round_of_am_has_at_least_an_epoch():
    with pytest.raises(UsageError, match="--epochs 3 with --rounds 3: the start and each round need at least one epoch; use --epochs 4"):
        parse(importlib.import_module("AM").Args, ["--epochs", "3"])


# ---- generators under another normalisation


@pytest.mark.parametrize("normalize", ["half", "unit", "0.2,0.4"])
def test_generated_images_are_what_a_net_sees_of_pixels(normalize):
    from common.datasets import load
    from common.values import normalisation

    data = load("Digits")
    data.mean, data.std = (torch.tensor(v).view(1, 1, 1, 1) for v in normalisation(normalize, 1, ""))
    x = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1)
    pixels = torch.tensor([0.0, 127.5, 255.0]).view(3, 1, 1, 1) / 255
    seen = data.view_of_tanh()(x)
    assert torch.allclose(seen, data.view(pixels), atol=1e-6) and (normalize != "half" or torch.equal(seen, x))


def test_dcgan_and_mekd_send_pixels_whatever_the_normalisation(script, monkeypatch):
    """Under --normalize dataset all that the teacher is sent, and all that critic and student see, are images: pixels in [0, 1]."""
    from common.blackbox import BlackBox

    script("teacher", model="ResNet8", epochs=4, normalize="dataset", tag="d")
    path = next((script.home / "checkpoints/teacher").rglob("*-d/seed0/teacher.pt"))
    known = torch.load(path, weights_only=True)["meta"]["data"]
    mean, std = known["mean"][0], known["std"][0]
    ends, answer = [], BlackBox.__call__

    def watch(self, x, *a, **k):
        ends.append([x.min().item() * std + mean, x.max().item() * std + mean])
        return answer(self, x, *a, **k)

    monkeypatch.setattr(BlackBox, "__call__", watch)
    options = {"lamda": 0.2, "normalize": "dataset", "teacher_path": path}
    script("DCGAN", epochs=2, **options, overwrite=True)
    script("MEKD", epochs=1, steps=2, **options)
    script("MEKD", epochs=1, steps=2, queries=40, tag="once", **options)
    low, high = (f(e[i] for e in ends) for i, f in enumerate((min, max)))
    assert len(ends) > 5 and -1e-5 <= low < 0.3 and 0.5 < high <= 1 + 1e-5


# ---- budgets of AEAHL


AEAHL = {"epochs": 2, "ep_steps": 4, "kd_steps": 2, "g_steps": 2, "warmup": 1, "batch_size": 16, "latent": 8, "ngf": 4, "gap_width": 4}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"keep": "loss"},
        {"keep": "activation"},
        {"w_cr": 0.5, "augment": "crop"},
        {"hard_loss": True, "pa": 0.3},
        {"hard_loss": True, "swap": True},
    ],
)
def test_aeahls_need_is_what_it_says_beforehand(more, script):
    """With the budget that it names it ends; with one query less it does not begin."""
    import re

    with pytest.raises(UsageError, match="allows 1 more queries") as e:
        script("AEAHL", query_budget=1, **AEAHL, **more)
    need = int(re.search(r", (\d+) are wanted", str(e.value))[1])
    with pytest.raises(UsageError, match="are wanted"):
        script("AEAHL", query_budget=need - 1, **AEAHL, **more)
    result = script("AEAHL", query_budget=need, **AEAHL, **more)
    assert result["queries"] <= need and (more.get("hard_loss") or result["queries"] == need)


# ---- a stop in the midst of a purchase


def test_a_stop_in_a_purchase_is_heard_and_what_was_answered_is_kept(script, tmp_path):
    """DB3KD asks for hundreds of thousands of distances; SIGTERM ends it within seconds, and the next run asks for the rest only."""
    options = {"teacher": "ResNet8", "epochs": 1, "lamda": 0.5, "sr_mode": "mbd", "budgets": "1000", "basis": "dct"}
    command = [sys.executable, "-u", str(ROOT / "project/DB3KD.py"), *flags(**home_flags(script.home) | options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        path, began = None, time.monotonic()
        while time.monotonic() - began < 120:
            path = next((script.home / "checkpoints/DB3KD").rglob("transfer.safetensors"), None)
            if path and "mbd" in Transfer(path).columns:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        sent = time.monotonic()
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and time.monotonic() - sent < 10 and "stopped by SIGTERM" in out
    t, counts = Transfer(path), Counter(path.parent / "queries").counts()
    assert 0 < len(t.columns["mbd"]) < len(t.columns["answers"]) and counts["queries"] >= t.about["own"]["queries"] > len(t)


# ---- folders without labels, of other channels, with broken files


def pictures(folder, n, seed=0, grey=False):
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        x = rng.integers(0, 255, (10, 10) if grey else (10, 10, 3), dtype=np.uint8)
        Image.fromarray(x).save(folder / f"{i:02}.png")


def test_flat_folders_are_pools_and_private_images(script, tmp_path):
    """Each distinct image is asked about once; nobody knows labels, so that no accuracy is printed."""
    pictures(tmp_path / "flat", 12)
    for i in range(4):
        (tmp_path / "flat" / f"copy{i}.png").write_bytes((tmp_path / "flat" / "00.png").read_bytes())
    result = script("KN", pool=f"folder:{tmp_path / 'flat'}", budget=1.0, epochs=1, lamda=0.2)
    assert result["public"] == result["queries"] == 12 and "accuracy" in result
    result = script("KD", private=f"folder:{tmp_path / 'flat'}", epochs=1, lamda=1.0)
    assert result["private"] == 12 and "accuracy" not in result


def test_channels_of_a_folder(script, tmp_path):
    for k, name in enumerate("ab"):
        pictures(tmp_path / "mine" / name, 8, k)
    result = script("teacher", dataset=f"folder:{tmp_path / 'mine'}", model="ResNet8", img_size=8, channels=1, epochs=1, workers=0)
    meta = torch.load(next((script.home / "checkpoints/teacher").rglob("folder-*/*/seed0/teacher.pt")), weights_only=True)["meta"]
    assert meta["shape"] == [1, 8, 8] and result["options"]["channels"] == 1
    with pytest.raises(UsageError, match="--channels 2: there are 1"):
        script("teacher", dataset=f"folder:{tmp_path / 'mine'}", channels=2)


def test_broken_pictures_are_named_or_left_out(script, tmp_path, capsys):
    for k, name in enumerate("ab"):
        pictures(tmp_path / "mine" / name, 8, k)
    (tmp_path / "mine" / "a" / "bad.png").write_bytes(b"not a picture")
    options = {"dataset": f"folder:{tmp_path / 'mine'}", "model": "ResNet8", "img_size": 8, "epochs": 1, "workers": 0}
    with pytest.raises(UsageError, match=r"1 of \d+ images cannot be read: .*bad.png.*--skip_broken") as e:
        script("teacher", **options)
    assert "\n" not in str(e.value)
    script("teacher", **options, skip_broken=True)
    assert "bad.png" in capsys.readouterr().out


def test_bd_spends_its_budget(script):
    """Of 20,000 queries at least nine tenths; the other images keep the distance to the nearest image (sd)."""
    result = script("DB3KD", epochs=1, lamda=1.0, sr_mode="bd", query_budget=20_000)
    assert 18_000 < result["queries"] <= 20_000


def test_a_flat_private_folder_has_the_classes_of_the_teachers_folder(script, tmp_path):
    """With somebody else's checkpoint, which says no class names."""
    for k, name in enumerate("abc"):
        pictures(tmp_path / "mine" / name, 8, k)
    pictures(tmp_path / "flat", 12, 9)
    options = {"dataset": f"folder:{tmp_path / 'mine'}", "img_size": 8, "workers": 0, "epochs": 1}
    script("teacher", **options, model="ResNet8")
    path = next((script.home / "checkpoints/teacher").rglob("folder-*/*/seed0/teacher.pt"))
    torch.save(torch.load(path, weights_only=True)["model"], tmp_path / "plain.pth")
    result = script("KD", **options, private=f"folder:{tmp_path / 'flat'}", lamda=1.0, teacher_path=tmp_path / "plain.pth")
    assert result["private"] == 12 and result["data"]["names"] == ["a", "b", "c"]


# ---- state dicts that no net can take


ODD = {
    "sparse (torch.sparse_coo)": lambda w: w.to_sparse(), "sparse (torch.sparse_csr)": lambda w: w.to_sparse_csr(), "quantised": lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8),
    "complex": lambda w: w + 1j, "without values (on the meta device)": lambda w: w.to("meta"), "of type torch.int8": lambda w: w.to(torch.int8), "of type torch.bool": lambda w: w > 0,
    "of type torch.float8_e4m3fn": lambda w: w.to(torch.float8_e4m3fn), "nested": lambda w: torch.nested.nested_tensor([w[0], w[1, :3]]),
}  # fmt: skip


@pytest.mark.parametrize("what", ODD)
@pytest.mark.filterwarnings("ignore")
def test_a_tensor_that_no_net_can_take_is_named(what):
    """Copied into a net, int8 weights would be small integers, complex ones lose half of their values, without a word."""
    from common.weights import find_state

    state = {"conv1.weight": torch.ones(3), "fc.weight": ODD[what](torch.zeros(10, 64))}
    with pytest.raises(UsageError) as e:
        find_state({"model": state}, "x.pth")
    hint = "expected an ordinary tensor of real numbers: save the state dict of the float net"
    assert str(e.value).startswith(f"x.pth: its fc.weight is {what}; {hint}")


def test_tensors_of_odd_strides_storages_and_precisions_are_ordinary():
    from common.weights import find_state

    w = torch.randn(64, 10)
    for v in (
        w.T,
        torch.ones(1, 1).expand(10, 64),
        torch.randn(2000)[7:647].view(10, 64),
        w.T.half(),
        w.T.bfloat16(),
        w.T.double(),
        torch.nn.Parameter(w.T),
    ):
        assert find_state({"fc.weight": v}, "x.pth")[0]["fc.weight"] is v
    assert "n" in find_state({"bn.weight": torch.ones(1), "n": torch.tensor(3), "relative_position_index": torch.arange(4)}, "x.pth")[0]


@pytest.mark.parametrize("content, words", [
    ({1: torch.ones(1)}, "it holds the keys '1'$"), ({"model": {1: torch.ones(1)}}, "it holds the keys 'model'$"), ([1], "it holds list$"), (None, "it holds NoneType"), ({}, "it holds the keys $"), ({"model": [{"a": torch.ones(1)}]}, "it holds the keys 'model'$"),
    (torch.ones(1), "it holds Tensor$"), ({"x" * 5000: 1, 2: 3}, r"it holds the keys 'x{40}\.\.\.x{20}', '2'$"),
])  # fmt: skip
def test_what_a_file_without_a_state_dict_holds_is_said(content, words):
    from common.weights import find_state

    with pytest.raises(UsageError, match=f"x.pth holds no state dict, neither plain nor under .*; {words}"):
        find_state(content, "x.pth")


META = {"script": "teacher", "shape": [1, 8, 8], "classes": 10, "counts": {"queries": 3}, "latent": 8, "ngf": 4, "lamda": 1}
PART = {"images": 2, "hash": None}
META["data"] = {"train": PART, "test": PART, "names": ["a"], "mean": [0.5], "std": [0.5], "crop_from": 0}


@pytest.mark.parametrize("key, value, words", [
    ("shape", "abc", "its shape is of type str, not list"), ("shape", [1, 8], r"x.pt is damaged: its shape is '\[1, 8\]', which no script"), ("shape", [1, 8.0, 8], "its shape is"), ("shape", [1, -8, 8], "its shape is"),
    ("classes", "10", "its classes is of type str, not int"), ("classes", True, "of type bool, not int"), ("classes", 0, "its classes is '0'"), ("latent", -1, "its latent is"), ("ngf", 10**9, "its ngf is"),
    ("counts", {"queries": -1}, "its counts.queries is -1, not from 0 to"), ("counts", {"queries": 2.5}, "its counts.queries is of type float, not int"), ("counts", [1], "its counts is of type list, not dict"), ("lamda", "x", "its lamda is of type str, not int or float"),
    ("mean", [float("nan")], "its data is"), ("mean", [], "its data is"), ("std", [0.0], "its data is"), ("std", [0.5, 0.5], "its data is"), ("names", [1], r"its data.names\[0\] is of type int, not str"), ("names", "a", "its data.names is of type str, not list"), ("train", 3, "its data.train is of type int, not dict"), ("crop_from", -1, "its data is"),
])  # fmt: skip
def test_what_a_file_of_ours_says_about_itself_is_checked(key, value, words):
    from common.weights import checked_meta

    meta = META | ({key: value} if key in META else {"data": META["data"] | {key: value}})
    with pytest.raises(UsageError, match=words) as e:
        checked_meta({"model": {}, "meta": meta}, "x.pt")
    assert str(e.value).startswith("x.pt") and "\n" not in str(e.value)
    assert checked_meta({"meta": META}, "x.pt") is META
    assert checked_meta({"meta": {"epoch": 3}}, "x.pt") == checked_meta([1], "x.pt") == checked_meta({"meta": "script"}, "x.pt") == {}


@pytest.mark.parametrize("form, right, wrong, words", [
    (range(3), [0, 2], [-1, 3, 1.0, True], r"x is (-1|3), not from 0 to 2|x is of type (float|bool), not int"), (int, [0, 5], [True, 1.0, "1", None], "x is of type"), (bool, [True], [1, None], "not bool"), ((int, float), [1, 0.5], [False, "1"], "not int or float"), ([int], [[], [1, 2]], [(1,), [1, "2"], [True]], r"x(\[\d\])? is of type"),
    ({"a": int}, [{"a": 1, "b": "x"}], [{}, {"a": "1"}, [("a", 1)]], r"x lacks a|x.a is of type|x is of type list"), ({...: (int, [int])}, [{}, {"a": 1, "b": [1]}], [{"a": 1, "b": [[1]]}, {"a": {}}], r"x.b\[0\] is of type list, not int|x.a is of type dict, not int or list"),
])  # fmt: skip
def test_misfit_finds_values_that_are_not_of_a_form(form, right, wrong, words):
    from common.utils import misfit

    assert [misfit(value, form, "x") for value in right] == [""] * len(right)
    for value in wrong:
        assert re.match(words, misfit(value, form, "x")) or words in misfit(value, form, "x")


def test_a_net_that_cannot_take_the_images_is_refused_before_the_data_is_read(script, tmp_path):
    with pytest.raises(UsageError, match=r"torchvision:vit_b_16 cannot take 3x8x8 images .*; use --img_size 16"):
        script("CE", dataset="CIFAR10", model="torchvision:vit_b_16", img_size=8, data_dir=str(tmp_path))


# ---- a teacher that is a function


@pytest.mark.parametrize("response, code, error, words", [
    ("soft", "raise ValueError('a\\nb')", RunError, "t.py:f fails on 4 images: ValueError: a b"), ("soft", "sys.exit(0)", RunError, "fails on 4 images: SystemExit: 0"), ("soft", "return [[1], [1, 2]]", RunError, "fails on 4 images: ValueError"),
    ("soft", "return None", RunError, "fails on 4 images: TypeError"), ("soft", "return torch.full((4, 10), torch.nan)", UsageError, "returned numbers that are not finite, for 4 images"), ("soft", "return torch.ones(4, 10) * 1j", UsageError, "a tensor that is complex"),
    ("soft", "return (torch.ones(4, 10) / 10).to_sparse()", UsageError, "a tensor that is sparse"), ("logits", "return torch.full((4, 10), torch.inf)", UsageError, "not finite"), ("hard", "return [0, 1, 2, 10]", UsageError, "classes from 0 to 10; --response hard takes integers from 0 to 9"),
    ("hard", "return [0, 1, 2, -1]", UsageError, "classes from -1 to 2"), ("hard", "return [0, 1, 2, 1.5]", UsageError, "takes integers"),
])  # fmt: skip
def test_answers_that_a_function_cannot_give(response, code, error, words, tmp_path):
    from common.teachers import OwnTeacher

    (tmp_path / "t.py").write_text(f"import sys\nimport torch\n\ndef f(x):\n    {code}\n")
    half = torch.full((1, 1, 1, 1), 0.5)
    with pytest.raises(error, match=words) as e:
        OwnTeacher(f"py:{tmp_path / 't.py'}:f", response, 10, half, half)(torch.zeros(4, 1, 8, 8))
    assert "\n" not in str(e.value)


# ---- pools


def test_a_damaged_pool_is_one_line(tmp_path):
    from common.pool import read_pool

    path, pool = tmp_path / "pool.npy", np.zeros((10, 1, 8, 8), np.uint8)
    np.save(path, pool)
    whole = path.read_bytes()
    header = whole[:128].replace(b"(10, 1, 8, 8)", b"(9999999999999, 1, 8, 8)", 1)[:128]
    for content, words in (
        (whole[:-5], "cannot be read as a pool"), (header + whole[128:], "cannot be read as a pool"), (whole[:10] + b"((((" + whole[14:], "cannot be read as a pool"), (b"PK\x03\x04" + whole, "cannot be read as a pool"),
        (whole[:128].replace(b"(10, 1, 8, 8)", b"(0, 1, 8, 8) ") + b"", "cannot be read as a pool|uint8 .0, 1, 8, 8., not uint8 images"), (b"", "cannot be read as a pool"),
    ):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(UsageError, match=f"pool.npy .*({words})") as e:
            read_pool(path, (1, 8, 8))
        assert "\n" not in str(e.value)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UsageError, match="pool.npy is a pipe, not a file"):
        read_pool(path, (1, 8, 8))


# ---- more than the memory


@pytest.mark.parametrize("name, options, words", [
    ("DAFL", {"latent": 10**15}, "out of memory for the generator.*; lower --latent or --img_size"), ("AEAHL", {"ngf": 10**9}, "for the generator .*; lower --ngf or --latent or --img_size"),
    ("AEAHL", {"epochs": 10**15}, r"for the pool of [\d,]+ synthetic images.*; lower --epochs or --ep_steps or --warmup or --batch_size"), ("ZSDB3KD", {"samples": 10**15}, "for the numbers of the pseudo samples.*; lower --samples"),
    ("MEKD", {"queries": 10**15}, "out of memory for .*; lower --queries"),
])  # fmt: skip
def test_out_of_memory_names_what_was_made_and_the_option_to_lower(name, options, words, script):
    with pytest.raises(RunError, match=words):
        script(name, lamda=0.2, **options)


def test_a_data_set_larger_than_the_memory_names_the_image_size():
    """In 3 GB of address space beyond what is taken by then."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); sys.argv = ['x']; from common.cli import RunError; from common.datasets import load; import resource\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize(); resource.setrlimit(resource.RLIMIT_AS, (used + 3 * 2**30,) * 2)\n"
        "try: load('Digits', img_size=4096)\nexcept RunError as e: print(e)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "project")], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.stdout.startswith("out of memory for the images of Digits at 4096 x 4096 pixels (") and done.stdout.endswith(
        "; lower --img_size\n"
    ), done
