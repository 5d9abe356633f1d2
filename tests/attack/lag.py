"""`make lag`: how late the server's event loop gets by each of the largest requests, as a table.

Each is sent several times and the least late is told: a busy machine makes the loop late by itself.
The exit code is 1 if one held it for longer than is promised.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import urllib.request
from datetime import date
from pathlib import Path
from typing import Any

from tests.attack.test_lag import LARGE, LATE, chat, complete, picture
from tests.attack.wire import post, wire
from tests.checkpoints import WRITERS
from tests.serving.conftest import Server, serving

ATTEMPTS = 3
BUCKET = "appliance_event_loop_lag_seconds_bucket"
BESIDE: dict[str, tuple[int, tuple[str, dict[str, Any]]]] = {
    "an ordinary one": (200, complete()),
    "base64 as long as a body may be": (400, chat([picture("A" * 64_000_000)])),
}


def buckets(server: Server) -> dict[float, float]:
    """How often the loop has been late by up to so many seconds."""
    with urllib.request.urlopen(server.base_url + "/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return {
        float(line.partition('le="')[2].partition('"')[0]): float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith(BUCKET)
    }


def latest(server: Server, request: bytes, expected: int) -> tuple[float, float]:
    """The bucket of the latest moment while a request is answered, and seconds until it was."""
    before, begun = buckets(server), time.perf_counter()
    with wire(server.base_url) as client:
        client.socket.settimeout(120)
        client.send(request)
        answer = client.answer()
    seconds = time.perf_counter() - begun
    assert answer.status == expected, answer.body[:300]
    after = buckets(server)
    worst, below = 0.0, 0.0
    for bound in sorted(after):
        more = after[bound] - before[bound]
        if more > below:
            worst, below = bound, more
    return worst, seconds


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attack.lag", description=__doc__)
    parser.add_argument("--output", type=Path, help="file of the table")
    options = parser.parse_args()
    rows, kept = [], True
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "llama"
        WRITERS["llama"](folder)
        told = [f"model.path={folder}", "model.name=tiny", "engine.threads=1"]
        with serving(*told, "media.image.limit=0") as server:
            for name, (expected, (path, body)) in (BESIDE | LARGE).items():
                request = post(path, body)
                worst, seconds = min(latest(server, request, expected) for _ in range(ATTEMPTS))
                kept = kept and worst <= float(LATE)
                row = f"{name} | {len(request) / 1e6:.1f} | {expected} | {seconds:.2f} | {worst:g}"
                rows.append(f"| {row} |")
                print(row, flush=True)
    head = "| request | MB | status | answered after, s | loop late by at most, s |"
    table = "\n".join([head, "| --- | ---: | ---: | ---: | ---: |", *rows])
    if options.output is not None:
        where = f"{os.cpu_count()} cores, Python {sys.version.split()[0]}"
        text = (
            f"# How late the event loop gets, {date.today()}\n\n{where}; `make lag`.\n\n{table}\n"
        )
        options.output.write_text(text)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
