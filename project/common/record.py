"""What a run leaves on disk and takes up again: its folders, state, log and result."""

import fcntl
import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn as nn
import torchvision

from .checkpoints import identity, read, read_weights
from .cli import Finished, RunError, UsageError, say
from .options import Base, dataset_tag, differences, run_name_of, settings
from .utils import read_json, run_folder, save, save_json, save_text
from .weights import StateDict

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SAVE_EVERY = 1.0  # seconds; epochs shorter than this are not saved one by one


class Record:
    """What one run leaves on disk.

    folder: checkpoints/<script>/<data set>/<nets>/seed<k>; logs: the same under logs/. rows: the log so far. sources: {file that the run is
    made from: its identity}. best: the best accuracy so far, in percent.
    """

    def __init__(self, script: str, args: Base):
        self.script, self.args = script, args
        self.rows, self.best, self.sources, self.state, self.before, self.data = [], None, {}, None, {}, {}
        self.saved_epoch, self.saved_at, self.began, self.earlier = 0, 0.0, time.monotonic(), 0.0
        self.name = run_name_of(args)
        self.title = f"{script} {self.name.replace('_to_', ' -> ')} on {dataset_tag(args)}, seed {args.seed}"
        self.open_folders()

    def open_folders(self) -> None:
        """Makes both folders, and locks them for this process; empties them where --overwrite says so."""
        a, roots = self.args, (self.args.checkpoints_dir, self.args.logs_dir)
        if a.dry_run:
            self.temporary = tempfile.TemporaryDirectory(prefix="dry_run_")
            roots = (f"{self.temporary.name}/checkpoints", f"{self.temporary.name}/logs")
        self.folder, self.logs = (run_folder(root, self.script, dataset_tag(a), self.name, a.seed) for root in roots)
        for folder in (self.folder, self.logs):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=folder).close()
            except OSError as e:
                hint = "name other folders with --checkpoints_dir and --logs_dir"
                raise UsageError(f"cannot write in {folder} ({e.strerror}); {hint}") from None
        self.lock = open(self.folder / ".lock", "w")  # noqa: SIM115  held until the process ends
        try:
            fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another process is running this run ({self.folder}); wait for it, or give --tag NAME") from None
        if a.overwrite and a.transfer and Path(a.transfer).resolve().parent == self.folder.resolve():
            raise UsageError(f"--transfer {a.transfer} lies in the folder that --overwrite would empty; give --tag NAME instead")
        if a.overwrite:
            for path in [*self.folder.iterdir(), *self.logs.iterdir()]:
                if path.name not in (".lock", "output.log"):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    def take_up(self, bought: dict) -> None:
        """Takes the state of a run that was cut short; Finished where it is finished, UsageError where it was another run.

        bought: what the run's transfer set says about itself, empty where there is none.
        """
        result = read_json(self.folder / "result.json", "options", "sources", "line")
        if not result and (self.folder / "state.pt").exists():
            self.state = read(self.folder / "state.pt", "options", "sources", "epoch", "objects", "rng", "rows")
        self.before = before = result or self.state or bought
        if not before:
            return
        changed = differences(self.args, before["options"])
        changed += [
            f"{path} (changed since)" for path, known in before["sources"].items() if Path(path).exists() and identity(path) != known
        ]
        if changed:
            hint = "give --tag NAME to run beside it, or --overwrite to start anew"
            raise UsageError(f"{self.folder} holds a run with {', '.join(changed)}; {hint}")
        if result:
            raise Finished(result)

    def check_data(self, identity: dict) -> None:
        """UsageError where the data are not those with which the run began; identity: of Data, noted in all that the run writes."""
        self.data = identity
        if changed := data_changes(self.before.get("data") or identity, identity):
            hint = "put the files back, give --tag NAME to run beside it, or --overwrite to start anew"
            raise UsageError(f"the data of {self.args.dataset} have changed since {self.folder} was written: {'; '.join(changed)}; {hint}")

    def source(self, path: Path | str, key: str = "") -> tuple[StateDict, dict]:
        """(state dict, meta) of a file that this run is made from; a change of the file is noticed when the run is taken up.

        key: where in the file the state dict lies, where it holds several.
        """
        content = read_weights(path, key)
        self.sources[str(path)] = identity(path)
        return content

    # ---- state

    def save_state(self, epoch: int, objects: dict, device: torch.device, force: bool) -> None:
        """Saves all that has a state, unless the last save is hardly older than an epoch; `force` saves in any case."""
        if not force and time.monotonic() - self.saved_at < SAVE_EVERY:
            return
        kept = {"epoch": epoch, "objects": {name: o.state_dict() for name, o in objects.items()}}
        kept |= {"rng": rng_state(device), "rows": self.rows, "best": self.best, "seconds": self.seconds()}
        save(self.folder / "state.pt", kept | {"options": settings(self.args), "sources": self.sources, "data": self.data})
        self.saved_epoch, self.saved_at = epoch, time.monotonic()

    def resume(self, done: int, until: int, objects: dict, device: torch.device) -> int:
        """Puts the state into `objects` if it was saved in epochs done + 1 to `until`; the number of epochs done, at most `until`."""
        state = self.state
        if not state or state["epoch"] <= done:
            return done
        if state["epoch"] > until:
            return until
        for name, o in objects.items():
            o.load_state_dict(state["objects"][name])
        set_rng_state(state["rng"], device)
        self.rows, self.best, self.earlier, self.saved_epoch = state["rows"], state["best"], state["seconds"], state["epoch"]
        save_text(self.logs / "log.jsonl", "".join(json.dumps(row) + "\n" for row in self.rows))
        say(f"goes on after epoch {self.saved_epoch} of {self.args.epochs}")
        return self.saved_epoch

    # ---- log

    def log(self, row: dict) -> None:
        """One epoch's numbers: a line of log.jsonl, a point of each of TensorBoard's curves."""
        if "accuracy" in row:
            self.best = max(self.best or 0.0, row["accuracy"])
        self.rows.append(row)
        path = self.logs / "log.jsonl"
        try:
            with open(path, "a" if len(self.rows) > 1 else "w") as f:
                f.write(json.dumps(row) + "\n")
        except OSError as e:
            raise RunError(f"could not write {path} ({e.strerror}); the same command goes on from the last saved epoch") from None
        for name, value in row.items():
            if not isinstance(value, list):
                self.board.add_scalar(name, value, row["epoch"])

    @property
    def board(self) -> "SummaryWriter":
        """TensorBoard's writer, opened at its first use; points after the saved epoch are cut off."""
        if not hasattr(self, "_board"):
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self._board = SummaryWriter(self.logs, purge_step=self.rows[-1]["epoch"] if self.rows else 0)
        return self._board

    def seconds(self) -> float:
        """How long the run has taken, with its earlier parts."""
        return self.earlier + time.monotonic() - self.began

    # ---- result

    def finish(self, nets: dict[str, nn.Module], meta: dict, summary: str, result: dict) -> dict:
        """Writes each net as NAME.pt with `meta`, then result.json, which says that the run is finished."""
        for name, net in nets.items():
            save(self.folder / f"{name}.pt", {"model": {k: v.contiguous() for k, v in net.state_dict().items()}, "meta": meta})
        result = {
            "line": f"{summary} -> {self.folder}",
            "script": self.script,
            "dataset": self.args.dataset,
            "seed": self.args.seed,
            "best": self.best,
            **result,
        }
        result |= {"seconds": round(self.seconds(), 1), "versions": versions()}
        result |= {"options": settings(self.args), "sources": self.sources, "data": self.data, "log": self.rows[-1] if self.rows else {}}
        self.board.close()
        if self.args.dry_run:
            say(f"{self.title}: a dry run went through; nothing is kept")
        else:
            save_json(self.folder / "result.json", result)
            (self.folder / "state.pt").unlink(missing_ok=True)
            say(result["line"])
        self.lock.close()
        return result


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


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The state of torch's random numbers, of the CPU and of a GPU."""
    return {"cpu": torch.get_rng_state()} | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_rng_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Puts back what `rng_state` gave."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def versions() -> dict[str, str]:
    """Versions of Python and packages, and the git commit."""
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
    return found | {"commit": commit or "unknown"}
