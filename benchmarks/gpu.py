"""gpu: measures in at most --minutes how fast one GPU trains, and how many runs should share it.

    python benchmarks/gpu.py [--minutes 9] [--out tables/measured/gpu-speed.csv]
    python benchmarks/gpu.py --device cpu --minutes 1 --out /tmp/speed.csv     tiny networks: tries the program without a GPU

It needs no data and no network: images are noise, teachers have random weights. It measures the scripts themselves, with log and states:

    KD        ResNet32 -> ResNet8, 6,000 images of 1 x 32 x 32, batch 128, responses bought once
    KD aug.   ResNet34 -> ResNet18, 5,000 images of 3 x 32 x 32, cropped and mirrored, batch 128, the teacher is queried at each step
    MEKD      ResNet32 -> ResNet8, batch 128, new images of the generator at each step
    AEAHL     a step of a synthesis: WRN40_2 -> WRN16_1, 3 x 32 x 32, batch 256
    DB3KD     boundary search for 600 images, teacher ResNet32; a step is a call of the teacher, its batch the mean number of queries
    KD jobs   KD in 1, 2, 4 and 8 processes at a time, all their steps together, without and with MPS (NVIDIA's multi-process service)

in float32 and in bfloat16 (--amp bf16); all but the last two also with --compile; KD jobs in float32 only. The share of peak is the FLOPs
of convolutions and matrix products in a step, times steps per second, divided by the FLOPs per second of a large matrix product in the same
format (float32: TF32, as cuDNN's convolutions). Parts for which no time is left are named and left out. The last output is a table; --out
gets the same rows as CSV.
"""

import argparse
import contextlib
import csv
import importlib.util
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType, SimpleNamespace
from unittest import mock

BEGAN = time.monotonic()  # before the slow imports
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "project"))
if importlib.util.find_spec("orjson") is None:  # only servers of teachers need it
    sys.modules["orjson"] = ModuleType("orjson")

import KD
import MEKD
import speed
import synthesis
import torch
from floor import Machine, timed, work_of

from common import datasets
from common.devices import device_name, device_of, peak_mb, versions
from common.gan import Generator
from common.models import build
from common.options import Base
from common.runner import threads_of
from common.steps import Recorder
from common.utils import autocast, run_folder, save, save_text

FORMATS = {"float32": torch.float32, "bf16": torch.bfloat16}
COLUMNS = ["what", "net", "batch", "format", "compile", "jobs", "mps", "steps_per_second", "share_of_peak", "peak_mb"]
COLUMNS += ["device", "versions", "commit"]
JOB_SECONDS = 5.0  # of training in a measurement of several runs
JOBS_LIMIT = 75.0  # seconds after which processes that train at the same time are ended
MARGIN = 20.0  # seconds for the table, the file and the end of processes
NEEDED = {False: 10.0, True: 45.0}  # seconds below which a part (True: one that compiles) is not begun


@dataclass(frozen=True)
class Sizes:
    """What is measured. epochs: of a measurement of KD and MEKD, the median of which counts; a third for KD aug."""

    images: int = 6000
    batch: int = 128
    epochs: int = 15
    steps: int = 20
    kd: tuple[str, str] = ("ResNet32", "ResNet8")
    augmented: tuple[str, str] = ("ResNet34", "ResNet18")
    aeahl: tuple[str, str] = ("WRN40_2", "WRN16_1")
    aeahl_batch: int = 256
    searched: int = 600
    jobs: tuple[int, ...] = (1, 2, 4, 8)


TINY = Sizes(24, 8, 3, 1, ("ResNet8", "ResNet8"), ("ResNet8", "ResNet8"), ("ResNet8", "ResNet8"), 2, 1, (1, 2))


class OutOfTime(BaseException):
    """The minutes are over."""


def out_of_time(number: int, frame: FrameType | None) -> None:
    """The handler of the alarm at the end of the minutes."""
    raise OutOfTime


class Bench:
    """Measures one part after the other until the minutes are over. rows: of the table; left_out: what was not measured, and why."""

    def __init__(self, device: torch.device, sizes: Sizes, home: str, ends: float):
        self.device, self.sizes, self.home, self.ends, self.rows, self.left_out = device, sizes, home, ends, [], []
        self.flops, self.seconds = {}, 0.1  # FLOPs of a step by part; seconds of an epoch of KD
        self.peak = {name: Machine(device, dtype).measure().flops for name, dtype in FORMATS.items()}
        for name, flops in self.peak.items():
            print(f"matrix product, {name}: {flops / 1e9:,.0f} GFLOP/s", flush=True)
        datasets.DATASETS |= {"noise": speed.noise_of(sizes.images), "noise3": speed.noise_of(sizes.images * 5 // 6, synthesis.SHAPE)}
        nets = {("noise", sizes.kd[0]), ("noise3", sizes.augmented[0]), ("noise3", sizes.aeahl[0])}
        for dataset, name in sorted(nets):
            net = build(name, speed.CLASSES, speed.SHAPE if dataset == "noise" else synthesis.SHAPE)
            save(run_folder(f"{home}/c", "teacher", dataset, name, 0) / "teacher.pt", {"model": net.state_dict()})
        generator = Generator(speed.CLASSES, speed.SHAPE).state_dict()
        save(run_folder(f"{home}/c", "DCGAN", "noise", sizes.kd[0], 0) / "generator.pt", {"model": generator})

    def measure(self, name: str, compiled: bool, part: Callable[[], None]) -> None:
        """Measures a part, if there is time; notes why, where that fails."""
        if time.monotonic() + NEEDED[compiled] > self.ends:
            self.left_out.append(f"{name} (no time left)")
            return
        try:
            part()
        except OutOfTime:
            self.left_out.append(f"{name} (stopped: no time left)")
        except Exception as e:
            self.left_out.append(f"{name} ({type(e).__name__}: {(str(e).splitlines() or [''])[0][:200]})")

    def note(
        self, what: str, net: str, batch: int, form: str, compiled: bool, rate: float, peak: int | None, jobs: int = 1, **more
    ) -> None:
        """Adds a row, and prints it. rate: steps per second. peak: MiB."""
        share = self.flops[what.removesuffix(" jobs")] * rate / self.peak[form]
        row = {"what": what, "net": net, "batch": batch, "format": form, "compile": compiled, "jobs": jobs, "mps": False} | more
        self.rows.append(row | {"steps_per_second": float(f"{rate:.4g}"), "share_of_peak": round(share, 4), "peak_mb": peak})
        print(line_of(self.rows[-1]), flush=True)

    # ---- the parts

    def script(self, what: str, script: ModuleType, pair: tuple[str, str], length: int, epochs: int, **options) -> Callable:
        """Returns a part that trains with a script for a number of epochs, `length` steps each: part(format, compiled)."""
        options |= {"teacher": pair[0], "model": pair[1], "batch_size": self.sizes.batch}

        def epoch(epochs: int, **more) -> float:
            return speed.script_epoch(script, self.home, self.device, **options | {"epochs": epochs, "eval_every": 1000} | more)

        def part(form: str, compiled: bool) -> None:
            if what not in self.flops:
                one, two = (work_of(lambda n=n: epoch(n)).flops for n in (1, 2))
                self.flops[what] = (two - one) / length
            speed.reset_peak(self.device)
            refused = lambda recorder, why: self.left_out.append(f"{what}, {form}: its steps as a CUDA graph ({why})")  # noqa: E731
            with mock.patch.object(Recorder, "refuse", refused):
                seconds = epoch(epochs, amp="bf16" if form == "bf16" else "off", compile=compiled)
            if what == "KD" and not compiled:
                self.seconds = seconds
            self.note(what, " -> ".join(pair), self.sizes.batch, form, compiled, length / seconds, peak_mb(self.device))

        return part

    def synthesis(self, form: str, compiled: bool) -> None:
        """A part: steps of AEAHL's synthesis, of which `compiled` compiles the student."""
        s = self.sizes
        given = SimpleNamespace(teacher=s.aeahl[0], model=s.aeahl[1], batch=s.aeahl_batch, device=str(self.device))
        given.amp = "bf16" if form == "bf16" else "off"
        run, syn, _ = synthesis.prepared_run(given, self.home, dataset="noise3", compile=compiled, tag=f"{form}{compiled}")
        syn.warmup = 0
        once = lambda: synthesis.synthesise(run, syn)  # noqa: E731
        if "AEAHL" not in self.flops:
            self.flops["AEAHL"] = work_of(once).flops / synthesis.STEPS
        once()
        speed.reset_peak(self.device)
        seconds = min(timed(once, self.device) for _ in range(3))
        self.note("AEAHL", " -> ".join(s.aeahl), s.aeahl_batch, form, compiled, synthesis.STEPS / seconds, peak_mb(self.device))

    def search(self, form: str, compiled: bool) -> None:
        """A part: a boundary search."""
        x = datasets.load("noise", device=self.device).train.x
        teacher = speed.net_of(self.sizes.kd[0], self.device)
        search, _, calls = speed.boundary_search(x, teacher, self.sizes.searched)
        with autocast(self.device, "bf16" if form == "bf16" else "off"):
            flops = work_of(search).flops  # and warm-up; the number of queries depends on the rounding of the format
            self.flops["DB3KD"] = flops / len(calls)
            speed.reset_peak(self.device)
            seconds = timed(search, self.device)
        batch = round(sum(calls) / len(calls))
        self.note("DB3KD", self.sizes.kd[0], batch, form, compiled, len(calls) / seconds, peak_mb(self.device))

    def jobs(self, n: int, mps: dict[str, str]) -> None:
        """A part: KD in n processes at a time. mps: the environment of the service, empty without."""
        epochs = max(5, min(200, math.ceil(JOB_SECONDS / self.seconds / n)))
        command = [sys.executable, "-u", __file__, "--device", str(self.device), "--worker", str(epochs), "--home", self.home]
        command += ["--tiny"] * (self.sizes is TINY)
        env = os.environ | mps | {"OMP_NUM_THREADS": threads_of(n)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        workers = [subprocess.Popen([*command, "--number", str(i)], env=env, text=True, **pipes) for i in range(n)]
        limit = threading.Timer(JOBS_LIMIT, lambda: [worker.kill() for worker in workers])
        limit.start()
        try:
            for worker in workers:  # all are ready before one begins
                line_from(worker)
            for worker in workers:
                worker.stdin.write("go\n")
                worker.stdin.flush()
            found = [json.loads(line_from(worker)) for worker in workers]
        finally:
            limit.cancel()
            for worker in workers:
                worker.kill()
                worker.communicate()
        steps = steps_of(self.sizes.images, self.sizes.batch)
        rate, peak = sum(steps / f["seconds"] for f in found), max(f["peak_mb"] for f in found)
        self.note("KD jobs", " -> ".join(self.sizes.kd), self.sizes.batch, "float32", False, rate, peak, n, mps=bool(mps))

    def run(self) -> None:
        """Measures everything, in this order: eager, KD compiled, several runs, the rest compiled."""
        s = self.sizes
        several = {"dataset": "noise3", "augment": "crop_flip", "lamda": 1}
        parts = {
            "KD": self.script("KD", KD, s.kd, steps_of(s.images, s.batch), s.epochs, lamda=1),
            "KD aug.": self.script("KD aug.", KD, s.augmented, steps_of(s.images * 5 // 6, s.batch), s.epochs // 3, **several),
            "MEKD": self.script("MEKD", MEKD, s.kd, s.steps, s.epochs, steps=s.steps),
            "AEAHL": self.synthesis,
            "DB3KD": self.search,
        }

        def measure(names: Sequence[str], compiled: bool) -> None:
            for what in names:
                for form in FORMATS:
                    name = f"{what}, {form}{', compiled' * compiled}"
                    self.measure(name, compiled, lambda what=what, form=form: parts[what](form, compiled))

        measure([*parts], False)
        measure(["KD"], True)
        with mps_service(self.left_out if self.device.type == "cuda" else []) as mps:
            for service in ({}, *filter(None, [mps])):
                for n in s.jobs:
                    self.measure(f"KD jobs {n}{', MPS' * bool(service)}", False, lambda n=n, e=service: self.jobs(n, e))
        measure(["KD aug.", "MEKD", "AEAHL"], True)


def line_from(worker: subprocess.Popen) -> str:
    """Returns the next line of a process's output; RuntimeError, with the last line of its errors, where it has ended."""
    if not (line := worker.stdout.readline()):
        raise RuntimeError((worker.stderr.read().strip().splitlines() or ["a process ended without a word, or took too long"])[-1])
    return line


def steps_of(images: int, batch: int) -> int:
    """Returns the number of steps of an epoch."""
    return images // batch + (images % batch > 1)


@contextlib.contextmanager
def mps_service(left_out: list[str]) -> Iterator[dict[str, str]]:
    """A block with a multi-process service of this user; gives its environment, empty where there is none (left_out then says why)."""
    program = shutil.which("nvidia-cuda-mps-control")
    if not program:
        left_out.append("KD jobs with MPS (nvidia-cuda-mps-control is not installed)")
        yield {}
        return
    with tempfile.TemporaryDirectory() as folder:
        places = {"CUDA_MPS_PIPE_DIRECTORY": f"{folder}/pipe", "CUDA_MPS_LOG_DIRECTORY": f"{folder}/log"}
        for place in places.values():
            Path(place).mkdir()
        begun = subprocess.run([program, "-d"], env=os.environ | places, capture_output=True, text=True)
        if begun.returncode:
            left_out.append(f"KD jobs with MPS (the service did not start: {(begun.stderr or begun.stdout).strip()[:200]})")
        try:
            yield {} if begun.returncode else places
        finally:
            if not begun.returncode:
                subprocess.run([program], input="quit\n", env=os.environ | places, capture_output=True, text=True, timeout=10)


def work(device: torch.device, sizes: Sizes, home: str, epochs: int, number: int) -> None:
    """A process of `jobs`: is ready, waits for a line, trains, and prints the seconds of an epoch."""
    datasets.DATASETS["noise"] = speed.noise_of(sizes.images)
    given = {"teacher": sizes.kd[0], "model": sizes.kd[1], "batch_size": sizes.batch, "lamda": 1, "tag": f"job{number}"}
    speed.script_epoch(KD, home, device, **given, epochs=1)
    print("ready", flush=True)
    sys.stdin.readline()
    speed.reset_peak(device)
    seconds = speed.script_epoch(KD, home, device, **given, epochs=epochs)
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb(device)}), flush=True)


def line_of(row: dict) -> str:
    """Returns a row as a line of the printed table."""
    form = f"{row['format']}{', compiled' * row['compile']}{', MPS' * row['mps']}"
    numbers = f"{row['steps_per_second']:10,.1f} steps/s  {row['share_of_peak']:7.2%}  {row['peak_mb'] or 0:7,} MiB"
    return f"{row['what']:8} {row['net']:20} batch {row['batch']:5,}  jobs {row['jobs']}  {form:18} {numbers}"


def report(bench: Bench, out: str, commit: str) -> None:
    """Prints the table, what is missing, and the best number of runs at a time; writes the rows as CSV."""
    known = versions()
    commit = commit or known.pop("commit")
    machine = {"device": device_name(bench.device), "versions": " ".join(f"{k} {v}" for k, v in known.items() if k != "commit")}
    print(f"\n{machine['device']}; {machine['versions']}; commit {commit}")
    for row in bench.rows:
        print(line_of(row))
    if several := [r for r in bench.rows if r["what"] == "KD jobs"]:
        best, one = max(several, key=lambda r: r["steps_per_second"]), several[0]["steps_per_second"]
        hourly = best["steps_per_second"] * 3600 / (240 * steps_of(bench.sizes.images, bench.sizes.batch))
        how = f"--jobs {best['jobs']}{' with MPS' * best['mps']}"
        print(f"best: {how}, {hourly:,.0f} KD runs of 240 epochs per hour, {best['steps_per_second'] / one:.2f} times --jobs 1")
    for name in bench.left_out:
        print(f"not measured: {name}")
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row | machine | {"commit": commit} for row in bench.rows)
    if out:
        save_text(Path(out), text.getvalue())


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="device: cuda, cuda:1 or cpu (default: cuda)")
    parser.add_argument("--minutes", type=float, default=9.0, help="most minutes that it takes (default: 9)")
    parser.add_argument("--out", default="", help="CSV file (default: tables/measured/gpu-speed.csv on a GPU, none on a CPU)")
    parser.add_argument("--commit", default="", help="commit in the CSV file, where there is no git repository (default: the repository's)")
    parser.add_argument("--tiny", action="store_true", help="tiny networks and few images (default on a CPU)")
    for name in ("worker", "home", "number"):
        parser.add_argument(f"--{name}", default="", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> Bench | None:
    args = parsed(argv)
    if torch.device(args.device).type == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu.py: there is no GPU here; --device cpu tries the program")
    device = device_of(Base(device=args.device))  # cuDNN chooses its algorithms as in the scripts
    sizes = TINY if args.tiny or device.type == "cpu" else Sizes()
    if args.worker:
        return work(device, sizes, args.home, int(args.worker), int(args.number))
    ends = BEGAN + max(1.0, 60 * args.minutes - MARGIN)
    before = signal.signal(signal.SIGALRM, out_of_time)
    with tempfile.TemporaryDirectory() as home:
        bench = Bench(device, sizes, home, ends)
        signal.setitimer(signal.ITIMER_REAL, max(0.1, ends - time.monotonic()))
        try:
            bench.run()
        except OutOfTime:  # between two parts
            bench.left_out.append("the rest (no time left)")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    report(bench, args.out or str(ROOT / "tables/measured/gpu-speed.csv") * (device.type == "cuda"), args.commit)
    return bench


if __name__ == "__main__":
    main()
