"""What GDA's parts are timed against.

    python benchmarks/alignment.py [--device cuda] [--teacher ResNet56] [--model ResNet20] [--batch 128] [--compile]

Rows: a step of KD with GDA's terms against the same without (the floor: both passes and the step); each term alone, forward and back,
as a share of that step; augmentation of whole batches on the device in images a second, against torchvision's transforms image by image
(on one core, of uint8 tensors, as a DataLoader's worker does it); and a few-shot evaluation, whose floor is one encoding an image.
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
from speed import timed

from common.datasets import load, novel
from common.fewshot.episodes import EpisodeOptions, episodic
from common.gda.alignment import aligned, fisher_rao, sinkhorn
from common.losses import kl
from common.models import build
from common.options import Base, parse

SHAPE, CLASSES = (3, 32, 32), 100


@dataclass
class Args(EpisodeOptions, Base):
    """What an evaluation is told."""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--teacher", default="ResNet56")
    parser.add_argument("--model", default="ResNet20")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="the nets and the Sinkhorn term")
    args = parser.parse_args()
    device = torch.device(args.device)
    print(f"{args.teacher} -> {args.model}, batch {args.batch}, {device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    torch.manual_seed(0)
    teacher, student = (build(n, CLASSES, SHAPE, device).to(memory_format=torch.channels_last) for n in (args.teacher, args.model))
    teacher.eval().requires_grad_(False)
    optimizer = torch.optim.SGD(student.parameters(), 1e-3, 0.9, fused=True)
    x = torch.randn(args.batch, *SHAPE, device=device).contiguous(memory_format=torch.channels_last)
    y = torch.randint(CLASSES, (args.batch,), device=device)

    def plain(x, t, y):
        s = student(x)
        return 2 * F.cross_entropy(s, y) + kl(s, t, 4.0)

    def both(x, t, y):
        s = student(x)
        return 2 * F.cross_entropy(s, y) + kl(s, t, 4.0) + sum(aligned(s, t, terms).values())

    terms, losses = parse(GDA.Args, ["--compile"] if args.compile else []), (both, plain)
    if args.compile:
        student.compile()
        teacher.compile()

    def step(loss):
        for _ in range(args.steps):
            with torch.no_grad():
                t = teacher(x)
            total = loss(x, t, y)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()

    def median(ours, floor):
        timed(ours, device), timed(floor, device)  # to warm up
        rounds = [(timed(ours, device), timed(floor, device)) for _ in range(args.rounds)]
        return *(statistics.median(side) for side in zip(*rounds, strict=True)), statistics.median(a / b for a, b in rounds)

    ours, floor, ratio = median(*(lambda f=f: step(f) for f in losses))
    print(f"a step of KD with GDA / without: {1e3 * ours / args.steps:.1f} ms / {1e3 * floor / args.steps:.1f} ms = {ratio:.3f}")
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
        took = statistics.median(timed(alone, device) for _ in range(args.rounds))
        print(f"{name} alone, forward and back: {1e3 * took / args.steps:.2f} ms, {took / floor:.1%} of the step without")

    images = torch.randint(256, (1024, *SHAPE), dtype=torch.uint8)
    crop = [v2.RandomResizedCrop(32), v2.RandomHorizontalFlip()]
    usual = {"resized_crop": v2.Compose(crop), "auto": v2.Compose([*crop, v2.AutoAugment()])}
    usual["crop_flip"] = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()])
    rest = v2.Compose([v2.ToDtype(torch.float, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)])
    data, threads = load("CIFAR100", device=device, imagined=CLASSES), torch.get_num_threads()
    for name, one in usual.items():
        resident = images.to(device)

        def batches(name=name, resident=resident):
            for part in resident.split(args.batch):
                data.view(part, name)

        def each(one=one):
            for image in images:
                rest(one(image))

        batches()
        mine = len(images) / statistics.median(timed(batches, device) for _ in range(args.rounds))
        torch.set_num_threads(1)
        theirs = len(images) / statistics.median(timed(each, device) for _ in range(3))
        torch.set_num_threads(threads)
        print(f"{name}: {mine:,.0f} images a second in batches, {theirs:,.0f} by torchvision image by image: {mine / theirs:.1f} times")

    few, net = novel("DigitsFS", "test", device=device), build("ConvNet4", 64, (1, 16, 16), device).eval()
    encoded, options = [], Args(test_episodes=8000)
    net.register_forward_hook(lambda m, inputs, output: encoded.append(len(inputs[0])))

    def encode():
        with torch.no_grad():
            return net(few.x.float(), feature=True)[1]

    encode()
    encoded.clear()
    features = encode()
    took = [timed(f, device) for f in (encode, lambda: episodic(features, few.y, options, 1, 8000))]
    usual = 8000 * 5 * 16 / len(few)
    print(f"8,000 episodes, {len(few):,} images: {encoded[0] / len(few):.2f} encodings an image (in each episode anew: {usual:.0f})")
    print(f"encoding {took[0]:.2f} s, episodes {took[1]:.2f} s")


if __name__ == "__main__":
    main()
