"""Bodies that a client has compressed."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib
from collections.abc import Callable

import pytest

from appliance.api.http.content_coding import decoded
from appliance.errors import ApplianceError
from tests.api.asgi_client import Reply, chat_body
from tests.api.conftest import Kitchen

pytestmark = pytest.mark.anyio
Cook = Callable[..., Kitchen]
CHAT = "/v1/chat/completions"
BODY = json.dumps(chat_body(user="é" * 3000)).encode()


def bare(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


READ = {
    "gzip": ("gzip", gzip.compress(BODY)),
    "its old name": ("x-gzip", gzip.compress(BODY)),
    "capitals and blanks": (" GZip ", gzip.compress(BODY)),
    "stored": ("gzip", gzip.compress(BODY, 0)),
    "two members": ("gzip", gzip.compress(BODY[:50]) + gzip.compress(BODY[50:])),
    "with a name": ("gzip", b"\x1f\x8b\x08\x08\0\0\0\0\0\xffa\0" + gzip.compress(BODY)[10:]),
    "deflate": ("deflate", zlib.compress(BODY)),
    "deflate, small window": ("deflate", zlib.compress(BODY, wbits=9)),
    "deflate without a wrapper": ("deflate", bare(BODY)),
    "identity": ("identity", BODY),
    "nothing": ("", BODY),
    "gzip and identity": ("identity, gzip,", gzip.compress(BODY)),
}


async def post(kitchen: Kitchen, coding: str, body: bytes | list[bytes]) -> Reply:
    headers = {"Content-Type": "application/json", "Content-Encoding": coding}
    return await kitchen.client.ask("POST", CHAT, body=body, headers=headers)


@pytest.mark.parametrize("case", READ)
async def test_a_compressed_body_is_read(cook: Cook, case: str) -> None:
    coding, body = READ[case]
    kitchen = cook(..., f"server.max_body_bytes={max(len(body), len(BODY))}")
    assert (await post(kitchen, coding, body)).status == 200
    byte_by_byte = [body[place : place + 1] for place in range(len(body))]
    assert (await post(kitchen, coding, byte_by_byte)).status == 200
    less = cook(..., f"server.max_body_bytes={len(BODY) - 1}")
    assert (await post(less, coding, body)).error["code"] == "body_too_large"


@pytest.mark.parametrize(
    "coding",
    [
        *("zstd", "br", "compress", "lz4", "snappy", "aws-chunked", "utf-8", "none", "gzip;q=1"),
        *("*", "gzip, br", "zstd, gzip", "x-zstd"),
    ],
)
async def test_another_coding_is_415_and_named(cook: Cook, coding: str) -> None:
    reply = await post(cook(), coding, b"\x28\xb5\x2f\xfd" + BODY)
    assert (reply.status, reply.error["code"]) == (415, "unsupported_content_encoding")
    named = next(one for one in coding.split(", ") if one != "gzip")
    assert f"'{named}'" in reply.error["message"]
    assert reply.headers["accept-encoding"] == "gzip, deflate"


async def test_a_body_is_compressed_once(cook: Cook) -> None:
    reply = await post(cook(), "gzip, gzip", gzip.compress(gzip.compress(BODY)))
    assert (reply.status, reply.error["code"]) == (415, "unsupported_content_encoding")
    assert "gzip, gzip" in reply.error["message"]


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", BODY),
        ("gzip", gzip.compress(BODY)[:-1]),
        ("gzip", gzip.compress(BODY)[:40]),
        ("gzip", gzip.compress(BODY) + b"more"),
        ("gzip", gzip.compress(BODY)[:-8] + bytes(8)),
        ("gzip", b"\x1f"),
        ("deflate", BODY),
        ("deflate", zlib.compress(BODY)[:-4]),
        ("gzip", gzip.compress(b"") * 10_001),
    ],
    ids=["none", "short", "half", "longer", "checksum", "byte", "no deflate", "cut", "members"],
)
async def test_a_damaged_body_is_400(cook: Cook, coding: str, body: bytes) -> None:
    reply = await post(cook(), coding, body)
    assert (reply.status, reply.error["code"]) == (400, "invalid_content_encoding")


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("content", [b" ", b"[", b'{"a":', b'"messages",'])
async def test_a_bomb_is_413_before_it_is_whole(cook: Cook, coding: str, content: bytes) -> None:
    whole = content * (30_000_000 // len(content))
    body = gzip.compress(whole) if coding == "gzip" else zlib.compress(whole)
    assert len(body) < 200_000
    kitchen = cook(..., "server.max_body_bytes=200000")
    reply = await post(kitchen, coding, body)
    assert (reply.status, reply.error["code"]) == (413, "body_too_large")
    assert "200000" in reply.error["message"]


def test_no_more_is_kept_of_a_bomb_than_the_limit() -> None:
    bomb = bytearray(gzip.compress(bytes(300_000_000), 1))
    tracemalloc.start()
    with pytest.raises(ApplianceError) as refused:
        decoded(bomb, "gzip", 1_000_000)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert refused.value.status == 413
    assert most < 8_000_000


async def test_a_compressed_body_beyond_the_limit_as_it_came_is_413(cook: Cook) -> None:
    body = gzip.compress(b"".join(bytes([n % 251, n // 251 % 251]) for n in range(20_000)), 0)
    assert (await post(cook(..., "server.max_body_bytes=1000"), "gzip", body)).status == 413


async def test_what_was_compressed_is_checked_as_anything_else(cook: Cook) -> None:
    client = cook()
    assert (await post(client, "gzip", gzip.compress(b"[1]"))).error["code"] == "invalid_type"
    wrong = gzip.compress(json.dumps(chat_body(n=0)).encode())
    assert (await post(client, "gzip", wrong)).error["param"] == "n"
    form = {"Content-Type": "text/plain", "Content-Encoding": "gzip"}
    reply = await client.client.ask("POST", CHAT, body=gzip.compress(BODY), headers=form)
    assert reply.error["code"] == "unsupported_media_type"
