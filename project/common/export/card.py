"""README.md of an export: a model card in the layout of Hugging Face's hub (YAML head, then Markdown)."""

import ast
import json
from pathlib import Path

from ..report import markdown
from ..values import few

PROJECT = Path(__file__).resolve().parents[2]
RUNTIMES = {".onnx": "onnxruntime", ".pt2": "PyTorch (`torch.export.load`)", ".pte": "ExecuTorch (XNNPACK)"}
INT8 = {"int8": "ONNX", "int8_executorch": "ExecuTorch"}  # keys of the report, and the formats that they are of


def first_line(script: str) -> str:
    """The first line of the docstring of a script of the project, without the script's name; empty where there is none."""
    path = PROJECT / f"{script}.py"
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) if path.is_file() else None
    return (doc or "").split("\n")[0].partition(": ")[2].rstrip(".")


def size_text(n: int) -> str:
    """`98.2 kB` or `4.91 MB`, of bytes."""
    return f"{n / 1e6:.2f} MB" if n >= 1e6 else f"{n / 1e3:.1f} kB"


def latency_table(report: dict) -> str:
    """Latency, a row for each net and a column for each batch size and number of threads: median / 95th percentile."""
    rows = {}
    for r in report["latency"]:
        threads = f"{r['threads']} thread{'s' * (r['threads'] > 1)}"
        rows.setdefault(r["net"], {"ms, median / 95 %": r["net"]})[f"batch {r['batch']}, {threads}"] = (
            f"{r['median_ms']:.3g} / {r['p95_ms']:.3g}"
        )
    return markdown([*rows.values()])


def quality_table(report: dict) -> str:
    """Accuracy and calibration of the float net, of the 8-bit ones and of the teacher."""
    nets = {report["role"]: report["float"]}
    for key, name in INT8.items():
        if q := report.get(key):
            nets[f"{report['role']}, int8 {name}"] = q
            nets |= {f"{report['role']}, int8 {name}, without QAT": q["without_qat"]} if "without_qat" in q else {}
    rows = []
    for name, q in (nets | {"teacher": report.get("teacher", {})}).items():
        if "accuracy" in q:
            row = {"": name, "accuracy, %": f"{q['accuracy']:.2f}", "ECE, %": f"{q['ece']:.2f}"}
            row["KL to float, nats"] = f"{q['kl']:.2g}" if "kl" in q else "-"
            row["agreement with float, %"] = f"{q['agreement']:.2f}" if "agreement" in q else "-"
            row["with the teacher, %"] = f"{q['teacher_agreement']:.2f}" if "teacher_agreement" in q else "-"
            rows.append(row)
    return markdown(rows)


def head(report: dict) -> list[str]:
    """The YAML head. The licence is left to the user."""
    tags = ["image-classification", "knowledge-distillation", *sorted({Path(n).suffix[1:] for n in report["files"]})]
    accuracy = {"type": "accuracy", "value": round(report["float"]["accuracy"] / 100, 6)}
    task = {"type": "image-classification", "name": "image classification"}
    result = {"task": task, "dataset": {"name": report["dataset"], "type": report["dataset"]}, "metrics": [accuracy]}
    index = [{"name": f"{report['model']} ({report['source']['script']})", "results": [result]}]
    return [
        "---",
        "# license: choose one, and mind those of the images and of the teacher",
        "pipeline_tag: image-classification",
        f"tags: {json.dumps(tags)}",
        "metrics: [accuracy]",
        f"model-index: {json.dumps(index)}",
        "---",
    ]


def training(report: dict) -> list[str]:
    """How the net was trained, on what, by which teacher, at which cost; a line each."""
    s = report["source"]
    what = first_line(s["script"])
    lines = [f"- Method: `{s['script']}.py`{f' ({what})' if what else ''}, seed {s['seed']}."]
    lines.append(
        f"- Data set: {report['dataset']}; {s['images']:,} training images." if s["images"] else f"- Data set: {report['dataset']}."
    )
    if s["teacher"]:
        lines.append(f"- Teacher: {s['teacher']}, which answered {s['queries']:,} queries ({s['response']}).")
    if api := s["api"]:
        cost = f" for {api['cost']:.2f} {api.get('currency', '')}".rstrip() if api.get("cost") else ""
        lines.append(f"- Paid API: {api.get('images', 0):,} answers bought{cost}.")
    best = f", best epoch {s['best']:.2f} % (chosen on the same images, so too high)" if s["best"] is not None else ""
    if s["accuracy"] is not None:
        lines.append(f"- Accuracy: last epoch {s['accuracy']:.2f} %{best}, of {report['parity']['images']:,} {s['split']} images.")
    return [*lines, f"- Code: commit {s['commit']}. Command: `{s['command']}`" if s["command"] else f"- Code: commit {s['commit']}."]


def inputs(report: dict) -> list[str]:
    """What the graph takes and gives."""
    c, h, w = report["shape"]
    mean, std = (", ".join(f"{v:g}" for v in report[k]) for k in ("mean", "std"))
    if report["preprocess"] == "none":
        taken = f"`images`, float32 (N, {c}, {h}, {w}): (pixel / 255 - mean) / std with mean {mean} and std {std}"
    else:
        sizes = f"{h}, {w}" if report["preprocess"] == "pixels" else "height, width"
        taken = f"`pixels`, uint8 (N, {c}, {sizes}), values 0 to 255"
    if any(name.endswith(".pte") for name in report["files"]):
        taken += ". The ExecuTorch files take one image, N = 1"
    names = report["classes"]
    return [f"- Input: {taken}.", f"- Output: `logits`, float32 (N, {len(names)}). Classes: {few(names, 20)}."]


def limits(report: dict) -> list[str]:
    """What the numbers do not say."""
    n, lines = report["parity"]["images"], []
    lines.append(
        f"- Accuracy is measured on {n:,} {report['source']['split']} images of {report['dataset']}. Other images can give other results."
    )
    lines.append("- Any image gets one of the classes; there is no class for other things.")
    if report["crop_from"]:
        lines.append(
            f"- The graph does not resize. Resize the shorter side to {report['crop_from']} pixels (bilinear), and crop the middle."
        )
    elif report["preprocess"] != "resize":
        h, w = report["shape"][1:]
        lines.append(f"- The graph does not resize. Images of another size: stretch them to {h} x {w} (bilinear, antialiased).")
    if small := [report[key] for key in INT8 if key in report]:
        change = max(q["largest_change"] for q in small)
        lines.append(f"- A logit of the 8-bit networks differs by up to {change:.2g}. Choose thresholds on the logits anew.")
    if "int8" in report:
        lines.append(
            "- 8-bit speed depends on the processor. On x86 without VNNI, 8-bit products can saturate: measure the accuracy again."
        )
    return lines


def eight_bits(report: dict) -> list[str]:
    """How the 8-bit files were made, a line each."""
    lines = []
    for key, name in INT8.items():
        if q := report.get(key):
            per = "one scale per channel" if q["per_channel"] else "one scale per tensor"
            lines.append(f"8-bit ranges of {name} come from {q['calibration_images']:,} {q['calibrate']} images; weights have {per}.")
    if q := report.get("qat"):
        what = f"{q['epochs']} epochs of these images, learning rate {q['lr']:g}"
        lines.append(
            f"Before, the 8-bit networks were trained with simulated 8 bits ({what}). "
            "Their target is the float network's output; labels and the teacher are not used. The float files do not change."
        )
    return lines


def card(report: dict) -> str:
    """The text of README.md. report: the content of export.json."""
    files = [{"file": f"`{n}`", "size": size_text(f["bytes"]), "runs with": RUNTIMES[Path(n).suffix]} for n, f in report["files"].items()]
    p, size = report["parity"], report["size"]
    parts = [*head(report), "", f"# {report['model']} for {report['dataset']} ({report['role']})", ""]
    parts += [f"An image classifier with {len(report['classes'])} classes, {size['parameters']:,} parameters", ""]
    parts[-2] += f" and {size['multiply_adds']:,} multiply-adds per image."
    parts += [
        markdown(files),
        "",
        *inputs(report),
        "",
        "## Training",
        "",
        *training(report),
        "",
        "## Quality",
        "",
        quality_table(report),
        "",
    ]
    parts += [
        f"The float files and PyTorch differ by at most {p['largest_difference']:.2g} in a logit (largest logit {p['largest_value']:.3g})."
    ]
    parts += eight_bits(report)
    if report["latency"]:
        parts += ["", "## Latency", "", latency_table(report), "", f"Measured on {report['device']} ({report['versions_text']})."]
    parts += ["", "## Limits", "", *limits(report), "", "## Made with", "", "```sh", report["command"], "```", ""]
    return "\n".join(parts)
