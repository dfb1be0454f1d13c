"""Small sets, odd options, other normalisations, flat folders, stops in a purchase: an answer in words, or the right value."""

from common.cli import RunError, UsageError

import importlib
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, home_flags
from PIL import Image

from common.blackbox import Ledger
from common.options import flags, parse
from common.transfer import Transfer


def test_am_on_a_small_set_buys_the_pairs_that_there_are(script, capsys):
    """13 images make 78 pairs: 26 in each of three rounds, where 40 were wanted."""
    result = script("AM", epochs=8, lamda=0.01, first=13, queries=40, pairs=1000)
    assert result["private"] == 10 and result["mixed"] == 3 * (45 // 3)
    assert "10 images make 45 pairs: 15 mixes are bought in each round, not 40" in capsys.readouterr().out


@pytest.mark.parametrize("budget", [1e-9, 0.003, 1.2])
def test_kn_with_less_than_two_images_is_answered_before_anything_is_paid(budget, script):
    with pytest.raises(UsageError, match=r"--budget \S+ buys [01] of \d+ images; a student needs at least 2"):
        script("KN", epochs=1, lamda=0.2, budget=budget)
    assert Ledger(next((script.home / "checkpoints/KN").rglob("queries"))).counts()["queries"] == 0


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


@pytest.mark.parametrize("base", ["dkd", "dist", "augconf", "adaptconf"])
def test_standardise_is_refused_where_it_would_change_nothing(base):
    with pytest.raises(UsageError, match=f"--standardise works with --base kd and mlkd, not with {base}"):
        parse(importlib.import_module("GDA").Args, ["--standardise", "--base", base])


# ---- generators under another normalisation


@pytest.mark.parametrize("normalize", ["half", "unit", "0.2,0.4"])
def test_generated_images_are_what_a_net_sees_of_pixels(normalize):
    from common.datasets import load
    from common.options import normalisation

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
    t, counts = Transfer(path), Ledger(path.parent / "queries").counts()
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
