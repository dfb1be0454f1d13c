"""What a run leaves and takes up: nothing is lost by --overwrite, a kill, a damaged file; finished runs are whole; --extend, best.pt."""

from common.cli import Finished, UsageError

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from conftest import NET, ROOT, Death, home_flags, killed_after

from common import checkpoints, cli
from common.counter import Counter
from common.earlier import aside_of, finished_result
from common.options import flags
from common.run import Run
from common.states import restore
from common.transfer import Transfer
from common.utils import digest, read_json, save, save_json

QUICK = {"epochs": 2, "lamda": 0.2}


def folder_of(home, name="KD", seed=0):
    return (
        home
        / "checkpoints"
        / name
        / "Digits"
        / {"CE": "ResNet8", "AEAHL": "ResNet8_to_ResNet8-inside"}.get(name, "ResNet8_to_ResNet8")
        / f"seed{seed}"
    )


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name != ".lock"}


def weights(folder, name="student"):
    return checkpoints.read(folder / f"{name}.pt", model=dict)["model"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ---- --overwrite


@pytest.mark.parametrize(
    "wrong", [{"teacher_path": "typo.pth"}, {"transfer": "typo.safetensors"}, {"query_budget": 1, "augment": "crop"}, {"response": "x"}]
)
def test_overwrite_with_a_mistake_leaves_the_earlier_run_as_it_was(wrong, script):
    script("KD", **QUICK)
    folder = folder_of(script.home)
    there = files(folder)
    with pytest.raises(UsageError):
        script("KD", **QUICK | wrong, overwrite=True, **({"tag": ""} if "query_budget" in wrong else {}))
    assert files(folder) == there and not aside_of(folder).exists()


def test_overwrite_sets_the_earlier_run_aside_until_the_new_one_has_saved(script, monkeypatch, capsys):
    script("KD", **QUICK)
    folder = folder_of(script.home)
    there, fit = files(folder), Run.fit
    monkeypatch.setattr(Run, "fit", lambda *a, **k: (_ for _ in ()).throw(Death))
    for _ in range(2):  # the second time the folder itself holds a run that has saved no epoch
        with pytest.raises(Death):
            script("KD", **QUICK, overwrite=True)
        kept = files(aside_of(folder))
        assert kept["student.pt"] == there["student.pt"] and kept["transfer.safetensors"] == there["transfer.safetensors"]
        assert f"the earlier run is kept in {aside_of(folder)} until this one has saved an epoch" in capsys.readouterr().out
    monkeypatch.setattr(Run, "fit", fit)
    assert script("KD", **QUICK | {"lamda": 0.3}, overwrite=True)["queries"] == 389
    assert not aside_of(folder).exists() and not aside_of(script.home / folder.relative_to(script.home)).exists()
    assert sorted(files(folder)) == ["queries", "result.json", "state.pt", "student.pt", "transfer.safetensors"]


def test_a_kill_while_files_are_set_aside_loses_none(script, monkeypatch):
    script("KD", **QUICK)
    folder, rename, moved = folder_of(script.home), Path.rename, []
    there = files(folder)

    def die_at_the_third(path, target):
        moved.append(path)
        if len(moved) == 3:
            raise Death
        return rename(path, target)

    with monkeypatch.context() as m:
        m.setattr(Path, "rename", die_at_the_third)
        with pytest.raises(Death):
            script("KD", **QUICK, overwrite=True)
    monkeypatch.setattr(Run, "fit", lambda *a, **k: (_ for _ in ()).throw(Death))
    with pytest.raises(Death):
        script("KD", **QUICK, overwrite=True)
    assert files(aside_of(folder)) == there


@pytest.mark.parametrize("name, option, file", [
    ("KD", "teacher_path", "student.pt"), ("KD", "transfer", "transfer.safetensors"), ("MEKD", "generator_path", "student.pt"),
    ("AEAHL", "reuse_generator_path", "student.pt"), ("AEAHL", "init_pool", "student.pt"),
])  # fmt: skip
def test_overwrite_refuses_an_input_in_the_folder_that_it_empties(name, option, file, script):
    folder = folder_of(script.home, name)
    folder.mkdir(parents=True)
    (folder / "student.pt").write_bytes(b"x")
    (folder / "transfer.safetensors").write_bytes(b"x")
    with pytest.raises(UsageError, match=rf"--{option} .* lies in .*seed0, which --overwrite empties; give --tag NAME instead"):
        script(name, **{option: folder / file}, overwrite=True)
    assert files(folder) == {"student.pt": b"x", "transfer.safetensors": b"x"}


# ---- finished runs


@pytest.mark.parametrize("how, words", [("deleted", "student.pt is missing"), ("emptied", "student.pt has changed, or is damaged")])
def test_a_finished_run_without_its_net_is_not_finished(how, words, script):
    script("CE", **QUICK, model="ResNet8")
    path = folder_of(script.home, "CE") / "student.pt"
    path.unlink() if how == "deleted" else path.write_bytes(b"")
    with pytest.raises(UsageError, match=f"{words}, and .*result.json names it; bring it back, or --overwrite trains it again"):
        script("CE", **QUICK, model="ResNet8")
    script("CE", **QUICK, model="ResNet8", overwrite=True)
    with pytest.raises(Finished):
        script("CE", **QUICK, model="ResNet8")


def test_a_finished_run_is_shown_where_nothing_can_be_written(script, monkeypatch):
    script("CE", **QUICK, model="ResNet8")
    for name in ("mkdir", "touch"):
        monkeypatch.setattr(f"pathlib.Path.{name}", lambda *a, **k: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
    with pytest.raises(Finished, match="finished before: CE ResNet8 on Digits"):
        script("CE", **QUICK, model="ResNet8")


@pytest.mark.parametrize("change, words", [
    ({"options": []}, "its options is of type list, not dict"), ({"accuracy": "high"}, "its accuracy is of type str, not int or float"),
    ({"files": {"other.pt": "0" * 12}}, "other.pt is missing"), ({"line": 5}, "its line is of type int, not str"),
])  # fmt: skip
def test_a_result_of_other_types_is_one_line(change, words, script):
    script("CE", **QUICK, model="ResNet8")
    folder = folder_of(script.home, "CE")
    save_json(folder / "result.json", read_json(folder / "result.json") | change)
    with pytest.raises(UsageError, match=words):
        finished_result(folder)


# ---- checksums


def test_a_digest_changes_with_any_value_and_not_with_the_way_through_a_file(tmp_path):
    value = {"a": torch.arange(3), "b": [1, 2.5, "x", None], "c": {"d": torch.ones(2, 2).T, "e": torch.tensor(True)}}
    others = [value | {"a": torch.tensor([0, 1, 3])}, value | {"a": torch.arange(3).int()}, value | {"b": [1, 2.5, "x"]}]
    others += [value | {"c": {"d": torch.ones(4), "e": torch.tensor(True)}}, {"b": value["b"], "a": value["a"], "c": value["c"]}, [value]]
    assert len({digest(v) for v in (value, *others)}) == 1 + len(others)
    save(tmp_path / "a.pt", value)
    assert digest(checkpoints.read(tmp_path / "a.pt")) == digest(value)


@pytest.fixture(scope="module")
def cut_short(trained, tmp_path_factory):
    """A home in which a run of KD died after its second epoch."""
    home = tmp_path_factory.mktemp("cut")
    with pytest.MonkeyPatch.context() as m:
        killed_after(2, m, lambda: run_in(trained, home))
    return home


def run_in(trained, home, **more):
    teacher = next((trained / "checkpoints/teacher").rglob("teacher.pt"))
    options = home_flags(home) | {"teacher": "ResNet8", "teacher_path": teacher, "epochs": 3, "lamda": 0.2}
    return importlib.import_module("KD").main(flags(**options | more))


@pytest.mark.parametrize("name", ["state.pt", "transfer.safetensors", "queries"])
def test_a_flipped_bit_anywhere_in_a_runs_files_is_found_or_harmless(name, cut_short, trained, tmp_path):
    """One of each 40 bytes, over the whole file: the reader refuses the file, or gives what it gave before."""
    source = folder_of(cut_short) / name
    content, path, found = source.read_bytes(), tmp_path / name, 0
    readers = {
        "state.pt": lambda p: digest(checkpoints.read(p, objects=dict)),
        "transfer.safetensors": lambda p: digest(sorted(Transfer(p).columns.items())),
        "queries": lambda p: digest(Counter(p).counts()),
    }
    known = readers[name](source)
    for at in range(3, len(content), max(1, len(content) // 60)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
        try:
            assert readers[name](path) == known, f"byte {at}"
        except UsageError as e:
            assert str(path) in str(e) and "\n" not in str(e)
            found += 1
    assert found > 50 or name == "queries"  # of its two copies one is whole


def test_a_damaged_result_is_one_line(script):
    script("CE", **QUICK, model="ResNet8")
    path = folder_of(script.home, "CE") / "result.json"
    path.write_text(path.read_text().replace('"epochs": 2', '"epochs": 3'))
    with pytest.raises(UsageError, match=r"result.json is damaged, or was changed after it was saved: its checksum differs"):
        script("CE", **QUICK | {"epochs": 3}, model="ResNet8")


def test_the_checksums_of_a_foreign_zip_are_checked(script, tmp_path):
    state = weights(next((script.home / "checkpoints/teacher").rglob("teacher.pt")).parent, "teacher")
    path = tmp_path / "foreign.pth"
    torch.save(state, path)
    content, value = bytearray(path.read_bytes()), state["fc.weight"].numpy().tobytes()
    content[content.index(value[:64]) + 3] ^= 0x10
    path.write_bytes(content)
    assert zipfile.is_zipfile(path) and torch.load(path, weights_only=True).keys() == state.keys()  # torch sees nothing
    with pytest.raises(UsageError, match=r"foreign.pth is damaged: the checksum of its entry foreign/data/\d+ differs"):
        script("KD", **QUICK, teacher_path=path)


def test_what_a_kill_left_while_saving_is_deleted(script):
    folder = folder_of(script.home, "CE")
    folder.mkdir(parents=True)
    (folder / ".result.json.0123abcd").write_text("half")
    (folder / ".mine").write_text("kept")
    script("CE", **QUICK, model="ResNet8")
    assert not (folder / ".result.json.0123abcd").exists() and (folder / ".mine").exists()


# ---- state and transfer sets of a valid form and another content


@pytest.mark.parametrize("change, words", [
    ({"epoch": "two"}, "its epoch is of type str, not int"), ({"objects": {}}, "does not fit this run .KeyError"), ({"rows": {}}, "its rows is"),
    ({"rng": {"cpu": torch.zeros(3)}}, "does not fit this run .TypeError"), ({"data": {"names": []}}, "its data lacks "), ({"rows": [3]}, "its rows.0. is"),
    (("optimizer0", "param_groups", 0, "lr", None), "an optimizer's lr is of type NoneType"), (("optimizer0", "param_groups", 0, "params", 0, 99), "parameters are others"),
    (("optimizer0", "state", 0, "momentum_buffer", torch.ones(1)), "momentum_buffer has the shape .1,."), (("optimizer0", "state", 3, "momentum_buffer", None), "values of different names"), (("optimizer0", "state", 14, 3.0), "does not fit this run"),
    (("optimizer0", "state", 3, "momentum_buffer", torch.ones(16, 16, 3, 3).int()), "momentum_buffer is torch.int32"), (("student", "fc.bias", torch.ones(10).int()), "fc.bias of student is torch.int32"),
    (("queries", "mixed", -1), "counts of queries are"), (("queries", "other", 1), "counts of queries are"), ({"options": 3}, "its options is of type int, not dict"), ({"sources": {7: "x"}}, "its sources has the key 7, which is no text"),
])  # fmt: skip
def test_a_state_of_another_form_is_one_line(change, words, cut_short, trained, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(cut_short, home)
    path = folder_of(home) / "state.pt"
    content = checkpoints.read(path)
    if isinstance(change, tuple):  # a place in its objects, and the value there
        place = content["objects"]
        for key in change[:-2]:
            place = place[key]
        place[change[-2]] = change[-1]
    save(path, content | (change if isinstance(change, dict) else {}))
    with pytest.raises(UsageError, match=words) as e:
        run_in(trained, home)
    assert "\n" not in str(e.value)


def test_a_state_with_a_sparse_tensor_is_one_line(tmp_path):
    save(tmp_path / "state.pt", {"w": torch.ones(3)})
    content = torch.load(tmp_path / "state.pt")
    torch.save(content | {"w": content["w"].to_sparse()}, tmp_path / "state.pt")
    with pytest.raises(UsageError, match="state.pt is damaged: it holds a sparse, quantised or empty tensor"):
        checkpoints.read(tmp_path / "state.pt")


@pytest.mark.parametrize("change, words", [
    ({}, ""), ({"exp_avg": torch.ones(3).to(torch.uint8)}, "exp_avg is torch.uint8"), ({"exp_avg": torch.ones(3).to(torch.float8_e4m3fn)}, "exp_avg is torch.float8_e4m3fn"), ({"exp_avg": torch.full((3,), torch.inf)}, "values that are not finite"),
    ({"exp_avg": torch.ones(4)}, "exp_avg has the shape .4,."),
])  # fmt: skip
def test_an_optimizer_takes_back_only_a_state_of_its_own(change, words):
    net = torch.nn.Linear(3, 1, bias=False)
    net.weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam(net.parameters())
    net.weight.sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    state["state"][0] |= change
    with pytest.raises(ValueError, match=words) if words else nullcontext():
        restore(optimizer, state)
    with pytest.raises(ValueError, match="the weight of net is torch.float16"):
        restore(net, {"weight": torch.ones(3).half()}, "net")


COLUMNS = [
    ({"index": lambda v: v - 1297}, "its index has values in .-.*; expected .0, 1296"), ({"index": lambda v: v + 1200}, "its index has values in"),
    ({"weight": lambda v: torch.full((259,), 5.0), "index": lambda v: torch.stack([v, v], 1)}, "its weight has values in .5.0, 5.0"),
    ({"answers": lambda v: v[:, :9]}, "its answers have 9 classes; expected 10"), ({"index": lambda v: v[:0], "answers": lambda v: v[:0]}, "0 rows"),
    ({"answers": lambda v: torch.cat([v, v[:, :1]], 1)}, "its answers have 11 classes"), ({"index": lambda v: v.float()}, "its index is torch.float32"),
    ({"answers": lambda v: v / 0}, "its answers has values that are not finite|its answers has values in"), ({"index": None}, "it needs index and answers"),
    ({"answers": lambda v: torch.cat([v, v])}, "at most 259 rows"), ({"images": lambda v: torch.zeros(259, 1, 9, 9)}, "it needs index and answers"),
    ({"index": None, "images": lambda v: torch.zeros(259, 1, 9, 9)}, "holds images of 1x9x9, this run's are 1x8x8"),
]  # fmt: skip


@pytest.mark.parametrize("change, words", COLUMNS)
def test_a_transfer_set_with_values_that_cannot_be_is_one_line(change, words, cut_short, trained, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(cut_short, home)
    (folder_of(home) / "state.pt").unlink()
    t = Transfer(folder_of(home) / "transfer.safetensors")
    for name, f in change.items():
        if f is None:
            del t.columns[name]
        else:
            t.columns[name] = f(t.columns.get(name, torch.zeros(1)))
    t.save({k: v for k, v in t.about.items() if k != "ends"})
    with pytest.raises(UsageError, match=words) as e:
        run_in(trained, home)
    assert "\n" not in str(e.value)


def test_a_transfer_set_of_another_script_is_not_taken_for_the_runs_own(cut_short, trained, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(cut_short, home)
    t = Transfer(folder_of(home) / "transfer.safetensors")
    t.save({k: v for k, v in t.about.items() if k != "ends"} | {"script": "AM"})
    with pytest.raises(UsageError, match="holds a run with script AM; give --tag"):
        run_in(trained, home)


@pytest.mark.parametrize("change, more, words", [
    ({}, {"made": {"bd": 3.0}}, "its made.bd is of type float, not dict"), ({"margins": torch.ones(5, 2).to(torch.float8_e4m3fn)}, {}, "its margins is torch.float8_e4m3fn, which no script writes"),
])  # fmt: skip
def test_what_a_transfer_set_holds_beside_its_answers_is_checked(change, more, words, cut_short, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(cut_short, home)
    t = Transfer(folder_of(home) / "transfer.safetensors")
    t.columns |= change
    t.save({k: v for k, v in t.about.items() if k != "ends"} | more)
    with pytest.raises(UsageError, match=words):
        Transfer(t.path)


def test_a_generator_is_no_student(script):
    path = next((script.home / "checkpoints/DCGAN").rglob("generator.pt"))
    with pytest.raises(UsageError, match="generator.pt is of DCGAN.py and holds no classifier; give a teacher.pt or a student.pt"):
        checkpoints.load_model(path)


# ---- --extend


@pytest.mark.parametrize("options", [{"milestones": "2"}, {"gamma": 1.0, "response": "hard"}])
def test_an_extended_run_ends_as_one_that_was_that_long(options, script):
    long = script("KD", **QUICK | {"epochs": 4}, **options, seed=0, checkpoints_dir=script.home / "long", teacher_path=teacher(script))
    script("KD", **QUICK, **options, teacher_path=teacher(script))
    with pytest.raises(UsageError, match=r"holds a run with --epochs 2 \(now 4\) \(--extend trains it further\)"):
        script("KD", **QUICK | {"epochs": 4}, **options, teacher_path=teacher(script))
    result = script("KD", **QUICK | {"epochs": 4}, **options, extend=True, teacher_path=teacher(script))
    folders = [next((script.home / d / "KD").rglob("student.pt")).parent for d in ("long", "checkpoints")]
    assert same(*map(weights, folders))
    assert {k: result[k] for k in ("accuracy", "queries", "best")} == {k: long[k] for k in ("accuracy", "queries", "best")}
    with pytest.raises(Finished):
        script("KD", **QUICK | {"epochs": 4}, **options, extend=True, teacher_path=teacher(script))


def teacher(script):
    return next((script.home / "checkpoints/teacher").rglob("teacher.pt"))


@pytest.mark.parametrize("name", ["CE", "KD"])
def test_a_net_whose_code_has_changed_is_another_net(name, script, tmp_path, monkeypatch):
    """The file of FILE.py:CLASS is a source of the run: of a student, of a teacher, finished or not."""
    path = tmp_path / "nets.py"
    path.write_text(NET)
    options = QUICK | {"model": f"{path}:Net", "milestones": "9"}
    if name == "KD":
        script("teacher", **options)
        options |= {"model": "ResNet8", "teacher": f"{path}:Net"}
    killed_after(1, monkeypatch, lambda: script(name, **options, tag="cut"))
    result = script(name, **options)
    assert result["sources"][str(path)] == checkpoints.identity(path)
    with pytest.raises(Finished):
        script(name, **options)
    path.write_text(NET.replace("cos", "sin"))
    for more in ({}, {"tag": "cut"}, {"epochs": 4, "extend": True}):
        with pytest.raises(UsageError, match=r"holds a run with \S*nets.py \(changed since\); give --tag NAME .* or --overwrite"):
            script(name, **options | more)
    script(name, **options, overwrite=True)


def test_an_extension_that_was_killed_goes_on(script, monkeypatch):
    script("CE", **QUICK, model="ResNet8", milestones="2")
    more = {"epochs": 4, "lamda": 0.2, "model": "ResNet8", "milestones": "2", "extend": True}
    killed_after(3, monkeypatch, lambda: script("CE", **more))
    assert read_json(folder_of(script.home, "CE") / "result.json")["options"]["epochs"] == 2
    assert script("CE", **more)["log"]["epoch"] == 4
    rows = [json.loads(line) for line in (script.home / "logs/CE/Digits/ResNet8/seed0/log.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in rows] == [1, 2, 3, 4]


@pytest.mark.parametrize("name, first, now, words", [
    ("CE", {"epochs": 6}, {"epochs": 12}, r"--extend: with --epochs 12 the learning rate of epoch 3 would have been 0.1, and it was 0.01 .*; give --milestones 2,4"),
    ("CE", {"epochs": 2, "schedule": "cosine"}, {"epochs": 3}, "a cosine schedule cannot be extended"),
    ("KN", {"epochs": 12, "choice": "adaptive", "milestones": "20"}, {"epochs": 24}, "--extend: --choice adaptive buys in the first sixth of --epochs"),
    ("GDA", {"epochs": 4, "base": "augconf", "milestones": "20"}, {"epochs": 8}, "--extend: the weight of --base augconf rises over a part of --epochs"),
    ("CE", {"epochs": 3}, {"epochs": 2}, r"holds a run with --epochs 3 \(now 2\)"),
])  # fmt: skip
def test_a_schedule_that_depends_on_the_length_is_not_extended(name, first, now, words, script):
    more = {"lamda": 0.2} | ({"model": "ResNet8"} if name == "CE" else {})
    script(name, **more | first)
    with pytest.raises(UsageError, match=words):
        script(name, **more | first | now, extend=True)


# ---- best.pt


def test_the_best_epoch_on_held_out_images_is_kept(script, monkeypatch):
    values, seen = iter([50.0, 70.0, 60.0]), []

    def accuracy(run):
        seen.append({k: v.clone() for k, v in run.student.state_dict().items()})
        return {"accuracy": next(values)}

    monkeypatch.setattr(Run, "accuracy", accuracy)
    result = script("CE", epochs=3, lamda=0.2, model="ResNet8", val=0.2)
    folder = folder_of(script.home, "CE")
    assert same(weights(folder, "best"), seen[1]) and same(weights(folder), seen[2])
    assert sorted(result["files"]) == ["best.pt", "student.pt"] and result["best"] == 70.0


def test_the_best_epoch_on_test_images_is_not_kept(script):
    script("CE", **QUICK, model="ResNet8")
    assert not (folder_of(script.home, "CE") / "best.pt").exists()


# ---- the process


def start(home, stdio="", before="", **more):
    """The process of a short run of CE, with odd streams, after the shell command `before`."""
    script = [sys.executable, "-u", str(ROOT / "project" / "CE.py"), *flags(**home_flags(home) | {"model": "ResNet8"} | QUICK | more)]
    return subprocess.run(["sh", "-c", f"{before} {shlex.join(script)} {stdio}"], capture_output=True, text=True, cwd=home)


@pytest.mark.parametrize("stdio", ["2>&-", "<&- >&- 2>&-"])
def test_closed_streams_end_no_run(stdio, tmp_path):
    done = start(tmp_path, stdio)
    assert done.returncode == 0, done.stderr
    assert finished_result(folder_of(tmp_path, "CE"))["accuracy"] > 0


def test_no_memory_is_one_line_that_names_what_was_made_and_the_option_to_lower(tmp_path):
    done = start(tmp_path, before="ulimit -v 9000000;", lamda=1.0, batch_size=1297, img_size=256)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    words = r"CE.py: out of memory for a training step \([\d.]+ GiB were wanted\); lower --batch_size or --img_size"
    assert re.fullmatch(words, done.stderr.strip()), done.stderr


@pytest.mark.parametrize("error, words", [
    (MemoryError("Unable to allocate 7.45 GiB for an array"), r"out of memory \(7.45 GiB were wanted\); lower --batch_size"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4294967296 bytes"), r"out of memory \(4.0 GiB were wanted\)"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"), r"out of memory \(2.00 GiB were wanted\)"),
    (OSError(28, "No space left on device", "x.txt"), "x.txt: No space left on device; free some space and run the same command again"),
    (ModuleNotFoundError("No module named 'timm'", name="timm"), "the package timm is not installed; run: "),
    (KeyError("key"), r"unexpected error at test_record.py:\d+: KeyError: 'key' \(the traceback is in .*/traceback.txt\)"),
])  # fmt: skip
def test_every_error_is_one_line_and_an_unexpected_one_leaves_its_traceback(error, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "tracebacks", tmp_path)

    def main():
        raise error

    with pytest.raises(SystemExit) as e:
        cli.cli(main)
    line = capsys.readouterr().err
    assert e.value.code == 1 and re.search(words, line) and line.count("\n") == 1
    assert (tmp_path / "traceback.txt").exists() == isinstance(error, KeyError)
    monkeypatch.setattr(sys, "argv", ["KD.py", "--debug"])
    with pytest.raises(SystemExit):
        cli.cli(main)
    assert "in main" in capsys.readouterr().err


def test_ctrl_c_while_packages_are_imported_is_one_line(tmp_path):
    """Sent as soon as the signal is heard, before torch is there."""
    code = f"import sys; sys.argv = ['{ROOT}/project/KD.py']; sys.path.insert(0, '{ROOT}/project'); import common.cli as c; c.begin()\n"
    code += "import os, signal; os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(9)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "KD.py: stopped before anything was done\n")


def test_a_terminal_that_knows_only_ascii(tmp_path):
    code = f"import sys; sys.path.insert(0, '{ROOT}/project'); import common.cli as c; c.begin(); print('91.3 ± 0.2 é')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.stdout == "91.3 +- 0.2 ?\n"
