"""A slice of the fuzz with a fixed seed: no input ends in a traceback, no damage is taken in silence, no killed run ends otherwise.

`make fuzz` tries more (docs/reliability.md).
"""

import os
import sys

import fuzz
import pytest
from fuzz_process import ENVIRONMENT, Homes, Outcome, difference

FILES = ("teacher", "state of KD", "result", "transfer", "queries", "table", "measured.csv", "picture .png")
KILLED = ("KD", "DCGAN", "CE extended")


@pytest.mark.skipif(sys.platform == "win32", reason="its processes are forks")
def test_a_slice(tmp_path, monkeypatch):
    """One test, so that the homes are made once."""
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, os.environ.get(name, ""))
    homes, tally = Homes(tmp_path, dict(fuzz.MAKERS)), fuzz.Tally()
    fuzz.hunt_options(homes, tally, 400, 0)
    fuzz.hunt_files(homes, tally, 40, 0, FILES)
    fuzz.hunt_events(homes, tally, 4, 0, KILLED)
    assert (
        not tally.findings
        and tally.counts["read and refused"] > 200
        and tally.counts["file refused"] > 20
        and tally.counts["killed at events"] == 4
    )


def test_the_fuzz_sees_what_it_should():
    assert Outcome("KeyError", "'x'", "utils.py:3 read: KeyError: 'x'").fault() == "KeyError utils.py:3 read: KeyError: 'x'"
    assert Outcome("hangs").fault() and Outcome("killed by 11").fault() and Outcome("UsageError", "a\nb").fault()
    assert not any(
        Outcome(kind, "no file x; use y").fault() for kind in ("done", "UsageError", "RunError", "Finished", "Stopped", "exit 2")
    )
    assert difference({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == "a.c: '2' is '3'"
    assert not difference({"a": float("nan")}, {"a": float("nan")}) and difference({"a": 1}, {}) and difference({}, {"a": 1})
