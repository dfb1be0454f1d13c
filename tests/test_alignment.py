"""GDA's terms against the golden numbers of the method's card, closed forms and a linear assignment."""

from common.cli import UsageError

import math

import GDA
import pytest
import torch
import torch.nn.functional as F
from conftest import killed_after
from scipy.optimize import linear_sum_assignment

from common.gda.alignment import alignment_terms, fisher_rao, sinkhorn, standardise, transport_cost, transport_plan
from common.gda.bases import BASES, distillation_terms
from common.losses import kl
from common.options import flags, parse

S = torch.tensor([[1, 2, 3, 0], [0, 0, 1, -1], [2, -1, 0.5, 0.5]], dtype=torch.double)
T = torch.tensor([[3, 1, 0, 0], [1, 0, 0, -2], [0, 0, 4, 1]], dtype=torch.double)
EXACT = {torch.double: 1e-9, torch.float: 1e-6}


@pytest.mark.parametrize("dtype", EXACT)
def test_golden_numbers(dtype):
    s, t, near = S.to(dtype), T.to(dtype), lambda v: pytest.approx(v, abs=max(EXACT[dtype], 1e-8))
    assert [fisher_rao(a, b).item() for a, b in zip(s.split(1), t.split(1), strict=True)] == near([0.39062783, 0.6579854, 0.782339])
    assert fisher_rao(s, t).item() == pytest.approx(0.61031740941, abs=EXACT[dtype])
    for sweeps, value in ((1, 0.93482421), (5, 0.97396776), (20, 0.97613708629)):
        assert 3 * sinkhorn(s, t, sweeps=sweeps, tolerance=0).item() == near(value)
    assert 3 * sinkhorn(t, t, tolerance=0).item() == near(0.04195817) and 3 * sinkhorn(s, s, tolerance=0).item() == near(0.05859831)
    assert 3 * sinkhorn(s, t, tolerance=0, debias=True).item() == near(0.92585885)
    p, q = ((standardise(u) / 2).softmax(1) for u in (s, t))
    W = [[0.600978, 0.379525, 0.282034], [0.528913, 0.351205, 0.264428], [0.278139, 0.312295, 0.551726]]
    P = [[0.096018, 0.383045, 0.520937], [0.148744, 0.383137, 0.468119], [0.755237, 0.233818, 0.010944]]
    assert torch.allclose(torch.cdist(p, q, 1), torch.tensor(W, dtype=dtype), atol=1e-6)
    assert torch.allclose(transport_plan(torch.cdist(p, q, 1), tolerance=0), torch.tensor(P, dtype=dtype), atol=1e-6)


# ---- Fisher-Rao


def test_fisher_rao_is_zero_with_a_zero_gradient_at_equality_and_finite_everywhere():
    s = S.clone().requires_grad_()
    d = fisher_rao(s, S)
    d.backward()
    assert d == 0 and (s.grad == 0).all()
    for other in (S + 1e4, S * 1e-6 + 1e4, torch.full_like(S, 3.0)):
        for dtype in EXACT:
            s = other.to(dtype, copy=True).requires_grad_()
            d = fisher_rao(s, S.to(dtype))
            d.backward()
            assert d.isfinite() and s.grad.isfinite().all()
    assert torch.autograd.gradcheck(lambda s: fisher_rao(s, T), S.clone().requires_grad_())


def test_fisher_rao_sees_means_and_deviations_alone():
    u = torch.randn(1, 50, dtype=torch.double)
    sigma = u.std().item()
    assert fisher_rao(2 * u - u.mean(), u).item() == pytest.approx(0.980258143, abs=1e-9)  # sqrt(2) ln 2
    assert fisher_rao(u + 3, u).item() == pytest.approx(2 * math.sqrt(2) * math.asinh(3 / (math.sqrt(8) * sigma)), abs=1e-9)
    assert fisher_rao(u + 3, u, centre=True).item() == pytest.approx(0, abs=1e-7)
    assert fisher_rao(u.flip(1), u).item() == pytest.approx(0, abs=1e-6)
    assert fisher_rao(S, T) == pytest.approx(fisher_rao(T, S)) == pytest.approx(fisher_rao(3 * S + 5, 3 * T + 5))
    a = (S.mean(1) - T.mean(1)) ** 2 + 2 * (S.std(1) - T.std(1)) ** 2
    artanh = 2 * math.sqrt(2) * (a / (a + 8 * S.std(1) * T.std(1))).sqrt().atanh()
    assert fisher_rao(S, T).item() == pytest.approx(artanh.mean().item(), abs=1e-12)


# ---- Sinkhorn


def test_standardised_rows():
    z = standardise(S)
    assert torch.allclose(z.mean(1), torch.zeros(3, dtype=torch.double)) and torch.allclose(
        z.var(1), torch.ones(3, dtype=torch.double), atol=1e-6
    )
    assert torch.allclose(standardise(5 * S + 3), z, atol=1e-6) and (standardise(torch.full((2, 4), 7.0)) == 0).all()


def test_one_and_two_images_in_closed_form():
    p, q = (torch.rand(1, 6, dtype=torch.double).softmax(1) for _ in range(2))
    assert transport_cost(p, q).item() == pytest.approx((p - q).abs().sum().item())
    W = torch.rand(2, 2, dtype=torch.double)
    P = transport_plan(W, 0.3, 2000, 1e-12)
    share = torch.sigmoid((W[0, 1] + W[1, 0] - W[0, 0] - W[1, 1]) / 0.6)
    assert torch.allclose(P, torch.stack([torch.stack([share, 1 - share]), torch.stack([1 - share, share])]), atol=1e-9)


def test_a_plan_is_doubly_stochastic_whatever_the_order_and_the_entropy():
    torch.manual_seed(0)
    s, t = torch.randn(2, 20, 7, dtype=torch.double)
    W = torch.cdist(s.softmax(1), t.softmax(1), 1)
    P = transport_plan(W, sweeps=500)
    assert torch.allclose(P.sum(0), torch.ones(20, dtype=torch.double), atol=1e-12) and (P.sum(1) - 1).abs().max() <= 1e-4
    order = torch.randperm(20)
    assert sinkhorn(s, t[order]).item() == pytest.approx(sinkhorn(s, t).item(), abs=1e-9)
    assert sinkhorn(s * torch.rand(20, 1, dtype=torch.double).add(0.5), t + 3).item() == pytest.approx(sinkhorn(s, t).item(), abs=1e-5)
    assert torch.allclose(transport_plan(W[:, :1].expand(20, 20)), torch.full((20, 20), 1 / 20, dtype=torch.double))
    exact = W[linear_sum_assignment(W.numpy())].sum().item()
    assert (transport_plan(W, 5e-4, 20000, 1e-7) * W).sum().item() == pytest.approx(exact, abs=5e-3)
    assert (transport_plan(W, 1e6) * W).sum().item() == pytest.approx(W.sum().item() / 20, rel=1e-5)
    assert transport_plan(W.float(), 1e-3).isfinite().all()
    plain = (-W / 0.1).exp()
    for _ in range(20):
        plain = plain / plain.sum(1, keepdim=True)
        plain = plain / plain.sum(0, keepdim=True)
    assert torch.allclose(transport_plan(W, tolerance=0), plain, atol=1e-12)


def test_the_sinkhorn_term_is_a_mean_with_the_full_gradient_and_without_bias_where_asked():
    torch.manual_seed(0)
    s, t = torch.randn(2, 8, 5, dtype=torch.double)
    assert sinkhorn(torch.cat([s, s]), torch.cat([t, t]), tolerance=1e-9).item() == pytest.approx(
        sinkhorn(s, t, tolerance=1e-9).item(), abs=1e-6
    )
    assert 0 <= sinkhorn(s, t) <= 2 and sinkhorn(s, s) > 0
    u = s.clone().requires_grad_()
    value = sinkhorn(u, s, sweeps=200, tolerance=1e-12, debias=True)
    value.backward()
    assert abs(value) < 1e-9 and u.grad.abs().max() < 1e-6
    assert torch.autograd.gradcheck(lambda s: sinkhorn(s, t, tolerance=0), s.clone().requires_grad_())


# ---- the losses beside them


Y = torch.tensor([0, 0, 2])


def base(name, **options):
    """The terms of a base on the golden logits."""
    args = parse(GDA.Args, flags(**options))
    return {k: v.item() for k, v in BASES[name](S, T, Y, args, options.pop("epoch", 0)).items()}


def test_a_base_without_a_term():
    assert base("none") == {} and base("kd", t=1.0) == {"kd": pytest.approx(1.17957675391, abs=1e-9)}


def test_shares_rise_and_stay_where_they_may():
    args = parse(GDA.Args, ["--epochs", "10"])
    whole = kl(S, T, 4.0).item()
    shares = [1 - BASES["augconf"](S, T, Y, args, e)["kd"].item() / whole for e in range(6)]
    assert shares == pytest.approx([0, 0.5 / 3, 1 / 3, 0.5, 0.5, 0.5])
    rises = [BASES["dkd"](S, T, Y, args, e)["target"].item() for e in (0, 9, 19, 30)]
    assert rises == pytest.approx([rises[-1] * v for v in (1 / 20, 0.5, 1, 1)])
    for value in ("1.0", "-0.1"):
        with pytest.raises(UsageError, match=r"--alpha_max .*: it must be at least 0 and less than 1"):
            parse(GDA.Args, ["--alpha_max", value])


def test_adaptconf_is_half_where_both_agree_and_its_share_has_no_gradient():
    args = parse(GDA.Args, [])
    agreed = BASES["adaptconf"](T, T, Y, args, 0)
    assert agreed["own"].item() == pytest.approx(0.5 * F.cross_entropy(T, T.argmax(1)).item()) and agreed["kd"] == 0
    s = S.clone().requires_grad_()
    sum(BASES["adaptconf"](s, T, Y, args, 0).values()).backward()
    alpha = torch.sigmoid((S.gather(1, T.argmax(1, keepdim=True))[:, 0] - S.amax(1)) / 0.5)
    u = S.clone().requires_grad_()
    apart = F.kl_div((u / 4).log_softmax(1), (T / 4).log_softmax(1), reduction="none", log_target=True).sum(1) * 16
    ((1 - alpha) * apart + alpha * F.cross_entropy(u, u.argmax(1), reduction="none")).mean().backward()
    assert torch.allclose(s.grad, u.grad) and BASES["adaptconf"](S * 1e4, T, Y, args, 0)["kd"].isfinite()


def test_dist_sees_no_affine_maps_of_probabilities_and_no_shift_of_logits():
    args = parse(GDA.Args, ["--t", "1"])
    assert BASES["dist"](S + 5, T - 2, Y, args, 0)["inter"].item() == pytest.approx(BASES["dist"](S, T, Y, args, 0)["inter"].item())
    same = BASES["dist"](S, S, Y, args, 0)
    assert same["inter"].item() == pytest.approx(0, abs=1e-6) == same["intra"].item()
    even = BASES["dist"](torch.zeros_like(S), T, Y, args, 0)
    assert even["inter"].item() == pytest.approx(2.0) == even["intra"].item()  # a constant correlates with nothing: 1, weighed by 2


def test_mlkd_is_its_formula_and_nothing_for_equal_logits():
    args, got = parse(GDA.Args, []), {"kd": 0.0, "batch": 0.0, "class": 0.0}
    strong = S.flip(1) / 2, T + S / 3
    for tau in (2.0, 3.0, 4.0, 5.0, 6.0):
        p, q = ((u / tau).softmax(1) for u in (S, T))
        got["kd"] += kl(S, T, tau).item() / 2 + kl(*strong, tau).item()
        n, k = S.shape
        got["batch"] += sum((p[i] @ p[j] - q[i] @ q[j]).item() ** 2 for i in range(n) for j in range(n)) / n / 2
        got["class"] += sum((p[:, i] @ p[:, j] - q[:, i] @ q[:, j]).item() ** 2 for i in range(k) for j in range(k)) / k / 2
    terms = BASES["mlkd"](S, T, Y, args, 0, strong)
    assert {k: v.item() for k, v in terms.items()} == pytest.approx(got)
    once, twice = (BASES["mlkd"](S, T, Y, args, 0, *more) for more in ((), ((S, T),)))
    assert all(torch.equal(once[k], twice[k]) for k in once)  # one view stands for both
    assert once["kd"].item() == pytest.approx(1.5 * sum(kl(S, T, tau).item() for tau in (2, 3, 4, 5, 6)))
    assert all(v.item() == pytest.approx(0, abs=1e-12) for v in BASES["mlkd"](S + 3, S, Y, args, 0).values())  # no shift counts


def test_logit_standardisation_changes_the_kl_terms_alone():
    plain, standard = parse(GDA.Args, []), parse(GDA.Args, ["--standardise"])
    for name in ("kd", "dkd", "rld", "mlkd"):
        raw, other, scaled = (
            {k: v.item() for k, v in BASES[name](*pair, Y, args, 20).items()}
            for pair, args in (((S, T), plain), ((S, T), standard), ((4 * S + 1, T), standard))
        )
        kept = {"batch", "class"} & raw.keys()
        assert all(raw[k] == other[k] for k in kept) and all(raw[k] != other[k] for k in raw.keys() - kept)
        assert all(scaled[k] == pytest.approx(other[k]) for k in raw.keys() - kept)  # no scale and no shift of the logits counts
    z, w = standardise(S), standardise(T)
    assert BASES["kd"](S, T, Y, standard, 0)["kd"].item() == pytest.approx(kl(z, w, 4.0).item())


def naive_rld(s, t, y, tau):
    """[confidence, masked] of RLD, image by image, as the paper writes them."""
    found = []
    for a, b, k in zip(s, t, y, strict=True):
        p, q, top = (a / tau).softmax(0), (b / tau).softmax(0), int(b.argmax())
        two = [(q[top], p[k]), (1 - q[top], 1 - p[k])]
        below = [i for i in range(len(a)) if b[i] < b[k]]
        u, v = ((x[below] / tau).softmax(0) for x in (a, b))
        found.append((sum(x * (x / y).log() for x, y in two), sum(v * (v / u).log()) if below else torch.zeros(()).double()))
    return [tau**2 * torch.stack(c).mean().item() for c in zip(*found, strict=True)]


def test_rld_is_its_formula_and_rises():
    y = torch.tensor([1, 2, 2])  # of the first image, the teacher ranks the label second; of the second, the label shares the second place
    args = parse(GDA.Args, ["--dkd_beta", "8"])
    got = [v.item() for v in BASES["rld"](S, T, y, args, 20).values()]
    confidence, masked = naive_rld(S, T, y, 4.0)
    assert got == pytest.approx([confidence, 8 * masked])
    assert [v.item() for v in BASES["rld"](S, T, y, args, 9).values()] == pytest.approx([v / 2 for v in got])
    last = T.argmin(1)  # nothing is ranked below
    s = S.clone().requires_grad_()
    masked = BASES["rld"](s, T, last, args, 20)["masked"]
    masked.backward()
    assert masked == 0 and (s.grad == 0).all()
    right = BASES["rld"](S, T, T.argmax(1), args, 20)  # where the teacher is right, RLD is DKD
    assert [v.item() for v in right.values()] == pytest.approx([v.item() for v in BASES["dkd"](S, T, T.argmax(1), args, 20).values()])


def test_adaptconf_rises_over_a_quarter_of_the_epochs_in_few_shot_learning():
    import fewshot_classifier

    args = parse(fewshot_classifier.Args, ["--base", "adaptconf", "--epochs", "40"])
    whole = BASES["adaptconf"](S, T, Y, args, 39)["own"].item()
    own = [BASES["adaptconf"](S, T, Y, args, e)["own"].item() for e in (0, 4, 8, 9)]
    assert own == pytest.approx([whole * v for v in (0.1, 0.5, 0.9, 1)])


# terms for S, T and Y, computed from the papers' formulas in float64
GOLDEN = {
    "kd": ({}, {"kd": 1.43557908655}),
    "dkd": ({"dkd_beta": 1.0, "kd_warmup": 0}, {"target": 1.10326653805, "others": 0.57125642431}),
    "dist": ({"t": 1.0, "dist_beta": 1.0, "dist_gamma": 1.0}, {"inter": 1.18561503663, "intra": 1.19403899446}),
    "adaptconf": ({}, {"kd": 1.37628863293, "own": 0.03390172084}),
    "rld": ({"dkd_beta": 1.0, "kd_warmup": 0}, {"confidence": 1.10326653805, "masked": 0.57125642431}),
    "mlkd": ({}, {"kd": 10.731796374892, "batch": 0.008476380245, "class": 0.015211181466}),
    "augconf": ({}, {"kd": 1.43557908655, "own": 0.0}),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_values_and_their_gradients(name):
    """The gradients are compared with central differences."""
    options, wanted = GOLDEN[name]
    args = parse(GDA.Args, flags(**options))
    total = lambda s: sum(BASES[name](s, T, Y, args, 0).values())  # noqa: E731
    assert {k: v.item() for k, v in BASES[name](S, T, Y, args, 0).items()} == pytest.approx(wanted, abs=1e-9)
    s = S.clone().requires_grad_()
    total(s).backward()
    if name != "adaptconf":  # its weight has no gradient: see above
        steps = 1e-6 * torch.eye(S.numel(), dtype=torch.double).view(-1, *S.shape)
        slopes = torch.stack([(total(S + d) - total(S - d)) / 2e-6 for d in steps]).view_as(S)
        assert torch.allclose(s.grad, slopes, atol=1e-6)


@pytest.mark.parametrize("base", ["kd", "dkd", "rld", "dist", "mlkd", "adaptconf"])
def test_losses_are_as_exact_where_nets_compute_in_bfloat16(base):
    args, s, t = parse(GDA.Args, ["--base", base]), S.float(), T.float()
    plain = distillation_terms(s, t, Y, args, 0)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(v, plain[k]) for k, v in distillation_terms(s, t, Y, args, 0).items())


def test_mixed_labels_count_for_dkd_as_their_largest():
    args, soft = parse(GDA.Args, []), F.one_hot(Y, 4) * 0.7 + 0.075
    a, b = (BASES["dkd"](S, T, y, args, 5) for y in (Y, soft))
    assert all(torch.equal(a[k], b[k]) for k in a)


# ---- the script


@pytest.mark.parametrize("name", ["none", "kd", "dkd", "rld", "dist", "mlkd", "augconf", "adaptconf"])
def test_the_terms_are_the_same_for_every_base_and_absent_where_not_wanted(name, script):
    common = {"epochs": 1, "lamda": 0.2, "base": name, "batch_size": 300, "lr": 1e-9}
    on, off = script("GDA", **common)["log"], script("GDA", **common | {"gda": False, "tag": "off"})["log"]
    assert set(on) - set(off) == {"fr", "sk"} and all(on[k] == off[k] for k in off if k not in ("seconds",))
    other = script("GDA", **common | {"base": "kd", "tag": "kd"})["log"]
    assert (on["fr"], on["sk"]) == (other["fr"], other["sk"])
    assert "sk" not in script("GDA", **common | {"w_sk": 0, "tag": "fr"})["log"]


def test_gdas_weights_keep_their_ratio_to_the_cross_entropy():
    for base in ("kd", "dkd", "mlkd", "none"):
        a = parse(GDA.Args, ["--preset", "mdistiller", "--base", base])
        assert (a.w_fr / a.w_gt, a.w_sk / a.w_gt) == (pytest.approx(0.02 / 2), pytest.approx(12.8 / 2))


def test_the_sinkhorn_term_of_parity_is_the_released_sum():
    a = parse(GDA.Args, ["--preset", "parity"])
    s, t = torch.randn(128, 10), torch.randn(128, 10)
    term = sinkhorn(s, t, tolerance=0.0).item() * len(s)  # released: 0.1 of the sum over the 128 images of a GPU
    assert alignment_terms(s, t, a)["sk"].item() == pytest.approx(0.1 * term, rel=1e-6)


@pytest.mark.parametrize("base", ["rld", "mlkd"])
def test_a_run_goes_on_where_it_was_killed(base, script, monkeypatch):
    options = {"epochs": 3, "lamda": 0.1, "base": base, "augment": "crop", "standardise": True}
    whole = script("GDA", **options, tag="whole")
    killed_after(2, monkeypatch, lambda: script("GDA", **options, tag="cut"))
    again = script("GDA", **options, tag="cut")
    assert again["log"] == whole["log"] and again["queries"] == whole["queries"]


def test_mlkd_sees_a_weak_and_a_strong_view_of_the_same_images(script, monkeypatch):
    from common.purchases import Purchases

    seen, two_views = [], Purchases.two_views

    def noted(self, *rows):
        batches = two_views(self, *rows)
        seen.append(next(iter(batches)))
        return batches

    monkeypatch.setattr(Purchases, "two_views", noted)
    result = script("GDA", epochs=2, lamda=0.2, base="mlkd", gda=False, batch_size=64, augment="crop")
    weak, t, y, strong, t2 = seen[0]
    assert weak.shape == strong.shape == (64, 1, 8, 8) and t.shape == t2.shape == (64, 10) and len(y) == 64
    assert not torch.equal(weak, strong) and result["queries"] == 2 * 2 * 259 + 128
    one = script("GDA", epochs=2, lamda=0.2, base="mlkd", gda=False, batch_size=64, augment="crop", views="1", tag="one")
    assert one["queries"] == 2 * 259


@pytest.mark.parametrize("more", [{"preset": "parity"}, {"preset": "timm", "augment": "auto", "mixup": 0.2}, {"mixup": 0.1, "base": "dkd"}])
def test_the_released_scripts_run(more, script):
    result = script("GDA", epochs=2, lamda=0.2, teacher_path=script.home / "other.pt", **more) if prepared(script, more) else None
    assert result["queries"] == 2 * 259 and {"gt", "fr", "sk"} < set(result["log"])


def test_parts_of_a_batch_are_batches_of_their_own(script):
    common = {"epochs": 1, "lamda": 0.2, "lr": 1e-12, "base": "dkd"}
    a, b = (script("GDA", **common, batch_size=n, ranks=r, tag=f"r{r}")["log"] for n, r in ((130, 2), (65, 1)))  # 65, 65, 65, 64 of 259
    assert {k: a[k] for k in ("gt", "target", "others", "fr", "sk")} == pytest.approx(
        {k: b[k] for k in ("gt", "target", "others", "fr", "sk")}, rel=1e-4
    )


def prepared(script, more):
    """A teacher that was trained with the preset's normalisation."""
    script("teacher", model="ResNet8", epochs=1, normalize="dataset" if "preset" in more else "half", tag="other")
    found = next((script.home / "checkpoints/teacher/Digits/ResNet8-other").rglob("teacher.pt"))
    return found.rename(script.home / "other.pt")


def test_mixed_images_are_nobodys(script):
    for more in ({"transfer": "x"}, {"cache": True, "augment": "crop"}):
        with pytest.raises(UsageError, match="leave out --cache and --transfer"):
            script("GDA", mixup=0.1, **more)


def test_labels_or_the_teachers_word_and_images_that_change(script):
    result = script("GDA", epochs=2, lamda=0.2, gt_source="teacher", augment="crop")
    assert result["queries"] == 2 * 259 and result["log"]["gt"] > 0
    script("MEKD", epochs=1, steps=2, lamda=0.2, queries=60, response="logits")
    bought = next((script.home / "checkpoints/MEKD").rglob("transfer.safetensors"))
    given = {"epochs": 1, "lamda": 0.2, "transfer": bought, "tag": "made"}
    with pytest.raises(UsageError, match="images without labels; use --gt_source teacher"):
        script("GDA", **given)
    assert script("GDA", **given, gt_source="teacher")["own"]["queries"] == 0
    with pytest.raises(UsageError, match="GDA needs logits answers, --response soft gives less"):
        script("GDA", response="soft")
