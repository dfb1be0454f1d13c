"""The server: its protocol, its numbers, its limits."""

from common.cli import UsageError, cli

import base64
import concurrent.futures
import io
import json
import re
import socket
import threading
import time

import numpy as np
import orjson
import pytest
import serve
import torch
import urllib3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from served import Process, options_of, serving_here

from common.api import wire
from common.api.remote import Remote
from common.blackbox import BlackBox
from common.checkpoints import load_model, load_weights, read_weights
from common.datasets.images import normalised
from common.models import build
from common.options import TeacherOptions, flags, parse
from common.serving import answers, protocol
from common.serving.keys import Key, Keys
from common.serving.model import Model, open_model
from common.serving.refusals import Refused
from common.teachers import Renormalised

HTTP = urllib3.PoolManager(16, retries=False, timeout=60)
TEACHER = "checkpoints/teacher/Digits/ResNet8/seed0/teacher.pt"
KEYS = """
[[keys]]
name = "ann"
token = "ann-secret-1"
budget = 40
response = "hard"

[[keys]]
name = "bob"
token_sha256 = "{}"
response = "logits"
digits = 3
""".format(__import__("hashlib").sha256(b"bob-secret-2").hexdigest())
KEYS += '[[keys]]\nname = "eve"\ntoken = "eve-secret-3"\nresponse = "topk:2"\n'
EVE = {"Authorization": "bearer eve-secret-3"}
ANN, BOB = {"Authorization": "Bearer ann-secret-1"}, {"X-API-Key": "bob-secret-2"}


def pixels(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 1, 8, 8), dtype=np.uint8)


def post(url, body, headers=None):
    """(status, headers, body) of a POST."""
    answer = HTTP.request("POST", url, body=body, headers=headers or {})
    return answer.status, answer.headers, answer.data


def get(url, headers=None):
    """(status, content) of a GET."""
    answer = HTTP.request("GET", url, headers=headers or {})
    return answer.status, orjson.loads(answer.data)


def ask(url, images, outputs=(), binary=False, headers=None):
    """(status, {output: values} or the error's line) of one request."""
    head = {"outputs": [{"name": o} for o in outputs]} if outputs else {}
    body, more = wire.pack(head | {"parameters": {"binary_data_output": binary}}, {"images": images}, "inputs", binary)
    status, answered, data = post(f"{url}/infer", body, more | (headers or {}))
    if status != 200:
        return status, line_of(data)
    return status, wire.unpack(data, answered.get(wire.JSON_SIZE), "outputs")[1]


def line_of(data):
    """The line of an error, which is all that the body holds."""
    content = orjson.loads(data)
    assert content.keys() == {"error"} and content["error"] and "\n" not in content["error"] and "Traceback" not in content["error"]
    return content["error"]


def top_of(url):
    return url.partition("/v2/")[0]


def metric(url, name):
    """The value of one line of /metrics."""
    text = HTTP.request("GET", f"{top_of(url)}/metrics").data.decode()
    assert "secret" not in text
    return float(next((line.split()[-1] for line in text.splitlines() if line.startswith(f"{name} ")), 0))


@pytest.fixture(scope="module")
def soft(trained, tmp_path_factory):
    """The URL of a server that answers soft."""
    torch.set_num_threads(1)
    with serving_here(trained, response="soft", accounts=tmp_path_factory.mktemp("soft") / "a.sqlite", max_batch=64, max_body_mb=1) as url:
        yield url


@pytest.fixture
def accounts(tmp_path):
    return tmp_path / "accounts.sqlite"


@pytest.fixture
def keys(tmp_path):
    path = tmp_path / "keys.toml"
    path.write_text(KEYS)
    return path


def local(home, response, normalize=0.5):
    """The BlackBox of the same teacher, and what its net sees of uint8 images; normalize: mean and std of --normalize."""
    state, _ = read_weights(home / TEACHER)
    net = load_weights(build("ResNet8", 10, (1, 8, 8)).to(memory_format=torch.channels_last), state, TEACHER, "ResNet8")
    here, its = (torch.full((1, 1, 1, 1), v) for v in (normalize, 0.5))
    if normalize != 0.5:
        net = Renormalised(net, (here, here), (its, its))
    return BlackBox(net, response), lambda x: normalised(torch.from_numpy(x), here, here)


def equal(found, wanted):
    return torch.equal(torch.from_numpy(found.copy()), wanted)


# ---- numbers


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("normalize", [0.5, 0.25])
def test_answers_are_those_of_the_local_teacher_bit_by_bit(trained, accounts, binary, normalize):
    box, view = local(trained, "logits", normalize)
    x = pixels(50)
    logits = box(view(x))
    with serving_here(trained, response="logits", accounts=accounts, normalize=f"{normalize},{normalize}") as url:
        for images in (x, view(x).numpy()):
            status, found = ask(url, images, ["logits", "probabilities", "label"], binary)
            assert status == 200 and [*found] == ["logits", "probabilities", "label"]
            assert (
                equal(found["logits"], logits)
                and equal(found["probabilities"], logits.softmax(1))
                and equal(found["label"], logits.argmax(1))
            )


@pytest.mark.parametrize("response", ["soft", "topk:3", "hard"])
def test_each_response_is_the_black_boxs(trained, accounts, response):
    box, view = local(trained, response)
    x, outputs = pixels(9, 1), [*answers.outputs_of(response, 10)]
    wanted = box.asked.answer(view(x))
    with serving_here(trained, response=response, accounts=accounts) as url:
        found = ask(url, x, outputs, True)[1]
        assert [*ask(url, x)[1]] == outputs[:1]  # the first one, where none is selected
        assert [o["name"] for o in get(url)[1]["outputs"]] == outputs
    if response == "soft":
        assert equal(found["probabilities"], wanted) and equal(found["label"], wanted.argmax(1))
    elif response == "hard":
        assert equal(found["label"], wanted.argmax(1)) and found["label"].dtype == np.int64
    else:
        p, k = wanted.nan_to_num().topk(3)
        assert equal(found["scores"], p) and equal(found["labels"], k) and found["scores"].shape == (9, 3)


def test_somebody_elses_file_with_its_own_normalisation(trained, tmp_path, accounts):
    state, _ = read_weights(trained / TEACHER)
    torch.save({"nets": {"a": state, "b": build("ResNet8", 10, (1, 8, 8)).state_dict()}}, tmp_path / "their.pth")
    own = {"teacher_path": tmp_path / "their.pth", "weights": "nets.a", "teacher_normalize": "half", "normalize": "0.25,0.25"}
    box, view = local(trained, "logits", 0.25)
    with serving_here(trained, response="logits", accounts=accounts, name="theirs", **own) as url:
        assert url.endswith("/v2/models/theirs") and get(url)[1]["parameters"]["normalize"] == {"mean": [0.25], "std": [0.25]}
        assert equal(ask(url, pixels(5))[1]["logits"], box(view(pixels(5))))


def test_probabilities_are_rounded(trained, accounts):
    with serving_here(trained, digits=2, accounts=accounts) as url:
        p = ask(url, pixels(9), binary=True)[1]["probabilities"]
    assert np.array_equal(p, p.astype(np.float64).round(2).astype(np.float32)) and 0 < p.max() <= 1


def test_an_onnx_file_without_its_package_is_one_line(trained):
    try:
        import onnxruntime  # noqa: F401

        wanted = "no file"
    except ModuleNotFoundError:
        wanted = "pip install onnxruntime"
    with pytest.raises(UsageError, match=wanted):
        serve.main(flags(**options_of(trained, {"onnx": "missing.onnx"})))


NAMES = [f"{k} - {name}" for k, name in enumerate("zero one two three four five six seven eight nine".split())]


def onnx_file(path, **metadata):
    """An ONNX file of a linear net for 1x8x8 images."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    w = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
    nodes = [onnx.helper.make_node("Flatten", ["images"], ["flat"]), onnx.helper.make_node("MatMul", ["flat", "w"], ["logits"])]
    ends = [onnx.helper.make_tensor_value_info(n, 1, s) for n, s in (("images", ["n", 1, 8, 8]), ("logits", ["n", 10]))]
    graph = onnx.helper.make_graph(nodes, "main", ends[:1], ends[1:], [onnx.numpy_helper.from_array(w, "w")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.helper.set_model_props(model, {k: json.dumps(v) for k, v in metadata.items()})
    path.write_bytes(model.SerializeToString())
    return w


def test_an_export_of_ours_is_served_with_its_classes_and_its_normalisation(trained, tmp_path, accounts):
    w = onnx_file(tmp_path / "net.onnx", classes=NAMES, mean=[0.25], std=[0.5], crop_from=0)
    with serving_here(trained, onnx=tmp_path / "net.onnx", response="logits", accounts=accounts) as url:
        assert get(url)[1]["parameters"] == {"max_batch": 1024, "normalize": {"mean": [0.5], "std": [0.5]}, "classes": NAMES}
        x = pixels(5)
        for images in (x, (x.astype(np.float32) / 255 - 0.5) / 0.5):
            wanted = ((x.reshape(5, -1) / 255 - 0.25) / 0.5) @ w
            assert np.allclose(ask(url, images)[1]["logits"], wanted, atol=1e-4)


@pytest.mark.parametrize("metadata", [{}, {"classes": 3, "mean": [0.5], "std": [0.5], "crop_from": 0}, {"classes": NAMES, "mean": [0.5] * 3, "std": [0.5] * 3, "crop_from": 0}])  # fmt: skip
def test_classes_that_nobody_named_are_not_made_up(metadata, trained, tmp_path, accounts, script):
    """A run takes an ONNX file of others by its order; of MNIST, whose classes are `0 - zero`, it refused the numbers in their place."""
    onnx_file(tmp_path / "net.onnx", **metadata)
    with serving_here(trained, onnx=tmp_path / "net.onnx", accounts=accounts) as url:
        assert get(url)[1]["parameters"].keys() == {"max_batch", "normalize"}
        assert script("KD", teacher=url, epochs=1, lamda=0.1)["api"]["images"] == 129


def test_weights_of_others_are_served_without_class_names(trained, tmp_path, accounts):
    torch.save(read_weights(trained / TEACHER)[0], tmp_path / "their.pth")
    with serving_here(trained, teacher_path=tmp_path / "their.pth", accounts=accounts) as url:
        assert "classes" not in get(url)[1]["parameters"]
        args = parse(TeacherOptions, flags(teacher=url, dataset="Digits", ledger=False))
        source = Remote(args, NAMES, (1, 8, 8), *[(torch.full((1, 1, 1, 1), 0.5),) * 2] * 2)
        source.describe()
        assert source.protocol.reading.order is None


# ---- the protocol


def test_what_the_server_says_about_itself(soft):
    top = top_of(soft)
    assert get(f"{top}/v2")[1]["extensions"] == ["binary_tensor_data"]
    assert get(f"{top}/v2/health/live") == (200, {"live": True}) and get(f"{top}/v2/health/ready") == (200, {"ready": True})
    status, about = get(soft)
    (version,), parameters = about["versions"], about["parameters"]
    assert status == 200 and re.fullmatch("[0-9a-f]{12}", version) and about["name"] == "ResNet8" and about["platform"] == "pytorch"
    assert about["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 1, 8, 8]}]
    assert about["outputs"] == [
        {"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]},
        {"name": "label", "datatype": "INT64", "shape": [-1]},
    ]
    assert parameters == {"max_batch": 64, "normalize": {"mean": [0.5], "std": [0.5]}, "classes": [str(k) for k in range(10)]}
    assert get(f"{soft}/versions/{version}") == (200, about) and get(f"{soft}/ready") == get(f"{soft}/versions/{version}/ready")
    assert ask(f"{soft}/versions/{version}", pixels(2))[0] == 200
    for url, status in ((f"{top}/v2/models/Other", 404), (f"{soft}/versions/1", 404), (f"{top}/nothing", 404), (f"{soft}/infer", 405)):
        answer = HTTP.request("GET", url)
        assert answer.status == status and line_of(answer.data)


def test_nested_data_ids_and_binary_outputs(soft):
    x = pixels(3)
    entry = {"name": "images", "shape": [3, 1, 8, 8], "datatype": "UINT8", "data": x.tolist()}
    outputs = [{"name": "label", "parameters": {"binary_data": True}}, {"name": "probabilities"}]
    status, headers, data = post(f"{soft}/infer", orjson.dumps({"id": "é 7", "inputs": [entry], "outputs": outputs}))
    head, found = wire.unpack(data, headers[wire.JSON_SIZE], "outputs")
    assert (
        status == 200 and head["id"] == "é 7" and head["model_name"] == "ResNet8" and head["model_version"] == get(soft)[1]["versions"][0]
    )
    assert "data" not in head["outputs"][0] and "data" in head["outputs"][1]
    assert (
        np.array_equal(found["label"], found["probabilities"].argmax(1))
        and found["label"].tolist() == ask(soft, x, ["label"])[1]["label"].tolist()
    )


IMAGE = {"name": "images", "shape": [1, 1, 8, 8], "datatype": "UINT8", "data": [0] * 64}
MALFORMED = {
    "nothing": b"", "no JSON": b"images", "cut": orjson.dumps({"inputs": [IMAGE]})[:-9], "a list": b"[]", "a number": b"7", "null": b"null",
    "no inputs": {}, "inputs no list": {"inputs": IMAGE}, "no input": {"inputs": []}, "a bare input": {"inputs": [1]},
    "no name": {"inputs": [{}]}, "another name": {"inputs": [IMAGE | {"name": "x"}]}, "twice": {"inputs": [IMAGE, IMAGE]},
    "more": {"inputs": [IMAGE, IMAGE | {"name": "y"}]}, "type": {"inputs": [IMAGE | {"datatype": "FP99"}]},
    "type a list": {"inputs": [IMAGE | {"datatype": []}]}, "another type": {"inputs": [IMAGE | {"datatype": "INT32"}]},
    "texts": {"inputs": [IMAGE | {"datatype": "BYTES", "data": ["a"] * 64}]}, "shape": {"inputs": [IMAGE | {"shape": "x"}]},
    "negative": {"inputs": [IMAGE | {"shape": [-1, 1, 8, 8]}]}, "floats": {"inputs": [IMAGE | {"shape": [1.0, 1, 8, 8]}]},
    "flat": {"inputs": [IMAGE | {"shape": [64]}]}, "size": {"inputs": [IMAGE | {"shape": [1, 1, 4, 16]}]},
    "none": {"inputs": [IMAGE | {"shape": [0, 1, 8, 8], "data": []}]}, "huge": {"inputs": [IMAGE | {"shape": [2**31 - 1] * 40}]},
    "dimensions": {"inputs": [IMAGE | {"shape": [1] * 99 + [64]}]}, "few": {"inputs": [IMAGE | {"data": [0] * 63}]},
    "no data": {"inputs": [{k: v for k, v in IMAGE.items() if k != "data"}]}, "data text": {"inputs": [IMAGE | {"data": "0" * 64}]},
    "256": {"inputs": [IMAGE | {"data": [256] * 64}]}, "-1": {"inputs": [IMAGE | {"data": [-1] * 64}]}, "halves": {"inputs": [IMAGE | {"data": [0.5] * 64}]},
    "one text": {"inputs": [IMAGE | {"data": [0] * 63 + ["0" * 9999]}]}, "null value": {"inputs": [IMAGE | {"data": [None] * 64}]},
    "booleans": {"inputs": [IMAGE | {"data": [True] * 64}]}, "ragged": {"inputs": [IMAGE | {"data": [[0] * 63, [0]]}]},
    "deep": b'{"inputs":' + b"[" * 5000 + b"]" * 5000 + b"}", "not finite": b'{"inputs":[{"name":"images","shape":[1,1,8,8],"datatype":"FP32","data":[' + b"NaN," * 63 + b"0]}]}",
    "too large": {"inputs": [IMAGE | {"datatype": "FP32", "data": [1e300] * 64}]}, "no float": {"inputs": [IMAGE | {"datatype": "FP32", "data": ["1"] * 64}]},
    "outputs": {"inputs": [IMAGE], "outputs": 1}, "an output": {"inputs": [IMAGE], "outputs": [{}]}, "unknown output": {"inputs": [IMAGE], "outputs": [{"name": "x\n"}]},
    "not of soft": {"inputs": [IMAGE], "outputs": [{"name": "scores"}]}, "parameters": {"inputs": [IMAGE], "parameters": []},
    "flag": {"inputs": [IMAGE], "parameters": {"binary_data_output": 1}}, "id": {"id": 7, "inputs": [IMAGE]}, "long id": {"id": "x" * 999, "inputs": [IMAGE]},
    "surrogate": orjson.dumps({"id": "?", "inputs": [IMAGE]}).replace(b"?", b"\\ud800"), "surrogate name": orjson.dumps({"inputs": [IMAGE | {"name": "?"}]}).replace(b"?", b"\\ud800\\n"),
    "integer": b'{"inputs":[{"name":"images","shape":[1,1,8,8],"datatype":"UINT8","data":[' + b"9" * 5000 + b"]}]}",
    "binary nowhere": {"inputs": [IMAGE | {"parameters": {"binary_data_size": 64}}]}, "trailing": orjson.dumps({"inputs": [IMAGE]}) + b"more",
}  # fmt: skip


def test_malformed_bodies_are_refused_in_one_line_and_count_nothing(soft):
    before = get(f"{top_of(soft)}/v2/usage")[1]
    for name, body in MALFORMED.items():
        status, _, data = post(f"{soft}/infer", body if isinstance(body, bytes) else orjson.dumps(body))
        assert status == 400, (name, status, data)
        assert line_of(data).isprintable() and len(data) < 1500, name
    body, headers = wire.pack({}, {"images": pixels(1)}, "inputs", True)
    for size in ("x", "-1", "99999", "1", "9" * 5000, "²"):
        status, _, data = post(f"{soft}/infer", body, headers | {wire.JSON_SIZE: size.encode()})
        assert status == 400 and line_of(data), size
    for cut in (1, 63):
        assert post(f"{soft}/infer", body[:-cut], headers)[0] == 400
    assert post(f"{soft}/infer", body + b"0", headers)[0] == 400
    status, _, data = post(f"{soft}/infer", body, headers | {"Content-Encoding": "gzip"})
    assert status == 415 and "compressed" in line_of(data)
    assert get(f"{top_of(soft)}/v2/usage")[1] == before


@pytest.fixture(scope="module")
def model(trained):
    return open_model(parse(serve.Args, flags(**options_of(trained, {}))))


FUZZ = settings(
    max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
VALID = wire.pack({"outputs": [{"name": "label"}]}, {"images": pixels(1)}, "inputs", True)
EDITS = st.lists(st.tuples(st.integers(0, len(VALID[0])), st.integers(0, 3), st.binary(max_size=4)), max_size=4)


@FUZZ
@given(st.binary(max_size=200) | EDITS, st.none() | st.text(max_size=4) | st.just(VALID[1][wire.JSON_SIZE]))
def test_any_bytes_are_answered_or_refused_in_one_line(model, body, size):
    if isinstance(body, list):
        edits, body = body, VALID[0]
        for at, gone, new in edits:
            body = body[:at] + new + body[at + gone :]
    try:
        found = protocol.read_ask(body, size, model, Key("k", "", 0, 0, "soft", 0), 64)
        assert found.images.shape[1:] == (1, 8, 8)
    except Refused as e:
        assert e.status in (400, 403, 413) and e.line.isprintable() and e.line


def test_an_unexpected_error_is_one_line_that_shows_nothing_of_the_request(trained, accounts, monkeypatch, capsys):
    def fails(self, x):
        raise KeyError("secret-of-the-request")

    monkeypatch.setattr(Model, "logits", fails)
    with serving_here(trained, query_budget=10, accounts=accounts) as url:
        for _ in range(3):  # the reservation is given back each time
            status, line = ask(url, pixels(8))
            assert status == 500 and "KeyError" in line and "secret" not in line
        usage = get(f"{top_of(url)}/v2/usage")[1]
        assert usage["images"] == usage["requests"] == 0
    err = capsys.readouterr().err
    assert err.count("\n") == 3 and "unexpected error at test_serving.py" in err and "secret" not in err


# ---- pictures


def test_the_classification_task_of_pictures(trained, keys, accounts):
    net, preprocess, classes = load_model(trained / TEACHER)
    colour = np.random.default_rng(3).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    with serving_here(trained, keys=keys, accounts=accounts) as url:
        task = f"{top_of(url)}/models/ResNet8"
        for picture, x in ((colour, colour.transpose(2, 0, 1)), (colour[..., 0], colour[None, ..., 0])):
            Image.fromarray(picture).save(file := io.BytesIO(), "PNG")
            p = net(preprocess(torch.from_numpy(x.copy())[None])).softmax(1)[0]
            raw = orjson.loads(post(task, file.getvalue(), BOB)[2])
            assert len(raw) == 5 and [a["label"] for a in raw] == [classes[k] for k in p.argsort(descending=True)[:5]]
            assert [a["score"] for a in raw] == [round(v, 3) for v in p.sort(descending=True)[0][:5].tolist()]  # bob's three digits
            body = orjson.dumps({"inputs": base64.b64encode(file.getvalue()).decode(), "parameters": {"top_k": 2}})
            assert orjson.loads(post(task, body, BOB | {"Content-Type": "application/json"})[2]) == raw[:2]
            assert orjson.loads(post(f"{task}?top_k=1", file.getvalue(), BOB)[2]) == raw[:1]
            assert orjson.loads(post(task, file.getvalue(), ANN)[2]) == [{"label": raw[0]["label"], "score": 1.0}]  # ann's response is hard
            two = orjson.loads(post(task, file.getvalue(), EVE)[2])  # eve's is topk:2
            assert [a["label"] for a in two] == [a["label"] for a in raw[:2]] and two[0]["score"] == pytest.approx(p.max().item(), rel=1e-6)
        as_json = BOB | {"Content-Type": "application/json"}
        Image.new("1", (8000, 8000)).save(large := io.BytesIO(), "PNG")
        for body, headers in [
            (b"", BOB),
            (b"GIF89a", BOB),
            (file.getvalue()[:-30], BOB),
            (large.getvalue(), BOB),
            (b"{}", as_json),
            (b"[]", as_json),
            (b'{"inputs": "%"}', as_json),
            (b'{"inputs": 3}', as_json),
            (b'{"inputs": "", "parameters": 3}', as_json),
        ]:
            status, _, data = post(task, body, headers)
            assert status == 400 and line_of(data), body
        assert post(f"{task}?top_k=0", file.getvalue(), BOB)[0] == post(f"{task}?top_k=x", file.getvalue(), BOB)[0] == 400
        assert post(task, file.getvalue())[0] == 401
        assert get(f"{top_of(url)}/v2/usage", BOB)[1]["images"] == 6


# ---- keys and limits


def test_each_key_sees_what_is_its_own(trained, keys, accounts):
    with serving_here(trained, keys=keys, accounts=accounts) as url:
        usage = f"{top_of(url)}/v2/usage"
        for headers in (
            {},
            {"Authorization": "Bearer wrong-secret"},
            {"Authorization": "ann-secret-1"},
            {"X-API-Key": "é".encode("latin-1")},
        ):
            for answer in (
                HTTP.request("GET", url, headers=headers),
                HTTP.request("GET", usage, headers=headers),
                HTTP.request("POST", f"{url}/infer", headers=headers, body=b"x" * 10**6),
            ):
                assert answer.status == 401 and "secret" not in line_of(answer.data) and answer.headers["WWW-Authenticate"] == "Bearer"
        assert ask(url, pixels(2), ["logits"], headers=BOB)[0] == 200
        status, line = ask(url, pixels(2), ["logits"], headers=ANN)
        assert status == 403 and line == "the output logits needs the response logits, and yours is hard: label"
        assert [[o["name"] for o in get(url, h)[1]["outputs"]] for h in (ANN, BOB)] == [["label"], ["logits", "probabilities", "label"]]
        assert ask(url, pixels(39), headers=ANN)[0] == 200
        status, line = ask(url, pixels(2), headers=ANN)
        assert (status, line) == (403, "over the budget of 40 images: 39 answered, 2 more requested")
        assert ask(url, pixels(1), headers=ANN)[0] == 200
        assert get(usage, ANN)[1] == {
            "key": "ann",
            "images": 40,
            "requests": 2,
            "refused": 2,
            "budget": 40,
            "left": 0,
            "rate": None,
            "response": "hard",
        }
        assert get(usage, BOB)[1] == {
            "key": "bob",
            "images": 2,
            "requests": 1,
            "refused": 0,
            "budget": None,
            "left": None,
            "rate": None,
            "response": "logits",
        }
        assert metric(url, 'serve_images_total{key="ann"}') == 40 and metric(url, 'serve_requests_total{status="403"}') == 2
    assert b"secret" not in accounts.read_bytes()


def test_a_budget_is_exact_under_concurrent_requests(trained, accounts):
    with serving_here(trained, query_budget=1001, accounts=accounts) as url, concurrent.futures.ThreadPoolExecutor(8) as pool:
        sizes = [1 + i % 7 for i in range(400)]
        statuses = [*pool.map(lambda n: ask(url, pixels(n), ["label"], True)[0], sizes)]
        usage = get(f"{top_of(url)}/v2/usage")[1]
        answered = sum(n for n, s in zip(sizes, statuses, strict=True) if s == 200)
        assert set(statuses) == {200, 403} and usage["images"] == answered and 1001 - 7 < answered <= 1001
        assert usage["requests"] == statuses.count(200) and usage["refused"] == statuses.count(403) and usage["left"] == 1001 - answered
        assert metric(url, "serve_batch_images_sum") == answered


def test_over_the_rate_is_429_with_the_seconds_to_wait(trained, accounts):
    with serving_here(trained, rate=20, accounts=accounts) as url:
        assert ask(url, pixels(10))[0] == 200  # half a second's worth
        body, headers = wire.pack({}, {"images": pixels(1)}, "inputs")
        status, answered, data = post(f"{url}/infer", body, headers)
        assert status == 429 and answered["Retry-After"] == "1" and "20 images per second" in line_of(data)
        time.sleep(0.55)
        assert ask(url, pixels(1))[0] == 200
        assert get(f"{top_of(url)}/v2/usage")[1]["refused"] == 1


def test_limits_of_a_request(soft):
    status, line = ask(soft, pixels(65))
    assert status == 413 and line == "the request has 65 images; at most 64 are answered together"
    status, _, data = post(f"{soft}/infer", b" " * (10**6 + 1))
    assert status == 413 and "at most 1,000,000" in line_of(data)
    status, _, data = post(f"{soft}/infer", (b" " * 10**5 for _ in range(12)))  # chunked: without a Content-Length
    assert status == 413 and "more than 1,000,000" in line_of(data)
    assert ask(soft, pixels(64))[0] == 200


@pytest.mark.parametrize("lines, status", [
    (b"no HTTP", 400), (b"POST {} HTTP/1.1\r\nHost: x\r\nContent-Length: -5", 400), (b"POST {} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz", 400),
    (b"POST {} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 99999999999", 413), (b"POST /v2/x HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9", 404),
])  # fmt: skip
def test_broken_requests_are_answered_and_the_connection_closed(soft, lines, status):
    parts = urllib3.util.parse_url(soft)
    with socket.create_connection((parts.host, parts.port), 10) as s:
        s.sendall(lines.replace(b"{}", f"{parts.path}/infer".encode()) + b"\r\n\r\n")
        answer = b"".join(iter(lambda: s.recv(4096), b""))  # to the end
    assert answer.startswith(b"HTTP/1.1 %d " % status) and b'{"error":' in answer and b"100 Continue" not in answer


def test_requests_that_wait_are_joined(trained, accounts):
    with serving_here(trained, max_batch=20, max_wait_ms=1000, accounts=accounts) as url, concurrent.futures.ThreadPoolExecutor(4) as pool:
        began = time.monotonic()
        found = [*pool.map(lambda i: ask(url, pixels(5, i), ["label"])[1]["label"], range(4))]
        assert time.monotonic() - began < 0.9  # a full batch does not wait
        assert metric(url, "serve_batch_images_count") == 1 and metric(url, "serve_batch_images_sum") == 20
    box, view = local(trained, "hard")
    assert all(np.array_equal(f, box(view(pixels(5, i))).argmax(1).numpy()) for i, f in enumerate(found))


def test_a_full_queue_is_503(trained, accounts, monkeypatch):
    go, logits = threading.Event(), Model.logits
    monkeypatch.setattr(Model, "logits", lambda self, x: (go.wait(20), logits(self, x))[1])
    with serving_here(trained, max_queue=2, max_batch=1, accounts=accounts) as url, concurrent.futures.ThreadPoolExecutor(3) as pool:
        asked = []
        for waiting in (0, 1, 2):
            asked.append(pool.submit(ask, url, pixels(1)))
            while metric(url, "serve_queue_requests") < waiting:
                time.sleep(0.01)
            time.sleep(0.1)
        status, headers, data = post(f"{url}/infer", wire.pack({}, {"images": pixels(1)}, "inputs")[0])
        assert status == 503 and headers["Retry-After"] == "1" and "2 requests are waiting" in line_of(data)
        assert get(f"{top_of(url)}/v2/health/live")[0] == 200  # the event loop is free
        go.set()
        assert [a.result()[0] for a in asked] == [200, 200, 200]


# ---- the process


def test_a_killed_server_keeps_its_counts_and_a_stopped_one_answers_what_is_in_flight(trained, accounts):
    server = Process(trained, query_budget=50, accounts=accounts)
    assert [ask(server.url, pixels(n))[0] for n in (30, 5, 16)] == [200, 200, 403]
    server.process.kill()
    server.end()
    server = Process(trained, query_budget=50, accounts=accounts, max_wait_ms=1500)
    counts = {"images": 35, "requests": 2, "refused": 1, "left": 15}
    assert counts.items() <= get(f"{top_of(server.url)}/v2/usage")[1].items()
    with pytest.raises(UsageError, match="another server counts in .*--accounts"):
        serve.main(flags(**options_of(trained, {"accounts": accounts})))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, server.url, pixels(15))
        while metric(server.url, "serve_queue_requests") < 1:
            time.sleep(0.01)
        server.process.send_signal(15)
        assert asked.result()[0] == 200
    assert server.end() == (0, "")
    with serving_here(trained, query_budget=50, accounts=accounts) as url:
        assert ask(url, pixels(1)) == (403, "over the budget of 50 images: 50 answered, 1 more requested")


def test_a_server_ends_with_its_parent(trained, accounts):
    server = Process(trained, accounts=accounts, response="hard")
    assert server.url.endswith("/v2/models/ResNet8") and ask(server.url, pixels(3), ["label"], True)[0] == 200
    server.process.stdin.close()
    server.process.stdin = None
    assert server.end() == (0, "")


def refused(capsys, home, **options):
    """(exit status, the line) of a server that does not start."""
    with pytest.raises(SystemExit) as e:
        cli(lambda: serve.main(flags(**options_of(home, options))))
    return e.value.code, capsys.readouterr().err


def test_what_keeps_a_server_from_starting_is_one_line(trained, tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, line = refused(capsys, trained, port=port)
        assert status == 1 and line.endswith(f"port {port} of 127.0.0.1 is in use; give another --port, or --port 0 for a free one\n")
    status, line = refused(capsys, trained, teacher="ResNet14")
    assert status == 2 and "first run: python project/teacher.py --dataset Digits --model ResNet14 --seed 0" in line
    (tmp_path / "text").write_text("no database" * 100)
    for options, words in [
        ({"accounts": tmp_path / "text"}, "not a readable file of counts"), ({"accounts": tmp_path / "text" / "a"}, "cannot write"),
        ({"img_size": 16}, "was made for shape"), ({"dataset": "KMNIST", "teacher_path": trained / TEACHER}, "is a teacher of Digits, not of KMNIST"),
        ({"response": "inside"}, "there are hard, topk:K, soft and logits"), ({"teacher": "py:a.py:f"}, "a function is not served"), ({"host": "no such host"}, "cannot listen"),
        ({"name": "a/b"}, "part of a URL"), ({"port": 70000}, "at most 65535"), ({"onnx": "a", "weights": "b"}, "--onnx excludes"),
    ]:  # fmt: skip
        status, line = refused(capsys, trained, **options)
        assert status == (1 if "host" in options else 2) and words in line and line.count("\n") == 1, (options, line)


@pytest.mark.parametrize("text, words", [
    ("x = ", "not a TOML file"), ("", "must have entries"), ("keys = 3", "must have entries"), ("[[keys]]\n[other]", "must have entries"),
    ('[[keys]]\nname = "a"', "either token or token_sha256"), ('[[keys]]\nname = "a b"\ntoken = "secret-1"', "name 'a b' must be"),
    ('[[keys]]\nname = "a"\ntoken = "secret"', "at least 8 letters"), ('[[keys]]\nname = "a"\ntoken = "secret with spaces"', "without spaces"),
    ('[[keys]]\nname = "a"\ntoken_sha256 = "secret"', "64 hexadecimal"), ('[[keys]]\nname = "a"\ntoken = "secret-1"\nbudget = -1', "at least 0"),
    ('[[keys]]\nname = "a"\ntoken = "secret-1"\nbudget = 1.5', "budget must be a number"), ('[[keys]]\nname = "a"\ntoken = "secret-1"\nrate = nan', "at least 0"),
    ('[[keys]]\nname = "a"\ntoken = "secret-1"\nresponse = "all"', "there are hard"), ('[[keys]]\nname = "a"\ntoken = "secret-1"\ndigits = true', "digits must be"),
    ('[[keys]]\nname = "a"\ntoken = "secret-1"\nsecrets = 1', "there is no entry 'secrets'"), ('[[keys]]\nname = "a"\ntoken = "secret-1"\n[[keys]]\nname = "a"\ntoken = "secret-2"', "the same name"),
    ('[[keys]]\nname = "a"\ntoken = "secret-1"\n[[keys]]\nname = "b"\ntoken = "secret-1"', "the same token"), ('[[keys]]\ntoken = "secret-1', "not a TOML file"),
])  # fmt: skip
def test_a_wrong_keys_file_is_one_line_that_shows_no_token(tmp_path, text, words):
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as e:
        Keys(parse(serve.Args, ["--keys", str(path)]))
    assert words in str(e.value) and "secret-" not in str(e.value) and "\n" not in str(e.value)
