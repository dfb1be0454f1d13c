"""MLServer and KServe's Python server as teachers: what they say, what they answer, and that methods run with them."""

from common.cli import UsageError

import os
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np
import orjson
import pytest
import torch
from conftest import ROOT, home_flags, run
from digits import Digits
from servers import HTTP, SERVERS, serving

from common.api.ledger import KEY
from common.api.remote import Remote
from common.options import TeacherOptions, flags, parse

HALF = torch.full((1, 1, 1, 1), 0.5)


@dataclass
class Args(TeacherOptions):
    pass


@pytest.fixture(scope="module", params=SERVERS)
def server(request, tmp_path_factory):
    with serving(request.param, tmp_path_factory.mktemp(request.param)) as found:
        yield found


@pytest.fixture
def own(server):
    """The model that is served, in this process."""
    return Digits(server.folder / "digits.npz")


def remote(server, model="digits", **options):
    """The client of a model whose metadata it has read."""
    args = parse(Args, flags(dataset="Digits", device="cpu", teacher=f"{server.url}/{model}", **options), "tests")
    found = Remote(args, [str(i) for i in range(10)], (1, 8, 8), (HALF, HALF), (HALF, HALF))
    found.describe()
    return found


def pixels(n, seed=0):
    """Images (n, 1, 8, 8) as a student sees them: normalised pixels."""
    x = np.random.default_rng(seed).integers(0, 256, (n, 1, 8, 8), dtype=np.uint8)
    return (torch.from_numpy(x) / 255 - 0.5) / 0.5


def answers(remote, x):
    """(answers to images x, outcomes of the attempts), in requests of the sizes that the client chooses."""
    parts, found, attempts = remote.encode(x), [], []
    while parts:
        n = remote.batch
        found.append(remote.send(parts[:n], f"request {len(found)}", attempts))
        parts = parts[n:]
    return np.concatenate(found), [outcome for _, _, outcome, _ in attempts]


def test_metadata_are_read_as_the_server_gives_them(server):
    about = orjson.loads(HTTP.request("GET", server.base).data)
    assert about["name"] == server.name and "binary_tensor_data" not in about["extensions"]
    found = remote(server).protocol
    assert (found.name, found.input_shape, found.form, found.outputs) == ("images", [-1, 1, 8, 8], "float32", ["probabilities"])
    assert remote(server, "digits-uint8").protocol.form == "uint8"
    assert remote(server, response="hard").protocol.outputs == ["label"]


@pytest.mark.parametrize("model", ["digits", "digits-uint8"])
def test_answers_are_those_of_the_model(server, own, model):
    x, before, began = pixels(300), server.served(), time.monotonic()
    found, outcomes = answers(remote(server, model), x)
    assert np.abs(found - own(x.numpy())).max() <= 1e-6
    assert server.served() - before == 300
    # one image to try binary data, then 128, 128, 43; MLServer's error makes no second attempt, nor one on a lost connection
    tried = ["200"] if server.name == "kserve" else [outcomes[0], "200"]
    assert outcomes == [*tried, "200", "200", "200"] and outcomes[0] in ("200", "422", "500")
    assert time.monotonic() - began < 20


def test_mlserver_refuses_binary_data_and_kserve_takes_it(server):
    found = remote(server)
    answers(found, pixels(2))
    assert found.protocol.binary == (server.name == "kserve")


@pytest.mark.parametrize("output", ["", "label", "name", "probabilities"])
def test_classes_are_read_from_numbers_texts_and_probabilities(server, own, output):
    x = pixels(200)
    found, _ = answers(remote(server, response="hard", api_output=output), x)
    assert found.tolist() == own(x.numpy()).argmax(1).tolist()


def test_a_model_that_declares_nothing_needs_the_form_of_its_input(server, own):
    with pytest.raises(UsageError, match="does not say what its input is; give --api_input uint8 or float32"):
        remote(server, "digits-undeclared")
    x = pixels(5)
    for form in ("float32", "uint8"):
        found, _ = answers(remote(server, "digits-undeclared", api_input=form), x)
        assert np.abs(found - own(x.numpy())).max() <= 1e-6
        found, _ = answers(remote(server, "digits-undeclared", api_input=form, response="hard"), x)
        assert found.tolist() == own(x.numpy()).argmax(1).tolist()


# ---- methods


def bought(home, response):
    """Hashes of the images in the one ledger of this response, a call after the other."""
    (path,) = (home / "checkpoints" / "ledgers").glob(f"*-{response}.sqlite")
    with sqlite3.connect(path) as db:
        rows = db.execute("select keys from calls where state = 'answered'").fetchall()
    return [keys[i : i + KEY] for (keys,) in rows for i in range(0, len(keys), KEY)]


def test_a_second_method_pays_nothing_for_the_same_images(server, tmp_path):
    teacher, before = {"teacher": f"{server.url}/digits", "model": "ResNet8", "lamda": 0.2}, server.served()
    options = home_flags(tmp_path) | teacher | {"epochs": 1, "response": "soft", "retries": 2}
    command = [sys.executable, str(ROOT / "project" / "KD.py"), *flags(**options)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    (path,) = (tmp_path / "checkpoints" / "KD").rglob("result.json")
    first = orjson.loads(path.read_bytes())
    n = first["images"]
    assert n > 200 and first["queries"] == first["api"]["images"] == server.served() - before == n
    assert first["api"]["unanswered"] == first["api"]["hits"] == first["audited"] == 0
    second = run("DKD", tmp_path, **teacher, epochs=1, response="soft")
    assert second["queries"] == second["api"]["hits"] == n
    assert second["api"]["images"] == second["api"]["requests"] == 0 and server.served() - before == n
    keys = bought(tmp_path, "soft")
    assert len(keys) == len({*keys}) == n


def test_kd_with_classes_alone(server, tmp_path):
    before = server.served()
    result = run("KD", tmp_path, teacher=f"{server.url}/digits", model="ResNet8", lamda=0.1, epochs=1, response="hard")
    keys = bought(tmp_path, "hard")
    assert result["queries"] == result["api"]["images"] == result["images"] == server.served() - before == len({*keys}) == len(keys)


def test_mekd_with_classes_and_the_generator_of_dcgan(server, tmp_path):
    teacher, before = {"teacher": f"{server.url}/digits", "lamda": 0.1, "epochs": 1}, server.served()
    first = run("DCGAN", tmp_path, **teacher, response="soft")
    assert first["queries"] == first["api"]["images"] == server.served() - before == len({*bought(tmp_path, "soft")}) > 0
    second = run("MEKD", tmp_path, **teacher, model="ResNet8", response="hard", steps=3, batch_size=32, queries=100)
    assert second["own"]["queries"] == second["api"]["images"] == len({*bought(tmp_path, "hard")}) == 100
    assert second["queries"] == first["queries"] + 100 == server.served() - before


# ---- speed


def test_images_per_second(server, capsys):
    x, line = pixels(12_800), [server.name]
    for binary in (True, False):
        found = remote(server, timeout=60)
        answers(found, x[:1])
        if binary and not found.protocol.binary:
            continue
        found.protocol.binary = binary
        parts, before, began = found.encode(x), server.served(), time.perf_counter()
        for at in range(0, len(parts), 128):
            found.send(parts[at : at + 128], str(at), [])
        seconds = time.perf_counter() - began
        assert server.served() - before == len(x)
        line.append(f"{len(x) / seconds:,.0f} images/s with {'binary data' if binary else 'JSON'}")
    with capsys.disabled():
        print(f"\n{', '.join(line)} (128 images of 1x8x8 float32 a request, one connection)")
