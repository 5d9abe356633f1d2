"""What a client may do to a connection, and to all of them together."""

from __future__ import annotations

import concurrent.futures
import http.client
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.attack.wire import Wire, completion, post, read_answer, until, wire
from tests.serving.conftest import Server, metric, serving

ROUTE = "/v1/completions"


@pytest.fixture(scope="module")
def server(checkpoint: Callable[[str], Path]) -> Iterator[Server]:
    """A server with room for few connections and little patience."""
    told = [f"model.path={checkpoint('llama')}", "model.name=tiny", "engine.threads=1"]
    limits = ["server.max_connections=20", "server.read_seconds=1"]
    with serving(*told, *limits, "media.image.limit=0") as server:
        yield server


@pytest.mark.parametrize("hosts", [[], ["Host: a", "Host: b"]], ids=["none", "two"])
def test_a_request_has_one_host(server: Server, hosts: list[str]) -> None:
    lines = ["GET /v1/models HTTP/1.1", *hosts, "Connection: close", "", ""]
    with wire(server.base_url) as client:
        client.send("\r\n".join(lines))
        answer = client.answer()
    assert (answer.status, answer.code) == (400, "invalid_http")
    assert "Host" in answer.json["error"]["message"]


def test_http_1_0_needs_no_host(server: Server) -> None:
    with wire(server.base_url) as client:
        client.send("GET /v1/models HTTP/1.0\r\n\r\n")
        assert client.answer().status == 200


@pytest.mark.parametrize("fields", [{}, {"stream": True}], ids=["body", "stream"])
def test_a_client_that_only_sends_no_more_gets_its_answer(
    server: Server, fields: dict[str, bool]
) -> None:
    asked = completion(max_tokens=200, ignore_eos=True, **fields)
    with wire(server.base_url) as client:
        client.send(post(ROUTE, asked, close=False))
        client.finish_sending()
        answer = client.answer()
    assert answer.status == 200
    if fields:
        assert answer.body.endswith(b"data: [DONE]\n\n")
    else:
        assert answer.json["usage"]["completion_tokens"] == 200


def test_pipelined_requests_are_all_answered_after_the_client_has_ended_its_side(
    server: Server,
) -> None:
    with wire(server.base_url) as client:
        client.send(post(ROUTE, completion(), close=False) * 3)
        client.finish_sending()
        assert client.rest().count(b"HTTP/1.1 200 ") == 3


def test_an_interim_response_is_nothing_to_a_stock_client(server: Server) -> None:
    address = server.base_url.removeprefix("http://")
    connection = http.client.HTTPConnection(address, timeout=20)
    body = post(ROUTE, completion(max_tokens=200, ignore_eos=True)).partition(b"\r\n\r\n")[2]
    connection.request("POST", ROUTE, body, {"Content-Type": "application/json"})
    connection.sock.shutdown(1)
    assert connection.getresponse().status == 200
    connection.close()


@pytest.mark.parametrize("fields", [{}, {"stream": True}], ids=["body", "stream"])
def test_a_client_that_leaves_is_told_from_one_that_waits(
    server: Server, fields: dict[str, bool]
) -> None:
    client = Wire(server.base_url)
    client.send(post(ROUTE, completion(max_tokens=450, ignore_eos=True, n=4, **fields)))
    assert until(lambda: metric(server, "appliance_num_requests_running") > 0)
    client.close()
    assert until(lambda: metric(server, "appliance_num_requests_running") == 0, 3)
    assert metric(server, "appliance_requests_aborted_total") > 0


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /v1/comp",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: 100\r\n\r\n{",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
    ],
    ids=["nothing", "line", "headers", "body", "chunks"],
)
def test_who_stops_in_the_middle_of_a_request_is_told_and_let_go(
    server: Server, sent: bytes
) -> None:
    with wire(server.base_url) as client:
        client.send(sent)
        if not sent:  # a connection may be opened ahead of its first request
            assert not client.closed_within(3)
            return
        answer = client.answer()
    assert (answer.status, answer.code) == (408, "request_timeout")


def test_who_sends_one_byte_at_a_time_is_let_go_too(server: Server) -> None:
    with wire(server.base_url) as client:
        client.send("POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        assert until(lambda: _refused(client), 10)


def _refused(client: Wire) -> bool:
    try:
        client.send("x")
    except OSError:
        return True
    return False


@pytest.mark.parametrize("kind", ["extensions", "trailers"])
def test_what_never_ends_around_a_body_is_refused(server: Server, kind: str) -> None:
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        "Transfer-Encoding: chunked\r\n\r\n"
    )
    more = "x" * 1000 if kind == "extensions" else f"X-More: {'x' * 1000}\r\n"
    with wire(server.base_url) as client:
        client.send(head + ("1;a=" if kind == "extensions" else "1\r\n{\r\n0\r\n"))
        sent = 0
        try:
            while sent < 50_000_000:
                client.send(more)
                sent += len(more)
        except OSError:
            pass
        assert sent < 5_000_000


def test_trailers_change_nothing(server: Server) -> None:
    body = post(ROUTE, completion()).partition(b"\r\n\r\n")[2]
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        "X-Request-Id: mine\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    chunks = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\nX-Request-Id: theirs\r\n\r\n"
    with wire(server.base_url) as client:
        client.send(head.encode() + chunks)
        answer = client.answer()
    assert (answer.status, answer.headers["x-request-id"]) == (200, "mine")


def test_who_only_holds_connections_keeps_nobody_out(server: Server) -> None:
    held = [Wire(server.base_url) for _ in range(60)]
    try:
        for client in held[::2]:  # some have said half a request
            try:
                client.send("GET /livez HTTP/1.1\r\n")
            except OSError:
                continue
        assert [server.status("/livez") for _ in range(5)] == [200] * 5
        assert metric(server, "appliance_http_connections") <= 20
    finally:
        for client in held:
            client.close()


def test_one_more_than_all_that_are_at_work_is_told_to_come_back(server: Server) -> None:
    busy = [Wire(server.base_url) for _ in range(20)]
    try:
        for client in busy:
            client.send(post(ROUTE, completion(max_tokens=300, ignore_eos=True, stream=True)))
            assert client.socket.recv(12) == b"HTTP/1.1 200"
        with wire(server.base_url) as late:
            answer = late.answer()
        assert (answer.status, answer.code) == (503, "too_many_connections")
        assert answer.headers["retry-after"] == "1"
    finally:
        for client in busy:
            client.close()
    assert until(lambda: server.status("/livez") == 200, 5)


def test_a_refusal_is_never_mixed_with_the_answer_before_it(server: Server) -> None:
    with wire(server.base_url) as client:
        asked = completion(max_tokens=100, ignore_eos=True)
        client.send(post(ROUTE, asked, close=False) + b"NONSENSE\r\n\r\n")
        data = client.rest()
    assert data == b"" or read_answer(data).status == 200


def test_two_hundred_at_once_are_all_answered(checkpoint: Callable[[str], Path]) -> None:
    told = [f"model.path={checkpoint('llama')}", "model.name=tiny", "engine.threads=1"]
    with serving(*told, "media.image.limit=0") as server:

        def ask(number: int) -> int:
            with wire(server.base_url) as client:
                client.socket.settimeout(60)
                client.send(post(ROUTE, completion(prompt=f"Count {number}", max_tokens=8)))
                return client.answer().status

        with concurrent.futures.ThreadPoolExecutor(200) as many:
            assert list(many.map(ask, range(200))) == [200] * 200
        assert ask(200) == 200
