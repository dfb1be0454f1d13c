"""Places of files, safe writing and reading, names."""

import contextlib
import difflib
import hashlib
import io
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any

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


# ---- random numbers


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The state of torch's random numbers, of the CPU and of a GPU."""
    return {"cpu": torch.get_rng_state()} | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_rng_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Puts back what `rng_state` gave."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


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


def is_url(name: str) -> bool:
    """Whether the name of a teacher is the URL of a server."""
    return name.lower().startswith(("http://", "https://"))


def net_name(name: str) -> str:
    """A net's name as folders have it: `x/y.py:Net` -> `file-y_Net-1a2b3c4d`, `http://host/v2/models/Net` -> `api-Net-1a2b3c4d`."""
    if is_url(name):
        return safe(f"api-{name.partition('?')[0].rstrip('/').rpartition('/')[2]}-{letters(name)}")
    if name.startswith("hf:"):
        return unique("hf", name[3:])
    return unique("file", name.replace(".py:", "_")) if ".py:" in name else name


def unique(kind: str, path: str) -> str:
    """A name of the last part of a path and of letters that tell it from other paths."""
    path = os.path.normpath(os.path.expanduser(path))
    return f"{kind}-{os.path.basename(path)}-{letters(path)}"


def letters(text: str) -> str:
    """Eight letters that tell a text from others."""
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


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
        handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)  # tempfile's modes are narrower
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
        if isinstance(e, OSError):
            kept = "the file that was there is untouched" if path.exists() else "nothing was written"
            raise RunError(f"could not save {path}: {e.strerror or e}; {kept}") from None
        raise


def remove_remains(folder: Path) -> None:
    """Deletes the temporary files that `atomic` left in a folder when its process was killed."""
    for path in folder.glob(".*"):
        if re.fullmatch(r"\..+\.[0-9a-f]{8}", path.name):
            path.unlink(missing_ok=True)


def save(path: str | Path, content: dict) -> None:
    """torch.save of a dictionary with a checksum of it, whole or not at all."""
    content = without_checksum(content)
    whole = io.BytesIO()  # a full disk is then an OSError, and not one of torch's writer
    torch.save(content | {"checksum": digest(content)}, whole)
    with atomic(path) as f:
        f.write(whole.getbuffer())


def save_text(path: str | Path, text: str) -> None:
    """A text file, whole or not at all."""
    with atomic(path) as f:
        f.write(text.encode())


def save_json(path: str | Path, content: dict) -> None:
    """A JSON file of a dictionary with a checksum of it, whole or not at all."""
    content = without_checksum(content)
    save_text(path, json.dumps(content | {"checksum": digest(json.dumps(content))}, indent=1) + "\n")


# ---- reading


def digest(*values: object) -> str:
    """16 letters that change with any tensor, number or word in nested dictionaries and lists."""
    found = hashlib.blake2b(digest_size=8)
    for value in values:
        if isinstance(value, torch.Tensor):
            found.update(f"{value.dtype}{list(value.shape)}".encode())
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        elif isinstance(value, (dict, list, tuple)):
            parts = chain.from_iterable(value.items()) if isinstance(value, dict) else value
            found.update(f"{isinstance(value, dict)}{len(value)}{digest(*parts)}".encode())
        else:
            found.update(repr(value).encode() + b"\0")
    return found.hexdigest()


def check_regular(path: str | Path) -> None:
    """UsageError for a path that is there and is no file: a folder, a pipe, a device, a link to nothing."""
    path = Path(path)
    if path.is_symlink() and not path.exists():
        raise UsageError(f"{path} is a link to {os.readlink(path)}, which does not exist")
    if path.exists() and not path.is_file():
        kinds = {"a folder": path.is_dir(), "a pipe": path.is_fifo(), "a socket": path.is_socket()}
        raise UsageError(f"{path} is {next((words for words, so in kinds.items() if so), 'a device')}, not a file")


def holding(content: object, path: str | Path, **forms: Any) -> dict:
    """`content`, if it is a dictionary with a value of the given form under each key; UsageError otherwise. For forms see `misfit`."""
    if not isinstance(content, dict) or not forms.keys() <= content.keys():
        raise UsageError(f"{path} is another kind of file: it does not hold {', '.join(forms)}; move it away and run again")
    if problem := next(filter(None, (misfit(content[key], form, key) for key, form in forms.items())), ""):
        raise UsageError(f"{path}: its {problem}; it is damaged, or not of this project; move it away and run again")
    return content


def misfit(value: object, form: Any, name: str) -> str:
    """`NAME is of type list, not str` for a value that is not of a form, empty for one that is.

    form: a type, a range of integers, [the form of each item], {key: the form of its value}, {...: the form of every value, by name},
    or a tuple of these. A bool is no int.
    """
    forms = form if isinstance(form, tuple) else (form,)
    kinds = [int if isinstance(f, range) else type(f) if isinstance(f, (list, dict)) else f for f in forms]
    form = next((f for f, k in zip(forms, kinds, strict=True) if isinstance(value, k) and (k is bool or type(value) is not bool)), None)
    if form is None:
        return f"{name} is of type {type(value).__name__}, not {' or '.join(k.__name__ for k in kinds)}"
    if isinstance(form, range) and value not in form:
        return f"{name} is {value}, not from {form.start} to {form.stop - 1}"
    if isinstance(form, dict):
        if ... in form:
            if odd := next((k for k in value if not isinstance(k, str)), None):
                return f"{name} has the key {odd!r}, which is no text"
            form = dict.fromkeys(value, form[...])
        if lacking := form.keys() - value.keys():
            return f"{name} lacks {', '.join(sorted(lacking))}"
        return next(filter(None, (misfit(value[k], f, f"{name}.{k}") for k, f in form.items())), "")
    if isinstance(form, list):
        return next(filter(None, (misfit(v, form[0], f"{name}[{i}]") for i, v in enumerate(value))), "")
    return ""


def checked(content: dict, mine: str | None, path: str | Path) -> dict:
    """`content` without its checksum, if it has none or that is `mine`; UsageError otherwise."""
    if content.get("checksum", mine) != mine:
        raise UsageError(f"{path} is damaged, or was changed after it was saved: its checksum differs; make it anew, or bring a copy back")
    return without_checksum(content)


def without_checksum(content: dict) -> dict:
    """`content` but for its checksum."""
    return {k: v for k, v in content.items() if k != "checksum"}


def read_json(path: str | Path, **forms: Any) -> dict | None:
    """The dictionary in a file, None where there is no file.

    forms: what it must hold under each key. UsageError where it is damaged, or another kind of file.
    """
    check_regular(path)
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as e:
        raise UsageError(f"cannot read {path}: {e.strerror}") from None
    except (ValueError, RecursionError):
        raise UsageError(f"{path} is truncated, or not JSON; delete it and run again") from None
    content = holding(content, path, **forms)
    return checked(content, digest(json.dumps(without_checksum(content))), path)
