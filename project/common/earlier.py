"""What earlier runs left in their folders: finished results, locks, runs that are set aside, what has changed since: sources, data."""

import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from .checkpoints import identity
from .cli import UsageError
from .forms import NUMBER, RESULT, RESULT_MORE, RESULT_NUMBERS, present
from .utils import holding, read_json


def aside_of(folder: Path) -> Path:
    """Where a run's files are set aside while another one begins in its folder."""
    return folder.with_name(f"{folder.name}.before")


def delete(path: Path) -> None:
    """Deletes a file or a folder, where there is one."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def is_locked(folder: Path) -> bool:
    """Whether another process holds the lock of the run in this folder."""
    if not (folder / ".lock").exists():
        return False
    try:
        with FileLock(folder / ".lock", timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a read-only folder, in which nothing can run
        return False


def finished_result(folder: Path) -> dict | None:
    """What the result.json of a finished run holds, None where there is none.

    UsageError where it is damaged, or where a net that it names is missing or damaged.
    """
    path = folder / "result.json"
    result = read_json(path, **RESULT)
    if result is None:
        return None
    holding(result, path, **present(result, RESULT_MORE), **{k: NUMBER for k in RESULT_NUMBERS if result.get(k) is not None})
    for name, known in result.get("files", {}).items():
        if not (folder / name).is_file() or identity(folder / name) != known:
            what = "has changed, or is damaged" if (folder / name).exists() else "is missing"
            raise UsageError(f"{folder / name} {what}, and {path} names it; bring it back, or --overwrite trains it again")
    return result


def source_changes(sources: dict[str, str]) -> list[str]:
    """Which files that a run was made from, {file: its identity}, have changed since, a phrase each; one that is gone is not compared."""
    return [f"{path} (changed since)" for path, known in sources.items() if Path(path).exists() and identity(path) != known]


def data_changes(then: dict, now: dict) -> list[str]:
    """What two identities of a data set (Data.identity) have otherwise, a phrase each; nothing where one does not know."""
    found = []
    if then["names"] != now["names"]:
        found.append(f"classes {', '.join(then['names'])} (now {', '.join(now['names'])})")
    for part in ("train", "test"):
        a, b = then[part], now[part]
        if a["hash"] and b["hash"] and a["hash"] != b["hash"]:
            more = (
                f"{a['images']:,} images (now {b['images']:,})"
                if a["images"] != b["images"]
                else f"other images of the same number ({a['images']:,})"
            )
            found.append(f"{part} set: {more}")
    found += [f"{k} {then[k]} (now {now[k]})" for k in ("mean", "std", "crop_from") if then[k] != now[k]]
    return found
