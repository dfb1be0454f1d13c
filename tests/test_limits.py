"""What a run pays a server: nothing that was paid for is lost, nothing is sent beyond a limit, and nothing is counted that was not sent."""

from common.cli import RunError

import json
import threading
import time

import pytest
import torch
from conftest import Death
from fake_api import Fake
from test_api import CLASSES, HALF, images, no_waits, options  # noqa: F401  a fixture

from common.api.ledger import Ledger
from common.api.paid import Paid
from common.api.remote import Remote
from common.blackbox import BlackBox, OutOfBudget


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


# ---- --max_cost


DOLLAR = {"price_per_1k": 1000}  # an image


@pytest.mark.parametrize("ledger", [True, False])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_attempts_that_may_be_billed_are_within_the_limit(ledger, concurrency, tmp_path):
    with Fake() as api:
        api.faults = ["hang_up", "hang_up", None] * 40
        paid = paying(api, tmp_path, ledger, max_cost=100, api_batch=10, retries=8, concurrency=concurrency, **DOLLAR)
        with pytest.raises(OutOfBudget, match=r"--max_cost 100 USD is reached: 100.0000 are spent, and 10 images "):
            paid.answer(images(100)[0])
        assert len(api.asked) == paid.spent == 100
        if ledger:
            totals = paid.ledger.totals()
            assert totals["images"] + totals["unanswered"] == 100 and totals["images"] >= 20 and paid.ledger.spent("run") == 100
            again = paying(api, tmp_path, max_cost=100, **DOLLAR)
            with pytest.raises(OutOfBudget, match="100.0000 are spent, and 100 images are wanted"):
                again.answer(images(100)[0])
            assert len(api.asked) == 100


def test_an_attempt_that_the_server_refused_is_free(tmp_path):
    with Fake() as api:
        api.faults = [503, 429, None, 503, None]
        paid = paying(api, tmp_path, max_cost=20, api_batch=10, **DOLLAR)
        paid.answer(images(20)[0])
        assert len(api.asked) == paid.spent == paid.ledger.spent("run") == 20


def test_a_request_that_is_lost_and_then_refused_costs_what_was_lost(tmp_path):
    with Fake() as api:
        api.faults = ["hang_up", 403]
        paid = paying(api, tmp_path, max_cost=100, api_batch=10, **DOLLAR)
        with pytest.raises(RunError, match="status 403"):
            paid.answer(images(10)[0])
        assert paid.spent == paid.ledger.spent("run") == 10


def test_the_last_images_within_the_limit_are_bought_though_a_whole_request_is_not(tmp_path):
    with Fake() as api:
        api.faults = ["hang_up", None, None, None]
        paid = paying(api, tmp_path, max_cost=25, api_batch=10, **DOLLAR)
        with pytest.raises(OutOfBudget, match="25.0000 are spent, and 5 images are wanted"):
            paid.answer(images(20)[0])
        assert len(api.asked) == paid.spent == paid.ledger.spent("run") == 25 and paid.ledger.totals()["images"] == 15


def test_images_that_come_twice_are_paid_twice_without_a_ledger(tmp_path):
    with Fake() as api:
        paid = paying(api, tmp_path, ledger=False, max_cost=15, api_batch=10, **DOLLAR)
        with pytest.raises(OutOfBudget, match="0.0000 are spent, and 20 images are wanted"):
            paid.answer(images(10)[0].repeat(2, 1, 1, 1))
        assert not api.asked


def test_a_run_at_its_limit_rechecks_nothing(tmp_path):
    x = images(100)[0]
    with Fake() as api:
        paying(api, tmp_path, max_cost=28, **DOLLAR).answer(x[:28])
        for limit, fits in ((28, 28), (30, 28), (31, 28), (33, 30)):
            with pytest.raises(OutOfBudget, match="28.0000 are spent, and 100 images are wanted") as e:
                paying(api, tmp_path, max_cost=limit, **DOLLAR).answer(x)
            assert e.value.fits == fits and len(api.asked) == 28
        paying(api, tmp_path, max_cost=33, **DOLLAR).answer(x[:30])
        assert len(api.asked) == 33


# ---- what is counted


def test_images_that_the_limit_does_not_allow_are_no_queries(tmp_path):
    x = images(30)[0]
    with Fake() as api:
        teacher = BlackBox(paying(api, tmp_path, max_cost=10, **DOLLAR), "soft", budget=20)
        for ask in (teacher, teacher.audit):
            teacher.free_audit = False
            with pytest.raises(OutOfBudget, match="0.0000 are spent, and 15 images are wanted") as e:
                ask(x[:15])
            assert teacher.counts == teacher.zero() and e.value.fits == 10 and not api.asked and not teacher.audited
        teacher(x[:10])
        assert teacher.counts["queries"] == teacher.counts["private"] == len(api.asked) == 10
        with pytest.raises(OutOfBudget, match="10.0000 are spent"):
            teacher(x[9:11])
        assert teacher.counts["queries"] == 10
        teacher(x[:10])  # the ledger has them: they are free
        assert teacher.counts["queries"] == 20 and len(api.asked) == 10


def test_a_count_stands_before_anything_is_sent(tmp_path):
    with Fake() as api:
        paid = paying(api, tmp_path, max_cost=10, **DOLLAR)
        teacher = BlackBox(paid)
        paid.source.send = lambda *a: pytest.fail(f"sent; counted: {teacher.counts['queries']}")
        with pytest.raises(pytest.fail.Exception, match="sent; counted: 10"):
            teacher(images(10)[0])


@pytest.mark.parametrize("limit", [{}, {"max_cost": 100}])
def test_an_image_is_hashed_once_and_an_answer_is_read_once(limit, tmp_path, monkeypatch):
    from common.api import paid as module

    x, hashed, read = images(60)[0], [], []
    hash_of, decoded = module.key_of, Ledger.decoded
    monkeypatch.setattr(module, "key_of", lambda image: hashed.append(image) or hash_of(image))
    monkeypatch.setattr(Ledger, "decoded", lambda self, blob, n: read.append(n) or decoded(self, blob, n))
    with Fake() as api:
        paid = paying(api, tmp_path, api_batch=10, **DOLLAR, **limit)
        teacher = BlackBox(paid)
        first = teacher(x[:40])
        assert len(hashed) == 40 and not read
        both = teacher(x)
        assert len(hashed) == 40 + 60 and read == [10] * 4 and torch.equal(both[:40], first) and paid.looked is None


def test_a_purchase_at_its_cost_counts_what_is_sent(script, capsys):
    with Fake() as api:
        options = {"teacher": api.url, "epochs": 1, "lamda": 0.2, "max_cost": 100, "query_budget": 259}
        result = script("KD", **options, **DOLLAR)
        assert len(api.asked) == result["queries"] == result["own"]["private"] == 100 and result["bytes"] == 100 * 64 * 4
        assert "the run goes on with 100 of 259 images" in capsys.readouterr().out


def test_a_purchase_with_lost_connections_goes_on_with_what_is_paid_for(script, capsys):
    with Fake() as api:
        api.extensions = ["binary_tensor_data"]
        for ledger in (True, False):
            api.faults, api.asked = [None, None, "hang_up", None, "hang_up"], []
            options = {"teacher": api.url, "epochs": 1, "lamda": 0.2, "api_batch": 20, "max_cost": 100, "query_budget": 259}
            result = script("KD", ledger=ledger, tag=f"ledger{ledger}", **options, **DOLLAR)
            assert len(api.asked) == 100 and result["queries"] == 100 and "accuracy" in result
            said = "--max_cost 100 USD is reached: 100.0000 are spent, and 20 images without an answer (connection lost) are not sent again"
            assert f"{said}; the run goes on with 60 of 259 images" in capsys.readouterr().out
            for path in script.home.rglob("*.sqlite"):
                path.unlink()


@pytest.mark.parametrize("ledger", [True, False])
def test_a_purchase_in_several_parts_keeps_all_that_is_paid_for(ledger, script, monkeypatch, capsys):
    """Where many images are asked about at once they are sent a thousand at a time; the limit may be met in any of these parts."""
    from common import purchases

    def infer(f, images, view, amp):
        return torch.cat([f(view(x)) for x in images.x.split(30)])

    monkeypatch.setattr(purchases, "infer", infer)
    with Fake() as api:
        result = script("KD", teacher=api.url, epochs=1, lamda=0.2, max_cost=100, query_budget=259, ledger=ledger, **DOLLAR)
        assert len(api.asked) == result["queries"] == 100
        assert "the run goes on with 100 of 259 images" in capsys.readouterr().out


def test_the_first_answers_come_with_the_limit_and_hits_are_counted(tmp_path):
    x = images(40)[0]
    with Fake() as api:
        whole = BlackBox(paying(api, tmp_path, ledger=False))(x)
        paying(api, tmp_path, **DOLLAR).answer(x[:5])
        paid = paying(api, tmp_path, max_cost=38 + 5, api_batch=10, **DOLLAR)
        paid.checked, api.faults = True, [None, "hang_up"]
        with pytest.raises(OutOfBudget, match="43.0000 are spent, and 5 images are wanted") as e:
            BlackBox(paid)(torch.cat([x[:33], x[:5], x[33:38]]))  # 33 new ones
        assert not e.value.fits and torch.equal(e.value.answers, torch.cat([whole[:33], whole[:5]]))
        assert paid.ledger.totals()["hits"] == 5 + 5 and paid.ledger.totals("run")["images"] == 33


def test_attempts_are_known_after_a_kill_between_them(tmp_path):
    with Fake() as api:
        api.faults = [503, "hang_up", 503, "hang_up", None]
        paid = paying(api, tmp_path, max_cost=100, retries=8, **DOLLAR)
        end = paid.ledger.end
        paid.ledger.end = lambda *a: (_ for _ in ()).throw(Death)  # the process ends before the end of the request is noted
        with pytest.raises(Death):
            paid.answer(images(20)[0])
        later = paying(api, tmp_path, max_cost=100, **DOLLAR)
        assert later.spent == len(api.asked) == 60 and later.ledger.totals()["unanswered"] == 60

        api.faults, paid.ledger.end = [503, "hang_up", 503, "hang_up", None], end
        paid.limit = 1000
        paid.answer(images(20)[0])
        outcomes = paid.ledger.db.execute("select outcome from attempts where call = 2 order by rowid").fetchall()
        assert [o for (o,) in outcomes] == ["503", "connection lost", "503", "connection lost", "200"]
        assert paid.ledger.spent("run") == len(api.asked) == 120 and paid.ledger.totals()["retries"] == 4 + 3
