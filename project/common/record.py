"""What a run leaves on disk and takes up again: its folders, state, log and result."""

import copy
import json
import os
import shutil
import socket
import tempfile
import time
from pathlib import Path

import torch
import torch.nn as nn
from filelock import FileLock, Timeout

from .board import Board
from .checkpoints import identity, read, read_weights
from .cli import Finished, RunError, UsageError, keep_tracebacks, say
from .devices import versions
from .earlier import aside_of, data_changes, delete, finished_result, source_changes
from .forms import STATE, STATE_MORE, present
from .models.library import named_file
from .options import Base, dataset_tag, differences, run_name_of, settings
from .processes import rank
from .schedule import lr_at, milestones
from .states import restore
from .utils import check_regular, holding, remove_remains, rng_state, run_folder, save, save_json, save_text, set_rng_state
from .weights import StateDict

SAVE_EVERY = 1.0  # seconds; epochs shorter than this are not saved one by one
WAIT = "LOCK_WAIT"  # environment variable: seconds that a run waits for another process that runs it
LOCK_WAIT = float(os.environ.get(WAIT, 5))  # the processes of a killed run that read data hold its lock a moment longer
PROCESS = "process.json"  # in the logs: host, pid and device of the process that runs the run, or was the last to do so


class Record:
    """What one run leaves on disk.

    folder: checkpoints/<script>/<data set>/<nets>/seed<k>; logs: the same under logs/. rows: the log so far. sources: {file that the run is
    made from: its identity}. best: the best accuracy so far, in percent. Finished where the run is finished, UsageError where the folder
    holds another one.
    """

    def __init__(self, script: str, args: Base):
        self.script, self.args = script, args
        self.rows, self.best, self.state, self.before, self.data = [], None, None, {}, {}
        named = filter(None, (named_file(getattr(args, name, "")) for name in ("model", "teacher")))
        self.sources = {str(path): identity(path) for path in named}
        self.saved_epoch, self.saved_at, self.began, self.earlier = 0, 0.0, time.monotonic(), 0.0
        self.name = run_name_of(args)
        self.title = f"{script} {self.name.replace('_to_', ' -> ')} on {dataset_tag(args)}, seed {args.seed}"
        self.folder, self.logs = self.folders(args.checkpoints_dir, args.logs_dir)
        if args.dry_run or rank():
            self.temporary, whole = tempfile.TemporaryDirectory(prefix="run_"), self.folder
            self.folder, self.logs = self.folders(*(f"{self.temporary.name}/{name}" for name in ("checkpoints", "logs")))
            if not args.dry_run:  # all but the first of several processes work in a copy
                shutil.copytree(whole, self.folder, ignore=shutil.ignore_patterns(".lock"))
        self.claimed = not args.overwrite  # whether the folder is this run's
        if args.overwrite:
            self.refuse_inputs_inside()
        self.take_result()  # before anything is written: the folder may be read-only
        self.open_folders()
        self.take_result()  # of a process that held the lock
        self.board = Board(self.logs)

    def folders(self, *roots: str) -> list[Path]:
        """The run's folder below each root."""
        return [run_folder(root, self.script, dataset_tag(self.args), self.name, self.args.seed) for root in roots]

    def open_folders(self) -> None:
        """Makes both folders, and locks them for this process."""
        for folder in (self.folder, self.logs):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=folder).close()
            except OSError as e:
                hint = "name other folders with --checkpoints_dir and --logs_dir"
                raise UsageError(f"cannot write in {folder} ({e.strerror}); {hint}") from None
        self.lock = FileLock(self.folder / ".lock", is_singleton=True)  # held until the process ends
        try:
            self.lock.acquire(timeout=LOCK_WAIT)
        except Timeout:
            raise UsageError(f"another process is running this run ({self.folder}); wait for it, or give --tag NAME") from None
        remove_remains(self.folder)
        if not self.args.dry_run:
            keep_tracebacks(self.logs)

    def note_process(self, device: str) -> None:
        """Writes down which process runs this run, for `table.py --watch`. device: its name."""
        save_text(self.logs / PROCESS, json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "device": device}) + "\n")

    # ---- an earlier run in the folder

    def refuse_inputs_inside(self) -> None:
        """UsageError where an option names a file in the folder that --overwrite would empty."""
        for name, value in settings(self.args).items():
            paths = {value, value.removeprefix("folder:"), value.removeprefix("py:").rpartition(":")[0]} if isinstance(value, str) else ()
            for path in (Path(p).resolve() for p in paths if p):
                if path.exists() and {self.folder.resolve(), self.logs.resolve()} & {path, *path.parents}:
                    raise UsageError(f"--{name} {value} lies in {self.folder}, which --overwrite empties; give --tag NAME instead")

    def claim(self) -> None:
        """To be called before the first file is written: with --overwrite, moves the files of the earlier run to seed<k>.before."""
        if self.claimed:
            return
        self.claimed = True
        for folder in (self.folder, self.logs):
            aside, moving = aside_of(folder), folder.with_name(f"{folder.name}.moving")
            for path in [path for path in folder.iterdir() if path.name not in (".lock", "output.log", PROCESS)]:
                if aside.exists():  # with the last run that has saved an epoch: the one in the folder has not
                    delete(path)
                else:
                    moving.mkdir(exist_ok=True)
                    path.rename(moving / path.name)
            if moving.exists():
                moving.rename(aside)
        if aside_of(self.folder).exists():
            say(f"the earlier run is kept in {aside_of(self.folder)} until this one has saved an epoch")

    def forget_earlier(self) -> None:
        """Deletes what `claim` has set aside."""
        for folder in (self.folder, self.logs):
            delete(aside_of(folder))

    def extends(self, then: dict) -> bool:
        """Whether this run trains an earlier one further: --extend with more epochs."""
        return self.args.extend and self.args.epochs > then["options"].get("epochs", self.args.epochs)

    def take_result(self) -> None:
        """Finished where the folder holds this run's result, unless it is to be overwritten or extended; UsageError for another run's."""
        result = None if self.args.overwrite else finished_result(self.folder)
        if not result:
            return
        self.compare(result)
        if not self.extends(result):
            raise Finished(result)
        if not (self.folder / "state.pt").exists():
            raise UsageError(f"--extend: {self.folder} has no state.pt of its last epoch; --overwrite starts anew")

    def take_up(self, bought: dict) -> None:
        """Takes the state of a run that was cut short, or that this one extends; UsageError where it was another run.

        bought: what the run's transfer set says about itself, empty where there is none.
        """
        path = self.folder / "state.pt"
        check_regular(path)
        if self.claimed and path.exists():
            self.state = read(path, **STATE)
            holding(self.state, path, **present(self.state, STATE_MORE))
        self.before = self.state or bought
        for then in filter(None, (self.state, bought)):
            self.compare(then)
        if self.state and self.extends(self.state):
            self.check_schedule(self.state)

    def compare(self, then: dict) -> None:
        """UsageError where the options or the source files of this run are not those of an earlier one."""
        free = {"epochs", "milestones"} if self.extends(then) else set()
        changed = [f"script {then['script']}"] if then.get("script", self.script) != self.script else []
        changed += differences(self.args, {k: v for k, v in then["options"].items() if k not in free})
        changed += source_changes(then["sources"])
        if changed:
            longer = " (--extend trains it further)" if [c.split()[0] for c in changed] == ["--epochs"] else ""
            hint = "give --tag NAME to run beside it, or --overwrite to start anew"
            raise UsageError(f"{self.folder} holds a run with {', '.join(changed)}{longer}; {hint}")

    def check_schedule(self, state: dict) -> None:
        """UsageError where the epochs that are done would have been others with the options of today."""
        if reason := self.args.fixed_length():
            raise UsageError(f"--extend: {reason}; give --tag NAME to run beside it")
        then = copy.copy(self.args)
        vars(then).update({k: v for k, v in state["options"].items() if k in ("epochs", "milestones")})
        for epoch in range(1, state["epoch"] + 1):
            now, was = lr_at(self.args, epoch), lr_at(then, epoch)
            if now != was:
                what = f"with --epochs {self.args.epochs} the learning rate of epoch {epoch} would have been {now:g}, and it was {was:g}"
                given = ",".join(map(str, milestones(then)))
                hint = f"give --milestones {given}" if then.schedule == "multistep" else "a cosine schedule cannot be extended"
                raise UsageError(f"--extend: {what} (its schedule depends on --epochs); {hint}, or --tag NAME to run beside it")

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
        if rank() or (not force and time.monotonic() - self.saved_at < SAVE_EVERY):
            return
        self.claim()
        kept = {"epoch": epoch, "objects": {name: o.state_dict() for name, o in objects.items()}}
        kept |= {"rng": rng_state(device), "rows": self.rows, "best": self.best, "seconds": self.seconds()}
        save(self.folder / "state.pt", kept | {"options": settings(self.args), "sources": self.sources, "data": self.data})
        self.forget_earlier()
        self.saved_epoch, self.saved_at = epoch, time.monotonic()

    def resume(self, done: int, until: int, objects: dict, device: torch.device) -> int:
        """Puts the state into `objects` if it was saved in epochs done + 1 to `until`; the number of epochs done, at most `until`."""
        state = self.state
        if not state or state["epoch"] <= done:
            return done
        if state["epoch"] > until:
            return until
        path = self.folder / "state.pt"
        try:
            for name, o in objects.items():
                restore(o, state["objects"][name], name)
            set_rng_state(state["rng"], device)
        except (KeyError, ValueError, TypeError, AttributeError, IndexError, RuntimeError) as e:
            raise UsageError(f"{path} does not fit this run ({type(e).__name__}: {str(e).splitlines()[0]}); --overwrite starts anew") from e
        self.rows, self.best, self.earlier, self.saved_epoch = state["rows"], state["best"], state["seconds"], state["epoch"]
        save_text(self.logs / "log.jsonl", "".join(json.dumps(row) + "\n" for row in self.rows))
        say(f"goes on after epoch {self.saved_epoch} of {self.args.epochs}")
        return self.saved_epoch

    # ---- log

    def log(self, row: dict) -> bool:
        """One epoch's numbers: a line of log.jsonl, a point of each of TensorBoard's curves. Whether its accuracy is the best so far."""
        self.claim()
        improved = "accuracy" in row and (self.best is None or row["accuracy"] > self.best)
        if improved:
            self.best = row["accuracy"]
        self.rows.append(row)
        path = self.logs / "log.jsonl"
        try:
            with open(path, "a" if len(self.rows) > 1 else "w") as f:
                f.write(json.dumps(row) + "\n")
        except OSError as e:
            raise RunError(f"could not write {path} ({e.strerror}); the same command goes on from the last saved epoch") from None
        for name, value in row.items():
            if not isinstance(value, list):
                self.board.scalar(name, value, row["epoch"])
        return improved

    def seconds(self) -> float:
        """How long the run has taken, with its earlier parts."""
        return self.earlier + time.monotonic() - self.began

    # ---- result

    def finish(self, nets: dict[str, nn.Module], meta: dict, summary: str, result: dict) -> dict:
        """Writes each net as NAME.pt with `meta`, then result.json, which says that the run is finished."""
        self.claim()
        for name, net in nets.items():
            self.save_net(name, net, meta)
        files = [path for name in (*nets, "best") if (path := self.folder / f"{name}.pt").exists()]
        result = {
            "line": f"{summary} -> {self.folder}",
            "script": self.script,
            "dataset": self.args.dataset,
            "seed": self.args.seed,
            "best": self.best,
            "files": {path.name: identity(path) for path in files},
            **result,
        }
        result |= {"seconds": round(self.seconds(), 1), "versions": versions()}
        result |= {"options": settings(self.args), "sources": self.sources, "data": self.data, "log": self.rows[-1] if self.rows else {}}
        self.board.close()
        if self.args.dry_run:
            say(f"{self.title}: a dry run went through; nothing is kept")
        else:
            save_json(self.folder / "result.json", result)
            self.forget_earlier()
            say(result["line"])
        self.lock.release(force=True)
        return result

    def save_net(self, name: str, net: nn.Module, meta: dict) -> None:
        """Saves a net's weights as NAME.pt, with `meta`."""
        save(self.folder / f"{name}.pt", {"model": {k: v.contiguous() for k, v in net.state_dict().items()}, "meta": meta})
