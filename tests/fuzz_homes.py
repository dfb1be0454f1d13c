"""The homes of the fuzz: folders with a teacher, nets, answers and files of every kind, each made once."""

import bz2
import csv
import pickle
import shutil
from pathlib import Path

import numpy as np
from fuzz_process import ROOT, Homes, Job, must, script
from PIL import Image

QUICK = "--dataset Digits --lamda 0.05 --epochs 1 --batch_size 16 --device cpu".split()
TEACHER = "--teacher ResNet8".split()
ROBUST = [*TEACHER, *QUICK, *"--samples 3 --budget 200 --neighbours 50".split()]
RUNS = {  # what lets a run of a script go through in a second
    "teacher": ["--model", "ResNet8", *QUICK],
    "CE": ["--model", "ResNet8", *QUICK],
    "DCGAN": [*TEACHER, *QUICK],
    "MEKD": [*TEACHER, *QUICK, "--steps", "2", "--generator_path", "generator.pt"],
    "DAFL": [*TEACHER, *QUICK, "--steps", "2"],
    "AM": [*TEACHER, *QUICK, *"--first 20 --queries 10 --pairs 50 --epochs 4".split()],
    "DB3KD": [*TEACHER, *QUICK, "--sr_mode", "sd"],
    "ZSDB3KD": [*TEACHER, *QUICK, *"--sr_mode sd --samples 2 --iterations 1 --step_queries 40".split()],
    "AEAHL": [*TEACHER, *QUICK, *"--ep_steps 2 --kd_steps 2 --g_steps 1 --warmup 1 --latent 8 --ngf 4".split()],
    "DFME": [*TEACHER, *QUICK, *"--steps 2 --s_steps 2 --latent 8 --ngf 4".split()],
    "IDEAL": [*TEACHER, *QUICK, *"--g_steps 2 --latent 8 --ngf 4".split()],
    "DFHL": [*TEACHER, *QUICK, *"--steps 2 --g_steps 1 --h_steps 2 --latent 8 --ngf 4".split()],
    "robustness": ROBUST,
    "table": ["tiny.toml", "--show"],
}
ENCODER = "--dataset DigitsFS --model ConvNet4 --lamda 0.05 --query 2 --test_episodes 2 --epochs 1 --batch_size 16 --device cpu".split()
FEW = [*ENCODER, "--val_episodes", "2"]
RUNS |= {
    "fewshot_classifier": FEW,
    "fewshot_meta": [*FEW, "--steps", "1", "--init", "encoder.pt"],
    "fewshot_test": [*ENCODER, "--path", "encoder.pt"],
}

TABLE = """
title = "Tiny"
paper = "MEKD"
dataset = "Digits"
pairs = ["ResNet8 -> ResNet8"]
seeds = [0]
rows = [
  { name = "CE", script = "CE" },
  { name = "KD", script = "KD", options = { tag = "first" }, published = "MEKD soft" },
  { name = "AEAHL", script = "AEAHL", options = { tag = "x" } },
  { name = "again", script = "AEAHL", reuse = { row = "AEAHL" }, options = { mode = "reuse_common" } },
]
[options]
lamda = 0.05
epochs = 1
batch_size = 16
[scripts.teacher]
lamda = 1.0
epochs = 2
"""


def make_options(homes: Homes, home: Path) -> None:
    """A home with a teacher, a generator, an encoder, answers, pictures, and things that are no files of ours."""
    must(Job(script("teacher", ["--model", "ResNet8", *QUICK, "--lamda", "1", "--epochs", "2"]), home, 100))
    must(Job(script("DCGAN", [*TEACHER, *QUICK]), home, 100))
    must(Job(script("KD", [*TEACHER, *QUICK, "--tag", "first"]), home, 100))
    must(Job(script("fewshot_classifier", FEW), home, 100))
    must(Job(script("AEAHL", [*RUNS["AEAHL"], "--tag", "first"]), home, 100))
    for path in ("teacher/**/teacher.pt", "DCGAN/**/generator.pt", "KD/**/transfer.safetensors", "KD/**/result.json", "AEAHL/**/pool.npy"):
        shutil.copy(found(home, path), home)
    shutil.copy(found(home, "fewshot_classifier/**/student.pt"), home / "encoder.pt")
    for folder in ("photos/a", "photos/b", "flat"):
        (home / folder).mkdir(parents=True)
        for i in range(8):
            Image.fromarray(np.random.default_rng(i).integers(0, 255, (9, 9, 3), np.uint8)).save(home / folder / f"{folder[-1]}{i}.png")
    (home / "own.py").write_text(
        "import os\nimport torch\nNet = torch.nn.Identity\n\n\ndef teacher(x):\n    return x.flatten(1).long().sum(1) % 10\n"
    )
    (home / "tiny.toml").write_text(TABLE)
    (home / "empty").touch()
    (home / "folder").mkdir()
    (home / "noise").write_bytes(np.random.default_rng(0).bytes(3000))
    (home / "dangling").symlink_to("nothing")
    copy_tables(home)


def found(home: Path, pattern: str) -> Path:
    """The first file of a pattern in a home's checkpoints."""
    return next((home / "checkpoints").glob(pattern))


def copy_tables(home: Path) -> None:
    """project_copy/: what a table and the docs' results are made from, for `move_tables`."""
    copy = home / "project_copy"
    for name in ("tables", "docs"):
        shutil.copytree(ROOT / name, copy / name)
    shutil.copy(ROOT / "README.md", copy)
    (copy / "project").symlink_to(ROOT / "project")


def make_files(homes: Homes, home: Path) -> None:
    """The same with files of data sets, pictures of all kinds, a generator and boundary distances of earlier runs."""
    shutil.copytree(homes.made("options"), home, dirs_exist_ok=True, symlinks=True)
    must(Job(script("DB3KD", [*TEACHER, *QUICK, *"--lamda 0.02 --tag first".split()]), home, 100))
    shutil.copy(found(home, "DB3KD/**/transfer.safetensors"), home / "boundaries.safetensors")
    (home / "reused").mkdir()
    for name in ("generator", "decoder"):
        shutil.copy(found(home, f"AEAHL/**/{name}.pt"), home / "reused")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (40, 84, 84, 3), np.uint8)
    make_pictures(home, pixels)
    make_mini(home, pixels)
    make_mnist(home / "data" / "MNIST", rng)
    make_others(home / "data", rng)


def make_pictures(home: Path, pixels: np.ndarray) -> None:
    """pictures/KIND/ with two classes, and small/ with pictures for a pool."""
    for kind in ("png", "jpg", "bmp", "gif", "tif", "webp", "tga", "ppm", "jp2", "ico"):
        for i, name in enumerate("ab"):
            folder = home / "pictures" / kind / name
            folder.mkdir(parents=True)
            for k in range(6):
                Image.fromarray(pixels[6 * i + k, :16, :16]).save(folder / f"{k}.{kind}")
    (home / "small").mkdir()
    for k in range(4):
        Image.fromarray(pixels[k, :8, :8, 0]).save(home / "small" / f"{k}.png")


def make_mini(home: Path, pixels: np.ndarray) -> None:
    """miniImageNet in its three forms: split/, cache/ and named/."""
    forms = {name: home / name / "miniImageNet" for name in ("split", "cache", "named")}
    for folder in forms.values():
        folder.mkdir(parents=True)
    labels = [i // 10 for i in range(40)]
    for part in ("train_phase_train", "train_phase_val", "val", "test"):
        content = {"data": pixels, "labels": labels}
        (forms["split"] / f"miniImageNet_category_split_{part}.pickle").write_bytes(pickle.dumps(content, 2))
    (forms["named"] / "images").mkdir()
    for k, x in enumerate(pixels):
        Image.fromarray(x).save(forms["named"] / "images" / f"{k}.jpg")
    for part in ("train", "val", "test"):
        content = {"image_data": pixels, "class_dict": {f"n{c}": [k for k in range(40) if labels[k] == c] for c in range(4)}}
        (forms["cache"] / f"mini-imagenet-cache-{part}.pkl").write_bytes(pickle.dumps(content, 2))
        with open(forms["named"] / f"{part}.csv", "w", newline="") as f:
            csv.writer(f).writerows([["filename", "label"], *([f"{k}.jpg", f"n{labels[k]}"] for k in range(40))])


def make_mnist(folder: Path, rng: np.random.Generator) -> None:
    """MNIST with 30 and 20 images."""
    folder.mkdir(parents=True)
    for name, n in (("train", 30), ("t10k", 20)):
        header = np.array([0x803, n, 28, 28], ">u4").tobytes()
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + rng.bytes(n * 28 * 28))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(np.array([0x801, n], ">u4").tobytes() + bytes(i % 10 for i in range(n)))


def make_others(data: Path, rng: np.random.Generator) -> None:
    """SVHN and USPS with 20 images each."""
    from scipy.io import savemat

    for name in ("SVHN", "USPS"):
        (data / name).mkdir(parents=True)
    for part in ("train", "test"):
        x, y = rng.integers(0, 255, (32, 32, 3, 20), np.uint8), 1 + np.arange(20, dtype=np.uint8)[:, None] % 10
        savemat(data / "SVHN" / f"{part}_32x32.mat", {"X": x, "y": y})
    for name in ("usps.bz2", "usps.t.bz2"):
        lines = (" ".join([str(1 + k % 10), *(f"{i}:{v:.3f}" for i, v in enumerate(rng.uniform(-1, 1, 256), 1))]) for k in range(20))
        (data / "USPS" / name).write_bytes(bz2.compress("\n".join(lines).encode()))
