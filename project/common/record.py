"""What a run leaves on disk and takes up again: its folders, state, log and result."""

import fcntl
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torchvision

from .options import differences, settings
from .transfer import Transfer
from .utils import RunError, UsageError, domain, identity, place, read, read_json, save, save_json, save_text, say, weights, who_of

SAVE_EVERY = 1.0  # seconds; epochs shorter than this are not saved one by one


class Record:
    """folder: checkpoints/<script>/<data set>/<nets>/seed<k>; logs: the same under logs/. `sources`: files the run is made from."""

    def __init__(self, script, args):
        self.script, self.args = script, args
        self.rows, self.best, self.sources, self.state = [], None, {}, None
        self.saved_epoch, self.saved_at, self.began, self.earlier = 0, 0.0, time.time(), 0.0
        self.name = who_of(args)
        self.title = f"{script} {self.name.replace('_to_', ' -> ')} on {domain(args)}, seed {args.seed}"
        self.open()
        self.take_up()

    def open(self):
        a, roots = self.args, (self.args.checkpoints_dir, self.args.logs_dir)
        if a.dry_run:
            self.temporary = tempfile.TemporaryDirectory(prefix="dry_run_")
            roots = (f"{self.temporary.name}/checkpoints", f"{self.temporary.name}/logs")
        self.folder, self.logs = (place(root, self.script, domain(a), self.name, a.seed) for root in roots)
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
            raise UsageError(f"another process is at this run ({self.folder}); wait for it, or give --tag NAME") from None
        given = getattr(a, "transfer", "")
        if a.overwrite and given and Path(given).resolve().parent == self.folder.resolve():
            raise UsageError(f"--transfer {given} lies in the folder that --overwrite would empty; give --tag NAME instead")
        if a.overwrite:
            for path in [*self.folder.iterdir(), *self.logs.iterdir()]:
                if path.name not in (".lock", "output.log"):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    def take_up(self):
        """Says so and exits where the run is finished; takes its state where it was cut short; UsageError where it was another run."""
        result = read_json(self.folder / "result.json", "options", "sources", "line")
        if not result and (self.folder / "state.pt").exists():
            self.state = read(self.folder / "state.pt", "options", "sources", "epoch", "objects", "rng", "rows")
        self.transfer = Transfer(self.folder / "transfer.safetensors")
        before = result or self.state or self.transfer.about
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
            say(f"finished before: {result['line']}\n(--overwrite runs it again)")
            sys.exit(0)

    def source(self, path):
        """(state dict, meta) of a file that this run is made from; a change of the file is noticed when the run is taken up."""
        content = weights(path)
        self.sources[str(path)] = identity(path)
        return content

    # ---- state

    def save_state(self, epoch, objects, device, force):
        """Saves all that has a state, unless the last save is hardly older than an epoch; `force` saves in any case."""
        if not force and time.time() - self.saved_at < SAVE_EVERY:
            return
        kept = {"epoch": epoch, "objects": {name: o.state_dict() for name, o in objects.items()}}
        kept |= {"rng": rng_state(device), "rows": self.rows, "best": self.best, "seconds": self.seconds()}
        save(self.folder / "state.pt", kept | {"options": settings(self.args), "sources": self.sources})
        self.saved_epoch, self.saved_at = epoch, time.time()

    def resume(self, done, until, objects, device):
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

    def log(self, row):
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
    def board(self):
        """TensorBoard's writer, opened at its first use; points after the saved epoch are cut off."""
        if not hasattr(self, "_board"):
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self._board = SummaryWriter(self.logs, purge_step=self.rows[-1]["epoch"] if self.rows else 0)
        return self._board

    def seconds(self):
        return self.earlier + time.time() - self.began

    # ---- result

    def finish(self, nets, meta, said, result):
        """Writes each net as NAME.pt with `meta`, then result.json, which says that the run is finished."""
        for name, net in nets.items():
            save(self.folder / f"{name}.pt", {"model": net.state_dict(), "meta": meta})
        result = {
            "line": f"{said} -> {self.folder}",
            "script": self.script,
            "dataset": self.args.dataset,
            "seed": self.args.seed,
            "best": self.best,
            **result,
        }
        result |= {"seconds": round(self.seconds(), 1), "versions": versions()}
        result |= {"options": settings(self.args), "sources": self.sources, "log": self.rows[-1] if self.rows else {}}
        self.board.close()
        if self.args.dry_run:
            say(f"{self.title}: a dry run went through; nothing is kept")
        else:
            save_json(self.folder / "result.json", result)
            (self.folder / "state.pt").unlink(missing_ok=True)
            say(result["line"])
        self.lock.close()
        return result


def rng_state(device):
    return {"cpu": torch.get_rng_state()} | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_rng_state(state, device):
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def peak_mb(device):
    """The most memory that this process has held, of the GPU where there is one, in MiB."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)


def versions():
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
