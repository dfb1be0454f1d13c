"""--to pt2: a program of torch.export, which runs with PyTorch."""

import io
import json
from typing import TYPE_CHECKING

import torch

from .graphs import BATCH, SIZES, program, quiet

if TYPE_CHECKING:
    from .writing import Export


def write(export: "Export") -> None:
    """Writes the program, and compares it with PyTorch."""
    core = export.core
    if export.pixels:
        free = BATCH | (SIZES if export.resize else {})
        core = program(export.behind_front(export.run.net), export.example(2), export.report["model"], free)
    path = export.save(f"{export.role}.pt2", to_bytes(core, export.metadata()))
    with quiet():
        loaded = torch.export.load(path).module()
    export.compared(path.name, loaded)


def to_bytes(found: torch.export.ExportedProgram, metadata: dict[str, str]) -> bytes:
    """The content of a .pt2 file, with metadata.json in it."""
    whole = io.BytesIO()  # a full disk is then an OSError, and not one of torch's writer
    with quiet():
        torch.export.save(found, whole, extra_files={"metadata.json": json.dumps(metadata)})
    return whole.getvalue()
