"""alignment: times the parts of GDA: its loss terms, augmentation on the device, and the few-shot evaluation.

    python benchmarks/alignment.py [--device cuda] [--teacher ResNet56] [--model ResNet20] [--batch 128] [--compile]

It prints:

    a step of KD with GDA's terms and without, and their ratio
    each term alone, forward and backward, as a fraction of a step without
    augmentation of whole batches in images per second, against torchvision's transforms on single uint8 images on one core (as in a
    DataLoader worker)
    a few-shot evaluation: encodings per image, and the times of encoding and of the episodes

The machine's floor of a time is the FLOPs of its convolutions and matrix products divided by the FLOPs per second of a large float32
matrix product; `copy` is the time of a copy of the bytes that these operations read and write.
"""

import argparse
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "project"))
import GDA
from floor import Machine, Work, timed, work_of

from common.datasets import load, novel
from common.devices import device_of
from common.fewshot.episodes import EpisodeOptions, episode_accuracies
from common.gda.alignment import alignment_terms, fisher_rao, sinkhorn
from common.losses import kl
from common.models import build
from common.options import Base, parse

SHAPE, CLASSES = (3, 32, 32), 100


@dataclass
class Args(EpisodeOptions, Base):
    """The options of a few-shot evaluation."""


def floor_of(machine: Machine, work: Work, seconds: float, steps: int = 1) -> str:
    """Returns the floor of a measured time of `steps` steps in milliseconds a step, the ratio to it, and the time of a copy, as a text."""
    floor, copy = machine.floor(work)
    return f"floor {1e3 * floor / steps:,.1f} ms, {seconds / floor:.2f} times the floor, copy {1e3 * copy / steps:,.1f} ms"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help="device: cpu, cuda or cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--teacher", default="ResNet56", help="architecture of the teacher (default: ResNet56)")
    parser.add_argument("--model", default="ResNet20", help="architecture of the student (default: ResNet20)")
    parser.add_argument("--batch", type=int, default=128, help="batch size in images (default: 128)")
    parser.add_argument("--steps", type=int, default=10, help="number of steps per measurement (default: 10)")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds (default: 5)")
    parser.add_argument("--compile", action="store_true", help="compile the networks and the Sinkhorn term with torch.compile")
    args = parser.parse_args()
    device = device_of(Base(device=args.device))
    print(f"{args.teacher} -> {args.model}, batch {args.batch}, {device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    torch.manual_seed(0)
    teacher, student = (build(n, CLASSES, SHAPE, device).to(memory_format=torch.channels_last) for n in (args.teacher, args.model))
    teacher.eval().requires_grad_(False)
    optimizer = torch.optim.SGD(student.parameters(), 1e-3, 0.9, fused=True)
    x = torch.randn(args.batch, *SHAPE, device=device).contiguous(memory_format=torch.channels_last)
    y = torch.randint(CLASSES, (args.batch,), device=device)

    def loss_without(x, t, y):
        s = student(x)
        return 2 * F.cross_entropy(s, y) + kl(s, t, 4.0)

    def loss_with(x, t, y):
        s = student(x)
        return 2 * F.cross_entropy(s, y) + kl(s, t, 4.0) + sum(alignment_terms(s, t, options).values())

    options, losses = parse(GDA.Args, ["--compile"] if args.compile else []), (loss_with, loss_without)

    def train(loss):
        for _ in range(args.steps):
            with torch.no_grad():
                t = teacher(x)
            total = loss(x, t, y)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()

    machine = Machine(device)
    print(machine)
    step_work = work_of(lambda: train(loss_without))  # before they are compiled
    if args.compile:
        student.compile()
        teacher.compile()

    def medians(first, second):  # the seconds of both, and the ratio
        timed(first, device), timed(second, device)  # warm-up
        rounds = [(timed(first, device), timed(second, device)) for _ in range(args.rounds)]
        return *(statistics.median(side) for side in zip(*rounds, strict=True)), statistics.median(a / b for a, b in rounds)

    with_gda, without, ratio = medians(*(lambda f=f: train(f) for f in losses))
    print(f"a step of KD with GDA / without: {1e3 * with_gda / args.steps:.1f} ms / {1e3 * without / args.steps:.1f} ms = {ratio:.3f}")
    print(f"a step without GDA: {floor_of(machine, step_work, without, args.steps)}")
    s, t = (torch.randn(args.batch, CLASSES, device=device) * 3 for _ in range(2))
    for name, term in (
        ("Fisher-Rao", fisher_rao),
        ("Sinkhorn", sinkhorn),
        ("Sinkhorn, 20 sweeps", lambda s, t: sinkhorn(s, t, tolerance=0)),
    ):

        def alone(term=term):
            for _ in range(args.steps):
                term(s.clone().requires_grad_(), t).backward()

        timed(alone, device)
        seconds = statistics.median(timed(alone, device) for _ in range(args.rounds))
        print(f"{name} alone, forward and backward: {1e3 * seconds / args.steps:.2f} ms, {seconds / without:.1%} of a step without GDA")

    images = torch.randint(256, (1024, *SHAPE), dtype=torch.uint8)
    crop = [v2.RandomResizedCrop(32), v2.RandomHorizontalFlip()]
    transforms = {"resized_crop": v2.Compose(crop), "auto": v2.Compose([*crop, v2.AutoAugment()])}
    transforms["crop_flip"] = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()])
    normalise = v2.Compose([v2.ToDtype(torch.float, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)])
    data, threads = load("CIFAR100", device=device, classes_without_data=CLASSES), torch.get_num_threads()
    for name, transform in transforms.items():
        resident = images.to(device)

        def batches(name=name, resident=resident):
            for part in resident.split(args.batch):
                data.view(part, name)

        def image_by_image(transform=transform):
            for image in images:
                normalise(transform(image))

        batches()
        in_batches = len(images) / statistics.median(timed(batches, device) for _ in range(args.rounds))
        torch.set_num_threads(1)
        single = len(images) / statistics.median(timed(image_by_image, device) for _ in range(3))
        torch.set_num_threads(threads)
        speeds = f"{in_batches:,.0f} images per second in batches, {single:,.0f} by torchvision image by image"
        print(f"{name}: {speeds}, ratio {in_batches / single:.1f}")

    few, net = novel("DigitsFS", "test", device=device), build("ConvNet4", 64, (1, 16, 16), device).eval()
    encoded, episode_options = [], Args(test_episodes=8000)
    net.register_forward_hook(lambda m, inputs, output: encoded.append(len(inputs[0])))

    def encode():
        with torch.no_grad():
            return net(few.x.float(), feature=True)[1]

    encode()
    encoded.clear()
    features = encode()
    parts = {"encoding": encode, "episodes": lambda: episode_accuracies(features, few.y, episode_options, 1, 8000)}
    per_episode = 8000 * 5 * 16 / len(few)
    encodings = f"{encoded[0] / len(few):.2f} encodings per image (with encoding in each episode: {per_episode:.0f})"
    print(f"8,000 episodes, {len(few):,} images: {encodings}")
    for name, part in parts.items():
        work = work_of(part)
        seconds = statistics.median(timed(part, device) for _ in range(args.rounds))
        print(f"{name} {1e3 * seconds:,.1f} ms, {floor_of(machine, work, seconds)}")


if __name__ == "__main__":
    main()
