"""Pictures made to hurt, through the launched server: each a refusal that names its part."""

from __future__ import annotations

import base64
import io
import json
import random
import struct
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image, PngImagePlugin

from appliance.config.schema import IMAGE_FORMATS
from appliance.media.image_formats import decoded
from tests.engine.models.pictures import picture
from tests.serving.conftest import Server, serving

MARGIN = 200 << 20  # bytes of memory
PART = "messages[0].content[0].image_url.url"
UNDECODABLE = (422, "media_undecodable")
TOO_LARGE = (400, "media_too_large")


@pytest.fixture(scope="module")
def server(checkpoint: Callable[[str], Path]) -> Iterator[Server]:
    path = f"model.path={checkpoint('qwen2_vl')}"
    with serving(
        "recipe=qwen2_vl", path, "model.name=tiny", "model.max_len=4096", "engine.threads=1"
    ) as server:
        yield server


@dataclass
class Reply:
    status: int
    body: dict[str, Any]

    @property
    def code(self) -> tuple[int, str | None]:
        return self.status, self.body.get("error", {}).get("code")


def ask(server: Server, data: bytes) -> Reply:
    """A question about a picture."""
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    part = {"type": "image_url", "image_url": {"url": url}}
    body = {"model": "tiny", "max_tokens": 1, "messages": [{"role": "user", "content": [part]}]}
    request = urllib.request.Request(
        server.base_url + "/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return Reply(answer.status, json.load(answer))
    except urllib.error.HTTPError as refused:
        return Reply(refused.code, json.load(refused))


def memory(server: Server) -> int:
    """Of all processes of the server, pages shared counted once."""
    tree = psutil.Process(server.process.pid)
    return sum(one.memory_full_info().pss for one in [tree, *tree.children(recursive=True)])


def works(server: Server) -> None:
    reply = ask(server, encoded(picture(56, 56, seed=random.randrange(1 << 30))))
    assert reply.status == 200, reply.body


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file of these chunks, their checksums right."""
    made = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks:
        made += struct.pack(">I", len(data)) + name + data
        made += struct.pack(">I", zlib.crc32(name + data))
    return made


def header(width: int, height: int, depth: int = 8, colour: int = 2) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)


def zeros(size: int) -> tuple[bytes, bytes]:
    return b"IDAT", zlib.compress(bytes(size), 9)


END = (b"IEND", b"")
FORMATS = decoded(IMAGE_FORMATS)


def refusals() -> dict[str, tuple[bytes, tuple[int, str]]]:
    """Files and what is said of them."""
    cases = {
        "empty": (b"", UNDECODABLE),
        "one byte": (b"\x89", UNDECODABLE),
        "zeros": (bytes(5000), UNDECODABLE),
        "words": (b"This is no picture.", UNDECODABLE),
        "svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', UNDECODABLE),
        "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", UNDECODABLE),
        "pdf": (b"%PDF-1.4\n", UNDECODABLE),
        "ppm": (encoded(picture(8, 8), "PPM"), UNDECODABLE),
        "ico": (encoded(picture(16, 16), "ICO"), UNDECODABLE),
        "200 megapixels in 24 kB": (
            png(header(20000, 10000, 1, 0), zeros(25_010_000), END),
            TOO_LARGE,
        ),
        "200 megapixels and nothing else": (png(header(20000, 10000)), UNDECODABLE),
        "as wide as can be": (png(header(2**31 - 1, 2**31 - 1), END), TOO_LARGE),
        "no width": (png(header(0, 9), zeros(9), END), UNDECODABLE),
        "no pixels": (png(header(9, 9), END), UNDECODABLE),
        "49 megapixels promised, none there": (
            png(header(7000, 7000), zeros(100), END),
            UNDECODABLE,
        ),
        "a row too many bits": (png(header(9, 9, 7, 2), zeros(300), END), UNDECODABLE),
        "broken zlib": (png(header(9, 9), (b"IDAT", b"x" * 300), END), UNDECODABLE),
        "a wide strip": (encoded(Image.new("RGB", (10000, 1))), UNDECODABLE),
        "a tall strip": (encoded(Image.new("RGB", (1, 10000))), UNDECODABLE),
        "gif without a frame": (b"GIF89a\x09\x00\x09\x00\x00\x00\x00;", UNDECODABLE),
        "tiff that points at itself": (
            b"II*\x00\x08\x00\x00\x00\x00\x00\x08\x00\x00\x00",
            UNDECODABLE,
        ),
        "bmp of a negative size": (
            b"BM" + struct.pack("<IIIIiiHH", 54, 0, 54, 40, -9, -9, 1, 24) + bytes(24),
            TOO_LARGE,
        ),
        "jpeg of markers": (b"\xff\xd8" + b"\xff\xe1\x00\x02" * 5000, UNDECODABLE),
    }
    for kind in FORMATS:
        data = encoded(picture(120, 90), kind)
        for share in (0.02, 0.3, 0.6):
            cases[f"{kind} cut at {share:.0%}"] = (data[: int(len(data) * share)], UNDECODABLE)
    return cases


def test_every_bad_picture_is_a_refusal_that_names_its_part(server: Server) -> None:
    works(server)
    before = memory(server)
    wrong = {}
    for name, (data, expected) in refusals().items():
        reply = ask(server, data)
        if reply.code != expected or reply.body["error"]["param"] != PART:
            wrong[name] = reply.code
        works(server)
    assert not wrong
    assert memory(server) - before < MARGIN
    assert "Traceback" not in server.output


def test_a_bomb_of_text_beside_a_picture_is_never_unpacked(server: Server) -> None:
    works(server)
    before = memory(server)
    text = PngImagePlugin.PngInfo()
    text.add_text("a", "x" * (70 << 20), zip=True)
    reply = ask(server, encoded(picture(56, 56), pnginfo=text))
    assert reply.status == 200, reply.body
    assert memory(server) - before < MARGIN


@pytest.mark.parametrize("kind", FORMATS)
def test_flipped_bits_are_an_answer_or_a_refusal(kind: str, server: Server) -> None:
    before = memory(server)
    rng = random.Random(kind)
    clean = encoded(picture(100, 80), kind)
    seen = set()
    for _ in range(40):
        data = bytearray(clean)
        for _ in range(rng.choice([1, 3, 20])):
            place = rng.randrange(rng.choice([40, len(data)]))
            data[place] ^= 1 << rng.randrange(8)
        reply = ask(server, bytes(data))
        seen.add(reply.code)
        if reply.status != 200:
            assert reply.code in (UNDECODABLE, TOO_LARGE), reply.body
            assert reply.body["error"]["param"] == PART
    assert UNDECODABLE in seen
    works(server)
    assert memory(server) - before < MARGIN


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1), (2, 3), (29, 27)])
def test_odd_sizes_are_pictures_too(size: tuple[int, int], server: Server) -> None:
    reply = ask(server, encoded(Image.new("RGB", size, "red")))
    assert reply.status == 200, reply.body


def test_large_pictures_leave_no_memory_behind(server: Server) -> None:
    before = memory(server)
    for shade in range(4):
        data = encoded(Image.new("L", (7000, 7000), shade))
        assert ask(server, data).status == 200
    works(server)
    assert memory(server) - before < MARGIN
