"""synthesis: times AEAHL.py's steps against the bare passes that they cannot avoid.

    python benchmarks/synthesis.py [--device cuda] [--teacher WRN40_2] [--model WRN16_1] [--batch 256] [--steps 20] [--amp bf16]

For each variant of the attack it prints two rows:

    a step of the student      a view of the pool, the teacher's logits, the student's passes and optimizer step
    a step of a synthesis      forward and backward passes of generator, teacher and student, and optimizer step

A row has the median time of the script, that of the same passes on prepared images, and the median of the rounds' ratios. Both sides are
timed in turn in each round. Then follow the machine's floor, the ratio to it and the time of a copy, as in speed.py. The script also
prints how many augmented and normalised images the pool serves per second, and the time of an epoch of 400 student steps and 10 synthesis
steps with each attack, relative to an epoch without.
"""

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "project"))
import AEAHL
from floor import Machine, timed

from common import datasets
from common.aeahl.synthesis import Synthesiser
from common.devices import device_of
from common.losses import kl
from common.models import build
from common.options import Base, flags
from common.run import Run
from common.utils import autocast, run_folder, save

SHAPE, CLASSES, STEPS = (3, 32, 32), 10, 10  # STEPS: of a synthesis


class Prepared(Exception):
    """Stops a run before its first epoch."""


def prepared_run(args: argparse.Namespace, home: str, **options) -> tuple[Run, Synthesiser, Callable]:
    """Returns an AEAHL.py run before its first epoch, its Synthesiser and the student's loss."""
    found = {}

    def fit(run, batches, loss, **more):
        found.update(run=run, syn=batches, loss=loss)
        raise Prepared

    shared = {
        "dataset": "noise",
        "teacher": args.teacher,
        "model": args.model,
        "batch_size": args.batch,
        "augment": "crop_flip",
        "amp": args.amp,
    }
    places = {"checkpoints_dir": f"{home}/c", "logs_dir": f"{home}/l", "overwrite": True, "device": args.device, "eval": False}
    original, Run.fit = Run.fit, fit
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Prepared):
            AEAHL.main(flags(**shared | places | options))
    finally:
        Run.fit = original
    return found["run"], found["syn"], found["loss"]


def student_steps(run: Run, batches: Iterator[tuple[Tensor, ...]], loss: Callable, n: int) -> None:
    """Trains the student for n steps on `batches`."""
    optimizer = torch.optim.SGD(run.student.parameters(), 1e-3, 0.9, fused=True)
    run.student.train()
    for _ in range(n):
        with autocast(run.device, run.args.amp):
            total = sum(loss(*next(batches)).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()


def student_batches(syn: Synthesiser) -> Iterator[tuple[Tensor, ...]]:
    """Yields the student's batches without end, with the attack if there is one."""
    while True:
        yield from (syn.attack(x, t) if syn.attack else (x, t) for x, t in syn.batches())


def synthesise(run: Run, syn: Synthesiser) -> None:
    """Runs one synthesis of `STEPS` steps, whose images replace those of the pool."""
    syn.pool.n = 0
    with autocast(run.device, run.args.amp):
        syn.synthesise()


def bare_synthesis(run: Run, syn: Synthesiser, n: int) -> None:
    """Trains the generator for n steps through the frozen teacher and student, on prepared latents."""
    a, G = run.args, syn.inner
    z, y = syn.noise().requires_grad_(), torch.randint(CLASSES, (a.batch_size,), device=run.device)
    optimizer = syn.make_adam(G, a.lr_g, [{"params": [z], "lr": a.lr_z}])
    run.student.eval().requires_grad_(False)
    for _ in range(n):
        with autocast(run.device, run.args.amp):
            x = G(z)
            t, s = run.teacher.net(x), run.student(x)
            total = F.cross_entropy(t, y) + (t - s).float().square().mean()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    run.student.train().requires_grad_(True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help="device: cpu, cuda or cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--teacher", default="WRN40_2", help="architecture of the teacher (default: WRN40_2)")
    parser.add_argument("--model", default="WRN16_1", help="architecture of the student (default: WRN16_1)")
    parser.add_argument("--batch", type=int, default=256, help="batch size in images (default: 256)")
    parser.add_argument("--steps", type=int, default=20, help="number of student steps per measurement (default: 20)")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds (default: 3)")
    parser.add_argument("--amp", default="off", help="number format of forward passes: off (float32) or bf16 (default: off)")
    args = parser.parse_args()
    device = device_of(Base(device=args.device))
    noise = (torch.zeros(2, *SHAPE, dtype=torch.uint8), torch.arange(2))
    datasets.DATASETS["noise"] = datasets.Spec(CLASSES, 3, 32, lambda folder, train: noise, "nothing")
    setup = f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, amp {args.amp}"
    print(f"{args.teacher} -> {args.model}, batch {args.batch}, {setup}", flush=True)

    def print_row(name, script, bare, steps):  # returns the milliseconds of a step of the script
        timed(script, device)  # warm-up
        milliseconds, text = machine.compare(lambda: timed(script, device), bare, args.rounds, steps)
        print(f"{name:48}{text}", flush=True)
        return milliseconds

    machine = Machine(device, torch.bfloat16 if args.amp == "bf16" else torch.float32)
    print(machine, flush=True)
    with tempfile.TemporaryDirectory() as home:
        teacher = build(args.teacher, CLASSES, SHAPE)
        save(run_folder(f"{home}/c", "teacher", "noise", args.teacher, 0) / "teacher.pt", {"model": teacher.state_dict()})
        kinds = {"plain": {}, "attack": {"hard_loss": True}, "attack, swap": {"hard_loss": True, "swap": True}}
        kinds["attack as released"] = {"hard_loss": True, "aea_compat": True}
        step, synth = {}, {}
        for name, options in kinds.items():
            run, syn, loss = prepared_run(args, home, **options)
            syn.warmup = 0
            with autocast(run.device, run.args.amp):
                syn.synthesise()
            x = run.data.view(syn.pool.x)

            def prepared_batches(x=x, run=run):
                while True:
                    with torch.no_grad():
                        t = run.teacher.net(x)
                    yield x, t.float()

            bare_loss = lambda x, t, run=run: {"kl": kl(run.student(x), t, 20.0)}  # noqa: E731
            sides = (student_batches(syn), loss), (prepared_batches(), bare_loss)
            script, bare = (lambda b=b, f=f, run=run: student_steps(run, b, f, args.steps) for b, f in sides)
            step[name] = print_row(f"{name}: a step of the student / bare passes", script, bare, args.steps)

            sides = synthesise, lambda run, syn: bare_synthesis(run, syn, STEPS)
            script, bare = (lambda f=f, run=run, syn=syn: f(run, syn) for f in sides)
            synth[name] = print_row(f"{name}: a step of a synthesis / bare passes", script, bare, STEPS)
            if name == "plain":
                index = [torch.randint(args.batch, (args.batch,), device=device) for _ in range(50)]

                def view(run=run, syn=syn, index=index):
                    for i in index:
                        run.data.view(syn.pool.x[i], "crop_flip")

                view()
                print(f"the pool serves {50 * args.batch / timed(view, device):,.0f} images per second", flush=True)
        epochs = {name: 400 * step[name] + STEPS * synth[name] for name in kinds}
        for name in list(kinds)[1:]:
            ratio = epochs[name] / epochs["plain"]
            print(f"{name}: an epoch of 400 student and {STEPS} synthesis steps takes {ratio:.2f} times as long as plain")


if __name__ == "__main__":
    main()
