"""ONNX models in onnxruntime: their logits, and the memory that they take."""

import subprocess
import sys
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor

MEMORY = """
import sys
import numpy as np
import onnxruntime as ort
path, shape, dtype = sys.argv[1], [int(n) for n in sys.argv[2].split(",")], sys.argv[3]
options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
session.run(None, {session.get_inputs()[0].name: np.zeros(shape, dtype)})
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


class Session:
    """An ONNX model in onnxruntime on the CPU: x (N, C, H, W) -> its first output, a tensor. threads: 0 for as many as there are cores."""

    def __init__(self, model: bytes | Path, threads: int = 1):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        content = model if isinstance(model, bytes) else str(model)
        self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name

    def __call__(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(None, {self.input: x.contiguous().numpy()})[0])


def peak_mb(path: Path, x: Tensor) -> float | None:
    """Peak memory, in MiB, of a new Python process that runs an ONNX file on x with numpy and onnxruntime; None without Linux's /proc."""
    if not Path("/proc/self/status").exists():
        return None
    shape, dtype = ",".join(map(str, x.shape)), str(x.dtype).removeprefix("torch.")
    done = subprocess.run([sys.executable, "-c", MEMORY, str(path), shape, dtype], capture_output=True, text=True)
    return round(int(done.stdout) / 1024, 1) if done.returncode == 0 else None
