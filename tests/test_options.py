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
    assert differences(parse(kd, ["--t", "4"]), {"t": 5.0, "lr": 0.1, "weights_init": "torch", "no_longer": 1}) == [
        "--temperature 5.0 (now 4.0)"
    ]
    assert differences(parse(kd, ["--temperature", "5"]), {"t": 5.0, "weights_init": "torch"}) == []
    assert differences(parse(kd, ["--standardise"]), {"t": 5.0, "weights_init": "torch"}) == ["--standardise False (now True)"]  # a new one
    gda = importlib.import_module("GDA").Args
    assert differences(parse(gda, ["--base", "mlkd"]), {"base": "mlkd", "weights_init": "fan_out", "dkd_warmup": 20}) == [
        "--views 1 (now 2)"
    ]


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


# ---- values that nobody means


@pytest.mark.parametrize("name", [*SCRIPTS, *FEWSHOT])
def test_two_dashes_are_no_value_of_any_option(name):
    """argparse takes `--lr=--` for an empty list, which a comparison then cannot use."""
    Args = importlib.import_module(name).Args
    own = Args.__annotations__ if name != "KD" else described(Args)
    for option in own:
        with pytest.raises(UsageError, match=f"^'--{option}=--': -- is no value; for all options run: python script.py --help$"):
            parse(Args, [f"--{option}=--"])
    with pytest.raises(UsageError, match="^'--': -- is no value"):
        parse(Args, ["--lr", "--"])


LONG = "9" * 5000


@pytest.mark.parametrize("argv, words", [
    (["--epochs", LONG], r"invalid int value: '9{40}\.\.\.9{20}'; give an integer of at most 18 digits"), (["--seed=²"], "invalid int value: '²'"),
    (["--epochs", "9" * 19], "of at most 18 digits"), (["--epochs", "1_0"], "invalid int value"), (["--epochs", "٣"], "invalid int value"),
    (["--lr", LONG], "invalid float value"), (["--lr", "1_0"], "invalid float value"), (["--lr", "1.2.3"], "invalid float value"), (["--lr", "1e400"], "--lr inf: it must be greater than 0"),
    (["--lr", "1e-320"], "--lr 1e-320: float32 has no such number; give one of a size from 1.2e-38 to 1.7e"), (["--w=-1e-320"], "float32 has no such number"), (["--weight_decay", "5e-324"], "float32"),
    (["--decay", LONG], r"invalid choice: '9{39}\.\.\.9{17}"), ([f"--{'x' * 5000}"], r"unknown option --x{38}\.\.\.x{20};"),
    (["--tag", "a\0b"], r"--tag 'a\\x00b': it contains the character '\\x00'; use printable characters"), (["--data_dir", "a\nb"], r"contains the character '\\n'"),
    (["--dataset", "folder:\ud800"], r"contains the character '\\ud800'"), (["--tag", "x" * 5000], r"--tag 'x{40}\.\.\.x{20}': it has 5,000 bytes; at most 255 are allowed between slashes"),
    (["--data_dir", "/".join("x" * 250 for _ in range(20))], "at most 255 are allowed between slashes"), (["--teacher", "é" * 128], "it has 256 bytes"),
    (["--data_dir", ""], "--data_dir is empty; name a folder, or leave the option out for data/"), (["--logs_dir="], "--logs_dir is empty"), (["--checkpoints_dir="], "leave the option out for checkpoints/"),
    (["--nesterov", "--momentum", "0"], "--nesterov with --momentum 0: it needs a momentum above 0; use --momentum 0.9, or --no_nesterov"),
    (["--val", "0.999"], "--val 0.999: it must be at least 0 and at most 0.9"), (["--lamda", "1e-9"], "--lamda 1e-09: it must be at least 1e-06 and at most 1"),
    (["--normalize", "0.5,1e-30"], "there are half"), (["--normalize", "127.5,127.5"], "mean from 0 to 1, std from 0.001 to 10"), (["--teacher_normalize", "halt"], "--teacher_normalize halt: there are half"),
    (["--response", "topk:²"], "--response topk:²: there are logits"), (["--response", "soft:1"], "there are logits"),
])  # fmt: skip
def test_what_no_number_name_or_folder_can_be_is_one_line_before_anything_is_read(argv, words):
    with pytest.raises(UsageError, match=words) as e:
        parse(Args, argv)
    assert "\n" not in str(e.value) and len(str(e.value)) < 400


@pytest.mark.parametrize("name, argv, words", [
    ("KN", "--budget 1e-9", "--budget 1e-09: it must be at least 1e-06"), ("KN", "--budget 2.5", "--budget 2.5 is no number of images; give an integer, or a fraction up to 1"),
    ("GDA", "--mixup 1e-320", "float32 has no such number"), ("GDA", "--mixup 1e-10", "--mixup 1e-10: the Beta distribution cannot be drawn; use 0, or a number from 0.001 to 1000"),
    ("KD", "--t 1e-30", "--temperature 1e-30: it must be at least 0.001 and at most 1000"), ("fewshot_classifier", "--temperature 0", "at least 0.001"),
    ("fewshot_test", "--path x --shots ²", "--shots ² is not a list of positive integers"), ("fewshot_test", f"--path x --shots {'9' * 250}", "is not a list of positive integers"),
    ("DB3KD", "--basis dct+dct", r"--basis dct\+dct: dct stands twice; use each part once"), ("DB3KD", "--basis full+dct", r"full stands twice \(dct ends with full\)"),
    ("DB3KD", "--basis surrogate+surrogate", "surrogate stands twice"), ("DB3KD", "--basis dct:²", "unknown part 'dct:²'"), ("robustness", f"--basis dct:{'9' * 200}", "unknown part"),
    ("DB3KD", "--sr_mode mbd --budgets 1000,²", "not numbers of queries"), ("ZSDB3KD", f"--budgets {'9' * 200}", "not numbers of queries"),
])  # fmt: skip
def test_values_that_a_scripts_own_options_cannot_have(name, argv, words):
    with pytest.raises(UsageError, match=words):
        parse(importlib.import_module(name).Args, argv.split())


def test_usual_values_are_taken_as_before():
    args = parse(
        Args,
        [
            "--epochs",
            "+7",
            "--w=-2.5",
            "--lr",
            "1E-3",
            "--gamma",
            ".5",
            "--weight_decay",
            "0",
            "--data_dir",
            "my data/é日本",
            "--epochs",
            "999999999999999999",
        ],
    )
    assert (args.epochs, args.w, args.lr, args.gamma, args.weight_decay, args.data_dir) == (10**18 - 1, -2.5, 1e-3, 0.5, 0, "my data/é日本")
    assert parse(Args, ["--nesterov"]).nesterov and parse(importlib.import_module("KN").Args, ["--budget", "100"]).budget == 100


@pytest.mark.parametrize("name", ["meta", "hpu", "mps", "xla", "privateuseone", "cpu:1", "cuda:²", "9" * 30, "gpu", ""])
def test_only_cpu_and_cuda_are_devices(name):
    from common.devices import device_of

    with pytest.raises(
        UsageError, match="--device .* is not available .only cpu and cuda are supported; CUDA GPUs found: [0-9]+.; use --device cpu"
    ):
        device_of(parse(Args, [f"--device={name}"]))
    assert device_of(parse(Args, ["--device", "cpu"])).type == "cpu"
