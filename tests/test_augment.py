"""Augmentation of whole batches, against the library's and Pillow's of single images; what evaluation, schedule and optimizer make of timm's."""

from common.cli import UsageError

import DB3KD
import GDA
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageOps
from scipy.stats import kstest
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as V

from common import augment
from common.augment import APPLY, BLENDED, OPERATIONS, POLICY, RAND, auto_augment, mixup, rand_augment, random_boxes, resized_crop
from common.blackbox import Remembered
from common.datasets import Images, load, zoomed
from common.options import Base, TransferOptions, parse
from common.schedule import lr_at, optimizer_of


@pytest.fixture
def x():
    torch.manual_seed(0)
    return F.interpolate(torch.rand(6, 3, 8, 8), 32, mode="bicubic").clamp(0, 1).mul(255).round() / 255


def pil(x):
    return Image.fromarray((255 * x).round().byte().permute(1, 2, 0).numpy())


def back(image):
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255


def test_a_crop_of_everything_changes_nothing_and_a_mirror_twice_neither(x):
    whole, no = torch.tensor([[0] * 6, [0] * 6, [32] * 6, [32] * 6]), torch.zeros(6, dtype=torch.bool)
    assert torch.allclose(resized_crop(x, whole, no, no), x, atol=1e-6) and torch.allclose(resized_crop(x, whole, no, ~no), x, atol=1e-6)
    mirrored = resized_crop(x, whole, ~no, no)
    assert torch.allclose(mirrored, x.flip(3), atol=1e-6) and torch.allclose(resized_crop(mirrored, whole, ~no, no), x, atol=1e-6)


@pytest.mark.parametrize("smooth, kind", [(False, Image.BILINEAR), (True, Image.BICUBIC)])
def test_a_crop_is_pillows(x, smooth, kind):
    box = torch.tensor([[3, 0, 10, 31, 5, 8], [0, 7, 12, 31, 5, 2], [20, 32, 9, 1, 17, 24], [17, 11, 20, 1, 27, 30]])
    got = resized_crop(x, box, torch.zeros(6, dtype=torch.bool), torch.full((6,), smooth))
    for i, (top, left, h, w) in enumerate(box.T.tolist()):
        one = pil(x[i]).crop((left, top, left + w, top + h)).resize((32, 32), kind)
        assert (got[i] - back(one)).abs().max() * 255 < 3  # Pillow rounds twice


def test_a_crop_of_a_larger_image_is_the_librarys_and_pillows():
    """From 84 to 80 pixels: larger parts are antialiased, smaller ones are enlarged; one of 80 x 80 pixels is copied."""
    torch.manual_seed(0)
    x = F.interpolate(torch.rand(6, 3, 21, 21), 84, mode="bicubic").clamp(0, 1).mul(255).round() / 255
    box = torch.tensor([[0, 0, 2, 33, 1, 4], [0, 40, 1, 20, 3, 0], [84, 82, 81, 25, 80, 80], [84, 44, 83, 33, 80, 80]])
    mirrored = torch.tensor([False, False, True, False, False, True])
    got = resized_crop(x, box, mirrored, torch.zeros(6, dtype=torch.bool), 80)
    assert got.shape == (6, 3, 80, 80)
    assert torch.allclose(got[4], x[4, :, 1:81, 3:83], atol=1e-6) and torch.allclose(got[5], x[5, :, 4:84, :80].flip(2), atol=1e-6)
    for i, (top, left, h, w) in enumerate(box.T.tolist()):
        one = got[i].flip(2) if mirrored[i] else got[i]
        assert torch.allclose(one, V.resized_crop(x[i], top, left, h, w, [80, 80], antialias=True), atol=1e-5)
        theirs = back(pil(x[i]).crop((left, top, left + w, top + h)).resize((80, 80), Image.BILINEAR))
        assert (one - theirs).abs().max() * 255 < 3
    assert (resized_crop(torch.full((1, 1, 84, 84), 0.3), size=80) - 0.3).abs().max() < 1e-6


def test_crops_are_drawn_as_the_library_draws_them():
    torch.manual_seed(0)
    top, left, h, w = random_boxes(4000, 32)
    assert ((top >= 0) & (top + h <= 32) & (left >= 0) & (left + w <= 32) & (h > 0) & (w > 0)).all()
    crop, image = v2.RandomResizedCrop(32), [torch.empty(3, 32, 32)]
    drawn = [crop.make_params(image) for _ in range(2000)]
    theirs = torch.tensor([[d[k] for d in drawn] for k in ("top", "left", "height", "width")])
    for mine, other in ((h * w, theirs[2] * theirs[3]), (h / w, theirs[2] / theirs[3]), (top, theirs[0]), (left, theirs[1])):
        assert kstest(mine.double().numpy(), other.double().numpy()).pvalue > 1e-3


def test_the_policy_is_the_librarys():
    theirs = v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET)._policies
    assert len(POLICY) == 25 == len(theirs)
    for mine, ((a, p, la), (b, q, lb)) in zip(POLICY, theirs, strict=True):
        assert (mine[0], float(mine[1]), mine[3], float(mine[4])) == (a, p, b, q)
        for name, level, other in ((a, mine[2], la), (b, mine[5], lb)):
            assert other is None or float(level) == other or name in ("Invert", "Equalize", "AutoContrast")
    assert set(OPERATIONS) | set(RAND) == set(APPLY)


@pytest.mark.parametrize(
    "name, part, one",
    [
        ("Invert", 0.4, ImageOps.invert),
        ("AutoContrast", 0.5, ImageOps.autocontrast),
        ("Equalize", 0.5, ImageOps.equalize),
        ("Solarize", 0.5, lambda image: ImageOps.solarize(image, 128)),
        ("Posterize", 0.5, lambda image: ImageOps.posterize(image, 6)),
        ("Brightness", 0.2, lambda image: ImageEnhance.Brightness(image).enhance(0.1 + 1.8 * 0.2)),
        ("Color", 0.8, lambda image: ImageEnhance.Color(image).enhance(0.1 + 1.8 * 0.8)),
        ("Contrast", 0.8, lambda image: ImageEnhance.Contrast(image).enhance(0.1 + 1.8 * 0.8)),
        ("Sharpness", 0.7, lambda image: ImageEnhance.Sharpness(image).enhance(0.1 + 1.8 * 0.7)),
    ],
)
def test_operations_are_pillows(name, part, one, x):
    got = APPLY[name](x, torch.full((6,), part), torch.ones(6))
    for mine, image in zip(got, x, strict=True):
        gap = (mine - back(one(pil(image)))).abs() * 255
        assert gap.max() <= (4 if name in ("Equalize", "AutoContrast") else 2.1)  # Pillow rounds; its histograms end otherwise


def test_rotation_and_shear_are_the_librarys(x):
    fill = [v * 1.0 for v in augment.FILL]
    got = APPLY["Rotate"](x, torch.full((6,), 0.9), torch.ones(6))
    assert (got - V.rotate(x, 27.0, V.InterpolationMode.BILINEAR, fill=fill)).abs().median() < 1e-5
    got = APPLY["ShearX"](x, torch.full((6,), 0.5), torch.ones(6))
    theirs = V.affine(
        x, 0.0, [0, 0], 1.0, [float(np.degrees(np.arctan(0.15))), 0.0], V.InterpolationMode.BILINEAR, fill=fill, center=[0, 0]
    )
    assert (got - theirs).abs().median() < 1e-5


def test_autoaugment_changes_each_image_in_its_own_way(x):
    torch.manual_seed(0)
    many = x[:1].expand(200, -1, -1, -1)
    got = auto_augment(many)
    assert got.shape == many.shape and got.min() >= 0 and got.max() <= 1 and got.isfinite().all()
    distinct = len({row.numpy().tobytes() for row in got})
    assert 60 < distinct <= 200  # its levels have noise; some pairs do nothing
    assert auto_augment(x[:, :1]).shape == (6, 1, 32, 32)


def test_shifts_are_whole_pixels_of_the_image(x):
    fill = torch.tensor(augment.FILL).view(1, 3, 1, 1)
    for name, dim in (("TranslateX", 3), ("TranslateY", 2)):
        got = APPLY[name](x, torch.full((6,), 10 / 32 / 0.3), torch.ones(6))
        assert torch.allclose(got.narrow(dim, 0, 22), x.narrow(dim, 10, 22), atol=1e-5)
        assert torch.allclose(got.narrow(dim, 22, 10), fill.expand_as(got.narrow(dim, 22, 10)), atol=1e-5)
    turned = APPLY["ShearX"](x.transpose(2, 3), torch.full((6,), 0.5), torch.ones(6)).transpose(2, 3)
    assert torch.allclose(APPLY["ShearY"](x, torch.full((6,), 0.5), torch.ones(6)), turned, atol=1e-5)


def test_randaugment_applies_two_operations_of_its_list_and_a_grey_square(x, monkeypatch):
    torch.manual_seed(0)
    many, used = x[:1].expand(300, -1, -1, -1), []
    got = rand_augment(many)
    assert got.shape == many.shape and got.min() >= 0 and got.max() <= 1 and len({row.numpy().tobytes() for row in got}) > 250
    assert rand_augment(x[:, :1]).shape == (6, 1, 32, 32)
    for name in APPLY:
        monkeypatch.setitem(APPLY, name, lambda x, strength, signs, name=name: used.extend([(name, v.item()) for v in strength]) or x)
    black = torch.zeros(300, 3, 64, 64)
    grey = rand_augment(black) > 0
    assert {name for name, _ in used} == set(RAND) and len(used) == 600
    factors = [0.1 + 1.8 * v for name, v in used if name in BLENDED]
    assert min(factors) > 0.049 and max(factors) < 0.951 and all(0 <= v <= 1 for name, v in used if name not in BLENDED)
    sides = grey.any(3).sum(2)[:, 0], grey.any(2).sum(2)[:, 0]
    assert (
        max(s.max() for s in sides) <= 33 and 0.1 < grey[:, 0].float().mean() / (1 / 12) < 1.1
    )  # side^2 is 1/12 on average, less the edges


def test_mixup():
    torch.manual_seed(0)
    x, y = torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 2, 2])
    mixed, labels = mixup(x, y, 3, 0.2)
    lam = labels[0, 0].item()
    assert torch.allclose(mixed, lam * x + (1 - lam) * x.flip(0)) and torch.allclose(labels.sum(1), torch.ones(4))
    assert labels[0].tolist() == pytest.approx([lam, 0, 1 - lam]) and labels[2].tolist() == pytest.approx([0, 1 - lam, lam])


def test_a_view_of_any_kind_is_normalised_and_countless_ones_are_not_numbered():
    data = load("Digits")
    for name in ("resized_crop", "auto"):
        x = data.view(data.train.x[:50], name)
        assert x.shape == (50, 1, 8, 8) and x.min() >= -1 and x.max() <= 1 and data.views(name) == 0


def test_a_view_is_as_sharp_where_nets_compute_in_bfloat16():
    data = load("Digits")
    for name in ("resized_crop", "auto"):
        views = []
        for enabled in (False, True):
            torch.manual_seed(0)
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                views.append(data.view(data.train.x[:50], name))
        assert torch.equal(*views) and views[0].dtype == torch.float32


def test_zoomed_images_are_enlarged_and_cut(x):
    one = zoomed(Images((255 * x).byte(), torch.zeros(6))).x
    theirs = V.center_crop(V.resize((255 * x).byte(), [36], antialias=True), [32])
    assert one.shape == x.shape and (one.int() - theirs.int()).abs().max() <= 1


# ---- timm's schedule and optimizer


def test_the_schedule_of_timm():
    args = parse(Base, "--schedule cosine --lr 0.2 --lr_warmup 10 --lr_min 2e-3 --epochs 240".split())
    known = {0: 1e-4, 5: 0.10005, 9: 0.18001, 10: 0.199153, 120: 0.101, 239: 0.002008}
    assert [lr_at(args, e + 1) for e in known] == pytest.approx([*known.values()], abs=1e-6)


def test_decay_of_weights_alone_and_nesterov():
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    groups = optimizer_of(parse(Base, ["--decay", "weights", "--nesterov"]), net).param_groups
    assert [g["weight_decay"] for g in groups] == [5e-4, 0.0] and all(g["nesterov"] for g in groups)
    assert [[p.dim() for p in g["params"]] for g in groups] == [[4], [1, 1, 1]]
    (one,) = optimizer_of(parse(Base, []), net).param_groups
    assert len(one["params"]) == 4 and not one["nesterov"]


# ---- answers to views


def test_remembered_answers_are_those_of_the_view():
    asked = []

    def ask(x):
        asked.append(len(x))
        return x.flatten(1).sum(1, keepdim=True).expand(-1, 3)

    kept = Remembered(ask, 4, 9, 3, "cpu")
    x = torch.rand(3, 1, 2, 2)
    i, which = torch.tensor([0, 2, 0]), torch.tensor([1, 1, 4])
    first = kept(i, which, x)
    assert torch.equal(first, x.flatten(1).sum(1, keepdim=True).expand(-1, 3)) and torch.equal(kept(i, which, x), first) and asked == [3]
    kept(torch.tensor([0, 3]), torch.tensor([1, 1]), x[:2])
    assert asked == [3, 1]


def test_cache_goes_with_views_that_can_be_counted():
    with pytest.raises(UsageError, match="use --augment crop or crop_flip, not resized_crop"):
        parse(TransferOptions, ["--cache", "--augment", "resized_crop"])
    for Args in (DB3KD.Args, GDA.Args):  # whatever else they check
        with pytest.raises(UsageError, match="use --augment crop or crop_flip, not none"):
            parse(Args, ["--cache"])


def test_a_run_with_cached_answers_asks_each_view_once(script):
    given = {"epochs": 40, "lamda": 0.05, "augment": "crop", "eval_every": 40}
    plain, cached = (script("KD", **given, cache=c, tag=str(c)) for c in (False, True))
    assert plain["queries"] == 40 * plain["images"] and cached["queries"] <= 9 * plain["images"]
    result = script("GDA", **given, cache=True, weights_init="torch")
    assert result["queries"] == cached["queries"] > 8 * plain["images"] and result["log"]["kd"] > 0
