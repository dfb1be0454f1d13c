"""Options: random command lines of every script, of options that there are, with plausible and with nasty values.

Each is parsed in this process. A few are also run in a forked one: with --dry_run, or up to the first training step.
"""

import importlib
import os
from dataclasses import fields
from typing import Literal, get_args, get_origin

from fuzz_homes import QUICK, RUNS, TEACHER
from fuzz_process import SCRIPTS, Homes, Job, Outcome, execute, move_tables, quietly, replace, script
from hypothesis import strategies as st

RUN_ONE_IN = 10  # of the command lines

# what `argv` of a process cannot hold is left out: the letter of number 0
NASTY = [
    "",
    " ",
    "\n",
    "a\nb",
    "\t",
    "\udcff",
    "9" * 19,
    "9" * 5000,
    "1" + "0" * 400,
    "x" * 300,
    "x" * 5000,
    str(2**31),
    str(2**32),
    str(2**63),
]
NASTY += "-- - -1 0 -0 1e-320 1e-9 1e400 nan inf -inf ² ٣ ½ 1_0 0x10 1, , + : None True [] {} %s % é 💥 * $HOME ' \" \\ 1/0 0/1".split()
NASTY += ".. ../.. / . ~ ~nobody/x /dev/null /dev/zero /dev/full pipe dangling empty folder noise a/b".split()
NASTY += "1e5 0.999 0.5 1 2 3 100 4096".split()
NUMBERS = [1, 2, 3, 7, 16, 100, 1000, 2**16, 10**6, 10**9, 2**40]
NETS = "ResNet8 resnet-8 LeNet5 ConvNet4 ResNet12 WRN_16_1 MobileNetV2 ShuffleNetV1 VGG8 AlexNet ResNet9".split()
NETS += "torchvision:vit_b_16 torchvision:resnet18 torchvision: torchvision:alexnet torchvision:x timm:resnet18 timm:".split()
NETS += "py:own.py:teacher py:own.py:x py: py:: py:own.py own.py:Net own.py: own.py:os no.py:Net : .py:".split()
FILES = "teacher.pt generator.pt transfer.safetensors pool.npy photos own.py result.json".split()
PLAUSIBLE = {
    "dataset": "Digits digits DigitsFS folder:photos folder: folder:/ folder:flat folder:nothing folder:own.py MNIST".split(),
    "model": NETS,
    "response": "hard soft logits inside topk:3 topk:0 topk:99 topk:² topk: top".split(),
    "normalize": "half unit imagenet dataset 0.5,0.5 0,0 0,1e-320 1,2,3 0.5,0.5,0.5,1,1,1 nan,1 -5,1e30".split(),
    "milestones": ["1/3,2/3", "1", "0.5", "1,1", "3,2,1", "1/0", "x", "0", "1/3 2/3", "1e300", "9" * 400],
    "device": "cpu auto cuda cuda:0 cuda:99 0 1 meta hpu mps cpu:1 cpu:x xla".split(),
    "basis": "dct full dct:2 dct:0 dct:99 dct+dct surrogate+dct bank+full + dct:-1 dct:²".split(),
    "budgets": ["300", "300,1000", "0", "x", "1000,1000", "-5", "300,", "9" * 30],
    "shots": "1 1,5 0 ² 1,1 99999 x ,".split(),
    "tag": ["a", "x/y", "..", "", "-", "seed0", "a b", "a\nb", "é"],
}
SAME = {"private": "dataset", "pool": "dataset", "teacher": "model", "teacher_normalize": "normalize"}

TABLE_OPTIONS = {
    "jobs": int,
    "seeds": int,
    "against": str,
    "show": bool,
    "dry_run": bool,
    "data_dir": str,
    "checkpoints_dir": str,
    "logs_dir": str,
}


def options_of(name: str) -> dict[str, type]:
    """{option: its type} of a script."""
    return TABLE_OPTIONS if name == "table" else {f.name: f.type for f in fields(importlib.import_module(name).Args)}


def values(option: str, kind: type, likely_only: bool) -> st.SearchStrategy[str]:
    """Values of an option, half of them of its kind, or nearly all."""
    likely = st.sampled_from(FILES + PLAUSIBLE["tag"]) if kind is str else st.one_of(st.integers(0, 40), st.sampled_from(NUMBERS)).map(str)
    if get_origin(kind) is Literal:
        likely = st.sampled_from([str(v) for v in get_args(kind)])
    elif kind is float:
        likely = st.one_of(st.floats(0, 1, width=16), st.floats(), st.sampled_from(NUMBERS)).map(str)
    elif found := PLAUSIBLE.get(SAME.get(option, option)):
        likely = st.sampled_from(found)
    return st.one_of(
        *[likely] * (8 if likely_only else 2), st.sampled_from(NASTY), st.text(st.characters(exclude_characters="\0"), max_size=8)
    )


@st.composite
def words(draw: st.DrawFn, name: str, likely_only: bool) -> list[str]:
    """The words of one option with a value, in one of its spellings."""
    options = options_of(name)
    option = draw(st.sampled_from(sorted(options)))
    spelled = f"--{option.replace('_', '-')}" if draw(st.integers(0, 4)) == 0 else f"--{option}"
    if options[option] is bool:
        spelled = spelled.replace("--", "--no_", 1) if draw(st.integers(0, 3)) == 0 else spelled
        return [f"{spelled}={draw(st.sampled_from(NASTY))}"] if draw(st.integers(0, 9)) == 0 else [spelled]
    value = draw(values(option, options[option], likely_only))
    return draw(
        st.sampled_from([[f"{spelled}={value}"], [spelled, value], [f"{spelled}={value}"], [spelled]][: 3 + (draw(st.integers(0, 9)) == 0)])
    )


@st.composite
def command_lines(draw: st.DrawFn) -> tuple[str, list[str], bool]:
    """(script, its options, whether it is run); those to be run begin with RUNS and end with --dry_run or not."""
    name = draw(st.sampled_from(SCRIPTS))
    run = draw(st.integers(1, RUN_ONE_IN)) == 1
    argv = [w for group in draw(st.lists(words(name, run), min_size=1, max_size=3 if run else 6)) for w in group]
    if name == "table" and (run or draw(st.booleans())):
        argv = [draw(st.sampled_from(["tiny.toml", "digits", "no", "own.py", "", "empty", "folder", "/dev/zero", "pipe.toml"])), *argv]
    if run:
        argv = [*RUNS.get(name, [*TEACHER, *QUICK]), *argv]
        argv += ["--dry_run"] if draw(st.booleans()) else []
    return name, argv, run


# ---- running


def read_only(name: str, argv: list[str]) -> object:
    """Reads a script's options, as it would before anything else."""
    module = importlib.import_module(name)
    if name == "table":
        return module.arguments(argv)
    from common.options import parse

    return parse(module.Args, argv)


def stop_at_first_step() -> None:
    """A hook: training ends after its first step, a table starts no run, and nothing is compiled, which takes a minute."""
    from common.cli import Stopped

    import table
    import torch

    from common.training import Training

    def leave(*a, **k) -> None:
        raise Stopped(143)

    replace(Training, "tally", leave)
    replace(torch.nn.Module, "compile", lambda self: None)
    replace(torch, "compile", lambda f: f)
    replace(table.Runner, "run", lambda self: None)


def lay_pipes() -> None:
    """A hook: pipes that nobody writes into."""
    for pipe in ("pipe", "pipe.toml"):
        os.mkfifo(pipe)


def check(example: tuple[str, list[str], bool], homes: Homes) -> Outcome:
    """Tries one command line."""
    name, argv, run = example
    if not run:
        return quietly(lambda: read_only(name, argv))
    with homes.copy("options") as home:
        return execute(Job(script(name, argv), home, 20, (lay_pipes, stop_at_first_step, move_tables)))
