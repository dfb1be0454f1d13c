"""Every script, by glob: it explains itself, goes through, keeps to the house's laws. Who adds a script has added its test."""

from common.cli import Finished, UsageError

import importlib
import json
from dataclasses import fields

import pytest
import torch
from conftest import FEWSHOT, QUICK, SCRIPTS

from common.utils import read_json


@pytest.mark.parametrize("name", [*SCRIPTS, *FEWSHOT, "robustness"])
def test_help_tells_all_one_may_set_with_defaults(name, capsys):
    with pytest.raises(SystemExit) as e:
        importlib.import_module(name).main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert e.value.code == 0 and "Differs:" in text and f"python project/{name}.py" in text
    for option in ("--lamda", "--seed", "--dry_run", "(default: 0.9)", "ResNet8x4", "FashionMNIST"):
        assert option in text
    args = importlib.import_module(name).Args
    from common.options import described

    options = described(args)
    assert set(options) == {f.name for f in fields(args)} and all(o["help"] for o in options.values())  # each option has its words
    heads = [line for line in text.split("  ") if line.endswith(" options:")]
    assert heads == [f"{g} options:" for g in ("method", "training", "data", "teacher", "run") if f"{g} options:" in heads]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_dry_run_goes_through_and_keeps_nothing(name, script):
    before = sorted(script.home.rglob("*"))
    script(name, dry_run=True, lamda=0.2, overwrite=True)
    assert sorted(script.home.rglob("*")) == before


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_short_run_leaves_weights_log_and_result(name, script):
    epochs = 4 if name == "AM" else 2  # AM has four parts
    result = script(name, **QUICK.get(name, {}) | {"epochs": epochs, "lamda": 0.2, "eval_every": 1, "tag": "short"})
    folder = next((script.home / "checkpoints" / name).rglob("*-short/seed0"))
    log = [json.loads(line) for line in next((script.home / "logs" / name).rglob("log.jsonl")).read_text().splitlines()]
    assert [row["epoch"] for row in log] == [*range(1, epochs + 1)]
    assert read_json(folder / "result.json") == json.loads(json.dumps(result))
    assert {"options", "seconds", "device", "versions", "queries", "bytes", "private", "seed"} <= set(result)
    nets = [p for p in folder.glob("*.pt") if p.stem != "state"]
    assert len(nets) == (4 if name == "AEAHL" else 1) and (folder / "state.pt").exists()  # the generator's parts; for --extend
    assert all(torch.isfinite(v).all() for v in torch.load(nets[0], weights_only=True)["model"].values() if v.is_floating_point())


def test_kd_asks_once_about_each_private_image_and_sees_no_label(script):
    result = script("KD", epochs=3, lamda=0.2)
    assert result["queries"] == result["private"] == result["images"] == 259 and result["bytes"] == 259 * 64 * 4


def test_kd_with_augmentation_asks_at_every_step(script):
    result = script("KD", epochs=3, lamda=0.2, augment="crop")
    assert result["queries"] == 3 * 259


OWN_NUMBER = ("DCGAN", "DAFL", "ZSDB3KD", "AEAHL", "DFME", "IDEAL", "DFHL")  # of queries: it does not follow from the budget
NEEDS = {name: getattr(importlib.import_module(name).Args, "NEEDS", "") for name in SCRIPTS}
ASKS = [name for name in SCRIPTS if NEEDS[name]]


def quick(script, name, **options):
    return script(name, **{"epochs": 1, "lamda": 0.2} | QUICK.get(name, {}) | options)


@pytest.mark.parametrize("name, response", [(n, r) for n in ("KD", "KN", "AM", "MEKD", "DB3KD") for r in ("logits", "topk:3", "hard")])
def test_methods_that_need_a_class_only_work_from_any_answer(name, response, script):
    result = quick(script, name, response=response)
    assert result["queries"] and all(abs(v) < 1e6 for v in result["log"].values())


@pytest.mark.parametrize("name", ["KD", "ML", "AL", "DKD", "KN", "AM", "MEKD"])
def test_soft_and_logit_answers_train_the_same_student(name, script):
    """The losses see no more of the logits than the probabilities tell."""
    a, b = (quick(script, name, response=r)["log"] for r in ("soft", "logits"))
    terms = [k for k in a if k in ("kl", "mse", "adv", "critic", "target", "others", "ce", "image")]
    assert terms and all(a[k] == pytest.approx(b[k], rel=2e-3) for k in terms)


@pytest.mark.parametrize("name", ASKS)
def test_a_script_that_asks_says_what_it_needs_and_is_refused_less(name, script, capsys):
    from common.blackbox import RESPONSES

    needs = NEEDS[name]
    assert needs in RESPONSES
    with pytest.raises(SystemExit):
        importlib.import_module(name).main(["--help"])
    assert f"Needs: a teacher that answers {needs} or more" in capsys.readouterr().out
    if less := RESPONSES[: RESPONSES.index(needs)]:
        given = "topk:3" if less[-1] == "topk" else less[-1]
        with pytest.raises(UsageError, match=f"{name} needs {needs} answers, --response {given} gives less"):
            script(name, response=given)


@pytest.mark.parametrize("name", [n for n in ASKS if n not in OWN_NUMBER])
def test_every_method_keeps_to_its_budget(name, script, capsys):
    """MEKD's generator here has asked 518 of it in its training."""
    spent = 518 if name == "MEKD" else 0
    result = quick(script, name, query_budget=100 + spent, **({"epochs": 5, "first": 5000} if name == "AM" else {}))
    assert 20 <= result["own"]["queries"] <= 100 and result["queries"] == result["own"]["queries"] + spent
    assert any(f"-q{100 + spent}/seed0" in str(p) for p in script.home.rglob("result.json"))


@pytest.mark.parametrize(
    "name, more",
    [("DCGAN", {}), ("DAFL", {"steps": 5}), ("AEAHL", {"ep_steps": 20}), ("DFME", {}), ("IDEAL", {"epochs": 9}), ("DFHL", {"steps": 9})],
)
def test_methods_that_ask_at_every_step_refuse_a_budget_too_small(name, more, script):
    with pytest.raises(UsageError, match="allows (100|0) more queries"):
        quick(script, name, query_budget=100, **more)


@pytest.mark.parametrize("option", ["teacher", "model"])
def test_a_name_left_empty_is_answered(option, script):
    """`--teacher $T` of a shell that has no T; only the few-shot scripts go without a teacher."""
    with pytest.raises(UsageError, match="no model ''; there are: ResNet8"):
        script("KD", **{option: ""})


def test_students_that_need_no_queries_for_their_generator(script):
    result = quick(script, "DCGAN", alpha=0, tag="free")
    assert result["queries"] == 0
    result = quick(script, "MEKD", query_budget=100, generator_tag="free")
    assert result["queries"] == result["own"]["queries"] == 100


def test_kn_asks_exactly_its_budget_about_what_it_says(script):
    share, number = quick(script, "KN", budget=0.5, tag="a"), quick(script, "KN", budget=33, tag="b")
    assert share["queries"] == share["private"] == 130 and number["queries"] == 33
    adaptive = quick(script, "KN", budget=50, choice="adaptive", rounds=3, epochs=6, tag="c")
    assert adaptive["queries"] == adaptive["private"] == 50


def test_kn_asks_about_anothers_images(script, monkeypatch):
    from common import datasets

    g = torch.Generator().manual_seed(0)
    x, y = torch.randint(0, 256, (40, 3, 12, 12), dtype=torch.uint8, generator=g), torch.arange(40) % 4
    monkeypatch.setitem(datasets.DATASETS, "other", datasets.Spec(4, 3, 12, lambda folder, train: (x, y), "nothing"))
    for choice in ("random", "adaptive"):
        result = quick(script, "KN", pool="Other", budget=30, choice=choice, rounds=2, tag=choice)
        assert result["public"] == result["queries"] == 30 and result["private"] == 0 and result["bytes"] == 30 * 64 * 4
    path = next((script.home / "checkpoints/KN").rglob("*random/seed0/transfer.safetensors"))
    again = quick(script, "KD", transfer=path, tag="again")
    assert again["public"] == 30 and again["own"]["queries"] == 0


def test_the_adaptive_choice_prefers_what_was_worth_more():
    from KN import Policy, rewards

    policy = Policy(3)
    for _ in range(5):
        policy.learn(torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([2.0, 2, 1, 1, 0, 0]))
    assert policy.mean.item() == pytest.approx(1) and policy.H[0] > policy.H[1] > policy.H[2] and policy.taken.tolist() == [10, 10, 10]
    p = torch.tensor([[0.9, 0.1, 0.0], [0.4, 0.3, 0.3]])
    s = torch.zeros(2, 3)
    r = rewards(s, p, torch.full((3,), 1 / 3))
    assert r.tolist() == pytest.approx([0.8 + (0.9 - 1 / 3) + 1, 0.1 + (0.4 - 1 / 3) + 1], abs=1e-5)


def test_am_takes_the_weight_at_which_the_student_is_least_sure():
    """By brute force on 20 pairs, one mix at a time."""
    from AM import draw_pairs, least_confident

    from common.models import build

    torch.manual_seed(0)
    net = build("ResNet8", 10, (1, 8, 8), "cpu").eval()
    x = torch.randint(0, 256, (9, 1, 8, 8), dtype=torch.uint8)
    view = lambda u: u.float() / 127.5 - 1  # noqa: E731
    weights = torch.arange(0.3, 0.72, 0.04)
    pairs = draw_pairs(9, 20, torch.Generator().manual_seed(0))
    assert len(weights) == 11 and len({tuple(p) for p in pairs.tolist()}) == 20 and (pairs[:, 0] < pairs[:, 1]).all()
    score, weight = least_confident(net, view, x, pairs, weights, size=50)
    with torch.no_grad():
        for (i, j), s, w in zip(pairs.tolist(), score, weight, strict=True):
            tops = [net(v * view(x[i : i + 1]) + (1 - v) * view(x[j : j + 1])).log_softmax(1).max().item() for v in weights]
            assert s.item() == pytest.approx(min(tops), abs=1e-5) and w == weights[tops.index(min(tops))]


@pytest.mark.parametrize("n, m", [(5, 100), (1000, 300)])
def test_am_draws_each_pair_once(n, m):
    from AM import draw_pairs

    pairs = draw_pairs(n, m, torch.Generator().manual_seed(0))
    assert len(pairs) == min(m, n * (n - 1) // 2) == len(pairs.unique(dim=0)) and (pairs[:, 0] < pairs[:, 1]).all() and pairs.max() < n


def test_am_asks_about_private_images_then_mixes_and_never_twice(script):
    result = quick(script, "AM", first=40, queries=300, pairs=300, epochs=5)
    assert result["private"] == 40 and result["mixed"] == 900 and result["queries"] == 940
    from common.transfer import Transfer

    rows = Transfer(next((script.home / "checkpoints/AM").rglob("transfer.safetensors"))).columns
    assert len(rows["index"].unique(dim=0)) == 940 and (rows["weight"][:40] == 1).all()
    assert rows["weight"][40:].min() >= 0.3 - 1e-6 and rows["weight"][40:].max() <= 0.7 + 1e-6


def test_db3kd_counts_points_between_images_and_sd_asks_only_for_classes(script):
    sd, bd = (quick(script, "DB3KD", sr_mode=m, tag=m) for m in ("sd", "bd"))
    assert sd["queries"] == sd["private"] == 259
    assert bd["private"] == 259 and bd["mixed"] > 259 * 9 * 10 and bd["queries"] == bd["private"] + bd["mixed"]
    from common.transfer import Transfer

    near, far = (
        Transfer(next((script.home / "checkpoints/DB3KD").rglob(f"*-{m}/seed0/transfer.safetensors"))).columns for m in ("bd", "sd")
    )
    own = near["answers"].bool()
    assert (near["bd"] <= far["sd"] + 1e-6).all() and (near["bd"][own] == float("inf")).all()
    assert near["bd"][~own].isfinite().all() and near["bd_asked"].sum() == bd["mixed"] and far["sd_asked"].sum() == 0


def test_dafl_looks_inside_and_sends_nothing(script):
    result = quick(script, "DAFL", steps=3, batch_size=16)
    assert result["synthetic"] == result["queries"] == 48 and result["bytes"] == result["private"] == 0
    assert set(result["copying"]) == {"synthetic_median", "private_median", "closer"}


def test_fidelity_and_calibration_stand_beside_accuracy(script):
    result = quick(script, "KD")
    assert result["teacher_kl"] > 0 and 0 <= result["ece"] <= 100
    same = script("KD", epochs=1, lamda=0.2, model="ResNet8", response="inside", tag="inside")
    assert same["queries"] == 259  # a white box is asked as any other


def test_the_edges_own_data_set(script, monkeypatch):
    """--private: images of another data set, resized and made grey as the teacher's; tested on its test images."""
    from common import datasets

    g = torch.Generator().manual_seed(0)
    x, y = torch.randint(0, 256, (60, 3, 12, 12), dtype=torch.uint8, generator=g), torch.arange(60) % 10
    monkeypatch.setitem(
        datasets.DATASETS, "edge", datasets.Spec(10, 3, 12, lambda folder, train: (x, y) if train else (x[:20], y[:20]), "nothing")
    )
    result = quick(script, "KD", private="Edge", lamda=0.5)
    assert result["queries"] == 30 and result["accuracy"] % 5 == 0
    assert next((script.home / "checkpoints/KD/Digits-edge").rglob("student.pt"))
    with pytest.raises(UsageError, match="first run: python project/DCGAN.py .* --lamda 0.5 --private edge --checkpoints_dir"):
        quick(script, "MEKD", private="edge", lamda=0.5)
    quick(script, "DCGAN", private="edge", lamda=0.5)
    assert quick(script, "MEKD", private="edge", lamda=0.5)["private"] == 0


@pytest.mark.parametrize("name", ASKS)
def test_every_method_trains_in_bfloat16(name, script):
    more = {"sr_mode": "bd"} if name == "DB3KD" else {"steps": 2, "batch_size": 16} if name == "DAFL" else {}
    result = quick(script, name, amp="bf16", tag="bf16", **more)
    assert all(abs(v) < 1e4 for v in result["log"].values() if not isinstance(v, list))


def test_mekd_sends_no_private_image_and_counts_the_generators_queries(script):
    result = script("MEKD", epochs=2, steps=3, batch_size=10, lamda=0.2)
    assert result["private"] == 0 and result["own"]["queries"] == 2 * 3 * 10
    generator = torch.load(next((script.home / "checkpoints/DCGAN").rglob("generator.pt")), weights_only=True)["meta"]
    assert generator["counts"]["queries"] == 2 * 259 and result["queries"] == 60 + 518


def test_mekd_with_a_number_of_queries_asks_just_those(script):
    result = script("MEKD", epochs=2, steps=3, batch_size=10, queries=50, lamda=0.2)
    assert result["own"]["queries"] == 50


def test_mekds_image_term_is_zero_where_the_student_is_the_teacher(script, monkeypatch):
    """With the teacher's weights and in evaluation mode the student gives t, so that both terms vanish; L2 too."""
    mekd = importlib.import_module("MEKD")
    from common.run import Run

    def fit(run, batches, loss, **more):
        run.student.load_state_dict(run.teacher.net.state_dict())
        run.student.eval()
        with torch.no_grad():
            terms = loss(*next(iter(batches)))
        run.seen = {k: v.item() for k, v in terms.items()}
        monkeypatch.setattr(Run, "finish", lambda self: self.seen)
        raise StopIteration(run.seen)

    monkeypatch.setattr(Run, "fit", fit)
    for F in "12":
        flags = ["--dataset", "Digits", "--teacher", "ResNet8", "--model", "ResNet8", "--lamda", "0.2", "--response", "logits", "--F", F]
        with pytest.raises(StopIteration) as e:
            mekd.main([*flags, "--tag", F, "--checkpoints_dir", str(script.home / "checkpoints"), "--logs_dir", str(script.home / "logs")])
        assert e.value.value == pytest.approx({"image": 0, "kl": 0}, abs=1e-6)


def test_dcgan_weighs_by_the_top_probability_or_one(script):
    """The information term is alpha * (w * surprise): with hard answers w = 1, so that it is alpha times the plain term."""
    hard = script("DCGAN", epochs=1, lamda=0.2, response="hard", alpha=0.25)["log"]
    soft = script("DCGAN", epochs=1, lamda=0.2, alpha=0.25, tag="soft")["log"]
    assert hard["im"] == pytest.approx(0.25 * hard["g"], rel=1e-5)
    assert 0.025 * soft["g"] < soft["im"] < 0.25 * soft["g"]


def test_dcgan_shows_samples_and_how_the_teacher_sees_them(script):
    row = script("DCGAN", epochs=2, lamda=0.2, eval_every=1, tag="seen")["log"]
    assert sum(row["classes"]) == pytest.approx(1) and len(row["classes"]) == 10 and 0.1 <= row["top"] <= 1
    from PIL import Image

    pictures = sorted((script.home / "logs" / "DCGAN").rglob("samples_*.png"))
    assert [p.name for p in pictures] == ["samples_0001.png", "samples_0002.png"]
    assert Image.open(pictures[0]).size == (10 * 10 + 2, 10 * 10 + 2)


def test_a_validation_split_is_kept_from_training_and_evaluated(script):
    result = script("CE", epochs=1, val=0.2, lamda=1.0)
    assert result["split"] == "validation" and result["images"] == 1297 - 259


def test_the_same_share_for_every_method_and_another_for_another_seed(script, monkeypatch):
    from common.run import Run

    shares = []
    monkeypatch.setattr(Run, "fit", lambda run, *a, **k: shares.append(run.private.x))
    monkeypatch.setattr(Run, "finish", lambda run, **k: None)
    script("CE", lamda=0.2)
    script("KD", lamda=0.2)
    script("KD", lamda=0.2, seed=1)
    assert torch.equal(shares[0], shares[1]) and not torch.equal(shares[1], shares[2])


def test_a_finished_run_says_so_and_does_nothing(script, capsys):
    script("CE", epochs=1)
    file = next((script.home / "checkpoints/CE").rglob("student.pt"))
    stamp = file.stat().st_mtime_ns
    with pytest.raises(Finished, match="finished before: CE ResNet8 on Digits") as e:
        script("CE", epochs=1)
    assert e.value.result["script"] == "CE" and file.stat().st_mtime_ns == stamp
    script("CE", epochs=1, overwrite=True)
    assert file.stat().st_mtime_ns != stamp


def test_another_teacher_in_its_place_is_noticed(script):
    script("KD", epochs=1)
    script("teacher", model="ResNet8", epochs=1, overwrite=True)
    with pytest.raises(UsageError, match=r"teacher.pt \(changed since\)"):
        script("KD", epochs=1)


@pytest.mark.parametrize("name, more", [
    ("DCGAN", {"dropout": 0.25}), ("AL", {"lr_critic": 1e-3}), ("KD", {"kl_scale": "t"}), ("DKD", {"kl_scale": "1"}), ("KN", {"kl_scale": "t"}), ("MEKD", {"gen_t": 2.0}), ("MEKD", {"w_f": 0.5}),
    ("CE", {"momentum": 0.5}), ("CE", {"zoom": True}),
])  # fmt: skip
def test_an_option_changes_the_run(name, more, script):
    plain, other = (quick(script, name, epochs=2, **given, tag=tag)["log"] for given, tag in (({}, "plain"), (more, "other")))
    assert {k: v for k, v in plain.items() if k != "epoch"} != {k: v for k, v in other.items() if k != "epoch"}


def test_a_generator_by_its_path_is_that_of_its_run(script):
    path = next((script.home / "checkpoints/DCGAN").rglob("generator.pt"))
    a, b = (quick(script, "MEKD", **given)["log"] for given in ({}, {"generator_path": path, "tag": "path"}))
    assert a == b
