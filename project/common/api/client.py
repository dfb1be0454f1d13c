"""HTTP to the teacher's server: one connection pool, attempts with waits between them, and a token that no message shows."""

import os
import random
import threading
import time
from collections.abc import Callable, Container
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import urllib3
from urllib3.exceptions import HTTPError, MaxRetryError, NewConnectionError, SSLError

from ..cli import RunError, UsageError
from .options import ApiOptions
from .wire import Incomplete

AGAIN = {408, 425, 429, 500, 502, 503, 504}  # statuses after which the same request may succeed
GATEWAY = {502, 504}  # statuses of a proxy, behind which the request may have been served
LARGEST = 2**30  # bytes of an answer
LONGEST = 60.0  # seconds between two attempts, unless the server asks for more


class Refused(RunError):
    """The server will not answer this request, however often it is sent. status: of its answer, 0 where it was unusable."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


def token_of(args: ApiOptions) -> str:
    """The access token, empty where there is none. UsageError for a file that cannot be read, and for what can be no token."""
    if args.token_file:
        try:
            token = Path(args.token_file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as e:
            raise UsageError(f"--token_file {args.token_file} cannot be read ({getattr(e, 'strerror', None) or 'it is no text'})") from None
        if not token:
            raise UsageError(f"--token_file {args.token_file} is empty")
    else:
        token = os.environ.get(args.token_env, "").strip() if args.token_env else ""
    if not token.isascii() or not token.isprintable() or " " in token:
        source = f"--token_file {args.token_file}" if args.token_file else f"the environment variable {args.token_env}"
        raise UsageError(f"{source} holds no token: it has spaces, line ends or letters that a header cannot have")
    return token


class Attempts(list[tuple[float, float, str, bool]]):
    """The attempts of a request that is paid for: (time, seconds, outcome, whether it may have been served without an answer here) of each.

    pay(new): called before an attempt that follows one that may have been billed, the last of those that are new since the last call; an
    error of it ends the attempts. paid: how many attempts are paid for, the first one included; noted: how many `pay` has seen.
    """

    def __init__(self, pay: Callable[[list[tuple[float, float, str, bool]]], None]):
        super().__init__()
        self.pay, self.paid, self.noted = pay, 1, 0

    def begin(self) -> None:
        """Pays for the next attempt, unless what was paid for the last one holds for it, too."""
        if self and self[-1][3]:
            self.pay(self[self.noted :])
            self.paid, self.noted = self.paid + 1, len(self)

    @property
    def lost(self) -> int:
        """How many may have been served without an answer here."""
        return sum(lost for *_, lost in self)


class Client:
    """Sends requests to one server. stopped: an event that ends all waits."""

    def __init__(self, args: ApiOptions, url: str):
        self.args, self.url, self.token = args, url, token_of(args)
        name, value = args.token_header, f"Bearer {self.token}" if args.token_header.lower() == "authorization" else self.token
        headers = {"User-Agent": "knowledge-distillation"} | ({name: value} if self.token else {})
        self.pool = urllib3.PoolManager(num_pools=2, maxsize=args.concurrency, block=True, headers=headers, retries=False)
        self.next_start, self.pacing, self.stopped, self.random = 0.0, threading.Lock(), threading.Event(), random.Random()

    def get(self, base: str = "") -> bytes:
        """The body of a GET request to the URL, or to another one of the server."""
        return self.ask("GET", "", None, {}, lambda body, headers: body, [], min(2, self.args.retries), base)

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: dict[str, str],
        understand: Callable[[bytes, dict], Any],
        attempts: list[tuple[float, float, str, bool]],
        retries: int | None = None,
        base: str = "",
        again: Container[int] = AGAIN,
    ) -> Any:
        """understand(body, headers) of the server's answer to a request below the URL, which is sent until it is answered.

        attempts: gets (time, seconds, outcome, whether the request may have been served without an answer here) of each; see Attempts.
        retries: further attempts, by default those of the options. again: statuses after which the request is sent again.
        Refused for a status after which it is no use, and for an answer that is not understood (see `understood`); RunError where all
        attempts failed.
        """
        retries = self.args.retries if retries is None else retries
        for number in range(retries + 1):
            self.pace(attempts)
            began, wait, answer, outcome, lost = time.time(), 0.0, None, "broken off", True
            try:
                how = {"timeout": self.args.timeout, "redirect": False, "preload_content": False}
                answer = self.pool.request(method, (base or self.url) + path, body=body, headers=self.pool.headers | headers, **how)
                content = answer.read(LARGEST + 1)
                outcome, lost = str(answer.status), answer.status in GATEWAY or answer.status == 200
                if answer.status == 200 and len(content) <= LARGEST:
                    found = understood(understand, content, answer.headers)
                    lost = False
                    return found
            except HTTPError as e:
                outcome, lost = self.failure(e), not isinstance(e, (NewConnectionError, SSLError))
                answer = None
            except ValueError as e:
                outcome, lost, answer = f"status 200, but {e}", True, None
                if not isinstance(e, Incomplete):
                    raise Refused(f"{self.url} gave an answer that cannot be used: {e}", 0) from None
            finally:
                attempts.append((began, time.time() - began, outcome, lost))
                if answer is not None:
                    answer.release_conn()
            if answer is not None:
                if answer.status not in again:
                    raise Refused(f"{self.url} answered with status {outcome}: {self.words(content)}", answer.status)
                outcome, wait = f"status {outcome}: {self.words(content)}", retry_after(answer.headers.get("Retry-After", ""))
            if number < retries:
                self.sleep(wait or min(LONGEST, 0.5 * 2**number) * self.random.uniform(0.5, 1.5))
        tries = f"{retries + 1} attempts" if retries else "one attempt"
        raise RunError(f"{self.url} did not answer in {tries} ({outcome}); the same command goes on when it does")

    def failure(self, e: HTTPError) -> str:
        """What went wrong, in words. RunError for a certificate that cannot be trusted."""
        reason = e.reason if isinstance(e, MaxRetryError) else e
        if isinstance(reason, SSLError):
            raise RunError(f"{self.url}: the connection cannot be trusted ({self.words(str(reason).encode())})") from None
        if isinstance(reason, NewConnectionError):
            return "no connection: is the server running?"
        if "timed out" in str(reason):
            return f"no answer within {self.args.timeout:g} s"
        return "connection lost"

    def words(self, content: bytes) -> str:
        """The beginning of a server's text on one line, without the token."""
        text = " ".join(content[:2000].decode(errors="replace").split())
        text = text.replace(self.token, "...") if self.token else text
        return text[:200] or "without a word"

    def pace(self, attempts: list[tuple[float, float, str, bool]]) -> None:
        """Waits until the next of a request's attempts may begin (--rps), and pays for it where it is paid for."""
        if self.args.rps:
            with self.pacing:
                start = max(time.monotonic(), self.next_start)
                self.next_start = start + 1 / self.args.rps
            self.sleep(start - time.monotonic())
        if isinstance(attempts, Attempts):
            attempts.begin()

    def sleep(self, seconds: float) -> None:
        """Waits, unless the run is being stopped."""
        if self.stopped.wait(max(0.0, seconds)):
            raise RunError("the run is being stopped")


def understood(understand: Callable[[bytes, dict], Any], body: bytes, headers: dict) -> Any:
    """understand(body, headers); ValueError, too, where the answer has other types, keys or sizes than those that it was read for."""
    try:
        return understand(body, headers)
    except (TypeError, KeyError, IndexError, OverflowError) as e:
        raise ValueError(f"it has values of another form ({type(e).__name__}: {e})") from e


def retry_after(text: str) -> float:
    """Seconds that the header Retry-After asks for, at most an hour; 0 where it says nothing that can be read."""
    try:
        seconds = float(text) if text.strip().isdecimal() else parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError):
        return 0.0
    return min(3600.0, max(0.0, seconds))
