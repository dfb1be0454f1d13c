"""Transfer sets: what a teacher was asked about and what it answered, one safetensors file that grows as answers are bought.

Columns, a row an image:
  index     (N,) rows of the data set's training images; or (N, 2), two rows of them, mixed with
  weight    (N,) weight * first + (1 - weight) * second
  images    (N, C, H, W) float32 as the net sees them, instead of index: a generator's
  answers   (N, K) float32, what BlackBox gives: logits up to a constant of each row, or the one-hot vector of a class
  others    a row an image too, made of further queries: distances to decision boundaries and what they took, (N, K, budgets)
The metadata's one entry, `transfer`, is JSON: data set, response, teacher's identity, counts of queries, options; `made`: those options
that each of the other columns was made with.
"""

import json

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as as_bytes

from .utils import UsageError, atomic, holding


class Transfer:
    """columns: {name: tensor on the CPU}. about: the metadata's dictionary. ends: where each purchase ends.

    A column that is shorter than the others is being bought; `fill` goes on with it.
    """

    ABOUT = ("dataset", "images", "val", "response", "teacher", "classes", "ends", "counts", "own", "options", "sources")

    def __init__(self, path):
        """The file's content, or an empty set where there is no file. UsageError where it is cut off or of another kind."""
        self.path, self.columns, self.about, self.ends, self.made = path, {}, {}, [], {}
        if not path.exists():
            return
        try:
            with safe_open(path, "pt") as f:
                self.columns = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118  no dictionary
                self.about = json.loads((f.metadata() or {}).get("transfer", "{}"))
        except (SafetensorError, ValueError, OSError) as e:
            raise UsageError(f"{path} cannot be read as a transfer set ({e}); it is truncated or of another kind") from None
        self.ends, self.made = holding(self.ABOUT, self.about, path)["ends"], self.about.get("made", {})

    def __len__(self):
        return self.ends[-1] if self.ends else 0

    def plan(self, columns):
        """Adds rows that are to be asked about; UsageError where they are of another kind than those there."""
        if mine := {k: v for k, v in self.columns.items() if k in ("index", "weight", "images")}:
            if "weight" in columns and mine.keys() == {"index"}:  # whole images among mixes
                mine = {"index": torch.stack([mine["index"]] * 2, 1), "weight": torch.ones(len(mine["index"]))}
            if {k: v.shape[1:] for k, v in mine.items()} != {k: v.shape[1:] for k, v in columns.items()}:
                raise UsageError(f"{self.path} holds {' and '.join(mine)}, to which this method cannot add; run it without --transfer")
            columns = {k: torch.cat([mine[k], v.cpu()]) for k, v in columns.items()}
        self.columns |= {k: v.cpu() for k, v in columns.items()}
        self.ends.append(len(next(iter(columns.values()))))

    def fill(self, make, name, size, stop):
        """Completes `stop` rows of the columns that `make(rows)` gives, {name: values}, `name` among them, for `size` rows at most; rows
        holds the other columns, and the rows' numbers as `row`. Yields after each call."""
        for at in range(len(self.columns.get(name, ())), stop, size):
            end = min(at + size, stop)
            rows = {k: v[at:end] for k, v in self.columns.items() if len(v) >= end}
            for k, new in make(rows | {"row": torch.arange(at, end)}).items():
                self.columns[k] = torch.cat([self.columns[k], new.cpu()]) if at else new.cpu()
            yield end

    def whole(self):
        """{column: the rows of it for which there is an answer}"""
        n = len(self.columns.get("answers", ()))
        return {k: v[:n] for k, v in self.columns.items() if len(v) >= n}

    def save(self, about):
        self.about = about | {"ends": self.ends}
        content = as_bytes({k: v.contiguous() for k, v in self.columns.items()}, {"transfer": json.dumps(self.about)})
        with atomic(self.path) as f:
            f.write(content)
