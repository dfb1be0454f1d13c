"""Transfer sets: bought once, whatever happens; used again; refused where they do not fit."""

from common.cli import UsageError

import json
import shutil

import pytest
import torch
from conftest import NET, SCRIPTS, Death, dying, run
from safetensors.torch import save_file

from common.blackbox import BlackBox
from common.purchases import Purchases
from common.run import Run
from common.transfer import Transfer

QUICK = {"epochs": 2, "lamda": 0.2}
RESPONSE = {"DB3KD": "hard", "ZSDB3KD": "hard", "GDA": "logits"}
BUYERS = [n for n in SCRIPTS if n not in ("teacher", "CE", "DCGAN", "DAFL", "AEAHL", "DFME", "IDEAL", "DFHL")]
FEW = {"MEKD": {"queries": 120, "steps": 2}, "AM": {"first": 60, "queries": 30, "pairs": 200, "epochs": 4}, "KN": {"budget": 0.5}}
FEW["ZSDB3KD"] = {"samples": 6, "iterations": 1, "sr_mode": "sd"}


def file_of(home, name):
    return next((home / "checkpoints" / name).rglob("transfer.safetensors"))


def asks_nothing(monkeypatch):
    monkeypatch.setattr(BlackBox, "__call__", lambda *a, **k: pytest.fail("the teacher was asked"))


@pytest.mark.parametrize("name", BUYERS)
def test_every_method_leaves_its_answers_and_another_run_needs_no_query(name, script, monkeypatch):
    few = FEW.get(name, {})
    first = script(name, **QUICK | few)
    path = file_of(script.home, name)
    kept = Transfer(path)
    assert kept.about["counts"] == {k: first[k] for k in kept.about["counts"]} and kept.about["dataset"] == "Digits"
    assert len(kept.columns["answers"]) == len(kept) and len(kept) >= 50
    asks_nothing(monkeypatch)
    again = script("KD", **QUICK, transfer=path, tag="again", response=RESPONSE.get(name, "soft"))
    assert again["own"]["queries"] == 0 and again["queries"] == first["queries"] and again["bytes"] == first["bytes"]


@pytest.mark.parametrize("name", [n for n in BUYERS if n != "AM"])
def test_every_method_trains_on_anothers_answers(name, script, monkeypatch):
    response = RESPONSE.get(name, "soft")
    script("KD", **QUICK, response=response)
    asks_nothing(monkeypatch)
    more = {"sr_mode": "sd"} if name in ("DB3KD", "ZSDB3KD") else {"steps": 2} if name == "MEKD" else {}
    result = script(name, **QUICK, **more, transfer=file_of(script.home, "KD"), tag="given", response=response)
    assert result["own"]["queries"] == 0 and result["private"] >= 259


def test_am_starts_from_bought_answers_and_adds_mixes(script):
    script("KD", **QUICK)
    result = script("AM", epochs=5, lamda=0.2, queries=20, pairs=300, transfer=file_of(script.home, "KD"))
    assert result["own"]["queries"] == result["mixed"] == 60 and result["queries"] == 259 + 60
    assert Transfer(file_of(script.home, "AM")).ends == [259, 279, 299, 319]


def test_images_cannot_be_added_to_pairs(script):
    script("MEKD", **QUICK, **FEW["MEKD"])
    with pytest.raises(UsageError, match="holds images, to which this method cannot add"):
        script("AM", epochs=5, lamda=0.2, queries=20, pairs=300, transfer=file_of(script.home, "MEKD"))


@pytest.mark.parametrize("name, at, more", [
    ("KD", 2, {}), ("MEKD", 2, {"queries": 120, "steps": 2}), ("DB3KD", 30, {}), ("AM", 4, {"first": 40, "queries": 30, "pairs": 200, "epochs": 5}),
    ("KN", 5, {"budget": 1, "choice": "adaptive", "rounds": 4, "epochs": 8}),
])  # fmt: skip
def test_killed_while_buying_pays_only_for_what_is_left_and_ends_the_same(name, at, more, trained, tmp_path, monkeypatch):
    """Answers come 20 at a time; the process dies in the midst of them, goes on, and ends with the same weights and counts."""
    grow = Purchases.grow
    monkeypatch.setattr(Purchases, "grow", lambda self, make, n, size, stop: grow(self, make, n, 100 if name == "DB3KD" else 20, stop))
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    for home in (straight, cut):
        shutil.copytree(trained / "checkpoints", home / "checkpoints")
    options = {"teacher": "ResNet8", **QUICK, **more}
    whole = run(name, straight, **options)
    with monkeypatch.context() as m:
        m.setattr(BlackBox, "__call__", dying(at))
        with pytest.raises(Death):
            run(name, cut, **options)
    bought = Transfer(file_of(cut, name))
    assert bought.about["own"]["queries"] > 0 and len(bought.columns["answers"]) <= len(bought)
    counted, count = [], BlackBox.count
    with monkeypatch.context() as m:
        m.setattr(BlackBox, "count", lambda self, x, *a, **k: (counted.append(len(x)), count(self, x, *a, **k))[1])
        resumed = run(name, cut, **options)
    assert sum(counted) == whole["own"]["queries"] - bought.about["own"]["queries"]
    assert {k: resumed[k] for k in ("accuracy", "own")} == {k: whole[k] for k in ("accuracy", "own")}
    assert resumed["queries"] == whole["queries"] + resumed["repeated"] and (resumed["repeated"] > 0) == (name == "DB3KD")  # of a wave
    nets = [torch.load(next((h / "checkpoints" / name).rglob("student.pt")), weights_only=True)["model"] for h in (straight, cut)]
    assert all(torch.equal(nets[0][k], nets[1][k]) for k in nets[0])


def test_another_run_of_the_folder_is_not_continued(script, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(Run, "fit", lambda *a, **k: (_ for _ in ()).throw(Death))
        with pytest.raises(Death):
            script("KD", **QUICK)
    with pytest.raises(UsageError, match=r"holds a run with --lamda 0.2 \(now 0.3\)"):
        script("KD", epochs=2, lamda=0.3)


def change(path, **about):
    t = Transfer(path)
    if about.get("data") == "changed":
        about["data"] = t.about["data"] | {"train": {"images": 99, "hash": "0123456789ab"}}
    save_file(t.columns, path, {"transfer": json.dumps(t.about | about)})


@pytest.mark.parametrize("about, words", [
    ({"teacher": "0123456789ab"}, "its teacher is 0123456789ab, this run's is"), ({"response": "hard"}, "its response is hard, this run's is soft"),
    ({"classes": 7}, "its answers have 10 classes; expected 7"), ({"val": 0.5}, "its val is 0.5"), ({"dataset": "Digit"}, "did you mean Digits"),
    ({"data": "changed"}, r"was bought for other images of Digits: train set: 99 images \(now 1,297\); buy answers anew"),
])  # fmt: skip
def test_a_file_that_does_not_fit_is_refused(about, words, script):
    script("KD", **QUICK)
    change(file_of(script.home, "KD"), **about)
    with pytest.raises(UsageError, match=words) as e:
        script("ML", **QUICK, transfer=file_of(script.home, "KD"))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("kind, words", [
    ("none", "no file .*transfer.safetensors"), ("empty", "is not a readable transfer set"), ("cut", "is not a readable transfer set"),
    ("foreign", "is not a readable transfer set"), ("other", "another kind of file: it does not hold dataset"), ("broken", "is not a readable transfer set"),
])  # fmt: skip
def test_a_file_that_is_none_is_one_line(kind, words, script):
    script("KD", **QUICK)
    path = file_of(script.home, "KD")
    content = path.read_bytes()
    if kind == "none":
        path.unlink()
    elif kind == "other":
        save_file({"weight": torch.ones(3)}, path)
    elif kind == "broken":
        save_file({"weight": torch.ones(3)}, path, {"transfer": "{"})
    else:
        path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "foreign": b"not a transfer set at all"}[kind])
    with pytest.raises(UsageError, match=words) as e:
        script("ML", **QUICK, transfer=path)
    assert "\n" not in str(e.value)


def test_augmented_images_have_no_bought_answers(script):
    script("KD", **QUICK)
    with pytest.raises(UsageError, match="buys answers to images as they are, once; --augment crop would change them"):
        script("ML", **QUICK, transfer=file_of(script.home, "KD"), augment="crop")


def test_kd_of_kds_transfer_set_is_the_same_run(script):
    first = script("KD", **QUICK)
    again = script("KD", **QUICK, transfer=file_of(script.home, "KD"), tag="again")
    assert again["log"] == first["log"]


def test_overwriting_keeps_what_the_run_is_to_be_made_from(script):
    script("KD", **QUICK)
    path = file_of(script.home, "KD")
    with pytest.raises(UsageError, match="--transfer .*/transfer.safetensors lies in .*, which --overwrite empties; give --tag NAME"):
        script("KD", **QUICK, transfer=path, overwrite=True)
    assert len(Transfer(path)) == 259


@pytest.mark.parametrize("name, budget, own", [("AM", 300, 39), ("KN", 259, 0)])
def test_bought_answers_are_of_the_budget(name, budget, own, script):
    """259 are spent: AM's rounds share the rest, KN buys nothing and needs none."""
    script("KD", **QUICK)
    more = {"epochs": 5, "pairs": 300} if name == "AM" else {}
    result = script(name, **QUICK | more, transfer=file_of(script.home, "KD"), query_budget=budget, tag="rest")
    assert result["own"]["queries"] == own and result["queries"] == 259 + own


# ---- another teacher of the same file


@pytest.fixture
def two(script, tmp_path):
    """A file with two state dicts, model and ema, and the options of a run that asks the first one."""
    state = torch.load(next((script.home / "checkpoints/teacher").rglob("teacher.pt")), weights_only=True)["model"]
    torch.save({"model": state, "ema": {k: v * 0.5 for k, v in state.items()}}, tmp_path / "two.pth")
    return QUICK | {"teacher_path": tmp_path / "two.pth"}


def ledgers(home):
    return sorted(p.name for p in (home / "checkpoints/ledgers").glob("*.sqlite"))


@pytest.mark.parametrize("more, words", [
    ({"weights": "ema"}, "its teacher is"), ({"teacher_normalize": "0.9,0.1"}, "its teacher is"), ({"img_size": 16}, "its image size is 8, this run's is 16"),
])  # fmt: skip
def test_answers_of_another_net_of_the_same_file_are_not_taken(more, words, two, script):
    """Other weights of the file, the same weights behind another normalisation, or images of another size: by transfer set or by ledger."""
    first = script("KD", **two, ledger=True)
    path = file_of(script.home, "KD")
    assert Transfer(path).about["teacher"] == first["sources"][str(two["teacher_path"])] in ledgers(script.home)[0]  # as it always was
    with pytest.raises(UsageError, match=words) as e:
        script("ML", **two | more, transfer=path)
    assert "buy answers anew" in str(e.value) and "\n" not in str(e.value)
    asked = [script("KD", **two | more, ledger=True, tag=tag)["api"] for tag in ("other", "again")]
    assert [a["images"] for a in asked] == [259, 0] and [a["hits"] for a in asked] == [0, 259]
    other = next((script.home / "checkpoints/KD").glob("*/*-other/*/transfer.safetensors"))
    script("ML", **two | more, transfer=other)
    with pytest.raises(UsageError, match="its teacher is|its image size is 16, this run's is 8"):
        script("ML", **two, transfer=other, tag="first")


@pytest.mark.parametrize("name, value", [("weights", "ema"), ("teacher_normalize", "0.9,0.1")])
def test_a_transfer_set_of_before_says_its_teacher_by_its_options(name, value, two, script):
    """Earlier versions wrote the identity of the teacher's file, whatever made the net of it."""
    script("KD", **two)
    path = file_of(script.home, "KD")
    change(path, options=Transfer(path).about["options"] | {name: value})
    with pytest.raises(UsageError, match=f"its --{name} is {value}, this run's is not given; buy answers anew"):
        script("ML", **two, transfer=path)
    next((script.home / "checkpoints/teacher").rglob("teacher.pt")).unlink()  # without weights they are compared as far as they are given
    other = "0.5,0.5" if name == "teacher_normalize" else "other"
    with pytest.raises(UsageError, match=f"its --{name} is {value}, this run's is {other}"):
        script("ML", **QUICK, transfer=path, **{name: other})
    script("ML", **QUICK, transfer=path)


def test_a_net_whose_code_has_changed_is_another_teacher(script, tmp_path):
    """FILE.py:CLASS: neither its code of before, nor another class of the file, gives the same answers with the same weights."""
    code = tmp_path / "nets.py"
    code.write_text(NET)
    script("teacher", **QUICK, model=f"{code}:Net")
    own = next((script.home / "checkpoints/teacher").glob("*/file-*/*/teacher.pt")).rename(tmp_path / "own.pt")
    options = QUICK | {"teacher": f"{code}:Net", "teacher_path": own}
    script("KD", **options, ledger=True)
    path = file_of(script.home, "KD")
    assert script("KD", **options, ledger=True, tag="b")["api"]["hits"] == 259
    script("ML", **options, transfer=path)
    with pytest.raises(UsageError, match="its teacher is"):
        script("ML", **options | {"teacher": f"{code}:Other"}, transfer=path)
    code.write_text(NET.replace("cos", "sin"))
    with pytest.raises(UsageError, match="its teacher is"):
        script("ML", **options, transfer=path, tag="c")
    assert script("KD", **options, ledger=True, tag="d")["api"]["images"] == 259


def test_a_generator_of_another_net_of_the_same_file_is_refused(two, script):
    script("DCGAN", **two, tag="two")
    more = {"generator_tag": "two", "steps": 2}
    script("MEKD", **two, **more)
    with pytest.raises(UsageError, match="does not fit this run: teacher "):
        script("MEKD", **two, **more, weights="ema", tag="ema")


def test_answers_of_another_function_of_the_same_file_are_not_taken(script, tmp_path):
    (tmp_path / "api.py").write_text("def a(x):\n    return x.float().flatten(1)[:, 18:28]\n\ndef b(x):\n    return -a(x)\n")
    options = QUICK | {"response": "logits"}
    script("KD", **options, teacher=f"py:{tmp_path}/api.py:a")
    path = file_of(script.home, "KD")
    script("ML", **options, teacher=f"py:{tmp_path}/api.py:a", transfer=path)
    with pytest.raises(UsageError, match="its function is a, this run's is b"):
        script("ML", **options, teacher=f"py:{tmp_path}/api.py:b", transfer=path)
