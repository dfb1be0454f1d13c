"""Servers of the Open Inference Protocol that are no project/serve.py: without binary data, without a word on their tensors."""

from common.cli import UsageError

import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import orjson
import pytest
import torch

from common.api import wire
from common.api.remote import Remote
from common.options import TeacherOptions, flags, parse

HALF = torch.full((1, 1, 1, 1), 0.5)


@dataclass
class Args(TeacherOptions):
    pass


class Handler(BaseHTTPRequestHandler):
    """Answers with the mean of each image as the class; binary data with the status `server.refusal`, and then breaks the connection off."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(200, orjson.dumps(self.server.about if self.path.endswith("/m") else {"name": "s", "version": "1", "extensions": []}))

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Content-Type"] != "application/json":
            self.answer(self.server.refusal, b"no")
            self.close_connection = True
            return
        (x,) = wire.unpack(body, None, "inputs")[1].values()
        label = x.reshape(len(x), -1).mean(1).round().astype(np.int64)
        self.answer(200, wire.pack({}, {"other": label * 0.5, "label": label}, "outputs")[0])

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def stub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.refusal = True, 500
    tensors = [{"name": "images", "datatype": "UINT8", "shape": [-1, 1, 8, 8]}], [{"name": "label", "datatype": "INT64", "shape": [-1]}]
    server.about = {"name": "m", "platform": "", "inputs": tensors[0], "outputs": tensors[1]}
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def remote(stub, **options):
    url = f"http://127.0.0.1:{stub.server_address[1]}/v2/models/m"
    args = parse(Args, flags(dataset="Digits", device="cpu", teacher=url, response="hard", **options), "tests")
    found = Remote(args, [str(i) for i in range(10)], (1, 8, 8), (HALF, HALF), (HALF, HALF))
    found.describe()
    return found


IMAGES = torch.arange(10).reshape(10, 1, 1, 1).expand(10, 1, 8, 8) / 255 * 2 - 1  # pixels of 0, 1, ..., 9


def ask(remote, attempts):
    """The answers to IMAGES in two requests."""
    parts = remote.encode(IMAGES)
    return [*remote.send(parts[:1], "a", attempts), *remote.send(parts[1:], "b", attempts)]


@pytest.mark.parametrize("status", [400, 415, 422, 500])
def test_a_server_that_refuses_binary_data_gets_json_at_once(stub, status):
    stub.refusal, attempts, began = status, [], time.monotonic()
    assert ask(remote(stub), attempts) == [*range(10)]
    assert [(outcome, lost) for _, _, outcome, lost in attempts] == [(str(status), False), ("200", False), ("200", False)]
    assert time.monotonic() - began < 5


def test_a_model_that_declares_nothing_is_asked_if_the_form_of_its_input_is_given(stub):
    stub.about |= {"inputs": [], "outputs": []}
    with pytest.raises(UsageError, match="does not say what its input is; give --api_input uint8 or float32"):
        remote(stub)
    assert ask(remote(stub, api_input="uint8"), []) == [*range(10)]
