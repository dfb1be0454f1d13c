"""convergence: compares the syntheses of finished AEAHL.py runs, and the accuracies of their students.

    python figures/convergence.py anew=logs/AEAHL/Digits/ResNet20_to_ResNet8-inside/seed0 reuse=logs/AEAHL/.../seed0 --out logs/convergence

It reads synthesis.npy (all terms of all steps) and log.jsonl of each run, and writes OUT.png and OUT.json. For each synthesis it shows
the terms at the first step (how good the generator is at the start) and at the last step. Two numbers in OUT.json:

    area       mean of a term at the last steps, over the syntheses that all runs have
    reached    first synthesis whose batch-norm term at the last step is below --share times its value at the first step of the first
               run's second synthesis (the first synthesis has no past statistics, and its term is ten times as large)

Differs:
  - Each term has its own plot (released notebook: a sum of all terms, in which the adversarial term, which is maximised, hides the others).
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "project"))
from common.cli import UsageError, cli

from common.options import Parser
from common.pictures import pyplot, save_figure
from common.utils import check_regular, save_json
from common.values import check, real

Run = tuple[str, np.ndarray, list[tuple[int, float]]]  # name, terms (syntheses, steps) by name, (epoch, accuracy in percent)


def read_run(argument: str) -> Run:
    """Returns the run that `NAME=FOLDER` or `FOLDER` names. UsageError for a folder without the files of an AEAHL.py run."""
    name, _, folder = argument.rpartition("=")
    folder = Path(folder)
    hint = "give the log folder of a finished AEAHL.py run (logs/AEAHL/...)"
    for file in (folder / "synthesis.npy", folder / "log.jsonl"):
        check_regular(file)
    try:
        curves = np.load(folder / "synthesis.npy")
        rows = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        students = [(int(r["epoch"]), float(r["accuracy"])) for r in rows if "accuracy" in r]
    except OSError as e:
        raise UsageError(f"no {Path(e.filename or 'synthesis.npy').name} in {folder} that can be read ({e.strerror}); {hint}") from None
    except Exception as e:  # NumPy raises what Python's tokenizer does
        raise UsageError(f"{folder} has no valid synthesis.npy and log.jsonl ({type(e).__name__}: {e}); {hint}") from None
    kind = getattr(curves, "dtype", np.dtype(object))
    if not kind.names or curves.ndim != 2 or not curves.size or any(kind[n].kind != "f" for n in kind.names):
        raise UsageError(f"{folder}/synthesis.npy is not from an AEAHL.py run ({kind} {getattr(curves, 'shape', '')}); {hint}")
    return name or folder.parent.name, curves, students


def summarise(runs: list[Run], fraction: float) -> dict[str, Any]:
    """Returns the content of OUT.json: for each run its terms over the syntheses that all runs have, `reached` and accuracies."""
    common = min(len(curves) for _, curves, _ in runs)
    found = {"syntheses compared": common, "runs": {}}
    start = None
    for name, curves, students in runs:
        row = {"syntheses": len(curves), "steps": curves.shape[1], "terms": {}}
        for term in curves.dtype.names:
            first, last = curves[term][:common, 0].astype(float), curves[term][:common, -1].astype(float)
            row["terms"][term] = {"first": to_list(first), "last": to_list(last), "area": mean(last)}
        if "bn" in curves.dtype.names:
            start = start or float(curves["bn"][min(1, len(curves) - 1), 0])
            below = np.flatnonzero(curves["bn"][1:, -1] < fraction * start)
            row["reached"] = int(below[0]) + 2 if len(below) else None
        row["accuracy"] = students
        found["runs"][name] = row
    return found


def to_list(values: np.ndarray) -> list[float | None]:
    """Returns the values as a list for JSON, None for NaN."""
    return [None if np.isnan(v) else float(v) for v in values]


def mean(values: np.ndarray) -> float | None:
    """Returns the mean of the values that are not NaN, None if there are none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None


def draw(runs: list[Run], path: Path) -> None:
    """Draws the batch-norm, class and adversarial terms by synthesis, and the students' accuracies by epoch."""
    plt = pyplot()

    terms = [t for t in ("bn", "oh", "adv") if any(t in c.dtype.names for _, c, _ in runs)]
    fig, axes = plt.subplots(1, len(terms) + 1, figsize=(4.2 * (len(terms) + 1), 3.8), squeeze=False, layout="constrained")
    titles = {"bn": "batch-norm term", "oh": "cross-entropy to the target class", "adv": "adversarial term"}
    for ax, term in zip(axes[0], terms, strict=False):
        for i, (name, curves, _) in enumerate(runs):
            if term in curves.dtype.names:
                n = np.arange(1, len(curves) + 1)
                ax.plot(n, curves[term][:, 0], color=f"C{i}", ls=":", lw=1)
                ax.plot(n, curves[term][:, -1], color=f"C{i}", label=name)
        ax.set(xlabel="synthesis (solid: last step, dotted: first step)", title=titles[term])
    for i, (name, _, students) in enumerate(runs):
        axes[0, -1].plot(*zip(*students, strict=True), color=f"C{i}", label=name, marker=".")
    axes[0, -1].set(xlabel="epoch", title="accuracy of the student, %")
    axes[0, -1].legend(frameon=False, fontsize=8)
    for ax in axes[0]:
        ax.grid(alpha=0.3)
    save_figure(fig, path)


def main(argv=None):
    parser = Parser(prog="figures/convergence.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", nargs="+", metavar="NAME=FOLDER", help="name in the plot and log folder (logs/AEAHL/...) of each finished AEAHL.py run"
    )
    parser.add_argument(
        "--share", type=real, default=0.8, help="threshold of `reached`: fraction of the first run's batch-norm term (default: 0.8)"
    )
    parser.add_argument("--out", default="logs/convergence", help="path of the written files without extension (default: logs/convergence)")
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    check("share", args.share, {"gt": 0})
    if not (out := Path(args.out)).name:
        raise UsageError(f"--out {args.out!r}: it must be the path of a file without its extension, such as logs/convergence")
    runs = [read_run(argument) for argument in args.runs]
    if len({name for name, *_ in runs}) < len(runs):
        raise UsageError(f"two runs have the same name ({', '.join(name for name, *_ in runs)}); give NAME=FOLDER for each")
    found = summarise(runs, args.share)
    for name, row in found["runs"].items():
        areas = "  ".join(f"{t} {v['area']:.4g}" for t, v in row["terms"].items() if v["area"] is not None)
        last = f"{row['accuracy'][-1][1]:.2f} %" if row["accuracy"] else "not evaluated"
        print(
            f"{name}: {row['syntheses']} syntheses, mean of last steps: {areas}, threshold reached at {row.get('reached')}, student {last}"
        )
    draw(runs, out.with_name(f"{out.name}.png"))
    save_json(out.with_name(f"{out.name}.json"), found)
    print(f"written: {args.out}.png, .json")
    return found


if __name__ == "__main__":
    cli(main)
