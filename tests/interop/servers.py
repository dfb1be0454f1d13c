"""Servers of others for tests: an environment for each, made once, and a process in it.

with serving("mlserver", folder) as server:  # server.url: http://127.0.0.1:PORT/v2/models

python tests/interop/servers.py FOLDER writes what a server started by hand needs: digits.npz, and models/ for MLServer at port 8080.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import urllib3

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SERVERS = ("mlserver", "kserve")
UNREACHABLE = re.compile("NewConnectionError|ConnectionError|ConnectTimeoutError|ReadTimeoutError|ProxyError|a different python version")
HTTP = urllib3.PoolManager(retries=False, timeout=10)
INPUTS = {"digits": "FP32", "digits-uint8": "UINT8", "digits-undeclared": None}  # the models, and the types of their inputs


def environment(name):
    """The folder of a server's environment, .venv-interop/NAME, which is made again when NAME.txt changes. Skips where pip gets no packages."""
    folder, wanted = ROOT / ".venv-interop" / name, (HERE / f"{name}.txt").read_text()
    ready = folder / "ready.txt"
    if ready.exists() and ready.read_text() == wanted:
        return folder
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--retries", "2"]
    done = subprocess.run([*command, "-r", str(HERE / f"{name}.txt")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode and UNREACHABLE.search(done.stdout):
        reason = UNREACHABLE.search(done.stdout)[0]
        pytest.skip(f"pip cannot install {name}: no package registry, or no packages for this Python ({reason})")
    assert done.returncode == 0, done.stdout
    ready.write_text(wanted)
    return folder


def free_ports(n):
    """n ports of 127.0.0.1 that nobody listens at now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


def write_weights(path):
    """Fits the classifier of digits.py."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    content = load_digits()
    x = (np.round(content.images * (255 / 16)) / 255 - 0.5) / 0.5
    fitted = LogisticRegression(max_iter=200).fit(x.reshape(len(x), -1), content.target)
    np.savez(path, weights=fitted.coef_.T.astype(np.float32), bias=fitted.intercept_.astype(np.float32))


def write_mlserver(folder, weights, port, grpc_port):
    """The settings of MLServer and of its models, as its documentation has them."""
    folder.mkdir()
    settings = {"host": "127.0.0.1", "http_port": port, "grpc_port": grpc_port, "debug": False}
    (folder / "settings.json").write_text(json.dumps(settings | {"metrics_endpoint": None, "parallel_workers": 0}))
    outputs = [("probabilities", "FP32", [-1, 10]), ("label", "INT64", [-1, 1]), ("name", "BYTES", [-1, 1])]
    tensors = lambda found: [dict(zip(("name", "datatype", "shape"), t, strict=True)) for t in found]  # noqa: E731
    for name, datatype in INPUTS.items():
        (folder / name).mkdir()
        model = {"name": name, "implementation": "mlserver_model.Served", "parameters": {"uri": str(weights)}}
        if datatype:
            model |= {"inputs": tensors([("images", datatype, [-1, 1, 8, 8])]), "outputs": tensors(outputs)}
        (folder / name / "model-settings.json").write_text(json.dumps(model))


def command_of(name, folder):
    """(command, port) of a server of the weights digits.npz in `folder`."""
    bin_, weights, (port, grpc_port) = environment(name) / "bin", folder / "digits.npz", free_ports(2)
    write_weights(weights)
    if name == "kserve":
        return [bin_ / "python", HERE / "kserve_server.py", weights, "--http_port", port, "--enable_grpc", "false"], port
    write_mlserver(folder / "models", weights, port, grpc_port)
    return [bin_ / "mlserver", "start", folder / "models"], port


class Server:
    """A process. url: below which its models are; served(): images that its models have classified; listening(): its addresses."""

    def __init__(self, name, folder):
        command, port = command_of(name, folder)
        self.name, self.folder, self.log = name, folder, folder / "log.txt"
        self.base = f"http://127.0.0.1:{port}/v2"
        self.url = f"{self.base}/models"
        env = os.environ | {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1", "END_WITH_STDIN": "1", "SERVED": str(folder / "served.txt")}
        with self.log.open("w") as log:
            pipes = {"stdin": subprocess.PIPE, "stdout": log, "stderr": subprocess.STDOUT}
            self.process = subprocess.Popen([*map(str, command)], cwd=folder, env=env, **pipes)

    def wait_until_ready(self, seconds=120):
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(urllib3.exceptions.HTTPError):
                if all(HTTP.request("GET", f"{self.url}/{model}/ready").status == 200 for model in INPUTS):
                    return
            time.sleep(0.2)
        raise AssertionError(f"{self.name} does not start: {self.log.read_text()[-3000:]}")

    def served(self):
        path = self.folder / "served.txt"
        return sum(map(int, path.read_text().split())) if path.exists() else 0

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdin.close()


@contextlib.contextmanager
def serving(name, folder):
    """A Server, which is stopped at the end."""
    server = Server(name, folder)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


if __name__ == "__main__":
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True)
    write_weights(folder / "digits.npz")
    write_mlserver(folder / "models", folder / "digits.npz", 8080, 8081)
