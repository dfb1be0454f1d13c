"""api: images per second through client and server, against the teacher's own forward pass; what the ledger takes and gives per second.

    python benchmarks/api.py [--teacher ResNet32] [--batch 128] [--images 2048] [--rounds 3]

Requests of --batch float32 images (3 x 32 x 32) go to a server process (serve.py, one thread), in JSON and as binary data, over one
and over eight connections. The floor of a row is the forward pass of the same images in the same batches in this process, with one
thread. Both are timed in turn in each round, and the ratio is the median of the rounds' ratios. Ledger: answers appended (calls of
--batch images, each written twice and on the disk before the next) and looked up per second. Last: KD.py on Digits with and without
--ledger.
"""

import argparse
import contextlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "project"))
from common.cli import PARENT

import KD
from floor import timed

from common.api.ledger import Ledger, key_of
from common.api.paid import Paid
from common.api.remote import Remote
from common.blackbox import Local
from common.models import build
from common.options import TeacherOptions, flags, parse
from common.utils import run_folder, save

SHAPE, CLASSES = (3, 32, 32), [str(k) for k in range(10)]
HALF = (torch.full((1, 1, 1, 1), 0.5),) * 2


@contextlib.contextmanager
def server(
    home: Path, teacher: str, batch: int, shape: tuple[int, int, int] = SHAPE, dataset: str = "CIFAR10"
) -> Iterator[tuple[str, int]]:
    """Yields the URL of a server process of an untrained teacher, and the process's number."""
    net = build(teacher, 10, shape)
    path = run_folder(home / "checkpoints", "teacher", dataset, teacher, 0) / "teacher.pt"
    save(path, {"model": net.state_dict()})
    options = {"dataset": dataset, "teacher": teacher, "port": 0, "response": "logits", "checkpoints_dir": home / "checkpoints"}
    command = [sys.executable, str(Path(KD.__file__).with_name("serve.py")), *flags(**options, max_batch=batch)]
    env = os.environ | {"OMP_NUM_THREADS": "1", PARENT: "1"}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    try:
        yield process.stdout.readline().split(" at ")[1].split(";")[0], process.pid
    finally:
        process.terminate()
        process.wait()


def row(name: str, bare: Callable, ours: Callable, n: int, rounds: int) -> None:
    """Prints images per second of both, timed in turn, and the ratio of their times."""
    times = [(timed(bare), timed(ours)) for _ in range(rounds)]
    rates = [n / statistics.median(t[i] for t in times) for i in (1, 0)]
    ratio = statistics.median(b / o for b, o in times)
    print(f"| {name} | {rates[0]:,.0f} | {rates[1]:,.0f} | {ratio:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="ResNet32")
    for name, default in (("batch", 128), ("images", 2048), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    x = torch.randn(args.images, *SHAPE, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    with tempfile.TemporaryDirectory() as folder:
        over_http(args, Path(folder), x)
        ledger(args, Path(folder))
        with_and_without(args, Path(folder))


def over_http(args: argparse.Namespace, home: Path, x: Tensor) -> None:
    """Prints the rows of JSON and binary requests."""
    print("| requests | images/s | forward pass alone, images/s | ratio |\n|---|---:|---:|---:|")
    with server(home, args.teacher, args.batch) as (url, _):
        local = Local(build(args.teacher, 10, SHAPE).to(memory_format=torch.channels_last), "logits", chunk=args.batch)
        for binary in (True, False):
            for connections in (1, 8):
                given = {"api_input": "float32", "api_batch": args.batch, "concurrency": connections, "response": "logits"}
                options = parse(TeacherOptions, flags(teacher=url, dataset="CIFAR10", ledger=False, **given))
                source = Remote(options, CLASSES, SHAPE, HALF, HALF)
                source.describe()
                source.protocol.binary, source.protocol.untried = binary, False
                asked = Paid(options, source, None, 10, "benchmark")
                asked.answer(x[: args.batch])
                name = f"{'binary' if binary else 'JSON'}, {connections} connection{'s' * (connections > 1)}"
                row(name, lambda: local.answer(x), lambda asked=asked: asked.answer(x), len(x), args.rounds)


def ledger(args: argparse.Namespace, home: Path) -> None:
    """Prints answers appended and looked up per second."""
    kept = Ledger(home / "ledger.sqlite", {"teacher": "t", "identity": "i", "response": "soft", "classes": 10})
    calls = [[key_of(b"%d" % i) for i in range(at, at + args.batch)] for at in range(0, 200 * args.batch, args.batch)]
    answers = np.full((args.batch, 10), 0.1, np.float32)

    def append() -> None:
        for keys in calls:
            kept.end(kept.intend("request", "run", "train", keys, 1, 0.0), "answered", answers, [], keys)

    n = 200 * args.batch
    print(f"\nledger: {n / timed(append):,.0f} answers/s appended", end="")
    print(f", {n / timed(lambda: [kept.find(keys) for keys in calls]):,.0f} answers/s looked up")
    image = bytes(4 * 3 * 32 * 32)
    print(f"hash: {20_000 / timed(lambda: [key_of(image) for _ in range(20_000)]):,.0f} images/s of 3 x 32 x 32 float32")


def with_and_without(args: argparse.Namespace, home: Path) -> None:
    """Prints the time of an epoch of KD.py that asks at each step, without and with --ledger (all answers new)."""
    net = build("ResNet20", 10, (1, 8, 8))
    path = run_folder(home / "checkpoints", "teacher", "Digits", "ResNet20", 0) / "teacher.pt"
    save(path, {"model": net.state_dict()})
    times = {False: [], True: []}
    for number in range(args.rounds):
        for kept in times:
            options = {"dataset": "Digits", "teacher": "ResNet20", "model": "ResNet8", "lamda": 1, "augment": "crop_flip", "epochs": 4}
            options |= {"checkpoints_dir": home / "checkpoints", "logs_dir": home / "logs", "tag": f"{kept}{number}", "seed": number}
            with contextlib.redirect_stdout(io.StringIO()):
                times[kept].append(KD.main(flags(**options, ledger=kept, audit="none"))["epoch_seconds"])
    plain, kept = (statistics.median(t) for t in times.values())
    ratio = statistics.median(k / p for p, k in zip(*times.values(), strict=True))
    print(f"\nKD.py on Digits, an epoch of 1,297 queries: {plain:.2f} s, with --ledger {kept:.2f} s, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
