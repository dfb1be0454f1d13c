"""Exact counts of what each key has been answered, in an SQLite file that survives the end of the process, whatever ends it.

Images are counted after their forward pass and before their answer leaves. What is being computed is reserved, so that concurrent requests
do not exceed a budget together.
"""

import math
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from filelock import FileLock, Timeout

from ..cli import UsageError
from .keys import Key
from .refusals import Refused

COLUMNS = ("images", "requests", "refused")
FORMAT = 1  # of the file, as its user_version
LOCK_WAIT = 1.0  # seconds; a server that was just killed holds its lock a moment longer


class Accounts:
    """The counts of all keys of one server, which alone may use the file. All methods may be called from any thread."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic):
        """Opens the file, or makes it. UsageError where another server has it, or where it is damaged or another kind of file."""
        self.path, self.clock = path, clock
        self.memory, self.disk = threading.Lock(), threading.Lock()  # of the counts here, of the file
        self.reserved, self.next = Counter(), {}  # images being computed; when a key with a rate may ask again
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.lock = FileLock(f"{path}.lock", is_singleton=False, thread_local=False)  # released by the thread that ends the server
            self.lock.acquire(timeout=LOCK_WAIT)
        except Timeout:
            raise UsageError(f"another server counts in {path}; stop it, or name another file with --accounts") from None
        except OSError as e:
            raise UsageError(f"cannot write {path} ({e.strerror}); name another file with --accounts") from None
        try:
            self.counts = self.opened()
        except sqlite3.Error as e:
            self.lock.release()
            raise UsageError(f"{path} is not a readable file of counts ({e}); name another file with --accounts") from None

    def opened(self) -> dict[str, Counter]:
        """{key: its counts} of the file, which is opened."""
        self.db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute("PRAGMA synchronous = FULL")
        (found,), tables = self.db.execute("PRAGMA user_version").fetchone(), self.db.execute("SELECT name FROM sqlite_master").fetchall()
        if tables and found != FORMAT:
            raise sqlite3.DatabaseError("it was made by another program")
        numbers = ", ".join(f"{c} INTEGER NOT NULL DEFAULT 0" for c in COLUMNS)
        self.db.execute(f"CREATE TABLE IF NOT EXISTS accounts (name TEXT PRIMARY KEY, {numbers}) STRICT")
        self.db.execute(f"PRAGMA user_version = {FORMAT}")
        rows = self.db.execute(f"SELECT name, {', '.join(COLUMNS)} FROM accounts").fetchall()
        return {name: Counter(dict(zip(COLUMNS, numbers, strict=True))) for name, *numbers in rows}

    def add(self, changes: Iterable[tuple[Key, dict[str, int]]], answered: bool = False) -> None:
        """Adds to the counts of keys, on disk when it returns. answered: whether the images were reserved."""
        changes = list(changes)
        with self.disk:
            self.db.execute("BEGIN IMMEDIATE")
            try:
                for key, more in changes:
                    self.db.execute("INSERT OR IGNORE INTO accounts (name) VALUES (?)", (key.name,))
                    sums = ", ".join(f"{c} = {c} + ?" for c in more)
                    self.db.execute(f"UPDATE accounts SET {sums} WHERE name = ?", (*more.values(), key.name))
                self.db.execute("COMMIT")
            except BaseException:
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
                raise
        with self.memory:
            for key, more in changes:
                self.counts.setdefault(key.name, Counter()).update(more)
                if answered:
                    self.reserved[key.name] -= more["images"]

    # ---- one request

    def reserve(self, key: Key, n: int) -> None:
        """Sets n images of a request aside. Refused (403) over the key's budget, Refused (429) over its rate; nothing is then set aside."""
        with self.memory:
            used, waiting = self.counts.get(key.name, Counter())["images"], self.reserved[key.name]
            if key.budget and used + waiting + n > key.budget:
                flying = f" and {waiting:,} being answered" if waiting else ""
                raise Refused(403, f"over the budget of {key.budget:,} images: {used:,} answered{flying}, {n:,} more requested")
            now = self.clock()
            if key.rate:
                due = self.next.get(key.name, now)
                if due > now:
                    seconds = math.ceil(due - now)
                    line = f"over the rate of {key.rate:g} images per second; ask again in {seconds} s"
                    raise Refused(429, line, {"Retry-After": str(seconds)})
                self.next[key.name] = now + n / key.rate
            self.reserved[key.name] += n

    def release(self, key: Key, n: int) -> None:
        """Gives back n images that were reserved and are not answered."""
        with self.memory:
            self.reserved[key.name] -= n

    def answered(self, requests: Iterable[tuple[Key, int]]) -> None:
        """Counts requests, (key, images) each, whose images were reserved; on disk when it returns."""
        self.add([(key, {"images": n, "requests": 1}) for key, n in requests], answered=True)

    def refuse(self, key: Key) -> None:
        """Counts a request that was refused."""
        self.add([(key, {"refused": 1})])

    def usage(self, key: Key) -> dict[str, str | int | float | None]:
        """The counts and limits of one key; None where there is no limit."""
        with self.memory:
            counts = self.counts.get(key.name, Counter())
            found = {"key": key.name} | {c: counts[c] for c in COLUMNS}
        left = max(0, key.budget - found["images"]) if key.budget else None
        return found | {"budget": key.budget or None, "left": left, "rate": key.rate or None, "response": key.response}

    def close(self) -> None:
        """Closes the file; what comes later fails."""
        with self.disk:
            self.db.close()
        self.lock.release()
