"""The machine's floor of a computation: what the benchmarks measure the speed of a device with."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

CPU = torch.device("cpu")


def timed(f: Callable[[], object], device: torch.device = CPU) -> float:
    """Returns the time of f() in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    f()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


@dataclass(frozen=True)
class Work:
    """FLOPs of convolutions and matrix products, and the bytes of the tensors that they read and write."""

    flops: float
    bytes: float


class ByteCounter(TorchDispatchMode):
    """Adds up the bytes of the tensors that convolutions and matrix products read and write."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            tensors = [t for t in (*args, *(made if isinstance(made, tuple) else [made])) if isinstance(t, Tensor)]
            self.total += sum(t.numel() * t.element_size() for t in tensors)
        return made


def work_of(f: Callable[[], object]) -> Work:
    """Returns the work in f(), which it calls once. f must not be compiled: operations in compiled code are not seen."""
    with FlopCounterMode(display=False) as flops, ByteCounter() as counter:
        f()
    return Work(flops.get_total_flops(), counter.total)


class Machine:
    """The speed of a device, measured by a large product of two matrices in a number format and by a large copy.

    On a GPU the float32 product is computed in TF32, as cuDNN computes float32 convolutions.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype = torch.float32):
        n, large = (8192, 2**28) if device.type == "cuda" else (2048, 2**25)
        self.device, self.dtype, self.flops, self.bytes = device, dtype, 2.0 * n**3, 2.0 * 4 * large
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        source, to = (torch.zeros(large, device=device) for _ in range(2))
        self.product, self.copy = lambda: torch.mm(a, b), lambda: to.copy_(source)
        self.measure()  # warm-up

    def measure(self) -> Work:
        """Measures (FLOPs, bytes) per second: the fastest of five products and of five copies."""
        before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        try:
            product, copy = (min(timed(f, self.device) for _ in range(5)) for f in (self.product, self.copy))
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
        return Work(self.flops / product, self.bytes / copy)

    def floor(self, work: Work) -> tuple[float, float]:
        """Returns the seconds of `work` at the speed of the product and at that of the copy, which are measured now."""
        now = self.measure()
        return work.flops / now.flops, work.bytes / now.bytes

    def compare(self, script_time: Callable[[], float], bare: Callable[[], object], rounds: int, unit: int = 1) -> tuple[float, str]:
        """Returns (the median milliseconds of the script, these and those of the bare arithmetic, the floor and the ratios as a text).

        script_time: gives seconds. unit: number of steps in both, of which one is shown.
        """
        work = work_of(bare)  # and warm-up
        times = [(script_time(), timed(bare, self.device), *self.floor(work)) for _ in range(rounds)]
        a, b, floor, copy = (1e3 * statistics.median(side) / unit for side in zip(*times, strict=True))
        ratio, over = (statistics.median(t[0] / t[i] for t in times) for i in (1, 2))
        return a, f"{a:10,.1f} ms {b:10,.1f} ms  {ratio:.2f}   floor {floor:9,.1f} ms  {over:.2f}   copy {copy:8,.1f} ms"

    def __str__(self) -> str:
        now = self.measure()
        name = str(self.dtype).removeprefix("torch.")
        return f"{name} matrix product: {now.flops / 1e9:,.0f} GFLOP/s, copy: {now.bytes / 1e9:,.1f} GB/s read and written"
