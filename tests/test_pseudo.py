"""Pseudo samples against closed forms (the DB3KD card's O13), and where they start from."""

from common.cli import RunError

import math
from types import SimpleNamespace

import pytest
import torch

from common.db3kd.pseudo import PseudoSamples, draw_initial_samples, draw_noise, draw_smooth_noise, save_snapshots

ARGS = SimpleNamespace(candidates=2, step_queries=60, lbd_step=0.5, seed=0)


def samples(label, x, s=None, **options):
    x = torch.tensor(x, dtype=torch.double)
    s = label(x) if s is None else s
    return PseudoSamples(x, s, label, torch.arange(len(x)), [("arc", None)], SimpleNamespace(**vars(ARGS) | options))


def test_each_step_in_a_half_space_raises_the_distance_by_its_length():
    half = lambda x: (x[:, 0] + x[:, 1] > 0.6).long()  # noqa: E731
    found = samples(half, [[0.35, 0.4], [0.1, 0.1]], lbd_step=0.05)
    before, start = found.r.clone(), found.x.clone()
    assert before[0].item() == pytest.approx(0.15 / math.sqrt(2), rel=1e-2)
    found.move(1)
    assert (found.r - before).tolist() == pytest.approx([0.05, 0.05], rel=0.02)
    assert (found.x - start).norm(dim=1).tolist() == pytest.approx([0.05, 0.05], rel=1e-6)


def test_a_slab_ends_in_its_middle():
    """.2 <= x <= .8 from .45: the first step of .5 ends at .70, nearer to the other face (.10); then each turns back and is halved."""
    slab = lambda x: ((x[:, 0] >= 0.2) & (x[:, 0] <= 0.8)).long()  # noqa: E731
    found = samples(slab, [[0.45], [0.1], [0.95]])
    for number in range(1, 31):
        found.move(number)
    assert found.x[0].item() == pytest.approx(0.5, abs=2e-3) and found.r[0].item() == pytest.approx(0.3, abs=2e-3)
    assert all(label == 1 for label in slab(found.x[:1]))


def test_a_ball_ends_near_its_centre():
    ball = lambda x: ((x - 0.5).norm(dim=1) <= 0.4).long()  # noqa: E731
    found = samples(ball, [[0.65, 0.55], [0.35, 0.4], [0.05, 0.05], [0.95, 0.9]], step_queries=100)
    for number in range(1, 61):
        found.move(number)
    assert (ball(found.x[:2]) == 1).all() and (found.x[:2] - 0.5).norm(dim=1).max() < 0.05 and found.r[:2].min() > 0.35


def test_distances_grow_and_the_class_is_kept():
    g = torch.Generator().manual_seed(0)
    c = torch.rand(4, 12, generator=g, dtype=torch.double)
    label = lambda x: torch.cdist(x, c).argmin(1)  # noqa: E731
    x = torch.rand(40, 12, generator=g, dtype=torch.double)
    found, s = samples(label, x.tolist()), label(x)
    before = found.r.clone()
    for number in range(1, 21):
        found.move(number)
        assert torch.equal(label(found.x), s) and found.x.min() >= 0 and found.x.max() <= 1
    exact = ((torch.cdist(found.x, c) ** 2 - torch.cdist(found.x, c).amin(1, keepdim=True) ** 2) / 2 / torch.cdist(c[s], c)).nan_to_num(9)
    exact[torch.arange(40), s] = 9
    assert found.r.mean() > 1.3 * before.mean() and (found.r >= exact.amin(1) - 1e-9).all()  # a found distance is an upper bound


def test_noise_is_in_range_and_of_two_kinds():
    g = torch.Generator().manual_seed(0)
    rough, slow = draw_noise(50, (1, 16, 16), g).view(50, 16, 16), draw_smooth_noise(50, (1, 16, 16), g).view(50, 16, 16)
    for x in (rough, slow):
        assert x.min() >= 0 and x.max() <= 1
    assert slow.diff(dim=2).abs().mean() < 0.5 * rough.diff(dim=2).abs().mean()


def test_seeds_are_of_all_classes_even_rare_ones():
    """Class 3 is a corner that noise hardly hits; mixes of what is there lead to it."""

    def label(x):
        left, top = x[:, 0, :4, :4].mean((1, 2)), x[:, 0, :4, 4:].mean((1, 2))
        return torch.where((left > 0.93) & (top < 0.1), 3, (left > top).long())

    x, s = draw_initial_samples(label, 4, 40, (1, 8, 8), torch.Generator().manual_seed(0))
    assert torch.equal(label(x), s) and x.shape == (40, 1, 8, 8) and (s == 3).sum() >= 10 and x.min() >= 0 and x.max() <= 1


def test_a_class_that_is_never_said_is_named_and_the_others_share_its_places(capsys):
    asked = []
    x, s = draw_initial_samples(
        lambda x: (asked.append(len(x)), (x[:, 0, 0, 0] > 0.5).long())[1], 3, 30, (1, 4, 4), torch.Generator().manual_seed(0)
    )
    assert len(x) == 30 and set(s.tolist()) == {0, 1} and f"none of {sum(asked):,} noise images to the classes 2" in capsys.readouterr().out


def test_a_teacher_of_one_class_is_one_line():
    with pytest.raises(RunError, match="to one class, so there is no decision boundary"):
        draw_initial_samples(lambda x: torch.zeros(len(x), dtype=torch.long), 3, 30, (1, 4, 4), torch.Generator().manual_seed(0))


def test_picture(tmp_path):
    from PIL import Image

    save_snapshots(torch.zeros(6, 3, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 2, 2, 1]), tmp_path / "s.png")
    assert Image.open(tmp_path / "s.png").size == (3 * 58 + 2, 3 * 58 + 2)
