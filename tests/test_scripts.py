"""Every script, by glob: it explains itself, goes through, keeps to the house's laws. Who adds a script has added its test."""

import ast
import importlib
import json
from dataclasses import fields

import pytest
import torch
from conftest import ROOT, SCRIPTS

from common.utils import UsageError


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_tells_all_one_may_set_with_defaults(name, capsys):
    with pytest.raises(SystemExit) as e:
        importlib.import_module(name).main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert e.value.code == 0 and "Differs:" in text and f"python project/{name}.py" in text
    for option in ("--lamda", "--seed", "--dry_run", "(default: 0.9)", "ResNet8x4", "FashionMNIST"):
        assert option in text
    args = importlib.import_module(name).Args
    from common.options import helps

    assert set(helps(args)) == {f.name for f in fields(args)}  # each option has its words


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_dry_run_goes_through_and_keeps_nothing(name, script):
    before = sorted(script.home.rglob("*"))
    script(name, dry_run=True, lamda=0.2, overwrite=True)
    assert sorted(script.home.rglob("*")) == before


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_short_run_leaves_weights_log_and_result(name, script):
    result = script(name, epochs=2, lamda=0.2, eval_every=1, tag="short")
    folder = next((script.home / "checkpoints" / name).rglob("*-short/seed0"))
    log = [json.loads(line) for line in next((script.home / "logs" / name).rglob("log.jsonl")).read_text().splitlines()]
    assert [row["epoch"] for row in log] == [1, 2]
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(result))
    assert {"options", "seconds", "device", "versions", "queries", "bytes", "private", "seed"} <= set(result)
    nets = [p for p in folder.glob("*.pt") if p.stem not in ("state", "answers")]
    assert len(nets) == 1 and not (folder / "state.pt").exists()
    assert all(torch.isfinite(v).all() for v in torch.load(nets[0], weights_only=True)["model"].values() if v.is_floating_point())


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_read_in_one_look_and_imports_no_script(name):
    text = (ROOT / "project" / f"{name}.py").read_text()
    assert len(text.splitlines()) <= 90
    roots = {n.module.split(".")[0] for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom)}
    roots |= {a.name.split(".")[0] for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Import) for a in n.names}
    assert not roots & {*SCRIPTS, "table"}


def test_common_imports_no_script_and_makes_no_circle():
    graph = {}
    for path in (ROOT / "project" / "common").glob("*.py"):
        nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)]
        assert not {n.module for n in nodes if not n.level} & {*SCRIPTS, "table"}
        graph[path.stem] = {(n.module or "").split(".")[0] for n in nodes if n.level}

    def reach(room, seen=()):
        assert room not in seen, f"a circle: {' -> '.join([*seen, room])}"
        for other in graph.get(room, ()):
            reach(other, (*seen, room))

    for room in graph:
        reach(room)


def test_kd_asks_once_about_each_private_image_and_sees_no_label(script):
    result = script("KD", epochs=3, lamda=0.2)
    assert result["queries"] == result["private"] == result["images"] == 259 and result["bytes"] == 259 * 64 * 4


def test_kd_with_augmentation_asks_at_every_step(script):
    result = script("KD", epochs=3, lamda=0.2, augment="crop")
    assert result["queries"] == 3 * 259


@pytest.mark.parametrize("response", ["logits", "topk:3", "hard"])
def test_kd_and_mekd_work_from_other_answers(response, script):
    for name, more in {"KD": {}, "MEKD": {"steps": 2}}.items():
        result = script(name, epochs=1, lamda=0.2, response=response, **more)
        assert result["queries"] and all(abs(v) < 1e6 for v in result["log"].values())


def test_soft_and_logit_answers_train_the_same_student(script):
    """KD's and MEKD's losses see no more of the logits than the probabilities tell."""
    for name, more in {"KD": {}, "MEKD": {"steps": 2}}.items():
        a, b = (script(name, epochs=1, lamda=0.2, response=r, **more)["log"] for r in ("soft", "logits"))
        assert a["kl"] == pytest.approx(b["kl"], rel=1e-3)


@pytest.mark.parametrize("name", ["DCGAN", "MEKD"])
def test_generators_and_their_students_train_in_bfloat16(name, script):
    result = script(name, epochs=1, lamda=0.2, amp="bf16", tag="bf16", **({"steps": 2} if name == "MEKD" else {}))
    assert all(abs(v) < 100 for v in result["log"].values() if not isinstance(v, list))


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

    def fit(run, batches, loss):
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
    with pytest.raises(SystemExit) as e:
        script("CE", epochs=1)
    assert e.value.code == 0 and "finished before: CE ResNet8 on Digits" in capsys.readouterr().out and file.stat().st_mtime_ns == stamp
    script("CE", epochs=1, overwrite=True)
    assert file.stat().st_mtime_ns != stamp


def test_another_teacher_in_its_place_is_noticed(script):
    script("KD", epochs=1)
    script("teacher", model="ResNet8", epochs=1, overwrite=True)
    with pytest.raises(UsageError, match=r"teacher.pt \(changed since\)"):
        script("KD", epochs=1)
