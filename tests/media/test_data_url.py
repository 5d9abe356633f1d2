from __future__ import annotations

import base64
from urllib.parse import quote

import pytest

from appliance.errors import ApplianceError
from appliance.media.data_url import read_data_url

DATA = bytes(range(256)) * 3


def read(url: str, max_bytes: int = 1 << 20) -> bytes:
    return read_data_url(url, kind="image", max_bytes=max_bytes, param="p")


def code(url: str, max_bytes: int = 1 << 20) -> tuple[int, str | None]:
    with pytest.raises(ApplianceError) as refused:
        read(url, max_bytes)
    assert refused.value.param == "p"
    return refused.value.status, refused.value.code


@pytest.mark.parametrize("length", [0, 1, 2, 3, 255, 256])
@pytest.mark.parametrize(
    "header",
    [
        "data:image/png;base64",
        "DATA:IMAGE/PNG;BASE64",
        "data:;base64",
        "data:image/x;name=a;base64",
    ],
)
def test_base64_is_read(header: str, length: int) -> None:
    assert read(f"{header},{base64.b64encode(DATA[:length]).decode()}") == DATA[:length]


def test_percent_encoding_is_undone() -> None:
    text = base64.b64encode(DATA).decode()
    assert read("data:image/png;base64," + quote(text, safe="")) == DATA
    assert read("data:image/png," + quote(DATA)) == DATA
    assert read("data:application/octet-stream,a%20b") == b"a b"


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64",
        "data:image/png;base64,AAA",
        "data:image/png;base64,AAAA=",
        "data:image/png;base64,AA=A",
        "data:image/png;base64,AA==AAAA",
        "data:image/png;base64,AA AA",
        "data:image/png;base64,AAAA\n",
        "data:image/png;base64,AA-_",
        "data:image/png;base64,ÄÄÄÄ",
        "data:text/html;base64,AAAA",
        "data:video/jpeg;base64,AAAA",
        "data:",
    ],
)
def test_malformed_urls_are_refused(url: str) -> None:
    assert code(url) == (400, "invalid_data_url")


@pytest.mark.parametrize("length", [1, 2, 3, 700])
def test_the_limit_is_exact(length: int) -> None:
    url = "data:image/png;base64," + base64.b64encode(DATA[:length]).decode()
    assert read(url, length) == DATA[:length]
    assert code(url, length - 1) == (400, "media_too_large")
    plain = "data:image/png," + quote(DATA[:length])
    assert read(plain, length) == DATA[:length]
    assert code(plain, length - 1) == (400, "media_too_large")
