"""The folder of an export: it appears whole, when all is written and checked, or not at all."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..cli import RunError, UsageError
from ..exported import REPORT


def check_folder(out: Path, overwrite: bool) -> None:
    """UsageError for a folder that an export may not take: a file, an earlier export without --overwrite, other files."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UsageError(f"--out {out} is {'a link' if out.is_symlink() else 'a file'}; name a new folder")
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / REPORT).is_file():
        raise UsageError(f"{out} holds other files (no {REPORT}); name a new folder with --out")
    if not overwrite:
        raise UsageError(f"{out} holds an earlier export; --overwrite replaces it, --out names another folder")


@contextlib.contextmanager
def new_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside `out`, which takes its place at the end of the block; it is deleted where the block fails.

    UsageError where there is an earlier export and not `overwrite`, or where `out` holds other files. RunError where a file cannot be
    written; the earlier export is then as it was.
    """
    check_folder(out, overwrite)
    letters = secrets.token_hex(4)
    new, old = (out.with_name(f".{out.name}.{kind}.{letters}") for kind in ("new", "old"))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        new.mkdir()
    except OSError as e:
        raise RunError(f"cannot write in {out.parent}: {e.strerror}; give another folder with --out") from None
    try:
        yield new
        check_folder(out, overwrite)  # of a process that was quicker
        if out.exists():
            os.replace(out, old)
        try:
            os.replace(new, out)
        except OSError:
            if old.exists():
                os.replace(old, out)
            raise
    except OSError as e:
        raise RunError(f"could not write the export {out}: {e.strerror or e}; nothing was written") from None
    finally:
        for path in (new, old):
            shutil.rmtree(path, ignore_errors=True)
