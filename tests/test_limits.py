"""What a run pays a server: nothing that was paid for is lost, nothing is sent beyond a limit, and nothing is counted that was not sent."""

from common.cli import RunError

import json
import threading
import time

import pytest
from fake_api import Fake
from test_api import CLASSES, HALF, images, no_waits, options  # noqa: F401  a fixture

from common.api.ledger import Ledger
from common.api.paid import Paid
from common.api.remote import Remote


def paying(api, tmp_path, ledger=True, **more):
    """Paid with a ledger, or without, for a fake server, as a fresh process has it."""
    args = options(api.url, ledger=ledger, **more)
    source = Remote(args, CLASSES, (1, 8, 8), HALF, HALF)
    source.describe()
    source.protocol.untried = False
    about = {"teacher": api.url, "identity": source.answers_identity, "response": args.response, "classes": 10}
    return Paid(args, source, Ledger(tmp_path / "l.sqlite", about) if ledger else None, 10, "run")


# ---- one odd answer among many


def odd_list(api, odd, good, first):
    """Lets a fake server of lists answer `odd` to its first requests, when all of them are there."""
    seen, lock, together = [], threading.Lock(), threading.Event()

    def answer(self, body):
        with lock:
            seen.append(body)
            number = len(seen)
        if number == 8:
            together.set()
        together.wait(5)
        time.sleep(0.1 if number > first else 0)
        return 200, json.dumps(odd if number <= first else good).encode(), {}

    api.server.RequestHandlerClass.answer = answer
    return seen


@pytest.mark.parametrize("values", [[{"c": 0.1}] * 10, [None] + [0.1] * 9, [["a", 0.1]] * 10])
def test_an_odd_answer_is_one_line_and_the_answers_beside_it_are_kept(values, tmp_path):
    with Fake("list") as api:
        seen = odd_list(api, {"predictions": values}, {"predictions": [0.1] * 10}, first=2)
        paid = paying(api, tmp_path, protocol="list", api_scores="predictions", concurrency=8)
        with pytest.raises(RunError, match="gave an answer that cannot be used: "):
            paid.answer(images(20)[0])
        totals = paid.ledger.totals()
        assert len(seen) == 8 and totals["images"] == 6 and totals["unanswered"] == 2


def test_an_unexpected_error_of_one_request_leaves_the_answers_beside_it(tmp_path):
    with Fake("list") as api:
        odd_list(api, {"predictions": "odd"}, {"predictions": [0.1] * 10}, first=2)
        paid = paying(api, tmp_path, protocol="list", api_scores="predictions", concurrency=8)
        read = paid.source.protocol.read

        def broken(body):
            if b"odd" in body:
                raise ZeroDivisionError("a mistake of the program")
            return read(body)

        paid.source.protocol.read = broken
        with pytest.raises(ZeroDivisionError):
            paid.answer(images(20)[0])
        totals = paid.ledger.totals()
        states = dict(paid.ledger.db.execute("select state, count(*) from calls group by state").fetchall())
        assert totals["images"] == 6 and totals["unanswered"] == 2 and states == {"answered": 6, "lost": 2}


def test_a_request_that_fails_before_it_is_sent_costs_nothing(tmp_path):
    with Fake() as api:
        paid = paying(api, tmp_path, price_per_1k=1000)

        def unsent(*a):
            raise ZeroDivisionError("a mistake of the program")

        paid.source.send = unsent
        with pytest.raises(ZeroDivisionError):
            paid.answer(images(20)[0])
        assert paid.spent == paid.ledger.spent("run") == 0 and paid.ledger.totals()["unanswered"] == 0
