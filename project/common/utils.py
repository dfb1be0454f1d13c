"""Places of files, safe writing and reading, names."""

import contextlib
import difflib
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import torch

from .cli import RunError, UsageError


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """A block whose forward passes are in bfloat16 where --amp is `bf16`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=amp == "bf16")


def exact(x: torch.Tensor) -> torch.autocast:
    """A block in which products of matrices keep the precision of x, whatever --amp says."""
    return torch.autocast(x.device.type, enabled=False)


def clock(seconds: float) -> str:
    """`1:02:03`, hours, minutes and seconds."""
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"


# ---- names


def squeeze(name: str) -> str:
    """A name as it is compared: without case, `-` and `_`."""
    return name.lower().replace("-", "").replace("_", "")


def matching(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that equals `name` but for case, `-` and `_`; None if there is none."""
    return next((n for n in names if squeeze(n) == squeeze(name)), None)


def lookup(name: str, names: Iterable[str], kind: str, more: str = "") -> str:
    """The one of `names` that `name` means, or a UsageError that lists what there is."""
    found = matching(name, names)
    if found is None:
        near = difflib.get_close_matches(squeeze(name), [squeeze(n) for n in names], 1)
        meant = f" (did you mean {matching(near[0], names)}?)" if near else ""
        raise UsageError(f"no {kind} {name!r}{meant}; there are: {', '.join(names)}{', ' if more else ''}{more}")
    return found


# ---- places


def run_folder(root: str | Path, script: str, dataset: str, name: str, seed: int) -> Path:
    """The folder of one run, for its writer and its readers; `root` is the checkpoints' or the logs' folder."""
    return Path(root) / script / safe(dataset) / safe(name) / f"seed{seed}"


def run_name(teacher: str = "", model: str = "", response: str = "soft", query_budget: int = 0, tag: str = "") -> str:
    """A run's folder: its nets, `ResNet32_to_ResNet8`, and what sets it apart from others of these: `-hard`, `-q1000`, `-mytag`."""
    nets = "_to_".join(net_name(n) for n in (teacher, model) if n)
    apart = (response if teacher and response != "soft" else "", f"q{query_budget}" if query_budget else "", tag)
    return "-".join([nets, *filter(None, apart)])


def safe(name: str) -> str:
    """A folder's name from a data set's or model's: `torchvision:resnet18` -> `torchvision-resnet18`.

    A data set `folder:PATH` has its last folder's name and letters that differ between paths: `folder:x/y` -> `folder-y-1a2b3c4d`.
    """
    name = re.sub(r"folder:(.*?)(?=-folder:|$)", lambda m: unique("folder", m[1]), name)
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name).strip("-")


def net_name(name: str) -> str:
    """A net's name as folders have it: `x/y.py:Net` -> `file-y_Net-1a2b3c4d`, others as they are."""
    return unique("file", name.replace(".py:", "_")) if ".py:" in name else name


def unique(kind: str, path: str) -> str:
    """A name of the last part of a path and of letters that tell it from other paths."""
    path = os.path.normpath(os.path.expanduser(path))
    return f"{kind}-{os.path.basename(path)}-{hashlib.blake2b(path.encode(), digest_size=4).hexdigest()}"


# ---- writing: whole or not at all


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[IO[bytes]]:
    """Opens a temporary file beside `path` for writing bytes; it takes the name only when whole and on disk.

    Whatever goes wrong (a full disk, a kill), the old file is as it was. Raises RunError with the reason.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        name = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # tempfile's would be readable by nobody else
    except OSError as e:
        raise RunError(f"cannot write in {path.parent}: {e.strerror}; give another folder or make it writable") from None
    try:
        with os.fdopen(handle, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(name, path)
    except BaseException as e:
        with contextlib.suppress(OSError):
            os.unlink(name)
        if isinstance(e, (OSError, RuntimeError)):  # torch.save wraps a full disk in a RuntimeError
            kept = "the file that was there is untouched" if path.exists() else "nothing was written"
            raise RunError(f"could not save {path}: {getattr(e, 'strerror', None) or e}; {kept}") from None
        raise


def save(path: str | Path, state: object) -> None:
    """torch.save, whole or not at all."""
    with atomic(path) as f:
        torch.save(state, f)


def save_text(path: str | Path, text: str) -> None:
    """A text file, whole or not at all."""
    with atomic(path) as f:
        f.write(text.encode())


def save_json(path: str | Path, value: object) -> None:
    """A JSON file, whole or not at all."""
    save_text(path, json.dumps(value, indent=1) + "\n")


# ---- reading


def holding(keys: Sequence[str], content: dict, path: str | Path) -> dict:
    """`content`, if it is a dictionary with all of `keys`, or if there are none; UsageError otherwise."""
    if keys and not (isinstance(content, dict) and set(keys) <= set(content)):
        raise UsageError(f"{path} is another kind of file: it does not hold {', '.join(keys)}; move it away and run again")
    return content


def read_json(path: str | Path, *keys: str) -> dict | None:
    """The dictionary in a file, None where there is no file; UsageError where it is cut off or lacks one of `keys`."""
    try:
        content = json.loads(Path(path).read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        raise UsageError(f"{path} is truncated, or not JSON; delete it and run again") from None
    return holding(keys, content, path)
