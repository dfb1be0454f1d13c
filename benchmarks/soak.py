"""soak: a client at full load for minutes, with failing requests: does its memory or its number of open files grow?

    python benchmarks/soak.py [--minutes 10] [--connections 4]

A server process (serve.py) answers new images of 1 x 32 x 32 pixels, whose answers the ledger keeps. One request in 20 fails on purpose:
it is not sent, or its answer is lost. It prints images, resident memory and open files of client and server, 20 times. It ends with
status 1 if, after the first quarter, the memory of the server grows by more than 5 %, that of the client by more than the ledger's index
(250 bytes an image) and 5 %, or the number of open files by more than one; or if the counts of server and ledger disagree.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from http.client import HTTPConnection
from pathlib import Path

import torch
from urllib3.exceptions import ProtocolError

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "project"))
from api import HALF, server

from common.api.ledger import Ledger
from common.api.paid import Paid
from common.api.remote import Remote
from common.options import TeacherOptions, flags, parse

INDEX = 250  # bytes of the ledger's index in memory, for each image
SHAPE = (1, 32, 32)


def state(pid: int) -> tuple[float, int]:
    """Returns (resident memory in MB, number of open files) of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(os.listdir(f"/proc/{pid}/fd"))


def make_failing(source: Remote) -> None:
    """Makes one request in 20 fail: before it is sent, or after the server has counted it."""
    request, chance = source.client.pool.request, random.Random(0)

    def sometimes(method: str, url: str, **more):
        if method != "POST" or (dice := chance.random()) >= 0.05:
            return request(method, url, **more)
        if dice < 0.025:
            answer = request(method, url, **more)
            answer.read()
            answer.release_conn()
        raise ProtocolError("cut off")

    source.client.pool.request = sometimes


def usage(url: str) -> int:
    """Returns how many images the server has counted."""
    connection = HTTPConnection(url.removeprefix("http://").partition("/")[0])
    connection.request("GET", "/v2/usage")
    return json.loads(connection.getresponse().read())["images"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--connections", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, server(Path(folder), "LeNet5_half", 256, SHAPE, "MNIST") as (url, pid):
        options = parse(TeacherOptions, flags(teacher=url, dataset="MNIST", ledger=True, api_batch=64, concurrency=args.connections))
        source = Remote(options, [str(k) for k in range(10)], SHAPE, HALF, HALF)
        source.describe()
        make_failing(source)
        ledger = Ledger(Path(folder) / "l.sqlite", {"teacher": url, "identity": "i", "response": "soft", "classes": 10})
        paid, began, rows, sent = Paid(options, source, ledger, 10, "soak"), time.monotonic(), [], 0
        while (now := (time.monotonic() - began) / 60) < args.minutes or len(rows) < 21:
            if now >= len(rows) * args.minutes / 20:
                rows.append((sent, *state(os.getpid()), *state(pid)))
                line = "{:6.1f} min {:10,} images  client {:7.1f} MB {:4} files  server {:7.1f} MB {:4} files"
                print(line.format(now, *rows[-1]), flush=True)
            paid.answer(torch.rand(1024, *SHAPE) * 2 - 1)
            sent += 1024
        served, totals = usage(url), ledger.totals()
    first, last = rows[len(rows) // 4], rows[-1]
    grown = last[1] - first[1], last[3] - first[3]
    allowed = 0.05 * first[1] + INDEX * (last[0] - first[0]) / 1e6, 0.05 * first[3]
    for name, more, most in zip(("client", "server"), grown, allowed, strict=True):
        print(f"memory of the {name} grown by {more:.1f} MB (allowed {most:.1f})")
    rest = f"{totals['unanswered']:,} unanswered, {totals['retries']:,} retries"
    print(f"images: {totals['images']:,} in the ledger, {served:,} counted by the server; {rest}")
    fine = grown[0] <= allowed[0] and grown[1] <= allowed[1] and last[2] <= first[2] + 1 and last[4] <= first[4] + 1
    return 0 if fine and totals["images"] <= served <= totals["images"] + totals["unanswered"] else 1


if __name__ == "__main__":
    sys.exit(main())
