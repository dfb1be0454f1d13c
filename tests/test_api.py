"""A teacher behind a server: protocols, attempts, faults, secrets, and the real scripts over HTTP."""

from common.cli import RunError, Stopped, UsageError

import json
import os
import shutil
import signal
import sqlite3
import ssl
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import urllib3
from conftest import QUICK, killed_after
from fake_api import Fake, softmax
from safetensors.torch import save_file
from served import Process, serving_here

from common.api.answers import Reading, at, tolerance
from common.api.client import retry_after
from common.api.ledger import Ledger, key_of
from common.api.paid import Paid
from common.api.remote import Remote
from common.blackbox import BlackBox, Local
from common.checkpoints import read
from common.forms import COUNTS
from common.options import TeacherOptions, flags, parse
from common.transfer import Transfer
from common.utils import clock, digest

HALF = (torch.full((1, 1, 1, 1), 0.5),) * 2
CLASSES = [str(k) for k in range(10)]


def options(url, **more):
    return parse(TeacherOptions, flags(teacher=url, dataset="Digits", **{"retries": 3} | more))


def remote(api, **more):
    """(BlackBox, source) of a fake server, without a ledger."""
    args = options(api.url, ledger=False, **more)
    source = Remote(args, CLASSES, (1, 8, 8), HALF, HALF)
    source.describe()
    return BlackBox(Paid(args, source, None, 10, "run"), args.response), source


def images(n=20, seed=0):
    """Images as a net sees them, of whole pixels, and the pixels."""
    pixels = torch.randint(256, (n, 1, 8, 8), generator=torch.Generator().manual_seed(seed))
    return pixels / 255 * 2 - 1, pixels.reshape(n, -1).numpy()


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    """Between attempts nothing waits long."""
    from common.api import client

    monkeypatch.setattr(client, "LONGEST", 0.01)


# ---- protocols


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("form", ["uint8", "float32"])
@pytest.mark.parametrize("layout", [(1, 8, 8), (8, 8, 1), (64,)])
def test_open_inference_gives_what_the_server_computes(form, layout, binary):
    x, pixels = images()
    with Fake(form=form, layout=layout, binary=binary) as api:
        logits = api.logits(pixels)
        for response in ("logits", "soft", "topk:3", "hard"):
            teacher, source = remote(api, response=response, api_batch=7)
            t = teacher(x).numpy()
            if response == "hard":
                assert (t == np.eye(10)[logits.argmax(1)]).all()
            elif response == "logits":
                assert np.allclose(t, logits, rtol=1e-6)
            elif response == "soft":
                assert np.allclose(softmax(t), softmax(logits), atol=1e-6)
            else:
                local = BlackBox(Local(torch.nn.Identity(), response), response)
                assert np.allclose(t, local(torch.from_numpy(logits)).numpy(), atol=1e-4)
            assert source.protocol.binary == binary
    assert len(api.asked) == 4 * 20 and api.requests == 4 * (1 + 3) + 4 * (not binary)  # one image shows whether binary data are taken


def test_a_server_that_says_that_it_takes_binary_data_is_not_probed():
    with Fake() as api:
        api.extensions = ["binary_tensor_data"]
        remote(api, api_batch=20)[0](images()[0])
        assert api.requests == 1


def test_probabilities_from_logits_alone_and_an_output_by_name():
    x, pixels = images()
    with Fake(names=("logits",)) as api:
        assert np.allclose(softmax(remote(api)[0](x).numpy()), softmax(api.logits(pixels)), atol=1e-6)
    with Fake(names=("logits", "probabilities")) as api:
        teacher, source = remote(api, api_output="logits", response="hard")
        assert source.protocol.outputs == ["logits"] and (teacher(x).numpy().argmax(1) == api.logits(pixels).argmax(1)).all()
        with pytest.raises(UsageError, match=r"no output for --api_output x; it has: logits \(FP32 \[-1, 10\]\), probabilities"):
            remote(api, api_output="x")


def test_a_server_of_classes_alone_is_not_asked_for_more():
    with Fake(names=("label",)) as api:
        for response in ("soft", "topk:3", "logits"):
            with pytest.raises(UsageError, match=rf"has no output for --response {response}; it has: label \(INT64 \[-1\]\)"):
                remote(api, response=response)
        assert remote(api, response="hard") and not api.asked


@pytest.mark.parametrize("response", ["logits", "soft", "hard"])
def test_classes_in_another_order_are_put_into_the_data_sets(response):
    x, pixels = images()
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    with Fake() as api:
        api.parameters = {"classes": [str(k) for k in order]}
        t, wanted = remote(api, response=response)[0](x).numpy(), np.empty((20, 10))
        wanted[:, order] = api.logits(pixels)
        assert (t.argmax(1) == wanted.argmax(1)).all() and (response != "logits" or np.allclose(t, wanted, rtol=1e-5))
        api.parameters = {"classes": ["cat", "dog"]}
        with pytest.raises(UsageError, match="has 2 classes: cat, dog; the data set has 10: 0, 1, 2, 3, 4, ..."):
            remote(api)


def test_numbers_are_normalised_as_the_server_states():
    x, pixels = images()
    with Fake(form="float32") as api:
        assert np.allclose(softmax(remote(api)[0](x).numpy()), softmax(api.logits(pixels)), atol=1e-6)  # half, of the run
        api.parameters = {"normalize": {"mean": [0.0], "std": [1.0]}}
        assert np.allclose(np.frombuffer(remote(api)[1].encode(x[:1])[0], "<f4"), pixels[0] / 255, atol=1e-6)
        with pytest.raises(
            UsageError, match="another normalisation than --teacher_normalize; give --teacher_normalize 0,1, or leave it out"
        ):
            remote(api, teacher_normalize="half")


@pytest.mark.parametrize("layout", [(3, 8, 8), (1, 16, 16)])
def test_images_of_another_shape_than_the_servers_are_refused(layout):
    with (
        Fake(layout=layout) as api,
        pytest.raises(UsageError, match="takes images of .*, the run's are 1x8x8; give --img_size or --channels"),
    ):
        remote(api)


def test_hugging_face_lists_of_labels_and_scores():
    x, pixels = images()
    with Fake("hf") as api:
        p = softmax(api.logits(pixels))
        assert np.allclose(softmax(remote(api)[0](x).numpy()), p, atol=1e-6)
        assert (remote(api, response="hard")[0](x).numpy().argmax(1) == p.argmax(1)).all()
        t = softmax(remote(api, response="topk:3", concurrency=4)[0](x).numpy())
        top = np.sort(p, 1)[:, -3:]
        assert np.allclose(np.sort(t, 1)[:, -3:], top, atol=1e-6) and np.allclose(np.sort(t, 1)[:, 0], (1 - top.sum(1)) / 7, atol=1e-6)
        with pytest.raises(RunError, match="from which --response logits cannot be had; use --response soft or topk:5"):
            remote(api, response="logits")[0](x)


def test_a_described_list_of_labels_in_percent(tmp_path):
    x, pixels = images()
    (tmp_path / "map.csv").write_text("label,class\n" + "".join(f"number {k},{k}\n" for k in range(10)))
    (tmp_path / "map.json").write_text(json.dumps({f"number {k}": k for k in range(10)}))
    paths = {"protocol": "list", "api_labels": "result.tags[].name", "api_scores": "result.tags[].confidence", "api_scale": "percent"}
    with Fake("list") as api:
        p = softmax(api.logits(pixels))
        for kind in ("csv", "json"):
            body = {"api_body": '{"picture": {"data": "$IMAGE"}}'} if kind == "csv" else {}
            t = softmax(remote(api, **paths, **body, api_classes=tmp_path / f"map.{kind}", response="topk:4")[0](x).numpy())
            assert np.allclose(np.sort(t, 1)[:, -4:], np.sort(p, 1)[:, -4:], atol=1e-6)
        with pytest.raises(
            RunError, match=r"its label 'number \d' is no class \(0, 1, 2, 3, 4, ...\); --api_classes FILE maps labels to classes"
        ):
            remote(api, **paths, response="topk:4")[0](x)
        with pytest.raises(RunError, match="it tells 4 of 10 probabilities; use --response topk:4, or hard"):
            remote(api, **paths, api_classes=tmp_path / "map.csv")[0](x)
        assert len(api.asked) == 42  # one answer is enough to see what is wrong


@pytest.mark.parametrize("k", [1, 2, 3])
def test_no_protocol_tells_more_than_the_k_largest(k, tmp_path, trained):
    """A server that gives more than was asked for does not make the student of topk:1 one of topk:4."""
    x, pixels = images()
    (tmp_path / "map.json").write_text(json.dumps({f"number {i}": i for i in range(10)}))
    paths = {"protocol": "list", "api_labels": "result.tags[].name", "api_scores": "result.tags[].confidence", "api_scale": "percent"}
    with Fake("list") as api:
        t = remote(api, **paths, api_classes=tmp_path / "map.json", response=f"topk:{k}")[0].asked.answer(x)
        p = torch.from_numpy(softmax(api.logits(pixels)))
    assert torch.allclose(t.nan_to_num(-1).topk(k).values, p.topk(k).values, atol=1e-6) and (t.isfinite().sum(1) == k).all()
    with serving_here(trained, response="topk:3", accounts=tmp_path / "a.sqlite") as url:
        t = remote(SimpleNamespace(url=url), response=f"topk:{k}")[0].asked.answer(x)
        assert (t.isfinite().sum(1) == k).all()
        full = remote(SimpleNamespace(url=url), response="topk:3")[0].asked.answer(x)
        assert t.nan_to_num(-1).topk(k).values.equal(full.nan_to_num(-1).topk(k).values)


def test_a_server_that_tells_fewer_than_k_is_refused(trained, tmp_path):
    """By its metadata, before an image is sent; by its answer, where it has no metadata that say so."""
    words = "tells 3 probabilities of an image, --response topk:8 wants 8; use --response topk:3"
    with serving_here(trained, response="topk:3", accounts=tmp_path / "a.sqlite") as url, pytest.raises(UsageError, match=words):
        remote(SimpleNamespace(url=url), response="topk:8")
    args = options("http://127.0.0.1:1/v2/models/x", response="topk:8", ledger=False)
    protocol = Remote(args, CLASSES, (1, 8, 8), HALF, HALF).protocol
    scores, labels = np.full((2, 3), 0.3, np.float32), np.array([[0, 1, 2], [3, 4, 5]])
    with pytest.raises(ValueError, match=f"it {words}"):
        protocol.scattered(scores, labels)
    with pytest.raises(ValueError, match=r"an image's sum to 1.8\)"):
        protocol.scattered(2 * scores, labels)


@pytest.mark.parametrize("digits", [1, 2, 4])
def test_probabilities_that_a_server_rounds_are_taken(digits, script, trained, tmp_path):
    """Ten classes with two decimals may sum to 1 within 0.05."""
    with serving_here(trained, response="soft", digits=digits, accounts=tmp_path / "a.sqlite") as url:
        result = script("KD", teacher=url, epochs=1, lamda=0.2)
    assert result["api"]["images"] == 259 and result["accuracy"] > 0


@pytest.mark.parametrize(
    "classes, digits, off", [(10, 0, 0.02), (10, 2, 0.05), (1000, 4, 0.05), (1000, 0, 0.02), (10, 6, 0.02)]
)  # fmt: skip
def test_sums_may_be_off_as_far_as_rounding_explains(classes, digits, off):
    reading = Reading("soft", "auto", [str(k) for k in range(classes)])
    p = np.random.default_rng(0).dirichlet(np.ones(classes), 20).astype(np.float32)
    p = p.round(digits) if digits else p
    assert tolerance(p) == pytest.approx(off, rel=1e-3) and reading.scores(p) is not None
    p[0, p[0].argmax()] += np.float32(off + 0.06 if digits != 6 else 0.03)
    with pytest.raises(ValueError, match=r"the sums of rows differ from 1 by up to 0\.\d+\); choose an output with"):
        reading.scores(p)
    with pytest.raises(ValueError, match=r"no probabilities \(from -3 to 5\); if they are logits, give --api_scale logit"):
        reading.scores(np.linspace(-3, 5, classes, dtype=np.float32)[None])


def test_paths_in_json():
    content = {"a": [{"b": [1, 2]}, {"b": [3]}], "c": {"d": 4}}
    assert (
        at(content, "a[].b") == [[1, 2], [3]]
        and at(content, "a[].b[]") == [1, 2, 3]
        and at(content, "a.1.b.0") == [3]
        and at(content, "c.d") == [4]
    )
    with pytest.raises(ValueError, match=r"nothing at a\[\].x \(step x\)"):
        at(content, "a[].x")


@pytest.mark.parametrize(
    "text, why",
    [
        ("", "maps no label"),
        ("a,b\n1,2\n", "neither a JSON object nor a CSV"),
        ("label,class\n", "maps no label"),
        ('{"a": "x"}', "'a' maps to 'x', which is no class"),
        ("{", "neither a JSON"),
        ("label,class\na,10\n", "'a' maps to '10'"),
    ],
)
def test_label_files_that_cannot_be_used(tmp_path, text, why):
    (tmp_path / "map").write_text(text)
    with pytest.raises(UsageError, match=why):
        Reading("soft", "auto", CLASSES, str(tmp_path / "map"))


# ---- attempts


def test_failures_are_tried_again_and_every_attempt_is_noted(tmp_path):
    x, pixels = images(30)
    with Fake() as api:
        api.faults = [503, None, 429, 500, None, "cut_short", "half_json", None, "hang_up", None]
        args = options(api.url, ledger=True, api_batch=10)
        source = Remote(args, CLASSES, (1, 8, 8), HALF, HALF)
        source.describe()
        ledger = Ledger(tmp_path / "l.sqlite", {"teacher": api.url, "identity": source.identity, "response": "soft", "classes": 10})
        t = BlackBox(Paid(args, source, ledger, 10, "run"))(x)
        assert np.allclose(softmax(t.numpy()), softmax(api.logits(pixels)), atol=1e-6)
        totals = ledger.totals()
        assert totals["images"] == 30 and totals["requests"] + totals["retries"] == api.requests and totals["retries"] == 6
        assert len(api.asked) == totals["images"] + totals["unanswered"] and len(set(api.asked)) == 30


def test_a_third_of_the_answers_is_503():
    x, pixels = images(100)
    with Fake() as api:
        api.faults = [503 if v < 0.3 else None for v in np.random.default_rng(0).random(400)]
        t = remote(api, api_batch=2, concurrency=8, retries=20)[0](x)
        assert np.allclose(softmax(t.numpy()), softmax(api.logits(pixels)), atol=1e-6)
        assert len(api.asked) == 100 and 1 < api.most <= 8


def test_after_the_last_attempt_one_line_says_why():
    with Fake() as api:
        api.faults = [503] * 9
        with pytest.raises(RunError, match=r"did not answer in 4 attempts \(status 503: not now\); the same command goes on when it does"):
            remote(api)[0](images()[0])
    with pytest.raises(RunError, match="no connection: is the server running"):
        remote(api)


@pytest.mark.parametrize(
    "text, seconds", [("7", 7), ("", 0), ("soon", 0), ("-3", 0), ("99999", 3600), ("Mon, 30 Nov 1998 10:00:00 GMT", 0)]
)
def test_how_long_a_server_asks_to_wait(text, seconds):
    assert retry_after(text) == seconds


@pytest.mark.parametrize(
    "fault, why",
    [
        ("not_a_number", "values that are not finite"), ("too_few", "1 answers to 19 images"), ("other_classes", r"shape \(20, 3\); expected \(images, 10\)"),
        ("web_page", r"did not answer in 4 attempts \(status 200, but the body is not JSON"), (403, "answered with status 403: not now"),
    ],
)  # fmt: skip
def test_answers_that_cannot_be_used_stop_the_run_with_one_line(fault, why):
    with Fake() as api:
        api.faults = [None, *[fault] * 4]
        with pytest.raises(RunError, match=why):
            remote(api)[0](images()[0])


def test_a_slow_server():
    with Fake() as api:
        api.delay = 0.5
        with pytest.raises(RunError, match=r"did not answer in 4 attempts \(no answer within 0.1 s\)"):
            remote(api, timeout=0.1)[0](images()[0])


def test_requests_keep_to_their_rate():
    with Fake() as api:
        began = time.monotonic()
        remote(api, rps=20, api_batch=1)[0](images(7)[0])
        assert time.monotonic() - began > 8 / 20  # two questions about the model, seven requests; the first at once


# ---- secrets


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes the certificate")
def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path):
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "cert"), "-days", "1"]
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *files, *subject], check=True, capture_output=True)
    with Fake() as api:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
        api.server.socket = context.wrap_socket(api.server.socket, server_side=True)
        api.url = api.url.replace("http:", "https:")
        with pytest.raises(RunError, match=r"the connection cannot be trusted \(.*self.signed"):
            remote(api)


def test_a_token_is_in_no_file_line_or_error(script, monkeypatch, capsys):
    secret = "sk-1234567890abcdef"
    monkeypatch.setenv("TEACHER_TOKEN", secret)
    with Fake(token=secret) as api:
        script("KD", teacher=api.url, epochs=1, lamda=0.1)
    with Fake(token="another") as api, pytest.raises(RunError, match=r"status 401: no access with Bearer \.\.\.") as e:
        script("KD", teacher=api.url, epochs=1, lamda=0.1, tag="x")
    out = capsys.readouterr()
    assert secret not in out.out + out.err + str(e.value)
    assert not [p for p in script.home.rglob("*") if p.is_file() and secret.encode() in p.read_bytes()]


@pytest.mark.parametrize(
    "url, more, why",
    [
        ("http://me:word@127.0.0.1:1/v2/models/a", {}, "a user name or a password"), ("http://127.0.0.1/a?api_key=5", {}, "the parameter api_key"), ("http://", {}, "no URL of a server"),
        ("http://127.0.0.1:1/v2/models/a", {"token_file": "none.txt"}, "cannot be read"), ("http://127.0.0.1:1/v2/models/a", {"response": "inside"}, "is a server, which shows no features"),
        ("http://127.0.0.1:1/a", {"protocol": "list"}, "needs --api_labels"), ("http://127.0.0.1:1/a", {"api_input": "float32"}, "takes image files; use png or jpeg"),
        ("http://127.0.0.1:1/v2/models/a", {"token_header": "a b"}, "no name of an HTTP header"), ("http://127.0.0.1:1/v2/models/a", {"audit": "some"}, "there are auto, all, none"), ("http://127.0.0.1:1/v2/models/a", {"max_cost": 1}, "needs the price of an image"),
        ("http://127.0.0.1:1/a", {"protocol": "list", "api_labels": "a", "api_body": "{"}, "no JSON with"), ("http://127.0.0.1:1/v2/models/a", {"api_input": "png"}, "takes uint8 or float32"),
    ],
)  # fmt: skip
def test_wrong_options_are_answered_before_anything_is_sent(url, more, why, script):
    with pytest.raises(UsageError, match=why):
        script("KD", teacher=url, **more)


@pytest.mark.parametrize("name", ["DAFL", "AEAHL"])
def test_methods_that_look_inside_refuse_a_server(name, script):
    with pytest.raises(UsageError, match="shows no features"):
        script(name, teacher="http://127.0.0.1:1/v2/models/a")


def test_a_server_that_is_not_there_leaves_no_ledger(script):
    with pytest.raises(RunError, match="did not answer in one attempt .no connection: is the server running"):
        script("KD", teacher="http://127.0.0.1:9/v2/models/a", retries=0)
    assert not list(script.home.rglob("*.sqlite"))


def test_a_server_is_no_student(script):
    with pytest.raises(UsageError, match="is a server, which can be a teacher, not a student"):
        script("CE", model="http://127.0.0.1:1/v2/models/a")


# ---- every method over HTTP

METHODS = ["KD", "ML", "AL", "DKD", "KN", "AM", "DB3KD", "DCGAN", "MEKD", "ZSDB3KD", "DFME", "IDEAL", "DFHL", "GDA", "robustness"]
MORE = {
    "DB3KD": {"sr_mode": "bd"},
    "robustness": {"samples": 3, "budget": 200, "neighbours": 50},
    "ZSDB3KD": {"response": "hard"},
    "DCGAN": {"epochs": 1},
}
MORE["GDA"] = {"response": "logits"}


@pytest.fixture(scope="module")
def served(trained):
    with serving_here(trained, response="logits", accounts=trained / "served.sqlite") as url:
        yield url


@pytest.mark.parametrize("name", METHODS)
def test_a_method_over_http_equals_the_local_one_to_the_last_bit(name, script, served):
    given = {"lamda": 0.2} | ({"epochs": 1} if name != "robustness" else {}) | QUICK.get(name, {}) | MORE.get(name, {})
    over_http = {"teacher": served, "api_input": "float32", "audit": "all"}
    given["tag"] = "same"  # of the generator that is in the home there is another
    if name == "MEKD":
        for more in ({}, over_http):
            script("DCGAN", epochs=1, lamda=0.2, tag="same", **more)
        given["generator_tag"] = "same"
    local, there = script(name, **given), script(name, **given, **over_http)
    same = ("accuracy", "best", "ece", "agreement", "distances", *COUNTS)
    assert {k: there.get(k) for k in same} == {k: local.get(k) for k in same}
    assert there["api"]["images"] + there["api"]["hits"] == there["own"]["queries"] + there["audited"]
    here, other = (next((script.home / "checkpoints" / name).rglob(f"{who}*-same/seed0")) for who in ("ResNet8", "api-ResNet8"))
    for path in (p for p in here.glob("*.pt") if p.stem != "state"):
        a, b = (read(folder / path.name) for folder in (here, other))
        assert all(torch.equal(v, b[key][k]) for key in ("model", "kept") if key in a for k, v in a[key].items())


# ---- audit, price, limits


def test_an_audit_is_counted_apart(script, served):
    none = script("KD", teacher=served, epochs=1, lamda=0.2, response="topk:2")
    some = script("KD", teacher=served, epochs=1, lamda=0.2, response="topk:2", audit=50, tag="some")
    assert none["teacher_accuracy"] is None and "agreement" not in none and none["audited"] == 0
    assert some["queries"] == none["queries"] == 259 and some["audited"] == some["api"]["images"] == 50 and some["api"]["hits"] == 259
    assert some["accuracy"] == none["accuracy"] and 0 <= some["agreement"] <= 100 and some["teacher_accuracy"] > 50


@pytest.mark.parametrize(
    "name, more, n",
    [
        ("KD", {}, 259), ("KD", {"augment": "crop", "epochs": 5}, 5 * 259), ("AM", {"first": 100, "queries": 20, "rounds": 2, "epochs": 9}, 140),
        ("DB3KD", {"sr_mode": "mbd", "budgets": "300"}, 259 + 259 * 9 * 300), ("IDEAL", {"epochs": 7, "batch_size": 50}, 350), ("DCGAN", {"epochs": 10}, 2590),
    ],
)  # fmt: skip
def test_a_dry_run_tells_the_price_and_asks_nothing(name, more, n, script, capsys):
    with Fake() as api:
        api.extensions = ["binary_tensor_data"]
        with pytest.raises(Stopped) as e:
            script(name, teacher=api.url, **{"epochs": 1, "lamda": 0.2} | more, dry_run=True, price_per_1k=2, rps=5)
        out, seconds = capsys.readouterr().out, -(-n // 128) / 5
        assert (
            e.value.status == 0
            and f"at most {n:,} images in {-(-n // 128):,} requests" in out
            and f"; {n * 2 / 1000:,.2f} USD; about {clock(seconds)}" in out
        )
        assert not api.asked and not list(script.home.rglob("*.sqlite"))


def test_a_purchase_ends_at_its_cost_and_the_student_learns_from_what_it_has(script, capsys):
    with Fake() as api:
        script("KD", teacher=api.url, epochs=1, lamda=0.1, tag="few")  # 129 images, without a price
        result = script("KD", teacher=api.url, epochs=1, lamda=0.2, price_per_1k=10, max_cost=0.5)
        bought = result["api"]["images"]
        assert bought + result["api"]["rechecked"] == 50 and result["api"]["cost"] == pytest.approx(0.5) and "accuracy" in result
        assert result["queries"] >= bought and len(api.asked) == 129 + 50 and len(set(api.asked)) == 129 + bought
        assert "--max_cost 0.5 USD is reached" in capsys.readouterr().out


def test_a_run_that_asks_at_each_step_stops_at_its_cost_with_a_student(script):
    options = {"epochs": 3, "lamda": 0.2, "augment": "crop", "price_per_1k": 10}
    with Fake() as api:
        with pytest.raises(UsageError, match=r"--max_cost 3 USD is reached: 2.\d+ are spent.*the student of epoch 2 is in .*student.pt"):
            script("KD", teacher=api.url, max_cost=3, **options)
        folder = next((script.home / "checkpoints/KD").rglob("seed0"))
        assert (folder / "student.pt").exists() and not (folder / "result.json").exists() and len(api.asked) <= 300
        result = script("KD", teacher=api.url, max_cost=30, **options)
        assert result["api"]["images"] == len(api.asked) - result["api"]["rechecked"]
    whole = script("KD", teacher=api.url, max_cost=30, tag="replayed", **options)  # the server is gone; the ledger has all answers
    assert whole["api"]["hits"] == 3 * 259 and whole["accuracy"] == result["accuracy"]


# ---- the ledger


def test_no_image_is_paid_for_twice(script):
    with Fake() as api:
        for name in ("KD", "ML", "AL"):
            script(name, teacher=api.url, epochs=1, lamda=0.2)
        script("KD", teacher=api.url, epochs=1, lamda=0.2, seed=1)
        ledger = Ledger.of(next((script.home / "checkpoints/ledgers").glob("*.sqlite")))
        before = len(api.asked)
        assert len(set(api.asked)) == before - ledger.totals()["rechecked"] > 259
        script("KD", teacher=api.url, epochs=1, lamda=0.2, tag="anew", ledger=False)
        assert len(api.asked) == before + 259
        totals = ledger.totals()
        assert totals["images"] + totals["rechecked"] == before and totals["hits"] == 4 * 259 - totals["images"]


def test_a_transfer_set_needs_no_server(script, capsys):
    with Fake() as api:
        script("KD", teacher=api.url, epochs=1, lamda=0.2, ledger=False)
    bought = next((script.home / "checkpoints/KD").rglob("transfer.safetensors"))
    result = script("ML", teacher=api.url, epochs=1, lamda=0.2, ledger=False, transfer=bought, retries=0)
    assert result["queries"] == 259 and "transfer.safetensors are used as far as they go" in capsys.readouterr().out


@pytest.mark.parametrize(
    "more", [{"api_scale": "log"}, {"api_output": "logits"}, {"api_classes": "labels.json"}, {"teacher_normalize": "unit"}]
)
def test_answers_that_were_read_otherwise_are_not_taken(more, script, monkeypatch):
    """A transfer set is of one way of reading the server's answers, as a ledger is; one of before says it by its options."""
    monkeypatch.chdir(script.home)
    Path("labels.json").write_text(json.dumps({name: name for name in CLASSES}))
    options = {"epochs": 1, "lamda": 0.2, "retries": 0}
    with Fake() as api:
        script("KD", teacher=api.url, **options)
        bought = next((script.home / "checkpoints/KD").rglob("transfer.safetensors"))
        with pytest.raises(UsageError, match=r"does not belong to this run: its .*; buy answers anew"):
            script("ML", teacher=api.url, transfer=bought, **options | more)
        script("ML", teacher=api.url, transfer=bought, **options)
        about = Transfer(bought).about
        source = Remote(parse(TeacherOptions, flags(teacher=api.url, dataset="Digits")), CLASSES, (1, 8, 8), HALF, HALF)
        assert about["teacher"] == source.identity == digest(api.url, "v2", "auto", 1, 8, 8)  # as it always was
        about |= {"options": about["options"] | more}
        save_file(Transfer(bought).columns, bought, {"transfer": json.dumps(about)})
        with pytest.raises(UsageError, match=f"its --{next(iter(more))} is {next(iter(more.values()))}, this run's is"):
            script("DKD", teacher=api.url, transfer=bought, **options)


def test_a_local_teacher_can_have_a_ledger_too(script):
    plain = script("KD", epochs=2, lamda=0.2)
    for tag in ("a", "b"):
        kept = script("KD", epochs=2, lamda=0.2, ledger=True, tag=tag)
        assert kept["log"] == plain["log"]
    assert kept["api"]["images"] == 0 and kept["api"]["hits"] == 259


def test_a_run_that_was_killed_pays_nothing_again(script, monkeypatch):
    with Fake() as api:
        call = lambda: script("KD", teacher=api.url, epochs=3, lamda=0.2, augment="crop")  # noqa: E731
        killed_after(1, monkeypatch, call)
        result = call()
        again = result["api"]["rechecked"]
        assert len(set(api.asked)) == len(api.asked) - again and again == 3
    whole = script("KD", teacher=api.url, epochs=3, lamda=0.2, augment="crop", tag="whole")
    assert whole["log"] == result["log"]


@pytest.mark.parametrize("response", ["soft", "hard", "logits"])
def test_a_teacher_that_has_changed_stops_the_run(response, script, monkeypatch):
    with Fake() as api:
        call = lambda: script("KD", teacher=api.url, epochs=3, lamda=0.2, augment="crop", response=response)  # noqa: E731
        killed_after(1, monkeypatch, call)
        api.w, n = -api.w, len(api.asked)
        with pytest.raises(
            RunError, match=r"has changed: \d of 3 images have other answers than before.*move .*sqlite away and give --overwrite"
        ):
            call()
        assert len(api.asked) == n + 3


def ask_batches(path, url, pause):
    """Asks 40 batches of 8 images, some of them twice; for a process that is killed."""
    args = options(url, ledger=True, api_batch=8)
    source = Remote(args, CLASSES, (1, 8, 8), HALF, HALF)
    source.describe()
    source.protocol.untried = False
    paid = Paid(args, source, Ledger(path, {"teacher": url, "identity": source.identity, "response": "soft", "classes": 10}), 10, "run")
    for seed in range(400):
        paid.answer(images(8, seed % 300)[0])


def test_the_servers_count_is_the_ledgers_after_fifty_kills(tmp_path):
    rng = np.random.default_rng(0)
    with Fake() as api:
        for _ in range(50):
            child = os.fork()
            if not child:
                try:
                    ask_batches(tmp_path / "l.sqlite", api.url, 0)
                finally:
                    os._exit(0)
            time.sleep(rng.uniform(0.05, 0.2))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        totals = Ledger.of(tmp_path / "l.sqlite").totals()
        known = totals["images"] + totals["rechecked"]
        assert totals["images"] > 100 and known <= len(api.asked) <= known + totals["unanswered"] and totals["unanswered"] <= 50 * 8
        assert len(set(api.asked)) <= totals["images"] + totals["unanswered"]


def test_two_runs_on_one_ledger_pay_once(tmp_path):
    with Fake() as api:
        api.delay = 0.002
        children = []
        for _ in range(2):
            if not (child := os.fork()):
                try:
                    ask_batches(tmp_path / "l.sqlite", api.url, 0)
                    os._exit(0)
                finally:
                    os._exit(1)
            children.append(child)
        assert [os.waitpid(c, 0)[1] for c in children] == [0, 0]
        totals = Ledger.of(tmp_path / "l.sqlite").totals()
        assert (
            totals["images"] == len(set(api.asked)) == 300 * 8
            and totals["unanswered"] == 0
            and len(api.asked) == 2400 + totals["rechecked"]
        )


def test_a_server_that_is_killed_in_the_midst_and_started_again(trained, tmp_path, monkeypatch):
    from common.api import client

    monkeypatch.setattr(client, "LONGEST", 0.3)
    home = {"response": "soft", "accounts": tmp_path / "a.sqlite"}
    servers = [Process(trained, **home)]
    url = servers[0].url
    args = parse(TeacherOptions, flags(teacher=url, dataset="Digits", retries=100, api_batch=8, ledger=True))
    source = Remote(args, CLASSES, (1, 8, 8), HALF, HALF)
    source.describe()
    ledger = Ledger(tmp_path / "l.sqlite", {"teacher": "a", "identity": "b", "response": "soft", "classes": 10})
    paid = Paid(args, source, ledger, 10, "run")

    def fall_and_rise():
        servers[0].stop(signal.SIGKILL)
        servers.append(Process(trained, **home, port=int(url.split(":")[2].split("/")[0])))

    accident = threading.Timer(0.3, fall_and_rise)
    accident.start()
    number = 0
    while number < 40 or len(servers) < 2:  # some of the requests meet no server
        assert np.allclose(paid.answer(images(8, number)[0]).sum(1), 1, atol=1e-5)
        number += 1
    accident.join()
    with urllib3.PoolManager() as pool:
        served = pool.request("GET", url.partition("/v2/")[0] + "/v2/usage").json()["images"]
    servers[1].stop()
    totals = ledger.totals()
    assert totals["images"] == 8 * number <= served <= 8 * number + totals["unanswered"] and totals["retries"] > 0


def test_a_full_disk_loses_nothing_that_was_acknowledged(tmp_path):
    about = {"teacher": "a", "identity": "b", "response": "soft", "classes": 10}
    ledger = Ledger(tmp_path / "l.sqlite", about)
    ledger.db.execute("pragma max_page_count = 40")
    written = 0
    with pytest.raises(RunError, match=r"cannot be read or written \(database or disk is full\); nothing that was bought before is lost"):
        for i in range(1000):
            keys = [key_of(b"%d %d" % (i, j)) for j in range(50)]
            ledger.end(ledger.intend("r", "run", "train", keys, 1, 0.0), "answered", np.full((50, 10), 0.1), [], keys)
            written += 50
    assert written and Ledger.of(tmp_path / "l.sqlite").totals()["images"] == written


def test_a_ledger_of_another_teacher_or_a_damaged_one(tmp_path):
    about = {"teacher": "a", "identity": "b", "response": "soft", "classes": 10}
    Ledger(tmp_path / "l.sqlite", about).close()
    with pytest.raises(UsageError, match=r"of another teacher: classes 10 \(this run: 3\)"):
        Ledger(tmp_path / "l.sqlite", about | {"classes": 3})
    kept, keys = Ledger(tmp_path / "l.sqlite", about), [key_of(b"1"), key_of(b"2")]
    kept.end(kept.intend("r", "run", "train", keys, 1, 0.0), "answered", np.full((2, 10), 0.1), [], keys)
    kept.db.execute("update calls set answers = zeroblob(80)")  # the right length, other answers
    with pytest.raises(UsageError, match="is damaged: the checksum of call 1 differs"):
        kept.find(keys)
    (tmp_path / "x.sqlite").write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(UsageError, match="is damaged, or is no ledger"):
        Ledger(tmp_path / "x.sqlite", about)


def test_ledgers_are_printed_exported_and_merged(tmp_path, capsys):
    import ledger as tool

    about, paths = (
        {"teacher": "http://a/v2/models/m", "identity": "b", "response": "soft", "classes": 3},
        [tmp_path / f"ledgers/{i}.sqlite" for i in range(3)],
    )
    for number, path in enumerate(paths):
        kept = Ledger(path, about | {"identity": "c" if number == 2 else "b"})
        keys = [key_of(b"%d" % k) for k in range(number, number + 4)]
        kept.end(
            kept.intend("r", f"run{number}", "train", keys, 12, 0.4),
            "answered",
            np.arange(12).reshape(4, 3) / 12,
            [(0.0, 0.1, "200", False)],
            keys,
        )
        kept.close()
    tool.main(["--checkpoints_dir", str(tmp_path)])
    assert capsys.readouterr().out.count("http://a/v2/models/m") == 3
    tool.main([str(paths[0]), "--merge", str(paths[1]), "--export", str(tmp_path / "a.csv"), "--runs"])
    out = capsys.readouterr().out
    assert "1 images are new, 3 were known" in out and "run0" in out and "run1" in out
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert len(lines) == 6 and lines[1] == f"{key_of(b'0').hex()},1,run0,train,0 0.0833333358 0.166666672"
    with pytest.raises(UsageError, match="is of identity c, not b; for a server that has moved: --any_teacher"):
        tool.main([str(paths[0]), "--merge", str(paths[2])])
    tool.main([str(paths[0]), "--merge", str(paths[2]), "--any_teacher"])
    tool.main([str(paths[0]), "--merge", str(paths[2]), "--any-teacher"])
    assert "1 images are new, 3 were known" in (out := capsys.readouterr().out) and "0 images are new, 4 were known" in out
    with sqlite3.connect(paths[0]) as db:
        assert db.execute("select count(*) from calls").fetchone() == (3,)
    with pytest.raises(UsageError, match="need a ledger"):
        tool.main(["--runs"])
    assert Path(tmp_path / "a.csv").exists()
