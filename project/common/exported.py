"""What a table shows of the export of a run, which RUN/export/export.json holds: size, latency and 8-bit accuracy."""

import math
from pathlib import Path

from .cli import UsageError
from .forms import COUNT, NUMBER, present
from .utils import holding, read_json

FOLDER, REPORT = "export", "export.json"
FORM = {
    "role": str,
    "source": {"file": str, "sha256": str},
    "files": {...: {"bytes": COUNT}},
    "latency": [{"net": str, "batch": int, "threads": int, "median_ms": NUMBER}],
}
FORM_MORE = {"int8": {"accuracy": NUMBER}}
SHOWN = ("export_bytes", "int8_bytes", "latency_ms", "int8_latency_ms", "int8_accuracy")


def read_exported(run: Path, result: dict) -> tuple[dict[str, float], str]:
    """({key of SHOWN: number}, why they are not shown) of the export in a finished run's folder; ({}, "") where there is none.

    result: content of result.json, whose net the export must be of. Bytes are those of the float file (ONNX, else the first) and of the
    8-bit ONNX file, latencies the median milliseconds of the ONNX files for one image on one thread.
    """
    path = run / FOLDER / REPORT
    try:
        report = read_json(path, **FORM)
        if report is None:
            return {}, ""
        holding(report, path, **present(report, FORM_MORE))
        name = Path(report["source"]["file"]).name
        if report["role"] not in ("student", "teacher") or result.get("files", {}).get(name) != report["source"]["sha256"]:
            raise UsageError(f"{path} is of another network than that of the last epoch; export the run again with --overwrite")
        found = numbers_of(report)
        if odd := next((k for k, v in found.items() if not 0 <= v < math.inf), ""):
            raise UsageError(f"{path}: its {odd} is {found[odd]}; export the run again with --overwrite")
    except UsageError as e:
        return {}, str(e)
    return found, ""


def numbers_of(report: dict) -> dict[str, float]:
    """The numbers of an export.json that are there, by their names in SHOWN."""
    files, role = report["files"], report["role"]
    plain = next((n for n in (f"{role}.onnx", *files) if n in files and "int8" not in n), "")
    times = {r["net"]: r["median_ms"] for r in report["latency"] if (r["batch"], r["threads"]) == (1, 1)}
    values = (
        files.get(plain, {}).get("bytes"),
        files.get(f"{role}.int8.onnx", {}).get("bytes"),
        times.get(f"{role}, ONNX float"),
        times.get(f"{role}, ONNX int8"),
        report.get("int8", {}).get("accuracy"),
    )
    return {k: v for k, v in zip(SHOWN, values, strict=True) if v is not None}
