"""speed: times the methods of MEKD's table against the bare arithmetic that they cannot avoid, in one process.

    python benchmarks/speed.py [--device cuda] [--images 6000] [--steps 16] [--rounds 3] [--pairs 2000] [--only KD]

Images of MNIST's shape (1 x 32 x 32), ResNet32 to ResNet8, batch size 128, the scripts' default options. A row prints the median time of
the script, that of the bare arithmetic, and the median of the rounds' ratios. Both sides are timed in turn in each round, so that other
jobs on the machine slow down both. The floor is the machine's: the FLOPs of the bare arithmetic (convolutions and matrix products) divided
by the FLOPs per second of a large matrix product, which is timed in each round, too. Its last number is the time of a copy of the bytes
that the same operations read and write; caches can make it shorter.

    KD ... DB3KD      an epoch on bought responses with log and states; bare: forward pass, backward pass and SGD step of the same student
                      on prepared data (AL: also those of the critic; AM: on mixes that are made at each step)
    LeNet5            an epoch of teacher.py with LeNet5 at 28 pixels, batch size 1024; bare: its passes on prepared data
    the usual way     an epoch of KD in usual research code: torchvision data set, PIL transforms, DataLoader; the teacher is queried and
                      the loss is read at every step; bare: as for KD
    DAFL, MEKD        a step; bare: the passes of the networks in it; MEKD with new images at every step, and with images bought once
    AM scoring        scoring of --pairs pairs x 11 weights (paper: 500,000 pairs); bare: forward passes of the student on as many images
    evaluation        accuracy and agreement of the student on 10 times as many test images; bare: its forward passes on prepared images
    DB3KD labels      boundary distances of 100 images: number of queries, and queries per call of the teacher; bare: the teacher's
                      forward passes in calls of the same sizes
"""

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
import torch.nn as nn
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor

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
import teacher as teacher_script
from floor import Machine, timed

from common import datasets
from common.blackbox import BlackBox
from common.db3kd.boundary import nearest_of_class
from common.db3kd.search import Search
from common.devices import device_of, peak_mb
from common.gan import Generator
from common.losses import kl
from common.measures import Audited, quality
from common.models import build
from common.options import Base, flags
from common.utils import run_folder, save

SHAPE, CLASSES, BATCH = (1, 32, 32), 10, 128


def noise_of(n: int, shape: tuple[int, int, int] = SHAPE) -> datasets.Spec:
    """Returns a data set of noise images: n training images and 16 test images."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=g), torch.arange(n) % CLASSES
    return datasets.Spec(CLASSES, shape[0], shape[1], lambda folder, train: (x, y) if train else (x[:16], y[:16]), "nothing")


def script_epoch(script: ModuleType, home: str, device: torch.device, **options) -> float:
    """Returns the median time in seconds of an epoch of a script."""
    shared = {"dataset": "noise", "model": "ResNet8", "lamda": 1, "epochs": 3, "eval_every": 1000}
    shared |= {} if script is teacher_script else {"teacher": "ResNet32"}
    places = {"checkpoints_dir": f"{home}/c", "logs_dir": f"{home}/l", "overwrite": True, "device": device}
    with contextlib.redirect_stdout(io.StringIO()):
        return script.main(flags(**shared | places | options))["epoch_seconds"]


def reset_peak(device: torch.device) -> None:
    """Resets the peak memory that `peak_mb` reads."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the peak of this process


def net_of(name: str, device: torch.device) -> nn.Module:
    """Returns a new network of this name for images of SHAPE and CLASSES classes."""
    return build(name, CLASSES, SHAPE, device).to(memory_format=torch.channels_last)


def trainer(net: nn.Module) -> Callable[[Tensor], None]:
    """Returns step(loss): a backward pass and a step of SGD, with the optimizer of the scripts."""
    optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=5e-4, fused=True)

    def step(loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def bare_kd(x: Tensor, t: Tensor, device: torch.device, critic: nn.Module | None = None) -> Callable[[], None]:
    """Returns a function that runs an epoch of KD (with a critic: of AL) on images x (N, C, H, W) and responses t (N, K)."""
    student = net_of("ResNet8", device)
    step, batches = trainer(student), [*zip(x.split(BATCH), t.split(BATCH), strict=True)]
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


def bare_lenet(images: Tensor, y: Tensor, device: torch.device) -> Callable[[], None]:
    """Returns a function that trains LeNet5 for an epoch on uint8 images (N, 1, H, W), of which it takes 28 x 28 pixels, with labels y."""
    net = build("LeNet5", CLASSES, (1, 28, 28), device).to(memory_format=torch.channels_last)
    step, x = trainer(net), images[:, :, :28, :28].float() / 127.5 - 1
    batches = [*zip(x.split(1024), y.split(1024), strict=True)]

    def epoch():
        for a, b in batches:
            step(F.cross_entropy(net(a), b))

    return epoch


def usual_kd(images: Tensor, teacher: nn.Module, device: torch.device) -> Callable[[], None]:
    """Returns a function that runs an epoch of KD in usual research code, on uint8 images (N, 1, H, W)."""
    parts = [torchvision.transforms.Resize(32), torchvision.transforms.ToTensor(), torchvision.transforms.Normalize(0.5, 0.5)]
    student, transform = net_of("ResNet8", device), torchvision.transforms.Compose(parts)

    class ImageDataset(torch.utils.data.Dataset):
        def __len__(self):
            return len(images)

        def __getitem__(self, i):
            return transform(Image.fromarray(images[i, 0].numpy()))

    step, loader = trainer(student), torch.utils.data.DataLoader(ImageDataset(), BATCH, shuffle=True, num_workers=2)

    def epoch():
        for x in loader:
            x = x.to(device)
            with torch.no_grad():
                t = teacher(x)
            loss = kl(student(x), t, 5.0)
            step(loss)
            loss.item()

    return epoch


def bare_mekd(G: nn.Module, teacher: nn.Module, device: torch.device, steps: int, fresh: bool) -> Callable[[], None]:
    """Returns a function that runs `steps` steps of MEKD. fresh: new images and responses at every step."""
    student, z = net_of("ResNet8", device), torch.randn(BATCH, CLASSES, device=device)
    step = trainer(student)

    @torch.no_grad()
    def make():
        x = G(z)
        t = teacher(x)
        return x, t, G(t / 5)

    prepared = make()

    def epoch():
        for _ in range(steps):
            x, t, image = make() if fresh else prepared
            s = student(x)
            step((G(s / 5) - image).abs().mean() + kl(s, t, 5.0))

    return epoch


def bare_dafl(G: nn.Module, teacher: nn.Module, device: torch.device, steps: int) -> Callable[[], None]:
    """Returns a function that runs `steps` steps of DAFL's generator and student."""
    student, z = net_of("ResNet8", device), torch.randn(BATCH, G.latent, device=device)
    step, adam = trainer(student), torch.optim.Adam(G.parameters(), 1e-3)

    def epoch():
        for _ in range(steps):
            x = G(z)
            t = teacher(x)
            adam.zero_grad()
            step(F.cross_entropy(t, t.argmax(1)) + kl(student(x.detach()), t.detach()))
            adam.step()

    return epoch


def am_scoring(x: Tensor, data: datasets.Data, pairs: int, device: torch.device) -> tuple[Callable[[], float], Callable[[], None]]:
    """Returns the timed scoring of `pairs` pairs x 11 weights, and the bare forward passes on as many prepared images."""
    student, weights = net_of("ResNet8", device).eval(), torch.arange(0.3, 0.72, 0.04, device=device)
    index = AM.draw_pairs(len(x), pairs, torch.Generator().manual_seed(0)).to(device)
    batch = (4096 if x.is_cuda else 512) // len(weights) * len(weights)
    prepared = data.view(x.repeat(batch // len(x) + 1, 1, 1, 1)[:batch])

    @torch.no_grad()
    def bare():
        for _ in range(len(index) * len(weights) // len(prepared)):
            student(prepared).amax(1)

    size_ratio = len(index) * len(weights) / (len(index) * len(weights) // len(prepared) * len(prepared))
    return lambda: timed(lambda: AM.least_confident(student, data.view, x, index, weights), device) / size_ratio, bare


def evaluation(x: Tensor, data: datasets.Data, device: torch.device) -> tuple[Callable[[], float], Callable[[], None]]:
    """Returns the timed evaluation of a student on the uint8 images x (N, C, H, W), and its bare forward passes on prepared images."""
    student, y = net_of("ResNet8", device).eval(), torch.arange(len(x), device=device) % CLASSES
    log_p = torch.randn(len(x), CLASSES, device=device).log_softmax(1)
    images, truth, prepared = datasets.Images(x, y), Audited(log_p, None, True, 0.0), data.view(x[:1000])

    @torch.no_grad()
    def bare():
        for part in x.split(1000):
            student(prepared[: len(part)])

    return lambda: timed(lambda: quality(student, images, data.view, truth), device), bare


def boundary_search(x: Tensor, teacher: nn.Module, n: int) -> tuple[Callable[[], None], BlackBox, list[int]]:
    """Returns the search for the boundary distances of n of the uint8 images x (N, C, H, W), what it asks, and the sizes of its calls."""
    ask, calls, bank = BlackBox(teacher, "logits"), [], x[: 4 * n].float() / 255
    logits = ask(bank * 2 - 1)
    mean, std = logits.mean(0), logits.std(0)  # standardised logits: an untrained network would assign all images to one class

    def label(images):
        calls.append(len(images))
        return ((ask(images * 2 - 1, "mixed") - mean) / std).argmax(1)

    classes = label(bank)

    def search():
        calls.clear()
        rays = [v.flatten(0, 1) for v in nearest_of_class(bank[:n], classes[:n], bank, classes, CLASSES, 8)]
        found = Search(bank[:n], classes[:n], label, CLASSES)
        found.start(bank, *rays)
        found.bisect_rays(bank, *rays)

    return search, ask, calls


def db3kd_labels(x: Tensor, teacher: nn.Module, device: torch.device, n: int = 100) -> tuple[Callable[[], float], Callable[[], None]]:
    """Returns the timed search for the boundary distances of n of the images x, and the teacher's bare forward passes in calls of the same
    sizes; prints the number of queries."""
    search, ask, calls = boundary_search(x, teacher, n)
    search()
    sizes, prepared = [*calls], torch.randn(max(calls), *SHAPE, device=device)
    text = f"{sum(sizes):,} queries in {len(sizes)} calls ({sum(sizes) / len(sizes):,.0f} per call)"
    print(f"DB3KD labels of {n} images: {text}", flush=True)

    @torch.no_grad()
    def bare():
        for size in sizes:
            for part in ask.asked.chunks(prepared[:size]):
                teacher(part)

    return lambda: timed(search, device), bare


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help="device: cpu, cuda or cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--images", type=int, default=6000, help="number of training images (default: 6000)")
    parser.add_argument("--steps", type=int, default=16, help="number of steps per epoch of MEKD and DAFL (default: 16)")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds (default: 3)")
    parser.add_argument("--pairs", type=int, default=2000, help="number of image pairs that AM scores (default: 2000; paper: 500,000)")
    parser.add_argument("--only", default="", help="first letters of the rows that are measured (default: all rows)")
    args = parser.parse_args()
    device, n = device_of(Base(device=args.device)), args.steps
    datasets.DATASETS["noise"] = noise_of(args.images)
    data = datasets.load("noise", device=device)
    x, t = data.view(data.train.x), torch.randn(args.images, CLASSES, device=device)
    teacher = net_of("ResNet32", device).eval().requires_grad_(False)
    G = Generator(CLASSES, SHAPE).to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    print(f"{args.images} images, {n} steps, {args.rounds} rounds, {device}, {torch.get_num_threads()} threads, torch {torch.__version__}")

    # script_time() returns seconds; bare() runs the bare arithmetic; unit: steps in it
    def compare(name, script_time, bare, unit=1, n_rounds=args.rounds):
        if not name.startswith(args.only):
            return
        reset_peak(device)
        _, text = machine.compare(script_time, bare, n_rounds, unit)
        print(f"{name:55}{text}   peak {peak_mb(device):,} MiB", flush=True)

    machine = Machine(device)
    print(machine, flush=True)

    with tempfile.TemporaryDirectory() as home:
        save(run_folder(f"{home}/c", "teacher", "noise", "ResNet32", 0) / "teacher.pt", {"model": teacher.state_dict()})
        save(run_folder(f"{home}/c", "DCGAN", "noise", "ResNet32", 0) / "generator.pt", {"model": G.state_dict()})

        methods = {KD: {}, ML: {}, AL: {}, DKD: {}, KN: {"budget": 1}, DB3KD: {"sr_mode": "sd"}}
        methods[AM] = {"first": args.images - 3 * 10, "queries": 10, "pairs": 100, "batch_size": BATCH, "epochs": 10}
        for script, options in methods.items():
            critic = AL.make_critic(CLASSES).to(device) if script is AL else None
            name = f"{script.__name__} epoch / bare student on prepared data"
            compare(name, lambda script=script, o=options: script_epoch(script, home, device, **o), bare_kd(x, t, device, critic))
        small = {"model": "LeNet5", "img_size": 28, "batch_size": 1024}
        lenet = bare_lenet(data.train.x, data.train.y, device)
        compare("LeNet5 epoch / bare LeNet5 on prepared data", lambda: script_epoch(teacher_script, home, device, **small), lenet)
        usual = usual_kd(data.train.x.cpu(), teacher, device)
        compare("the usual way / bare student on prepared data", lambda: timed(usual, device), bare_kd(x, t, device))
        bare = bare_dafl(Generator(100, SHAPE).to(device, memory_format=torch.channels_last), teacher, device, n)
        options = {"steps": n, "batch_size": BATCH, "response": "inside"}
        compare("DAFL step / bare passes", lambda: script_epoch(DAFL, home, device, **options), bare, n)
        for name, options in (("new images", {}), ("bought once", {"queries": BATCH * n})):
            bare = bare_mekd(G, teacher, device, n, fresh=not options)
            compare(f"MEKD step, {name} / bare passes", lambda o=options: script_epoch(MEKD, home, device, steps=n, **o), bare, n)
    compare(f"AM scoring of {args.pairs:,} pairs x 11 / bare passes", *am_scoring(data.train.x, data, args.pairs, device))
    tests = data.train.x.repeat(10, 1, 1, 1)
    compare(f"evaluation on {len(tests):,} images / bare passes", *evaluation(tests, data, device))
    if "DB3KD labels".startswith(args.only):
        compare("DB3KD labels / bare passes", *db3kd_labels(data.train.x, teacher, device), n_rounds=1)


if __name__ == "__main__":
    main()
