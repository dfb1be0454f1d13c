"""What stands beside accuracy, against closed forms and naive loops."""

import itertools
import random

import pytest
import torch

from common.measures import calibration_error, copying, nearest
from common.significance import holm, paired, seeds_needed


def test_calibration_error_against_a_loop_and_closed_forms():
    g = torch.Generator().manual_seed(0)
    p, y = torch.randn(500, 4, generator=g).softmax(1), torch.randint(4, (500,), generator=g)
    top, said = p.max(1)
    naive = 0
    for low in range(15):
        mine = (top > low / 15) & (top <= (low + 1) / 15)
        if mine.any():
            naive += mine.sum().item() / 500 * abs((said == y)[mine].double().mean().item() - top[mine].double().mean().item())
    assert calibration_error(p, y).item() == pytest.approx(naive, abs=1e-6)
    sure = torch.eye(2)[torch.zeros(10, dtype=torch.long)]
    assert calibration_error(sure, torch.zeros(10, dtype=torch.long)).item() == 0
    assert calibration_error(sure, torch.arange(10) % 2).item() == pytest.approx(0.5)


def test_nearest_against_all_pairs():
    g = torch.Generator().manual_seed(0)
    x, y = torch.rand(1500, 5, generator=g), torch.rand(70, 5, generator=g)
    d, index = nearest(x, y)
    every = (x[:, None] - y[None]).norm(dim=2)
    assert torch.allclose(d, every.amin(1), atol=1e-5) and torch.equal(index, every.argmin(1))
    own, index = nearest(x, x, same=True)
    every = (x[:, None] - x[None]).norm(dim=2) + torch.eye(1500) * 9
    assert torch.allclose(own, every.amin(1), atol=1e-5) and (index != torch.arange(1500)).all()


def test_a_generator_that_copies_is_found_out(tmp_path):
    g = torch.Generator().manual_seed(0)
    private = torch.rand(200, 1, 8, 8, generator=g)
    fresh = torch.rand(100, 1, 8, 8, generator=g)
    honest = copying(fresh, private, tmp_path / "honest.png")
    thief = copying(private[:100] + 0.01, private, tmp_path / "thief.png")
    assert honest["closer"] < 0.05 and thief["closer"] == 1 and thief["synthetic_median"] == pytest.approx(0.01 * 8, rel=1e-2)
    assert honest["private_median"] == pytest.approx(honest["synthetic_median"], rel=0.05)
    from PIL import Image

    assert Image.open(tmp_path / "thief.png").size[0] > 600


@pytest.mark.parametrize("a, b", [([1, 2, 3.5, 4], [0, 1.5, 3, 2]), ([5, 1, 2], [4, 2, 2.5]), ([3, 3], [3, 3])])
def test_paired_against_every_flip_of_signs(a, b):
    d = [x - y for x, y in zip(a, b, strict=True)]
    seen = [abs(sum(s * v for s, v in zip(signs, d, strict=True))) for signs in itertools.product((1, -1), repeat=len(d))]
    exact = sum(v >= abs(sum(d)) - 1e-12 for v in seen) / len(seen)
    mean, interval, p = paired(a, b)
    assert mean == pytest.approx(sum(d) / len(d)) and p == pytest.approx(exact) and interval[0] <= mean <= interval[1]


@pytest.mark.parametrize("images", [500, 360, 10_000])
def test_equal_differences_of_accuracies_are_ties(images):
    """The oracle counts in whole images; the accuracies are those of a result (92.2 is no binary number) or of a file with four decimals."""
    rng = random.Random(0)
    for digits in [14, 4] * 20:
        b = [rng.randint(images * 9 // 10, images * 19 // 20) for _ in range(rng.choice([5, 8]))]
        a = [x + rng.randint(-1, 4) for x in b]
        d = [x - y for x, y in zip(a, b, strict=True)]
        seen = [abs(sum(s * v for s, v in zip(signs, d, strict=True))) for signs in itertools.product((1, -1), repeat=len(d))]
        p = paired(*([round(100 * x / images, digits) for x in hits] for hits in (a, b)))[2]
        assert p == sum(v >= abs(sum(d)) for v in seen) / len(seen), (a, b)
    hits = [461, 457, 457, 452, 456, 456, 464, 461], [459, 456, 456, 453, 456, 455, 463, 460]
    assert paired(*([100 * h / 500 for h in of] for of in hits))[2] == 14 / 128  # the row was bold with 0.031


def test_paired_interval_is_students():
    """n = 4, differences 1, 2, 3, 4: 2.5 ± 3.1824 * 1.2910 / 2."""
    mean, (low, high), p = paired([1, 2, 3, 4], [0, 0, 0, 0])
    assert (mean, low, high) == pytest.approx((2.5, 0.44574, 4.55426), abs=1e-4) and p == pytest.approx(2 / 16)
    assert paired([1.0], [0.0])[1:] == (None, 1.0)


def test_holm_and_the_seeds_it_takes():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []
    assert seeds_needed(1) == 6 and 2 / 2**6 <= 0.05 < 2 / 2**5
    assert seeds_needed(8) == 9 and 2 / 2**9 <= 0.05 / 8 < 2 / 2**8
