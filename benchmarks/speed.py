"""What is timed, and against what: each method's epoch against the floor of its own arithmetic, in one process.

    python benchmarks/speed.py [--device cuda] [--images 6000] [--steps 16] [--rounds 3] [--pairs 2000] [--only KD]

MNIST's shape (1 x 32 x 32), ResNet32 -> ResNet8, batch 128, all of it what the scripts do by default. Each row is the median of
the rounds' ratios; the two sides of a round are timed in turn, so that a busy machine weighs on both.

  KD ... DB3KD   an epoch on bought answers, with log and states, against forward, backward and SGD step of the same student on floats
                 that already lie on the device (AL: and its critic's; AM: on mixes, each made at its step)
  usual way      KD's epoch as research code has it: torchvision's data set, PIL transforms, a DataLoader, the teacher asked and the
                 loss read at every step; against the same floor
  DAFL, MEKD     a step against the passes that such a step cannot do without; MEKD with fresh noise, and with answers bought once
  AM scoring     --pairs pairs x 11 weights (the paper: 500,000), made and scored, against the student's bare passes on as many images
  DB3KD labels   boundary distances of 600 images: queries, and how many a call of the teacher serves on average
"""

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "project"))
import AL
import AM
import DAFL
import DB3KD
import DKD
import KD
import KN
import MEKD
import ML

from common import datasets
from common.blackbox import BlackBox
from common.db3kd.boundary import nearest_of_class
from common.db3kd.search import Search
from common.gan import Generator
from common.losses import kl
from common.models import build
from common.options import flags
from common.record import peak_mb
from common.utils import run_folder, save

SHAPE, CLASSES, BATCH = (1, 32, 32), 10, 128


def made_up(n):
    """A reader of noise images: n to train on, 16 to evaluate."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randint(0, 256, (n, 1, 32, 32), dtype=torch.uint8, generator=g), torch.arange(n) % CLASSES
    return lambda folder, train: (x, y) if train else (x[:16], y[:16])


def epoch_of(script, home, device, **options):
    """Seconds of a script's epoch, after one to warm up."""
    shared = {"dataset": "noise", "teacher": "ResNet32", "model": "ResNet8", "lamda": 1, "epochs": 3, "eval_every": 1000}
    places = {"checkpoints_dir": f"{home}/c", "logs_dir": f"{home}/l", "overwrite": True, "device": device.type}
    with contextlib.redirect_stdout(io.StringIO()):
        return script.main(flags(**shared | places | options))["epoch_seconds"]


def timed(f, device):
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    f()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def reset_peak(device):
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the most memory held begins anew


def net_of(name, device):
    return build(name, CLASSES, SHAPE, device).to(memory_format=torch.channels_last)


def trainer(net, device):
    """step(loss): backward and one step of SGD, as the scripts have it."""
    optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=5e-4, fused=True)

    def step(loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def bare_kd(x, t, device, critic=None):
    student = net_of("ResNet8", device)
    step, batches = trainer(student, device), [*zip(x.split(BATCH), t.split(BATCH), strict=True)]
    adam = torch.optim.Adam(critic.parameters(), 1e-2) if critic else None

    def epoch():
        for a, b in batches:
            s = student(a)
            if critic:
                adam.zero_grad()
                step(kl(s, b, 2.0) + sum(AL.adversarial(critic, s, b)))
                adam.step()
            else:
                step(kl(s, b, 5.0))

    return epoch


def usual_kd(images, teacher, device):
    parts = [torchvision.transforms.Resize(32), torchvision.transforms.ToTensor(), torchvision.transforms.Normalize(0.5, 0.5)]
    student, transform = net_of("ResNet8", device), torchvision.transforms.Compose(parts)

    class Files(torch.utils.data.Dataset):
        def __len__(self):
            return len(images)

        def __getitem__(self, i):
            return transform(Image.fromarray(images[i, 0].numpy()))

    step, loader = trainer(student, device), torch.utils.data.DataLoader(Files(), BATCH, shuffle=True, num_workers=2)

    def epoch():
        for x in loader:
            x = x.to(device)
            with torch.no_grad():
                t = teacher(x)
            loss = kl(student(x), t, 5.0)
            step(loss)
            loss.item()

    return epoch


def bare_mekd(G, teacher, device, steps, fresh):
    student, z = net_of("ResNet8", device), torch.randn(BATCH, CLASSES, device=device)
    step = trainer(student, device)

    @torch.no_grad()
    def make():
        x = G(z)
        t = teacher(x)
        return x, t, G(t / 5)

    ready = make()

    def epoch():
        for _ in range(steps):
            x, t, image = make() if fresh else ready
            s = student(x)
            step((G(s / 5) - image).abs().mean() + kl(s, t, 5.0))

    return epoch


def bare_dafl(G, teacher, device, steps):
    student, z = net_of("ResNet8", device), torch.randn(BATCH, G.latent, device=device)
    step, adam = trainer(student, device), torch.optim.Adam(G.parameters(), 1e-3)

    def epoch():
        for _ in range(steps):
            x = G(z)
            t = teacher(x)
            adam.zero_grad()
            step(F.cross_entropy(t, t.argmax(1)) + kl(student(x.detach()), t.detach()))
            adam.step()

    return epoch


def am_scoring(x, data, pairs, device):
    """(ours, floor): the scoring of pairs x 11 weights, and the student's passes on images that lie ready."""
    student, weights = net_of("ResNet8", device).eval(), torch.arange(0.3, 0.72, 0.04, device=device)
    index = AM.draw_pairs(len(x), pairs, torch.Generator().manual_seed(0)).to(device)
    batch = (4096 if x.is_cuda else 512) // len(weights) * len(weights)
    ready = data.view(x.repeat(batch // len(x) + 1, 1, 1, 1)[:batch])

    @torch.no_grad()
    def floor():
        for _ in range(len(index) * len(weights) // len(ready)):
            student(ready).amax(1)

    per_image = len(index) * len(weights) / (len(index) * len(weights) // len(ready) * len(ready))
    return lambda: timed(lambda: AM.least_sure(student, data.view, x, index, weights), device) / per_image, floor


def db3kd_labels(x, teacher, device, n=600):
    teacher, calls, bank = BlackBox(teacher, "logits"), [], x[: 4 * n].float() / 255
    logits = teacher(bank * 2 - 1)
    mean, std = logits.mean(0), logits.std(0)  # an untrained net says one class of all images, but for this

    def label(images):
        calls.append(len(images))
        return ((teacher(images * 2 - 1, "mixed") - mean) / std).argmax(1)

    classes = label(bank)
    began, before = time.perf_counter(), teacher.counts["queries"]
    calls.clear()
    rays = [v.flatten(0, 1) for v in nearest_of_class(bank[:n], classes[:n], bank, classes, CLASSES, 8)]
    search = Search(bank[:n], classes[:n], label, CLASSES)
    search.start(bank, *rays)
    search.rays(bank, *rays)
    asked, took = teacher.counts["queries"] - before, time.perf_counter() - began
    print(
        f"DB3KD labels of {n} images: {asked:,} queries in {len(calls)} calls, {asked / len(calls):,.0f} a call; {took:.1f} s", flush=True
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--steps", type=int, default=16, help="of MEKD and DAFL in an epoch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=2000, help="that AM scores; the paper has 500,000")
    parser.add_argument("--only", default="", help="rows whose name begins so")
    args = parser.parse_args()
    device, n = torch.device(args.device), args.steps
    datasets.DATASETS["noise"] = datasets.Spec(CLASSES, 1, 32, made_up(args.images), "nothing")
    data = datasets.load("noise", device=device)
    x, t = data.view(data.train.x), torch.randn(args.images, CLASSES, device=device)
    teacher = net_of("ResNet32", device).eval().requires_grad_(False)
    G = Generator(CLASSES, SHAPE).to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    print(f"{args.images} images, {n} steps, {args.rounds} rounds, {device}, {torch.get_num_threads()} threads, torch {torch.__version__}")

    def compare(name, ours, floor, unit=1):
        if not name.startswith(args.only):
            return
        floor()  # to warm up
        reset_peak(device)
        rounds = [(ours(), timed(floor, device)) for _ in range(args.rounds)]
        a, b = (1e3 * statistics.median(side) / unit for side in zip(*rounds, strict=True))
        ratio = statistics.median(x / y for x, y in rounds)
        print(f"{name:60} {a:10,.1f} ms {b:10,.1f} ms   {ratio:.2f}   peak {peak_mb(device):,} MiB", flush=True)

    with tempfile.TemporaryDirectory() as home:
        save(run_folder(f"{home}/c", "teacher", "noise", "ResNet32", 0) / "teacher.pt", {"model": teacher.state_dict()})
        save(run_folder(f"{home}/c", "DCGAN", "noise", "ResNet32", 0) / "generator.pt", {"model": G.state_dict()})

        methods = {KD: {}, ML: {}, AL: {}, DKD: {}, KN: {"budget": 1}, DB3KD: {"sr_mode": "sd"}}
        methods[AM] = {"first": args.images - 3 * 10, "queries": 10, "pairs": 100, "batch_size": BATCH, "epochs": 10}
        for script, options in methods.items():
            critic = AL.make_critic(CLASSES).to(device) if script is AL else None
            floor = bare_kd(x, t, device, critic)
            name = f"{script.__name__} epoch / bare student on ready floats"
            compare(name, lambda script=script, o=options: epoch_of(script, home, device, **o), floor)
        usual = usual_kd(data.train.x.cpu(), teacher, device)
        compare("the usual way / bare student on ready floats", lambda: timed(usual, device), bare_kd(x, t, device))
        bare = bare_dafl(Generator(100, SHAPE).to(device, memory_format=torch.channels_last), teacher, device, n)
        options = {"steps": n, "batch_size": BATCH, "response": "inside"}
        compare("DAFL step / bare passes", lambda: epoch_of(DAFL, home, device, **options), bare, n)
        for name, options in (("fresh noise", {}), ("bought once", {"queries": BATCH * n})):
            bare = bare_mekd(G, teacher, device, n, fresh=not options)
            compare(f"MEKD step, {name} / bare passes", lambda o=options: epoch_of(MEKD, home, device, steps=n, **o), bare, n)
    ours, floor = am_scoring(data.train.x, data, args.pairs, device)
    compare(f"AM scoring of {args.pairs:,} pairs x 11 / bare passes", ours, floor)
    if "DB3KD labels".startswith(args.only):
        db3kd_labels(data.train.x, teacher, device)


if __name__ == "__main__":
    main()
