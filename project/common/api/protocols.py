"""Protocols of teachers' servers: what a request for some images looks like, and what its answer says."""

import base64
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import orjson

from ..cli import RunError, UsageError
from .answers import Reading, at, tolerance
from .client import AGAIN, Client, Refused
from .options import ApiOptions
from .wire import JSON_SIZE, pack, parsed, unpack

OUTPUTS = {
    "hard": ("label", "labels", "class", "classes", "prediction", "predict", "predictions"),
    "logits": ("logits", "scores", "output"),
}
OUTPUTS |= {"soft": ("probabilities", "probability", "predict_proba", "scores", "softmax", "logits", "output")}
MOST = 128  # images of a request to a server that does not say its own maximum


class OpenInference:
    """The Open Inference Protocol (KServe V2), https://github.com/kserve/open-inference-protocol.

    shape: (C, H, W). form: uint8 or float32, as images are sent. batch: images of a request. untried: whether the first request is still
    to show if the server takes binary data; it has one image.
    """

    def __init__(self, args: ApiOptions, client: Client, reading: Reading, shape: tuple[int, int, int]):
        self.args, self.client, self.reading, self.shape = args, client, reading, shape
        self.binary, self.untried, self.name, self.outputs, self.input_shape = True, True, "images", [], [-1, *shape]
        self.form = "uint8" if args.api_input == "auto" else args.api_input
        self.batch, self.about = args.api_batch or MOST, {}
        if self.form not in ("uint8", "float32"):
            raise UsageError(f"--api_input {self.form}: the Open Inference Protocol takes uint8 or float32")

    def describe(self) -> None:
        """Reads the server's metadata: names, shapes and types of its tensors. RunError where it does not answer or is of another kind."""
        a = self.args
        try:
            about = parsed(self.client.get())
            inputs, outputs = (about[field] or [] for field in ("inputs", "outputs"))
            if inputs:
                (own,) = inputs
                self.name, self.input_shape, dtype = own["name"], [int(n) for n in own["shape"]], own["datatype"]
            names = {o["name"]: (o["datatype"], o["shape"]) for o in outputs}
            self.about = about.get("parameters") or {}
            most, classes = self.about.get("max_batch", 0), self.about.get("classes")
        except (ValueError, KeyError, TypeError, AttributeError):
            hint = "give the URL of a model, http://host:port/v2/models/NAME, or another --protocol"
            raise RunError(f"{self.client.url} has no metadata of a model with one input; {hint}") from None
        if inputs:
            self.choose_form(dtype)
        elif a.api_input == "auto":
            raise UsageError(f"{self.client.url} does not say what its input is; give --api_input uint8 or float32")
        if not a.api_batch and type(most) is int and most > 0:
            self.batch = min(most, 8192)
        if isinstance(classes, list):
            self.reading.take_order(classes, self.client.url)
        self.check_shape()
        self.choose(names)
        self.untried = not self.says_binary()

    def choose_form(self, dtype: str) -> None:
        """Chooses the form in which images are sent, where --api_input leaves it open. RunError for a type that is not sent."""
        forms = {"UINT8": "uint8", "FP32": "float32"}
        if dtype not in forms:
            raise RunError(f"{self.client.url} takes {self.name} as {dtype}; this client sends UINT8 or FP32")
        if self.args.api_input == "auto":
            self.form = forms[dtype]

    def says_binary(self) -> bool:
        """Whether the server says that it takes binary data, so that no request has to show it."""
        try:
            about = parsed(self.client.get(base=self.client.url.partition("/v2/models/")[0] + "/v2"))
            return "binary_tensor_data" in about["extensions"]
        except (RunError, ValueError, KeyError, TypeError):
            return False

    def check_shape(self) -> None:
        """UsageError where the server takes images of another shape than the run's."""
        c, h, w = self.shape
        own = self.input_shape[1:]
        fits = [[c, h, w], [h, w, c], [c * h * w]] + [[h, w]] * (c == 1)
        if not any(len(f) == len(own) and all(n in (-1, m) for n, m in zip(own, f, strict=True)) for f in fits):
            sizes = "x".join(map(str, own))
            raise UsageError(f"{self.client.url} takes images of {sizes}, the run's are {c}x{h}x{w}; give --img_size or --channels")

    def choose(self, outputs: Mapping[str, tuple[str, list[int]]]) -> None:
        """Chooses the output tensors that are asked for, none where the server names none. UsageError where none fits --response."""
        kind, wanted = self.reading.kind, self.args.api_output
        if not outputs:
            self.outputs = [wanted] if wanted else []
            return
        if kind == "topk" and not wanted and {"scores", "labels"} <= outputs.keys():
            self.outputs = ["scores", "labels"]
            self.check_columns(outputs["scores"][1])
            return
        usable = {n for n, (d, s) in outputs.items() if kind == "hard" or wanted or d.startswith("FP") or len(s) != 1}  # not a class alone
        found = self.preferred(n for n in outputs if n in usable)
        if found is None and not wanted and len(usable) == 1:
            (found,) = usable
        if found is None:
            there = ", ".join(f"{n} ({d} {s})" for n, (d, s) in outputs.items())
            asked = f"--api_output {wanted}" if wanted else f"--response {self.reading.response}"
            raise UsageError(f"{self.client.url} has no output for {asked}; it has: {there}; choose with --api_output or --response")
        self.outputs = [found]

    def check_columns(self, shape: Sequence[int]) -> None:
        """UsageError where the server's metadata say, before an image is sent, that it tells fewer probabilities than --response wants."""
        if len(shape) == 2 and type(shape[1]) is int and 0 < shape[1] < self.reading.k:
            raise UsageError(f"{self.client.url} {self.too_few(shape[1])}")

    def preferred(self, names: Iterable[str]) -> str | None:
        """The output of these names that fits --api_output or --response best, None where none does."""
        kind, wanted, names = self.reading.kind, self.args.api_output, list(names)
        order = (wanted,) if wanted else (*OUTPUTS["hard"], *OUTPUTS["soft"]) if kind == "hard" else OUTPUTS.get(kind, OUTPUTS["soft"])
        return next((n for o in order for n in names if n.lower() == o.lower()), None)

    def send(self, parts: Sequence[bytes], request: str, attempts: list[tuple]) -> np.ndarray:
        """The answers to images, each as encoded bytes. request: its id. For attempts see Client.ask."""
        try:
            found = self.post(parts, request, attempts)
        except Refused as e:
            if not (self.binary and self.untried) or e.status in (401, 402, 403, 404):
                raise
            self.binary = False  # now as JSON, which all servers take
            found = self.post(parts, request, attempts)
        self.untried = False
        return found

    def post(self, parts: Sequence[bytes], request: str, attempts: list[tuple]) -> np.ndarray:
        c, h, w = self.shape
        images = np.frombuffer(b"".join(parts), np.uint8 if self.form == "uint8" else "<f4").reshape(len(parts), c, h, w)
        own = self.input_shape[1:]
        if len(own) == 3 and own[0] in (-1, h) and own[2] == c and not (c == h and own[0] == c):
            images = images.transpose(0, 2, 3, 1)
        elif len(own) < 3:
            images = images.reshape(len(parts), -1) if len(own) == 1 else images[:, 0]
        outputs = [{"name": n} | ({"parameters": {"binary_data": True}} if self.binary else {}) for n in self.outputs]
        head = {"id": request} | ({"outputs": outputs} if outputs else {})
        body, headers = pack(head, {self.name: images}, "inputs", self.binary)
        again = AGAIN
        if self.binary and self.untried:  # MLServer answers binary data with 422 or 500, and breaks the connection off after a 500
            headers, again = headers | {"Connection": "close"}, AGAIN - {500}
        return self.client.ask("POST", "/infer", body, headers, lambda b, h: self.read(b, h, len(parts)), attempts, again=again)

    def read(self, body: bytes, headers: Mapping[str, str], images: int) -> np.ndarray:
        """The answers in a response. ValueError for a response that cannot be used."""
        _, tensors = unpack(body, headers.get(JSON_SIZE), "outputs")
        if self.outputs == ["scores", "labels"] and {"scores", "labels"} <= tensors.keys():
            found = self.scattered(tensors["scores"], tensors["labels"])
        else:
            name = next((n for n in self.outputs if n in tensors), None) or self.preferred(tensors) or next(iter(tensors))
            values = tensors[name]
            flat = values.ndim == 1 or (values.ndim == 2 and values.shape[1] == 1 < len(self.reading.classes))
            if flat and self.reading.kind != "hard":
                raise ValueError(f"{name} has the shape {values.shape}, a class for each image; use --response hard")
            found = self.reading.labels(values) if flat else self.reading.scores(values, name.lower() == "logits")
        if len(found) != images:
            raise ValueError(f"it has {len(found)} answers to {images} images")
        return found

    def scattered(self, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Probabilities (n, K), NaN where none was told, of the k largest and their classes (n, k)."""
        k = len(self.reading.classes)
        if scores.shape != labels.shape or scores.ndim != 2 or labels.dtype.kind not in "iu":
            raise ValueError(f"its scores have the shape {scores.shape}, its labels {labels.shape} {labels.dtype}")
        scores = scores.astype(np.float32)
        if not np.isfinite(scores).all() or labels.min() < 0 or labels.max() >= k or scores.min() < -1e-3:
            raise ValueError("its scores are no probabilities, or its labels no classes")
        if scores.sum(1).max() > 1 + tolerance(scores):
            raise ValueError(f"its scores are no probabilities (an image's sum to {scores.sum(1).max():.3g})")
        rows = np.full((len(scores), k), np.nan, np.float32)
        np.put_along_axis(rows, labels.astype(np.int64), scores, 1)
        if (told := np.isfinite(rows).sum(1).min()) < self.reading.k:
            raise ValueError(f"it {self.too_few(told)}")
        return self.reading.top(self.reading.ordered(rows))

    def too_few(self, told: int) -> str:
        """What is wrong where the server tells fewer probabilities of an image than --response wants."""
        return (
            f"tells {told} probabilities of an image, --response {self.reading.response} wants {self.reading.k}; use --response topk:{told}"
        )


class HuggingFace:
    """The image-classification task of Hugging Face's inference API: an image file in, [{"label", "score"}] out; one image a request.

    https://huggingface.co/docs/inference-providers/tasks/image-classification
    """

    batch, untried, about = 1, False, {}

    def __init__(self, args: ApiOptions, client: Client, reading: Reading, shape: tuple[int, int, int]):
        self.args, self.client, self.reading = args, client, reading
        self.form = file_form(args)

    def describe(self) -> None:
        """Nothing: the task has no metadata."""

    def send(self, parts: Sequence[bytes], request: str, attempts: list[tuple]) -> np.ndarray:
        """See OpenInference.send."""
        top_k = 1 if self.reading.kind == "hard" else self.reading.k
        body = orjson.dumps({"inputs": base64.b64encode(parts[0]).decode(), "parameters": {"top_k": top_k}})
        headers = {"Content-Type": "application/json", "X-Request-Id": request}
        return self.client.ask("POST", "", body, headers, lambda body, _: self.read(body), attempts)

    def read(self, body: bytes) -> np.ndarray:
        """The answer in a response. ValueError for a response that cannot be used."""
        found = parsed(body)
        found = found[0] if isinstance(found, list) and found and isinstance(found[0], list) else found
        if not isinstance(found, list) or not all(isinstance(e, dict) and {"label", "score"} <= e.keys() for e in found):
            raise ValueError("it is no list of label and score")
        return self.reading.lists([[(e["label"], e["score"]) for e in found]])


class LabelScores:
    """A JSON answer with labels and scores at paths that options name; one image a request, as a file or in a JSON body."""

    batch, untried, about = 1, False, {}

    def __init__(self, args: ApiOptions, client: Client, reading: Reading, shape: tuple[int, int, int]):
        self.args, self.client, self.reading = args, client, reading
        self.form = file_form(args)
        if args.api_body:
            try:
                parsed(args.api_body.encode())
                assert '"$IMAGE"' in args.api_body
            except (ValueError, AssertionError):
                example = '\'{"image": "$IMAGE"}\''
                raise UsageError(f'--api_body is no JSON with "$IMAGE" in the image\'s place; for example {example}') from None

    def describe(self) -> None:
        """Nothing: such services have no common metadata."""

    def send(self, parts: Sequence[bytes], request: str, attempts: list[tuple]) -> np.ndarray:
        """See OpenInference.send."""
        body, kind = parts[0], f"image/{self.form}"
        if self.args.api_body:
            body = self.args.api_body.replace("$IMAGE", base64.b64encode(body).decode()).encode()
            kind = "application/json"
        return self.client.ask("POST", "", body, {"Content-Type": kind, "X-Request-Id": request}, lambda b, _: self.read(b), attempts)

    def read(self, body: bytes) -> np.ndarray:
        """The answer in a response. ValueError for a response that cannot be used."""
        content = parsed(body)
        if not self.args.api_labels:  # scores of all classes, in order
            values = at(content, self.args.api_scores)
            return self.reading.scores(np.asarray(values[0] if len(values) == 1 else values, np.float32)[None])
        labels = at(content, self.args.api_labels)
        scores = at(content, self.args.api_scores) if self.args.api_scores else [None] * len(labels)
        if len(labels) != len(scores):
            raise ValueError(f"it has {len(labels)} labels and {len(scores)} scores")
        return self.reading.lists([list(zip(labels, scores, strict=True))])


def file_form(args: ApiOptions) -> str:
    """png or jpeg. UsageError for a form that is no file."""
    form = "png" if args.api_input == "auto" else args.api_input
    if form not in ("png", "jpeg"):
        raise UsageError(f"--api_input {form}: this protocol takes image files; use png or jpeg")
    return form


PROTOCOLS = {"v2": OpenInference, "hf": HuggingFace, "list": LabelScores}
