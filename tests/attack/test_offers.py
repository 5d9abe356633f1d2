"""Offers to change the protocol: ignored, and whatever is sent with one is read as without."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.attack.wire import completion, read_answer, wire
from tests.serving.conftest import Server, serving

ROUTE = "/v1/completions"
OFFERS = {
    "h2c": ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"],
    "small letters": ["connection: upgrade", "upgrade: h2c"],
    "two headers of Connection": ["Connection: keep-alive", "Connection: Upgrade", "Upgrade: h2c"],
    "TLS": ["Upgrade: TLS/1.2", "Connection: Upgrade"],
    "websocket": ["Connection: keep-alive, Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: a"],
    "several": ["Connection: Upgrade", "Upgrade: h2c, TLS/1.3", "Upgrade: IRC/6.9"],
    "without Connection": ["Upgrade: h2c"],
    "nothing named": ["Connection: Upgrade"],
    "unknown": ["Connection: Upgrade", "Upgrade: chess/3"],
    "before another header": ["Upgrade: h2c", "X-Upgrade: yes", "Connection: Upgrade, X-Upgrade"],
}
BODY = json.dumps(completion()).encode()
LENGTH = b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
CHUNKS = (
    b"Transfer-Encoding: chunked\r\n\r\n"
    + b"".join(b"1;x=y\r\n%c\r\n" % byte for byte in BODY)
    + b"0\r\nX-Trailer: 1\r\n\r\n"
)


@pytest.fixture(scope="module")
def server(checkpoint: Callable[[str], Path]) -> Iterator[Server]:
    told = [f"model.path={checkpoint('llama')}", "model.name=tiny", "engine.threads=1"]
    with serving(*told, "media.image.limit=0", "server.max_body_bytes=100000") as server:
        yield server


def head(offer: list[str], line: str = f"POST {ROUTE} HTTP/1.1") -> bytes:
    lines = [line, "Host: x", "Content-Type: application/json", *offer, ""]
    return "\r\n".join(lines).encode()


@pytest.mark.parametrize("body", [LENGTH, CHUNKS], ids=["length", "chunks"])
@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
def test_an_offer_is_ignored(server: Server, offer: list[str], body: bytes) -> None:
    request = head(offer) + body
    with wire(server.base_url) as client:
        for cut in (len(request), len(request) - 9, len(request) - len(BODY), 40):
            client.send(request[:cut])
            client.send(request[cut:])
        client.send("GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answers = client.rest()
    assert answers.count(b"HTTP/1.1 200 ") == 5
    assert answers.count(b'"text_completion"') == 4


def test_bytes_one_at_a_time_are_read_too(server: Server) -> None:
    with wire(server.base_url) as client:
        for byte in head(OFFERS["h2c"] + ["X-Close: 1"]) + LENGTH:
            client.send(bytes([byte]))
        client.send("GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert client.rest().count(b"HTTP/1.1 200 ") == 2


def test_an_offer_without_a_body_is_answered_and_the_next_request_too(server: Server) -> None:
    get = head(OFFERS["h2c"], "GET /v1/models HTTP/1.1") + b"\r\n"
    with wire(server.base_url) as client:
        client.send(get * 50 + head(["Connection: close"], "GET /livez HTTP/1.1") + b"\r\n")
        assert client.rest().count(b"HTTP/1.1 200 ") == 51


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["Content-Length: 200000"], 413),
        (["Content-Length: 5", "Transfer-Encoding: chunked"], 400),
        (["Content-Length: 5", "Content-Length: 6"], 400),
        (["X-Large: " + "x" * 70_000], 431),
        (["Host: y"], 400),
    ],
    ids=["too large", "two lengths", "other lengths", "large headers", "two hosts"],
)
def test_an_offer_lifts_no_limit(server: Server, lines: list[str], status: int) -> None:
    with wire(server.base_url) as client:
        client.send(head([*OFFERS["h2c"], "Connection: close", *lines]) + b"\r\n" + b"x" * 200_000)
        assert read_answer(client.rest()).status == status


def test_what_is_in_a_body_is_no_offer(server: Server) -> None:
    said = completion(prompt="\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n", echo=True)
    body = json.dumps(said).encode()
    with wire(server.base_url) as client:
        client.send(head(["Connection: close"]) + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        answer = client.answer()
    assert answer.json["choices"][0]["text"].startswith(said["prompt"])


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://x/v1/models", 200),
        ("http://other.example:81//v1/models?a=//b", 200),
        ("HTTP://X/livez", 200),
        ("http://x", 404),
        ("http://x?a=b", 404),
        ("*", 404),
        ("/livez?a", 200),
        ("//livez", 200),
        ("livez", 400),
        ("http://", 400),
    ],
)
def test_a_request_may_name_the_whole_url(server: Server, target: str, status: int) -> None:
    for offer in ([], OFFERS["h2c"]):
        with wire(server.base_url) as client:
            client.send(head([*offer, "X: 1"], f"GET {target} HTTP/1.1") + b"\r\n")
            client.finish_sending()
            assert client.answer().status == status


def test_a_tunnel_is_refused(server: Server) -> None:
    with wire(server.base_url) as client:
        client.send("CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n")
        assert client.answer().code == "invalid_http"
