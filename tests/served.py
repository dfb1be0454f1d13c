"""Servers for tests: `serving` starts project/serve.py as a process, `serving_here` in a thread of this one.

with serving(home, teacher="ResNet8", response="soft") as url:  # http://127.0.0.1:PORT/v2/models/ResNet8
"""

from common.cli import PARENT

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading

import serve
from conftest import ROOT, home_flags

from common.options import flags, parse
from common.serving.server import Server, listen
from common.serving.service import Service

READY = re.compile(r"serving .+ at (http://\S+); Ctrl-C stops")


def options_of(home, options):
    """The options of a server on a free port, of a teacher of Digits in `home` by default."""
    shared = {k: v for k, v in home_flags(home).items() if k != "logs_dir"}
    return shared | {"teacher": "ResNet8", "port": 0} | options


class Process:
    """A server's process. url: of its model. UsageError's line and exit status are in the AssertionError where it does not start."""

    def __init__(self, home, **options):
        command = [sys.executable, str(ROOT / "project" / "serve.py"), *flags(**options_of(home, options))]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self.process = subprocess.Popen(command, cwd=home, text=True, env=os.environ | {"OMP_NUM_THREADS": "1", PARENT: "1"}, **pipes)
        line = self.process.stdout.readline()
        if not (ready := READY.match(line)):
            self.process.kill()
            raise AssertionError(f"no ready line: {line!r}, {self.process.communicate()[1]!r}")
        self.url = ready[1]

    def stop(self, how=signal.SIGTERM, seconds=20):
        """(exit status, what it wrote to stderr) after a signal."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.end(seconds)

    def end(self, seconds=20):
        """(exit status, what it wrote to stderr) once it has ended."""
        try:
            _, stderr = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise
        return self.process.returncode, stderr


@contextlib.contextmanager
def serving(home, **options):
    """The URL of a model of a server process; it is stopped at the end, and must end well."""
    server = Process(home, **options)
    try:
        yield server.url
    finally:
        status, stderr = server.stop()
    assert (status, stderr) == (0, "")


@contextlib.contextmanager
def serving_here(home, **options):
    """The URL of a model of a server in a thread of this process, which starts in a moment."""
    args = parse(serve.Args, flags(**options_of(home, options)), "project/serve.py")
    ready = threading.Event()
    server = Server(Service(args), listen(args.host, args.port), lambda line: ready.set())
    url, thread = server.url, threading.Thread(target=server.serve_until_stopped)
    thread.start()
    try:
        assert ready.wait(20)
        yield url
    finally:
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()
