"""Files: one file that a run reads is damaged, and the run's end is compared with that of an undisturbed one.

CASES has a run for every kind of file. MUTATIONS is what is done to the file: to its bytes, to its place in the folder, or to its content,
which is then saved again in a valid form with a correct checksum.
"""

import os
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fuzz_content import FORMS, Unwritable, rewrite
from fuzz_homes import ENCODER, FEW, QUICK, ROBUST, RUNS, TEACHER
from fuzz_process import (
    SCRIPTS,
    Broken,
    Homes,
    Job,
    Outcome,
    copy_or_link,
    difference,
    execute,
    few_pilots,
    hash_of,
    move_tables,
    must,
    repeated_in,
    replace,
    script,
    weights_and_counts,
)
from hypothesis import strategies as st

KD = [*TEACHER, *QUICK, "--epochs", "3"]
CUT = ["--tag", "cut"]
AEAHL = [*TEACHER, *QUICK, *"--epochs 3 --ep_steps 2 --kd_steps 2 --g_steps 1 --warmup 1 --latent 8 --ngf 4".split(), *CUT]
REUSE = ["--mode", "reuse_common", "--reuse_generator_path", "reused/generator.pt"]
AM = [*TEACHER, *QUICK, *"--first 20 --queries 10 --pairs 50 --epochs 4".split()]
MEKD = [*KD, *"--steps 2 --queries 40 --generator_path generator.pt".split()]
BD = [*KD, "--lamda", "0.02"]
MBD = [*BD, *"--sr_mode mbd --budgets 30 --candidates 1 --basis surrogate+bank+dct:2 --pilots 1".split()]
ZERO = [*KD, *"--sr_mode sd --samples 2 --iterations 1 --step_queries 40".split()]
MINI = [*FEW, *"--dataset miniImageNet --img_size 16 --way 2 --dry_run --data_dir".split()]
FOLDER = [*QUICK, *"--lamda 1 --model ResNet8 --img_size 8 --dry_run --dataset".split()]
RUN = "checkpoints/{}/**/*{}/seed0/{}"  # script, end of the run's name, file


@dataclass
class Case:
    """A run of a script that reads a file.

    path: of the file, in a home, * and ** as in a glob. name, argv: the run; name is a script's, or a function of this file. form: of the
    file, a key of FORMS. dies: where the same run has died before, a function of `die_at` and the call's number; empty where there was none.
    checked: whether a change of content must be noticed or be without effect.
    """

    path: str
    name: str
    argv: list[str]
    form: str = ""
    dies: str = ""
    checked: bool = True

    def job(self, home: Path, *hooks: Callable[[], None]) -> Job:
        """The run."""
        call = script(self.name, self.argv) if self.name in SCRIPTS else partial(globals()[self.name], *self.argv)
        return Job(call, home, 60, (move_tables, few_pilots, *hooks))

    def home(self, homes: Homes) -> str:
        """The name of the home with all that the run reads."""
        if not self.dies:
            return "files"
        name = re.sub(r"\W+", "-", f"{self.name} {' '.join(self.argv)} {self.dies}")
        homes.makers.setdefault(name, self.make)
        return name

    def make(self, homes: Homes, home: Path) -> None:
        """Fills a home in which the run has died before."""
        shutil.copytree(homes.made("files"), home, dirs_exist_ok=True, symlinks=True, copy_function=copy_or_link)
        must(self.job(home, partial(die_at, *self.dies.split())), "exit 9")

    def file(self, home: Path) -> Path:
        """The file in a home; Broken where there is none."""
        if found := sorted(home.glob(self.path)):
            return found[0]
        raise Broken(f"{self.path}: no such file in {home}")

    def results(self, home: Path, found: Outcome) -> dict:
        """What the run comes to, to be compared."""
        files, twice = (weights_and_counts, repeated_in) if self.name in SCRIPTS else (lambda *a: {}, lambda *a: 0)
        return {"value": found.value, "files": files(home, self.name), "repeated": twice(home, self.name)}


CASES = {
    "teacher": Case("checkpoints/teacher/**/teacher.pt", "KD", KD, "torch"),
    "teacher given": Case("teacher.pt", "KD", [*KD, "--teacher_path", "teacher.pt"], "torch"),
    "student of a finished run": Case(RUN.format("KD", "-cut", "student.pt"), "KD", [*KD, *CUT], "torch", "never 0"),
    "student used": Case("encoder.pt", "use_student", ["encoder.pt"], "torch"),
    "student tested": Case("encoder.pt", "fewshot_test", [*ENCODER, "--path", "encoder.pt"], "torch"),
    "generator": Case("generator.pt", "MEKD", MEKD, "torch"),
    "generator reused": Case("reused/generator.pt", "AEAHL", [*AEAHL, *REUSE], "torch"),
    "decoder reused": Case("reused/decoder.pt", "AEAHL", [*AEAHL, *REUSE], "torch"),
    "state of KD": Case(RUN.format("KD", "-cut", "state.pt"), "KD", [*KD, *CUT], "torch", "tally 10"),
    "state of AL": Case(RUN.format("AL", "", "state.pt"), "AL", KD, "torch", "tally 10"),
    "state of DCGAN": Case(RUN.format("DCGAN", "-cut", "state.pt"), "DCGAN", [*KD, *CUT], "torch", "tally 10"),
    "state of DAFL": Case(RUN.format("DAFL", "", "state.pt"), "DAFL", [*KD, "--steps", "2"], "torch", "tally 5"),
    "state of AEAHL": Case(RUN.format("AEAHL", "-cut", "state.pt"), "AEAHL", AEAHL, "torch", "tally 5"),
    "state of DFME": Case(RUN.format("DFME", "", "state.pt"), "DFME", [*RUNS["DFME"], "--epochs", "3"], "torch", "tally 5"),
    "state of IDEAL": Case(RUN.format("IDEAL", "-hard", "state.pt"), "IDEAL", [*RUNS["IDEAL"], "--epochs", "4"], "torch", "tally 5"),
    "state of fewshot": Case(
        RUN.format("fewshot_classifier", "-cut", "state.pt"), "fewshot_classifier", [*FEW, *CUT, "--epochs", "3"], "torch", "tally 50"
    ),
    "result": Case(RUN.format("KD", "-cut", "result.json"), "KD", [*KD, *CUT], "json", "never 0"),
    "result in a table": Case(RUN.format("KD", "-first", "result.json"), "table", ["tiny.toml", "--show"], "json"),
    "queries": Case(RUN.format("KD", "-cut", "queries"), "KD", [*KD, *CUT], "", "tally 10"),
    "queries of DCGAN": Case(RUN.format("DCGAN", "-cut", "queries"), "DCGAN", [*KD, *CUT], "", "tally 10"),
    "transfer given": Case("transfer.safetensors", "KD", [*KD, "--transfer", "transfer.safetensors", "--tag", "given"], "transfer"),
    "transfer": Case(RUN.format("KD", "-cut", "transfer.safetensors"), "KD", [*KD, *CUT], "transfer", "tally 10"),
    "transfer of AM": Case(RUN.format("AM", "", "transfer.safetensors"), "AM", AM, "transfer", "tally 6"),
    "transfer of MEKD": Case(RUN.format("MEKD", "", "transfer.safetensors"), "MEKD", MEKD, "transfer", "tally 5"),
    "transfer of DB3KD": Case(RUN.format("DB3KD", "", "transfer.safetensors"), "DB3KD", BD, "transfer", "tally 3"),
    "transfer of DB3KD given": Case("boundaries.safetensors", "DB3KD", [*BD, "--transfer", "boundaries.safetensors"], "transfer"),
    "transfer of ZSDB3KD": Case(RUN.format("ZSDB3KD", "", "transfer.safetensors"), "ZSDB3KD", ZERO, "transfer", "tally 3"),
    "kept distances": Case("checkpoints/robustness/**/distances.pt", "robustness", ROBUST, "torch", "finish 1"),
    "kept surrogate": Case(RUN.format("DB3KD", "", "surrogate.pt"), "DB3KD", MBD, "torch", "save 2"),
    "kept bank": Case(RUN.format("DB3KD", "", "bank.pt"), "DB3KD", MBD, "torch", "save 2"),
    "pool": Case(RUN.format("AEAHL", "-cut", "pool.npy"), "AEAHL", AEAHL, "npy", "tally 5"),
    "pool given": Case("pool.npy", "AEAHL", [*AEAHL, "--init_pool", "pool.npy"], "npy", checked=False),
    "pool of pictures": Case("small/1.png", "AEAHL", [*AEAHL, "--init_pool", "small"], checked=False),
    "table": Case("tiny.toml", "table", ["tiny.toml", "--dry_run"], "toml", checked=False),
    "published.csv": Case("project_copy/tables/published.csv", "table", ["tiny.toml", "--show"], "csv", checked=False),
    "measured.csv": Case("project_copy/tables/measured/digits-cpu.csv", "measured_page", ["digits-cpu"], "csv", checked=False),
    "pickle of a split": Case("split/miniImageNet/*phase_train.pickle", "fewshot_classifier", [*MINI, "split"], "pickle", checked=False),
    "pickle of a cache": Case("cache/miniImageNet/*-train.pkl", "fewshot_classifier", [*MINI, "cache"], "pickle", checked=False),
    "csv of a split": Case("named/miniImageNet/train.csv", "fewshot_classifier", [*MINI, "named"], "csv", checked=False),
    "idx images": Case("data/MNIST/train-images-idx3-ubyte", "load_dataset", ["MNIST"], checked=False),
    "idx labels": Case("data/MNIST/t10k-labels-idx1-ubyte", "load_dataset", ["MNIST"], checked=False),
    "mat": Case("data/SVHN/train_32x32.mat", "load_dataset", ["SVHN"], checked=False),
    "usps": Case("data/USPS/usps.bz2", "load_dataset", ["USPS"], checked=False),
}
PICTURES = ("png", "jpg", "bmp", "gif", "tif", "webp", "tga", "ppm", "jp2", "ico")
CASES |= {f"picture .{k}": Case(f"pictures/{k}/a/0.{k}", "teacher", [*FOLDER, f"folder:pictures/{k}"], checked=False) for k in PICTURES}


# ---- runs that are no script's


def use_student(path: str) -> str:
    """Loads a saved net, and classifies images with it."""
    import torch

    from common.checkpoints import load_model

    net, preprocess, classes = load_model(path)
    return f"{hash_of(net(preprocess(torch.arange(512).byte().view(2, 1, 16, 16))))} {classes}"


def measured_page(name: str) -> str:
    """A page of results."""
    from common.results import Measured

    return Measured(name).page()


def load_dataset(name: str) -> str:
    """Reads a data set."""
    from common.datasets import load

    data = load(name, "data")
    return f"{len(data.train)} {len(data.test)} {data.shape}"


def die_at(name: str, number: str) -> None:
    """A hook: every epoch is saved, and the process dies at a call of a function, or does not."""
    from common import record
    from common.training import Training
    from common.transfer import Transfer

    replace(record, "SAVE_EVERY", 0.0)
    owners = {"tally": Training, "save": Transfer, "finish": record.Record}
    if name == "never":
        return
    call, calls = getattr(owners[name], name), []

    def counting(*a, **k) -> object:
        calls.append(1)
        if len(calls) == int(number):
            os._exit(9)
        return call(*a, **k)

    replace(owners[name], name, counting)


# ---- what is done to a file. Each function gives (what was done, whether the new content may well be valid)


def flip(path: Path, r: random.Random) -> tuple[str, bool]:
    data = bytearray(path.read_bytes())
    where = [r.randrange(len(data)) for _ in range(r.choice([1, 1, 2, 8]))]
    for i in where:
        data[i] ^= 1 << r.randrange(8)
    path.write_bytes(data)
    return f"bits of the bytes {', '.join(map(str, where))} of {len(data)}", False


def truncate(path: Path, r: random.Random) -> tuple[str, bool]:
    data = path.read_bytes()
    n = r.choice([0, 1, r.randrange(len(data)), len(data) - 1])
    path.write_bytes(data[:n])
    return f"the first {n} bytes of {len(data)}", False


def append(path: Path, r: random.Random) -> tuple[str, bool]:
    with open(path, "ab") as f:
        f.write(r.choice([b"\0", b"\n", b"x" * 100, path.read_bytes()]))
    return f"{path.stat().st_size} bytes", False


def zero(path: Path, r: random.Random) -> tuple[str, bool]:
    data = bytearray(path.read_bytes())
    start, n = r.randrange(len(data)), r.choice([8, 64, 512, 4096])
    data[start : start + n] = bytes(len(data[start : start + n]))
    path.write_bytes(data)
    return f"zeros in bytes {start} to {start + n} of {len(data)}", False


def insert(path: Path, r: random.Random) -> tuple[str, bool]:
    data = path.read_bytes()
    i = r.randrange(len(data) + 1)
    path.write_bytes(data[:i] + r.randbytes(r.choice([1, 8, 100])) + data[i:])
    return f"bytes inserted at {i} of {len(data)}", False


def swap(path: Path, r: random.Random) -> tuple[str, bool]:
    """Puts a file of another kind into its place."""
    home = Path.cwd()
    others = [
        home / n for n in ("teacher.pt", "generator.pt", "encoder.pt", "transfer.safetensors", "result.json", "pool.npy", "own.py", "noise")
    ]
    others += [home / "checkpoints/teacher/Digits/ResNet8/seed0/queries", home / "photos/a/a0.png", home / "tiny.toml"]
    other = r.choice([o for o in others if o.exists() and o.read_bytes() != path.read_bytes()])
    shutil.copy(other, path)
    return f"is {other.name}", path.suffix in (".png", ".toml")


def misplace(path: Path, r: random.Random) -> tuple[str, bool]:
    """Something that is no file, or nothing."""
    kind = r.choice(["nothing", "a pipe", "a folder", "a link to nothing", "a link to itself", "/dev/zero", "/dev/null"])
    path.unlink()
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    elif kind != "nothing":
        path.symlink_to({"a link to nothing": "nowhere", "a link to itself": path.name}.get(kind, kind))
    return kind, kind == "nothing"


BYTES = {f.__name__: f for f in (flip, truncate, append, zero, insert, swap, misplace)}


@st.composite
def damages(draw: st.DrawFn, only: tuple[str, ...] = ()) -> tuple[str, str, int]:
    """(case, mutation, number that decides the rest)."""
    case = draw(st.sampled_from(only or [*CASES]))
    content = ["content"] * (6 if CASES[case].form in FORMS else 0)
    return case, draw(st.sampled_from([*BYTES, *content])), draw(st.integers(0, 2**32 - 1))


# ---- trying


def check(example: tuple[str, str, int], homes: Homes, show: bool = False) -> tuple[str, str, str]:
    """Tries one damage; (how the run ended, what is wrong with that, what was done).

    show: print the run's output and its traceback."""
    name, mutation, number = example
    case, r, key = CASES[name], random.Random(number), f"file: {name}"
    if key not in homes.known:
        with homes.copy(case.home(homes)) as home:
            case.file(home)
            homes.known[key] = case.results(home, must(case.job(home), "Finished"))
    with homes.copy(case.home(homes)) as home:
        path = case.file(home)
        shutil.copy(path, home / "copy")  # it may be a link
        os.replace(home / "copy", path)
        try:
            what, plausible = rewrite(path, case.form, r) if mutation == "content" else damage(home, path, mutation, r)
        except Unwritable:
            return "unwritable", "", ""
        found = execute(case.job(home))
        if show:
            print(found.out, found.err, found.message, found.whole, sep="\n")
        if fault := found.fault():
            return "fault", fault, what
        if found.refused:
            named = path.name in found.message or path.parent.name in found.message
            return "file refused", "" if named else f"{name}: the message does not name the file: {found.message[:100]}", what
        if not case.checked or plausible or (mutation, case.form) == ("content", "json"):  # a result is only shown
            return "valid with another content", "", what
        try:
            results = case.results(home, found)
            fewer = results.pop("repeated") < homes.known[key]["repeated"]
            differs = (
                "queries are forgotten" if fewer else difference(homes.known[key], results | {"repeated": homes.known[key]["repeated"]})
            )
        except Exception as e:
            differs = f"its results cannot be read: {type(e).__name__}"
        return "the same result", f"{name}: a damage by {mutation} is taken in silence" if differs else "", f"{what}; {differs}"


def damage(home: Path, path: Path, mutation: str, r: random.Random) -> tuple[str, bool]:
    """Damages a file's bytes or place."""
    before, _ = Path.cwd(), os.chdir(home)
    try:
        return BYTES[mutation](path, r)
    finally:
        os.chdir(before)
