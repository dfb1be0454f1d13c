"""The device that a run computes on."""

import os
import resource

import torch

from .cli import UsageError
from .options import Base


def device_of(args: Base) -> torch.device:
    """The device that --device names, UsageError where it is not there; sets cuDNN and determinism."""
    name = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    name = f"cuda:{name}" if name.isdigit() else name
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as e:
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


def peak_mb(device: torch.device) -> int:
    """The most memory that this process has held, of the GPU where there is one, in MiB."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
