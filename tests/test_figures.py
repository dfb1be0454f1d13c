"""The analyses: bit flips, convergence, the teacher's behaviour; their parts by closed forms, their files by the real command on Digits."""

from common.cli import UsageError

import copy
import json
import os

import bfa
import convergence
import numpy as np
import pytest
import teacher_behavior
import torch
import torch.nn as nn
import torch.nn.functional as F
from conftest import home_flags

from common.options import flags

SMALL = {"epochs": 2, "ep_steps": 3, "kd_steps": 3, "g_steps": 2, "warmup": 2, "batch_size": 16, "latent": 8, "ngf": 4, "gap_width": 2}


@pytest.fixture
def left(script):
    """(the folder of a short AEAHL run with an attack, figure(module, **options))."""
    script("AEAHL", **SMALL | {"hard_loss": True})
    folder = next((script.home / "checkpoints/AEAHL").rglob("generator.pt")).parent

    def figure(module, **options):
        return module.main(flags(**home_flags(script.home) | {"teacher": "ResNet8", "run_path": folder} | options))

    figure.home = script.home
    return folder, figure


def test_bits_are_those_of_twos_complement():
    q = torch.arange(-128, 128, dtype=torch.int16)
    bits = bfa.bits_of(q)
    assert torch.equal((bits * bfa.BITS).sum(1), q.long())
    for b in range(8):  # one flip changes that bit alone
        flipped = q.long() + bfa.BITS[b] * (1 - 2 * bits[:, b])
        assert flipped.min() >= -128 and flipped.max() <= 127
        assert ((bfa.bits_of(flipped) != bits).sum(1) == 1).all() and (bfa.bits_of(flipped)[:, b] != bits[:, b]).all()


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 10)).eval()


def test_eight_bits_keep_biases_and_nearly_the_logits():
    net = small_net()
    small = copy.deepcopy(net)
    layers = bfa.quantise(small)
    x = torch.randn(50, 1, 8, 8)
    assert all(torch.equal(a.bias, b.bias) for a, b in zip((net[0], net[3]), (small[0], small[3]), strict=True))
    assert (net(x) - small(x)).abs().max() < 0.02 * net(x).abs().max()
    for m, q, step in layers:
        assert q.abs().max() <= 127 and torch.allclose(m.weight, q * step)
        coarse = net[0 if m is small[0] else 3].weight
        naive = coarse.abs().max() / 127
        assert (m.weight - coarse).square().sum() <= ((coarse / naive).round() * naive - coarse).square().sum() * (1 + 1e-6)


def test_each_kept_flip_raises_the_loss_and_the_search_ends_where_none_does():
    net = small_net()
    x = torch.randn(40, 1, 8, 8)
    y = net(x).argmax(1)
    layers = bfa.quantise(net)
    losses = [F.cross_entropy(net(x), y).item()]
    with torch.no_grad():
        counts = [(flips, losses.append(F.cross_entropy(net(x), y).item())) for flips in bfa.search(net, layers, x, y, 5, 10)]
    assert len(counts) == 5 and counts[-1][0] >= 5 and losses == sorted(set(losses))
    assert all(q.min() >= -128 and q.max() <= 127 and torch.allclose(m.weight, q * s) for m, q, s in layers)
    flat = small_net()
    nn.init.zeros_(flat[3].weight)
    with torch.no_grad():  # no gradient, nothing to flip: it ends
        assert list(bfa.search(flat, bfa.quantise(flat)[:1], x, y, 5, 10)) == []


def test_bfa_writes_a_picture_and_numbers(left):
    folder, figure = left
    result = figure(bfa, repetitions=2, iterations=2, batch_size=32)
    table = json.loads(next((figure.home / "logs/bfa").rglob("bfa.json")).read_text())
    assert set(table["sources"]) == {"real", "pool", "random", "reuse", "waiver"} == set(result["bfa"])
    assert all(len(v["accuracy"]) == len(v["flips"]) == 2 and v["accuracy"][0][0] == table["8 bits"] for v in table["sources"].values())
    assert abs(table["teacher"] - table["8 bits"]) <= 2 and next((figure.home / "logs/bfa").rglob("bfa.png"))
    with pytest.raises(UsageError, match="no pool"):
        figure(bfa, run_path="nowhere", tag="b")
    (folder / "abandoned.pt").unlink()
    with pytest.raises(UsageError, match="no abandoned.pt with a decoder.pt"):
        figure(bfa, tag="c")


def test_carlini_and_wagner_find_the_nearest_point_behind_a_plane():
    """Two classes and a linear net: the distance to the boundary is margin / ||w_1 - w_2||."""
    torch.manual_seed(0)
    w = torch.randn(2, 12)
    w *= 3
    net = lambda x: x.flatten(1) @ w.T  # noqa: E731
    x = torch.rand(30, 1, 3, 4) * 0.4 + 0.3
    y = net(x).argmax(1)
    found, done = teacher_behavior.carlini_wagner(net, x, y, 500, 10.0, 0.01)
    exact = (net(x)[:, 0] - net(x)[:, 1]).abs() / (w[0] - w[1]).norm()
    moved = (found - x).flatten(1).norm(dim=1)
    assert done.all() and (net(found).argmax(1) != y).all() and found.min() >= 0 and found.max() <= 1
    assert (moved >= exact - 1e-4).all() and (moved / exact).median() < 1.1


def test_pairs_of_classes_are_compared_with_chance():
    p = teacher_behavior.pairs(torch.tensor([0, 0, 1, 2]), torch.tensor([1, 1, 1, 0]), 3)
    assert p[0, 1] == pytest.approx(2 / 3) and p[2, 0] == pytest.approx(1 / 3) and p.sum() == pytest.approx(1)
    assert teacher_behavior.overlap(p, p) == pytest.approx(1) and teacher_behavior.overlap(p, p.T) == 0
    even = (1 - torch.eye(3, dtype=torch.double)) / 6
    assert 0.9 < teacher_behavior.by_chance(6000, 3, even) <= 1 and teacher_behavior.by_chance(0, 3, even) == 0
    rows = teacher_behavior.reliability(torch.tensor([0.05, 0.95, 0.97]), torch.tensor([False, True, False]))
    assert rows[0] == [pytest.approx(0.05), 0, 1] and rows[9] == [pytest.approx(0.96), 0.5, 2] and rows[5] == [None, None, 0]


def test_teacher_behavior_writes_a_picture_and_numbers(left):
    folder, figure = left
    result = figure(teacher_behavior, samples=40, cw_samples=5, cw_steps=50)["teacher_behavior"]
    assert set(result) == {"real", "made up", "attacked", "carlini wagner"}
    assert result["real"]["images"] == 500 and len(result["real"]["reliability"]) == 10 and 0 <= result["attacked"]["wrong"] <= 1
    assert {p.name for p in next((figure.home / "logs/teacher_behavior").rglob("*.png")).parent.iterdir()} >= {
        "teacher_behavior.png",
        "teacher_behavior.json",
    }
    (folder / "attack.pt").unlink()
    with pytest.raises(UsageError, match="no attack.pt .* --hard_loss"):
        figure(teacher_behavior, tag="b")


def test_convergence_reads_runs_of_different_lengths(script, tmp_path, capsys):
    script("AEAHL", **SMALL)
    script("AEAHL", **SMALL | {"epochs": 4, "generator": "single", "tag": "single"})
    folders = [p.parent for p in (script.home / "logs/AEAHL").rglob("synthesis.npy")]
    words = [f"{'one' if 'single' in str(f) else 'two'}={f}" for f in folders]
    found = convergence.main([*words, "--out", str(tmp_path / "c")])
    assert found["syntheses compared"] == 4 and {k: v["syntheses"] for k, v in found["runs"].items()} == {"one": 6, "two": 4}
    bn = found["runs"]["one"]["terms"]["bn"]
    assert len(bn["first"]) == len(bn["last"]) == 4 and bn["area"] == pytest.approx(np.mean(bn["last"]))
    assert found["runs"]["one"]["terms"]["adv"]["first"][0] is None and len(found["runs"]["one"]["accuracy"]) == 4
    assert json.loads((tmp_path / "c.json").read_text())["syntheses compared"] == 4 and (tmp_path / "c.png").stat().st_size > 5000
    with pytest.raises(UsageError, match="no synthesis.npy"):
        convergence.main(["nowhere"])
    with pytest.raises(UsageError, match="the same name"):
        convergence.main([words[0], words[0]])
    np.save(folders[0] / "synthesis.npy", np.zeros(3))
    with pytest.raises(UsageError, match="is not from an AEAHL.py run"):
        convergence.main([words[0]])


@pytest.mark.parametrize("file, content, words", [
    ("log.jsonl", b'{"accuracy": 3}\n', "no valid synthesis.npy and log.jsonl .KeyError: 'epoch'"), ("log.jsonl", b'{"epoch": 1, "accuracy": [3]}', "no valid synthesis.npy"), ("log.jsonl", b"\xff", "no valid synthesis.npy"),
    ("synthesis.npy", b"\x93NUMPY\x01\x00v\x00{'descr': (", "no valid synthesis.npy"), ("synthesis.npy", None, "is a pipe, not a file"), ("log.jsonl", None, "is a pipe, not a file"),
])  # fmt: skip
def test_convergence_names_a_file_that_it_cannot_read(file, content, words, tmp_path):
    np.save(tmp_path / "synthesis.npy", np.zeros((2, 3), [("bn", "f4")]))
    (tmp_path / "log.jsonl").write_text('{"epoch": 1, "accuracy": 50.0}\n')
    (tmp_path / file).unlink()
    (tmp_path / file).write_bytes(content) if content else os.mkfifo(tmp_path / file)
    with pytest.raises(UsageError, match=words):
        convergence.main([str(tmp_path), "--out", str(tmp_path / "c")])


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--share", "nan"], "--share nan"),
        (["--share", "0"], "--share 0.0: it must be greater than 0"),
        (["--out", ""], "--out '': it must be the path of a file"),
    ],
)
def test_convergence_refuses(flags, words):
    with pytest.raises(UsageError, match=words):
        convergence.main(["x", *flags])
