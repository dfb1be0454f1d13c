"""Places of files, safe writing and reading, names, errors for people."""

import contextlib
import difflib
import hashlib
import json
import os
import pickle
import sys
import tempfile
import warnings
from pathlib import Path

import torch


class UsageError(Exception):
    """What the user asked for cannot be; one line for him, exit status 2."""


class RunError(Exception):
    """The run failed on its way; one line, exit status 1."""


def cli(main):
    """Runs a script's `main`; its errors become one line on stderr and an exit status: 2 bad usage, 1 a failed run."""
    script = Path(sys.argv[0]).name
    try:
        main()
    except UsageError as e:
        sys.exit(complain(script, e, 2))
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (RunError, OSError, torch.OutOfMemoryError) as e:
        sys.exit(complain(script, e, 1))
    except KeyboardInterrupt:
        sys.exit(complain(script, "stopped before anything was done", 130))


def complain(script, error, status):
    print(f"{script}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return status


def say(words):
    """A line for output.log, there at once."""
    print(words, flush=True)


def exact(x):
    """A block in which products of matrices keep the precision of x, whatever --amp says."""
    return torch.autocast(x.device.type, enabled=False)


def clock(seconds):
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"


# ---- names


def squeeze(name):
    return name.lower().replace("-", "").replace("_", "")


def matching(name, names):
    """The one of `names` that equals `name` but for case, `-` and `_`; None if there is none."""
    return next((n for n in names if squeeze(n) == squeeze(name)), None)


def lookup(name, names, kind, more=""):
    """The one of `names` that `name` means, or a UsageError that lists what there is."""
    found = matching(name, names)
    if found is None:
        near = difflib.get_close_matches(squeeze(name), [squeeze(n) for n in names], 1)
        meant = f" (did you mean {matching(near[0], names)}?)" if near else ""
        raise UsageError(f"no {kind} {name!r}{meant}; there are: {', '.join(names)}{', ' if more else ''}{more}")
    return found


# ---- places


def place(root, script, dataset, who, seed):
    """The folder of one run, for its writer and its readers; `root` is the checkpoints' or the logs' folder."""
    return Path(root) / script / safe(dataset) / safe(who) / f"seed{seed}"


def who(teacher="", model="", response="soft", query_budget=0, tag=""):
    """The folder of a run's nets, `ResNet32_to_ResNet8`, and what sets it apart from others of the same: `-hard`, `-q1000`, `-mytag`."""
    nets = "_to_".join(n for n in (teacher, model) if n)
    apart = (response if teacher and response != "soft" else "", f"q{query_budget}" if query_budget else "", tag)
    return "-".join([nets, *filter(None, apart)])


def who_of(args):
    """`who` of a run's options."""
    return who(**{k: getattr(args, k) for k in ("teacher", "model", "response", "query_budget", "tag") if hasattr(args, k)})


def domain(args):
    """The folder of a run's data: the data set, and the edge's own where it is another, `MNIST-USPS`."""
    return "-".join(filter(None, (args.dataset, getattr(args, "private", ""))))


def safe(name):
    """A folder's name from a data set's or model's: `torchvision:resnet18` -> `torchvision-resnet18`."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name).strip("-")


# ---- writing: whole or not at all


@contextlib.contextmanager
def atomic(path):
    """Opens a temporary file beside `path` for writing bytes; it takes the name only when whole and on disk.

    Whatever goes wrong (a full disk, a kill), the old file is as it was. Raises RunError with the reason.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
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


def save(path, state):
    with atomic(path) as f:
        torch.save(state, f)


def save_text(path, text):
    with atomic(path) as f:
        f.write(text.encode())


def save_json(path, value):
    save_text(path, json.dumps(value, indent=1) + "\n")


# ---- reading: weights only, one line when a file is not what it should be


def read(path, *keys):
    """A file of `save`, or anybody's checkpoint of tensors and plain containers; nothing in it is ever executed.

    keys: what it must hold. Raises UsageError where it cannot be read or lacks one.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of foreign files' formats
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UsageError(f"no file {path}") from None
    except pickle.UnpicklingError:
        raise UsageError(
            f"{path} holds more than weights (or is no checkpoint at all), and is not run; save model.state_dict() instead"
        ) from None
    except Exception as e:
        reason = "it is empty" if Path(path).is_file() and not Path(path).stat().st_size else str(e).split("\n")[0] or type(e).__name__
        raise UsageError(f"{path} cannot be read as a checkpoint ({reason}); it is truncated or of another kind: make it anew") from None
    return holding(keys, content, path)


def holding(keys, content, path):
    """`content`, if it is a dictionary with all of `keys`, or if there are none; UsageError otherwise."""
    if keys and not (isinstance(content, dict) and set(keys) <= set(content)):
        raise UsageError(f"{path} is of another kind: it does not hold {', '.join(keys)}; move it away and run again")
    return content


def read_json(path, *keys):
    """The dictionary in a file, None where there is no file; UsageError where it is cut off or lacks one of `keys`."""
    try:
        content = json.loads(Path(path).read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        raise UsageError(f"{path} is cut off or no JSON; delete it and run again") from None
    return holding(keys, content, path)


def weights(path):
    """(state dict, meta) of a checkpoint: plain, or under `model`, `state_dict`, `net` or `model_sd`; with or without `module.`"""
    content = read(path)
    meta = content.get("meta") if isinstance(content, dict) else None
    meta = meta if isinstance(meta, dict) and "script" in meta else {}  # others' files may call anything `meta`
    for key in ("model", "state_dict", "net", "model_sd"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not content or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise UsageError(f"{path} holds no state dict: neither plain, nor under model, state_dict, net or model_sd")
    return {k.removeprefix("module."): v for k, v in content.items()}, meta


def identity(path):
    """Twelve letters that change when the file's content does."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()[:12]
