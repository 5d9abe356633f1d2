"""Bodies that are small on their way and large once decompressed."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.attack.test_lag import ATTEMPTS, moments_late
from tests.attack.wire import wire
from tests.serving.conftest import Server, serving

MIB = 1 << 20
BOMBS = {
    "blanks": (413, gzip.compress(b" " * (200 * MIB), 1)),
    "brackets": (413, gzip.compress(b"[" * (200 * MIB), 1)),
    "blanks within the limit": (400, gzip.compress(b" " * (20 * MIB), 1)),
    "a text within the limit": (400, gzip.compress(b'{"prompt":"%s"}' % (b"a " * 10 * MIB), 1)),
    "commas within the limit": (400, gzip.compress(b'{"prompt":[%s0]}' % (b"0," * 30 * MIB), 1)),
    "empty members": (400, gzip.compress(b"") * 100_000),
    "a small one": (400, gzip.compress(b" " * MIB)),
    "a small one of lists": (400, gzip.compress(b'{"prompt":[' + b"[]," * 300_000 + b"0]}")),
    "a small one of objects": (400, gzip.compress(b'{"n":[' + b'{"a":1},' * 120_000 + b"0]}")),
}


@pytest.fixture(scope="module")
def server(checkpoint: Callable[[str], Path]) -> Iterator[Server]:
    told = [f"model.path={checkpoint('llama')}", "model.name=tiny", "engine.threads=1"]
    with serving(*told, "media.image.limit=0") as server:
        yield server


@pytest.mark.parametrize("case", BOMBS)
def test_no_compressed_body_holds_the_loop(server: Server, case: str) -> None:
    status, body = BOMBS[case]
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Encoding: gzip\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    for _ in range(ATTEMPTS):
        before = moments_late(server)
        with wire(server.base_url) as client:
            client.socket.settimeout(60)
            client.send(head.encode() + body)
            assert client.answer().status == status
        if moments_late(server) == before:
            return
    pytest.fail(f"the loop was held in each of {ATTEMPTS} attempts")


def test_bombs_leave_no_memory_behind(server: Server) -> None:
    def resident() -> int:
        pages = Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]
        return int(pages) * 4096

    test_no_compressed_body_holds_the_loop(server, "blanks")
    before = resident()
    for _ in range(5):
        test_no_compressed_body_holds_the_loop(server, "blanks")
    assert resident() < before + 32 * MIB
