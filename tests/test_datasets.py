"""Data sets: tensors, balanced draws, batches, augmentation; folders; and what is said when something is missing."""

from common.cli import RunError, UsageError

import bz2
import gzip
import hashlib
import pickle
import struct
import urllib.error

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from common import datasets
from common.augment import crop_flip
from common.batches import Batches, Draw, Streamed, batches_of
from common.datasets import Data, Images, load, novel, readers
from common.datasets.files import read_idx
from common.datasets.images import resize, split


def test_digits_come_without_a_download(tmp_path):
    data = load("digits", tmp_path)
    assert (len(data.train), len(data.test), data.classes, data.shape) == (1297, 500, 10, (1, 8, 8))
    assert data.train.x.dtype == torch.uint8 and data.test.y.bincount().tolist() == [50] * 10
    x = data.view(data.train.x)
    assert x.min() == -1 and x.max() == 1 and x.dtype == torch.float32
    seen = {tuple(row) for row in data.train.x.flatten(1).tolist()}
    assert not any(tuple(row) in seen for row in data.test.x.flatten(1).tolist())  # no test image is trained on


def test_img_size_and_normalize():
    data = load("Digits", img_size=16, normalize="dataset")
    x = data.view(data.train.x)
    assert x.shape[1:] == (1, 16, 16)
    assert x.mean().abs() < 1e-3 and x.std() == pytest.approx(1, abs=1e-3)


def test_resize_equals_the_library_per_image():
    x = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    one = F.interpolate(x[1:2].float(), (12, 12), mode="bilinear", antialias=True).round().to(torch.uint8)
    assert torch.equal(resize(x, 12)[1:2], one) and resize(x, 8) is x


def test_split_is_balanced_repeatable_and_complete():
    y = torch.tensor([0] * 100 + [1] * 50 + [2] * 3)
    a, rest = split(y, 0.1, seed=3)
    assert y[a].bincount().tolist() == [10, 5, 1]  # at least one of a rare class
    assert sorted(torch.cat([a, rest]).tolist()) == list(range(153))
    assert torch.equal(a, split(y, 0.1, seed=3)[0]) and not torch.equal(a, split(y, 0.1, seed=4)[0])
    assert y[split(y, 2, seed=0)[0]].bincount().tolist() == [2, 2, 2]


def test_shares_of_one_seed_are_nested():
    y = torch.arange(1000) % 10
    small, large = (set(split(y, s, seed=0)[0].tolist()) for s in (0.1, 0.5))
    assert small < large


def test_batches_cover_every_image_once_and_drop_a_single_left_over():
    x, y = torch.arange(10), torch.arange(10) * 2
    got = list(Batches(x, y, size=4, first=lambda b: b + 100))
    assert [len(a) for a, _ in got] == [4, 4, 2]
    assert sorted((torch.cat([a for a, _ in got]) - 100).tolist()) == list(range(10))
    assert all(torch.equal((a - 100) * 2, b) for a, b in got)
    assert [len(a) for (a,) in Batches(torch.arange(9), size=4)] == [4, 4]
    assert [len(a) for (a,) in Batches(torch.arange(3), size=128)] == [3]


def test_batches_of_a_number_of_steps_go_round():
    got = list(Batches(torch.arange(6), size=3, steps=5))
    assert len(got) == 5
    assert sorted(torch.cat([a for (a,) in got[:2]]).tolist()) == list(range(6)) == sorted(torch.cat([a for (a,) in got[2:4]]).tolist())


def test_draw_makes_anew():
    made = iter(range(100))
    draw = Draw(3, lambda: (next(made),))
    assert len(draw) == 3 and list(draw) == [(0,), (1,), (2,)] and list(draw)[0] == (3,)


@pytest.mark.parametrize("flip", [False, True])
def test_each_view_equals_the_one_made_naively(flip):
    x = torch.randint(1, 256, (2, 2, 5, 5), dtype=torch.uint8)
    padded = F.pad(x, (1, 1, 1, 1))
    views = [padded[:, :, i : i + 5, j : j + 5] for j in range(3) for i in range(3)]
    views += [v.flip(3) for v in views] if flip else []
    for k, v in enumerate(views):
        out = crop_flip(x, 1, flip, torch.tensor([k, k]))
        assert torch.equal(out, v) and out.dtype == torch.uint8
    u = torch.rand(2, 2, 5, 5, requires_grad=True)
    crop_flip(u, 1, flip, torch.tensor([0, 8])).sum().backward()
    assert u.grad.sum() == 2 * 2 * 16  # a shift by one in both directions leaves 4 x 4 pixels


def test_views_are_drawn_over_all_there_are():
    torch.manual_seed(0)
    data = load("Digits")
    x = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8).expand(3000, 1, 8, 8)
    for augment, n in {"none": 1, "crop": 9, "crop_flip": 18}.items():
        assert data.views(augment) == n == len({tuple(v) for v in data.view(x, augment).flatten(1).tolist()})
    half = x.float() / 255
    assert torch.allclose(
        data.view(half, "crop", torch.full((3000,), 4)), data.view(x), atol=1e-6
    )  # the middle; in [0, 1] as in 256 values


def folder_of_images(root, sizes=((9, 7), (12, 12)), classes=("cat", "dog"), each=10):
    rng = np.random.default_rng(0)
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(each):
            image = rng.integers(0, 80, (*sizes[i % len(sizes)], 3), dtype=np.uint8) + np.uint8(150 * label)
            Image.fromarray(image).save(root / name / f"{i}.png")


def test_a_users_folder_with_a_class_a_folder(tmp_path):
    folder_of_images(tmp_path / "mine")
    data = load(f"folder:{tmp_path / 'mine'}", img_size=8, workers=0)
    assert (data.classes, data.shape, len(data.train) + len(data.test)) == (2, (3, 8, 8), 20) and 1 <= len(data.test) < 10
    means = data.train.x.float().flatten(1).mean(1)
    assert (means[data.train.y == 0] < 100).all() and (means[data.train.y == 1] > 150).all()


def test_a_users_folder_with_train_and_val(tmp_path):
    folder_of_images(tmp_path / "train")
    folder_of_images(tmp_path / "val", each=3)
    data = load(f"folder:{tmp_path}", img_size=8, workers=0)
    assert (len(data.train), len(data.test)) == (20, 6)


def test_what_does_not_fit_is_streamed_with_the_same_images(tmp_path, monkeypatch):
    folder_of_images(tmp_path / "mine", sizes=((8, 8),))
    whole = load(f"folder:{tmp_path / 'mine'}", img_size=8, workers=0)
    monkeypatch.setattr(datasets, "RESIDENT_BYTES", 0)
    data = load(f"folder:{tmp_path / 'mine'}", img_size=8, workers=0)
    x = torch.cat([x for x, _ in data.train.stream.loader(4, shuffle=False, augment="none")])
    assert torch.equal(x, whole.train.x) and torch.equal(data.train.y, whole.train.y)
    part = data.train.subset(torch.tensor([3, 5]))
    assert torch.equal(next(iter(part.stream.loader(4, False, "none")))[0], whole.train.x[[3, 5]])
    batches = Streamed(data.train, data.train.y, size=4, first=data.view, augment="auto")
    assert len(batches) == len(data.train) // 4 and all(x.shape == (4, 3, 8, 8) and x.abs().max() <= 1 for x, _ in batches)
    plain = Streamed(data.train, data.train.y, size=4, first=lambda x: x, augment="none")
    means, y = (torch.cat(side) for side in zip(*((x.float().flatten(1).mean(1), y) for x, y in plain), strict=True))
    assert (means[y == 0] < 100).all() and (means[y == 1] > 150).all()  # each image with its own label
    more = batches_of(data.train, data.train.y, size=8, view=data.view, steps=5)  # more than a pass
    assert len(more) == 5 and len([*more]) == 5


def test_a_broken_image_is_named(tmp_path):
    folder_of_images(tmp_path / "mine")
    (tmp_path / "mine" / "cat" / "0.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"1 of 20 images cannot be read: cat/0.png \(not an image that Pillow can read\); remove it"):
        load(f"folder:{tmp_path / 'mine'}", img_size=8, workers=0)


def test_view_normalises_each_channel():
    none = Images(torch.zeros(0, 3, 2, 2), torch.zeros(0))
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1), torch.tensor([0.5, 1.0, 2.0]).view(1, 3, 1, 1)
    data = Data("x", 2, (3, 2, 2), none, none, mean, std)
    x = data.view(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8))
    assert x[0, :, 0, 0].tolist() == pytest.approx([1.8, 0.8, 0.35])


@pytest.mark.parametrize("shape, targets", [((4, 28, 28), "targets"), ((4, 32, 32, 3), "targets"), ((4, 3, 32, 32), "labels")])
def test_torchvisions_layouts_become_one(shape, targets, monkeypatch):
    """MNIST's, CIFAR's and SVHN's: (N, C, H, W) in the end, the pixel at row 1, column 2 where it was."""
    content = np.arange(np.prod(shape), dtype=np.int64).reshape(shape).astype(np.uint8)

    def fake(root, download, **which):
        return type("Set", (), {"data": content, targets: [3, 1, 4, 1]})

    monkeypatch.setattr("torchvision.datasets.CIFAR10", fake)
    x, y, _ = readers.torchvision_set("CIFAR10")("data", True)
    assert x.shape == (4, 1 if len(shape) == 3 else 3, *(shape[1:3] if shape[1] != 3 else shape[2:])) and y.tolist() == [3, 1, 4, 1]
    last = content[1, 1, 2] if len(shape) == 3 else content[1, 0, 1, 2] if shape[1] == 3 else content[1, 1, 2, 0]
    assert x[1, 0, 1, 2] == last


@pytest.mark.parametrize("name, words", [
    ("MINST", "did you mean MNIST"), ("folder:/nowhere/at/all", "nowhere"), ("SynDigits", "synth_train_32x32.mat"),
    ("TinyImageNet", "tiny-imagenet-200"), ("imagenet", "imagenet/train"),
])  # fmt: skip
def test_what_is_not_there_is_said(name, words, tmp_path):
    with pytest.raises(UsageError, match=words):
        load(name, tmp_path)


def test_a_failed_download_says_which_file_where_and_what_needs_none(tmp_path, monkeypatch):
    def no_network(*args, **kw):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr("torchvision.datasets.MNIST.download", no_network)
    with pytest.raises(RunError, match=r"MNIST/raw/train-images-idx3-ubyte.gz.*--data_dir.*Digits needs no download"):
        load("mnist", tmp_path)


def test_real_files_if_they_are_beside_the_project(tmp_path):
    import shutil

    from conftest import ROOT

    files = ROOT.parent / "shared" / "data" / "MNIST"
    if not files.exists():
        pytest.skip("no MNIST files beside the project")
    shutil.copytree(files, tmp_path / "MNIST")
    data = load("MNIST", tmp_path)
    assert (len(data.train), len(data.test), data.shape) == (60000, 10000, (1, 32, 32))
    assert data.train.y[:5].tolist() == [5, 0, 4, 1, 9]


# ---- files of built-in data sets


def idx(x):
    """An idx file of unsigned bytes."""
    return struct.pack(f">HBB{x.ndim}I", 0, 8, x.ndim, *x.shape) + x.tobytes()


def mnist_files(folder, name="MNIST", spelled="{}", n=6, packed=True, change=lambda stem, content: content):
    """The four files in `folder`, small; change(stem, content) damages them."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, label in (("train", 1), ("t10k", 7)):
        files = {
            f"{part}-images-idx3-ubyte": np.full((n, 28, 28), label * 10, np.uint8),
            f"{part}-labels-idx1-ubyte": np.full(n, label, np.uint8) + (np.arange(n, dtype=np.uint8) % 2 if part == "train" else 0),
        }
        for stem, x in files.items():
            content = change(stem, idx(x))
            name = spelled.format(stem) + (".gz" if packed else "")
            (folder / name).write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("place", [".", "MNIST", "MNIST/raw"])
@pytest.mark.parametrize("dot", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_are_found_where_people_put_them(place, dot, packed, tmp_path, monkeypatch):
    mnist_files(tmp_path / place, packed=packed)
    if dot:
        for f in list((tmp_path / place).iterdir()):
            f.rename(f.with_name(f.name.replace("-idx", ".idx")))
    data = load("MNIST", tmp_path, img_size=28)
    assert data.train.x.unique().tolist() == [10] and data.test.x.unique().tolist() == [70] and data.test.y.tolist() == [7] * 6
    assert data.train.x.shape == (6, 1, 28, 28) and data.names[7] == "7 - seven"


def test_flat_files_of_another_data_set_are_not_taken(tmp_path, monkeypatch):
    """data/train-images-idx3-ubyte.gz may be MNIST's or FashionMNIST's: torchvision's list of MD5 says whose."""
    import torchvision

    mnist_files(tmp_path)
    md5 = hashlib.md5((tmp_path / "train-labels-idx1-ubyte.gz").read_bytes()).hexdigest()
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "resources", [("train-labels-idx1-ubyte.gz", md5)])
    with pytest.raises(UsageError, match="train-labels-idx1-ubyte.gz is a file of FashionMNIST; put those of MNIST into .*/MNIST/"):
        load("MNIST", tmp_path)
    assert len(load("FashionMNIST", tmp_path).train) == 6


@pytest.mark.parametrize("stem, change, words", [
    ("train-labels-idx1", lambda c: idx(np.zeros(5, np.uint8)), r"train-labels-idx1-ubyte.gz contains 5 labels; expected 6, one for each image"),
    ("train-labels-idx1", lambda c: idx(np.array([0, 1, 2, 3, 4, 10], np.uint8)), r"contains labels from 0 to 10; expected labels from 0 to 9"),
    ("train-images-idx3", lambda c: c[:4][::-1] + c[4:], r"images-idx3-ubyte.gz has the bytes of its header in reverse order .*expected an idx file of images \(header 00000803\)"),
    ("train-images-idx3", lambda c: c[:-10], r"contains 4,694 bytes of images; expected 4,704 as its header \(6, 28, 28\) says"),
    ("train-images-idx3", lambda c: c + b"x", r"contains 4,705 bytes"),
    ("t10k-images-idx3", lambda c: idx(np.zeros(6, np.uint8)), r"t10k-images-idx3-ubyte.gz begins with 00000801; expected an idx file of images"),
    ("train-images-idx3", lambda c: b"", r"begins with nothing"),
    ("train-images-idx3", lambda c: c[:7], r"begins with 00000803; expected"),
    ("train-labels-idx1", lambda c: idx(np.zeros(0, np.uint8)), r"contains no labels; expected one or more"),
    ("train-images-idx3", lambda c: struct.pack(">4I", 0x803, 2**31, 2**31, 4), r"contains no images; expected one or more"),
    ("train-images-idx3", lambda c: struct.pack(">4I", 0x803, 2**31, 2**31, 4) + bytes(8), r"contains 8 bytes of images; expected 18,446,744,073,709,551,616 as its header"),
    ("train-images-idx3", lambda c: struct.pack(">4I", 0x803, 6, 98, 8) + c[16:], r"contains images of 98 x 8 pixels; expected square ones"),
    ("train-labels-idx1", lambda c: idx(np.zeros(6, np.uint8)), r"^MNIST: all 6 training images are of one class \(0\); bring its files anew$"),
])  # fmt: skip
def test_bad_idx_files_are_named_with_what_is_in_them(stem, change, words, tmp_path):
    mnist_files(tmp_path / "MNIST/raw", change=lambda s, c: change(c) if s.startswith(stem) else c)
    with pytest.raises(UsageError, match=words):
        load("MNIST", tmp_path)


def test_idx_files_that_are_no_idx_files(tmp_path):
    raw = tmp_path / "MNIST/raw"
    mnist_files(raw)
    whole = (raw / "train-images-idx3-ubyte.gz").read_bytes()
    for content, words in (
        (b"  <!DOCTYPE html><html>Not found</html>", r"train-images-idx3-ubyte.gz is a web page \(HTML\)"), (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a pointer of Git LFS"), (whole[:40], "is truncated or damaged"),
        (whole[:-12] + b"abcd" + whole[-8:], "is truncated or damaged"),
    ):  # fmt: skip
        (raw / "train-images-idx3-ubyte.gz").write_bytes(content)
        with pytest.raises(UsageError, match=words) as e:
            load("MNIST", tmp_path)
        assert "\n" not in str(e.value) and "expected an idx file of images" in str(e.value)
    (raw / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((6, 28, 28), np.uint8)))
    assert read_idx(raw / "train-images-idx3-ubyte", 0x803, "images").shape == (6, 28, 28)


def made_cifar(folder, monkeypatch):
    """CIFAR-10 in small, with the MD5 that torchvision then expects."""
    import torchvision

    kind, batches = torchvision.datasets.CIFAR10, folder / "cifar-10-batches-py"
    batches.mkdir(parents=True)

    def put(name, content):
        (batches / name).write_bytes(pickle.dumps(content, protocol=2))
        return [name, hashlib.md5((batches / name).read_bytes()).hexdigest()]

    rows = {"data": np.arange(4 * 3072).reshape(4, 3072).astype(np.uint8), "labels": [3, 1, 4, 1]}
    monkeypatch.setattr(kind, "train_list", [put(f"data_batch_{i}", rows) for i in range(1, 6)])
    monkeypatch.setattr(kind, "test_list", [put("test_batch", rows)])
    name, md5 = put("batches.meta", {"label_names": [f"c{k}" for k in range(10)]})
    monkeypatch.setattr(kind, "meta", {"filename": name, "key": "label_names", "md5": md5})

    def no_network(*a, **k):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", no_network)
    return batches


def test_a_damaged_cifar_batch_or_archive_is_named(tmp_path, monkeypatch):
    batches = made_cifar(tmp_path, monkeypatch)
    data = load("CIFAR10", tmp_path)
    assert len(data.train) == 20 and data.train.y[:4].tolist() == [3, 1, 4, 1] and data.train.x[0, 0, 0, :3].tolist() == [0, 1, 2]
    with open(batches / "data_batch_3", "r+b") as f:
        f.truncate(100)
    with pytest.raises(
        UsageError, match=r"data_batch_3 is damaged \(its MD5 differs\); put cifar-10-python.tar.gz into .*, or delete .*py/"
    ):
        load("CIFAR10", tmp_path)
    (batches / "data_batch_3").write_bytes(b"<html>")
    (batches / "test_batch").unlink()
    with pytest.raises(UsageError, match=r"data_batch_3 is a web page \(HTML\).*, and so are test_batch"):
        load("CIFAR10", tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(RunError, match=r"CIFAR10 could not be downloaded or read .*no network"):
        load("CIFAR10", other)
    (other / "cifar-10-python.tar.gz").write_bytes(b"half an archive")
    with pytest.raises(
        UsageError, match=r"cifar-10-python.tar.gz is truncated or damaged \(its MD5 is .*expected c58f30108f718f92721af3b95e74349a"
    ):
        load("CIFAR10", other)
    (other / "cifar-100-python").mkdir()
    with pytest.raises(UsageError, match=r"cifar-100-python/train is missing, and so are test, meta"):
        load("CIFARFS", other)


def made_mat(path, **more):
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 5), dtype=np.uint8)
    content = {"X": x, "y": np.array([[10], [1], [2], [3], [9]])} | more
    savemat(path, {k: v for k, v in content.items() if v is not None})
    return x


def test_mat_files(tmp_path):
    for name, files in (("SVHN", ("train_32x32.mat", "SVHN/test_32x32.mat")), ("SynDigits", ("SynDigits/synth_train_32x32.mat", "SynDigits/synth_test_32x32.mat"))):  # fmt: skip
        x, _ = (made_mat(tmp_path / f) for f in files)
        data = load(name, tmp_path)
        assert data.train.y.tolist() == [0, 1, 2, 3, 9] == data.test.y.tolist() and np.array_equal(
            data.train.x[2], x[..., 2].transpose(2, 0, 1)
        )
    path = tmp_path / "train_32x32.mat"
    for more, words in (
        ({"y": None}, r"train_32x32.mat has no array y \(it has: X\); expected X, uint8"), ({"X": None}, r"has no array X \(it has: y\)"),
        ({"X": np.zeros((32, 32, 3, 4), np.uint8)}, r"contains X, uint8 \(32, 32, 3, 4\), and 5 labels"), ({"y": np.full(5, 30)}, "contains labels from 30 to 30"),
        ({"X": np.zeros((32, 32, 3, 5))}, "contains X, float64"), ({"X": np.zeros((0, 0, 3, 5), np.uint8)}, "contains X, uint8"), ({"X": np.zeros((64, 16, 3, 5), np.uint8)}, "contains X, uint8"),
        ({"y": np.full(5, np.nan)}, "contains labels from nan to nan; expected labels from 0 to 10"), ({"y": np.array([10, 20, 1, 1, 1])}, "contains labels from 1 to 20"),
        ({"y": np.full(5, 1.5)}, "contains labels from 1.5 to 1.5"), ({"y": np.array([1, "a", 2, 3, 4], object)}, "contains 5 labels of type object"), ({"y": {"a": 1}}, "contains X, uint8 .32, 32, 3, 5., and 1 labels"),
    ):  # fmt: skip
        made_mat(path, **more)
        with pytest.raises(UsageError, match=words):
            load("SVHN", tmp_path)
    whole = path.read_bytes()
    for content, words in ((whole[:300], "is not a readable .mat file"), (b"<html></html>", "is a web page"), (b"", "is empty")):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=f"train_32x32.mat {words}.*expected X, uint8"):
            load("SVHN", tmp_path)


def test_usps_files(tmp_path):
    line = "{} " + " ".join(f"{i}:{-1 if i % 2 else 1}" for i in range(1, 257)) + "\n"
    for name in ("usps.bz2", "usps.t.bz2"):
        (tmp_path / name).write_bytes(bz2.compress("".join(line.format(k) for k in (1, 10, 5)).encode()))
    data = load("USPS", tmp_path, img_size=16)
    assert data.train.y.tolist() == [0, 9, 4] and data.train.x[0, 0, 0, :2].tolist() == [0, 255]
    for content, words in ((b"<html></html>", "is a web page"), (bz2.compress(line.format(1).encode())[:50], "is truncated"), (bz2.compress(b"1 1:0\n"), "has 1 values in line 1")):  # fmt: skip
        (tmp_path / "usps.bz2").write_bytes(content)
        with pytest.raises(UsageError, match=f"usps.bz2 {words}.*expected USPS in LIBSVM's format"):
            load("USPS", tmp_path)
    first = line.format(1).split()
    for rows, words in (
        ([first[:-1], [*first, "257:0"]], "has 255 values in line 1"), ([[first[0], "1:nan", *first[2:]]], "contains 1 images, or values outside of"), ([[first[0], "1:1.5", *first[2:]]], "values outside of"),
        ([["0", *first[1:]]], "contains labels from -1.0 to -1.0"), ([["1.5", *first[1:]]], "contains labels from 0.5"), ([[first[0], *first[2:], "1:0"]], "or other numbers before them"), ([[]], "damaged after line 0"),
    ):  # fmt: skip
        (tmp_path / "usps.bz2").write_bytes(bz2.compress("".join(" ".join(row) + "\n" for row in rows).encode()))
        with pytest.raises(UsageError, match=f"usps.bz2 .*{words}"):
            load("USPS", tmp_path)


def test_tinyimagenet(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    for k, wnid in enumerate(("n02", "n01")):
        (root / "train" / wnid / "images").mkdir(parents=True)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("x")
        for i in range(3):
            Image.new("RGB", (64, 64), (100 * k,) * 3).save(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG")
    (root / "val" / "images").mkdir(parents=True)
    for i, value in enumerate((0, 100, 0)):
        Image.new("RGB", (64, 64), (value,) * 3).save(root / "val" / "images" / f"val_{i}.JPEG")
    rows = root / "val" / "val_annotations.txt"
    rows.write_text("val_0.JPEG\tn02\t0\t0\nval_1.JPEG\tn01\t0\t0\nval_2.JPEG\tn02\t0\t0\n")
    data = load("TinyImageNet", tmp_path, workers=0)
    assert data.names == ["n01", "n02"] and data.test.y.tolist() == [1, 0, 1] and data.test.x[:, 0, 0, 0].tolist() == [0, 100, 0]
    assert data.train.y.tolist() == [0, 0, 0, 1, 1, 1] and data.train.paths is None and data.classes == 200 and len(data.test.hash) == 12
    rows.write_text("val_0.JPEG\tn02\nval_1.JPEG\tn09\n")
    with pytest.raises(UsageError, match=r"val_annotations.txt names 1 unknown classes: n09; expected the 2 classes of train/"):
        load("TinyImageNet", tmp_path)
    rows.write_text("<html>no such page</html>")
    with pytest.raises(UsageError, match=r"val_annotations.txt is a web page .*expected lines of image name, tab, class"):
        load("TinyImageNet", tmp_path)
    rows.write_text("val_0.JPEG\tn02\nval_9.JPEG\tn01\n")
    with pytest.raises(RunError, match=r"1 of 8 images cannot be read: val/images/val_9.JPEG \(no such file\)"):
        load("TinyImageNet", tmp_path)
    assert len(load("TinyImageNet", tmp_path, skip_broken=True).test) == 1


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_mini_imagenet_caches(protocol, tmp_path):
    root = tmp_path / "miniImageNet"
    root.mkdir()

    def put(part, content):
        (root / f"mini-imagenet-cache-{part}.pkl").write_bytes(pickle.dumps(content, protocol=protocol))

    for part, n in (("train", 3), ("val", 2), ("test", 2)):
        y = np.arange(20 * n) % n  # the classes alternate
        x = np.broadcast_to(y.astype(np.uint8)[:, None, None, None] * 10, (20 * n, 84, 84, 3)).copy()
        put(part, {"image_data": x, "class_dict": {f"n{n - k}": [int(i) for i in np.flatnonzero(y == k)] for k in range(n)}})
    data = load("miniImageNet", tmp_path)
    assert (len(data.train), len(data.test), data.classes) == (54, 6, 3)
    assert torch.equal(data.train.x[:, 0, 0, 0].long(), 20 - 10 * data.train.y)  # n1 is the third class of the file
    assert novel("miniImageNet", "test", tmp_path).y.bincount().tolist() == [20, 20]
    for content, words in (
        ({"image_data": x}, r"mini-imagenet-cache-test.pkl contains image_data; expected a pickle of a dictionary with image_data and class_dict"),
        ({"image_data": x, "class_dict": {"a": [0, 99]}}, "has a class_dict that does not fit"), ([1], "contains list; expected"),
        ({"image_data": x, "class_dict": {"a": list(range(39))}}, "has a class_dict that does not fit: 39 rows from 0 to 38"),
        ({"image_data": x.astype(float), "class_dict": {"a": list(range(40))}}, "contains images float64"),
        ({"image_data": x, "class_dict": {"a": list(range(20)), "b": list(range(-20, 0))}}, "does not fit: 40 rows from -20 to 19"), ({"image_data": x, "class_dict": {"a": list(range(40)), "b": [0]}}, "41 rows from 0 to 39, 40 of them different"),
        ({"image_data": x, "class_dict": {"a": list(range(20)), 3: list(range(20, 40))}}, "contains labels of type int, str"), ({"image_data": x, "class_dict": {"a": None}}, "a dict, or lists no images"),
        ({"image_data": x, "class_dict": [1]}, "a class_dict that is a list"), ({"image_data": x, "class_dict": {"a": list(range(40)), "b": []}}, "lists no images"), ({"image_data": [x[0], x[0, :3]], "class_dict": {}}, r"contains images float64 \(0,\)"),
        ({"image_data": x[:, :, :7], "class_dict": {"a": list(range(40))}}, r"contains images uint8 \(40, 84, 7, 3\)"),
    ):  # fmt: skip
        put("test", content)
        with pytest.raises(UsageError, match=words):
            novel("miniImageNet", "test", tmp_path)
    whole = (root / "mini-imagenet-cache-val.pkl").read_bytes()
    for content, words in ((whole[: len(whole) // 2], "is truncated or no pickle"), (b"<html>", "is a web page"), (b"", "is empty")):
        (root / "mini-imagenet-cache-val.pkl").write_bytes(content)
        with pytest.raises(UsageError, match=f"cache-val.pkl {words}.*expected a pickle"):
            novel("miniImageNet", "val", tmp_path)
    (root / "mini-imagenet-cache-val.pkl").unlink()
    (root / "miniImageNet_category_split_val.pickle").write_bytes(whole[:200])
    with pytest.raises(UsageError, match=r"split_val.pickle is truncated or no pickle .*with data and labels"):
        novel("miniImageNet", "val", tmp_path)


@pytest.mark.parametrize("labels, words", [
    ([0] * 19, "contains images uint8 .20, 84, 84, 3. and 19 labels"), ([0] * 19 + ["a"], "contains labels of type int, str; expected a list of names, or of integers"), ([0.5] * 20, "type float"),
    ([[1]] * 20, "type list"), (None, "type NoneType"), ("a" * 20, "type str"), ([], "type none"),
])  # fmt: skip
def test_labels_of_a_mini_imagenet_pickle(labels, words, tmp_path):
    (tmp_path / "miniImageNet").mkdir()
    path = tmp_path / "miniImageNet/miniImageNet_category_split_test.pickle"
    path.write_bytes(pickle.dumps({"data": np.zeros((20, 84, 84, 3), np.uint8), "labels": labels}))
    with pytest.raises(UsageError, match=f"split_test.pickle .*{words}"):
        novel("miniImageNet", "test", tmp_path)
    path.write_bytes(pickle.dumps({"data": np.zeros((20, 84, 84, 3), np.uint8), "labels": np.arange(20) // 10}))
    assert novel("miniImageNet", "test", tmp_path).y.bincount().tolist() == [10, 10]


@pytest.mark.parametrize("text, words", [
    (b"filename,label\n", "has 0 rows and the columns filename, label"), (b"filename,label\na\0.png,a\n", "has an empty value or control characters in line 2"), (b"filename,label\na.png\n", "in line 2"),
    (b"filename,label\na.png,\n", "in line 2"), ("filename,label\né.png,a\n".encode("latin1"), "cannot be read .'utf-8' codec"), (b"filename,label\n" + b"x" * 200_000 + b",a\n", "cannot be read .field larger"),
    (b"filename,label\n\"a.png,a\n" + b"b.png,b\n" * 20_000, "cannot be read|in line"),
])  # fmt: skip
def test_a_damaged_csv_file_is_named(text, words, tmp_path):
    (tmp_path / "miniImageNet").mkdir()
    (tmp_path / "miniImageNet/test.csv").write_bytes(text)
    with pytest.raises(UsageError, match=f"miniImageNet/test.csv .*({words})"):
        novel("miniImageNet", "test", tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "link to nothing", "device", "folder"])
@pytest.mark.parametrize("name, file", [
    ("MNIST", "MNIST/raw/train-images-idx3-ubyte"), ("MNIST", "train-labels-idx1-ubyte.gz"), ("USPS", "usps.bz2"), ("SVHN", "train_32x32.mat"), ("SynDigits", "SynDigits/synth_train_32x32.mat"),
    ("CIFAR10", "cifar-10-python.tar.gz"), ("CIFAR100", "cifar-100-python/train"), ("miniImageNet", "miniImageNet/miniImageNet_category_split_train_phase_train.pickle"),
    ("miniImageNet", "miniImageNet/mini-imagenet-cache-train.pkl"), ("miniImageNet", "miniImageNet/train.csv"),
])  # fmt: skip
def test_what_is_no_file_is_named_and_not_waited_for(name, file, kind, tmp_path):
    import os

    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    make = {
        "pipe": os.mkfifo,
        "link to nothing": lambda p: p.symlink_to("/nowhere/at/all"),
        "device": lambda p: p.symlink_to("/dev/zero"),
        "folder": os.mkdir,
    }
    make[kind](path)
    words = "is a link to /nowhere/at/all, which does not exist" if kind == "link to nothing" else f"is a {kind}, not a file"
    with pytest.raises(UsageError, match=f"{file} {words}"):
        load(name, tmp_path)


def test_a_held_out_set_leaves_each_class_an_image():
    """0.9 of two images is both: the class would be unknown to the student."""
    y = torch.tensor([0] * 20 + [1] * 2)
    images = Images(torch.zeros(22, 1, 4, 4, dtype=torch.uint8), y)
    with pytest.raises(UsageError, match=r"--val 0.9 leaves no training image of 1 classes \(one has 2 images\); use a smaller --val"):
        images.split(0.9, 1, "val")
    assert len(images.split(0.5, 1, "val")[0]) == 11 and len(images.split(0.9, 1, "private")[0]) == 20


def test_a_data_folder_that_is_none(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="--data_dir .*file is not a folder; give the folder of the data sets"):
        load("MNIST", tmp_path / "file")
    with pytest.raises(UsageError, match="folder:: no such folder"):
        load("folder:", tmp_path)
    with pytest.raises(UsageError, match="folder:~nobody_of_this_name/x: no such folder"):
        load("folder:~nobody_of_this_name/x", tmp_path)
    with pytest.raises(UsageError, match="folder:/dev/null is no folder; give the folder"):
        load("folder:/dev/null", tmp_path)


def test_resizing_in_small_chunks_changes_no_pixel():
    x = torch.randint(0, 256, (66, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resize(x, 1024)[65], resize(x[65:], 1024)[0])  # the second chunk


@pytest.mark.parametrize("n", [3, 0])
def test_images_of_files_and_their_source_become_grey_alike(n):
    from common.datasets.images import Images
    from common.datasets.pictures import exact_grey

    x, source = (torch.randint(256, (n, 3, s, s), dtype=torch.uint8) for s in (8, 12))
    made = Images(x, torch.zeros(n, dtype=torch.long), paths=["a"] * n, source=source).in_channels(1)
    assert made.x.shape == (n, 1, 8, 8) and torch.equal(made.source, exact_grey(source) if n else source[:, :1])
    assert not n or torch.equal(made.x, exact_grey(x))
