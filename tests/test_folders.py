"""`folder:PATH`: layouts, the split by path, names that are skipped, links, mistakes in words; fingerprints."""

from common.cli import RunError, UsageError

import hashlib
import os
import random
import time

import numpy as np
import pytest
import torch
from PIL import Image

from common import datasets
from common.checkpoints import load_model
from common.datasets import Images, load
from common.datasets.folders import read_folder
from common.datasets.images import hash_split, hash_test, split
from common.datasets.listing import in_order, scan
from common.teachers import in_order_of

COLOURS = {"ant": 10, "bee": 90, "cow": 170, "dog": 250}


def picture(path, value=0, size=(8, 8), seed=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    x = np.full((*size, 3), value, np.uint8)
    if seed is not None:
        x[0, 0] = seed % 256, seed // 256, 0
    Image.fromarray(x).save(path)


def fill(root, classes=("ant", "bee", "cow"), each=4, suffix="png"):
    for name in classes:
        for i in range(each):
            picture(root / name / f"{i}.{suffix}", COLOURS.get(name.lower(), 0), seed=i)
    return root


def loaded(path, **options):
    return load(f"folder:{path}", img_size=8, workers=0, **options)


def labels_fit(data, part):
    """Whether each image has the colour of the class that its label names."""
    return all(COLOURS[data.names[y]] == x[0, 4, 4] for x, y in zip(part.x, part.y.tolist(), strict=True))


# ---- layouts


@pytest.mark.parametrize("train, test", [
    ("train", "test"), ("Train", "Test"), ("Training", "Testing"), ("TRAIN", "VAL"), ("train", "valid"), ("training", "Validation"),
])  # fmt: skip
def test_training_and_test_folders_whatever_the_case(train, test, tmp_path, capsys):
    fill(tmp_path / train), fill(tmp_path / test, each=2)
    data = loaded(tmp_path)
    assert (len(data.train), len(data.test), data.names) == (12, 6, ["ant", "bee", "cow"]) and labels_fit(data, data.train)
    assert capsys.readouterr().out == f"folder:{tmp_path}: 3 classes: ant, bee, cow; 12 training and 6 test images\n"
    assert data.train.paths[0] == "ant/0.png"


def test_val_beside_an_unlabelled_test_is_the_test_set(tmp_path, capsys):
    fill(tmp_path / "train"), fill(tmp_path / "val", each=2)
    picture(tmp_path / "Test" / "1.png")
    data = loaded(tmp_path)
    assert len(data.test) == 6 and capsys.readouterr().out.endswith("12 training and 6 test images; left out: Test/ (no labels)\n")
    fill(tmp_path / "Test", each=1)
    assert len(loaded(tmp_path).test) == 3 and capsys.readouterr().out.endswith("left out: 1 outside class folders, val/\n")


def test_only_unlabelled_or_no_test_images(tmp_path):
    fill(tmp_path / "train")
    with pytest.raises(UsageError, match=r"has train/ but neither test/ nor val/; .*folder:.*train, of which a fifth"):
        loaded(tmp_path)
    picture(tmp_path / "test" / "1.png")
    with pytest.raises(UsageError, match=r"test/ has no class folders, so its images have no labels; add val/"):
        loaded(tmp_path)
    (tmp_path / "both").mkdir()
    fill(tmp_path / "both" / "test"), fill(tmp_path / "both" / "val")
    with pytest.raises(UsageError, match=r"has test/ and val/ but no train/"):
        loaded(tmp_path / "both")
    fill(tmp_path / "two" / "train"), fill(tmp_path / "two" / "Train"), fill(tmp_path / "two" / "test")
    with pytest.raises(UsageError, match=r"has Train/ and train/; keep one"):
        loaded(tmp_path / "two")
    fill(tmp_path / "same" / "train"), (tmp_path / "same" / "test").symlink_to(tmp_path / "same" / "train")
    with pytest.raises(UsageError, match="are the same folder"):
        loaded(tmp_path / "same")


def test_a_class_may_be_called_train_or_valid(tmp_path):
    fill(tmp_path / "a", classes=("bus", "car", "train"))
    assert loaded(tmp_path / "a").names == ["bus", "car", "train"]
    fill(tmp_path / "b", classes=("valid", "invalid"))
    assert loaded(tmp_path / "b").names == ["invalid", "valid"]


def test_test_classes_are_matched_by_name(tmp_path):
    """A test folder that lacks the first class: the others keep their labels."""
    fill(tmp_path / "train"), fill(tmp_path / "test", classes=("bee", "cow"), each=2)
    data = loaded(tmp_path)
    assert data.test.y.tolist() == [1, 1, 2, 2] and labels_fit(data, data.test) and data.classes == 3
    fill(tmp_path / "test", classes=("dog",))
    with pytest.raises(UsageError, match=r"test/ has classes that train/ lacks: dog; train/: ant, bee, cow; test/: bee, cow, dog"):
        loaded(tmp_path)


def test_imagenets_classes_are_matched_by_name(tmp_path):
    fill(tmp_path / "imagenet/train", classes=("ant", "bee", "cow", "dog")), fill(tmp_path / "imagenet/val", classes=("cow", "dog"))
    data = load("ImageNet", tmp_path, img_size=8, workers=0)
    assert data.test.y.tolist() == [2] * 4 + [3] * 4 and labels_fit(data, data.test) and data.train.paths is None
    fill(tmp_path / "imagenet/val", classes=("eel",))
    with pytest.raises(UsageError, match="val has 1 classes that train/ lacks: eel"):
        load("ImageNet", tmp_path, img_size=8)


def test_class_names_that_are_numbers_are_sorted_as_numbers(tmp_path):
    assert in_order(["10", "9", "1", "02"]) == ["1", "02", "9", "10"] and in_order(["10", "9", "a"]) == ["10", "9", "a"]
    fill(tmp_path, classes=[str(k) for k in range(1, 12)], each=1)
    assert loaded(tmp_path).names == [str(k) for k in range(1, 12)]


def test_the_line_of_many_classes(tmp_path, capsys):
    fill(tmp_path / "train", classes=[f"c{k:02}" for k in range(12)], each=1), fill(tmp_path / "test", classes=["c00"], each=1)
    loaded(tmp_path)
    assert capsys.readouterr().out.endswith(": 12 classes: c00, c01, c02, ..., c11; 12 training and 1 test images\n")


# ---- the split by path


def numbers_of(paths):
    return {p: int(hashlib.sha256(p.encode()).hexdigest(), 16) / 2**256 for p in paths}


def test_an_images_path_decides_on_training_or_test(tmp_path):
    fill(tmp_path, each=30)
    data = loaded(tmp_path)
    number = numbers_of([*data.train.paths, *data.test.paths])
    assert len(number) == 90 and set(data.test.paths) == {p for p, n in number.items() if n < 0.2} and 8 < len(data.test) < 30
    assert labels_fit(data, data.train) and labels_fit(data, data.test)


@pytest.mark.parametrize("seed", range(5))
def test_adding_or_removing_a_file_moves_no_other(seed):
    """For the split, --val and --lamda, on random folders; a class of one image is for training."""
    r = random.Random(seed)
    paths = sorted({f"{r.choice('abc')}/{r.randrange(10**6)}.png" for _ in range(r.randrange(60, 120))})
    draws = [lambda p, y: hash_test(p, y, 0.2), *(lambda p, y, s=s: hash_split(p, y, 0.3, s) for s in ("val1", "subset0"))]

    def labels(paths):
        return torch.tensor(["abc".index(p[0]) for p in paths])

    for draw in draws:
        chosen, rest = (set(map(paths.__getitem__, rows.tolist())) for rows in draw(paths, labels(paths)))
        assert chosen | rest == set(paths) and not chosen & rest
        for _ in range(10):
            other = r.sample(paths, len(paths) - 10)
            other = sorted(other + [f"{r.choice('abc')}/new{i}.png" for i in range(10)])
            now, left = (set(map(other.__getitem__, rows.tolist())) for rows in draw(other, labels(other)))
            assert now & set(paths) == chosen & set(other) and left & set(paths) == rest & set(other)


def test_the_rules_for_small_classes():
    low = next(f"a/{i}.png" for i in range(100) if numbers_of([f"a/{i}.png"])[f"a/{i}.png"] < 0.2)
    y = torch.zeros(1, dtype=torch.long)
    assert [rows.tolist() for rows in hash_test([low], y, 0.2)] == [[], [0]]  # the only image of its class
    assert [rows.tolist() for rows in hash_split([low], y, 0.2, "x")] == [[0], []]
    many = [f"a/{i}.png" for i in range(20)]
    for part in (1e-9, 0.5, 1 - 1e-9):
        chosen, rest = hash_split(many, torch.zeros(20), part, "s")
        assert len(chosen) >= 1 and len(rest) >= 1
    assert len(hash_split(many, torch.zeros(20), 1.0, "s")[1]) == 0 and len(hash_split(many, torch.zeros(20), 0.0, "s")[0]) == 0
    number = {p: int(hashlib.sha256(f"s:{p}".encode()).hexdigest(), 16) / 2**256 for p in many}
    chosen = {many[i] for i in hash_split(many, torch.zeros(20), 0.4, "s")[0].tolist()}
    assert chosen == {p for p in many if number[p] < 0.4}
    assert [rows.tolist() for rows in hash_split([], torch.zeros(0), 0.4, "s")] == [[], []]
    assert set(hash_split(many, torch.zeros(20), 0.2, "s")[0].tolist()) <= set(hash_split(many, torch.zeros(20), 0.6, "s")[0].tolist())
    none = [p for p in many if numbers_of([p])[p] > 0.2][:4]
    assert len(hash_test(none, torch.zeros(4), 0.2)[0]) == 1  # a test set is never empty


def test_images_split_by_path_where_it_is_known_and_as_ever_elsewhere():
    y = torch.arange(200) % 4
    plain = Images(torch.zeros(200, 1, 2, 2, dtype=torch.uint8), y)
    assert all(torch.equal(a, b) for a, b in zip(plain.split(0.3, 5, "val"), split(y, 0.3, 5), strict=True))
    own = Images(plain.x, y, paths=[f"{k}/{i}.png" for i, k in enumerate(y.tolist())])
    assert all(torch.equal(a, b) for a, b in zip(own.split(0.3, 5, "val"), hash_split(own.paths, y, 0.3, "val5"), strict=True))
    part = own.subset(torch.tensor([5, 2]))
    assert part.paths == ["1/5.png", "2/2.png"] and plain.subset(torch.tensor([1])).paths is None


def test_accents_are_one_whatever_the_system_writes():
    one, other = "caf\u00e9/a.png", "cafe\u0301/a.png"
    y = torch.zeros(30)
    rest = [f"x/{i}.png" for i in range(29)]
    assert hash_split([one, *rest], y, 0.5, "s")[0].tolist() == hash_split([other, *rest], y, 0.5, "s")[0].tolist()


# ---- what is skipped


def test_hidden_names_and_other_files_are_skipped_and_counted(tmp_path, capsys):
    fill(tmp_path, each=10)
    fill(tmp_path, classes=(".ipynb_checkpoints", "__MACOSX"))
    for name in ("Thumbs.db", "desktop.ini", "ant/._0.png", "ant/.DS_Store"):
        (tmp_path / name).write_bytes(b"x")
    for name in ("ant/a.heic", "bee/b.HEIC", "c.heic", "bee/notes", "readme.txt"):
        (tmp_path / name).write_bytes(b"x")
    picture(tmp_path / "sample.png")
    data = loaded(tmp_path)
    assert data.names == ["ant", "bee", "cow"] and len(data.train) + len(data.test) == 30 and labels_fit(data, data.train)
    line = capsys.readouterr().out
    assert line.endswith("; left out: 6 hidden, 3 .heic, 1 .txt, 1 outside class folders, 1 without extension\n"), line


def test_links_do_not_multiply_images(tmp_path):
    root, outside = fill(tmp_path / "root", each=5), tmp_path / "outside"
    fill(outside, classes=("dog",), each=5)
    (root / "ant" / "loop").symlink_to(root, target_is_directory=True)
    (root / "bee" / "up").symlink_to(tmp_path, target_is_directory=True)
    (root / "bee" / "other").symlink_to(root / "cow", target_is_directory=True)
    (root / "again").symlink_to(root / "cow", target_is_directory=True)
    (root / "ant" / "self").symlink_to(root / "ant" / "self")
    (root / "dog").symlink_to(outside / "dog", target_is_directory=True)
    (root / "cow" / "dogs").symlink_to(outside / "dog", target_is_directory=True)
    (root / "ant" / "copy.png").symlink_to(root / "ant" / "0.png")
    first, second = read_folder(root)
    assert len(first) + len(second) == 20 and first.left_out["repeated by a link"] == 6
    assert len({os.path.realpath(p) for p, _ in first.samples + second.samples}) == 20
    (tmp_path / "link").symlink_to(root)
    assert len(scan(tmp_path / "link").files) == 20


def test_links_to_single_files_are_read(tmp_path):
    fill(tmp_path / "all")
    for name in ("ant", "bee"):
        (tmp_path / "some" / name).mkdir(parents=True)
        for i in range(4):
            (tmp_path / "some" / name / f"{i}.png").symlink_to(tmp_path / "all" / name / f"{i}.png")
    data = loaded(tmp_path / "some")
    assert len(data.train) + len(data.test) == 8 and labels_fit(data, data.train)


# ---- mistakes


def test_one_level_too_high(tmp_path):
    fill(tmp_path / "a" / "data")
    with pytest.raises(UsageError, match=r"one level too high: data/ contains ant, bee, cow; use folder:.*/a/data$"):
        loaded(tmp_path / "a")
    fill(tmp_path / "b" / "fold1"), fill(tmp_path / "b" / "fold2", classes=("ant", "cow"))
    with pytest.raises(
        UsageError, match=r"fold1/ and fold2/ all contain the folders ant, bee, cow; use folder:.*/b/fold1, or name two of them"
    ):
        loaded(tmp_path / "b")
    fill(tmp_path / "c" / "data" / "train"), fill(tmp_path / "c" / "data" / "test")
    with pytest.raises(UsageError, match=r"data/ contains test, train; use folder:.*/c/data$"):
        loaded(tmp_path / "c")
    fill(tmp_path / "d" / "data" / "data")
    with pytest.raises(UsageError, match=r"its images lie in data/data/; use folder:.*/d/data, or deeper"):
        loaded(tmp_path / "d")
    fill(tmp_path / "e" / "train" / "x"), fill(tmp_path / "e" / "test" / "x")
    with pytest.raises(UsageError, match=r"one level too high: x/ contains ant, bee, cow"):
        loaded(tmp_path / "e")


def test_one_level_too_low_one_class_none(tmp_path):
    fill(tmp_path / "a")
    with pytest.raises(UsageError, match=r"images but no class folders; it is probably one level too low: use folder:.*/a$"):
        loaded(tmp_path / "a" / "ant")
    fill(tmp_path / "b" / "train"), fill(tmp_path / "b" / "test")
    with pytest.raises(UsageError, match=r"one level too low: use folder:.*/b$"):
        loaded(tmp_path / "b" / "train" / "bee")
    fill(tmp_path / "c", classes=("ant",))
    with pytest.raises(UsageError, match=r"images of one class only \(ant\); a classifier needs two or more"):
        loaded(tmp_path / "c")
    picture(tmp_path / "d" / "x" / "1.png")
    with pytest.raises(UsageError, match=r"no class folders; put the images of each class into a folder of its own \(--pool and --private"):
        loaded(tmp_path / "d" / "x")
    (tmp_path / "e" / "ant").mkdir(parents=True), (tmp_path / "e" / "ant" / "a.heic").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"contains no images; left out: 1 .heic; Pillow reads"):
        loaded(tmp_path / "e")
    with pytest.raises(UsageError, match=r"e/nothing: no such folder"):
        loaded(tmp_path / "e" / "nothing")
    with pytest.raises(UsageError, match=r"is a file; unpack it"):
        loaded(tmp_path / "e" / "ant" / "a.heic")


def test_empty_class_folders_are_named(tmp_path):
    fill(tmp_path / "a"), (tmp_path / "a" / "eel").mkdir(), (tmp_path / "a" / "fox").mkdir()
    (tmp_path / "a" / "fox" / "1.heic").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"no images in eel/ and fox/; left out: 1 .heic; add images, or remove them"):
        loaded(tmp_path / "a")
    fill(tmp_path / "b" / "train"), fill(tmp_path / "b" / "val"), (tmp_path / "b" / "val" / "eel").mkdir()
    with pytest.raises(UsageError, match=r"b/val: no images in eel/"):
        loaded(tmp_path / "b")


def test_class_folders_with_folders_are_read_to_the_bottom(tmp_path):
    """TinyImageNet's layout (the same name in each), and others."""
    for name in ("ant", "bee"):
        (
            picture(tmp_path / "a" / name / "images" / "1.png", COLOURS[name]),
            picture(tmp_path / "a" / name / "images" / "2.png", COLOURS[name]),
        )
        (
            picture(tmp_path / "b" / name / "red" / "1.png", COLOURS[name]),
            picture(tmp_path / "b" / name / f"{name}s" / "x" / "2.png", COLOURS[name]),
        )
        picture(tmp_path / "b" / name / "3.png", COLOURS[name])
    for part, n in (("a", 4), ("b", 6)):
        data = loaded(tmp_path / part)
        assert data.names == ["ant", "bee"] and len(data.train) + len(data.test) == n and labels_fit(data, data.train)


def test_a_home_and_a_missing_drive(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    fill(tmp_path / "mine")
    assert len(loaded("~/mine").train) and loaded("~/mine").name == "folder:~/mine"
    fill(tmp_path / "data/imagenet/train"), fill(tmp_path / "data/imagenet/val")
    assert len(load("ImageNet", "~/data", img_size=8).train) == 12
    with pytest.raises(UsageError, match=r"--data_dir .*/drive/data: the folder .*/drive does not exist; mount its drive"):
        load("MNIST", tmp_path / "drive" / "data")
    assert not (tmp_path / "drive").exists()
    assert len(load("Digits", tmp_path / "drive" / "data").train) == 1297


# ---- without labels


def test_a_flat_folder_without_labels(tmp_path, capsys):
    for i in range(6):
        picture(tmp_path / f"{i}.png", seed=i)
    for i in (1, 4):
        (tmp_path / "deep").mkdir(exist_ok=True)
        (tmp_path / "deep" / f"copy{i}.png").write_bytes((tmp_path / f"{i}.png").read_bytes())
    picture(tmp_path / "deep" / "own.png", seed=77), (tmp_path / ".hidden.png").write_bytes(b"x")
    data = loaded(tmp_path, labels=False)
    assert data.train.y.tolist() == [0] * 7 and len(data.test) == 0 and data.test.x.shape == (0, 3, 8, 8)
    assert data.train.x[:, 0, 0, 0].sort().values.tolist() == [0, 1, 2, 3, 4, 5, 77]
    assert capsys.readouterr().out == f"folder:{tmp_path}: 7 images without labels; left out: 2 duplicate, 1 hidden\n"
    assert data.train.paths[0] == "0.png" and data.identity()["train"]["images"] == 7
    chosen, rest = data.train.split(0.5, 0, "subset")
    assert len(chosen) + len(rest) == 7
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match="contains no images"):
        loaded(tmp_path / "none", labels=False)
    assert len(load("Digits", labels=False).test) == 500


def test_unlabelled_folders_are_streamed_too(tmp_path, monkeypatch):
    fill(tmp_path)
    monkeypatch.setattr(datasets, "RESIDENT_BYTES", 0)
    data = loaded(tmp_path, labels=False, channels=1)
    x = torch.cat([x for x, _ in data.train.stream.loader(5, False, "none")])
    assert x.shape == (12, 1, 8, 8) and len(data.test) == 0 and data.shape == (1, 8, 8)


# ---- the fingerprint


def test_the_fingerprint_follows_paths_sizes_and_classes(tmp_path, monkeypatch):
    fill(tmp_path / "a/train", each=5), fill(tmp_path / "a/test", each=2)
    base = loaded(tmp_path / "a").identity()
    assert set(base) == {"train", "test", "names", "mean", "std", "crop_from"} and base["train"]["images"] == 15
    assert (
        len(base["train"]["hash"]) == 12 == len(base["test"]["hash"])
        and base["names"] == ["ant", "bee", "cow"]
        and base["mean"] == [0.5] * 3
    )
    fill(tmp_path / "elsewhere/b/Train", each=5), fill(tmp_path / "elsewhere/b/Val", each=2)
    assert loaded(tmp_path / "elsewhere/b").identity() == base  # neither place nor time nor the parts' names
    scandir = os.scandir

    class Reversed(list):
        def __enter__(self):
            return self

        def __exit__(self, *a):
            pass

    with monkeypatch.context() as m:
        m.setattr(os, "scandir", lambda p: Reversed(reversed([*scandir(p)])))
        assert loaded(tmp_path / "a").identity() == base  # nor the order in which files are listed
    monkeypatch.setattr(datasets, "RESIDENT_BYTES", 0)
    assert loaded(tmp_path / "a").identity() == base  # nor whether they are streamed
    picture(tmp_path / "a/train/ant/new.png")
    assert (now := loaded(tmp_path / "a").identity())["train"]["hash"] != base["train"]["hash"] and now["test"] == base["test"]
    (tmp_path / "a/train/ant/new.png").unlink()
    with open(tmp_path / "a/train/ant/0.png", "ab") as f:
        f.write(b"x")
    assert loaded(tmp_path / "a").identity()["train"]["hash"] != base["train"]["hash"]
    os.rename(tmp_path / "elsewhere/b/Train/cow", tmp_path / "elsewhere/b/Train/eel")
    os.rename(tmp_path / "elsewhere/b/Val/cow", tmp_path / "elsewhere/b/Val/eel")
    assert loaded(tmp_path / "elsewhere/b").identity()["train"]["hash"] != base["train"]["hash"]


def test_the_fingerprint_of_arrays_is_that_of_pixels_and_labels(monkeypatch):
    from dataclasses import replace

    small, large = load("Digits"), load("Digits", img_size=16)
    assert (
        small.identity()["train"] == large.identity()["train"] == {"images": 1297, "hash": small.train.hash} and len(small.train.hash) == 12
    )
    spec = datasets.DATASETS["Digits"]

    def changed(which):
        def read(folder, train):
            x, y = (t.clone() for t in spec.read(folder, train))
            (x if which == "x" else y)[0] += 1
            return x, y

        monkeypatch.setitem(datasets.DATASETS, "Digits", replace(spec, read=read))
        return load("Digits").train.hash

    assert len({small.train.hash, changed("x"), changed("y")}) == 3
    monkeypatch.setitem(datasets.DATASETS, "Digits", spec)
    assert load("Digits").train.hash == small.train.hash and small.train.subset(torch.arange(3)).hash == ""
    by_hand = datasets.Data(
        "x", 2, (1, 2, 2), *[Images(torch.zeros(0, 1, 2, 2), torch.zeros(0))] * 2, torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    )
    assert by_hand.identity()["train"] == {"images": 0, "hash": ""}


def test_twenty_thousand_files_take_less_than_two_seconds(tmp_path):
    for k in range(20):
        (tmp_path / f"c{k:02}").mkdir()
        for i in range(1000):
            (tmp_path / f"c{k:02}" / f"{i}.png").write_bytes(b"x" * (i % 7))
    start = time.process_time()
    first, second = read_folder(tmp_path)
    assert len(first.hash()) == len(second.hash()) == 12 and len(first) + len(second) == 20000
    assert time.process_time() - start < 2


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    fill(tmp_path)
    scandir = os.scandir

    def forbidden(path):
        if str(path).endswith("bee"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises((UsageError, RunError), match=r"bee cannot be listed \(Permission denied\)"):
        loaded(tmp_path)


# ---- no files


@pytest.mark.parametrize("labels", [True, False])
def test_pipes_sockets_devices_and_links_to_nothing_among_pictures_are_named(labels, tmp_path):
    import socket

    fill(tmp_path / "mine", ("ant", "bee"))
    os.mkfifo(tmp_path / "mine/ant/pipe.png")
    (tmp_path / "mine/ant/zero.png").symlink_to("/dev/zero")
    (tmp_path / "mine/bee/gone.png").symlink_to("/nowhere.png")
    os.symlink(tmp_path / "mine/bee/loop.png", tmp_path / "mine/bee/loop.png")
    with socket.socket(socket.AF_UNIX) as s:
        here = os.open(".", os.O_RDONLY)
        os.chdir(tmp_path / "mine/bee")
        s.bind("socket.png")  # its path may have 108 letters
        os.fchdir(here)
        os.close(here)
    with pytest.raises(UsageError, match="5 of .* images cannot be read: ") as e:
        loaded(tmp_path / "mine", labels=labels)
    assert all(f"{name}.png (" in str(e.value) for name in ("pipe", "zero", "gone", "loop", "socket")) and "\n" not in str(e.value)
    data = loaded(tmp_path / "mine", labels=labels, skip_broken=True)
    assert len(data.train) + len(data.test) == 8


@pytest.mark.parametrize("more, words", [
    ({}, "folder:.* holds images without labels; use --gt_source teacher"), ({"augment": "crop"}, "--private folder:.* has no labels"),
    ({"base": "fitnet", "response": "inside"}, "--private folder:.* has no labels"),
])  # fmt: skip
def test_a_method_that_needs_labels_is_refused_a_folder_without(more, words, script):
    for i in range(4):
        folder = script.home / "flat"
        folder.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8), 20 * i, np.uint8)).save(folder / f"{i}.png")
    with pytest.raises(UsageError, match=words):
        script("GDA", private=f"folder:{folder}", epochs=1, **more)
    assert script("GDA", private=f"folder:{folder}", epochs=1, gt_source="teacher", tag="t")["queries"] == 4
    with pytest.raises(UsageError, match=r"--lamda 0.1 leaves \d of 4 training images; training takes at least 2"):
        script("KD", private=f"folder:{folder}", epochs=1, lamda=0.1)


# ---- private images with labels of their own


@pytest.mark.parametrize("classes", [("ant", "Bee", "cow"), ("cow", "ANT", "bee"), ("ant", "bee", "cow")])
def test_labels_of_private_images_follow_the_teachers_classes(classes, tmp_path):
    """`Bee` sorts before `ant`, and a set may list its classes in an order of its own: the name decides which class a label means."""
    data = loaded(fill(tmp_path / "mine", classes, each=10))
    data = in_order_of(["ant", "cow", "bee"], data)
    assert data.names == ["ant", "cow", "bee"] and labels_fit(data, data.train) and labels_fit(data, data.test)


def test_private_images_of_some_other_classes_are_refused_and_of_quite_other_names_taken_as_they_are(tmp_path):
    mine = loaded(fill(tmp_path / "mine", ("bee", "cow", "dog")))
    with pytest.raises(UsageError, match="mine has the classes bee, cow, dog; the teacher has ant, bee, cow; name its class folders"):
        in_order_of(["ant", "bee", "cow"], mine)
    before = mine.train.y.clone()
    mine = in_order_of(["0 - zero", "1 - one", "2 - two"], mine)  # as USPS beside MNIST
    assert mine.names == ["0 - zero", "1 - one", "2 - two"] and mine.train.y.equal(before)
    cases = in_order_of(["A", "a", "b"], loaded(fill(tmp_path / "cases", ("A", "a", "b"))))  # two names that differ in case only
    assert cases.names == ["A", "a", "b"] and sorted({*cases.train.y.tolist()}) == [0, 1, 2]


@pytest.mark.parametrize("plain", [False, True])
def test_a_student_of_private_images_has_the_teachers_class_names(plain, script, tmp_path):
    """Also with somebody else's teacher, whose classes are those of its data set's folder."""
    fill(tmp_path / "mine", each=12), fill(tmp_path / "private", ("ant", "Bee", "cow"), each=12), fill(tmp_path / "other", ("bee", "dog"))
    options = {"dataset": f"folder:{tmp_path / 'mine'}", "img_size": 8, "workers": 0, "lamda": 1.0}
    script("teacher", **options, model="ResNet8", epochs=40, eval_every=40)
    path = next((script.home / "checkpoints/teacher").rglob("folder-*/*/seed0/teacher.pt"))
    if plain:
        torch.save(torch.load(path, weights_only=True)["model"], path := tmp_path / "plain.pth")
    result = script("KD", **options, private=f"folder:{tmp_path / 'private'}", epochs=1, teacher_path=path)
    student = next((script.home / "checkpoints/KD").rglob("student.pt"))
    assert load_model(student)[2] == result["data"]["names"] == ["ant", "bee", "cow"]
    assert result["teacher_accuracy"] == 100.0
    with pytest.raises(UsageError, match="other has the classes bee, dog; the teacher has ant, bee, cow"):
        script("KD", **options, private=f"folder:{tmp_path / 'other'}", epochs=1, teacher_path=path)
