"""The table: runs what is missing and no more, survives a failing run, prints and writes what was measured."""

from common.cli import UsageError

import csv
import signal
import subprocess
import sys
import time

import pytest
import table
from conftest import ROOT

from common import report
from common.utils import read_json, save_json

TINY = """
title = "Tiny & quick"
paper = "{paper}"
dataset = "Digits"
pairs = ["ResNet8 -> {student}"]
seeds = [0, 1]
rows = [
  {{ name = "CE", script = "CE" }},
  {{ name = "KD", script = "KD" }},
  {{ name = "MEKD hard", script = "MEKD", needs = ["DCGAN"], options = {{ response = "hard", steps = 2 }} }},
]
[options]
lamda = 0.2
epochs = 1
[scripts.teacher]
lamda = 1.0
epochs = 4
"""


@pytest.fixture
def tiny(tmp_path):
    """tiny(**changes): a table's file, and the flags for a home of its own."""

    def make(student="ResNet8", paper="", more=""):
        path = tmp_path / "tiny.toml"
        path.write_text(TINY.format(student=student, paper=paper) + more)
        return [str(path), "--checkpoints_dir", str(tmp_path / "c"), "--logs_dir", str(tmp_path / "l")]

    make.home = tmp_path
    return make


def test_runs_what_is_missing_prints_and_writes_then_runs_nothing(tiny, capsys):
    flags = tiny()
    table.main([*flags, "--jobs", "2"])
    out = capsys.readouterr().out
    assert "[9/9]" in out and out.count("-> ResNet8 on Digits, seed ") == 2
    assert "± " in out and "| KD " in out and "259" in out
    written = {p.suffix: p for p in (tiny.home / "l" / "tables").iterdir()}
    assert set(written) == {".md", ".tex", ".csv", ".png"}
    assert written[".md"].read_text().strip() in out
    tex = written[".tex"].read_text()
    assert "$\\pm$" in tex and tex.count("\\\\") == 6 and "\\end{tabular}" in tex
    rows = list(csv.DictReader(written[".csv"].open()))
    assert len(rows) == 9 and {r["method"] for r in rows} == {"teacher", "CE", "KD", "DCGAN", "MEKD hard"}
    assert all("torch" in r["versions"] and "lamda=" in r["options"] for r in rows)
    from PIL import Image

    assert Image.open(written[".png"]).size[0] > 500
    table.main(flags)
    again = capsys.readouterr().out
    assert "/9]" not in again and again == out[out.index("# Tiny") :]


def test_dry_run_prints_commands_that_run(tiny, capsys):
    table.main([*tiny(), "--dry_run"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9 and lines[0].startswith("python -u project/teacher.py --dataset Digits --model ResNet8 --seed 0")
    command = [sys.executable, *lines[0].split()[1:]]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
    table.main([*tiny(), "--dry_run"])
    assert len(capsys.readouterr().out.splitlines()) == 8  # the teacher is there now


def test_a_failing_run_says_why_and_the_others_go_on(tiny, capsys):
    with pytest.raises(table.RunError, match=r"4 of 9 runs failed|6 of 9 runs failed"):
        table.main([*tiny(student="LeNet5"), "--jobs", "2"])  # no 8 x 8 pixels for LeNet5
    out = capsys.readouterr().out
    assert "CE.py: LeNet5 cannot take 1x8x8 images" in out and "| teacher" in out and "DCGAN ResNet8 on Digits, seed 1" in out
    ce = next(line for line in out.splitlines() if line.startswith("| CE"))
    assert "failed: CE.py: LeNet5 cannot take" in ce and "--img_size 16" in ce


def test_what_waits_for_a_failed_run_is_not_run(tiny, capsys):
    with pytest.raises(table.RunError, match="runs failed"):
        table.main([*tiny(more="device = 'cuda:9'\n"), "--jobs", "2"])  # of scripts.teacher
    assert "not run, teacher ResNet8 seed 0 failed" in capsys.readouterr().out


def result(accuracy, **more):
    return {
        "accuracy": accuracy,
        "best": accuracy,
        "agreement": 90.0,
        "teacher_kl": 0.1,
        "ece": 2.0,
        "queries": 1000,
        "private": 10,
        "synthetic": 990,
        "bytes": 4e6,
        "seconds": 30.0,
        "versions": {},
        "options": {},
    } | more


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_table_stops_its_runs_and_goes_on(number, tiny):
    command = [sys.executable, "-u", str(ROOT / "project" / "table.py"), *tiny()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    time.sleep(1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "stopped; finished runs are kept, run the same command to continue" in err and err.count("\n") == 1
    assert subprocess.run(["pgrep", "-f", str(tiny.home)], capture_output=True).returncode == 1  # none is left


def test_show_runs_nothing_and_compares_with_the_paper(tiny, capsys, monkeypatch):
    pair = {"dataset": "Digits", "teacher": "ResNet8", "student": "ResNet8"}
    rows = [{"paper": "ours", "method": "KD", "value": "90.00"} | pair, {"paper": "other", "method": "CE", "value": "1"} | pair]
    monkeypatch.setattr(report.csv, "DictReader", lambda f: rows)
    folder = tiny.home / "c" / "KD" / "Digits" / "ResNet8_to_ResNet8"
    for seed, accuracy in enumerate((91.0, 92.0)):
        save_json(folder / f"seed{seed}" / "result.json", result(accuracy))
    table.main([*tiny(paper="ours"), "--show"])
    lines = {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("| ")
    }
    got = dict(zip(lines["method"], lines["KD"], strict=True))
    assert got == {
        "needs": "hard", "accuracy (last), %": "91.50 ± 0.71", "best": "91.50 ± 0.71", "agreement": "90.00 ± 0.00", "KL to teacher": "0.100 ± 0.000",
        "ECE, %": "2.0 ± 0.0", "queries": "1,000", "images sent": "10 private + 990 synthetic", "MB sent": "4.0", "minutes": "0.50", "paper": "90.00",
        "difference": "+1.50",
    }  # fmt: skip
    assert dict(zip(lines["method"], lines["CE"], strict=True))["accuracy (last), %"] == "(not run)"


@pytest.mark.parametrize("name, words", [("digit", "there are: .*digits"), ("/nowhere.toml", "no table")])
def test_unknown_tables(name, words):
    with pytest.raises(UsageError, match=words):
        table.main([name])


@pytest.mark.parametrize(
    "argv, words",
    [
        ([], "no table given; there are: .*digits"),
        (["digits", "--job", "2"], "did you mean --jobs"),
        (["digits", "--jobs", "0"], "--jobs 0"),
    ],
)
def test_bad_flags(argv, words):
    with pytest.raises(UsageError, match=words):
        table.main(argv)


@pytest.mark.parametrize("text, words", [
    ("colour = 1", "has unknown keys colour; there are: against"), ("dataset = 3 3", "tiny.toml"), ('dataset = "Digits"', "lacks pairs, rows, seeds, title"),
    ('title = "x"\ndataset = "Digits"\npairs = []\nseeds = [0]\nrows = [{ name = "x", script = "XX" }]', "has a row 'x' with script 'XX', which project/ does not have"),
    ('title = "x"\ndataset = "Digits"\npairs = ["ResNet8"]\nseeds = [0]\nrows = []', "has a pair 'ResNet8' that is not of the form"),
    ('title = "x"\ndataset = "Digits"\npairs = []\nseeds = [0]\nrows = [{ name = "x", skript = "KD" }]', "has a row 'x' with unknown keys skript; there are: alone"),
    ('title = "x"\ndataset = "Digits"\npairs = []\nseeds = [0]\nagainst = "KN"\nrows = [{ name = "x", script = "KD" }]', "has against 'KN', which is no row's name"),
])  # fmt: skip
def test_a_wrong_table_is_one_line(text, words, tmp_path):
    (tmp_path / "tiny.toml").write_text(text)
    with pytest.raises(UsageError, match=words):
        table.main([str(tmp_path / "tiny.toml")])


def test_a_result_of_other_settings_is_not_the_tables(tiny, capsys):
    save_json(tiny.home / "c/CE/Digits/ResNet8/seed0/result.json", result(99.0, options={"epochs": 7, "lamda": 0.2}))
    with pytest.raises(table.RunError, match=r"holds a run with --epochs 7 \(now 1\)"):
        table.main([*tiny(), "--show"])
    assert "99.00" not in capsys.readouterr().out


def test_rows_that_would_share_a_folder_are_refused(tmp_path):
    text = TINY.format(student="ResNet8", paper="").replace(
        "rows = [", 'rows = [\n  { name = "KD 2", script = "KD", options = { t = 2 } },'
    )
    (tmp_path / "tiny.toml").write_text(text)
    with pytest.raises(UsageError, match=r"--temperature 2.0 \(now 5.0\); give one of them a tag"):
        table.main([str(tmp_path / "tiny.toml"), "--dry_run"])


def test_a_wrong_option_is_said_before_anything_runs(tiny):
    with pytest.raises(UsageError, match="--batch_size 0: it must be at least 1"):
        table.main(tiny(more="batch_size = 0\n"))


@pytest.mark.parametrize("path", sorted((ROOT / "tables").glob("*.toml")), ids=lambda p: p.stem)
def test_every_table_of_the_house_can_be_planned(path, tmp_path, capsys):
    table.main([path.stem, "--dry_run", "--checkpoints_dir", str(tmp_path)])
    assert capsys.readouterr().out.count("python -u project/") >= 4


def test_published_numbers_are_numbers_with_a_source():
    rows = list(csv.DictReader((ROOT / "tables" / "published.csv").open()))
    assert len(rows) > 300
    assert all(0 < float(r["value"]) <= 100 and r["confidence"] in "ABCD" and r["source"] and r["paper"] and r["method"] for r in rows)
    known = {(r["paper"], r["dataset"], r["teacher"], r["student"], r["method"]): r["value"] for r in rows}
    assert known["logit KD tables", "CIFAR100", "ResNet56", "ResNet20", "KD"] == "70.66"
    assert known["AEAHL-RG", "CIFAR10", "VGG11_BN", "ResNet18", "AEAHL-RG"] == "91.24"
    assert known["MEKD", "ImageNet", "ResNet50", "ResNet34", "MEKD soft"] == "59.89"


# ---- is a difference chance?


def filled(tiny, **accuracies):
    """Results of all seeds of rows CE and KD, one accuracy each; the table's lines by row."""
    for name, folder in (("CE", "ResNet8"), ("KD", "ResNet8_to_ResNet8")):
        for seed, accuracy in enumerate(accuracies.get(name, [])):
            save_json(tiny.home / "c" / name / "Digits" / folder / f"seed{seed}" / "result.json", result(accuracy))


def lines_of(out):
    return {line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in out.splitlines() if line.startswith("| ")}


def test_only_a_winner_that_chance_cannot_explain_is_bold(tiny, capsys):
    better = [90 + 0.1 * i for i in range(6)]
    filled(tiny, CE=better, KD=[a - 1 for a in better])
    table.main([*tiny(), "--show", "--seeds", "6"])
    out = capsys.readouterr().out
    got = dict(zip(lines_of(out)["method"], lines_of(out)["CE"], strict=True))
    assert got["accuracy (last), %"] == "**90.25 ± 0.19**" and got["against KD"] == "+1.00 [+1.00, +1.00]" and got["p"] == "0.031"
    assert "cannot tell" not in out and "\\textbf{90.25" in (tiny.home / "l/tables/tiny.tex").read_text()
    table.main([*tiny(), "--show", "--seeds", "6", "--against", "ce"])
    out = capsys.readouterr().out
    assert "**" not in out and "-1.00 [-1.00, -1.00]" in out  # a significant loser is not bold


def test_too_few_seeds_are_said(tiny, capsys):
    filled(tiny, CE=[95, 96], KD=[90, 91])
    table.main([*tiny(), "--show"])
    out = capsys.readouterr().out
    assert "2 seeds are too few to test at 5 % (1 comparisons, Holm): use --seeds 6." in out and "**" not in out


def test_rows_are_paired_by_seed(tiny, capsys):
    """KD lacks seed 0, so that only seeds 1 and 2 are compared."""
    filled(tiny, CE=[50, 91, 92], KD=[0, 90, 90])
    (tiny.home / "c/KD/Digits/ResNet8_to_ResNet8/seed0/result.json").unlink()
    table.main([*tiny(), "--show", "--seeds", "3"])
    out = capsys.readouterr().out
    assert "+1.50 [" in out and "2 of 3 seeds" in out


# ---- budgets, and the edge's own data set


def test_budgets_make_a_row_a_curve(tiny, capsys):
    flags = tiny(more="[scripts.CE]\nepochs = 2\n")
    path = tiny.home / "tiny.toml"
    text = path.read_text().replace("seeds = [0, 1]", "seeds = [0, 1]\nbudgets = [40, 80]")
    path.write_text("".join(line for line in text.splitlines(keepends=True) if "MEKD" not in line))
    table.main([*flags, "--jobs", "2"])
    out = capsys.readouterr().out
    rows = lines_of(out)
    assert rows["method"] == ["40", "80"] and len(rows["KD"]) == 2 and all("±" in c for c in rows["KD"]) and rows["CE"][0] == rows["CE"][1]
    asked = {r["query_budget"]: r["queries"] for r in budgets(tiny)}
    assert asked == {"40": "40", "80": "80"}
    from PIL import Image

    assert Image.open(tiny.home / "l/tables/tiny.png").size[0] > 500


def budgets(tiny):
    for r in csv.DictReader((tiny.home / "l/tables/tiny.csv").open()):
        options = dict(o.split("=", 1) for o in r["options"].split())
        if "query_budget" in options and r["method"].startswith("KD"):
            yield r | options


def test_the_edges_data_set_is_of_every_row(tiny, capsys):
    flags = tiny()
    path = tiny.home / "tiny.toml"
    path.write_text(path.read_text().replace('dataset = "Digits"', 'dataset = "Digits"\nprivate = "USPS"'))
    table.main([*flags, "--dry_run"])
    lines = capsys.readouterr().out.splitlines()
    assert all(
        ("--private USPS" in line) == (script in ("KD", "DCGAN", "MEKD")) for line in lines for script in [line.split("/")[1].split(".")[0]]
    )
    assert any(line.startswith("python -u project/CE.py --dataset USPS") for line in lines)


LABELS = """
like = "db3kd-cpu"
title = "Labels once"
against = "MBD"
dataset = "Digits"
pairs = ["ResNet8 -> ResNet8", "ResNet8 -> ResNet14"]
rows = [
  { name = "MBD 120", script = "DB3KD", options = { sr_mode = "mbd", at = 120, tag = "few" }, labels = "MBD" },
  { name = "MBD", script = "DB3KD", options = { sr_mode = "mbd", tag = "all" }, labels = "MBD" },
]
[options]
lamda = 0.02
epochs = 1
[scripts.teacher]
lamda = 1.0
epochs = 3
[scripts.DB3KD]
budgets = "120,200"
"""


def test_labels_are_bought_by_one_row_and_taken_by_the_others(tmp_path, capsys):
    (tmp_path / "labels.toml").write_text(LABELS)
    flags = [str(tmp_path / "labels.toml"), "--checkpoints_dir", str(tmp_path / "c"), "--logs_dir", str(tmp_path / "l"), "--seeds", "1"]
    table.main([*flags, "--dry_run"])
    lines = [line for line in capsys.readouterr().out.splitlines() if "DB3KD" in line]
    makers = [line for line in lines if "--transfer" not in line]
    assert len(lines) == 4 and len(makers) == 1 and "--model ResNet8" in makers[0] and "--tag all" in makers[0]
    table.main([*flags, "--jobs", "2"])
    results = {tuple(p.parts[-3:-1]): read_json(p) for p in (tmp_path / "c/DB3KD").rglob("result.json")}
    own = {k[0]: r["own"]["queries"] for k, r in results.items()}
    assert sum(v > 0 for v in own.values()) == 1 and own["ResNet8_to_ResNet8-hard-all"] > 0
    total = {k[0]: r["queries"] for k, r in results.items()}
    assert total["ResNet8_to_ResNet14-hard-few"] == total["ResNet8_to_ResNet8-hard-few"] < total["ResNet8_to_ResNet14-hard-all"]


def test_labels_of_an_unknown_row_are_one_line(tmp_path):
    (tmp_path / "labels.toml").write_text(LABELS.replace('labels = "MBD" },\n]', 'labels = "BD" },\n]'))
    with pytest.raises(UsageError, match="row 'MBD' with the labels of 'BD', which is no row's name"):
        table.main([str(tmp_path / "labels.toml"), "--dry_run"])


def test_tables_that_are_like_each_other_are_one_line(tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.toml").write_text(f'like = "{tmp_path}/{other}.toml"')
    with pytest.raises(UsageError, match="it is `like` itself, by way of a, b"):
        table.main([str(tmp_path / "a.toml"), "--show"])


def test_a_generator_made_by_another_teacher_is_reused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # away from results that this checkout may have
    text = """
like = "aeahl-ablation"
dataset = "Digits"
seeds = [0, 1]
rows = [
  { name = "RG", script = "AEAHL" },
  { name = "reused", script = "AEAHL", options = { mode = "reuse_fix", tag = "fix" }, reuse = { row = "RG", pair = "ResNet20 -> ResNet8" } },
  { name = "again", script = "AEAHL", options = { mode = "reuse_common", tag = "again" }, reuse = { row = "reused" } },
]
pairs = ["ResNet14 -> ResNet8"]
"""
    (tmp_path / "reuse.toml").write_text(text)
    table.main([str(tmp_path / "reuse.toml"), "--dry_run"])
    lines = capsys.readouterr().out.splitlines()
    assert sum("project/teacher.py" in line for line in lines) == 2 and sum("project/AEAHL.py" in line for line in lines) == 2 * 4
    fixed, again = (next(line for line in lines if f"--tag {t} " in line and "--seed 1" in line) for t in ("fix", "again"))
    assert (
        "--teacher ResNet14" in fixed
        and "--reuse_generator_path checkpoints/AEAHL/Digits/ResNet20_to_ResNet8-inside/seed1/generator.pt" in fixed
    )
    assert "--reuse_generator_path checkpoints/AEAHL/Digits/ResNet14_to_ResNet8-inside-fix/seed1/generator.pt" in again
    (tmp_path / "reuse.toml").write_text(text.replace('row = "RG", pair', 'row = "GR", pair'))
    with pytest.raises(UsageError, match="row 'reused' that reuses .*'GR'"):
        table.main([str(tmp_path / "reuse.toml"), "--dry_run"])


def test_a_paper_that_names_no_student_is_compared_too(tiny, capsys, monkeypatch):
    monkeypatch.setattr(
        report, "published", lambda paper: {("Digits", "ResNet8", "", "KD"): 90.0, ("Digits", "ResNet8", "ResNet8", "CE"): 80.0}
    )
    filled(tiny, CE=[80, 81], KD=[95, 96])
    out = capsys.readouterr().out
    table.main([*tiny(), "--show"])
    out = capsys.readouterr().out
    assert "| 90.00 |" in out and "+5.50" in out and "| 80.00 |" in out
