"""Every script on a pretend GPU (pretend.py): it goes through, gives the CPU's numbers, and waits for the device only where it must.

On a real GPU the same runs, with a tolerance:

    REAL_GPU=1 python -m pytest tests/test_pretend.py
"""

import functools
import os
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import FEWSHOT, SCRIPTS, killed_after, run
from PIL import Image
from pretend import pretend_gpu

from common.checkpoints import load_model
from common.datasets import DATASETS
from common.datasets.fewshot import digits
from common.datasets.readers import few
from common.db3kd import labels
from common.db3kd.priors import adversarial_points, train_surrogate
from common.pictures import pyplot
from common.record import Record
from common.training import Training

REAL = bool(os.environ.get("REAL_GPU"))

# ---- what runs: {case: (script, options)}; one epoch on a fifth of Digits

AE = {"ep_steps": 2, "kd_steps": 2, "g_steps": 1, "warmup": 1, "batch_size": 16, "latent": 8, "ngf": 4}
IMITATE = {"steps": 2, "g_steps": 2, "batch_size": 16, "latent": 8, "ngf": 4}
TINY = {"lamda": 0.01, "candidates": 2, "tolerance": 0.1}  # an image a class
CASES = {name: (name, {}) for name in ("teacher", "CE", "KD", "ML", "AL", "DKD", "DCGAN")}
CASES |= {f"KD {a}": ("KD", {"augment": a}) for a in ("crop_flip", "resized_crop", "auto")}
CASES |= {
    "KD cache": ("KD", {"augment": "crop", "cache": True}),
    "KD bf16": ("KD", {"amp": "bf16", "lamda": 0.05}),
    "KD topk": ("KD", {"response": "topk:3", "optimizer": "adam", "decay": "weights"}),
    "KD hard": ("KD", {"response": "hard", "query_budget": 100, "val": 0.2, "zoom": True}),
    "KD on the second GPU": ("KD", {"device": "cuda:1", "augment": "crop"}),
    "KN": ("KN", {"budget": 50}),
    "KN adaptive": ("KN", {"budget": 50, "choice": "adaptive", "rounds": 2, "epochs": 6}),
    "AM": ("AM", {"first": 60, "queries": 20, "pairs": 100, "epochs": 4}),
    "DB3KD bd": ("DB3KD", {"sr_mode": "bd"} | TINY),
    "DB3KD sd": ("DB3KD", {"sr_mode": "sd"}),
    "DB3KD mbd": ("DB3KD", {"sr_mode": "mbd", "budgets": "120", "basis": "surrogate+bank+dct:2", "pilots": 1} | TINY),
    "ZSDB3KD": ("ZSDB3KD", {"sr_mode": "sd", "samples": 2, "iterations": 1, "step_queries": 40, "basis": "dct:2"}),
    "DAFL": ("DAFL", {"steps": 2, "batch_size": 16}),
    "MEKD": ("MEKD", {"steps": 2}),
    "MEKD bought": ("MEKD", {"steps": 2, "queries": 30, "amp": "bf16", "batch_size": 16}),
    "MEKD hard": ("MEKD", {"steps": 2, "response": "hard"}),
    "GDA kd": ("GDA", {"base": "kd", "ranks": 2, "mixup": 0.2}),
    "GDA mlkd": ("GDA", {"base": "mlkd", "sk_tolerance": 0.0}),
    "GDA dkd": ("GDA", {"base": "dkd", "response": "logits", "sk_tolerance": 0.0}),
    "GDA reviewkd": ("GDA", {"base": "reviewkd", "response": "inside", "sk_tolerance": 0.0}),
    "GDA rkd": ("GDA", {"base": "rkd", "response": "inside", "sk_tolerance": 0.0}),
    "AEAHL fastdfkd": ("AEAHL", AE | {"preset": "fastdfkd", "cache": True, "augment": "crop"}),
    "AEAHL cmi": ("AEAHL", AE | {"preset": "cmi"}),
    "AEAHL dafl": ("AEAHL", AE | {"preset": "dafl"}),
    "AEAHL hard": ("AEAHL", AE | {"hard_loss": True, "gap_width": 2, "pa": 0.2}),
    "DFME": ("DFME", IMITATE | {"s_steps": 2, "directions": 2}),
    "IDEAL": ("IDEAL", {k: v for k, v in IMITATE.items() if k != "steps"} | {"augment": "crop_flip"}),
    "IDEAL soft": ("IDEAL", IMITATE | {"response": "soft", "amp": "bf16"}),
    "DFHL": ("DFHL", IMITATE | {"h_steps": 2}),
    "robustness": ("robustness", {"samples": 2, "budget": 200, "neighbours": 50, "basis": "dct:2"}),
}

# ---- where the host waits for the device: {(file:function, kind): how often}

EVALUATED = {("measures.py:percent", "item"): 1, ("measures.py:quality", "item"): 1}
TRAINED = {("training.py:Training.read_terms", "download"): 1}  # all terms of up to 200 steps at once
ASKED = {("blackbox.py:Local.check_finite", "item"): 1}
IN_EPOCH = Counter(EVALUATED) + Counter(TRAINED)
IN_EPOCH_ASKED = IN_EPOCH + Counter(ASKED) + Counter(EVALUATED)  # also how the student agrees with the teacher
SHOWN = {("DCGAN.py:main.<locals>.evaluate", kind): n for kind, n in (("download", 2), ("item", 1), ("bincount", 1))}
SHOWN |= {("board.py:Board.image.<locals>.<lambda>", "download"): 1}
IN_EPOCH_OF = {"teacher": IN_EPOCH, "CE": IN_EPOCH, "robustness": Counter(), "DCGAN": Counter(TRAINED) + Counter(ASKED) + Counter(SHOWN)}
IN_EPOCH_OF["AEAHL hard"] = IN_EPOCH_ASKED + Counter({("attack.py:Attack.log", "download"): 1})
IN_EPOCH_OF |= dict.fromkeys(("IDEAL", "IDEAL soft", "DFHL"), IN_EPOCH_ASKED + Counter({("synthesis.py:Synthesis.log", "download"): 1}))
NOVEL = Counter({("episodes.py:EpisodeSampler.__init__", "download"): 4})  # for 1 and 5 shots
NOVEL += Counter({("episodes.py:episode_accuracies", kind): 2 for kind in ("upload", "download")})
IN_EPOCH_OF["fewshot_classifier"] = IN_EPOCH_ASKED + NOVEL + Counter({("measures.py:percent", "item"): 1})  # top-5
IN_EPOCH_OF |= {"fewshot_meta": Counter(TRAINED) + Counter(ASKED) + NOVEL, "fewshot_test": Counter()}

NEW_VIEWS = ("blackbox.py:Remembered.__call__", "nonzero")  # which views the teacher has not seen
SYNTHESIS = {("synthesis.py:Synthesiser.keep_curves", "download"): 2}  # for each of two syntheses: its terms, and its images, to disk
POOL = {("pool.py:Pool.add", "download"): 2}
IN_STEPS_OF = {
    "KD cache": {NEW_VIEWS: 3},
    "GDA kd": {("alignment.py:transport_plan", "item"): ...},  # --sk_tolerance: whether another sweep is worth it
    "AEAHL fastdfkd": SYNTHESIS | POOL | {NEW_VIEWS: 2},
    "AEAHL cmi": SYNTHESIS | POOL,
    "AEAHL dafl": SYNTHESIS,
    **{key: {("pool.py:Pool.add", "download"): 1} for key in ("IDEAL", "IDEAL soft", "DFHL")},
    "AEAHL hard": SYNTHESIS | POOL | {("attack.py:Attack.__call__", "item"): 2},  # how many contradictions are still to be made
}


@pytest.fixture
def gpu(request, monkeypatch):
    """The pretend GPU; None where there is a real one. Its `phase` is `step`, `epoch` (log, evaluation), `save`, or empty."""
    if REAL:
        yield None
        return
    with pretend_gpu(**getattr(request, "param", {})) as found:

        def phased(name, function):
            def call(*args, **kwargs):
                before, found.phase = found.phase, name
                try:
                    return function(*args, **kwargs)
                finally:
                    found.phase = before

            return call

        def epochs(*args, original=Training.epochs, **kwargs):
            found.phase = "epoch"
            for epoch in original(*args, **kwargs):
                found.phase = "step"
                yield epoch
                found.phase = "epoch"
            found.phase = ""

        monkeypatch.setattr(Training, "epochs", epochs)
        monkeypatch.setattr(Training, "read_terms", phased("epoch", Training.read_terms))
        monkeypatch.setattr(Record, "save_state", phased("save", Record.save_state))
        yield found


# ---- the scripts

CHANGING = {"options", "seconds", "epoch_seconds", "device", "peak_mb", "line", "command", "files", "sources", "versions"}
COUNTS = ("queries", "private", "mixed", "public", "synthetic", "bytes", "images")


def skip_without(device):
    if REAL and device == "cuda:1" and torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")


def waits(gpu, phase):
    """How often the host waited in a phase, by place and kind; to write a file it always does."""
    return {(place, kind): n for (p, place, kind), n in gpu.waits.items() if p == phase and place != "utils.py:digest"}


def weights(folder):
    """{file and name: tensor} of all nets in a run's folder."""
    files = {p.name: torch.load(p, map_location="cpu", weights_only=True) for p in folder.glob("*.pt")}
    return {f"{file} {name}": v for file, content in files.items() for name, v in content.get("model", {}).items()}


def check_same(a, b, folders, exact=not REAL):
    """Two runs gave the same numbers and weights; not exact, on a real GPU, whose random numbers are others: about the same counts."""
    assert {k: a[k] for k in COUNTS if k in a} == pytest.approx({k: b[k] for k in COUNTS if k in b}, rel=0 if exact else 0.1)
    first, second = map(weights, folders)
    assert first.keys() == second.keys() and all(v.isfinite().all() for v in second.values())
    if exact:
        assert {k: v for k, v in a.items() if k not in CHANGING} == {k: v for k, v in b.items() if k not in CHANGING}
        assert all(torch.equal(first[k], second[k]) for k in first)


def folders_of(home, *tags):
    return [next(home.glob(f"checkpoints/*/*/*-{tag}/seed0")) for tag in tags]


@pytest.mark.parametrize("case", CASES)
def test_a_script_gives_on_the_gpu_what_it_gives_on_the_cpu(case, script, gpu, monkeypatch):
    quick = {"train_surrogate": partial(train_surrogate, epochs=1, steps=2), "adversarial_points": partial(adversarial_points, steps=2)}
    for what, value in (quick | {"PILOT_BUDGET": 120}).items():
        monkeypatch.setattr(labels, what, value)
    name, options = CASES[case]
    skip_without(options.get("device", "cuda"))
    options = ({"epochs": 1, "lamda": 0.2} if name != "robustness" else {}) | options
    a = script(name, **options | {"device": "cpu"}, tag="cpu")
    b = script(name, **{"device": "cuda"} | options, tag="gpu")
    check_same(a, b, folders_of(script.home, "cpu", "gpu"))
    if gpu:
        found, expected = waits(gpu, "step"), IN_STEPS_OF.get(case, {})
        assert found == {k: found.get(k) if n is ... else n for k, n in expected.items()}, gpu.lines
        expected = IN_EPOCH_OF.get(case, IN_EPOCH_ASKED)
        assert waits(gpu, "epoch") == {k: n * options.get("epochs", 1) for k, n in expected.items()}, gpu.lines


SHOTS = {"dataset": "DigitsFS", "val_episodes": 4, "test_episodes": 4, "model": "ResNet8", "lamda": 0.2, "query": 3, "batch_size": 64}


@functools.cache
def few_digits(folder, part):
    x, y = digits(folder, part)
    return x[::4], y[::4]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A home with a classifier of a quarter of DigitsFS, trained on the CPU."""
    home = tmp_path_factory.mktemp("fewshot")
    with pytest.MonkeyPatch.context() as m:
        m.setitem(DATASETS, "DigitsFS", replace(DATASETS["DigitsFS"], **few(few_digits)))
        run("fewshot_classifier", home, **SHOTS, epochs=1)
        yield home


FEWSHOT_CASES = {
    "fewshot_classifier": {"teacher": "ResNet8", "augment": "crop", "sk_tolerance": 0.0},
    "fewshot_meta": {"teacher": "ResNet8", "steps": 2, "sk_tolerance": 0.0},
    "fewshot_test": {"path": "checkpoints/fewshot_classifier/DigitsFS/ResNet8/seed0/student.pt", "auc": True},
}


@pytest.mark.parametrize("name", FEWSHOT_CASES)
def test_few_shot_scripts_do_too(name, base, gpu):
    options = SHOTS | FEWSHOT_CASES[name]
    if name == "fewshot_test":
        options = {k: v for k, v in options.items() if k not in ("val_episodes", "lamda", "batch_size")} | {"path": base / options["path"]}
    else:
        options |= {"epochs": 1}
    a, b = (run(name, base, **options, tag=tag, device=device) for tag, device in (("cpu", "cpu"), ("gpu", "cuda")))
    folders = [next(base.glob(f"checkpoints/{name}/*/*-{tag}/seed0")) for tag in ("cpu", "gpu")]
    check_same(a, b, folders)
    if gpu:
        assert waits(gpu, "step") == {} and waits(gpu, "epoch") == dict(IN_EPOCH_OF[name])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_streamed_data_set(workers, tmp_path, gpu, monkeypatch):
    rng = np.random.default_rng(0)
    for label in "abc":
        (tmp_path / "mine" / label).mkdir(parents=True)
        for i in range(9):
            Image.fromarray(rng.integers(0, 255, (10, 12, 3), dtype=np.uint8)).save(tmp_path / "mine" / label / f"{i}.png")
    monkeypatch.setattr("common.datasets.RESIDENT_BYTES", 0)
    shared = {"dataset": f"folder:{tmp_path / 'mine'}", "img_size": 8, "workers": workers, "epochs": 1, "batch_size": 8, "lamda": 1.0}
    run("teacher", tmp_path, **shared, model="ResNet8", augment="crop_flip")
    a, b = (run("KD", tmp_path, **shared, teacher="ResNet8", tag=tag, device=d) for tag, d in (("cpu", "cpu"), ("gpu", "cuda")))
    check_same(a, b, folders_of(tmp_path, "cpu", "gpu"))
    if gpu:
        assert waits(gpu, "step") == {} and waits(gpu, "epoch") == dict(IN_EPOCH_ASKED)


def test_the_figures(script, gpu, monkeypatch):
    script("AEAHL", **AE, epochs=1, hard_loss=True, gap_width=2, pa=0.2, device="cuda")
    folder = next((script.home / "checkpoints/AEAHL").rglob("generator.pt")).parent
    small = {"bfa": {"repetitions": 1, "iterations": 1, "batch_size": 16, "top": 1, "samples": 50}}
    small["teacher_behavior"] = {"samples": 20, "cw_samples": 3, "cw_steps": 5}
    for name, options in small.items():
        monkeypatch.setattr(f"{name}.save_figure", lambda figure, path: pyplot().close(figure))  # to draw takes seconds
        b = script(name, **options, run_path=folder, device="cuda", tag="gpu")
        monkeypatch.setattr(f"{name}.draw", lambda *args: None)
        a = script(name, **options, run_path=folder, device="cpu", tag="cpu")
        assert REAL or a[name] == b[name]


# ---- stopped on one device, continued on the other

CUT = {"KD": {"augment": "crop"}, "AEAHL": AE | {"hard_loss": True, "gap_width": 2, "augment": "crop"}}


@pytest.mark.parametrize("gpu", [{"own_rng": True}], indirect=True)
@pytest.mark.parametrize("name", CUT)
def test_a_killed_run_on_the_gpu_ends_as_an_undisturbed_one(name, script, gpu, monkeypatch):
    """Here the GPU has random numbers of its own, which the state must hold."""
    options = {"epochs": 2, "lamda": 0.1, "device": "cuda", "deterministic": REAL} | CUT[name]
    a = script(name, **options, tag="whole")
    killed_after(1, monkeypatch, lambda: script(name, **options, tag="killed"))
    torch.manual_seed(5)
    b = script(name, **options, tag="killed")
    check_same(a, b, folders_of(script.home, "whole", "killed"), exact=True)


@pytest.mark.parametrize("name", CUT)
def test_a_run_goes_on_on_another_device(name, script, gpu, monkeypatch):
    """From the CPU to a GPU, to another one where there is one, and back."""
    options = {"epochs": 4, "lamda": 0.1} | CUT[name]
    a = script(name, **options, device="cpu", tag="whole")
    for epoch, device in enumerate(("cpu", "cuda", "cuda" if REAL and torch.cuda.device_count() < 2 else "cuda:1"), 1):
        killed_after(epoch, monkeypatch, lambda device=device: script(name, **options, device=device, tag="killed"))
    b = script(name, **options, device="cpu", tag="killed")
    check_same(a, b, folders_of(script.home, "whole", "killed"))


def test_a_student_of_the_gpu_is_used_on_both(script, gpu):
    script("KD", epochs=1, lamda=0.1, device="cuda")
    path, images = next(script.home.rglob("KD/**/student.pt")), torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    found = []
    for device in ("cpu", "cuda"):
        net, preprocess, _ = load_model(path, device)
        found.append(net(preprocess(images)))
        assert found[-1].device.type == device
    assert torch.allclose(found[0], found[1].cpu(), atol=1e-3)


def test_every_script_is_here():
    there = {name for name, _ in CASES.values()} | set(FEWSHOT_CASES)
    assert there == {*SCRIPTS, *FEWSHOT, "robustness"}
