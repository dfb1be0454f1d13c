"""The ledger: all answers of one teacher that were ever bought, in one SQLite file, so that no image is paid for twice.

A call is noted before it is sent, and its answers before they are used; both are on the disk before the program goes on. Whatever ends the
process, what was sent is known: a call without an end may have been billed.
"""

import hashlib
import json
import sqlite3
import statistics
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from ..cli import RunError, UsageError
from ..utils import check_regular

KEY = 16  # bytes of an image's hash
ABOUT = ("teacher", "identity", "response", "classes")  # what the answers in a file are of
FORMAT = "answers bought from a teacher, 1"
SCHEMA = """
create table if not exists about (name text primary key, value text not null);
create table if not exists calls (
    id integer primary key, request text not null, run text not null, stage text not null, began real not null, ended real,
    state text not null, images integer not null, bytes integer not null, price real not null, keys blob not null, answers blob,
    crc integer);
create table if not exists attempts (
    call integer not null references calls, at real not null, seconds real not null, outcome text not null, lost integer not null);
create table if not exists hits (run text not null, stage text not null, images integer not null, primary key (run, stage));
create table if not exists canaries (key blob primary key, image blob not null, answer blob not null);
create index if not exists calls_by_run on calls (run);
create index if not exists attempts_by_call on attempts (call);
"""
TOTALS = "select coalesce(sum(images), 0), coalesce(sum(bytes), 0), coalesce(sum(price), 0.0) from calls where state = 'answered'"
SPENT = """
with own as (select state, price, (select count(*) from attempts where call = id and lost) as lost from calls where run = ?)
select coalesce(sum(price * case state when 'lost' then max(1, lost) when 'refused' then 0 else 1 + lost end), 0.0) from own
"""


def key_of(image: bytes) -> bytes:
    """A hash of the bytes that are sent for one image, KEY bytes."""
    return hashlib.sha256(image).digest()[:KEY]  # has instructions of its own on most processors


class Ledger:
    """The file `path`. about: what its answers are of: teacher, response, classes, input; UsageError where the file has another teacher's.

    durable: whether a commit waits for the disk; without, a loss of power (not a kill) may lose the last calls.
    Only one process at a time buys: see `exclusive`.
    """

    def __init__(self, path: Path, about: dict, durable: bool = True):
        self.path, self.about, self.places, self.seen = path, about, {}, 0
        self.hard = about["response"] == "hard"
        check_regular(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with self.telling():
            self.db = sqlite3.connect(path, timeout=60, isolation_level=None)
            self.db.execute("pragma journal_mode = wal")
            self.db.execute(f"pragma synchronous = {'full' if durable else 'normal'}")
            self.db.executescript(SCHEMA)
            with self.transaction():
                new = {"format": FORMAT, **about}
                self.db.executemany("insert or ignore into about values (?, ?)", [(k, json.dumps(v)) for k, v in new.items()])
        found = self.described()
        if off := [f"{k} {found.get(k)} (this run: {v})" for k, v in new.items() if found.get(k) != v]:
            raise UsageError(f"the ledger {path} is of another teacher: {', '.join(off)}; move it away, or give --no_ledger")
        self.lock = FileLock(path.with_suffix(".lock"))
        self.refresh()
        self.old = len(self.places)  # images that were known before this process

    @classmethod
    def of(cls, path: Path) -> "Ledger":
        """The ledger in a file that there is, whatever teacher it is of. UsageError where it is no ledger."""
        if not path.is_file():
            raise UsageError(f"no file {path}; ledgers are in checkpoints/ledgers/*.sqlite")
        try:
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
                about = {k: json.loads(v) for k, v in db.execute("select name, value from about")}
            return cls(path, {k: about[k] for k in ABOUT})
        except (sqlite3.DatabaseError, KeyError, ValueError) as e:
            raise UsageError(f"{path} is damaged, or is no ledger ({e})") from None

    @contextmanager
    def telling(self) -> Iterator[None]:
        """A block in which SQLite's errors become one line."""
        try:
            yield
        except sqlite3.DatabaseError as e:
            if isinstance(e, sqlite3.OperationalError):
                hint = "nothing that was bought before is lost; free some space, or mend its folder, and run the same command again"
                raise RunError(f"the ledger {self.path} cannot be read or written ({e}); {hint}") from e
            raise UsageError(f"{self.path} is damaged, or is no ledger ({e}); bring a copy back, or move it away and run again") from e

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """A block whose changes are kept together, or not at all."""
        with self.telling():
            self.db.execute("begin immediate")
            try:
                yield
            except BaseException:
                if self.db.in_transaction:
                    self.db.execute("rollback")
                raise
            self.db.execute("commit")

    @contextmanager
    def exclusive(self, pause: Callable[[], None] | None = None) -> Iterator[None]:
        """A block in which no other process buys answers of this teacher; it knows all that was bought. pause: called while it waits."""
        while True:
            try:
                self.lock.acquire(timeout=1)
                break
            except Timeout:
                if pause:
                    pause()
        try:
            self.refresh()
            yield
        finally:
            self.lock.release()

    def described(self) -> dict:
        """What the file says that its answers are of."""
        with self.telling():
            return {k: json.loads(v) for k, v in self.db.execute("select name, value from about")}

    def describe(self, name: str, value: str) -> None:
        """Notes something about the answers, which a later run may need."""
        with self.transaction():
            self.db.execute("insert or replace into about values (?, ?)", (name, json.dumps(value)))

    # ---- looking up

    def refresh(self) -> None:
        """Takes note of calls that were answered since the last time."""
        with self.telling():
            rows = self.db.execute("select id, keys from calls where state = 'answered' and id > ? order by id", (self.seen,)).fetchall()
        for call, keys in rows:
            self.remember(call, [keys[i : i + KEY] for i in range(0, len(keys), KEY)])
            self.seen = call

    def remember(self, call: int, keys: Iterable[bytes]) -> None:
        """Notes where the answers to these images stand; the first answer to an image holds."""
        for row, key in enumerate(keys):
            self.places.setdefault(key, (call, row))

    def find(self, keys: Sequence[bytes]) -> dict[bytes, np.ndarray]:
        """{key: answer (K,), or the class () of hard ones} of those images that were bought."""
        wanted = {}
        for key in keys:
            if place := self.places.get(key):
                wanted.setdefault(place[0], {})[key] = place[1]
        found, calls = {}, [*wanted]
        for some in (calls[i : i + 500] for i in range(0, len(calls), 500)):
            with self.telling():
                marks = ",".join("?" * len(some))
                rows = self.db.execute(f"select id, images, keys, answers, crc from calls where id in ({marks})", some).fetchall()
            for call, images, own, blob, crc in rows:
                if zlib.crc32(blob, zlib.crc32(own)) != crc:
                    hint = "bring a copy back, or move it away (its answers are then bought again)"
                    raise UsageError(f"{self.path} is damaged: the checksum of call {call} differs; {hint}")
                answers = self.decoded(blob, images)
                found |= {key: answers[row] for key, row in wanted[call].items()}
        return found

    def decoded(self, blob: bytes, images: int) -> np.ndarray:
        """Answers (n, K), or classes (n,), of a blob; UsageError where it has another size."""
        shape = (images,) if self.hard else (images, self.about["classes"])
        if len(blob) != 4 * np.prod(shape, dtype=int):
            raise UsageError(f"{self.path} is damaged: the answers of a call have {len(blob)} bytes; bring a copy back, or move it away")
        return np.frombuffer(blob, "<i4" if self.hard else "<f4").reshape(shape)

    # ---- buying

    def intend(self, request: str, run: str, stage: str, keys: Sequence[bytes], size: int, price: float) -> int:
        """Notes a call that is about to be sent, and gives its number. size: bytes of its images; price: of the call."""
        row = (request, run, stage, time.time(), "sent", len(keys), size, price, b"".join(keys))
        with self.transaction():
            sql = "insert into calls (request, run, stage, began, state, images, bytes, price, keys) values (?, ?, ?, ?, ?, ?, ?, ?, ?)"
            return self.db.execute(sql, row).lastrowid

    def add(self, run: str, stage: str, keys: Sequence[bytes], size: int, answers: np.ndarray, began: float) -> None:
        """Notes a call that a net of this process has answered: nothing was sent or paid. began: time; size: bytes of the images."""
        joined, blob = b"".join(keys), self.encoded(answers)
        row = ("", run, stage, began, time.time(), "answered", len(keys), size, 0.0, joined, blob, zlib.crc32(blob, zlib.crc32(joined)))
        with self.transaction():
            sql = "insert into calls (request, run, stage, began, ended, state, images, bytes, price, keys, answers, crc) values "
            call = self.db.execute(sql + "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row).lastrowid
        self.remember(call, keys)
        self.seen = max(self.seen, call)

    def encoded(self, answers: np.ndarray) -> bytes:
        """Answers (n, K), or classes (n,), as a blob."""
        return answers.astype("<i4" if self.hard else "<f4").tobytes()

    def end(self, call: int, state: str, answers: np.ndarray | None, attempts: Sequence[tuple], keys: Sequence[bytes] = ()) -> None:
        """Notes how a call ended: answered, refused (nothing is to be paid) or lost.

        attempts: (time, seconds, outcome, whether it may have been served without an answer here) each, but for those that are noted.
        """
        blob = None if answers is None else self.encoded(answers)
        crc = None if blob is None else zlib.crc32(blob, zlib.crc32(b"".join(keys)))
        with self.transaction():
            sql = "update calls set state = ?, ended = ?, answers = ?, crc = ? where id = ?"
            self.db.execute(sql, (state, time.time(), blob, crc, call))
            self.db.executemany("insert into attempts values (?, ?, ?, ?, ?)", [(call, *a) for a in attempts])
        if answers is not None:
            self.remember(call, keys)
            self.seen = max(self.seen, call)

    def note_attempts(self, call: int, attempts: Sequence[tuple]) -> None:
        """Notes attempts of a call before another one is sent; any thread may do so, on a connection of its own."""
        with self.telling(), closing(sqlite3.connect(self.path, timeout=60)) as db, db:
            db.executemany("insert into attempts values (?, ?, ?, ?, ?)", [(call, *a) for a in attempts])

    def add_hits(self, run: str, stage: str, images: int) -> None:
        """Counts images whose answers were here already."""
        with self.transaction():
            sql = "insert into hits values (?, ?, ?) on conflict do update set images = images + excluded.images"
            self.db.execute(sql, (run, stage, images))

    def rename_run(self, run: str) -> None:
        """Gives the calls of an earlier run of this name another name: it is started anew, and spends from 0."""
        with self.transaction():
            for table in ("calls", "hits"):
                self.db.execute(f"update {table} set run = ? where run = ?", (f"{run}, before {time.strftime('%Y-%m-%d %H:%M:%S')}", run))

    # ---- canaries: images that are asked about again, to see whether the teacher is still the same

    def canaries(self) -> list[tuple[bytes, bytes, np.ndarray]]:
        """(key, image, answer) of each."""
        with self.telling():
            rows = self.db.execute("select key, image, answer from canaries order by key").fetchall()
        return [(key, image, self.decoded(answer, 1)[0]) for key, image, answer in rows]

    def add_canaries(self, images: Sequence[tuple[bytes, bytes, np.ndarray]]) -> None:
        """Keeps these as canaries."""
        rows = [(key, image, self.encoded(answer)) for key, image, answer in images]
        with self.transaction():
            self.db.executemany("insert or ignore into canaries values (?, ?, ?)", rows)

    # ---- counts

    def totals(self, run: str | None = None) -> dict[str, int | float]:
        """Counts of all calls, or of one run's.

        images: answered, each once; rechecked: answered canaries; requests: calls; retries: further attempts of a call; hits: images
        whose answers were here; bytes: of answered images; cost; unanswered: images that may have been billed without an answer.
        """
        where, args = ("", ()) if run is None else (" and run = ?", (run,))
        with self.telling():
            one = lambda sql: self.db.execute(sql + where, args).fetchone()  # noqa: E731
            images, size, cost = one(TOTALS)
            (rechecked,) = one("select coalesce(sum(images), 0) from calls where state = 'answered' and stage = 'canary'")
            join = "from attempts join calls on calls.id = attempts.call where 1"
            (requests,) = one("select count(*) from calls where 1")
            (attempts,) = one(f"select count(*) {join}")
            (tried,) = one(f"select count(distinct call) {join}")
            (lost,) = one(f"select coalesce(sum(images), 0) {join} and lost")
            (open_calls,) = one("select coalesce(sum(images), 0) from calls where state = 'sent'")
            (hits,) = one("select coalesce(sum(images), 0) from hits where 1")
        return {
            "images": images - rechecked,
            "rechecked": rechecked,
            "requests": requests,
            "retries": attempts - tried,
            "hits": hits,
            "bytes": size,
            "cost": cost,
            "unanswered": lost + open_calls,
        }

    def seconds_per_request(self) -> float | None:
        """The median time of the last 100 answered requests; None where there was none."""
        with self.telling():
            sql = "select seconds from attempts where not lost and outcome = '200' order by rowid desc limit 100"
            seconds = [s for (s,) in self.db.execute(sql)]
        return statistics.median(seconds) if seconds else None

    def spent(self, run: str) -> float:
        """What a run has paid, with what is in doubt: answered calls, and each attempt that may have been billed."""
        with self.telling():
            return self.db.execute(SPENT, (run,)).fetchone()[0]

    # ---- for project/ledger.py

    def runs(self) -> list[str]:
        """The names of all runs, in the order in which they came."""
        with self.telling():
            sql = "select run from (select run, min(began) as first from calls group by run) order by first"
            asked = [run for (run,) in self.db.execute(sql)]
            return list(dict.fromkeys([*asked, *(run for (run,) in self.db.execute("select distinct run from hits order by run"))]))

    def rows(self) -> Iterator[tuple[bytes, int, str, str, list[float]]]:
        """(hash, call, run, stage, answer) of each image, in the order in which they were bought."""
        with self.telling():
            sql = "select id, run, stage, images, keys, answers from calls where state = 'answered' order by id"
            calls = self.db.execute(sql).fetchall()
        for call, run, stage, images, keys, blob in calls:
            for row, answer in enumerate(self.decoded(blob, images)):
                key = keys[row * KEY : (row + 1) * KEY]
                if self.places[key] == (call, row):
                    yield key, call, run, stage, np.atleast_1d(answer).tolist()

    def merge(self, other: "Ledger", any_teacher: bool = False) -> tuple[int, int]:
        """Adds the answered calls of another ledger; (images that are new, images that were known). Nothing is added twice.

        UsageError where it is of another teacher, response or number of classes; any_teacher: of another teacher it may be.
        """
        free = {"teacher", "identity"} if any_teacher else set()
        if off := [f"{k} {other.about[k]}, not {self.about[k]}" for k in ABOUT if k not in free and other.about[k] != self.about[k]]:
            hint = "" if {o.split()[0] for o in off} - {"teacher", "identity"} else "; for a server that has moved: --any_teacher"
            raise UsageError(f"{other.path} is of {', '.join(off)}{hint}")
        with self.exclusive():
            before, total = len(self.places), 0
            with other.telling():
                names = "request, run, stage, began, ended, state, images, bytes, price, keys, answers, crc"
                calls = other.db.execute(f"select {names} from calls where state = 'answered' order by id").fetchall()
            with self.transaction():
                for call in calls:
                    keys = [call[9][i : i + KEY] for i in range(0, len(call[9]), KEY)]
                    total += len(keys)
                    if any(key not in self.places for key in keys):
                        row = self.db.execute(f"insert into calls ({names}) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", call).lastrowid
                        self.remember(row, keys)
                        self.seen = max(self.seen, row)
            new = len(self.places) - before
            return new, total - new

    def close(self) -> None:
        self.db.close()
