"""What data-free distillation is timed against: the passes that its steps cannot do without.

    python benchmarks/synthesis.py [--device cuda] [--teacher WRN40_2] [--model WRN16_1] [--batch 256] [--steps 20] [--amp bf16]

Rows: a step of the student (a view of the pool, the teacher's answer, the student's passes and step) and a step of a synthesis
(generator, teacher, student, forward and backward), each against the same passes on images that lie ready, and nothing else: the median of
the rounds' ratios, both sides of a round timed in turn. Then what the attack adds to an epoch of 400 student's and 10 synthesis steps,
and how many images a second the pool serves, augmented and normalised.
"""

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "project"))
import AEAHL
from speed import timed

from common import datasets
from common.losses import kl
from common.models import build
from common.options import flags
from common.run import Run
from common.utils import run_folder, save

SHAPE, CLASSES, K = (3, 32, 32), 10, 10


class Measured(Exception):
    """The run is ready, and is not to go on."""


def ready(args, home, **options):
    """(run, its Synthesiser, its loss) of an AEAHL.py run that stands before its first epoch."""
    seen = {}

    def fit(run, batches, loss, **more):
        seen.update(run=run, syn=batches, loss=loss)
        raise Measured

    shared = {
        "dataset": "noise",
        "teacher": args.teacher,
        "model": args.model,
        "batch_size": args.batch,
        "augment": "crop_flip",
        "amp": args.amp,
    }
    places = {"checkpoints_dir": f"{home}/c", "logs_dir": f"{home}/l", "overwrite": True, "device": args.device, "eval": False}
    usual, Run.fit = Run.fit, fit
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Measured):
            AEAHL.main(flags(**shared | places | options))
    finally:
        Run.fit = usual
    return seen["run"], seen["syn"], seen["loss"]


def student_steps(run, batches, loss, n):
    """n steps of the student on what `batches` gives."""
    optimizer = torch.optim.SGD(run.student.parameters(), 1e-3, 0.9, fused=True)
    run.student.train()
    for _ in range(n):
        with run.autocast():
            total = sum(loss(*next(batches)).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()


def served(syn):
    """The student's batches without end, as an epoch gives them."""
    while True:
        yield from (syn.attack(x, t) if syn.attack else (x, t) for x, t in syn.batches())


def bare_synthesis(run, syn, n):
    """n steps of the generator with the teacher's and the student's passes, frozen, on latents that lie ready."""
    a, G = run.args, syn.moved
    z, y = syn.noise().requires_grad_(), torch.randint(CLASSES, (a.batch_size,), device=run.device)
    optimizer = syn.adam(G, a.lr_g, [{"params": [z], "lr": a.lr_z}])
    run.student.eval().requires_grad_(False)
    for _ in range(n):
        with run.autocast():
            x = G(z)
            t, s = run.teacher.net(x), run.student(x)
            total = F.cross_entropy(t, y) + (t - s).float().square().mean()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    run.student.train().requires_grad_(True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--teacher", default="WRN40_2")
    parser.add_argument("--model", default="WRN16_1")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20, help="of the student in a measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--amp", default="off")
    args = parser.parse_args()
    device = torch.device(args.device)
    noise = (torch.zeros(2, *SHAPE, dtype=torch.uint8), torch.arange(2))
    datasets.DATASETS["noise"] = datasets.Spec(CLASSES, 3, 32, lambda folder, train: noise, "nothing")
    where = f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, amp {args.amp}"
    print(f"{args.teacher} -> {args.model}, batch {args.batch}, {where}", flush=True)

    def row(name, ours, floor, n, m=None):
        timed(floor, device), timed(ours, device)  # to warm up
        rounds = [(timed(ours, device) / n, timed(floor, device) / (m or n)) for _ in range(args.rounds)]
        a, b = (1e3 * statistics.median(side) for side in zip(*rounds, strict=True))
        print(f"{name:48} {a:10,.1f} ms {b:10,.1f} ms   {statistics.median(x / y for x, y in rounds):.2f}", flush=True)
        return a

    with tempfile.TemporaryDirectory() as home:
        teacher = build(args.teacher, CLASSES, SHAPE)
        save(run_folder(f"{home}/c", "teacher", "noise", args.teacher, 0) / "teacher.pt", {"model": teacher.state_dict()})
        kinds = {"plain": {}, "attack": {"hard_loss": True}, "attack, swap": {"hard_loss": True, "swap": True}}
        kinds["attack as released"] = {"hard_loss": True, "aea_compat": True}
        step, synth = {}, {}
        for name, options in kinds.items():
            run, syn, loss = ready(args, home, **options)
            syn.warmup = 0
            with run.autocast():
                syn.synthesise()
            x = run.data.view(syn.pool.x)

            def bare(x=x, run=run):
                while True:
                    with torch.no_grad():
                        t = run.teacher.net(x)
                    yield x, t.float()

            soft = lambda x, t, run=run: {"kl": kl(run.student(x), t, 20.0)}  # noqa: E731
            ours, floor = (lambda b=b, f=f, run=run: student_steps(run, b, f, args.steps) for b, f in ((served(syn), loss), (bare(), soft)))
            step[name] = row(f"{name}: a step of the student / bare passes", ours, floor, args.steps)

            def made(run=run, syn=syn):
                syn.pool.n = 0
                with run.autocast():
                    syn.synthesise()

            synth[name] = row(f"{name}: a step of a synthesis / bare passes", made, lambda run=run, syn=syn: bare_synthesis(run, syn, K), K)
            if name == "plain":
                index = [torch.randint(args.batch, (args.batch,), device=device) for _ in range(50)]

                def view(run=run, syn=syn, index=index):
                    for i in index:
                        run.data.view(syn.pool.x[i], "crop_flip")

                view()
                print(f"the pool serves {50 * args.batch / timed(view, device):,.0f} images a second", flush=True)
        epochs = {name: 400 * step[name] + K * synth[name] for name in kinds}
        for name in list(kinds)[1:]:
            print(f"{name}: an epoch of 400 and {K} steps takes {epochs[name] / epochs['plain']:.2f} of one without")


if __name__ == "__main__":
    main()
