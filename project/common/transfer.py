"""A transfer set: a safetensors file that grows as answers are bought.

Columns of a transfer set, a row an image:
  index     (N,) rows of the data set's training images; or (N, 2), two rows of them, mixed with
  weight    (N,) weight * first + (1 - weight) * second
  images    (N, C, H, W) float32 as the net sees them, instead of index: a generator's
  answers   (N, K) float32, what BlackBox gives: logits up to a constant of each row, or the one-hot vector of a class
  others    a row an image too, made of further queries: distances to decision boundaries and what they took, (N, K, budgets)
The metadata's one entry, `transfer`, is JSON: data set, response, teacher's identity, counts of queries, options; `made`: those options
that each of the other columns was made with.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as as_bytes
from torch import Tensor

from .cli import UsageError
from .forms import ABOUT, ABOUT_MORE, present
from .utils import atomic, check_regular, checked, digest, holding, without_checksum

Columns = dict[str, Tensor]
ORDINARY = (torch.float32, torch.float64, torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool)  # types of columns


class Transfer:
    """columns: {name: tensor on the CPU}. about: the metadata's dictionary. ends: where each purchase ends.

    A column that is shorter than the others is being bought; `fill` goes on with it.
    """

    def __init__(self, path: Path, fresh: bool = False):
        """The file's content, or an empty set where there is no file or `fresh`. UsageError where it is damaged or of another kind."""
        self.path, self.columns, self.about, self.ends, self.made = path, {}, {}, [], {}
        check_regular(path)
        if fresh or not path.exists():
            return
        try:
            with safe_open(path, "pt") as f:
                self.columns = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118  no dictionary
                about = json.loads((f.metadata() or {}).get("transfer", "{}"))
        except (SafetensorError, ValueError, OSError, RecursionError) as e:
            raise UsageError(f"{path} is not a readable transfer set ({e}); it is truncated, or another kind of file") from None
        about = holding(about, path, **ABOUT)
        holding(about, path, **present(about, ABOUT_MORE))
        mine = digest(sorted(self.columns.items()), without_checksum(about))
        self.about = checked(about, mine, path)
        self.ends, self.made = self.about["ends"], self.about.get("made", {})
        if problem := next(self.problems(), ""):
            raise UsageError(f"{path} is damaged, or was not made by a script of this project: {problem}; move it away and run again")

    def problems(self) -> Iterator[str]:
        """What of the file cannot be, a phrase each."""
        asked = {k: v for k, v in self.columns.items() if k in ("index", "weight", "images")}
        if set(asked) not in ({"index"}, {"index", "weight"}, {"images"}) or not {"answers", "images"} & self.columns.keys():
            yield f"it has the columns {', '.join(self.columns) or 'none'}; it needs index and answers, with weight or without, or images"
            return
        sizes = {len(v) if v.dim() else 0 for v in asked.values()}
        n, known = max(sizes), [0, *self.ends]
        if len(sizes) > 1 or not n or n > known[-1] or known != sorted({*known}):  # fewer, while images are synthesised
            yield f"its purchases end at {self.ends}, and it has {' and '.join(map(str, sorted(sizes)))} rows"
        if (answers := len(self.columns.get("answers", ()))) < known[-2]:
            yield f"its purchases end at {self.ends}, and it has {answers} answers"
        kinds = {"index": (torch.int64, 1 + ("weight" in asked)), "weight": (torch.float32, 1), "images": (torch.float32, 4)}
        for name, column in self.columns.items():
            dtype, dim = {**kinds, "answers": (torch.float32, 2)}.get(name, (column.dtype, column.dim()))
            if column.dtype not in ORDINARY:
                yield f"its {name} is {column.dtype}, which no script writes"
            elif column.dtype != dtype or column.dim() != dim or not dim or len(column) > known[-1]:
                yield f"its {name} is {column.dtype} {tuple(column.shape)}; expected {dtype}, {dim} dimensions, at most {known[-1]} rows"
            elif bad := self.outside(name, column):
                yield bad

    def outside(self, name: str, column: Tensor) -> str:
        """What values of a column cannot be, in a phrase; empty where all can."""
        low, high = {"index": (0, self.about["images"] - 1), "weight": (0, 1)}.get(name, (-torch.inf, torch.inf))
        if column.numel() and (column.isnan().any() or column.min() < low or column.max() > high):
            return f"its {name} has values in [{column.min()}, {column.max()}]; expected [{low}, {high}]"
        if name in ("answers", "images") and not column.isfinite().all():
            return f"its {name} has values that are not finite"
        if name == "answers" and column.shape[1] != self.about["classes"]:
            return f"its answers have {column.shape[1]} classes; expected {self.about['classes']}"
        return ""

    def __len__(self):
        return self.ends[-1] if self.ends else 0

    def add_rows(self, columns: Columns) -> None:
        """Adds rows that are to be asked about; UsageError where they are of another kind than those there."""
        if mine := {k: v for k, v in self.columns.items() if k in ("index", "weight", "images")}:
            if "weight" in columns and mine.keys() == {"index"}:  # whole images among mixes
                mine = {"index": torch.stack([mine["index"]] * 2, 1), "weight": torch.ones(len(mine["index"]))}
            if {k: v.shape[1:] for k, v in mine.items()} != {k: v.shape[1:] for k, v in columns.items()}:
                raise UsageError(f"{self.path} holds {' and '.join(mine)}, to which this method cannot add; run it without --transfer")
            columns = {k: torch.cat([mine[k], v.cpu()]) for k, v in columns.items()}
        self.columns |= {k: v.cpu() for k, v in columns.items()}
        self.ends.append(len(next(iter(columns.values()))))

    def fill(self, make: Callable[[Columns], Columns], name: str, size: int, stop: int) -> Iterator[int]:
        """Completes `stop` rows of the columns that `make(rows)` gives, {name: values}, `name` among them, for `size` rows at most; rows
        holds the other columns, and the rows' numbers as `row`. Yields after each call."""
        for at in range(len(self.columns.get(name, ())), stop, size):
            end = min(at + size, stop)
            rows = {k: v[at:end] for k, v in self.columns.items() if len(v) >= end}
            for k, new in make(rows | {"row": torch.arange(at, end)}).items():
                self.columns[k] = torch.cat([self.columns[k], new.cpu()]) if at else new.cpu()
            yield end

    def cut(self, n: int) -> None:
        """Leaves the first n rows, and the purchases that they are of."""
        self.columns = {k: v[:n] for k, v in self.columns.items()}
        self.ends = [*(end for end in self.ends if end < n), n]

    def whole(self) -> Columns:
        """{column: the rows of it for which there is an answer}"""
        n = len(self.columns.get("answers", ()))
        return {k: v[:n] for k, v in self.columns.items() if len(v) >= n}

    def save(self, about: dict) -> None:
        self.about = about | {"ends": self.ends}
        checksum = digest(sorted(self.columns.items()), json.loads(json.dumps(self.about)))
        content = as_bytes(
            {k: v.contiguous() for k, v in self.columns.items()}, {"transfer": json.dumps(self.about | {"checksum": checksum})}
        )
        with atomic(self.path) as f:
            f.write(content)
