"""The process: its socket, its signals, its end."""

import contextlib
import errno
import socket
from collections.abc import Callable, Iterator

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..cli import RunError
from .app import make_app
from .service import Service

GRACE = 10  # seconds that requests in flight have when the server stops
KEEP_ALIVE = 75  # seconds that an idle connection stays open
BACKLOG = 1024


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at an address; RunError where that is taken or not of this machine."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.create_server(address[:2], family=family, backlog=BACKLOG)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else an answer's second packet waits 40 ms; connections inherit it
        return sock
    except OSError as e:
        if e.errno == errno.EADDRINUSE:
            raise RunError(f"port {port} of {host} is in use; give another --port, or --port 0 for a free one") from None
        raise RunError(f"cannot listen at port {port} of {host} ({e.strerror}); give another --port or --host") from None


class Protocol(H11Protocol):
    """uvicorn's, whose answer to what is no HTTP is an error as the others are."""

    def send_400_response(self, msg: str) -> None:
        """Answers with {"error": one line}, and closes the connection."""
        super().send_400_response(f'{{"error":"{msg}"}}')


class Server(uvicorn.Server):
    """uvicorn's server on a socket that listens already; SIGTERM and Ctrl-C end it with success, a second Ctrl-C at once."""

    def __init__(self, service: Service, sock: socket.socket, ready: Callable[[str], object]):
        """ready: called with the line that the server is ready."""
        how = {"http": Protocol, "ws": "none", "lifespan": "off", "loop": "asyncio", "interface": "asgi3"}
        quiet = {"log_config": None, "log_level": "critical", "access_log": False, "server_header": False}
        limits = {"timeout_graceful_shutdown": GRACE, "timeout_keep_alive": KEEP_ALIVE, "backlog": BACKLOG}
        super().__init__(uvicorn.Config(make_app(service), **how, **quiet, **limits))
        self.service, self.sock, self.ready = service, sock, ready

    @property
    def url(self) -> str:
        """Where the model is."""
        host, port = self.sock.getsockname()[:2]
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{port}/v2/models/{self.service.model.name}"

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's; then says that requests are taken."""
        url = self.url
        await super().startup(sockets)
        self.ready(f"serving {self.service.title} at {url}; Ctrl-C stops")

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, which would raise the signals again at the end."""
        with super().capture_signals():
            try:
                yield
            finally:
                self._captured_signals.clear()

    def serve_until_stopped(self) -> None:
        """Answers requests until a signal or `should_exit`; then those in flight, and closes the accounts."""
        try:
            self.run([self.sock])
        finally:
            self.service.close(0 if self.force_exit else GRACE)
