"""export: turns the network of a finished run into files that run without this project (ONNX, torch.export, ExecuTorch), and measures them.

    python project/export.py --run checkpoints/KD/Digits/ResNet20_to_ResNet8/seed0 --to onnx --int8
    python project/export.py --run checkpoints/teacher/MNIST/ResNet32/seed0 --to onnx,pt2 --preprocess resize

It writes RUN/export/: student.* or teacher.* (.onnx, .pt2, .pte; in 8 bits .int8.onnx, .int8.pte), export.json (all numbers) and README.md
(a model card). Each float file is compared with PyTorch on all test images; if one exceeds the tolerance, nothing is written. Use of the
files: docs/deploy.md.
"""

from common.cli import Stopped, cli, say

import signal
from dataclasses import dataclass
from pathlib import Path

from common.export.card import INT8, size_text
from common.export.finished import open_finished
from common.export.folder import check_folder, new_folder
from common.export.graphs import check_packages
from common.export.options import ExportOptions
from common.export.writing import Export
from common.exported import FOLDER
from common.options import parse


@dataclass
class Args(ExportOptions):
    pass


def stop(number, frame):
    raise Stopped(128 + number)


def main(argv=None):
    args = parse(Args, argv, "project/export.py")
    for to in args.formats():
        check_packages(to)
    out = Path(args.out or Path(args.run) / FOLDER)
    check_folder(out, args.overwrite)  # before the data set is read
    run = open_finished(args)
    with new_folder(out, args.overwrite) as folder:
        report = Export(args, run, folder).write()
    files = ", ".join(f"{name} {size_text(f['bytes'])}" for name, f in report["files"].items())
    accuracies = {"": report["float"]} | {f", int8 {name}": report[key] for key, name in INT8.items() if key in report}
    accuracy = "".join(f"{name} {q['accuracy']:.2f} %" for name, q in accuracies.items())
    say(f"export {report['model']} on {report['dataset']}: {files}, accuracy{accuracy} -> {out}")
    return report


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)  # so that the temporary folder is deleted
    cli(main)
