"""The server: its protocol, its numbers, its counts."""

import numpy as np
import orjson
import pytest
import torch
import urllib3
from served import serving, serving_here

from common.api import wire
from common.blackbox import BlackBox
from common.checkpoints import load_weights, read_weights
from common.datasets.images import normalised
from common.models import build

HTTP = urllib3.PoolManager(retries=False, timeout=60)


def pixels(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 1, 8, 8), dtype=np.uint8)


def post(url, body, headers=None):
    """(status, headers, body) of a POST."""
    answer = HTTP.request("POST", url, body=body, headers=headers or {})
    return answer.status, answer.headers, answer.data


def get(url, **headers):
    answer = HTTP.request("GET", url, headers=headers)
    return answer.status, orjson.loads(answer.data)


def ask(url, images, outputs=(), binary=False, binary_out=None, **headers):
    """(status, {output: values} or the error) of one request."""
    head = {"outputs": [{"name": o} for o in outputs]} if outputs else {}
    head |= {"parameters": {"binary_data_output": binary if binary_out is None else binary_out}}
    body, more = wire.pack(head, {"images": images}, "inputs", binary)
    status, answered, data = post(f"{url}/infer", body, more | headers)
    if status != 200:
        return status, orjson.loads(data)["error"]
    return status, wire.unpack(data, answered.get(wire.JSON_SIZE), "outputs")[1]


def local(home, response):
    """The BlackBox of the same teacher, and what its net sees of uint8 images."""
    path = home / "checkpoints/teacher/Digits/ResNet8/seed0/teacher.pt"
    state, _ = read_weights(path)
    net = build("ResNet8", 10, (1, 8, 8)).to(memory_format=torch.channels_last)
    half = torch.full((1, 1, 1, 1), 0.5)
    return BlackBox(load_weights(net, state, path, "ResNet8"), response), lambda x: normalised(torch.from_numpy(x), half, half)


@pytest.mark.parametrize("binary", [False, True])
def test_answers_are_those_of_the_local_teacher_bit_by_bit(trained, binary):
    box, view = local(trained, "logits")
    x = pixels(50)
    logits = box(view(x))
    with serving_here(trained, response="logits") as url:
        for images in (x, view(x).numpy()):
            status, found = ask(url, images, ["logits", "probabilities", "label"], binary)
            assert status == 200
            assert torch.equal(torch.from_numpy(found["logits"].copy()), logits)
            assert torch.equal(torch.from_numpy(found["probabilities"].copy()), logits.softmax(1))
            assert torch.equal(torch.from_numpy(found["label"].copy()), logits.argmax(1))


def test_a_process_serves(trained):
    with serving(trained, response="soft", accounts=trained / "p.sqlite") as url:
        assert url.endswith("/v2/models/ResNet8")
        assert ask(url, pixels(3))[1]["probabilities"].shape == (3, 10)
