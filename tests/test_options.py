"""Options: help, bounds and spellings from `opt`; what an override keeps; the groups of --help; old settings."""

from common.cli import UsageError

import importlib
from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
from conftest import FEWSHOT, SCRIPTS

from common.options import Base, TeacherOptions, described, differences, interval, opt, parse


@dataclass
class Args(TeacherOptions):
    ALIASES: ClassVar = {"lr": ("rate",)}

    lr: float = 0.02
    epochs: int = opt(7, "number of rounds")
    w: float = opt(
        1.0,
        "weight, values in [-1, 1] are usual, at most 50 % of all",
        alias=("weight", "omega"),
        gt=-3,
        lt=3,
    )
    kind: Literal["a", "b"] = opt("a", "kind, in [a, b]")
    on: bool = opt(True, "do without")


def test_an_override_keeps_help_bounds_and_spellings():
    about = described(Args)
    assert about["lr"]["help"] == "learning rate" and about["lr"]["bounds"] == {"gt": 0} and about["lr"]["group"] == "training"
    assert about["epochs"]["help"] == "number of rounds" and about["epochs"]["bounds"] == {"ge": 1} and about["w"]["group"] == "method"
    args = parse(Args, ["--rate", "0.5", "--omega=2", "--no_on"])
    assert (args.lr, args.w, args.on, args.epochs) == (0.5, 2.0, False, 7)


@pytest.mark.parametrize("argv, words", [
    ("--lr -5", "--lr -5.0: it must be greater than 0"), ("--w 3", "--w 3.0: it must be greater than -3 and less than 3"), ("--epochs 0", "--epochs 0: it must be at least 1"),
    ("--w nan", "--w nan: it must be"), ("--gamma 2", "--gamma 2.0: it must be greater than 0 and at most 1"), ("--kind c", "invalid choice"),
])  # fmt: skip
def test_bounds_hold_for_options_over_several_lines_and_for_overrides(argv, words):
    with pytest.raises(UsageError, match=words):
        parse(Args, argv.split())


def test_numbers_without_a_ceiling_are_taken():
    assert parse(Args, ["--epochs", "2000000"]).epochs == 2_000_000


def test_an_unknown_bound_is_the_authors_error():
    with pytest.raises(TypeError, match="no bound most; there are gt, ge, lt, le"):
        opt(1, "number", most=3)


@pytest.mark.parametrize(
    "bounds, text",
    [({"gt": 0, "le": 1}, "in (0, 1]"), ({"ge": 0, "lt": 1}, "in [0, 1)"), ({"ge": 0, "le": 2**32 - 1}, "in [0, 4294967295]")],
)
def test_intervals(bounds, text):
    assert interval(bounds) == text


def test_help_has_groups_the_methods_own_options_first(capsys):
    with pytest.raises(SystemExit):
        parse(Args, ["--help"], "project/X.py")
    out = capsys.readouterr().out
    heads = [out.index(f"\n{g} options:") for g in ("method", "training", "data", "teacher", "run")]
    assert heads == sorted(heads) and "at most 50 % of all" in " ".join(out.split()) and out.index("--w X") < out.index("--momentum X")
    assert "usage: python project/X.py [options]" in out and "--no_on" in out and "--on " not in out


def test_options_of_an_earlier_result_are_compared_by_their_old_names():
    kd = importlib.import_module("KD").Args
    assert differences(parse(kd, ["--t", "4"]), {"t": 5.0, "lr": 0.1, "no_longer": 1}) == ["--temperature 5.0 (now 4.0)"]
    assert differences(parse(kd, ["--temperature", "5"]), {"t": 5.0}) == []


def test_the_papers_spellings_stand_where_their_code_had_them():
    gda, aeahl, teacher = (importlib.import_module(n).Args for n in ("GDA", "AEAHL", "teacher"))
    a = parse(gda, "--teacher_pretrained x.pth --distiller dkd --kd_loss_weight 3 --gt_loss_weight 2 --fisher_rao_lamda 0.5".split())
    assert (a.teacher_path, a.base, a.w_kd, a.w_gt, a.w_fr) == ("x.pth", "dkd", 3, 2, 0.5)
    a = parse(aeahl, "--wd 1e-3 --epoch 3 --save_dir run --data_root d --gpu 1 --lr_decay_milestones 1,2 --hl".split())
    assert (a.weight_decay, a.epochs, a.checkpoints_dir, a.data_dir, a.device, a.milestones, a.hard_loss) == (
        1e-3,
        3,
        "run",
        "d",
        "1",
        "1,2",
        True,
    )
    assert parse(teacher, ["--wd", "1e-3"]).weight_decay == 1e-3
    with pytest.raises(UsageError, match="unknown option --wd"):
        parse(importlib.import_module("KD").Args, ["--wd", "1e-3"])


@pytest.mark.parametrize("name", [*SCRIPTS, *FEWSHOT])
def test_every_scripts_defaults_are_within_their_bounds_and_its_names_are_its_own(name):
    Args = importlib.import_module(name).Args
    names = [n for option, about in described(Args).items() for n in (option, *about["alias"])]
    assert len(names) == len(set(names))
    parse(Args, ["--path", "x"] if name == "fewshot_test" else [])


def test_a_script_without_a_teacher_has_none():
    assert (Base.teacher, Base.pool, Base.NEEDS, Base.query_budget) == ("", "", "", 0)


def test_a_home_folder_is_expanded_whoever_spells_it(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    args = parse(importlib.import_module("KD").Args, ["--data_dir=~/data", "--teacher_path", "~/t.pth", "--tag", "a~b"])
    assert (args.data_dir, args.teacher_path, args.tag) == ("/home/me/data", "/home/me/t.pth", "a~b")


@pytest.mark.parametrize(
    "value, right",
    [("0.5", False), ("halt", False), ("0.1,0.2,0.3", False), ("dataset", True), ("0.5,0.5", True), ("0.4,0.4,0.4,0.2,0.2,0.2", True)],
)
def test_a_normalisation_is_read_before_anything_else(value, right):
    if right:
        assert parse(Args, ["--normalize", value]).normalize == value
    else:
        with pytest.raises(UsageError, match="--normalize .*: there are half, unit, imagenet"):
            parse(Args, ["--normalize", value])
