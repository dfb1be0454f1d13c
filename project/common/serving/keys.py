"""API keys: who may ask, how much, and what the answers contain."""

import hashlib
import hmac
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..blackbox import RESPONSES, rank
from ..cli import UsageError
from ..utils import check_regular
from ..values import short
from .options import DIGITS, AccessOptions
from .refusals import Refused

ENTRIES = {"name": str, "token": str, "token_sha256": str, "budget": int, "rate": (int, float), "response": str, "digits": int}
ANYONE = "anyone"  # the account without --keys


@dataclass(frozen=True)
class Key:
    """One who may ask. hash: SHA-256 of the token; the token itself is not kept. budget: images; rate: images a second; 0: no limit."""

    name: str
    hash: str
    budget: int
    rate: float
    response: str
    digits: int


class Keys:
    """The keys of a server; without a file one key, which everyone has."""

    def __init__(self, args: AccessOptions):
        """Reads the file --keys; UsageError, which shows no token, where it is malformed."""
        self.open = not args.keys
        whoever = Key(ANYONE, "", args.query_budget, args.rate, args.response, args.digits)
        self.all = [whoever] if self.open else read_keys(Path(args.keys), args)

    def of(self, headers: Mapping[str, str]) -> Key:
        """The key whose token is in a request's headers; Refused (401) where there is none, or an unknown one."""
        if self.open:
            return self.all[0]
        kind, _, token = headers.get("authorization", "").partition(" ")
        token = token.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "").strip()
        challenge = {"WWW-Authenticate": "Bearer"}
        if not token:
            raise Refused(401, "an API key is needed; send the header Authorization: Bearer TOKEN, or X-API-Key: TOKEN", challenge)
        digest, found = hashlib.sha256(token.encode("latin-1", "replace")).hexdigest(), None
        for key in self.all:  # all of them, so that the time does not tell which one is near
            if hmac.compare_digest(digest, key.hash):
                found = key
        if not found:
            raise Refused(401, "the API key is not known", challenge)
        return found


def read_keys(path: Path, args: AccessOptions) -> list[Key]:
    """The keys of a TOML file; what an entry leaves out is as the options say. UsageError, which shows no token."""
    check_regular(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"--keys: no file {path}") from None
    except UnicodeDecodeError:
        raise UsageError(f"--keys: {path} is not a TOML file (it is no UTF-8 text)") from None
    except tomllib.TOMLDecodeError as e:
        where = re.search(r"\(at [^()]*\)$", str(e))  # the rest may show what stands there
        raise UsageError(f"--keys: {path} is not a TOML file {where[0] if where else ''}".rstrip()) from None
    entries = content.get("keys")
    if content.keys() != {"keys"} or not isinstance(entries, list) or not entries or not all(isinstance(e, dict) for e in entries):
        raise UsageError(f"--keys: {path} must have entries [[keys]], each with name and token, and nothing else; see docs/serving.md")
    keys = [key_of(entry, f"--keys: {path}, key {i}", args) for i, entry in enumerate(entries, 1)]
    for what in ("name", "hash"):
        values = [getattr(key, what) for key in keys]
        if twice := [i for i, v in enumerate(values, 1) if v in values[: i - 1]]:
            raise UsageError(f"--keys: {path}, key {twice[0]}: another key has the same {'token' if what == 'hash' else what}")
    return keys


def key_of(entry: dict, where: str, args: AccessOptions) -> Key:
    """One key; UsageError for a wrong entry. where: which one it is, for the message."""
    for k, v in entry.items():
        if k not in ENTRIES:
            raise UsageError(f"{where}: there is no entry {short(k)}; there are {', '.join(ENTRIES)}")
        if not isinstance(v, ENTRIES[k]) or isinstance(v, bool):
            raise UsageError(f"{where}: {k} must be {'a text' if ENTRIES[k] is str else 'a number'}")
    name = entry.get("name", "")
    if not re.fullmatch(r"[\w.@-]{1,100}", name):
        raise UsageError(f"{where}: name {short(name)} must be 1 to 100 letters, digits, '.', '-', '_' or '@'")
    where = f"{where} ({name})"
    limits = {k: entry.get(k, default) for k, default in (("budget", args.query_budget), ("rate", args.rate), ("digits", args.digits))}
    if not 0 <= limits["budget"] < 2**63 or not 0 <= limits["rate"] < math.inf or not 0 <= limits["digits"] <= DIGITS:
        raise UsageError(f"{where}: budget and rate must be at least 0, digits from 0 to {DIGITS}")
    return Key(name, hash_of(entry, where), response=response_of(entry, where, args), **limits)


def hash_of(entry: dict, where: str) -> str:
    """The SHA-256 of a key's token; UsageError where there is none."""
    token = entry.get("token", "")
    if bool(token) == ("token_sha256" in entry):
        raise UsageError(f"{where}: give either token or token_sha256")
    if token and (not re.fullmatch(r"[!-~]+", token) or len(token) < 8):
        raise UsageError(f"{where}: token must have at least 8 letters, all printable ASCII, without spaces")
    digest = hashlib.sha256(token.encode()).hexdigest() if token else entry["token_sha256"].lower()
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise UsageError(f"{where}: token_sha256 must be 64 hexadecimal digits, those of the token's SHA-256")
    return digest


def response_of(entry: dict, where: str, args: AccessOptions) -> str:
    """The response of a key; UsageError for another than a server has."""
    response = entry.get("response", args.response)
    try:
        allowed = rank(response) < RESPONSES.index("inside")
    except UsageError:
        allowed = False
    if not allowed:
        raise UsageError(f"{where}: response {short(response)}: there are hard, topk:K, soft and logits")
    return response
