"""ZSDB3KD: trains the student without data, from a teacher that returns classes only.
Noise is moved away from the decision boundaries. The student learns these pseudo samples with soft labels as in DB3KD.py.
Wang 2021, https://arxiv.org/abs/2106.03310

    python project/ZSDB3KD.py --dataset MNIST --img_size 28 --teacher LeNet5 --model LeNet5_half
    python project/ZSDB3KD.py ... --model LeNet5_fifth --tag fifth --transfer .../transfer.safetensors     another student, no new query

Differs:
  - The released code stops at the pseudo samples. Here labels and student follow.
  - The search for the boundary continues from the nearest boundary points so far, with --step_queries (released: 5,000 from scratch).
  - A step that reverses the last one is half as long.
  - Steps are not restricted to those that raise the distance. That rule leaves the samples near the noise: 45 % instead of 59 to 65 %
    (MNIST, 200 samples, validation).
  - Classes that noise never hits are searched for in smooth noise and in mixes of samples (released: an endless loop).
  - With --iterations 0 the samples are the noise itself, a baseline.
"""

from common.cli import allocating, cli, say

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from common.db3kd.labels import (
    MODES,
    SoftLabelOptions,
    max_label_queries,
    search_stages,
    soft_label_loss,
    soft_labels_of,
    teacher_classifier,
)
from common.db3kd.pseudo import MAX_NOISE_QUERIES, MAX_TRIES, PseudoSamples, draw_initial_samples, save_snapshots
from common.options import opt
from common.run import start

QUERIES_PER_WAVE = {"cpu": 1e6, "cuda": 5e7}  # of the samples that are moved together; their noise depends on it
SNAPSHOT_EVERY = 5  # steps between snapshots


@dataclass
class Args(SoftLabelOptions):
    sr_mode: MODES = "mbd"
    budgets: str = "300"
    samples: int = opt(3000, "number of pseudo samples per class", ge=2)
    iterations: int = opt(40, "number of steps that move a sample away from the decision boundary; 0: noise", ge=0)
    lbd_step: float = opt(0.5, "Euclidean length of the first step, for pixel values in [0, 1]", gt=0)
    step_queries: int = opt(100, "number of queries per sample that measure its distance to the boundary after a step", ge=40)


def main(argv=None):
    run = start(Args, argv)
    args, K, shape, label = run.args, run.data.classes, run.data.shape, teacher_classifier(run, "synthetic")
    (stages, _), steps = search_stages(args, shape, run.device), min(2, args.iterations) if args.dry_run else args.iterations
    max_queries = 100 + (steps + 4) * (args.step_queries + MAX_TRIES)  # per sample
    rows_per_save = int(max(2 * K, QUERIES_PER_WAVE.get(run.device.type, 1e6) // max_queries))
    n = K * (2 if args.dry_run else args.samples)
    most = 100 + (args.iterations + 4) * (args.step_queries + MAX_TRIES) + max_label_queries(args, K)
    run.teacher.expect(MAX_NOISE_QUERIES + K * args.samples * most)
    if args.query_budget and not args.transfer:
        n = min(n, int(max(0, run.teacher.allowance - MAX_NOISE_QUERIES) // max_queries) // K * K)
        run.teacher.plan(0 if n else MAX_NOISE_QUERIES + 2 * K * max_queries)

    def evolve(rows):  # the columns of the transfer set for these rows: images, classes, snapshots and distances
        g, number = torch.Generator().manual_seed(args.seed * 1_000_003 + int(rows["row"][0])), rows["row"].to(run.device)
        x, s = (v.to(run.device) for v in draw_initial_samples(lambda x: label(x.to(run.device)), K, len(number), shape, g))
        samples = PseudoSamples(x, s, label, number, stages, args)
        snapshots, distances = [samples.x], [samples.r]
        for step in range(1, steps + 1):
            samples.move(step)
            if step % SNAPSHOT_EVERY == 0 or step == steps:
                snapshots, distances = [*snapshots, samples.x], [*distances, samples.r]
        images = (samples.x.view(-1, *shape) - run.data.mean) / run.data.std
        pixels = torch.stack(snapshots, 1).mul(255).round().to(torch.uint8).unflatten(2, shape)
        columns = {"images": images, "answers": F.one_hot(samples.s, K).float()}
        return columns | {"snapshots": pixels, "margins": torch.stack(distances, 1)}

    def plan(g):
        with allocating("the numbers of the pseudo samples", "--samples"):
            return {"sample": torch.arange(n)}

    with allocating("the pseudo samples", "--samples", "--candidates", "--img_size"):
        bought = run.buy(plan, evolve, rows_per_save)
    if "snapshots" in bought:
        run.notes["margins"] = bought["margins"].mean(0).tolist()
        say(f"mean distance to the decision boundary, every {SNAPSHOT_EVERY} steps: {' '.join(f'{v:.3f}' for v in run.notes['margins'])}")
        save_snapshots(bought["snapshots"], bought["answers"].argmax(1), run.record.logs / "samples.png")

    def loss(x, t, logits):  # x: images (B, C, H, W), t: the teacher's classes, one-hot (B, K), logits: soft labels (B, K)
        return soft_label_loss(args, run.student(x), t, logits)

    run.fit(run.batches(bought, soft_labels_of(run, bought)), loss, repeatable=True)
    return run.finish()


if __name__ == "__main__":
    cli(main)
