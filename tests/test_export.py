"""export.py: files that give PyTorch's logits without this project, their measures, and what is refused."""

from common.cli import RunError, UsageError

import copy
import errno
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import export
import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from conftest import ROOT, run

from common import options
from common.checkpoints import load_model
from common.datasets import load
from common.export import finished, folder, graphs, measured, qat
from common.export.card import card, first_line
from common.export.options import ExportOptions
from common.export.writing import Export
from common.options import flags
from common.serving.model import open_model
from common.serving.options import ServingOptions
from common.transfer import Transfer

EXECUTORCH = importlib.util.find_spec("executorch") is not None
KD = "checkpoints/KD/Digits/ResNet8_to_ResNet8/seed0"


@pytest.fixture(autouse=True)
def one_core(monkeypatch):
    monkeypatch.setattr(measured, "cores", lambda: 1)


@pytest.fixture(scope="module")
def home(trained, tmp_path_factory):
    """A home with a finished KD run, whose private images are a fifth of the training set."""
    import shutil

    home = tmp_path_factory.mktemp("export")
    shutil.copytree(trained / "checkpoints", home / "checkpoints")
    run("KD", home, teacher="ResNet8", lamda=0.2, epochs=4, eval_every=4)
    return home


def exported(home, out, **options):
    """The report of an export of the home's KD run into `out`."""
    return export.main(flags(**{"run": home / KD, "out": out, "seconds": 0} | options))


@pytest.fixture(scope="module")
def onnx_export(home, tmp_path_factory):
    """(folder, report) of an export with all files, which take uint8 images of any size."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    out = tmp_path_factory.mktemp("out") / "export"
    with pytest.MonkeyPatch.context() as m:
        m.setattr(measured, "cores", lambda: 1)
        torch.set_num_threads(1)
        to = "onnx,pt2,executorch" if EXECUTORCH else "onnx,pt2"
        return out, exported(home, out, to=to, int8=True, preprocess="resize", seconds=0.01)


@pytest.fixture(scope="module")
def executorch_export(onnx_export):
    """The same where its files of ExecuTorch are there."""
    pytest.importorskip("executorch")
    return onnx_export


def run_onnx(path, x):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.contiguous().numpy()})[0])


def run_executorch(path, x, method="forward"):
    """The outputs of a program, one image at a time."""
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(path).load_method(method)
    return torch.cat([program.execute([image.contiguous()])[0] for image in x.split(1)])


def images(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


# ---- the files


def test_the_files_give_pytorchs_logits(home, onnx_export):
    out, report = onnx_export
    net, preprocess, _ = load_model(home / KD / "student.pt")
    x = load("Digits").test.x
    s, program = net(preprocess(x)), torch.export.load(out / "student.pt2").module()
    for n in (1, 7, 500):
        for found in (run_onnx(out / "student.onnx", x[:n]), program(x[:n])):
            assert (found - s[:n]).abs().max() < 1e-4
    names = ["README.md", "export.json", "student.int8.onnx", "student.onnx", "student.pt2"]
    assert sorted(p.name for p in out.iterdir()) == sorted(names + ["student.pte", "student.int8.pte"] * EXECUTORCH)
    assert report["parity"]["images"] == 500 and report["parity"]["largest_difference"] < 1e-4
    assert json.loads((out / "export.json").read_text())["parity"] == report["parity"]


def test_images_of_any_size_are_resized_as_by_load_model(onnx_export, home):
    """A value at .5 may be rounded to the other side: a few pixels differ by one grey level of 255, which is 2 / 255 of [-1, 1]."""
    report = onnx_export[1]["preprocessing"]
    assert report["resize"]["largest_levels"] <= 1 and report["resize"]["pixels_that_differ"] < 0.005
    assert report["largest_difference"] <= 1e-5
    data = load("Digits")
    front = graphs.Pixels(8, data.mean, data.std, True)
    _, preprocess, _ = load_model(home / KD / "student.pt")
    for h, w in ((8, 8), (16, 16), (5, 30), (100, 77)):
        assert (front(images(9, 1, h, w)) - preprocess(images(9, 1, h, w))).abs().max() < 1e-5
    net = load_model(home / KD / "student.pt")[0]
    x = data.test.x[:50].repeat_interleave(4, 2).repeat_interleave(4, 3)  # 32 x 32, whose means over 4 x 4 pixels are integers
    found = run_onnx(onnx_export[0] / "student.onnx", x)
    assert (found - net(preprocess(x))).abs().max() < 1e-4


def test_the_numbers_of_int8_are_those_of_its_logits(home, onnx_export):
    out, report = onnx_export
    data, net = load("Digits"), load_model(home / KD / "student.pt")[0]
    s, q = net(data.view(data.test.x)).double().numpy(), run_onnx(out / "student.int8.onnx", data.test.x).double().numpy()
    teacher, preprocess, _ = load_model(home / "checkpoints/teacher/Digits/ResNet8/seed0/teacher.pt")
    t, y, int8 = teacher(preprocess(data.test.x)).numpy(), data.test.y.numpy(), report["int8"]
    p, r = (np.exp(u) / np.exp(u).sum(1, keepdims=True) for u in (s, q))
    assert int8["kl"] == pytest.approx((p * np.log(p / r)).sum(1).mean(), abs=1e-6)
    assert int8["accuracy"] == pytest.approx(100 * (q.argmax(1) == y).mean())
    assert int8["agreement"] == pytest.approx(100 * (q.argmax(1) == s.argmax(1)).mean())
    assert int8["teacher_agreement"] == pytest.approx(100 * (q.argmax(1) == t.argmax(1)).mean())
    assert int8["largest_change"] == pytest.approx(np.abs(q - s).max(), abs=1e-5)
    assert int8["drop"] == pytest.approx(100 * ((s.argmax(1) == y).mean() - (q.argmax(1) == y).mean())) and abs(int8["drop"]) <= 1
    assert 0 < int8["kl"] < 0.01 and int8["calibration_images"] == 259
    size = {n: f["bytes"] for n, f in report["files"].items()}
    assert all((out / n).stat().st_size == b for n, b in size.items()) and size["student.int8.onnx"] < 0.4 * size["student.onnx"]


def test_weights_and_activations_are_of_8_bits_and_the_logits_are_not(onnx_export):
    import onnx

    graph = onnx.load(onnx_export[0] / "student.int8.onnx").graph
    kinds = {i.name: i.data_type for i in graph.initializer}
    weights = {n.input[0] for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in kinds}
    assert {kinds[w] for w in weights} <= {onnx.TensorProto.INT8, onnx.TensorProto.INT32}  # biases are of 32 bits
    assert not [n for n in graph.node if n.op_type == "Conv" and n.input[1] in kinds]  # a float weight
    assert next(n for n in graph.node if "logits" in n.output).op_type == "Gemm"


def test_the_files_say_what_they_are_and_name_no_path(onnx_export, home):
    import onnx

    out, _ = onnx_export
    said = {p.key: p.value for p in onnx.load(out / "student.onnx").metadata_props}
    extra = {"metadata.json": ""}
    torch.export.load(out / "student.pt2", extra_files=extra)
    assert json.loads(extra["metadata.json"]) == said
    assert json.loads(said["classes"]) == [str(k) for k in range(10)] and json.loads(said["mean"]) == [0.5]
    assert (said["dataset"], said["script"], said["teacher"], said["seed"], said["queries"]) == ("Digits", "KD", "ResNet8", "0", "259")
    for path in out.iterdir():
        if path.suffix in (".onnx", ".pt2", ".pte"):
            content = path.read_bytes()
            assert str(ROOT).encode() not in content and str(home).encode() not in content and b"site-packages" not in content


def test_the_card_is_a_model_card(onnx_export):
    out, report = onnx_export
    text = (out / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    fields = dict(line.split(": ", 1) for line in head.splitlines() if not line.startswith("#"))
    metric = json.loads(fields["model-index"])[0]["results"][0]["metrics"][0]
    assert metric == {"type": "accuracy", "value": round(report["float"]["accuracy"] / 100, 6)}
    assert {"knowledge-distillation", "onnx", "pt2"} < set(json.loads(fields["tags"])) and "# license:" in head
    assert first_line("KD").startswith("trains the student") and first_line("nothing") == ""
    for words in ("259 queries", "`student.int8.onnx`", "batch 128, 1 thread", "uint8 (N, 1, height, width)", "teacher, PyTorch"):
        assert words in body, words
    assert re.search(r"\| student, int8 ONNX +\| +\d", body) and "python project/export.py --run" in body
    assert len(report["latency"]) == 8 + 2 * EXECUTORCH and all(0 < r["median_ms"] <= r["p95_ms"] for r in report["latency"])
    paid = report | {"source": report["source"] | {"api": {"images": 259, "cost": 1.5, "currency": "EUR"}}}
    assert "259 answers bought for 1.50 EUR" in card(paid)


def test_the_examples_of_the_docs_run_without_this_project(onnx_export, home, tmp_path):
    """In a fresh interpreter elsewhere, whose path lacks the project."""
    from PIL import Image

    net, preprocess, classes = load_model(home / KD / "student.pt")
    x = load("Digits").test.x
    top = net(preprocess(x)).topk(2).values
    x = x[(top[:, 0] - top[:, 1]).argmax()][None].repeat_interleave(8, 2).repeat_interleave(8, 3)  # a clear case, enlarged
    wanted = classes[net(preprocess(x)).argmax()]
    for path in onnx_export[0].iterdir():
        os.link(path, tmp_path / path.name)
    Image.fromarray(x[0, 0].numpy()).save(tmp_path / "image.png")
    examples = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/deploy.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(examples) == 3 and all(len(e.strip().splitlines()) <= 15 for e in examples)
    examples = [e for e in examples if EXECUTORCH or "executorch" not in e]
    paths = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and "project" not in p]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    without = "import importlib.util\nassert importlib.util.find_spec('common') is None\n"
    for code in examples:
        done = subprocess.run([sys.executable, "-c", without + code], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout.split()[-1] == wanted, done.stderr + done.stdout


def test_a_teacher_without_preprocessing_as_a_program(home, tmp_path):
    """It needs torch only. The default folder is the run's own."""
    path = home / "checkpoints/teacher/Digits/ResNet8/seed0"
    report = export.main(flags(run=path, to="pt2", seconds=0))
    net, preprocess, _ = load_model(path / "teacher.pt")
    x = preprocess(load("Digits").test.x[:5])
    assert torch.equal(torch.export.load(path / "export/teacher.pt2").module()(x), net(x))
    assert report["role"] == "teacher" and report["source"]["teacher"] == "" and "int8" not in report
    assert "export" not in json.loads((path / "result.json").read_text())["files"]
    with pytest.raises(UsageError, match="holds an earlier export; --overwrite"):
        export.main(flags(run=path, to="pt2", seconds=0))


def test_a_folders_path_is_not_told(home, tmp_path):
    _, r = calibration(home)
    r.meta["dataset"] = "folder:/home/ann/scans-folder:x/y"
    assert Export(ExportOptions(run="x", to="pt2"), r, tmp_path).report["dataset"] == "folder:scans-folder:y"


def test_stopping_deletes_the_temporary_folder(home, tmp_path):
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "project/export.py"), *flags(run=home / KD, to="pt2", out=tmp_path / "out", seconds=60)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    while "latency" not in process.stdout.readline():
        assert process.poll() is None
    assert len([*tmp_path.iterdir()]) == 1
    process.terminate()
    assert process.wait(20) == 143 and not [*tmp_path.iterdir()]


def test_serve_takes_the_onnx_file(home, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    exported(home, tmp_path / "out")
    args = options.parse(ServingOptions, flags(dataset="Digits", onnx=tmp_path / "out/student.onnx"))
    model, (net, preprocess, _), x = open_model(args), load_model(home / KD / "student.pt"), load("Digits").test.x[:9]
    assert (model.logits(model.view(x.numpy())) - net(preprocess(x))).abs().max() < 1e-4


# ---- ExecuTorch


def test_executorchs_runtime_gives_pytorchs_logits(home, executorch_export):
    """In its own runtime, images of several sizes; the file says what it is."""
    out, report = executorch_export
    net, preprocess, _ = load_model(home / KD / "student.pt")
    x = load("Digits").test.x[:40]
    assert (run_executorch(out / "student.pte", x) - net(preprocess(x))).abs().max() < 1e-4
    x = x.repeat_interleave(4, 2).repeat_interleave(8, 3)  # 32 x 64, whose means over 4 x 8 pixels are integers
    assert (run_executorch(out / "student.pte", x) - net(preprocess(x))).abs().max() < 1e-4
    assert report["preprocessing_executorch"]["resize"]["largest_levels"] <= 1
    from executorch.runtime import Runtime

    said = json.loads(Runtime.get().load_program(out / "student.pte").load_method("metadata").execute([])[0])
    extra = {"metadata.json": ""}
    torch.export.load(out / "student.pt2", extra_files=extra)
    assert said == json.loads(extra["metadata.json"]) | {"batch": "1"}
    assert {r["batch"] for r in report["latency"] if "ExecuTorch" in r["net"]} == {1}


def test_the_numbers_of_executorchs_int8_are_those_of_its_logits(home, executorch_export):
    out, report = executorch_export
    data, net = load("Digits"), load_model(home / KD / "student.pt")[0]
    s, q = net(data.view(data.test.x)).double(), run_executorch(out / "student.int8.pte", data.test.x).double()
    p, found = s.softmax(1), report["int8_executorch"]
    assert found["accuracy"] == pytest.approx(100 * (q.argmax(1) == data.test.y).double().mean().item())
    assert found["agreement"] == pytest.approx(100 * (q.argmax(1) == s.argmax(1)).double().mean().item())
    assert found["kl"] == pytest.approx((p * (p / q.softmax(1)).log()).sum(1).mean().item(), abs=1e-6)
    assert found["largest_change"] == pytest.approx((q - s).abs().max().item(), abs=1e-5)
    assert 0 < found["kl"] < 0.01 and abs(found["drop"]) <= 1 and found["calibration_images"] == 259
    assert len(q.unique()) <= 256 < len(s.unique())
    size = {n: f["bytes"] for n, f in report["files"].items()}
    assert size["student.int8.pte"] < 0.4 * size["student.pte"]
    assert re.search(r"\| student, int8 ExecuTorch +\| +\d", (out / "README.md").read_text())


def test_an_operator_that_executorch_lacks_is_one_line(home, tmp_path):
    pytest.importorskip("executorch")
    from common.export.to_executorch import lowered

    e = Export(ExportOptions(run="x", to="executorch"), calibration(home)[1], tmp_path)
    with pytest.raises(RunError, match=r"Net cannot be exported to ExecuTorch \(\w+: .{5,}\); use another") as error:
        lowered(e, Bessel(), "Net", {})
    assert "\n" not in str(error.value)


# ---- quantisation-aware training


def uneven(net):
    """`net`, which computes the same, but has channels of very different sizes, so that a range for all of them leaves few values for most."""
    net = copy.deepcopy(net)
    for block, digits in ((net.layer1[0], 1.7), (net.layer3[0], 1.7)):
        size = torch.logspace(-digits, digits, len(block.bn1.weight))
        for p in (block.bn1.weight, block.bn1.bias):
            p.data *= size
        block.conv2.weight.data /= size.view(1, -1, 1, 1)
    return net


@pytest.fixture
def trained_net(home):
    """(the net whose channels are uneven, calibration images, test images, their labels)."""
    data = load("Digits")
    net = uneven(load_model(home / "checkpoints/teacher/Digits/ResNet8/seed0/teacher.pt")[0])
    return net, data.view(data.train.x[:259]), data.view(data.test.x), data.test.y


def accuracy(logits, y):
    return 100 * (logits.argmax(1) == y).double().mean().item()


def test_training_wins_back_what_8_bits_lose(trained_net, tmp_path):
    """In onnxruntime, which loses as much as the simulation says."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from common.export.onnx_int8 import quantised
    from common.export.to_onnx import to_bytes, to_model
    from common.losses import kl

    net, x, test, y = trained_net
    core = graphs.program(net, x[:2], "Net")
    before = {k: v.clone() for k, v in net.state_dict().items()}
    small, about = qat.train(core.module(), x, net(x), epochs=10, lr=1e-4, seed=0)
    results = []
    for i, program in enumerate((core, graphs.program(small, x[:2], "Net"))):
        (tmp_path / f"{i}.onnx").write_bytes(to_bytes(quantised(to_model(program, "Net"), x, net(x), "Net")[0], {}))
        q = run_onnx(tmp_path / f"{i}.onnx", test)
        results.append((accuracy(q, y), kl(q, net(test)).item(), kl(run_onnx(tmp_path / f"{i}.onnx", x), net(x)).item()))
    (plain, plain_kl, own), (better, better_kl, own_after) = results
    assert plain < accuracy(net(test), y) - 5 and better > plain + 5 and better_kl < 0.5 * plain_kl
    assert about["kl_after"] < 0.5 * about["kl_before"]
    assert (own, own_after) == pytest.approx((about["kl_before"], about["kl_after"]), rel=0.3)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_the_same_seed_gives_the_same_weights(trained_net):
    net, x, _, _ = trained_net
    core = graphs.program(net, x[:2], "Net")
    a, b, c = (qat.train(core.module(), x[:100], net(x[:100]), 2, 1e-4, seed)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(a[k], b[k]) for k in a) and not all(torch.equal(a[k], c[k]) for k in a)
    for w in (w for k, w in a.items() if k.endswith("weight")):
        assert torch.allclose(qat.rounded(w, per_channel=True), w, atol=1e-6) or torch.allclose(
            qat.rounded(w, per_channel=False), w, atol=1e-6
        )


def test_training_that_does_not_help_is_not_kept(home):
    data, net = load("Digits"), load_model(home / KD / "student.pt")[0]
    x = data.view(data.train.x[:64])
    small, about = qat.train(graphs.program(net, x[:2], "Net").module(), x, net(x), 2, 1.0, 0)
    assert about["best_epoch"] == 0 and about["kl_after"] == about["kl_before"] and (small(x) - net(x)).abs().max() < 1


def test_weights_are_rounded_to_255_values_and_the_gradient_passes():
    w = torch.tensor([[1.27, -0.014, 0.006], [0.0127, 0.0001, -0.00016]], requires_grad=True)
    assert torch.allclose(qat.rounded(w, False), torch.tensor([[1.27, -0.01, 0.01], [0.01, 0.0, 0.0]]), atol=1e-7)
    assert torch.allclose(qat.rounded(w, True), torch.tensor([[1.27, -0.01, 0.01], [0.0127, 0.0001, -0.0002]]), atol=1e-7)
    for per_channel in (False, True):
        (gradient,) = torch.autograd.grad((qat.rounded(w, per_channel) * torch.arange(6.0).view(2, 3)).sum(), w)
        assert torch.equal(gradient, torch.arange(6.0).view(2, 3))


class Norms(nn.Module):
    """Batch norms behind a convolution of their own, behind one that has two readers, and behind a sum."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 1)
        self.n, self.m, self.k = (nn.BatchNorm2d(4) for _ in range(3))

    def forward(self, x):
        x = self.n(self.a(x)).relu()
        y = self.b(x)
        return self.k(self.m(y) + y).mean((2, 3))


def test_batch_norms_are_folded_into_their_own_convolutions():
    torch.manual_seed(0)
    net, x = Norms(), torch.randn(50, 1, 5, 5)
    for p in net.parameters():
        nn.init.normal_(p)
    net(x)  # running means and variances
    net.eval()
    found = qat.folded(graphs.program(net, x[:2], "Net").module())
    left = [n for n in found.graph.nodes if n.target is torch.ops.aten.batch_norm.default]
    assert len(left) == 2 and torch.allclose(found(x), net(x), atol=1e-5)
    assert not any("running" in name for name in found.state_dict() if name.startswith("n."))


def test_an_export_with_training_says_what_it_brought(home, onnx_export, tmp_path):
    report, plain = exported(home, tmp_path / "qat", to="onnx", int8=True, qat=2, qat_lr=1e-5), onnx_export[1]
    found, without = report["int8"], report["int8"]["without_qat"]
    assert without == plain["int8"] | {k: pytest.approx(plain["int8"][k], rel=1e-2) for k in ("ece", "kl", "largest_change")}
    assert found["kl"] != without["kl"] and found["kl"] < 2 * without["kl"] and found.keys() == without.keys() | {"without_qat"}
    assert report["qat"]["images"] == 259 and report["qat"]["epochs"] == 2 and report["float"] == plain["float"]
    assert report["parity"]["largest_difference"] < 1e-4  # the float file is that of the network as it was
    text = (tmp_path / "qat/README.md").read_text()
    assert "student, int8 ONNX, without QAT" in text and "(2 epochs of these images, learning rate 1e-05)" in text
    assert "--qat 2 --qat_lr 1e-05" in report["command"]


# ---- calibration


def calibration(home, **options):
    args = ExportOptions(run=str(home / KD), **options)
    return finished.calibration_images(args, finished.open_finished(args)), finished.open_finished(args)


def as_rows(x):
    return {tuple(row) for row in x.flatten(1).tolist()}


def test_private_images_and_those_of_the_transfer_set(home):
    x, r = calibration(home, calibration_images=50)
    own = r.data.view(r.private.x)
    assert len(r.private) == 259 and len(x) == 50 and as_rows(x) <= as_rows(own)
    assert not torch.equal(x, calibration(home, calibration_images=50, seed=1)[0])
    bought, _ = calibration(home, calibrate="transfer")
    assert len(bought) == 259 and as_rows(bought) == as_rows(own)


def test_synthetic_images(home):
    path = home / "checkpoints/DCGAN/Digits/ResNet8/seed0/generator.pt"
    x, _ = calibration(home, calibrate="synthetic", generator_path=str(path), calibration_images=600)
    assert x.shape == (600, 1, 8, 8) and x.abs().max() <= 1 and x.std(0).mean() > 0.01


def test_mixed_images_of_a_transfer_set(home, tmp_path):
    """0.25 of the first image and 0.75 of the second."""
    _, r = calibration(home)
    (tmp_path / KD).mkdir(parents=True)
    about = Transfer(home / KD / "transfer.safetensors").about
    mixed = Transfer(tmp_path / KD / "transfer.safetensors")
    mixed.add_rows({"index": torch.tensor([[3, 5], [7, 2]]), "weight": torch.tensor([0.25, 1.0])})
    mixed.columns["answers"] = torch.zeros(2, 10)
    mixed.save({k: v for k, v in about.items() if k != "ends"})
    r.folder = tmp_path / KD
    x = finished.bought(ExportOptions(run="x", calibrate="transfer"), r, torch.Generator())
    v = r.data.view(r.data.train.x)
    assert torch.allclose(x, torch.stack([0.25 * v[3] + 0.75 * v[5], v[7]]), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibrate": "synthetic"}, "no calibration images: .* has no synthetic images and no generator; give --generator_path"),
        ({"calibrate": "synthetic", "generator_path": "nothing.pt"}, "no file nothing.pt"),
        ({"calibrate": "transfer"}, "no calibration images: there is no .*transfer.safetensors; use --calibrate private"),
    ],
)
def test_no_calibration_images(home, tmp_path, options, message):
    _, r = calibration(home)
    r.folder = tmp_path
    with pytest.raises(UsageError, match=message):
        finished.calibration_images(ExportOptions(run="x", **options), r)


def test_a_run_that_saw_no_private_image_is_not_calibrated_on_some(home):
    _, r = calibration(home)
    r.result = r.result | {"images": 0}
    with pytest.raises(UsageError, match="used no private image; use --calibrate synthetic or transfer"):
        finished.calibration_images(ExportOptions(run="x"), r)


# ---- measures


def test_sizes_in_closed_form():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    found = measured.size_of(net, torch.zeros(1, 3, 6, 6))
    assert found == {"parameters": 3 * 8 * 9 + 8 + 8 * 36 * 10 + 10, "multiply_adds": 36 * 9 * 3 * 8 + 8 * 36 * 10}


def test_latency_of_a_known_wait():
    found = measured.latency(lambda x: time.sleep(0.002), torch.zeros(1), 0.0)
    assert found["calls"] == measured.LEAST and 2 <= found["median_ms"] <= found["p95_ms"]


def test_parity_is_relative_to_the_largest_logit():
    s = torch.tensor([[0.0, 100.0]])
    assert measured.parity("x", s, s + 0.009)["allowed"] == pytest.approx(0.01)
    for off in (s + 0.011, s * float("nan"), s[:, :1]):
        with pytest.raises(RunError, match="x differs from PyTorch by up to"):
            measured.parity("x", s, off)
    with pytest.raises(RunError, match="by up to 0.009"):
        measured.parity("x", s / 100, s / 100 + 0.009)


# ---- nothing half-written


def test_a_mismatch_leaves_no_file_and_the_earlier_export(home, tmp_path, monkeypatch):
    out = tmp_path / "export"
    exported(home, out, to="pt2")
    before = (out / "student.pt2").read_bytes()
    real = graphs.program

    def off(net, *a, **k):
        wrong = nn.Sequential(net, nn.Identity())
        found = real(wrong, *a, **k)
        found.state_dict["0.fc.bias"] += 0.01
        return found

    monkeypatch.setattr(graphs, "program", off)
    with pytest.raises(RunError, match=r"student.pt2 differs from PyTorch by up to 0.01 on 500 test images .*; nothing was written"):
        exported(home, out, to="pt2", overwrite=True)
    with pytest.raises(RunError, match="differs from PyTorch"):
        exported(home, tmp_path / "other", to="pt2")
    assert [p.name for p in tmp_path.iterdir()] == ["export"] and (out / "student.pt2").read_bytes() == before


def test_a_full_disk_leaves_nothing(home, tmp_path, monkeypatch):
    def full(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left on device; nothing was written"):
        exported(home, tmp_path / "export", to="pt2")
    assert not [*tmp_path.iterdir()]


def test_an_export_takes_the_place_of_an_earlier_one_only(tmp_path):
    out = tmp_path / "out"
    for text in "ab":
        with folder.new_folder(out, overwrite=True) as new:
            (new / folder.REPORT).write_text(text)
    assert (out / folder.REPORT).read_text() == "b" and [*tmp_path.iterdir()] == [out]
    with pytest.raises(KeyboardInterrupt), folder.new_folder(out, overwrite=True) as new:
        (new / folder.REPORT).write_text("c")
        raise KeyboardInterrupt
    assert (out / folder.REPORT).read_text() == "b" and [*tmp_path.iterdir()] == [out]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    for name, words in (("mine", "holds other files"), ("file", "is a file"), ("out", "holds an earlier export")):
        with pytest.raises(UsageError, match=words), folder.new_folder(tmp_path / name, overwrite=name == "mine"):
            pass


# ---- what is refused


class Branch(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :2] if x.sum() > 0 else x.flatten(1)[:, 1:3]


class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x.flatten(1)[:, :2])


class Fixed(nn.Module):
    def forward(self, x):
        return F.pad(x.flatten(1)[:, :2], (0, int(x.shape[0] == 2)))


def test_a_network_that_cannot_be_exported_is_one_line():
    x = torch.ones(2, 1, 4, 4)
    for net in (Branch(), Fixed()):
        with pytest.raises(RunError, match=r"Net cannot be exported to torch.export \(\w+: .{5,}\); use another") as e:
            graphs.program(net, x, "Net")
        assert "\n" not in str(e.value)
    pytest.importorskip("onnxscript")
    from common.export.to_onnx import to_model

    with pytest.raises(RunError, match=r"Net cannot be exported to ONNX \(\w+: .{5,}\); use another") as e:
        to_model(graphs.program(Bessel(), x, "Net"), "Net")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"run": ""}, "--run is missing; give the folder of a finished run"),
        ({"run": "nothing"}, "no folder nothing; give the folder of a finished run"),
        ({"run": "home/checkpoints/KD/Digits/ResNet8_to_ResNet8"}, "is no folder of a run .*; did you mean .*seed0"),
        ({"run": "home/checkpoints/DCGAN/Digits/ResNet8/seed0"}, "has no student.pt and no teacher.pt, only generator.pt"),
        ({"file": "state.pth"}, "--file state.pth: .* has no such file; it has: student.pt"),
        ({"file": "../seed0/student.pt"}, "has no such file"),
        ({"to": "tflite"}, "there is no format 'tflite'; there are onnx, pt2, executorch"),
        ({"to": ""}, "give onnx, pt2 or executorch"),
        ({"int8": True}, "--int8 with --to pt2: 8-bit integers are for ONNX and ExecuTorch"),
        ({"qat": 3}, "--qat 3 trains the network of the 8-bit files; add --int8"),
        ({"qat": -1}, "--qat -1: it must be at least 0"),
        ({"qat_lr": 0}, "--qat_lr 0.*must be"),
        ({"generator_path": "x.pt"}, "--generator_path has no effect with --calibrate private"),
        ({"calibration_images": 0}, "must be at least 1"),
    ],
)
def test_bad_input_is_one_line(home, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    os.symlink(home, tmp_path / "home")
    with pytest.raises(UsageError, match=message) as e:
        exported(home, tmp_path / "out", **{"to": "pt2"} | options)
    assert "\n" not in str(e.value) and not (tmp_path / "out").exists()


def test_an_unfinished_run_is_refused(home, tmp_path):
    import shutil

    shutil.copytree(home / KD, tmp_path / "seed0")
    (tmp_path / "seed0/result.json").unlink()
    with pytest.raises(UsageError, match="is an unfinished run .*; repeat its command, which resumes it"):
        export.main(flags(run=tmp_path / "seed0", to="pt2"))
    shutil.copy(home / KD / "result.json", tmp_path / "seed0")
    (tmp_path / "seed0/student.pt").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"student.pt has changed, or is damaged"):
        export.main(flags(run=tmp_path / "seed0", to="pt2"))


def test_missing_packages_are_named_with_the_command(home, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    for name in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    with pytest.raises(UsageError, match="the package onnxscript is not installed; run: pip install onnx onnxscript onnxruntime"):
        exported(home, tmp_path / "out")
    monkeypatch.setitem(sys.modules, "executorch", None)
    with pytest.raises(UsageError, match="--to executorch: the package executorch is not installed; run: pip install executorch"):
        exported(home, tmp_path / "out", to="executorch")


def test_packages_made_for_another_pytorch_are_one_line(home, tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("raise AttributeError('no attribute in torch\\nmore')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(graphs, "NEEDED", {"executorch": "broken_package"})
    monkeypatch.setattr(graphs, "version", lambda name: "1.0")
    with pytest.raises(UsageError, match=r"executorch 1.0 does not run with torch \S+ \(AttributeError: no attribute in torch\); use") as e:
        exported(home, tmp_path / "out", to="executorch")
    assert "\n" not in str(e.value)


def test_image_files_are_not_resized_in_the_graph(home, tmp_path):
    _, r = calibration(home)
    r.meta["data"]["crop_from"] = 9
    with pytest.raises(UsageError, match="--preprocess resize: the resizing of image files .* use --preprocess pixels"):
        Export(ExportOptions(run="x", preprocess="resize"), r, tmp_path)
