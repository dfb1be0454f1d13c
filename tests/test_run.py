"""A run: options, optimisation, resume after any death, and one clear line for each thing that cannot be."""

from common.cli import RunError, UsageError

import importlib
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest
import torch
import torch.nn as nn
from conftest import ROOT, Death, home_flags

from common import checkpoints, record, utils
from common.earlier import is_locked
from common.options import Base, flags, opt, parse
from common.run import Run
from common.schedule import lr_at, milestones
from common.training import Training


def command(name, home, **options):
    return [sys.executable, "-u", str(ROOT / "project" / f"{name}.py"), *flags(**home_flags(home) | options)]


def outcome(home):
    """Log and weights of a home's one KD or DCGAN run, to compare bit by bit."""
    log = next(home.joinpath("logs").rglob("log.jsonl")).read_text()
    nets = [p for p in sorted(home.joinpath("checkpoints").rglob("seed0/*.pt")) if p.stem in ("student", "generator")]
    return log, [torch.load(p, weights_only=True)["model"] for p in nets]


def same(a, b):
    return a[0] == b[0] and all(torch.equal(x[k], y[k]) for x, y in zip(a[1], b[1], strict=True) for k in x)


@pytest.fixture
def homes(trained, tmp_path):
    """homes(n): n fresh homes with the trained teacher."""

    def make(n):
        for i in range(n):
            shutil.copytree(trained / "checkpoints" / "teacher", tmp_path / str(i) / "checkpoints" / "teacher")
        return [tmp_path / str(i) for i in range(n)]

    return make


# ---- resume


@pytest.mark.parametrize(
    "name, more", [("KD", {"lamda": 0.2}), ("KD", {"lamda": 0.2, "augment": "crop"}), ("DCGAN", {"lamda": 0.2, "eval_every": 2})]
)
def test_cut_short_anywhere_and_taken_up_ends_bit_identically(name, more, homes, monkeypatch):
    """Dies at the 5th, 9th and 14th step; one process, so that it is quick. The killed processes below are the real thing."""
    from conftest import run

    monkeypatch.setattr("common.record.SAVE_EVERY", 0.0)
    straight, cut = homes(2)
    options = {"teacher": "ResNet8", "epochs": 4} | more
    run(name, straight, **options)
    tally, steps = Training.tally, []
    for death in (5, 9, 14):
        steps.clear()

        def dying(self, death=death, **terms):
            steps.append(1)
            if len(steps) == death:
                raise Death
            tally(self, **terms)

        monkeypatch.setattr(Training, "tally", dying)
        try:
            run(name, cut, **options)
            break
        except Death:
            pass
    monkeypatch.setattr(Training, "tally", tally)
    if not list(cut.rglob("result.json"))[1:]:
        run(name, cut, **options)
    assert same(outcome(straight), outcome(cut))


@pytest.fixture(scope="module")
def undisturbed(trained, tmp_path_factory):
    """(options, outcome) of a KD run that nobody disturbs, in a process of its own."""
    home, options = tmp_path_factory.mktemp("undisturbed"), {"teacher": "ResNet8", "epochs": 30, "lamda": 0.5, "eval_every": 30}
    shutil.copytree(trained / "checkpoints" / "teacher", home / "checkpoints" / "teacher")
    subprocess.run(command("KD", home, **options), check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
    return options, outcome(home)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_process_goes_on_and_ends_bit_identically(number, homes, undisturbed):
    (cut,), (options, straight) = homes(1), undisturbed
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command("KD", cut, **options), env=env, stdout=subprocess.PIPE, text=True)
    state = None
    while process.poll() is None and not (state and state.exists()):
        state = next(cut.rglob("KD/Digits/*/seed0"), None)
        state = state and state / "state.pt"
        time.sleep(0.01)
    process.send_signal(number)
    out, _ = process.communicate()
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    if number != signal.SIGKILL:
        assert f"stopped by {number.name}" in out and "of 30 epochs are saved; run the same command to continue" in out
    after = subprocess.run(command("KD", cut, **options), check=True, env=env, capture_output=True, text=True)
    assert "goes on after epoch" in after.stdout
    assert same(straight, outcome(cut))


def test_bought_answers_are_not_bought_again(script, monkeypatch):
    monkeypatch.setattr(Run, "fit", lambda *a, **k: (_ for _ in ()).throw(Death))
    with pytest.raises(Death):
        script("KD", lamda=0.2, epochs=1)
    monkeypatch.undo()
    from common.blackbox import BlackBox

    monkeypatch.setattr(BlackBox, "__call__", lambda *a, **k: pytest.fail("asked again"))
    assert script("KD", lamda=0.2, epochs=1)["queries"] == 259


@pytest.mark.parametrize("n, words", [(3, "epoch 3, step 3"), (205, "step 205")])
def test_a_loss_that_is_not_finite_names_epoch_step_and_term(n, words, tmp_path, monkeypatch):
    calls = []

    class Spy(Training):
        def tally(self, **terms):
            calls.append(1)
            last = self.epoch == 3 and len(calls) == n if n == 3 else len(calls) == n
            super().tally(ce=terms["ce"] * float("nan") if last else terms["ce"])

        def epochs(self, *a, **k):
            for e in super().epochs(*a, **k):
                calls.clear()
                yield e

    monkeypatch.setattr("common.run.Training", Spy)
    options = home_flags(tmp_path) | {"model": "ResNet8", "epochs": 3, "batch_size": 4 if n > 200 else 128}
    with pytest.raises(RunError, match=f"the loss term ce is nan at .*{words};.*smaller --lr"):
        importlib.import_module("teacher").main(flags(**options))


# ---- options


@dataclass
class Args(Base):
    model: str = opt("ResNet8", "the net", alias="student")
    temperature: float = opt(5.0, "temperature", alias="t", gt=0, le=10)


def test_names_with_dashes_underscores_equal_signs_and_old_spellings():
    args = parse(Args, ["--batch-size=7", "--weight_decay", "0.1", "--student", "VGG8", "--dry-run"])
    assert (args.batch_size, args.weight_decay, args.model, args.dry_run) == (7, 0.1, "VGG8", True)
    kd = importlib.import_module("KD").Args
    assert parse(kd, ["--res-type", "hard"]).response == "hard"


@pytest.mark.parametrize("argv, words", [
    ("--lamda 0", "--lamda 0.0: it must be at least 1e-06 and at most 1"), ("--lamda 1.5", "must be"), ("--lamda nan", "must be"),
    ("--epochs -3", "--epochs -3: it must be at least 1"), ("--epochs 2.5", "invalid int"), ("--t 0", "--temperature 0.0: it must be greater than 0 and at most 10"), ("--t 11", "must be"),
    ("--lr inf", "--lr inf: it must be greater than 0"), ("--milestones x", "such as 80,160"), ("--milestones 1/0", "such as"), ("--seed -1", "must be"),
    ("--lambda 0.1", "unknown option --lambda \\(did you mean --lamda?"), ("--epocs 3", "did you mean --epochs"), ("--amp fp8", "invalid choice"),
    ("--batch_size", "expected one argument"), ("stray", "unrecognized"),
])  # fmt: skip
def test_bad_options_are_one_line(argv, words):
    with pytest.raises(UsageError, match=words) as e:
        args = parse(Args, argv.split(), "KD")
        milestones(args)
    assert "\n" not in str(e.value)


def test_learning_rates():
    args = parse(Args, [])
    assert [lr_at(args, e) for e in (1, 80, 81, 160, 161, 240)] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    args = parse(Args, ["--milestones", "2,3", "--gamma", "0.5", "--epochs", "4"])
    assert [lr_at(args, e) for e in (1, 2, 3, 4)] == pytest.approx([0.1, 0.1, 0.05, 0.025])
    args = parse(Args, ["--schedule", "cosine", "--epochs", "4"])
    assert [lr_at(args, e) for e in (1, 3)] == pytest.approx([0.1, 0.05])


@pytest.mark.parametrize(
    "more",
    [
        {"optimizer": "adam", "lr": 1e-3},
        {"schedule": "cosine"},
        {"amp": "bf16"},
        {"augment": "crop_flip"},
        {"deterministic": True},
        {"fast": True},
    ],
)
def test_a_teacher_learns_under_every_option(more, tmp_path):
    from conftest import run

    result = run("teacher", tmp_path, model="ResNet8", epochs=5, **more)
    torch.use_deterministic_algorithms(False)
    assert result["accuracy"] > 60  # chance is 10


# ---- a script asked for what cannot be


@pytest.mark.parametrize("more, words", [
    ({"dataset": "MINST"}, "did you mean MNIST"), ({"model": "ResNet9"}, "there are: ResNet8"), ({"teacher": "VGG8_BN"}, "first run: python project/teacher.py --dataset Digits --model VGG8_BN --seed 0"),
    ({"teacher_seed": 7}, "first run: .* --seed 7"), ({"model": "LeNet5"}, "--img_size 16"), ({"img_size": 16}, r"was made for shape \[1, 8, 8\] \(this run: \[1, 16, 16\]\)"),
    ({"normalize": "halt"}, "--normalize halt: there are half, unit, imagenet"), ({"response": "often"}, "topk:k"), ({"device": "cuda:9"}, "--device cuda:9 is not available .*; use --device cpu"),
    ({"device": "gpu"}, "--device gpu is not available"), ({"query_budget": 1, "lamda": 0.2}, "--query_budget 1 leaves 1 queries, too few"),
    ({"private": "MINST"}, "did you mean MNIST"), ({"private": "MNIST", "normalize": "dataset"}, "--private MNIST has another mean than Digits, .*; use --normalize M,S"),
    ({"query_budget": 700, "lamda": 0.2, "augment": "crop", "epochs": 3}, "777 are wanted"),
    ({"checkpoints_dir": "/dev/null/x"}, "cannot write in /dev/null/x"), ({"logs_dir": "/proc/x"}, "cannot write in /proc/x.*--logs_dir"),
])  # fmt: skip
def test_kd_asked_for_what_cannot_be(more, words, script):
    if "checkpoints_dir" in more:  # its teacher must be found all the same
        more = more | {"teacher_path": next((script.home / "checkpoints/teacher").rglob("teacher.pt"))}
    with pytest.raises(UsageError, match=words) as e:
        script("KD", **{"epochs": 1} | more)
    assert "\n" not in str(e.value)


def test_mekd_without_generator_or_with_anothers(script):
    with pytest.raises(
        UsageError, match="first run: python project/DCGAN.py --dataset Digits --teacher ResNet8 --seed 3 --lamda 0.2 --checkpoints_dir"
    ):
        script("MEKD", seed=3, lamda=0.2)
    with pytest.raises(UsageError, match="does not fit this run: lamda 0.2 \\(this run: 0.5\\)"):
        script("MEKD", lamda=0.5)
    with pytest.raises(UsageError, match="--query_budget 518 leaves 0 queries"):  # the generator's training took them all
        script("MEKD", lamda=0.2, query_budget=518)
    with pytest.raises(UsageError, match="first run: python project/DCGAN.py .* --lamda 0.2 --tag free --checkpoints_dir"):
        script("MEKD", lamda=0.2, generator_tag="free")


def test_changed_options_on_resume_are_named(script):
    script("KD", epochs=1, lamda=0.2)
    with pytest.raises(UsageError, match=r"holds a run with --lamda 0.2 \(now 0.3\), --temperature 5.0 \(now 4.0\); give --tag NAME"):
        script("KD", epochs=1, lamda=0.3, t=4)
    script("KD", epochs=1, lamda=0.3, t=4, tag="beside")


def test_two_processes_at_one_run_are_kept_apart(script, monkeypatch):
    monkeypatch.setattr(record, "LOCK_WAIT", 0.1)
    folder = script.home / "checkpoints/KD/Digits/ResNet8_to_ResNet8/seed0"
    folder.mkdir(parents=True)
    code = f"from filelock import FileLock; lock = FileLock({str(folder / '.lock')!r}); lock.acquire(); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert is_locked(folder)
        with pytest.raises(UsageError, match="another process is running this run"):
            script("KD", epochs=1)
        other.kill()
    assert not is_locked(folder) and script("KD", epochs=1)["accuracy"] > 0


# ---- foreign checkpoints


class Evil:
    def __reduce__(self):
        return os.mkdir, ("/tmp/this_must_never_be_made",)


def state_dict(script):
    return torch.load(next((script.home / "checkpoints/teacher").rglob("teacher.pt")), weights_only=True)["model"]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model": s},
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {"net": s, "epoch": 3},
    ],
)
def test_a_teacher_from_any_checkpoint_file(wrap, script, tmp_path):
    path = tmp_path / "foreign.pth"
    torch.save(wrap(state_dict(script)), path)
    own = script("KD", epochs=1)
    assert script("KD", epochs=1, teacher_path=path, tag="foreign")["teacher_accuracy"] == own["teacher_accuracy"]


def broken(kind, state, path):
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:5000])
    elif kind == "foreign":
        path.write_text("not a checkpoint at all")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Evil()))
    elif kind == "evil":
        torch.save({"model": Evil()}, path)
    elif kind == "no weights":
        torch.save({"epoch": 3}, path)
    elif kind == "classes":
        torch.save(state | {"fc.weight": torch.zeros(100, 64), "fc.bias": torch.zeros(100)}, path)
    elif kind == "channels":
        torch.save(state | {"conv1.weight": torch.zeros(16, 3, 3, 3)}, path)
    elif kind == "another net":
        torch.save({"weight": torch.zeros(3)}, path)


@pytest.mark.parametrize("kind, words", [
    ("none", "no file"), ("empty", "it is empty"), ("truncated", "it is truncated, or another kind of file"), ("foreign", "is not a readable checkpoint|holds more than weights"),
    ("pickle", "is refused: to read it would run posix.mkdir|holds more than weights"), ("evil", "is refused: to read it would run posix.mkdir"), ("no weights", "no state dict"), ("classes", r"fc.\w+ is \(100.*not \(10"),
    ("channels", r"conv1.weight is \(16, 3, 3, 3\), not \(16, 1, 3, 3\)"), ("another net", r"is not a checkpoint of ResNet8 for 10 classes of 1x8x8 images: \d+ keys \(conv1.weight, .*\) missing, 1 key \(weight\) unexpected"),
])  # fmt: skip
def test_a_file_that_is_no_teacher_is_one_line_and_never_run(kind, words, script, tmp_path):
    path = tmp_path / "teacher.pth"
    broken(kind, state_dict(script), path)
    with pytest.raises(UsageError, match=words) as e:
        script("KD", epochs=1, teacher_path=path)
    assert "\n" not in str(e.value) and not os.path.exists("/tmp/this_must_never_be_made")


def test_a_cut_off_state_is_said_not_silently_restarted(script):
    folder = script.home / "checkpoints/CE/Digits/ResNet8/seed0"
    folder.mkdir(parents=True)
    (folder / "state.pt").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(UsageError, match="state.pt is not a readable checkpoint"):
        script("CE", epochs=1)


@pytest.mark.parametrize("name", ["state.pt", "result.json"])
def test_a_readable_file_of_another_kind_is_one_line(name, script):
    folder = script.home / "checkpoints/KD/Digits/ResNet8_to_ResNet8/seed0"
    if name.endswith("json"):
        utils.save_json(folder / name, {"accuracy": 99})
    else:
        utils.save(folder / name, {"weight": torch.ones(3)})
    with pytest.raises(UsageError, match=f"{name} is another kind of file") as e:
        script("KD", epochs=1)
    assert "\n" not in str(e.value)


def test_what_others_call_meta_is_not_taken_for_ours(script, tmp_path):
    for i, meta in enumerate(("a word", {"classes": ["cat", "dog"]})):
        torch.save({"state_dict": state_dict(script), "meta": meta}, tmp_path / "foreign.pth")
        assert script("KD", epochs=1, teacher_path=tmp_path / "foreign.pth", tag=f"foreign{i}")["teacher_accuracy"] > 60


def test_a_method_is_refused_a_teacher_that_gives_less(script, monkeypatch):
    monkeypatch.setattr(importlib.import_module("KD").Args, "NEEDS", "soft")
    with pytest.raises(UsageError, match="KD needs soft answers, --response topk:2 gives less"):
        script("KD", epochs=1, response="topk:2")


# ---- writing


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """The system refuses files over 64 KiB, as a full disk would, in a process of its own."""
    path = tmp_path / "state.pt"
    utils.save(path, {"kept": torch.ones(3)})
    code = (
        "import resource, signal, sys, torch; sys.path.insert(0, sys.argv[2]); from common.cli import cli; from common.utils import save\n"
    )
    code += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
    code += "cli(lambda: save(sys.argv[1], {'new': torch.ones(100000)}))"
    done = subprocess.run([sys.executable, "-c", code, str(path), str(ROOT / "project")], capture_output=True, text=True)
    assert done.returncode == 1 and "could not save" in done.stderr and "is untouched" in done.stderr and len(done.stderr.splitlines()) == 1
    assert torch.equal(checkpoints.read(path)["kept"], torch.ones(3)) and [p.name for p in tmp_path.iterdir()] == ["state.pt"]


def test_exit_statuses(trained, tmp_path):
    """2 for bad usage, 1 for a failed run, each one line on stderr, nothing of a traceback."""
    bad = subprocess.run(command("KD", tmp_path, teacher="ResNet8"), capture_output=True, text=True)
    assert (bad.returncode, bad.stdout) == (2, "") and bad.stderr.startswith("KD.py: no teacher for Digits") and bad.stderr.count("\n") == 1
    limit = lambda: (signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)))  # noqa: E731
    full = subprocess.run(command("teacher", tmp_path, model="ResNet8", epochs=1), capture_output=True, text=True, preexec_fn=limit)
    assert full.returncode == 1 and "could not save" in full.stderr.splitlines()[-1] and "Traceback" not in full.stderr


def test_result_is_json_with_what_was_measured(script):
    result = script("KD", epochs=1, lamda=0.2)
    stored = json.loads(next((script.home / "checkpoints/KD").rglob("result.json")).read_text())
    assert len(stored.pop("checksum")) == 16
    assert stored == json.loads(json.dumps(result)) and stored["versions"]["torch"] == torch.__version__
    assert stored["peak_mb"] > 10 and stored["options"]["temperature"] == 5.0 and list(stored["sources"].values())[0].isalnum()


def test_agreement_and_accuracy_are_what_they_say(script, monkeypatch):
    """A student that answers class 0 to all has 10 % accuracy, and agrees where the teacher says 0."""

    class Zero(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(10))

        def forward(self, x):
            return (self.w * 0 + torch.eye(10)[0]).expand(len(x), 10)

    seen = {}

    def fit(run, *a, **k):
        run.student = Zero()
        run.training.epoch = 1
        seen.update(run.accuracy(), zeros=100 * (run.truth.log_p.argmax(1) == 0).double().mean().item())
        raise Death

    monkeypatch.setattr(Run, "fit", fit)
    with pytest.raises(Death):
        script("KD", epochs=1)
    assert seen["accuracy"] == pytest.approx(10) and seen["agreement"] == pytest.approx(seen["zeros"]) and "top5" not in seen


def test_a_streamed_data_set_of_many_classes_goes_through_teacher_and_kd(tmp_path, monkeypatch):
    """Twelve classes, so that top-5 is reported too; files are read at every step, answers to unchanged ones bought once."""
    import numpy as np
    from conftest import run
    from PIL import Image

    rng = np.random.default_rng(0)
    for label in range(12):
        (tmp_path / "mine" / f"c{label:02}").mkdir(parents=True)
        for i in range(5):
            Image.fromarray(rng.integers(0, 255, (10, 12, 3), dtype=np.uint8)).save(tmp_path / "mine" / f"c{label:02}" / f"{i}.png")
    monkeypatch.setattr("common.datasets.RESIDENT_BYTES", 0)
    shared = {"dataset": f"folder:{tmp_path / 'mine'}", "img_size": 8, "workers": 0, "epochs": 2, "batch_size": 16, "lamda": 1.0}
    assert run("teacher", tmp_path, model="ResNet8", augment="crop_flip", **shared)["top5"] >= 0
    result = run("KD", tmp_path, teacher="ResNet8", **shared)
    assert result["queries"] == 51 and 0 <= result["accuracy"] <= result["top5"] <= 100
