"""The columns of exported runs, and the page of a table: its content, its plots, that it needs nothing else, and what a browser shows."""

from common.cli import UsageError

import base64
import hashlib
import json
import math
import random
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import table
import webdriver
from PIL import Image

from common import beside_published, report, results
from common.checkpoints import identity
from common.csv_files import read_measured
from common.exported import SHOWN, read_exported
from common.page import images, labels, plots, training, writing
from common.page.axes import Axis, axis_of
from common.utils import read_json, save_json

ODD = """<script>alert("1")</script> & 'KD' {{ 7 * 7 }} {% raw %}"""
FILE = f"""
title = '''Tiny & quick {ODD}'''
dataset = "Digits"
pairs = ["ResNet8 -> ResNet8"]
seeds = [0, 1]
rows = [
  {{ name = "CE", script = "CE" }},
  {{ name = "KD", script = "KD" }},
  {{ name = '''{ODD}''', script = "KD", options = {{ tag = "odd" }} }},
  {{ name = "ML", script = "ML" }},
]
[options]
lamda = 0.2
epochs = 3
"""
FOLDERS = {"CE": "CE/Digits/ResNet8", "KD": "KD/Digits/ResNet8_to_ResNet8", ODD: "KD/Digits/ResNet8_to_ResNet8-odd"}


@pytest.fixture
def home(tmp_path):
    """A home with the table and finished runs of its rows CE, KD and the odd one; ML and the teacher are missing."""
    (tmp_path / "tiny.toml").write_text(FILE)
    for i, folder in enumerate(FOLDERS.values()):
        for seed in (0, 1):
            run = tmp_path / "c" / folder / f"seed{seed}"
            run.mkdir(parents=True)
            (run / "student.pt").write_bytes(b"weights of %d %d" % (i, seed))
            save_json(run / "result.json", result(90.0 + 2 * i + seed, i * 1000, files={"student.pt": identity(run / "student.pt")}))
            log = tmp_path / "l" / folder / f"seed{seed}" / "log.jsonl"
            log.parent.mkdir(parents=True)
            log.write_text("".join(json.dumps({"epoch": e, "kl": 3.0 / e, "ece": 1.0, "accuracy": 80.0 + e}) + "\n" for e in (1, 2, 3)))
    return tmp_path


def result(accuracy, queries, **more):
    found = {"line": "a run", "sources": {}, "accuracy": accuracy, "best": accuracy, "queries": queries, "bytes": 4e6, "seconds": 30.0}
    found |= {"device": "CPU, 1 thread", "needs": "hard", "versions": {"torch": "2.15.0", "commit": "abc1234"}}
    return found | {"options": {"weights_init": "torch"}} | more


def shown(home, *more):
    """The files of the table, {ending: text}, of `table.py --show --html`."""
    table.main([str(home / "tiny.toml"), "--checkpoints_dir", str(home / "c"), "--logs_dir", str(home / "l"), "--show", "--html", *more])
    return {kind: (home / f"l/tables/tiny.{kind}").read_text(encoding="utf-8") for kind in ("md", "csv", "html")}


def save_export(run, accuracy=91.0, file="student.pt", sha256=None, **more):
    files = {"student.onnx": 313_200, "student.int8.onnx": 96_600, "student.pte": 5}
    rows = [("ONNX float", 1, 1, 0.03), ("ONNX float", 1, 2, 9), ("ONNX float", 128, 1, 9), ("ONNX int8", 1, 1, 0.02), ("PyTorch", 1, 1, 9)]
    found = {"role": file.partition(".")[0], "source": {"file": f"elsewhere/{file}", "sha256": sha256 or identity(run / file)}}
    found |= {"files": {n: {"bytes": b} for n, b in files.items()}, "int8": {"accuracy": accuracy}}
    found["latency"] = [{"net": f"student, {n}", "batch": b, "threads": t, "median_ms": ms} for n, b, t, ms in rows]
    (run / "export").mkdir(exist_ok=True)
    save_json(run / "export/export.json", found | more)


class Page(HTMLParser):
    """What a page holds: its tables, its tags with their attributes, and the text of each kind of element."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.open, self.tables = [], {}, [], []
        self.feed(text)
        self.close()
        assert self.open == [], "tags that are not closed"

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "path", "br", "input"):
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts[self.open[-1]][-1] += data
        if {"td", "th"} & {*self.open}:
            self.tables[-1][-1][-1] += data


# ---- columns of exports


def test_a_table_shows_the_exports_of_its_runs(home, capsys):
    for seed, accuracy in ((0, 91.0), (1, 92.0)):
        save_export(home / "c" / FOLDERS["KD"] / f"seed{seed}", accuracy)
    save_export(home / "c" / FOLDERS["CE"] / "seed0", latency=[])
    files = shown(home)
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in files["md"].splitlines() if line.startswith("| ")]
    got = {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines}
    assert [got["KD"][c] for c in report.EXPORT] == ["313.2", "96.6", "0.030", "0.020", "91.50 ± 0.71"]
    assert [got["CE"][c] for c in report.EXPORT] == ["313.2", "96.6", "-", "-", "91.00"] and got["ML"]["size, kB"] == "-"
    rows = {(r["method"], r["seed"]): r for r in read_measured(home / "l/tables/tiny.csv")}
    assert [rows["KD", 1][k] for k in SHOWN] == [313_200, 96_600, 0.03, 0.02, 92.0] and not {*SHOWN} & rows["CE", 1].keys()
    again = results.cells_of(home / "l/tables/tiny.csv")
    for name in ("KD", "CE"):
        row = next(r for r in report.rows_of(again, "ResNet8 -> ResNet8", "KD")[0] if r["method"] == name)
        assert [row[c] for c in report.EXPORT] == [got[name][c] for c in report.EXPORT]
    assert {*report.EXPORT} <= {*results.COLUMNS.values()}


def test_without_exports_there_are_no_columns(home):
    files = shown(home)
    assert not any(c in files["md"] for c in report.EXPORT) and "against model size" not in files["html"]


@pytest.mark.parametrize("damage, words", [
    (lambda run: (run / "export/export.json").write_text("{"), "export.json is truncated, or not JSON"),
    (lambda run: save_export(run, sha256="0" * 12), "export.json is of another network than that of the last epoch"),
    (lambda run: ((run / "best.pt").write_bytes(b"x"), save_export(run, file="best.pt")), "export.json is of another network"),
    (lambda run: save_export(run, files={"student.onnx": {"bytes": "1"}}), "its files.student.onnx.bytes is of type str, not int"),
    (lambda run: save_export(run, int8={"accuracy": float("nan")}), "its int8_accuracy is nan"),
    (lambda run: save_export(run, int8=[]), "its int8 is of type list, not dict"),
    (lambda run: (run / "export/export.json").write_text((run / "export/export.json").read_text().replace("313200", "313")), "is damaged, or was changed"),
])  # fmt: skip
def test_an_export_that_cannot_be_shown_is_a_line(damage, words, home):
    run = home / "c" / FOLDERS["KD"] / "seed1"
    save_export(run)
    damage(run)
    numbers, why = read_exported(run, read_json(run / "result.json"))
    assert numbers == {} and words in why and "\n" not in why
    files = shown(home)
    assert f"- KD, seed 1: its export is not shown: {why}" in files["md"].splitlines() and "int8" not in files["md"].partition("\n- ")[0]
    assert any(text == f"KD, seed 1: its export is not shown: {why}" for text in Page(files["html"]).texts["li"])


# ---- the page


def test_the_page_holds_the_table_and_all_beside_it(home, capsys):
    save_export(home / "c" / FOLDERS["KD"] / "seed0")
    files = shown(home)
    page = Page(files["html"])
    out = capsys.readouterr().out
    assert f"written: {home / 'l/tables/tiny.html'} ({len(files['html'].encode()) / 1e3:,.0f} kB)" in out.splitlines()
    main, missing = page.tables
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in files["md"].replace("-|", "").splitlines() if line.startswith("| ")]
    plain = [[c.strip().replace("–", "-") for c in row] for row in main]
    assert plain == lines and len(plain) == 6  # a head and five rows
    assert missing[1:] == [["teacher", "0", "missing", "–"], ["ML", "0, 1", "missing", "–"]]
    table.main([str(home / "tiny.toml"), "--checkpoints_dir", str(home / "c"), "--logs_dir", str(home / "l"), "--dry_run"])
    commands = [text for text in page.texts["code"] if text.startswith("python")]
    assert len(commands) == 9 and {*capsys.readouterr().out.splitlines()} <= {*commands}
    assert "Tiny & quick" in page.texts["h1"][0] and page.texts["dd"][2:] == [
        "0, 1",
        "6 of 9",
        "device CPU, 1 thread; commit abc1234; torch 2.15.0 (6 runs)",
    ]
    assert [t for t in page.texts["figcaption"] if "against" in t] == [
        "Accuracy against queries",
        "Accuracy against model size",
        "Accuracy against latency",
    ]
    assert "too few to test" in "".join(page.texts["li"]) and page.texts["summary"] == ["teacher", "CE", "KD", ODD, "ML"]
    assert any(text.strip() == "lamda 0.2, epochs 3, tag odd" for text in page.texts["p"])


def test_a_failed_run_has_its_reason_and_a_winner_is_bold(home):
    (home / "c" / FOLDERS["CE"] / "seed1/result.json").write_text("{ <b>")
    with pytest.raises(table.RunError, match="1 of 9 runs failed"):
        shown(home)
    page = Page((home / "l/tables/tiny.html").read_text(encoding="utf-8"))
    row = next(row for row in page.tables[0] if row[0] == "CE")
    assert "90.00 (1 of 2 seeds; failed)" in row
    assert any(row[:3] == ["CE", "1", "failed"] and "result.json is truncated" in row[3] for row in page.tables[1])
    assert writing.cell("accuracy", "**97.20 ± 0.51** (5 of 6 seeds)") == {"text": "97.20 ± 0.51 (5 of 6 seeds)", "bold": True, "key": 97.2}


def test_the_page_needs_nothing_else_and_shows_any_name(home):
    for kind in ("copying", "samples_0001", "samples_0010"):
        Image.new("L", (8, 8)).save(home / "l" / FOLDERS["KD"] / f"seed0/{kind}.png")
    text = shown(home)["html"]
    page = Page(text)
    links = [
        (tag, k, v) for tag, attrs in page.tags for k, v in attrs.items() if k in ("src", "href", "action", "srcset", "poster", "data")
    ]
    assert {v[:5] if v.startswith("data:") else v[0] for _, _, v in links} == {"data:", "#"}
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len({*ids}) and all(v[1:] in ids for _, k, v in links if k == "href" and v[0] == "#")
    assert not re.search(r"url\(|@import|https?:|//\w", page.texts["style"][0])
    assert not any(k.startswith("on") or k == "style" for _, attrs in page.tags for k in attrs)
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    for tag in ("style", "script"):
        (content,) = page.texts[tag]  # the name of a row made no script of its own
        assert f"{tag}-src 'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'" in policy
    assert sum(row[0] == ODD for row in page.tables[0]) == 1 and ODD in page.texts["h1"][0] and page.texts["title"][0].endswith(ODD)
    alts = [attrs["alt"] for tag, attrs in page.tags if tag == "img"]
    assert (
        len(alts) == 2 and all(alt.startswith("KD, seed 0: ") for alt in alts) and "samples_0010.png" in text and "samples_0001" not in text
    )
    assert all(attrs.get("aria-label") or attrs.get("aria-labelledby") for _, attrs in page.tags if attrs.get("role") in ("img", "region"))
    assert shown(home)["html"] == text


def test_published_numbers_are_those_of_the_pair(home, monkeypatch):
    row = {
        "paper": "MEKD",
        "dataset": "Digits",
        "teacher": "ResNet8",
        "method": "KD <1>",
        "value": 91.5,
        "confidence": "A",
        "source": "Table 1",
    }
    rows = [
        row,
        row | {"student": "ResNet8", "method": "ML", "note": "n"},
        row | {"student": "ResNet20"},
        row | {"dataset": "MNIST"},
        row | {"paper": "Q"},
    ]
    monkeypatch.setattr(writing, "read_published", lambda: rows)
    monkeypatch.setattr(beside_published, "read_published", lambda: [])
    (home / "tiny.toml").write_text('paper = "MEKD"\n' + FILE)
    *_, found = Page(shown(home)["html"]).tables
    assert found[1:] == [["KD <1>", "any", "91.50", "A", "Table 1", "–"], ["ML", "ResNet8", "91.50", "A", "Table 1", "n"]]


@pytest.mark.parametrize("column, text, key", [
    ("accuracy", "97.20 ± 0.51", 97.2), ("queries", "141,700", 141700.0), ("against KD", "-8.24 [-11.83, -4.65]", -8.24), ("against KD", "+1.24 [+0.37, +2.11]", 1.24),
    ("accuracy", "(not run)", None), ("p", "-", None), ("images sent", "259 private + 1,500 mixed", 1759.0), ("images sent", "none", 0), ("images sent", "-", None),
    ("response", "topk:3", 1), ("response", "-", None), ("method", "KD hard", "kd hard"), ("p", "1e-05", 1e-5), ("accuracy", "nan", None),
])  # fmt: skip
def test_cells_are_sorted_as_numbers(column, text, key):
    assert writing.sort_key(column, text) == key


# ---- plots


def cells_of(**rows):
    """{(pair, name, seed): a finished run} of rows with (x, accuracies)."""
    cells = {}
    for name, (x, accuracies) in rows.items():
        for seed, accuracy in enumerate(accuracies):
            cells["A", name, seed] = SimpleNamespace(result={"accuracy": accuracy, **x}, state="done")
    return cells


def test_a_point_is_the_mean_over_seeds_and_a_line_has_no_queries():
    (plot,) = plots.plots_of({}, cells_of(a=({"queries": 100}, [80.0, 90.0]), b=({"queries": 10_000}, [90.0]), c=({}, [70.0])), "A")
    a, b = plot.points
    assert (a.name, a.x, a.y, a.low, a.high) == ("a", 100, 85.0, 80.0, 90.0) and (b.x, b.y) == (10_000, 90.0)
    (line,) = plot.lines
    assert line.name == "c" and line.level == 70.0 and line.py > a.bottom > a.py > a.top == b.py
    assert plot.text == "a: 85.00 % at 100 queries; b: 90.00 % at 10,000 queries; c: 70.00 %, no queries"
    assert {label.text for label in plot.labels} == {"a", "b", "c: no queries"}
    ticks = {text: x for x, text in plot.xticks}
    assert ticks["100"] == a.px and ticks["10,000"] == b.px and math.isclose(ticks["1,000"], (a.px + b.px) / 2, abs_tol=0.1)


def test_cost_is_drawn_where_answers_were_paid():
    free = {"queries": 0}
    cells = cells_of(
        a=({"queries": 9, "api": {"cost": 1.5, "currency": "EUR"}}, [80.0]), b=({"queries": 9, "api": None}, [81.0]), c=(free, [82.0])
    )
    cells |= cells_of(d=({"queries": 9, "api": {"cost": 2.0, "currency": "USD"}}, [83.0]))
    _, euro, dollar = plots.plots_of({}, cells, "A")
    assert euro.unit.startswith("EUR") and [p.name for p in euro.points] == ["a"] and [line.name for line in euro.lines] == ["c"]
    assert euro.text == "a: 80.00 % at 1.5 EUR; c: 82.00 %, no cost" and [p.x for p in dollar.points] == [2.0]


def test_int8_is_a_second_point_of_the_runs_that_are_exported():
    full = {"queries": 9, "export_bytes": 300_000, "int8_bytes": 100_000, "int8_accuracy": 79.0}
    cells = cells_of(a=(full, [80.0]))
    cells["A", "a", 1] = SimpleNamespace(result={"queries": 9, "accuracy": 90.0}, state="done")
    _, size = plots.plots_of({}, cells, "A")
    assert [(p.x, p.y, p.hollow) for p in size.points] == [(300.0, 80.0, False), (100.0, 79.0, True)] and len(size.labels) == 1
    assert size.lines[0].path == "M{0.px},{0.py}L{1.px},{1.py}".format(*size.points)


def test_budgets_are_lines():
    rows = {f"a @{b}": ({"queries": b}, [70.0 + b / 10, 72.0 + b / 10]) for b in (10, 20, 40)} | {"b": ({}, [60.0])}
    table_of = {"rows": [{"name": "a"}, {"name": "b"}], "budgets": [10, 20, 40]}
    (plot,) = plots.plots_of(table_of, cells_of(**rows), "A")
    assert plot.joined and [(p.x, p.y) for p in plot.points] == [(10, 72.0), (20, 73.0), (40, 75.0)]
    a, b = plot.lines
    assert a.path.count("L") == 2 and a.band.count("L") == 5 and b.level == 60.0 and not b.path


@pytest.mark.parametrize("seed", range(5))
def test_points_and_names_hide_nothing(seed):
    r = random.Random(seed)
    rows = {
        f"method {i}": ({"queries": r.choice([50, 259, 259, 259, 1800, 141_700])}, [r.uniform(85, 98) for _ in range(3)]) for i in range(14)
    }
    (plot,) = plots.plots_of({}, cells_of(**rows), "A")
    for i, a in enumerate(plot.points):
        assert plots.LEFT < a.px < plots.RIGHT and plots.TOP < a.top <= a.py <= a.bottom < plots.BOTTOM
        assert all(abs(a.px - b.px) >= plots.ASIDE or a.bottom < b.top or b.bottom < a.top for b in plot.points[:i])
    boxes = []
    for label in plot.labels:
        left = label.x if label.anchor == "start" else label.x - labels.width_of(label.text)
        boxes.append((left, label.y - 10, left + labels.width_of(label.text) - 2, label.y + 2))
    marks = [plots.around(p, plots.R) for p in plot.points]
    assert len(boxes) == 14 and not any(labels.overlap(box, other) for i, box in enumerate(boxes) for other in boxes[:i] + marks)


@pytest.mark.parametrize("values", [[5.0], [0.0, 0.0], [1e-9, 1e9], [3, 3.0000001], [259] * 3])
def test_an_axis_holds_its_values_and_has_ticks(values):
    axis = axis_of(values, 100, 0)
    assert all(0 <= axis.at(v) <= 100 for v in values) and len({axis.at(min(values)), axis.at(max(values))}) == len({*values})
    assert len(axis.ticks()) >= 2 if len({*values}) > 1 else axis.ticks() is not None
    assert Axis(0, 10, 0, 50).at(4) == 20 and Axis(1, 100, 0, 50, True).at(10) == 25


# ---- curves and pictures


def test_curves_are_those_of_the_logs(home):
    text = shown(home)["html"]
    page = Page(text)
    words = [attrs["aria-label"] for tag, attrs in page.tags if attrs.get("role") == "img" and "aria-label" in attrs]
    assert len(words) == 6 and "KD, kl: seed 0: 3 in epoch 1, 1 in epoch 3; seed 1: 3 in epoch 1, 1 in epoch 3" in words
    assert "KD, accuracy, %: seed 0: 81 in epoch 1, 83 in epoch 3; seed 1: 81 in epoch 1, 83 in epoch 3" in words
    assert "All axes of accuracy go from 70 to 100 %" in "".join(page.texts["p"])


def test_a_seed_has_one_line_style(home):
    (home / "l" / FOLDERS["KD"] / "seed0/log.jsonl").unlink()
    text = shown(home)["html"]
    panels = {
        label: re.findall(r'class="line s(\d)"', svg)
        for label, svg in re.findall(r'aria-label="(\w+, kl): (.*?)</svg>\s*</svg>', text, re.DOTALL)
    }
    assert panels["CE, kl"] == ["0", "1"] and panels["KD, kl"] == ["1"]
    assert re.findall(r'class="line s(\d)" d="M0,4h34"/></svg> seed (\d)', text) == [("0", "0"), ("1", "1")]


def test_thinned_lines_keep_their_ends_and_extremes():
    line = [(e, math.sin(e) + (50 if e == 77 else 0)) for e in range(1, 1001)]
    kept = training.thinned(line, 100)
    assert len(kept) <= 102 and kept == sorted(kept) and {*kept} <= {*line} and {line[0], line[-1], line[76]} <= {*kept}
    assert training.thinned(line[:100], 100) == line[:100]


@pytest.mark.parametrize("content, words", [
    (b'{"epoch": 1, "kl": 2}\n{"epo', "line 2 is truncated, or not JSON"), (b"[]\n", "log.jsonl, line 1 is another kind of file"), (b'{"kl": 2}', "line 1 is another kind of file"),
    (b'{"epoch": 1, "kl": "2"}', "line 1: its row.kl is of type str"), (b"\xff", "found the byte 0xff"),
])  # fmt: skip
def test_a_damaged_log_is_a_line(content, words, home):
    path = home / "l" / FOLDERS["KD"] / "seed1/log.jsonl"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=re.escape(words)):
        training.read_log(path)
    page = Page(shown(home)["html"])
    assert any(p.startswith("seed 1: ") and words in p for p in page.texts["p"])
    assert any(a.get("aria-label", "").startswith("KD, kl: seed 0: ") for _, a in page.tags)


def test_numbers_that_are_no_loss_and_not_finite_are_not_drawn(tmp_path):
    rows = [{"epoch": 1, "kl": float("nan"), "d": 1.0, "classes": [0.1], "ece": 2.0}, {"epoch": 2, "kl": 3.0, "d": float("inf")}]
    series = {}
    training.add_rows(series, 0, rows)
    assert series == {"kl": {0: [(2, 3.0)]}, "d": {0: [(1, 1.0)]}}
    assert training.read_log(tmp_path / "log.jsonl") == []


def test_pictures_are_limited_and_damaged_ones_named(home):
    for seed in (0, 1):
        Image.effect_noise((64, 64), 50).save(home / "l" / FOLDERS["KD"] / f"seed{seed}/copying.png")
    folder = home / "l" / FOLDERS["CE"] / "seed1"
    (folder / "samples.png").write_bytes(b"\x89PNG\r\n")
    Image.new("L", (64, 64)).save(folder / "synthetic.png")
    page = Page(shown(home)["html"])
    (kd, ce) = sorted((attrs for tag, attrs in page.tags if tag == "img"), key=lambda attrs: attrs["alt"], reverse=True)
    content = (home / "l" / FOLDERS["KD"] / "seed0/copying.png").read_bytes()
    assert base64.b64decode(kd["src"].partition(",")[2]) == content and (kd["width"], kd["height"]) == ("320", "320")
    assert ce["alt"] == "CE, seed 1: synthetic images"
    notes = page.texts["li"]
    assert (
        f"CE, seed 1: {folder / 'samples.png'} is damaged, or no PNG picture" in notes
        and "KD: the pictures of seed 1 are in the log folders only." in notes
    )
    cells = {("A", "KD", 0): SimpleNamespace(result={"accuracy": 1}, log=home / "l" / FOLDERS["KD"] / "seed0/output.log")}
    pictures, (note,) = images.Gallery(left=1000).of_pair(cells, "A")
    assert pictures == [] and re.fullmatch(r"KD: .*copying.png \(\d kB\) is left out; a page has 1 MB of pictures.", note)


# ---- in a browser


@pytest.mark.skipif(not (webdriver.BROWSER and webdriver.DRIVER), reason="no chromium with chromedriver")
@pytest.mark.parametrize("javascript", [True, False])
def test_a_browser_sorts_the_table_and_shows_it_without_javascript(javascript, home, tmp_path):
    save_export(home / "c" / FOLDERS["KD"] / "seed0")
    Image.new("L", (8, 8)).save(home / "l" / FOLDERS["KD"] / "seed0/copying.png")
    expected = [row[0] for row in Page(shown(home)["html"]).tables[0]]
    with webdriver.browser(tmp_path / "profile", javascript) as page:
        page.requests()
        page.open(home / "l/tables/tiny.html")
        names = "#table1 tbody th"
        assert page.texts(names) == expected[1:] and all(page.texts("#table1 tbody td"))
        heads = page.find("#table1 thead th")
        at = next(i for i, text in enumerate(page.texts("#table1 thead th")) if text.startswith("queries"))
        assert len(page.find("#table1 button")) == (len(heads) if javascript else 0)
        assert page.call("GET", f"{page.find('img')[0]}/property/naturalWidth") == 8
        orders = []
        for _ in range(3 if javascript else 0):
            page.click(page.find("#table1 thead button")[at])
            sort = [page.call("GET", f"{head}/attribute/aria-sort") for head in page.find("#table1 thead th")]
            assert {*sort[:at], *sort[at + 1 :]} == {None}
            orders.append((sort[at], page.texts(names)))
        if javascript:
            assert orders == [
                ("ascending", ["KD", ODD, "teacher", "CE", "ML"]),
                ("descending", [ODD, "KD", "teacher", "CE", "ML"]),
                (None, expected[1:]),
            ]
            page.click(page.find(".columns summary")[0])
            page.click(page.find(".columns input")[at - 1])
            assert page.texts("#table1 thead th")[at] == "" and page.texts("#table1 thead th")[at + 1] != ""
        asked = {url.partition(":")[0] for url in page.requests()}
        assert asked - {"chrome"} == {"file", "data"} and page.log("browser") == []  # chrome: of the empty tab
