"""Published numbers beside ours: which stand beside a row, the interval of a difference, and where the table shows them."""

import math
import re
import statistics
from types import SimpleNamespace

import pytest
import table
from conftest import ROOT
from scipy import stats
from test_table import filled, lines_of, tiny  # noqa: F401

from common import beside_published, csv_files, results
from common.report import Cells
from common.significance import half_width
from common.tables import read_table

SAME, HALF = "LeNet5 -> LeNet5", "LeNet5 -> LeNet5_half"
SAME_1998, HALF_1998 = (pair.replace("LeNet5", "LeNet5_1998") for pair in (SAME, HALF))


def cells_of(pair: str, **accuracies: list[float]) -> Cells:
    runs = {(pair, name, seed): value for name, values in accuracies.items() for seed, value in enumerate(values)}
    return {cell: SimpleNamespace(result={"accuracy": value}) for cell, value in runs.items()}


def numbers(name: str, pair: str, **accuracies: list[float]) -> list[tuple[str, ...]]:
    """(method, published, published as, source) of a table of the house."""
    rows = beside_published.rows_of(read_table(name), cells_of(pair, **accuracies), pair)
    return [tuple(row[c] for c in ("method", "published, %", "published as", "source")) for row in rows]


def test_a_row_stands_beside_several_numbers_each_with_its_source():
    found = numbers("nodata-mnist", SAME_1998, teacher=[99.2], ZSDB3KD=[97.0, 97.4])
    assert [row[:3] for row in found] == [
        ("teacher", "99.28", "DIP-KD: teacher"),
        ("teacher", "99.28", "few-shot black box: teacher (DivBFKD)"),
        ("ZSDB3KD", "96.66 ± 0.39", "DIP-KD: ZSDB3"),
        ("ZSDB3KD", "96.54", "DivBFKD: ZSDB3KD"),
    ]
    assert found[2][3] == "B: DIP-KD draft; synthetic budget 20K" and found[3][3].endswith("pair not named")


def test_a_number_may_stand_beside_one_pair_alone():
    ours = {"AM": [98.0], "KD": [97.0], "teacher": [99.0]}
    same, half = ([row[0] for row in numbers("fewimages-mnist", pair, **ours)] for pair in (SAME_1998, HALF_1998))
    assert same == ["AM", *3 * ["teacher"]] and half == ["KD", "KD", *4 * ["teacher"]]  # the fourth is of the half pair
    (mbd,) = numbers("db3kd-mnist", HALF, **{"DB3KD MBD": [99.5]})
    assert mbd[1:3] == ("99.52", "DB3KD: DB3KD-MBD") and mbd[3].endswith("; student not named")
    assert numbers("zsdb3kd-cpu", HALF, ZSDB3KD=[80.0]) == []  # like zsdb3kd-mnist, but it names no paper


def test_the_row_that_says_most_of_the_pair_is_meant():
    row = {"paper": "P", "method": "KD", "value": 1.0}
    pairs = [{}, {"teacher": "LeNet5"}, {"teacher": "LeNet5", "student": "LeNet5_half"}, {"teacher": "AlexNet"}]
    rows = [row | pair for pair in pairs]
    assert beside_published.best_of(rows, "KD", "P", HALF) is rows[2] and beside_published.best_of(rows, "KD", "P", SAME) is rows[1]
    assert beside_published.best_of(rows, "KD", "P", "VGG8 -> LeNet5") is rows[0]
    assert beside_published.best_of(rows, "KD", "Q", SAME) is beside_published.best_of(rows, "CE", "P", SAME) is None


def test_the_test_images_decide_which_numbers(monkeypatch):
    """A table whose private images are another data set's is tested on these."""
    found = numbers("syndigits-svhn", read_table("syndigits-svhn")["pairs"][0], **{"MEKD hard": [80.0]})
    assert [row[1] for row in found] == ["89.21"]


def test_the_interval_is_of_students_t_and_with_a_published_error_welchs():
    ours, theirs = [97.0, 97.5, 97.1], [96.0, 97.0, 96.4, 96.6, 95.8]
    error = statistics.stdev(theirs) / math.sqrt(5)
    low, high = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval()
    assert half_width(ours, error, 5) == pytest.approx((high - low) / 2)
    assert half_width(ours) == pytest.approx(4.30265273 * statistics.stdev(ours) / math.sqrt(3)) and half_width([1.0, 1.0]) == 0
    row = {"paper": "P", "method": "KD", "value": statistics.mean(theirs), "confidence": "B", "source": "s", "error": error, "runs": 5}
    gap = statistics.mean(ours) - statistics.mean(theirs)
    assert beside_published.texts(row, ours)["ours - published"] == f"**{gap:+.2f} [{low:+.2f}, {high:+.2f}]**"


@pytest.mark.parametrize(
    "ours, text",
    [([90.5], "+0.50"), ([89.7, 91.3, 90.5], "+0.50 [-1.49, +2.49]"), ([90.51], "**+0.51**"), ([89.4, 89.4], "**-0.60 [-0.60, -0.60]**")],
)
def test_a_difference_of_more_than_half_a_point_is_bold(ours, text):
    row = {"paper": "P", "method": "KD", "value": 90.0, "confidence": "C", "source": "s"}
    assert beside_published.texts(row, ours)["ours - published"] == text


def test_a_table_prints_and_writes_its_numbers_and_findings(tiny, capsys, monkeypatch):  # noqa: F811
    row = {"paper": "MEKD", "dataset": "Digits", "method": "MEKD best", "value": 99.45, "confidence": "C", "source": "secondary source"}
    monkeypatch.setattr(beside_published, "read_published", lambda: [row])
    filled(tiny, CE=[90, 91], KD=[92, 93])
    argv = tiny(paper="MEKD")
    path = tiny.home / "tiny.toml"
    path.write_text(path.read_text().replace('script = "KD"', 'script = "KD", published = "MEKD best"'))
    long = 60 * "KD is better. "  # longer than a name of a file may be
    path.write_text(f'findings = ["KD is better than CE & cheap.", "{long}"]\nteacher_published = ["MEKD best"]\n' + path.read_text())
    table.main([*argv, "--show", "--html"])
    out = capsys.readouterr().out
    assert out.count(beside_published.EXPLAINED) == 1 and f"Findings:\n\n- KD is better than CE & cheap.\n- {long}\n" in out
    lines = lines_of(out.partition(beside_published.TITLE)[2])
    assert [*lines] == ["method", "teacher", "KD"] and lines["teacher"] == [
        "99.45",
        "MEKD: MEKD best",
        "C: secondary source; pair not named",
        "-",
        "-",
    ]
    assert lines["KD"][-1] == "**-6.95 [-13.30, -0.60]**"
    files = {kind: (tiny.home / f"l/tables/tiny.{kind}").read_text() for kind in ("md", "tex", "html")}
    assert files["tex"].count("\\begin{tabular}") == 2 and "\\textbf{-6.95 [-13.30, -0.60]}" in files["tex"]
    assert "<strong>-6.95 [-13.30, -0.60]</strong>" in files["html"] and "<li>KD is better than CE &amp; cheap.</li>" in files["html"]
    (tiny.home / "other.toml").write_text('like = "tiny.toml"\n'.replace("tiny.toml", str(path)))
    assert "findings" not in read_table(str(tiny.home / "other.toml")) and read_table(str(path))["findings"]


def test_a_page_of_results_has_them_too(monkeypatch):
    measured = results.Measured("digits-cpu")
    assert beside_published.TITLE not in measured.page() and "Findings" not in measured.page()
    row = {"paper": "MEKD", "dataset": "Digits", "method": "KD", "value": 90.0, "confidence": "C", "source": "s"}
    monkeypatch.setattr(beside_published, "read_published", lambda: [row])
    measured.table["findings"] = ["One finding."]
    lines = measured.page().splitlines()
    assert lines.count(f"**{beside_published.TITLE}**, {measured.pairs[0]}") == lines.count(beside_published.EXPLAINED) == 1
    assert "- One finding." in lines and any(line.startswith("| KD ") and "MEKD: KD" in line for line in lines)


def test_every_named_number_is_found_for_its_own_data_set():
    """A table that is not `like` another has for each named number a row of published.csv, so that no key is a dead one."""
    for path in sorted((ROOT / "tables").glob("*.toml")):
        table_ = read_table(path.stem)
        if "like =" in path.read_text() or not table_.get("paper") or table_.get("budgets"):
            continue
        named = {row["name"] for row in table_["rows"] if "published" in row} | ({"teacher"} if "teacher_published" in table_ else set())
        found = [beside_published.rows_of(table_, cells_of(pair, **{name: [90.0] for name in named}), pair) for pair in table_["pairs"]]
        assert {row["method"] for rows in found for row in rows} == named, path.stem


def test_every_source_of_numbers_is_explained():
    text = (ROOT / "docs/published.md").read_text()
    named = {name.strip() for row in re.findall(r"^\| (.*?) \|", text, re.MULTILINE) for name in row.split(",")}
    papers = {name.strip() for row in csv_files.read_published() for name in row["paper"].split(",")}
    assert papers <= named
