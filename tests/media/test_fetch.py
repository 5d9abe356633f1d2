"""Fetching from an origin on loopback that does what hostile and broken ones do."""

from __future__ import annotations

import asyncio
import gzip
import logging
import ssl
import time
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from appliance.config.schema import LoggingConfig
from appliance.errors import ApplianceError
from appliance.log_lines import configure
from appliance.media import policy as checks
from appliance.media.content_encoding import decoder_for
from appliance.media.dial import resolve_name
from appliance.media.fetch import ATTEMPTS, MAX_CONNECTIONS, Fetcher
from appliance.media.policy import MediaPolicy
from engine.device.log_lines import OURS
from tests.media.origin import (
    Call,
    Origin,
    content,
    drip,
    drip_headers,
    endless,
    raw,
    redirect,
    reset,
    serving,
    stall,
)
from tests.media.policies import fetched, media_policy

pytestmark = pytest.mark.anyio

PARAM = "messages[0].content[0].image_url.url"
PICTURE = bytes(range(256)) * 100
POLICY = media_policy(
    allowed_domains=("origin.test:*", "*.origin.test:*", "127.0.0.1:*"),
    allow_private=True,
    redirects="allowed_domains",
    timeout=20,
    max_bytes=len(PICTURE),
)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return ("asyncio", {"use_uvloop": True})  # as the server runs it


@pytest.fixture(autouse=True)
def no_system_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading them takes longer than most tests here."""
    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", lambda *_: None)


class Names:
    """A resolver whose answers are lists, the next one each time; the last one stays."""

    def __init__(self, **answers: Sequence[Sequence[str]]) -> None:
        self.answers = {name.replace("_", "."): list(given) for name, given in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        if host not in self.answers:
            return ["127.0.0.1"]
        given = self.answers[host]
        return given.pop(0) if len(given) > 1 else given[0]


async def fetch(
    origin: Origin, path: str = "/a", policy: MediaPolicy = POLICY, names: Names | None = None
) -> bytes:
    fetcher = Fetcher(resolve=names or Names())
    try:
        url = f"http://origin.test:{origin.port}{path}"
        return await fetched(fetcher, url, policy, param=PARAM)
    finally:
        await fetcher.close()


async def failure(
    origin: Origin, path: str = "/a", policy: MediaPolicy = POLICY, names: Names | None = None
) -> tuple[int, str | None]:
    with pytest.raises(ApplianceError) as caught:
        await fetch(origin, path, policy, names)
    assert caught.value.param == PARAM
    for secret in ("origin.test", "127.0.0.1", "Error", "Errno", "httpcore"):
        assert secret not in caught.value.message
    return caught.value.status, caught.value.code


async def test_content_arrives_with_nothing_of_ours_in_the_request() -> None:
    async with serving({"/a": content(PICTURE)}) as origin:
        assert await fetch(origin, "/a?b=%2F") == PICTURE
        (call,) = origin.calls
        assert (call.method, call.target) == ("GET", "/a?b=%2F")
        assert call.headers.pop("user-agent").startswith("model-appliance/")
        assert call.headers == {
            "host": f"origin.test:{origin.port}",
            "accept": "*/*",
            "accept-encoding": "identity",
        }


async def test_the_environment_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine origin.test login a password b")
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with serving({"/a": content(PICTURE)}) as origin:
        assert await fetch(origin) == PICTURE
        assert "authorization" not in origin.calls[0].headers


async def test_connections_are_shared_and_closed() -> None:
    async with serving({"/a": content(PICTURE)}) as origin:
        fetcher = Fetcher(resolve=Names())
        url = f"http://origin.test:{origin.port}/a"
        for _ in range(3):
            assert await fetched(fetcher, url, POLICY, param=PARAM) == PICTURE
        assert (origin.opened, len(origin.calls)) == (1, 3)
        work = [fetched(fetcher, url, POLICY, param=PARAM) for _ in range(8)]
        assert set(await asyncio.gather(*work)) == {PICTURE}
        assert origin.opened <= 8
        await fetcher.close()
        assert await origin.settled()


async def test_a_connection_dropped_while_idle_is_replaced() -> None:
    async def once(call: Call) -> None:
        await call.answer(PICTURE)
        call.writer.close()

    async with serving({"/a": once}) as origin:
        fetcher = Fetcher(resolve=Names())
        for _ in range(3):
            url = f"http://origin.test:{origin.port}/a"
            assert await fetched(fetcher, url, POLICY, param=PARAM) == PICTURE
        await fetcher.close()


async def test_the_checked_address_is_dialled_and_no_other() -> None:
    async with (
        serving({"/a": content(b"one")}) as one,
        serving({"/a": content(b"two")}, host="127.0.0.2") as two,
    ):
        for address, origin in (("127.0.0.1", one), ("127.0.0.2", two)):
            got = await fetch(origin, names=Names(origin_test=[[address]]))
            assert got == (b"one" if origin is one else b"two")
        assert (len(one.calls), len(two.calls)) == (1, 1)


async def test_a_name_that_rebinds_after_the_check_is_dialled_where_it_was_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The check sees a public address, whoever asks next gets loopback, as a rebinding name does.

    127.0.0.2 plays the public one; the decoy listens on the same port of 127.0.0.1.
    """
    monkeypatch.setattr(checks, "is_public", lambda address: address == "127.0.0.2")
    public = replace(POLICY, allow_private=False)
    async with (
        serving({"/a": content(PICTURE)}, host="127.0.0.2") as origin,
        serving({"/a": content(b"internal")}, port=origin.port) as decoy,
    ):
        names = Names(origin_test=[["127.0.0.2"], ["127.0.0.1"]])
        assert await fetch(origin, policy=public, names=names) == PICTURE
        assert (names.asked, decoy.opened) == (["origin.test"], 0)
        assert await failure(origin, policy=public, names=names) == (400, "media_not_allowed")
        assert await fetch(origin, policy=POLICY, names=names) == b"internal", "the decoy is there"


async def test_a_rebinding_name_is_asked_once_per_hop() -> None:
    names = Names(origin_test=[["127.0.0.1"], ["127.0.0.2"]])
    async with serving({"/a": reset, "/b": content(PICTURE)}) as origin:
        assert await failure(origin, names=names) == (502, "media_fetch_failed")
        assert names.asked == ["origin.test"], "retries dial what was checked"
        assert len(origin.calls) == ATTEMPTS


@pytest.mark.parametrize("hop", [1, 2, 3])
async def test_every_hop_is_resolved_and_checked_again(
    hop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The origin counts as public, until at some hop the name turns to loopback proper."""
    monkeypatch.setattr(checks, "is_public", lambda address: address == "127.0.0.2")
    answers = [["127.0.0.2"]] * hop + [["127.0.0.2", "127.0.0.1"]]
    policy = replace(POLICY, allow_private=False)
    async with serving({"*": redirect("/next")}, host="127.0.0.2") as origin:
        names = Names(origin_test=answers)
        assert await failure(origin, policy=policy, names=names) == (400, "media_not_allowed")
        assert len(origin.calls) == hop
        assert len(names.asked) == hop + 1


async def test_a_second_address_is_tried_when_the_first_refuses() -> None:
    async with serving({"/a": content(PICTURE)}) as origin:
        names = Names(origin_test=[["127.0.0.3", "127.0.0.1"]])
        assert await fetch(origin, names=names) == PICTURE


async def test_the_system_resolver_is_asked_for_names() -> None:
    assert set(await resolve_name("localhost")) <= {"127.0.0.1", "::1"}
    with pytest.raises(OSError, match=r"\w"):
        await resolve_name("name.invalid")


async def test_a_name_that_does_not_resolve_is_a_bad_gateway() -> None:
    async with serving({}) as origin:
        assert await failure(origin, names=Names(origin_test=[[]])) == (502, "media_fetch_failed")


async def test_a_resolver_that_hangs_is_a_timeout() -> None:
    async def hang(host: str) -> Sequence[str]:
        await asyncio.sleep(60)
        return []

    fetcher = Fetcher(resolve=hang)
    with pytest.raises(ApplianceError) as caught:
        await fetched(fetcher, "http://origin.test:1/", replace(POLICY, timeout=0.2), param=PARAM)
    assert (caught.value.status, caught.value.code) == (504, "media_timeout")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    ("location", "same_host", "allowed"),
    [
        ("/b", True, True),
        ("b?x=1#y", True, True),
        ("http://origin.test:{port}/b", True, True),
        ("//ORIGIN.test.:{port}/b", True, True),
        ("http://cdn.origin.test:{port}/b", False, True),
        ("http://127.0.0.1:{port}/b", False, True),
        ("http://127.0.0.2:{port}/b", False, False),
        ("http://unlisted.test:{port}/b", False, False),
        ("http://2130706433:{port}/b", False, False),
        ("http://user@origin.test:{port}/b", False, False),
        ("http:\\\\origin.test:{port}/b", False, False),
        ("file:///etc/passwd", False, False),
        ("data:image/png;base64,AAAA", False, False),
        ("ftp://origin.test/b", False, False),
    ],
)
async def test_redirects_follow_the_policy(
    status: int, location: str, same_host: bool, allowed: bool
) -> None:
    routes = {"/b": content(PICTURE)}
    async with serving(routes) as origin:
        origin.routes = {**routes, "/a": redirect(location.format(port=origin.port), status)}
        verdicts = {"deny": False, "same_host": same_host, "allowed_domains": allowed}
        for redirects, follows in verdicts.items():
            origin.calls.clear()
            policy = replace(POLICY, redirects=redirects, local_path="/etc")
            if follows:
                assert await fetch(origin, policy=policy) == PICTURE
                assert len(origin.calls) == 2
                assert not {"cookie", "authorization", "referer"} & set(origin.calls[1].headers)
            else:
                assert await failure(origin, policy=policy) == (400, "media_not_allowed")
                assert [call.target for call in origin.calls] == ["/a"]


async def test_a_redirect_to_an_unlisted_host_is_neither_resolved_nor_dialled() -> None:
    async with serving({"/a": redirect("http://secrets.unlisted.test/")}) as origin:
        names = Names()
        assert await failure(origin, names=names) == (400, "media_not_allowed")
        assert names.asked == ["origin.test"]


async def test_a_redirect_to_a_listed_name_with_a_private_address_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checks, "is_public", lambda address: address == "127.0.0.1")
    policy = replace(POLICY, allow_private=False)
    names = Names(cdn_origin_test=[["127.0.0.1", "10.0.0.1"]])
    async with serving({"/b": content(PICTURE)}) as origin:
        to = f"http://cdn.origin.test:{origin.port}/b"
        origin.routes = {**origin.routes, "/a": redirect(to)}
        assert await failure(origin, policy=policy, names=names) == (400, "media_not_allowed")
        assert len(origin.calls) == 1
        public = Names(cdn_origin_test=[["127.0.0.1"]])
        assert await fetch(origin, policy=policy, names=public) == PICTURE


async def test_redirects_are_counted() -> None:
    async def onward(call: Call) -> None:
        left = int(call.target[1:])
        if left:
            await call.answer(b"moved", "302 Found", Location=f"/{left - 1}")
        else:
            await call.answer(PICTURE)

    async with serving({"*": onward}) as origin:
        for most in (1, 3):
            policy = replace(POLICY, max_redirects=most)
            assert await fetch(origin, f"/{most}", policy) == PICTURE
            assert await failure(origin, f"/{most + 1}", policy) == (400, "media_not_allowed")
    async with serving({"/a": redirect("/a")}) as origin:
        assert await failure(origin) == (400, "media_not_allowed")
        assert len(origin.calls) == POLICY.max_redirects + 1


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: /b\r\nLocation: /c\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: /\xff\xfe\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 300 Multiple\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nLocation: /b\r\n\r\n",
        b"HTTP/1.1 305 Use Proxy\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 206 Partial\r\nContent-Length: 1\r\n\r\nx",
    ],
)
async def test_answers_that_are_neither_content_nor_a_redirect_fail(head: bytes) -> None:
    async with serving({"/a": raw(head), "/b": content(PICTURE)}) as origin:
        assert await failure(origin) == (502, "media_fetch_failed")
        assert len(origin.calls) == 1


@pytest.mark.parametrize(
    ("status", "expected"),
    [("400 Bad", 424), ("401 No", 424), ("403 No", 424), ("404 No", 424), ("410 Gone", 424),
     ("429 Slow", 424), ("499 Odd", 424), ("500 Oops", 502), ("503 Busy", 502), ("599 Odd", 502)],
)  # fmt: skip
async def test_failures_of_the_origin_are_not_ours(status: str, expected: int) -> None:
    async with serving({"/a": content(b"secret", status)}) as origin:
        assert await failure(origin) == (expected, "media_fetch_failed")
        assert len(origin.calls) == 1


async def test_a_refused_connection_is_a_bad_gateway() -> None:
    async with serving({}) as origin:
        pass
    began = time.monotonic()
    assert await failure(origin) == (502, "media_fetch_failed")
    assert time.monotonic() - began < POLICY.timeout


@pytest.mark.parametrize(
    "handler",
    [
        reset,
        raw(b""),
        raw(b"HTTP/1.1 200 OK\r\nContent-Le"),
        raw(b"\0\1\2 garbage\r\n\r\n"),
        raw(b"SSH-2.0-OpenSSH_9.9\r\n"),
        raw(b"HTTP/1.1 200 OK\r\n" + b"X: " + b"a" * 200_000 + b"\r\n\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nabc"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nabc"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip, gzip\r\nContent-Length: 3\r\n\r\nabc"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Encoding: deflate\r\nContent-Length: 3\r\n\r\nabc"),
    ],
)
async def test_broken_answers_are_a_bad_gateway(handler: Any) -> None:
    async with serving({"/a": handler}) as origin:
        assert await failure(origin) == (502, "media_fetch_failed")
        assert len(origin.calls) <= ATTEMPTS


async def test_a_connection_that_fails_at_first_is_tried_again() -> None:
    tries = []

    async def second_time(call: Call) -> None:
        tries.append(call)
        await (reset(call) if len(tries) < ATTEMPTS else call.answer(PICTURE))

    async with serving({"/a": second_time}) as origin:
        assert await fetch(origin) == PICTURE
        assert len(tries) == ATTEMPTS


@pytest.mark.parametrize("handler", [stall, drip, drip_headers])
async def test_slowness_of_any_kind_ends_at_the_deadline(handler: Any) -> None:
    async with serving({"/a": handler, "/r": redirect("/a")}) as origin:
        for path in ("/a", "/r"):
            began = time.monotonic()
            policy = replace(POLICY, timeout=0.3, max_bytes=10**6)
            assert await failure(origin, path, policy) == (504, "media_timeout")
            assert time.monotonic() - began > 0.25
        assert await origin.settled(), "the connection is given up too"


async def test_hops_and_retries_share_one_deadline() -> None:
    async def slow_hop(call: Call) -> None:
        await asyncio.sleep(0.15)
        await call.answer(status="302 Found", Location="/on")

    async with serving({"*": slow_hop}) as origin:
        policy = replace(POLICY, timeout=0.4, max_redirects=20)
        assert await failure(origin, policy=policy) == (504, "media_timeout")
        assert 1 <= len(origin.calls) <= 3
        assert await failure(origin, policy=replace(policy, timeout=5, max_redirects=2)) == (
            400, "media_not_allowed",
        )  # fmt: skip


async def test_a_slow_but_steady_origin_within_the_deadline_is_fine() -> None:
    async def steady(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n")
        for _ in range(20):
            await call.send(b"x")
            await asyncio.sleep(0.005)

    async with serving({"/a": steady}) as origin:
        assert await fetch(origin, policy=replace(POLICY, timeout=10)) == b"x" * 20


async def test_timeouts_leave_no_connection_and_no_place_taken() -> None:
    async with serving({"/a": stall, "/b": content(PICTURE)}) as origin:
        fetcher = Fetcher(resolve=Names())
        url = f"http://origin.test:{origin.port}"
        policy = replace(POLICY, timeout=0.3)
        work = [
            fetched(fetcher, f"{url}/a", policy, param=PARAM) for _ in range(MAX_CONNECTIONS + 8)
        ]
        results = await asyncio.gather(*work, return_exceptions=True)
        assert {getattr(result, "code", result) for result in results} == {"media_timeout"}
        assert await fetched(fetcher, f"{url}/b", POLICY, param=PARAM) == PICTURE
        (pool,) = fetcher._pools.values()
        assert len(pool.connections) == 1
        await fetcher.close()
        assert await origin.settled()


async def test_a_cancelled_fetch_closes_its_connection() -> None:
    async with serving({"/a": drip}) as origin:
        fetcher = Fetcher(resolve=Names())
        url = f"http://origin.test:{origin.port}/a"
        policy = replace(POLICY, max_bytes=10**6)
        task = asyncio.create_task(fetched(fetcher, url, policy, param=PARAM))
        while not origin.calls:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await origin.settled()
        await fetcher.close()


@pytest.mark.parametrize("size", [0, 1, 9999, 10000])
async def test_the_limit_is_exact(size: int) -> None:
    body = bytes(size)
    chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks += (b"%x\r\n%b\r\n" % (size, body) if size else b"") + b"0\r\n\r\n"
    until_closed = b"HTTP/1.1 200 OK\r\n\r\n" + body
    routes = {"/length": content(body), "/chunks": raw(chunks), "/closed": raw(until_closed)}
    async with serving(routes) as origin:
        for path in routes:
            assert await fetch(origin, path, replace(POLICY, max_bytes=max(size, 1))) == body
            if size > 1:
                less = replace(POLICY, max_bytes=size - 1)
                assert await failure(origin, path, less) == (400, "media_too_large")


async def test_a_declared_length_beyond_the_limit_is_refused_unread() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n"

    async def declare(call: Call) -> None:
        await call.send(head)
        await asyncio.sleep(60)

    async with serving({"/a": declare}) as origin:
        assert await failure(origin) == (400, "media_too_large")


async def test_bytes_beyond_the_declared_length_are_not_content() -> None:
    async with serving(
        {"/a": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcdef")}
    ) as origin:
        assert await fetch(origin) == b"abc"


async def test_an_endless_body_is_cut_off(tracing: Any) -> None:
    async with serving({"/a": endless}) as origin:
        with tracing() as peak:
            policy = replace(POLICY, max_bytes=1 << 20)
            assert await failure(origin, policy=policy) == (400, "media_too_large")
            assert peak() < 8 << 20
        assert await origin.settled()


def bomb(size: int) -> bytes:
    return gzip.compress(bytes(size), 9)


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZIP", "deflate"])
async def test_a_compressed_body_is_counted_decompressed(encoding: str, tracing: Any) -> None:
    pack = zlib.compress if encoding == "deflate" else gzip.compress
    small, large = pack(PICTURE), pack(bytes(100 << 20))
    routes = {
        "/a": content(small, Content_Encoding=encoding),
        "/bomb": content(large, Content_Encoding=encoding),
        "/half": content(small[: len(small) // 2], Content_Encoding=encoding),
    }
    async with serving(routes) as origin:
        assert await fetch(origin, "/a") == PICTURE
        assert await failure(origin, "/half") == (502, "media_fetch_failed")
        assert await failure(origin, "/a", replace(POLICY, max_bytes=len(PICTURE) - 1)) == (
            400, "media_too_large",
        )  # fmt: skip
        with tracing() as peak:
            policy = replace(POLICY, max_bytes=1 << 20)
            assert await failure(origin, "/bomb", policy) == (400, "media_too_large")
            assert peak() < 12 << 20


CODINGS_OF_NONE = [
    "aws-chunked", "UTF-8", "none", "binary", "7bit", "8bit", "base64", "raw", "br", "x-none",
    "identity, aws-chunked", "Identity", ",", "*", "image/png", "a" * 4000,
]  # fmt: skip


@pytest.mark.parametrize("coding", CODINGS_OF_NONE)
async def test_a_coding_that_nobody_knows_is_none(coding: str) -> None:
    routes = {
        "/a": content(PICTURE, Content_Encoding=coding),
        "/large": content(PICTURE + b"x", Content_Encoding=coding),
        "/packed": content(gzip.compress(PICTURE), Content_Encoding=coding + ", gzip"),
        "/bomb": content(gzip.compress(PICTURE + b"x"), Content_Encoding="gzip, " + coding),
    }
    async with serving(routes) as origin:
        assert await fetch(origin, "/a") == PICTURE
        assert await failure(origin, "/large") == (400, "media_too_large")
        assert await fetch(origin, "/packed") == PICTURE
        assert await failure(origin, "/bomb") == (400, "media_too_large")


def bare(data: bytes, level: int = 9, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> bytes:
    made = zlib.compressobj(level, zlib.DEFLATED, -15, 9, strategy)
    return made.compress(data) + made.flush()


@pytest.mark.parametrize("level", [0, 1, 6, 9])
@pytest.mark.parametrize("strategy", [zlib.Z_DEFAULT_STRATEGY, zlib.Z_FIXED, zlib.Z_HUFFMAN_ONLY])
async def test_deflate_needs_no_wrapper(level: int, strategy: int) -> None:
    body = bare(PICTURE, level, strategy)
    policy = replace(POLICY, max_bytes=len(PICTURE) + 1000)  # level 0 adds to it
    large = bare(bytes(10 << 20), max(level, 1), strategy)[: 1 << 20]
    routes = {
        "/a": content(body, Content_Encoding="deflate"),
        "/half": content(body[: len(body) // 2], Content_Encoding="deflate"),
        "/one": content(body[:1], Content_Encoding="deflate"),
        "/none": content(b"", Content_Encoding="deflate"),
        "/zlib": content(zlib.compress(PICTURE, level), Content_Encoding="deflate"),
        "/gzip": content(body, Content_Encoding="gzip"),
        "/bomb": content(large, Content_Encoding="deflate"),
    }
    async with serving(routes) as origin:
        assert await fetch(origin, "/a", policy) == PICTURE
        assert await fetch(origin, "/zlib", policy) == PICTURE
        assert await fetch(origin, "/none", policy) == b""
        for path in ("/half", "/one", "/gzip"):
            assert await failure(origin, path, policy) == (502, "media_fetch_failed")
        assert await failure(origin, "/bomb", policy) == (400, "media_too_large")


async def test_deflate_that_comes_byte_by_byte_is_told_apart() -> None:
    for body in (bare(PICTURE), zlib.compress(PICTURE)):
        decoder = decoder_for("deflate")
        pieces = [piece for at in range(len(body)) for piece in decoder.feed(body[at : at + 1])]
        decoder.finish()
        assert b"".join(pieces) == PICTURE


async def test_gzip_members_follow_one_another() -> None:
    body = gzip.compress(PICTURE[:100]) + gzip.compress(b"") + gzip.compress(PICTURE[100:])
    async with serving({"/a": content(body, Content_Encoding="gzip")}) as origin:
        assert await fetch(origin) == PICTURE
    async with serving({"/a": content(body + b"junk", Content_Encoding="gzip")}) as origin:
        assert await failure(origin) == (502, "media_fetch_failed")


async def test_an_incompressible_body_within_the_limit_decompressed_still_counts_on_the_wire() -> (
    None
):
    body = gzip.compress(b"x") + gzip.compress(b"") * 2000
    async with serving({"/a": content(body, Content_Encoding="gzip")}) as origin:
        assert await fetch(origin, policy=replace(POLICY, max_bytes=len(body))) == b"x"
        less = replace(POLICY, max_bytes=len(body) - 1)
        assert await failure(origin, policy=less) == (400, "media_too_large")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_trust(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    return str(file)


async def secure(url: str, ca_file: str | None, policy: MediaPolicy = POLICY) -> bytes:
    fetcher = Fetcher(ca_file=ca_file, resolve=Names())
    try:
        return await fetched(fetcher, url, policy, param=PARAM)
    finally:
        await fetcher.close()


async def test_tls_names_and_verifies_the_host_of_the_url(
    authority: trustme.CA, ca_file: str
) -> None:
    trust = server_trust(authority, "origin.test", "127.0.0.1")
    async with serving({"/a": content(PICTURE)}, trust=trust) as origin:
        url = f"https://{{}}:{origin.port}/a"
        assert await secure(url.format("ORIGIN.test."), ca_file) == PICTURE
        assert origin.names == ["origin.test"]
        assert await secure(url.format("127.0.0.1"), ca_file) == PICTURE
        for host, file in (("cdn.origin.test", ca_file), ("origin.test", None)):
            with pytest.raises(ApplianceError) as caught:
                await secure(url.format(host), file)
            assert (caught.value.status, caught.value.code) == (502, "media_fetch_failed")
        assert len(origin.calls) == 2


async def test_one_address_with_two_names_is_verified_for_each(
    authority: trustme.CA, ca_file: str
) -> None:
    """A connection kept alive for one host must not serve another at the same address."""
    trust = server_trust(authority, "origin.test")
    async with serving({"/a": content(PICTURE)}, trust=trust) as origin:
        fetcher = Fetcher(ca_file=ca_file, resolve=Names())
        url = f"https://{{}}:{origin.port}/a"
        assert await fetched(fetcher, url.format("origin.test"), POLICY, param=PARAM) == PICTURE
        with pytest.raises(ApplianceError) as caught:
            await fetched(fetcher, url.format("cdn.origin.test"), POLICY, param=PARAM)
        assert caught.value.status == 502
        assert len(origin.calls) == 1
        await fetcher.close()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_https_is_never_left_for_http(
    status: int, authority: trustme.CA, ca_file: str
) -> None:
    trust = server_trust(authority, "origin.test")
    async with serving({"/a": content(PICTURE)}) as plain:
        to = f"http://origin.test:{plain.port}/a"
        async with serving({"/a": redirect(to, status)}, trust=trust) as origin:
            for redirects in ("same_host", "allowed_domains"):
                with pytest.raises(ApplianceError) as caught:
                    await secure(
                        f"https://origin.test:{origin.port}/a",
                        ca_file,
                        replace(POLICY, redirects=redirects),
                    )
                assert caught.value.code == "media_not_allowed"
        assert plain.opened == 0
    async with serving({"/a": content(PICTURE)}, trust=trust) as origin:
        to = f"https://origin.test:{origin.port}/a"
        async with serving({"/a": redirect(to, status)}) as plain:
            assert await secure(f"http://origin.test:{plain.port}/a", ca_file) == PICTURE


async def test_a_host_that_stalls_in_the_handshake_is_a_timeout_and_let_go() -> None:
    closed = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            pass
        closed.set()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    fetcher = Fetcher(resolve=Names())
    with pytest.raises(ApplianceError) as caught:
        await fetched(
            fetcher, f"https://origin.test:{port}/", replace(POLICY, timeout=0.3), param=PARAM
        )
    assert (caught.value.status, caught.value.code) == (504, "media_timeout")
    await asyncio.wait_for(closed.wait(), 10)
    server.close()
    await fetcher.close()


async def relay(call: Call, port: int) -> None:
    """What a proxy does with CONNECT."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await call.send(b"HTTP/1.1 200 Connected\r\n\r\n")

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
        sink.close()

    await asyncio.gather(copy(call.reader, writer), copy(reader, call.writer))


async def test_everything_goes_through_the_proxy_that_resolves_names(
    authority: trustme.CA, ca_file: str
) -> None:
    trust = server_trust(authority, "pictures.test")
    async with serving({"/a": content(PICTURE)}, trust=trust) as origin:

        async def forward(call: Call) -> None:
            if call.method == "CONNECT":
                await relay(call, origin.port)
            else:
                await call.answer(b"forwarded")

        async with serving({"*": forward}) as proxy:
            names = Names()
            policy = media_policy(
                allowed_domains=("*",), proxy=f"http://127.0.0.1:{proxy.port}", timeout=5
            )
            fetcher = Fetcher(ca_file=ca_file, resolve=names)
            assert await fetched(fetcher, "https://pictures.test/a", policy, param="p") == PICTURE
            plain = await fetched(fetcher, "http://pictures.test/b?c=d", policy, param="p")
            assert plain == b"forwarded"
            await fetched(fetcher, "http://[2a00:1450::1]/b", policy, param="p")
            assert names.asked == []
            assert [(call.method, call.target) for call in proxy.calls] == [
                ("CONNECT", "pictures.test:443"),
                ("GET", "http://pictures.test:80/b?c=d"),
                ("GET", "http://[2a00:1450::1]:80/b"),
            ]
            assert origin.names == ["pictures.test"]
            for url in ("http://localhost/", "http://127.0.0.1/", "https://db.internal/"):
                with pytest.raises(ApplianceError) as caught:
                    await fetched(fetcher, url, policy, param="p")
                assert caught.value.code == "media_not_allowed"
            assert len(proxy.calls) == 3
            await fetcher.close()


@pytest.mark.parametrize("handler", [content(b"no", "403 Forbidden"), reset, raw(b"junk\r\n\r\n")])
async def test_a_proxy_that_refuses_or_breaks_is_a_bad_gateway(handler: Any) -> None:
    async with serving({"*": handler}) as proxy:
        policy = media_policy(allowed_domains=("*",), proxy=f"http://127.0.0.1:{proxy.port}")
        with pytest.raises(ApplianceError) as caught:
            await secure("https://pictures.test/a", None, policy)
        assert (caught.value.status, caught.value.code) == (502, "media_fetch_failed")


@pytest.mark.parametrize("quiet", [True, False])
async def test_logs_never_hold_the_query_of_a_signed_url(
    quiet: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Also at debug; without `configure` the library logs headers, and Location among them."""
    levels = {name: logging.getLogger(name).level for name in ("", *OURS)}
    handlers = logging.getLogger().handlers[:]
    configured = []
    if quiet:
        configure(LoggingConfig(format="human", level="debug"))
        configured = logging.getLogger().handlers[:]
        logging.getLogger().handlers[:] = handlers
    try:
        caplog.set_level(logging.DEBUG)
        routes = {
            "/a": redirect("/b?X-Signature=SECRET"),
            "/b": content(b"", "500 Oops"),
            "/c": redirect("http://unlisted.test/?X-Signature=SECRET"),
            "/d": stall,
        }
        async with serving(routes) as origin:
            policy = replace(POLICY, timeout=1)
            for path in routes:
                await failure(origin, f"{path}?X-Signature=SECRET", policy)
            with pytest.raises(ApplianceError):
                await secure("https://unlisted.test/?X-Signature=SECRET", None)
            with pytest.raises(ApplianceError):
                await secure("https://\nbad/?X-Signature=SECRET", None)
        records = [r for r in caplog.records if all(one.filter(r) for one in configured)]
        lines = [f"{record.getMessage()} {record.__dict__}" for record in records]
        ours = [line for line in lines if "'appliance.media'" in line]
        assert len(ours) >= 5
        assert any(f"http://origin.test:{origin.port}" in line for line in ours)
        assert not any("SECRET" in line for line in ours)
        assert any("SECRET" in line for line in lines) is not quiet
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
