"""The device and the packages that a run computes with."""

import ctypes
import hashlib
import os
import platform
import re
import subprocess
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
import torchvision

from .cli import UsageError
from .options import Base
from .processes import local_rank, world_size

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def device_of(args: Base) -> torch.device:
    """The device that --device names, UsageError where it is not there; sets cuDNN, determinism and, for a CPU, `keep_memory`."""
    name = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    name = f"cuda:{name}" if re.fullmatch("[0-9]{1,2}", name) else name
    name = f"cuda:{local_rank() if args.local_rank < 0 else args.local_rank}" if world_size() > 1 and name.startswith("cuda") else name
    try:
        if not re.fullmatch("cpu|cuda(:[0-9]{1,2})?", name):
            raise RuntimeError(f"only cpu and cuda are supported; CUDA GPUs found: {torch.cuda.device_count()}")
        device = torch.device(name)
        torch.empty(1, device=device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        else:
            keep_memory()
    except (RuntimeError, AssertionError) as e:
        raise UsageError(f"--device {name} is not available ({str(e).splitlines()[0]}); use --device cpu") from None
    torch.backends.cudnn.benchmark = not args.deterministic
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(args.deterministic)
    return device


def keep_memory() -> None:
    """Makes glibc keep the memory of the main thread's freed tensors for the next ones: up to 2 GiB, and tensors of up to 1 GiB.

    By default it returns those of 32 MB and more to Linux at once, so that each step gets them anew, page by page: half of the time of an
    evaluation. Does nothing where there is another C library.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def device_name(device: torch.device) -> str:
    """`CPU, 2 threads`, or the GPU's name."""
    times = f", {world_size()} processes" if world_size() > 1 else ""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}{times}"
    return f"CPU, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}{times}"


def peak_mb(device: torch.device) -> int | None:
    """The most memory that this process has held, of the GPU where there is one, in MiB; None on Windows."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20)
    with suppress(ImportError):  # not on Windows
        import resource

        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
    return None


def versions() -> dict[str, str]:
    """Versions of Python and packages, the git commit, and the hash of the source files, which a copy without git has, too."""
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
    return found | {"commit": commit or "unknown", "source": source_hash()}


def source_hash() -> str:
    """The first 12 digits of the SHA-256 of all Python files in project/, names and content."""
    root, digest = Path(__file__).resolve().parent.parent, hashlib.sha256()
    for name, path in sorted((path.relative_to(root).as_posix(), path) for path in root.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]
