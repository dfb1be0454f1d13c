"""Data sets: tensors, balanced draws, batches, augmentation; folders; and what is said when something is missing."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from common import datasets
from common.augment import crop_flip
from common.batches import Batches, Draw, Streamed, batches_of
from common.datasets import Data, Images, load, readers
from common.datasets.images import resize, split
from common.utils import RunError, UsageError


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
    assert (data.classes, data.shape, len(data.train), len(data.test)) == (2, (3, 8, 8), 16, 4)
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
    assert len(batches) == 4 and all(x.shape == (4, 3, 8, 8) and x.abs().max() <= 1 for x, _ in batches)
    plain = Streamed(data.train, data.train.y, size=4, first=lambda x: x, augment="none")
    means, y = (torch.cat(side) for side in zip(*((x.float().flatten(1).mean(1), y) for x, y in plain), strict=True))
    assert (means[y == 0] < 100).all() and (means[y == 1] > 150).all()  # each image with its own label
    more = batches_of(data.train, data.train.y, size=8, view=data.view, steps=5)  # of 2 a pass
    assert len(more) == 5 and len([*more]) == 5


def test_a_broken_image_is_named(tmp_path):
    folder_of_images(tmp_path / "mine")
    (tmp_path / "mine" / "cat" / "0.png").write_bytes(b"no image")
    with pytest.raises((RunError, UsageError), match="0.png is not a readable image"):
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
