"""convergence: how the syntheses of data-free runs come along, and their students: anew against reuse, one net against two.

    python figures/convergence.py anew=logs/AEAHL/Digits/ResNet20_to_ResNet8-inside/seed0 reuse=logs/AEAHL/.../seed0 --out logs/convergence

Reads each run's synthesis.npy (all terms of all steps) and log.jsonl, writes OUT.png and OUT.json. Each synthesis has its first step, which
tells how good the generator is to begin with, and its last. `area` is the mean of a term over the syntheses that all runs have; `reached`,
the first synthesis whose batch-norm term is, at its last step, below --share of where the first run's second synthesis begins (a
run's first has no statistics of the past in it, and is ten times as large).
Differs: the released notebook stacks sums in which the adversarial term, which is made large, hides the others.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "project"))
from common.options import Parser
from common.pictures import pyplot, save_figure
from common.utils import UsageError, cli, save_json


def read_run(word):
    """(name, its terms (syntheses, steps), [(epoch, accuracy)]) of `NAME=FOLDER` or `FOLDER`."""
    name, _, folder = word.rpartition("=")
    folder = Path(folder)
    try:
        curves = np.load(folder / "synthesis.npy")
        rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    except FileNotFoundError as e:
        raise UsageError(f"no {Path(e.filename).name} in {folder}; give the folder under logs/ of a finished AEAHL.py run") from None
    except (ValueError, EOFError) as e:
        raise UsageError(f"{folder} holds a run's files of another kind ({e})") from None
    if not curves.dtype.names or curves.ndim != 2:
        raise UsageError(f"{folder}/synthesis.npy is of another kind: {curves.dtype} {curves.shape}")
    return name or folder.parent.name, curves, [(r["epoch"], r["accuracy"]) for r in rows if "accuracy" in r]


def numbers(runs, share):
    """{run: what its curves come to}, over the syntheses that all runs have."""
    common = min(len(curves) for _, curves, _ in runs)
    found = {"syntheses compared": common, "runs": {}}
    start = None
    for name, curves, students in runs:
        row = {"syntheses": len(curves), "steps": curves.shape[1], "terms": {}}
        for term in curves.dtype.names:
            first, last = curves[term][:common, 0].astype(float), curves[term][:common, -1].astype(float)
            row["terms"][term] = {"first": numbers_of(first), "last": numbers_of(last), "area": mean(last)}
        if "bn" in curves.dtype.names:
            start = start or float(curves["bn"][min(1, len(curves) - 1), 0])
            below = np.flatnonzero(curves["bn"][1:, -1] < share * start)
            row["reached"] = int(below[0]) + 2 if len(below) else None
        row["accuracy"] = students
        found["runs"][name] = row
    return found


def numbers_of(values):
    return [None if np.isnan(v) else float(v) for v in values]


def mean(values):
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None


def draw(runs, path):
    plt = pyplot()

    terms = [t for t in ("bn", "oh", "adv") if any(t in c.dtype.names for _, c, _ in runs)]
    fig, axes = plt.subplots(1, len(terms) + 1, figsize=(4.2 * (len(terms) + 1), 3.8), squeeze=False, layout="constrained")
    words = {"bn": "batch-norm term", "oh": "cross-entropy to the wanted class", "adv": "adversarial term"}
    for ax, term in zip(axes[0], terms, strict=False):
        for i, (name, curves, _) in enumerate(runs):
            if term in curves.dtype.names:
                n = np.arange(1, len(curves) + 1)
                ax.plot(n, curves[term][:, 0], color=f"C{i}", ls=":", lw=1)
                ax.plot(n, curves[term][:, -1], color=f"C{i}", label=name)
        ax.set(xlabel="synthesis (dotted: its first step)", title=words[term])
    for i, (name, _, students) in enumerate(runs):
        axes[0, -1].plot(*zip(*students, strict=True), color=f"C{i}", label=name, marker=".")
    axes[0, -1].set(xlabel="epoch", title="student's accuracy, %")
    axes[0, -1].legend(frameon=False, fontsize=8)
    for ax in axes[0]:
        ax.grid(alpha=0.3)
    save_figure(fig, path)


def main(argv=None):
    parser = Parser(prog="figures/convergence.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER", help="folders under logs/ of finished AEAHL.py runs")
    parser.add_argument("--share", type=float, default=0.8, help="of the first run's batch-norm term, to be reached (default: 0.8)")
    parser.add_argument("--out", default="logs/convergence", help="(default: logs/convergence)")
    args = parser.parse_args(argv)
    runs = [read_run(word) for word in args.runs]
    if len({name for name, *_ in runs}) < len(runs):
        raise UsageError("two runs have one name; give NAME=FOLDER for each")
    found = numbers(runs, args.share)
    for name, row in found["runs"].items():
        areas = "  ".join(f"{t} {v['area']:.4g}" for t, v in row["terms"].items() if v["area"] is not None)
        last = f"{row['accuracy'][-1][1]:.2f} %" if row["accuracy"] else "not evaluated"
        print(f"{name}: {row['syntheses']} syntheses, mean of last steps {areas}, reached at {row.get('reached')}, student {last}")
    draw(runs, Path(args.out).with_suffix(".png"))
    save_json(Path(args.out).with_suffix(".json"), found)
    print(f"written: {args.out}.png .json")
    return found


if __name__ == "__main__":
    cli(main)
