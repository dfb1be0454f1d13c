"""Data-free synthesis, the reusable generator, the attack and the pool; oracles of the method's card."""

from common.cli import UsageError

import json

import AEAHL
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import killed_after

from common.aeahl.attack import Attack
from common.aeahl.inversion import BatchNormHooks
from common.aeahl.nets import Fusion, Perturbation, Pixels, recalibrate
from common.aeahl.reuse import make_generator
from common.aeahl.synthesis import Synthesiser
from common.gan import Generator
from common.options import flags, parse
from common.pool import Pool, read_pool
from common.run import start

SMALL = {"epochs": 2, "ep_steps": 3, "kd_steps": 3, "g_steps": 2, "warmup": 2, "batch_size": 16, "latent": 8, "ngf": 4, "gap_width": 2}


def count(net):
    return sum(p.numel() for p in net.parameters())


@pytest.fixture
def opened(script):
    """opened(**options): a Run of AEAHL.py on Digits that has not begun."""

    def call(**options):
        home = {"checkpoints_dir": script.home / "checkpoints", "logs_dir": script.home / "logs", "dataset": "Digits", "device": "cpu"}
        return start(AEAHL.Args, flags(**home | {"teacher": "ResNet8", "tag": "opened", "overwrite": True} | SMALL | options))

    return call


def synthesiser(run, loss=None, **more):
    G, lr_factors = make_generator(run)
    taps = BatchNormHooks(run.teacher.norms(), 0.9)

    def plain(images, wanted):
        x = run.data.view(images, run.args.augment)
        with taps:
            t, _ = run.teacher.inside(x)
        return {"bn": taps.loss(), "oh": F.cross_entropy(t, wanted), "adv": (t - run.student(x)).square().mean()}

    return Synthesiser(run, G, loss or plain, taps, lr_factors, **more)


def copy_of(net):
    return {k: v.clone() for k, v in net.state_dict().items()}


def moved(before, net, part=""):
    """The largest change of the parameters whose names begin with `part`."""
    return max((v - before[k]).abs().max().item() for k, v in net.named_parameters() if k.startswith(part))


# ---- nets


def test_nets_have_the_parameters_of_the_papers_and_their_ranges():
    for size, n in ((32, 2_328_899), (64, 8_644_931)):
        g = Generator(256, (3, size, size), pixels=True)
        assert count(g) == n and len(list(g.parameters())) == 12
    G = Fusion(256, (3, 32, 32))
    assert count(G.decoder) == 2_835 and len(list(G.decoder.parameters())) == 14 and count(G) == 2 * 2_328_899 + 2_835
    x = G(torch.randn(2, 256))
    assert x.shape == (2, 3, 32, 32) and x.min() > 0 and x.max() < 1
    with torch.device("meta"):
        assert count(Perturbation(3)) == 7_841_411
    for size in (8, 28, 32):
        d = Perturbation(3, 4)(torch.randn(2, 3, size, size))
        assert d.shape == (2, 3, size, size) and d.abs().max() < 1


def test_two_nets_begin_apart_and_twins_alike():
    apart, twins = Fusion(8, (1, 8, 8), 4), Fusion(8, (1, 8, 8), 4, twins=True)
    assert not torch.equal(apart.g1.linear.weight, apart.g2.linear.weight)
    assert all(torch.equal(a, b) for a, b in zip(twins.g1.parameters(), twins.g2.parameters(), strict=True))


def test_a_recalibrated_generator_makes_the_same_images_in_evaluation_mode():
    torch.manual_seed(0)
    G = Fusion(16, (3, 32, 32), 8)
    z = torch.randn(256, 16)
    with torch.no_grad():
        G.train()
        wanted = G(z)
        recalibrate(G, lambda: torch.randn(256, 16))
        assert (G(z) - wanted).abs().mean() < 0.02 and all(
            m.num_batches_tracked > 0 for m in G.modules() if hasattr(m, "num_batches_tracked")
        )


def test_pixels_are_drawn_in_normalised_units_and_stay_in_the_range_of_pixels():
    torch.manual_seed(0)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3)))
    net = Pixels(64, (3, 8, 8), mean, std)
    assert net.u.std().item() == pytest.approx(1, abs=0.05)
    x = net(None)
    assert x.min() == 0 and x.max() == 1 and x.requires_grad
    assert torch.allclose(net.u, (x - mean) / std, atol=1e-6)


# ---- the synthesis


def test_fastdfkd_draws_the_generators_first_layers_anew_at_its_call(opened):
    run = opened(generator="single", reset_at=2, lr_g_meta=1e-9)
    syn = synthesiser(run)
    syn.synthesise()
    before = copy_of(syn.G)
    syn.synthesise()
    assert moved(before, syn.G, "linear.weight") > 0.01 and moved(before, syn.G, "blocks") < 1e-6
    assert syn.G.linear.weight.std().item() == pytest.approx(0.02, rel=0.1) and syn.G.linear.bias.abs().max() < 1e-6
    assert abs(syn.G.bn.weight.mean().item()) < 0.02  # around 0, as released


def test_a_fresh_generator_begins_each_synthesis_from_the_weights_of_cmi(opened):
    run = opened(generator="single", meta="fresh", lr_g=1e-9, images="pool")
    syn = synthesiser(run)
    syn.synthesise()
    first = copy_of(syn.G)
    syn.synthesise()
    assert moved(first, syn.G, "linear.weight") > 0.01 and syn.G.linear.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert syn.G.blocks[0].weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert syn.G.bn.weight.mean().item() == pytest.approx(1, abs=0.02) and syn.G.linear.bias.abs().max() < 1e-6


def test_a_synthesis_moves_the_generator_once_and_neither_teacher_nor_student(opened):
    run = opened()
    syn = synthesiser(run)
    before = copy_of(syn.G), copy_of(run.teacher.net), copy_of(run.student)
    syn.synthesise()
    assert moved(before[0], syn.G) > 0
    for old, net in ((before[1], run.teacher.net), (before[2], run.student)):
        assert all(torch.equal(v, old[k]) for k, v in net.state_dict().items())
        assert all(p.grad is None for p in net.parameters())
    assert run.student.training and all(p.requires_grad for p in run.student.parameters())
    assert all(torch.equal(v, before[0][k]) for k, v in syn.G.state_dict().items() if "running" in k)  # the generator itself is never run
    assert syn.pool.n == 16 and syn.curves[0].shape == (2, 3)


@pytest.mark.parametrize("mode, old", [("reuse_common", 1.0), ("reuse_finetune", 0.1), ("reuse_fix", 0.0)])
def test_what_is_reused_moves_by_its_share(mode, old, opened, script):
    first = script("AEAHL", **SMALL)
    assert first["accuracy"] >= 0
    folder = next((script.home / "checkpoints/AEAHL").rglob("generator.pt")).parent
    run = opened(mode=mode, reuse_generator_path=folder / "generator.pt", lr_g_meta=0.006)
    syn = synthesiser(run)
    saved = torch.load(folder / "generator.pt", weights_only=True)["model"]
    assert all(torch.equal(v, syn.G.g2.state_dict()[k]) for k, v in saved.items()) and not torch.equal(
        syn.G.g1.linear.weight, syn.G.g2.linear.weight
    )
    before = copy_of(syn.G)
    syn.synthesise()
    assert moved(before, syn.G, "g1") == pytest.approx(0.006, rel=0.02)  # Adam's first step is its learning rate
    for part in ("g2", "decoder"):
        assert moved(before, syn.G, part) == pytest.approx(0.006 * old, rel=0.02)
        if not old:
            assert all(torch.equal(v, before[k]) for k, v in syn.G.state_dict().items() if k.startswith(part))


def test_twins_stay_alike_and_others_apart(opened):
    for twins in (True, False):
        run = opened(twins=twins, epochs=5)
        syn = synthesiser(run)
        for _ in range(5):
            syn.synthesise()
        same = all(torch.equal(a, b) for a, b in zip(syn.G.g1.parameters(), syn.G.g2.parameters(), strict=True))
        assert same == twins


def test_fomaml_is_the_sum_of_the_copys_gradients_and_reptile_its_way(opened):
    """With SGD for Adam: after two steps of the copy the generator has moved by lr * (g1 + g2)."""
    for meta in ("fomaml", "reptile"):
        run = opened(generator="single", meta=meta, lr_z=0.0)
        syn = synthesiser(run)
        inner, syn.outer = 0.01, torch.optim.SGD(syn.G.parameters(), 1.0)
        syn.make_adam = lambda net, lr, more, inner=inner: torch.optim.SGD(net.parameters(), inner)
        before = {k: p.detach().clone() for k, p in syn.G.named_parameters()}
        syn.synthesise()
        for (k, p), q in zip(syn.G.named_parameters(), syn.inner.parameters(), strict=True):
            way = before[k] - q.detach()  # inner * (g1 + g2)
            assert torch.allclose(before[k] - p.detach(), way / inner if meta == "fomaml" else 67 * way, atol=1e-3, rtol=1e-2)


def test_latents_move_within_a_synthesis_and_are_drawn_anew(opened):
    run = opened(g_steps=3)
    seen = []
    syn = synthesiser(run)
    forward = syn.inner.forward
    syn.inner.forward = lambda z: (seen.append(z.detach().clone()), forward(z))[1]
    syn.synthesise()
    syn.synthesise()
    assert not torch.equal(seen[0], seen[2]) and (seen[0] - seen[2]).abs().max() < 0.05 and (seen[3] - seen[2]).abs().max() > 0.5


def test_the_pool_gets_the_best_batch_as_it_was_made(opened):
    """A loss that is least at the second of three steps: its images are kept, not augmented, rounded to 8 bits."""
    run = opened(g_steps=3, augment="crop")
    seen = []

    def loss(x, y):
        seen.append(x.detach().clone())
        return {"bn": 1e-3 * x.mean() + (2.0, 1.0, 3.0)[len(seen) - 1], "oh": x.mean() * 0, "adv": x.mean() * 0}

    syn = synthesiser(run, loss)
    syn.synthesise()
    assert (syn.pool.x.float() / 255 - seen[1]).abs().max() <= 0.5 / 255 + 1e-6 < (seen[0] - seen[1]).abs().max()


def test_the_adversarial_term_begins_with_the_last_of_the_warm_up(script):
    script("AEAHL", **SMALL | {"warmup": 4, "epochs": 1})
    curves = np.load(next((script.home / "logs/AEAHL").rglob("synthesis.npy")))
    assert curves.dtype.names == ("bn", "oh", "adv") and curves.shape == (5, 2)
    assert np.isnan(curves["adv"]).tolist() == [[True, True]] * 3 + [[False, False]] * 2 and np.isfinite(curves["bn"]).all()


def test_a_fresh_generator_starts_anew_and_one_without_meta_goes_on(opened):
    run = opened(generator="single", meta="fresh", w_cr=0.8)
    syn = synthesiser(run)
    before = copy_of(syn.G)
    syn.synthesise()
    assert moved(before, syn.G, "linear") > 0.05  # drawn again
    run = opened(generator="single", meta="none", g_steps=1, lr_g=1e-3)
    syn = synthesiser(run)
    before = copy_of(syn.G)
    syn.synthesise()
    assert moved(before, syn.G) == pytest.approx(1e-3, rel=0.02)


# ---- the pool


def test_a_pool_rounds_keeps_and_can_be_read_at_any_time(tmp_path):
    pool, x = Pool(tmp_path / "pool.npy", 64, (1, 8, 8), "cpu"), torch.rand(16, 1, 8, 8)
    for k in (1, 2):
        pool.add(x)
        there = np.load(tmp_path / "pool.npy")
        assert there.shape == (16 * k, 1, 8, 8) and there.dtype == np.uint8
    assert np.array_equal(there, pool.x.numpy()) and (pool.x[:16].float() / 255 - x).abs().max() <= 0.5 / 255 + 1e-6
    state = pool.state_dict()
    pool.add(x)  # after the last saved state
    again = Pool(tmp_path / "pool.npy", 64, (1, 8, 8), "cpu")
    assert again.n == 0
    again.load_state_dict(state)
    assert again.n == 32 and torch.equal(again.x, pool.x[:32])
    again.add(x[:8])
    assert np.array_equal(np.load(tmp_path / "pool.npy"), again.x.numpy())
    Pool(tmp_path / "pool.npy", 64, (1, 8, 8), "cpu").add(1 - x)
    with pytest.raises(UsageError, match="not the pool of this run"):
        again.load_state_dict(state)
    with pytest.raises(UsageError, match=r"uint8 \(16, 1, 8, 8\), not uint8 images \(N, 3, 8, 8\); use the pool.npy of a run"):
        read_pool(tmp_path / "pool.npy", (3, 8, 8))
    (tmp_path / "no.npy").write_bytes(b"\x93NUMPY\x01")
    torch.save({"a": x}, tmp_path / "weights.pt")
    for name, words in (("no.npy", "cannot be read as a pool"), ("none.npy", "no pool"), ("weights.pt", "contains no array")):
        with pytest.raises(UsageError, match=words):
            read_pool(tmp_path / name, (1, 8, 8))


def test_a_folder_of_pictures_is_a_pool(tmp_path):
    from torchvision.utils import save_image

    for channels in (1, 3):
        x = torch.randint(0, 256, (4, channels, 8, 8), dtype=torch.uint8)
        for i, image in enumerate(x):
            save_image(image.float() / 255, tmp_path / f"{i}.png")
        assert np.array_equal(read_pool(tmp_path, (channels, 8, 8)), x.numpy())
    with pytest.raises(UsageError, match="0.png is 8 x 8 pixels, not 12 x 12"):
        read_pool(tmp_path, (1, 12, 12))
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match="no PNG or JPEG"):
        read_pool(tmp_path / "none", (1, 8, 8))


def test_cached_answers_are_those_of_the_same_view(opened):
    run = opened(augment="crop", cache=True)
    syn = synthesiser(run)
    syn.synthesise()
    i = torch.arange(16)
    asked = run.teacher.counts["queries"]
    for _ in range(30):
        x, t = syn.views(i)
        assert torch.allclose(t, run.teacher.net(x), atol=1e-5)
    assert run.teacher.counts["queries"] - asked <= 16 * 9 and syn.cached.kept[:16].isfinite().all(2).float().mean() > 0.8


def test_a_run_may_begin_with_anothers_pool(script):
    script("AEAHL", **SMALL)
    path = next((script.home / "checkpoints/AEAHL").rglob("pool.npy"))
    assert len(np.load(path)) == 4 * 16
    result = script("AEAHL", **SMALL | {"init_pool": path, "tag": "more"})
    assert result["log"]["pool"] == 8 * 16
    assert np.array_equal(np.load(next(p for p in (script.home / "checkpoints/AEAHL").rglob("pool.npy") if p != path))[:64], np.load(path))


# ---- the attack


@pytest.fixture
def attack(opened):
    def call(flip=None, **options):
        run = opened(hard_loss=True, **options)
        a = Attack(run)
        if flip is not None:  # a stub: adds `flip` to a one-hot image, so that the stub teacher says the next class
            a.perturb = lambda x: flip(x)
            run.teacher.inside = lambda x: (x.flatten(1)[:, :10], None)
        return a

    return call


def test_the_attack_moves_pixels_by_eps_at_most_and_stays_in_range(attack):
    a = attack(eps=0.04)
    data, pixels = a.run.data, torch.rand(32, 1, 8, 8)
    x = data.view(pixels)
    with torch.no_grad():
        moved_to = a.perturb(x) * data.std + data.mean
    assert (moved_to - pixels).abs().max() <= 0.04 + 1e-6 and moved_to.min() >= -1e-6 and moved_to.max() <= 1 + 1e-6
    a.net.forward = torch.zeros_like
    assert torch.allclose(a.perturb(x), x, atol=1e-6)


def test_the_attack_learns_to_change_the_teachers_class(attack):
    a = attack(eps=0.5, gap_width=8, gap_images=64)
    x = a.run.data.view(a.run.data.test.x[:64])
    with torch.no_grad():
        t = a.run.teacher.inside(x)[0]
    before = a.perturb(x)
    for _ in range(50):
        a.learn(x, t)
    with torch.no_grad():
        rates = [(a.run.teacher.inside(v)[0].argmax(1) != t.argmax(1)).float().mean().item() for v in (before, a.perturb(x))]
    assert rates[1] > max(0.5, rates[0])


def one_hot(rows, certainty=5.0):
    x = torch.zeros(rows, 1, 8, 8)
    x.flatten(1)[torch.arange(rows), torch.arange(rows) % 10] = certainty
    return x, x.flatten(1)[:, :10].clone()


def test_labels_are_the_natural_classes_and_shown_rows_contradict_them(attack):
    a = attack(flip=lambda x: x.flatten(1).roll(1, 1).view_as(x), pa=1.0)
    x, t = one_hot(20)
    x[9::10, 0, 0, 0] = 6.0  # so that a roll past the tenth pixel still changes the class
    kept, labels = x.clone(), t.argmax(1)
    shown, answers, y = a(x, t)
    assert torch.equal(x, kept) and torch.equal(y, labels)
    assert torch.equal(answers, shown.flatten(1)[:, :10]) and (answers.argmax(1) != y).sum() == a.counts[1]
    x, t = one_hot(20)
    a = attack(flip=lambda x: x, pa=1.0)  # an attack that never succeeds
    shown, answers, y = a(x, t)
    assert torch.equal(shown, x) and torch.equal(answers, t)
    a = attack(flip=lambda x: x * 0.5, pa=1.0, require_flip=False)
    assert torch.allclose(a(x, t)[0], x * 0.5)


@pytest.mark.parametrize("every", [1, 2])
def test_the_share_of_contradictions_is_pa_also_where_half_of_the_attacks_fail(every, attack):
    torch.manual_seed(0)
    chance = torch.Generator().manual_seed(1)

    def flip(x):  # to the next class, for one in `every`
        other = x.flatten(1)[:, :9].roll(1, 1)
        rolled = torch.cat([other, x.flatten(1)[:, 9:]], 1).view_as(x)
        return torch.where((torch.rand(len(x), generator=chance) < 1 / every).view(-1, 1, 1, 1), rolled, x)

    n, pa, wrong, total = 400, 0.02, 0, 0
    a = attack(flip=flip, pa=pa)
    x = torch.zeros(250, 1, 8, 8)
    x.flatten(1)[torch.arange(250), torch.arange(250) % 9] = 5.0
    t = x.flatten(1)[:, :10].clone()
    for _ in range(n):
        _, answers, y = a(x, t)
        wrong, total = wrong + (answers.argmax(1) != y).sum().item(), total + len(y)
    sigma = (pa * (1 - pa) / total) ** 0.5
    assert total == 100_000 and abs(wrong / total - pa) < 4 * sigma
    assert a.log()["aea_wrong"] == pytest.approx(wrong / total) and a.log()["aea_wrong"] == 0


def test_a_swap_exchanges_and_the_natural_one_is_the_more_certain(attack):
    x, t = one_hot(16)
    x[:8] *= 0.5
    t[:8] *= 0.5
    a = attack(flip=lambda x: torch.where(x.amax((1, 2, 3), keepdim=True) < 4, x * 3, x * 0.2), swap=True, pa=0.0)
    shown, _, y = a(x, t)
    assert torch.allclose(shown[:8], x[:8] * 3) and torch.equal(shown[8:], x[8:]) and torch.equal(y, t.argmax(1))
    assert a.log()["aea_swapped"] == 0.5
    a.args.pa, a.args.require_flip = 1.0, False  # now the other one of each pair is shown: nothing is lost
    shown, *_ = a(x, t)
    assert torch.allclose(shown[:8], x[:8]) and torch.allclose(shown[8:], x[8:] * 0.2)


def test_without_contradictions_a_run_is_that_without_attack(script):
    logs = []
    for name, options in {"plain": {"aea": False}, "none": {"pa": 0.0}}.items():
        script("AEAHL", **SMALL | options, hard_loss=True, tag=name)
        folder = next((script.home / "checkpoints/AEAHL").rglob(f"*-{name}/seed0"))
        logs.append(torch.load(folder / "student.pt", weights_only=True)["model"])
    assert all(torch.equal(a, b) for a, b in zip(logs[0].values(), logs[1].values(), strict=True))


def test_alpha_one_and_beta_zero_are_the_soft_loss_alone(script):
    results = [script("AEAHL", **SMALL | o) for o in ({}, {"hard_loss": True, "aea": False, "alpha": 1.0, "beta": 0.0, "tag": "hard"})]
    paths = [next((script.home / "checkpoints/AEAHL").rglob(f"{n}/seed0/student.pt")) for n in ("*-inside", "*-hard")]
    a, b = (torch.load(p, weights_only=True)["model"] for p in paths)
    assert all(torch.equal(a[k], b[k]) for k in a) and results[1]["log"]["hard"] == 0


def test_the_attack_as_released_is_without_bound_and_normalised_twice(script, attack):
    a = attack(aea_compat=True, augment="crop")
    x = a.run.data.view(torch.rand(16, 1, 8, 8))
    a.net.forward = torch.zeros_like
    with torch.no_grad():
        assert (a.perturb(x) - x).abs().max() > 0.1  # zero is not zero
    result = script("AEAHL", **SMALL | {"hard_loss": True, "aea_compat": True, "tag": "compat"})
    assert result["log"]["aea_swapped"] >= 0


# ---- the script


def test_presets_follow_from_method_teacher_and_data_set_and_yield_to_what_is_given():
    def of(*argv):
        return parse(AEAHL.Args, argv)

    assert (of("--teacher", "WRN40_2").w_adv, of("--teacher", "wrn-40-2").w_oh, of("--teacher", "VGG11_BN").w_adv) == (1.1, 0.4, 1.0)
    a = of("--teacher", "ResNet34", "--dataset", "cifar-10")
    assert (a.w_adv, a.w_oh, a.w_bn, a.g_steps, a.batch_size, a.augment) == (1.33, 0.5, 10, 10, 256, "crop_flip")
    a = of("--dataset", "ImageNet", "--g_steps", "20")
    assert (a.g_steps, a.batch_size) == (20, 64)
    assert (of("--g_steps", "2").lr_g, of("--g_steps", "2").lr_z, of("--g-steps=5").lr_g, of("--g_steps", "2", "--lr_g", "1").lr_g) == (
        5e-3,
        0.015,
        3e-3,
        1,
    )
    assert of("--hl").hard_loss and of("--hard-loss").hard_loss and not of("--no_hard_loss").hard_loss
    assert not of("--no_aea").aea and not of("--no-eval").eval and not of("--no_require_flip").require_flip


@pytest.mark.parametrize("preset", ["fastdfkd", "cmi", "adi", "dfq", "zskt", "dafl"])
def test_every_preset_goes_through(preset, script):
    steps = {"kd_steps": 3} if preset in ("fastdfkd", "cmi", "adi") else {"kd_steps": 1, "g_steps": 1, "warmup": 0}
    result = script("AEAHL", **SMALL | steps | {"preset": preset, "tag": preset})
    assert result["bytes"] == result["private"] == 0 and result["images"] == 0
    assert {k for k in result["log"] if k.startswith("syn_")} == {
        f"syn_{n}" for n in {"fastdfkd": ("bn", "oh", "adv"), "cmi": ("bn", "oh", "adv", "cr"), "adi": ("bn", "oh", "adv", "sbn", "tv"),
                             "dfq": ("bn", "oh", "adv", "even"), "zskt": ("adv",), "dafl": ("oh", "even", "act")}[preset]
    }  # fmt: skip


def test_a_run_without_any_data_set(script, monkeypatch):
    from dataclasses import replace

    from common import datasets

    def gone(folder, train):
        raise AssertionError("read")

    monkeypatch.setitem(datasets.DATASETS, "Digits", replace(datasets.DATASETS["Digits"], read=gone))
    result = script("AEAHL", **SMALL | {"eval": False, "hard_loss": True})
    assert "accuracy" not in result and result["teacher_accuracy"] is None and result["log"]["kl"] > 0
    with pytest.raises(UsageError, match="--normalize half"):
        script("AEAHL", **SMALL | {"eval": False, "normalize": "dataset", "tag": "b"})


def test_what_a_run_leaves_can_be_taken_up_by_another(script):
    script("AEAHL", **SMALL | {"hard_loss": True, "export": 5})
    folder = next((script.home / "checkpoints/AEAHL").rglob("generator.pt")).parent
    assert {p.name for p in folder.glob("*.pt")} == {"student.pt", "generator.pt", "abandoned.pt", "decoder.pt", "attack.pt", "state.pt"}
    logs = next((script.home / "logs/AEAHL").rglob("synthetic.png")).parent
    assert len(list((logs / "pool").glob("*.png"))) == 5
    meta = torch.load(folder / "generator.pt", weights_only=True)["meta"]
    assert meta["latent"] == 8 and meta["ngf"] == 4 and meta["shape"] == [1, 8, 8]
    assert json.loads((folder / "result.json").read_text())["log"]["aea_wrong"] >= 0
    old = {"mode": "reuse_common", "reuse_generator_path": folder / "generator.pt"}
    script("AEAHL", **SMALL | old | {"keep": "loss", "tag": "next"})
    script("AEAHL", **SMALL | old | {"keep": "activation", "tag": "single", "generator": "single"})
    for more, words in {
        ("latent", 12): r"latent 8 \(this run: 12\)",
        ("ngf", 6): r"ngf 4 \(this run: 6\)",
        ("img_size", 12): "shape",
    }.items():
        with pytest.raises(UsageError, match=words if more[0] != "img_size" else r"no teacher|was made for shape \[1, 8, 8\]"):
            script("AEAHL", **SMALL | old | {more[0]: more[1], "tag": "wrong"})
    with pytest.raises(UsageError, match="needs --reuse_generator_path, .*; first run: python project/AEAHL.py"):
        script("AEAHL", **SMALL | {"mode": "reuse_fix"})
    with pytest.raises(UsageError, match="is not a checkpoint of a generator or decoder"):
        script("AEAHL", **SMALL | old | {"reuse_decoder_path": folder / "generator.pt", "tag": "w"})


def test_wrong_options_are_said_before_anything_is_made(script):
    cases = {
        "use --meta fresh --images pool": {"generator": "pixels"},
        "use --images pool --contrast 0": {"cache": True, "images": "fresh"},
        "so that it has no loss; use one of --w_bn": {"w_bn": 0, "w_oh": 0, "w_adv": 0},
        "no pool": {"init_pool": "none.npy"},
        "does not keep a generator": {"mode": "reuse_fix", "reuse_generator_path": "x", "meta": "fresh"},
        "AEAHL needs inside answers": {"response": "soft"},
    }
    for words, options in cases.items():
        with pytest.raises(UsageError, match=words):
            script("AEAHL", **SMALL | options)


def test_a_teacher_without_batch_norm_is_said_and_can_be_gone_without(script):
    script("teacher", model="LeNet5", img_size=28, epochs=1)
    options = SMALL | {"teacher": "LeNet5", "img_size": 28}
    with pytest.raises(UsageError, match="no batch norm, .* --w_bn 0"):
        script("AEAHL", **options)
    assert script("AEAHL", **options | {"w_bn": 0})["log"]["kl"] >= 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"hard_loss": True, "pa": 0.2},
        {"preset": "cmi", "g_steps": 2},
        {"preset": "adi", "g_steps": 2},
        {"preset": "fastdfkd", "reset_at": 4},
        {"preset": "dfq", "kd_steps": 2},
    ],
)
def test_a_killed_run_goes_on_to_the_same_bits(options, script, monkeypatch):
    base = SMALL | {"epochs": 3} | options
    script("AEAHL", **base, tag="whole")
    killed_after(2, monkeypatch, lambda: script("AEAHL", **base, tag="cut"))
    script("AEAHL", **base, tag="cut")
    for name in ("student.pt", *([] if base.get("preset") == "adi" else ["generator.pt"])):
        a, b = (
            torch.load(next((script.home / "checkpoints/AEAHL").rglob(f"*-{t}/seed0/{name}")), weights_only=True)["model"]
            for t in ("whole", "cut")
        )
        assert all(torch.equal(a[k], b[k]) for k in a)
    logs = [next((script.home / "logs/AEAHL").rglob(f"*-{t}/seed0/log.jsonl")).read_text() for t in ("whole", "cut")]
    assert logs[0] == logs[1]
    curves = [np.load(next((script.home / "logs/AEAHL").rglob(f"*-{t}/seed0/synthesis.npy"))) for t in ("whole", "cut")]
    assert np.array_equal(*(c.view(np.float32) for c in curves), equal_nan=True)


def test_a_student_of_made_up_images_agrees_with_the_teacher(script):
    """End to end on Digits: the statistics come nearer, and a student of 200 steps agrees far more than by chance."""
    options = {"epochs": 5, "ep_steps": 40, "kd_steps": 40, "g_steps": 8, "warmup": 4, "batch_size": 64, "latent": 32, "ngf": 16}
    result = script("AEAHL", **options)
    curves = np.load(next((script.home / "logs/AEAHL").rglob("synthesis.npy")))
    assert curves["bn"][-1].mean() < 0.9 * curves["bn"][1].mean() and result["agreement"] > 40
