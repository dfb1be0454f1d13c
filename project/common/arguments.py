"""argparse as this project uses it: options are fields of dataclasses, an error is one line, and several words can be one value."""

import argparse
import difflib
import re
from dataclasses import field
from typing import Any

from .cli import UsageError
from .values import BOUNDS, short


def opt(default: Any, help: str | None = None, *, alias: str | tuple[str, ...] | None = None, **bounds: float) -> Any:
    """A field of an options class. help: a noun phrase with unit or values; alias: other names; bounds: gt, ge, lt, le.

    What is left out is as in the class that is inherited from. TypeError for a bound that there is not.
    """
    if unknown := bounds.keys() - BOUNDS.keys():
        raise TypeError(f"opt: no bound {', '.join(sorted(unknown))}; there are {', '.join(BOUNDS)}")
    given = {"help": help, "alias": (alias,) if isinstance(alias, str) else alias, "bounds": bounds or None}
    return field(default=default, metadata={k: v for k, v in given.items() if v is not None})


class Joined(argparse.Action):
    """Several words as one with commas."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: list[str], option_string: str | None = None):
        setattr(namespace, self.dest, ",".join(values))


class Parser(argparse.ArgumentParser):
    def parse_known_args(self, args: list[str], namespace: argparse.Namespace | None = None) -> tuple[argparse.Namespace, list[str]]:
        """As argparse's, which takes the value `--` for the end of the options and leaves a list in its place."""
        if dashes := next((a for a in args if a == "--" or a.partition("=")[2] == "--"), ""):
            self.error(f"{short(dashes)}: -- is no value")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> None:
        """One line; for an unknown option the nearest there is."""
        if unknown := re.match(r"unrecognized arguments: (--\w{,99})", message):
            near = difflib.get_close_matches(unknown[1], self._option_string_actions, 1)
            message = f"unknown option {unknown[1]}" + (f" (did you mean {near[0]}?)" if near else "")
        message = re.sub(r"\S{99,}", lambda m: f"{m[0][:40]}...{m[0][-20:]}", " ".join(message.split()))
        raise UsageError(f"{message}; for all options run: python {self.prog} --help")
