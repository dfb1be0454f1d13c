"""Options of a teacher behind a server, which every script that asks a teacher has."""

import re
from dataclasses import dataclass
from typing import ClassVar, Literal
from urllib.parse import parse_qsl, urlsplit

from ..arguments import opt
from ..cli import UsageError
from ..processes import world_size
from ..utils import is_url

SECRET = re.compile("key|token|secret|sig|pass|auth", re.IGNORECASE)


def check_url(url: str) -> None:
    """UsageError for a URL that no request can go to, or that holds a secret, which logs and results would show."""
    try:
        parts = urlsplit(url)
        host = parts.hostname and (parts.port or True)
    except ValueError:
        host = None
    if not host:
        raise UsageError(f"--teacher {url} is no URL of a server; give http://host:port/v2/models/NAME")
    secrets = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True) if SECRET.search(name)]
    if parts.username or parts.password or secrets:
        what = f"the parameter {secrets[0]}" if secrets else "a user name or a password"
        raise UsageError(f"--teacher: its URL has {what}, which results would show; give the token with --token_env or --token_file")


@dataclass
class ApiOptions:
    GROUP: ClassVar = "API"
    LIMITS: ClassVar = {"api_batch", "concurrency", "rps", "timeout", "retries", "token_env", "token_file", "token_header"}
    LIMITS |= {"price_per_1k", "currency", "max_cost", "ledger"}  # what may differ when a run is resumed
    READING: ClassVar = ("api_output", "api_scale", "api_labels", "api_scores", "api_body", "api_classes")  # how answers are read

    protocol: Literal["auto", "v2", "hf", "list"] = opt(
        "auto",
        "protocol of the teacher's server: Open Inference Protocol (v2), Hugging Face image classification (hf), or a JSON list of labels "
        "and scores (list); auto: v2 if the URL contains /v2/models/, hf otherwise",
    )
    api_input: Literal["auto", "uint8", "float32", "png", "jpeg"] = opt(
        "auto",
        "form of the images that are sent: pixels from 0 to 255 (uint8), normalised numbers (float32; --teacher_normalize, else as the "
        "server's metadata states, else --normalize), or files; auto: what the server's metadata says (v2), png otherwise",
    )
    api_output: str = opt("", "name of the server's output tensor (v2); left out: the one that fits --response")
    api_scale: Literal["auto", "probability", "percent", "log", "logit"] = opt(
        "auto", "scale of the server's scores; auto: logit for an output named logits or with --response logits, probability otherwise"
    )
    api_labels: str = opt("", "path to the labels in the server's JSON answer (list), such as predictions[].name")
    api_scores: str = opt("", "path to the scores in the server's JSON answer (list), such as predictions[].confidence")
    api_body: str = opt(
        "", 'JSON body of a request (list), such as {"image": "$IMAGE"}, where $IMAGE becomes the file in base64; left out: the file itself'
    )
    api_classes: str = opt("", "file that maps the server's labels to classes: a JSON object, or a CSV file with the columns label, class")
    api_batch: int = opt(0, "number of images per request (v2); 0: the server's maximum if its metadata says it, 128 otherwise", ge=0)
    concurrency: int = opt(1, "number of parallel requests", ge=1, le=256)
    rps: float = opt(0.0, "maximum number of requests per second; 0: no limit", ge=0)
    timeout: float = opt(60.0, "timeout of one attempt in seconds", gt=0)
    retries: int = opt(
        8,
        "number of further attempts after a temporary error (status 408, 425, 429, 500, 502 to 504, lost connection, timeout)",
        ge=0,
        le=100,
    )
    token_env: str = opt("TEACHER_TOKEN", "environment variable with the access token for the server, if it needs one")
    token_file: str = opt("", "file with the access token, instead of --token_env")
    token_header: str = opt("Authorization", "HTTP header of the token; Authorization has Bearer TOKEN, others the token alone")
    price_per_1k: float = opt(0.0, "price of 1,000 images that are sent; 0: unknown", ge=0)
    currency: str = opt("USD", "currency of the price")
    max_cost: float = opt(0.0, "maximum cost of the run, which pays for no image beyond it; needs --price_per_1k; 0: no limit", ge=0)
    ledger: bool = opt(
        False,
        "keep all answers in CHECKPOINTS_DIR/ledgers, and send no image whose answer is there; on for a server, where --no_ledger "
        "neither reads nor writes answers",
    )
    audit: str = opt(
        "auto",
        "number of test images that the teacher classifies to report its accuracy and the agreement: all, none or N (paid for, but no "
        "queries of the method); auto: none for a server or a py: function, all otherwise",
    )

    def check_api(self) -> None:
        """UsageError for options that do not go together."""
        if self.audit not in ("auto", "all", "none") and not re.fullmatch("[1-9][0-9]{0,8}", self.audit):
            raise UsageError(f"--audit {self.audit}: there are auto, all, none, and a number of test images such as 200")
        if self.max_cost and not self.price_per_1k:
            raise UsageError(f"--max_cost {self.max_cost:g} needs the price of an image: give --price_per_1k")
        if not re.fullmatch("[A-Za-z0-9-]{1,100}", self.token_header):
            raise UsageError(f"--token_header {self.token_header!r} is no name of an HTTP header; give one such as X-API-Key")
        if not is_url(self.teacher):
            return
        check_url(self.teacher)
        if world_size() > 1 and not self.ledger:
            raise UsageError("torchrun and a teacher's URL need the ledger, in which all processes find the answers; leave --no_ledger out")
        if self.response == "inside":
            raise UsageError(f"--response inside: {self.teacher} is a server, which shows no features; use logits, soft, topk:K or hard")
        if self.chosen_protocol() == "list" and not (self.api_labels or self.api_scores):
            raise UsageError("--protocol list needs --api_labels PATH, and --api_scores PATH unless --response is hard")

    def chosen_protocol(self) -> str:
        """v2, hf or list."""
        return self.protocol if self.protocol != "auto" else "v2" if "/v2/models/" in self.teacher else "hf"
