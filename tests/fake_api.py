"""A teacher's server for tests that can be told to fail: `with Fake(...) as api:` serves on 127.0.0.1, in a thread.

Its model is linear: logits = pixels / 512 times a matrix that a seed gives. It counts the images that it has answered, by their bytes.
"""

import base64
import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

from common.api import wire


def softmax(v):
    e = np.exp(v - v.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


class Fake:
    """kind: v2, hf or list. form: uint8 or float32 ([-1, 1]). layout: shape of an image. faults: a list of what happens to the next
    requests, one each: a status, or the name of a method of Handler; None: nothing. names: of the outputs.
    """

    def __init__(
        self, kind="v2", form="uint8", layout=(1, 8, 8), names=("logits", "probabilities", "label"), binary=True, token="", seed=0
    ):
        self.kind, self.form, self.layout, self.names, self.binary, self.token = kind, form, layout, names, binary, token
        self.w = np.random.default_rng(seed).normal(size=(64, 10)).astype(np.float32)
        self.faults, self.asked, self.requests, self.headers, self.delay, self.busy, self.most = [], [], 0, {}, 0.0, 0, 0
        self.classes, self.extensions, self.parameters, self.lock = 10, [], {}, threading.Lock()

    def logits(self, pixels):
        """Of pixels (n, 64) in [0, 255]; the same in any batch."""
        return ((pixels.astype(np.float64) / 512) @ self.w[:, : self.classes]).astype(np.float32)

    def __enter__(self):
        self.server = ThreadingHTTPServer(("127.0.0.1", getattr(self, "port", 0)), type("H", (Handler,), {"api": self}))
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        path = {"v2": "/v2/models/fake", "hf": "/models/fake", "list": "/classify"}[self.kind]
        self.url = f"http://127.0.0.1:{self.port}{path}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *a):
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version, wbufsize = "HTTP/1.1", 65536  # an answer in one packet
    api = None

    def log_message(self, *a):
        pass

    def reply(self, status, body, **headers):
        self.send_response(status)
        for k, v in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(k.replace("_", "-"), v)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        api = self.api
        if self.path == "/v2":
            return self.reply(200, json.dumps({"name": "fake", "extensions": api.extensions}).encode())
        kinds = {"label": ("INT64", [-1])}
        about = {
            "name": "fake",
            "platform": "",
            "inputs": [{"name": "x", "datatype": {"uint8": "UINT8", "float32": "FP32"}[api.form], "shape": [-1, *api.layout]}],
        }
        about["outputs"] = [{"name": n, "datatype": kinds.get(n, ("FP32",))[0], "shape": kinds.get(n, (0, [-1, 10]))[1]} for n in api.names]
        self.reply(200, json.dumps(about | {"parameters": api.parameters}).encode())

    def do_POST(self):
        api, body = self.api, self.rfile.read(int(self.headers["Content-Length"]))
        with api.lock:
            api.requests, api.busy = api.requests + 1, api.busy + 1
            api.most, api.headers = max(api.most, api.busy), dict(self.headers)
            fault = api.faults.pop(0) if api.faults else None
        try:
            time.sleep(api.delay)
            if api.token and self.headers.get("Authorization") != f"Bearer {api.token}":
                return self.reply(401, f"no access with {self.headers.get('Authorization')}".encode())
            if isinstance(fault, int):
                return self.reply(fault, b"not now", Retry_After="0")
            status, answer, headers = self.answer(body)
            if fault:
                return getattr(self, fault)(answer, headers)
            self.reply(status, answer, **headers)
        finally:
            with api.lock:
                api.busy -= 1

    def answer(self, body):
        """(status, body, headers): what a healthy server answers."""
        api = self.api
        if api.kind == "v2":
            size = self.headers.get(wire.JSON_SIZE)
            if size and not api.binary:
                return 422, b'{"error": "no JSON"}', {}
            head, tensors = wire.unpack(body, size, "inputs")
            x = tensors["x"]
            if len(api.layout) == 3 and api.layout[2] == 1:
                x = x.transpose(0, 3, 1, 2)
            x = x.reshape(len(x), -1)
            logits = api.logits(x if api.form == "uint8" else np.round((x * 0.5 + 0.5) * 255))
            found = {"logits": logits, "probabilities": softmax(logits), "label": logits.argmax(1)}
            self.count(x)
            wanted = [o["name"] for o in head["outputs"]]
            answer, headers = wire.pack({"model_name": "fake"}, {n: found[n] for n in wanted}, "outputs", bool(size))
            return 200, answer, headers
        content = json.loads(body) if body[:1] == b"{" else {"inputs": base64.b64encode(body).decode(), "parameters": {"top_k": 5}}
        image = base64.b64decode(content.get("inputs") or content["picture"]["data"])
        x = np.asarray(Image.open(io.BytesIO(image))).reshape(1, -1)
        self.count(x)
        p = softmax(api.logits(x))[0]
        order = p.argsort()[::-1]
        if api.kind == "hf":
            return 200, json.dumps([{"label": str(k), "score": float(p[k])} for k in order[: content["parameters"]["top_k"]]]).encode(), {}
        return (
            200,
            json.dumps({"result": {"tags": [{"name": f"number {k}", "confidence": float(100 * p[k])} for k in order[:4]]}}).encode(),
            {},
        )

    def count(self, x):
        with self.api.lock:
            self.api.asked += [row.tobytes() for row in np.ascontiguousarray(x)]

    # ---- faults

    def cut_short(self, answer, headers):
        self.send_response(200)
        for k, v in headers.items():
            self.send_header(k, v)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer[: len(answer) // 2])
        self.close_connection = True

    def half_json(self, answer, headers):
        self.reply(200, answer[: len(answer) // 2], **headers)

    def hang_up(self, answer, headers):
        self.close_connection = True
        self.connection.close()

    def not_a_number(self, answer, headers):
        n = len(self.api.asked)
        tensor = {"name": "probabilities", "shape": [n, 10], "datatype": "FP32", "data": [float("nan")] * 10 * n}
        self.reply(200, json.dumps({"outputs": [tensor]}).encode())

    def too_few(self, answer, headers):
        tensor = {"name": "probabilities", "shape": [1, 10], "datatype": "FP32", "data": [0.1] * 10}
        self.reply(200, json.dumps({"outputs": [tensor]}).encode())

    def other_classes(self, answer, headers):
        n = len(self.api.asked)
        tensor = {"name": "probabilities", "shape": [n, 3], "datatype": "FP32", "data": [1 / 3] * 3 * n}
        self.reply(200, json.dumps({"outputs": [tensor]}).encode())

    def web_page(self, answer, headers):
        self.reply(200, b"<html>Log in first</html>")
