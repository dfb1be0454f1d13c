"""The identity of data: what is trained on, tested and bought stays what it was when files come and go; or the change is said."""

from common.cli import UsageError

import shutil

import numpy as np
import pytest
import torch
from conftest import Death, run
from PIL import Image

from common.options import Base
from common.run import Run


def picture(path, level, seed):
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((level + rng.integers(0, 60, (12, 12, 3))).astype(np.uint8)).save(path)


@pytest.fixture
def mine(tmp_path):
    """A folder of 3 classes with 20 pictures each, not split."""
    for k, name in enumerate(("ant", "bee", "cow")):
        for i in range(20):
            picture(tmp_path / "mine" / name / f"{i:02}.png", 60 * k, 100 * k + i)
    return tmp_path / "mine"


SHORT = {"model": "ResNet8", "img_size": 8, "workers": 0, "epochs": 1, "lamda": 1.0, "device": "cpu"}


def parts(folder, **options):
    """{part: set of relative paths} of what a run would train on and test."""
    from dataclasses import dataclass

    from common.options import flags, opt

    @dataclass
    class Args(Base):
        model: str = opt("ResNet8", "net")

    where = {"checkpoints_dir": folder.parent / "c", "logs_dir": folder.parent / "l", "tag": str(len(options)) + folder.name}
    made = Run(Args, flags(**where, dataset=f"folder:{folder}", **SHORT | {"dry_run": True} | options))
    made.record.lock.release(force=True)
    return {"train": {*made.private.paths}, "test": {*made.test.paths}, "all": {*made.data.train.paths}}


@pytest.mark.parametrize("options", [{}, {"val": 0.3}, {"lamda": 0.5}, {"lamda": 0.5, "seed": 3, "val": 0.2}])
def test_a_new_picture_moves_no_other(mine, options):
    before = parts(mine, **options)
    for i in range(5):
        picture(mine / "bee" / f"new{i}.png", 60, i)
    after = parts(mine, **options)
    for part in ("train", "test"):
        assert before[part] <= after[part] and all("new" in p for p in after[part] - before[part])
    assert not after["train"] & after["test"] and before["train"]


def test_a_teacher_is_not_tested_on_what_it_was_trained_on(mine, tmp_path):
    """As in the report: one picture added, and all test images had been trained on."""
    first = parts(mine)
    picture(mine / "ant" / "one_more.png", 0, 7)
    second = parts(mine)
    assert not second["test"] & first["all"]


def test_answers_do_not_go_to_other_pictures(mine, tmp_path, monkeypatch):
    """Classes renamed, or pictures removed, between purchase and use: said, on resume and by --transfer."""
    dataset = {"dataset": f"folder:{mine}"}
    run("teacher", tmp_path, **SHORT, **dataset)
    asking = SHORT | dataset | {"teacher": "ResNet8"}
    run("KD", tmp_path, **asking)
    bought = next((tmp_path / "checkpoints/KD").rglob("transfer.safetensors"))
    with monkeypatch.context() as m:
        m.setattr(Run, "fit", lambda *a, **k: (_ for _ in ()).throw(Death))
        with pytest.raises(Death):
            run("ML", tmp_path, **asking)
    kept = tmp_path / "kept"
    shutil.copytree(mine, kept)
    for path in sorted((mine / "cow").iterdir())[:5]:
        path.unlink()
    for call in (lambda: run("ML", tmp_path, **asking), lambda: run("DKD", tmp_path, transfer=bought, **asking)):
        with pytest.raises(UsageError, match=r"train set: \d+ images \(now \d+\)") as e:
            call()
        assert "\n" not in str(e.value)
    shutil.rmtree(mine)
    shutil.copytree(kept, mine)
    run("DKD", tmp_path, transfer=bought, **asking)  # they are back
    (mine / "ant").rename(mine / "dog")
    with pytest.raises(UsageError, match=r"classes ant, bee, cow \(now bee, cow, dog\).*--tag NAME"):
        run("ML", tmp_path, **asking)
    with pytest.raises(UsageError, match="has the classes ant, bee, cow; folder:.* now has bee, cow, dog; train it again"):
        run("AL", tmp_path, **asking)


def test_a_changed_file_of_the_same_number_is_noticed(mine, tmp_path, monkeypatch):
    dataset = {"dataset": f"folder:{mine}"}
    with monkeypatch.context() as m:
        m.setattr("common.record.SAVE_EVERY", 0.0)
        from common.record import Record

        save = Record.save_state
        m.setattr(Record, "save_state", lambda self, *a, **k: (save(self, *a, **k), (_ for _ in ()).throw(Death)))
        with pytest.raises(Death):
            run("CE", tmp_path, **SHORT | {"epochs": 3}, **dataset)
    shutil.move(mine / "ant" / "00.png", mine / "ant" / "zz.png")
    with pytest.raises(UsageError, match=r"other images of the same number|images \(now \d+\)"):
        run("CE", tmp_path, **SHORT | {"epochs": 3}, **dataset)


def test_a_teachers_normalisation_is_that_of_its_file(mine, tmp_path):
    """The folder grows by black pictures; the teacher's mean and deviation stay, and so does its accuracy on the same test images."""
    options = SHORT | {"dataset": f"folder:{mine}", "normalize": "dataset"}
    own = run("teacher", tmp_path, **options | {"epochs": 12})
    meta = torch.load(next((tmp_path / "checkpoints/teacher").rglob("teacher.pt")), weights_only=True)["meta"]
    for i in range(200):
        picture(mine / "ant" / f"black{i}.png", 0, i)
    result = run("KD", tmp_path, **options | {"teacher": "ResNet8"})
    student = torch.load(next((tmp_path / "checkpoints/KD").rglob("student.pt")), weights_only=True)["meta"]
    assert student["data"]["mean"] == meta["data"]["mean"] and student["data"]["std"] == meta["data"]["std"]
    assert own["accuracy"] > 70 and result["teacher_accuracy"] > 60


def test_two_folders_whose_names_run_together_are_two(tmp_path):
    for k, folder in enumerate(("x/y", "x-y")):
        for j, name in enumerate(("a", "b")):
            for i in range(6):
                picture(tmp_path / folder / name / f"{i}.png", 80 * j + 40 * k, i)
    run("teacher", tmp_path, **SHORT, dataset=f"folder:{tmp_path}/x/y")
    with pytest.raises(UsageError, match="no teacher for folder:.*/x-y in"):
        run("KD", tmp_path, **SHORT, dataset=f"folder:{tmp_path}/x-y", teacher="ResNet8")


def test_everything_that_is_written_holds_the_identity(mine, tmp_path):
    import json

    from common.transfer import Transfer

    dataset = {"dataset": f"folder:{mine}"}
    run("teacher", tmp_path, **SHORT, **dataset)
    result = run("KD", tmp_path, **SHORT, **dataset, teacher="ResNet8")
    folder = next((tmp_path / "checkpoints/KD").rglob("student.pt")).parent
    known = [torch.load(folder / "student.pt", weights_only=True)["meta"]["data"], json.loads((folder / "result.json").read_text())["data"]]
    known += [Transfer(folder / "transfer.safetensors").about["data"], result["data"]]
    assert all(k == known[0] for k in known) and known[0]["names"] == ["ant", "bee", "cow"] and len(known[0]["train"]["hash"]) == 12
