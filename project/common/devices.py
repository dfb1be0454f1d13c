"""The device and the packages that a run computes with."""

import os
import platform
import re
import subprocess
from contextlib import suppress

import numpy as np
import torch
import torchvision

from .cli import UsageError
from .options import Base


def device_of(args: Base) -> torch.device:
    """The device that --device names, UsageError where it is not there; sets cuDNN and determinism."""
    name = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    name = f"cuda:{name}" if re.fullmatch("[0-9]{1,2}", name) else name
    try:
        if not re.fullmatch("cpu|cuda(:[0-9]{1,2})?", name):
            raise RuntimeError(f"only cpu and cuda are supported; CUDA GPUs found: {torch.cuda.device_count()}")
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as e:
        raise UsageError(f"--device {name} is not available ({str(e).splitlines()[0]}); use --device cpu") from None
    torch.backends.cudnn.benchmark = not args.deterministic
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(args.deterministic)
    return device


def device_name(device: torch.device) -> str:
    """`CPU, 2 threads`, or the GPU's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"


def peak_mb(device: torch.device) -> int | None:
    """The most memory that this process has held, of the GPU where there is one, in MiB; None on Windows."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20)
    with suppress(ImportError):  # not on Windows
        import resource

        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
    return None


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The state of torch's random numbers, of the CPU and of a GPU."""
    return {"cpu": torch.get_rng_state()} | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_rng_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Puts back what `rng_state` gave."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def versions() -> dict[str, str]:
    """Versions of Python and packages, and the git commit."""
    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
    }
    try:
        git = ["git", "-C", os.path.dirname(__file__), "describe", "--always", "--dirty"]
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    except OSError:
        commit = ""
    return found | {"commit": commit or "unknown"}
