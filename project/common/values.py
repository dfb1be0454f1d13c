"""What the value of an option may be: the one place where texts become numbers, and where numbers and texts are checked."""

import argparse
import math
import operator
import os
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from .cli import UsageError

BOUNDS = {"gt": "greater than", "ge": "at least", "lt": "less than", "le": "at most"}
SMALLEST, LARGEST = 2.0**-126, 2.0**127  # float32's normal numbers: below, divisions overflow; above, there is only infinity
UNPRINTED = ("Cc", "Cs", "Zl", "Zp")  # Unicode's control characters, lone surrogates and line ends
LETTERS = 255  # bytes of a name, or of a path's part, that file systems take


def cut(text: str, most: int = 200) -> str:
    """A text of at most `most` letters: the middle of a longer one is left out."""
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 4 :]}"


def short(text: str) -> str:
    """A value as a message shows it: in quotes, control characters escaped, cut."""
    return repr(cut(text, 80))


def few(names: Sequence[object], most: int = 5) -> str:
    """The first of some names, on one line."""
    return ", ".join(map(str, names[:most])) + ", ..." * (len(names) > most)


def whole(text: str) -> int:
    """The integer that a text gives. argparse.ArgumentTypeError (which `parse` turns into one line) for anything else."""
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text.strip(), re.ASCII):
        raise argparse.ArgumentTypeError(f"invalid int value: {short(text)}; give an integer of at most 18 digits")
    return int(text)


def real(text: str) -> float:
    """The number that a text gives, not necessarily finite. argparse.ArgumentTypeError for anything else."""
    if not re.fullmatch(r"[+-]?([0-9.]{1,40}(e[+-]?[0-9]{1,4})?|nan|inf|infinity)", text.strip().lower(), re.ASCII):
        raise argparse.ArgumentTypeError(f"invalid float value: {short(text)}; give a number such as 0.1 or 1e-3")
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid float value: {short(text)}; give a number such as 0.1 or 1e-3") from None


def is_count(text: str) -> bool:
    """Whether a text is a positive integer, written with the digits 0 to 9, that fits into 64 bits."""
    return bool(re.fullmatch(r"0*[1-9][0-9]{0,17}", text.strip(), re.ASCII)) and len(text) < 40


def interval(bounds: dict[str, float]) -> str:
    """`in (0, 1]`"""
    low = next((bounds[k] for k in ("gt", "ge") if k in bounds), "-inf")
    high = next((bounds[k] for k in ("lt", "le") if k in bounds), "inf")
    return f"in {'[' if 'ge' in bounds else '('}{low}, {high}{']' if 'le' in bounds else ')'}"


def check(name: str, value: Any, bounds: dict[str, float]) -> None:
    """UsageError for the value of an option `--name` that cannot be used, with what is allowed.

    A number keeps to its bounds, and is 0 or a normal number of float32. A text is printable, and as short as file systems take it.
    """
    if isinstance(value, str):
        return check_text(name, value)
    tests = {"gt": operator.gt, "ge": operator.ge, "lt": operator.lt, "le": operator.le}
    finite = not isinstance(value, float) or math.isfinite(value)
    if not finite or not all(tests[k](value, bound) for k, bound in bounds.items()):
        allowed = " and ".join(f"{BOUNDS[k]} {bound}" for k, bound in bounds.items()) or "a finite number"
        raise UsageError(f"--{name} {value}: it must be {allowed}")
    if isinstance(value, float) and value and not SMALLEST <= abs(value) <= LARGEST:
        raise UsageError(f"--{name} {value}: float32 has no such number; give one of a size from {SMALLEST:.2g} to {LARGEST:.2g}")


def check_text(name: str, text: str) -> None:
    """UsageError for a name, a path or a list with control characters, or one longer than a file's name can be."""
    if odd := next((c for c in text if unicodedata.category(c) in UNPRINTED), ""):
        raise UsageError(f"--{name} {short(text)}: it contains the character {odd!a}; use printable characters")
    longest = max(len(part.encode()) for part in text.split("/"))
    if longest > LETTERS or len(text) > 16 * LETTERS:
        raise UsageError(f"--{name} {short(text)}: it has {len(text.encode()):,} bytes; at most {LETTERS} are allowed between slashes")


def folder(name: str, text: str, hint: str) -> str:
    """The folder that an option `--name` gives, `~` expanded. UsageError for one that cannot be, with the hint for an empty one."""
    text = os.path.expanduser(text)
    check(name, text, {})
    if not text.strip():
        raise UsageError(f"--{name} {text!r}: it must be a folder; {hint}")
    return text


NORMALISATIONS = {  # name: (mean, std) of a grey image and of the channels of a colour image, for pixels in [0, 1]
    "half": (((0.5,), (0.5,)), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))),
    "unit": (((0.0,), (1.0,)), ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))),
    "imagenet": (((0.449,), (0.226,)), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
}


def normalisation(value: str, channels: int, option: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of each channel that an option's value names: half, unit, imagenet, or numbers; UsageError for anything else."""
    if value in NORMALISATIONS:
        return NORMALISATIONS[value][channels != 1]
    try:
        numbers = [real(v) for v in value.split(",")]
    except argparse.ArgumentTypeError:
        numbers = []
    mean, std = numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]
    if len(numbers) not in (2, 2 * channels) or not all(0 <= v <= 1 for v in mean) or not all(1e-3 <= v <= 10 for v in std):
        counts = " or ".join(map(str, sorted({2, 2 * channels})))
        what = f"{', '.join(NORMALISATIONS)}, or mean and std above 0 ({counts} numbers): mean from 0 to 1, std from 0.001 to 10"
        raise UsageError(f"{option} {value}: there are {what}")
    return tuple(mean * (channels // len(mean))), tuple(std * (channels // len(std)))


def check_normalisation(value: str, option: str) -> None:
    """UsageError for a value of no kind; whether the numbers are as many as the channels is seen with the data."""
    normalisation(value, 3 if value.count(",") == 5 else 1, option)
