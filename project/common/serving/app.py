"""The routes of a server, and what stands around each request: limits, errors in one line, metrics."""

import asyncio
import contextlib
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..api import wire
from ..cli import complain
from . import protocol, tasks
from .batching import Job
from .keys import Key
from .refusals import Refused, one_line
from .service import Service

SMALL = 2**16  # bytes of a body that is decoded on the event loop
DRAIN_SECONDS = 5.0  # a refused request may go on sending its body so long; many clients read an answer only then


def reply(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(orjson.dumps(content), status, headers, "application/json")


def line_of(request: Request, e: HTTPException) -> Response:
    """The answer to a request that no route takes."""
    lines = {404: f"there is no {request.url.path}", 405: f"{request.method} is not allowed for {request.url.path}"}
    return reply({"error": one_line(lines.get(e.status_code, e.detail))}, e.status_code, dict(e.headers or {}))


async def in_thread(size: int, f: Callable, *args: Any) -> Any:
    """f(*args), in a thread where `size` bytes are many, so that other requests go on."""
    return f(*args) if size < SMALL else await asyncio.to_thread(f, *args)


class Routes:
    """The endpoints of one service."""

    def __init__(self, service: Service):
        self.service, self.model = service, service.model

    def all(self) -> list[Route]:
        """Every route, also of a model's version."""
        get = {"/v2": self.server, "/v2/health/live": self.live, "/v2/health/ready": self.ready, "/v2/usage": self.usage}
        found = [Route(path, f) for path, f in (get | {"/metrics": self.metrics}).items()]
        for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            found += [Route(path, self.metadata), Route(f"{path}/ready", self.model_ready)]
            found.append(Route(f"{path}/infer", self.infer, methods=["POST"]))
        return [*found, Route("/models/{name}", self.classify, methods=["POST"])]

    # ---- about the server

    async def server(self, request: Request) -> Response:
        """Name and extensions of the server."""
        return reply(protocol.SERVER)

    async def live(self, request: Request) -> Response:
        """Whether the process answers."""
        return reply({"live": True})

    async def ready(self, request: Request) -> Response:
        """Whether requests are taken."""
        return reply({"ready": True})

    async def usage(self, request: Request) -> Response:
        """The counts and limits of the caller's key."""
        return reply(self.service.accounts.usage(self.key(request)))

    async def metrics(self, request: Request) -> Response:
        """Prometheus' text."""
        return Response(self.service.metrics.text(), headers={"Content-Type": self.service.metrics.content_type})

    # ---- about the model

    def check_name(self, request: Request) -> None:
        """Refused (404) for another model or version."""
        name, version = request.path_params["name"], request.path_params.get("version", self.model.version)
        if name != self.model.name:
            raise Refused(404, f"there is no model {name!r}; there is {self.model.name}")
        if version != self.model.version:
            raise Refused(404, f"{name} has no version {version!r}; there is {self.model.version}")

    async def metadata(self, request: Request) -> Response:
        """Inputs, outputs and parameters, as the caller's key sees them."""
        self.check_name(request)
        key = self.key(request)
        return reply(protocol.metadata(self.model, key, self.service.args.input, self.service.args.max_batch))

    async def model_ready(self, request: Request) -> Response:
        """Whether the model takes requests."""
        self.check_name(request)
        return reply({"name": self.model.name, "ready": True})

    async def infer(self, request: Request) -> Response:
        """Answers to images, by the Open Inference Protocol."""
        self.check_name(request)
        key = self.key(request)
        body = await self.body(request)
        size, most = request.headers.get(wire.JSON_SIZE), self.service.args.max_batch
        ask = await in_thread(len(body), protocol.read_ask, body, size, self.model, key, most)
        outputs = await self.answers(key, ask.images, ask.outputs)
        body, headers = await in_thread(sum(v.nbytes for v in outputs.values()), protocol.answer, self.model, ask, outputs)
        return Response(body, headers=headers)

    async def classify(self, request: Request) -> Response:
        """The classes of one picture, as Hugging Face's task has them."""
        self.check_name(request)
        key = self.key(request)
        body = await self.body(request)
        kind, query = request.headers.get("content-type", ""), request.query_params.get("top_k")
        picture, top_k = await asyncio.to_thread(tasks.read_request, body, kind, query)
        images = await asyncio.to_thread(self.model.to_pixels, picture)
        outputs = await self.answers(key, images, tasks.outputs_for(key))
        return reply(tasks.ranked(outputs, self.model.classes, key, top_k))

    # ---- parts of a request

    def key(self, request: Request) -> Key:
        """The caller's key; Refused (401) without one."""
        request.state.key = key = self.service.keys.of(request.headers)
        return key

    async def body(self, request: Request) -> bytes:
        """The body of a request; Refused (413) as soon as it is larger than --max_body_mb, whatever its Content-Length."""
        self.service.batcher.check_room()
        if (coding := request.headers.get("content-encoding", "identity").lower()) != "identity":
            raise Refused(415, f"the body is compressed ({coding}); send it as it is", {"Accept-Encoding": "identity"})
        most, parts, size = self.service.args.max_body_mb * 10**6, [], 0
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > most:
            raise Refused(413, f"the body has {int(length):,} bytes; at most {most:,} are read")
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise Refused(413, f"the body has more than {most:,} bytes")
            parts.append(part)
        return b"".join(parts)

    async def answers(self, key: Key, images: np.ndarray, outputs: list[str]) -> dict[str, np.ndarray]:
        """{output: values} of images; Refused over budget, rate and queue, before anything is computed."""
        self.service.batcher.check_room()
        self.service.accounts.reserve(key, len(images))
        return await asyncio.wrap_future(self.service.batcher.put(Job(key, images, outputs)))

    async def refused(self, request: Request, e: Refused) -> Response:
        """The answer to a request that is refused: {"error": one line}. 403 and 429 are counted for the key."""
        if e.status in (403, 429) and (key := getattr(request.state, "key", None)):
            await asyncio.to_thread(self.service.accounts.refuse, key)
        return reply({"error": e.line}, e.status, e.headers)


class Guard:
    """What stands around every request: an unexpected error becomes one line, a refused body is read to its end, metrics are taken."""

    def __init__(self, app: ASGIApp, service: Service):
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, status, more = time.perf_counter(), 0, scope["method"] == "POST"

        async def tracked() -> Message:
            nonlocal more
            message = await receive()
            more = message.get("more_body", False)
            return message

        async def drained(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if more and not any(name == b"expect" for name, _ in scope["headers"]):
                    await drain(tracked, lambda: more, self.service.args.max_body_mb * 10**6)
                if more:  # what comes next on this connection is no request
                    message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        try:
            await self.app(scope, tracked, drained)
        except ClientDisconnect:
            status = 499
        except Exception as e:
            report(e)
            if not status:
                await reply({"error": f"unexpected error: {type(e).__name__}; the server's log says where"}, 500)(scope, receive, drained)
        finally:
            self.service.metrics.requests.labels(status or 499).inc()
            self.service.metrics.seconds.observe(time.perf_counter() - began)


async def drain(receive: Receive, more: Callable[[], bool], most: int) -> None:
    """Reads what is left of a body and drops it: at most so many bytes, for DRAIN_SECONDS."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while more() and most > 0:
                most -= len((await receive()).get("body", b""))


def report(e: Exception) -> None:
    """One line on stderr about an unexpected error, without its message: that may show what a request has sent."""
    places = traceback.extract_tb(e.__traceback__)
    own = next((f for f in reversed(places) if "site-packages" not in f.filename), None)
    where = f" at {Path(own.filename).name}:{own.lineno}" if own else ""
    complain(f"unexpected error{where}: {type(e).__name__}", 1)
    if "--debug" in sys.argv:
        print("".join(traceback.format_list(places)), file=sys.stderr, end="", flush=True)


def make_app(service: Service) -> Starlette:
    """The ASGI application of a service."""
    routes = Routes(service)
    handlers = {Refused: routes.refused, HTTPException: line_of}
    return Starlette(routes=routes.all(), exception_handlers=handlers, middleware=[Middleware(Guard, service=service)])
