"""`data:` URLs as clients write them, read as the WHATWG Fetch standard has it."""

from __future__ import annotations

import base64
import binascii
import io
from urllib.parse import quote

import pytest
from PIL import Image

from appliance.errors import ApplianceError
from appliance.media import data_url
from appliance.media.data_url import (
    FRAME_LIST,
    LIST_SLACK,
    from_base64,
    is_data_url,
    read_data_url,
)
from appliance.media.policy import read_url
from tests.engine.models.pictures import picture
from tests.media.clips import sound_with_cover, video
from tests.media.policies import media_policy
from tests.media.test_image import encoded

DATA = bytes(range(256)) * 3 + b"!"  # whose base64 ends in padding
TEXT = base64.b64encode(DATA).decode()


def read(url: str, max_bytes: int = 1 << 20, kind: str = "image") -> bytes:
    return read_data_url(url, kind=kind, max_bytes=max_bytes, param="p")


def code(url: str, max_bytes: int = 1 << 20, kind: str = "image") -> tuple[int, str | None]:
    with pytest.raises(ApplianceError) as refused:
        read(url, max_bytes, kind)
    assert refused.value.param == "p"
    return refused.value.status, refused.value.code


def lines(width: int, end: str) -> str:
    return end.join(TEXT[at : at + width] for at in range(0, len(TEXT), width))


HEADERS = [
    "data:image/png;base64",
    "DATA:IMAGE/PNG;BASE64",
    "data:;base64",
    "data:image/x;name=a;base64",
    "data:image/jpeg;charset=utf-8;base64",
    "data:image/png;filename=my%20cat.png;base64",
    "data:image/png; base64",
    "data:image/png;   Base64",
    "data: image/png ;base64",
    " \n\tdata:image/png;base64",
    "da\nta:image/\r\npng;base\t64",
    'data:image/png;name="a b";base64',
    "data:text/html;base64",
    "data:binary/octet-stream;base64",
    "data:None;base64",
    "data:undefined;base64",
    "data:application/octet-stream;base64",
    "data:image;base64",
    "data:*/*;base64",
    "data:;;base64",
]


@pytest.mark.parametrize("length", [0, 1, 2, 3, 255, 256])
@pytest.mark.parametrize("header", HEADERS)
def test_base64_is_read(header: str, length: int) -> None:
    url = f"{header},{base64.b64encode(DATA[:length]).decode()}"
    assert is_data_url(url)
    assert read(url) == DATA[:length]


@pytest.mark.parametrize(
    "body",
    [
        lines(76, "\n"),
        lines(76, "\r\n"),
        lines(64, "\n") + "\n",
        lines(1, " "),
        lines(3, "\t"),
        lines(5, "\f"),
        TEXT + "\n",
        "\n\n" + TEXT,
        TEXT.rstrip("="),
        TEXT.rstrip("=") + " \r\n",
        TEXT.replace("=", "=\n"),
        TEXT.replace("=", " ="),
        quote(TEXT, safe=""),
        "".join(f"%{ord(one):02x}" for one in TEXT),
        lines(60, "%0A"),
        lines(60, "%0d%0a"),
        TEXT.replace("=", "%3D"),
        TEXT + "#fragment",
        TEXT + "#",
    ],
)
def test_base64_is_forgiven_what_the_standard_forgives(body: str) -> None:
    assert read("data:image/png;base64," + body) == DATA


def test_what_is_not_base64_is_percent_encoded() -> None:
    assert read("data:image/png," + quote(DATA)) == DATA
    assert read("data:application/octet-stream,a%20b") == b"a b"
    assert read("data:,a%2z%#gone") == b"a%2z%"
    assert read("data:image/png;base64;name=a,AAAA") == b"AAAA"  # the word is not at the end


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64",
        "data:",
        "data:image/png;base64#,AAAA",
        "data:image/png;base64,A",
        "data:image/png;base64,AAAAA",
        "data:image/png;base64,AAAA=",
        "data:image/png;base64,AAAA==",
        "data:image/png;base64,AA=",
        "data:image/png;base64,A===",
        "data:image/png;base64,=",
        "data:image/png;base64,====",
        "data:image/png;base64,AA=A",
        "data:image/png;base64,AA==AAAA",
        "data:image/png;base64,AA-_",
        "data:image/png;base64,AA.A",
        "data:image/png;base64,AA\0A",
        "data:image/png;base64,AA\vA",
        "data:image/png;base64,AA\u00a0A",
        "data:image/png;base64,ÄÄÄÄ",
        "data:image/png;base64,%00AAA",
        "data:image/png;base64,AAA%",
        "data:image/png;base64,data:image/png;base64,AAAA",
        "data:image/png;base64,https://example.org/a.png",
        "data:image/png;base64,\ud800AAA",
    ],
)
def test_malformed_urls_are_refused(url: str) -> None:
    assert code(url) == (400, "invalid_data_url")


@pytest.mark.parametrize(
    "url", ["dat:a,", "xdata:,", "http://data:80/", "d ata:,", "data", "file:"]
)
def test_what_begins_otherwise_is_no_data_url(url: str) -> None:
    assert not is_data_url(url)


@pytest.mark.parametrize("header", HEADERS)
def test_where_data_urls_are_not_taken_no_spelling_of_one_is(header: str) -> None:
    url = f"{header},AAAA"
    assert read_url(url, media_policy()).scheme == "data"
    with pytest.raises(ApplianceError) as refused:
        read_url(url, media_policy(schemes=("https",)))
    assert refused.value.code == "media_not_allowed"


@pytest.mark.parametrize("length", [1, 2, 3, 700])
@pytest.mark.parametrize("blanks", ["", "\n", " \r\n\t"])
def test_the_limit_is_exact(length: int, blanks: str) -> None:
    encoded = base64.b64encode(DATA[:length]).decode()
    url = "data:image/png;base64," + blanks.join(["", *encoded, ""])
    assert read(url, length) == DATA[:length]
    assert code(url, length - 1) == (400, "media_too_large")
    plain = "data:image/png," + quote(DATA[:length])
    assert read(plain, length) == DATA[:length]
    assert code(plain, length - 1) == (400, "media_too_large")


@pytest.mark.parametrize("size", [(1 << 20) - 3, (1 << 20) + 5, 3 << 20, (3 << 20) + 1])
def test_pieces_join_without_a_seam(size: int) -> None:
    data = (bytes(range(256)) * (size // 256 + 1))[:size]
    text = base64.b64encode(data).decode()
    for written in (text, "\n".join([text[:1000], text[1000:]]), text.replace("A", "%41")):
        assert read("data:image/png;base64," + written, size) == data
    assert from_base64(text.encode()) == data
    assert (
        read("data:image/png," + "".join(f"%{byte:02x}" for byte in data[:700_001]))
        == (data[:700_001])
    )


@pytest.mark.parametrize("body", ["A" * (12 << 20), "%41" * (4 << 20), "A \n" * (4 << 20)])
def test_a_large_url_is_decoded_by_pieces(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one is decoded the interpreter is held, and the event loop with it."""
    sizes: list[int] = []

    class Watched:
        Error = binascii.Error

        def a2b_base64(self, data: bytes, *, strict_mode: bool) -> bytes:
            sizes.append(len(data))
            return binascii.a2b_base64(data, strict_mode=strict_mode)

    monkeypatch.setattr(data_url, "binascii", Watched())
    assert not any(read("data:image/png;base64," + body, 64 << 20))
    assert sum(sizes) == len(body.replace("%41", "A").replace(" \n", ""))
    assert max(sizes) <= (1 << 20) + 4


def webp() -> bytes:
    return encoded(picture(16, 16), "WEBP")


def moving(form: str = "WEBP") -> bytes:
    frames = [picture(16, 16, seed) for seed in range(3)]
    return encoded(frames[0], form, save_all=True, append_images=frames[1:])


def wave() -> bytes:
    return b"RIFF\x24\0\0\0WAVEfmt " + bytes(20)


OF_ANOTHER_TYPE = [
    ("image", "video/gif", lambda: encoded(picture(16, 16), "GIF")),
    ("image", "image/jpeg", webp),
    ("image", "video/webp", moving),
    ("image", "video/png", lambda: moving("PNG")),
    ("image", "application/pdf", lambda: encoded(picture(16, 16), "GIF")),
    ("image", "text/plain", lambda: b"anything"),
    ("video", "image/gif", lambda: encoded(picture(16, 16), "GIF")),
    ("video", "image/webp", moving),
    ("video", "image/apng", lambda: moving("PNG")),
    ("video", "application/mp4", lambda: video(2)),
    ("video", "audio/webm", lambda: video(2, form="webm", codec="libvpx")),
    ("video", "application/ogg", lambda: b"OggS"),
    ("video", "audio/mp4", lambda: video(2)),
    ("video", "video/webm", lambda: video(2)),
    ("video", "text/html", lambda: b"anything"),
    ("audio", "video/mp4", sound_with_cover),
    ("audio", "video/webm", lambda: b"\x1aE\xdf\xa3"),
    ("audio", "application/octet-stream", wave),
    ("audio", "audio/mpeg", wave),
    ("audio", "application/ogg", lambda: b"OggS"),
    ("audio", "video/ogg", lambda: b"OggS"),
    ("audio", "video/quicktime", lambda: b"\0\0\0\x08wide"),
    ("audio", "video/3gpp", lambda: b"\0\0\0\x18ftyp3gp4"),
]


@pytest.mark.parametrize(("kind", "declared", "made"), OF_ANOTHER_TYPE)
def test_bytes_decide_what_an_item_is(kind: str, declared: str, made: object) -> None:
    assert callable(made)
    data = made()
    url = f"data:{declared};base64," + base64.b64encode(data).decode()
    assert read(url, kind=kind) == data


@pytest.mark.parametrize(
    ("kind", "declared", "data"),
    [
        ("image", "video/mp4", video(2)),
        ("image", "video/jpeg", b"\0\0\0"),
        ("image", "audio/wav", wave()),
        ("image", "Audio/MPEG; rate=3", b"ID3"),
        ("image", "video/webm", b"\x1aE\xdf\xa3"),
        ("image", "video/mp4", encoded(picture(16, 16))),
        ("image", "video/jpeg", encoded(picture(16, 16), "JPEG")),
        ("image", "audio/wav", encoded(picture(16, 16), "WEBP")),
        ("video", "image/png", video(2)),
        ("video", "image/avif", video(2)),
        ("audio", "image/png", wave()),
        ("audio", "video/mp4", wave()),
        ("video", "image/jpeg", encoded(picture(16, 16), "JPEG")),
        ("video", "audio/wav", wave()),
        ("video", "image/heic", b"x"),
        ("audio", "image/png", encoded(picture(16, 16))),
        ("audio", "video/x-msvideo", b"no sound"),
        ("audio", "image/avif", encoded(picture(16, 16), "AVIF")),
    ],
)
def test_another_modality_that_is_none_of_its_bytes_is_refused(
    kind: str, declared: str, data: bytes
) -> None:
    url = f"data:{declared};base64," + base64.b64encode(data).decode()
    assert code(url, kind=kind) == (400, "invalid_data_url")
    unnamed = "data:;base64," + base64.b64encode(data).decode()
    assert read(unnamed, kind=kind) == data  # which the decoder refuses


FRAMES = [base64.b64encode(encoded(picture(8, 8, seed), "JPEG")).decode() for seed in range(3)]


@pytest.mark.parametrize(
    ("header", "between"),
    [
        ("data:video/jpeg;base64", ","),
        ("data:video/png;base64", ","),
        ("DATA:Video/JPEG;Base64", ","),
        ("data:video/jpeg;fps=2;base64", ","),
        (" data:video/jpeg; base64", ","),
        ("data:video/jpeg;base64", "%2C"),
        ("data:video/jpeg;base64", ",\n"),
        ("data:video/jpeg;base64", " \r\n, "),
        ("data:\nvideo/jpeg;base64", "%2c%0a"),
    ],
)
def test_a_list_of_frames_is_read_by_the_same_reader(header: str, between: str) -> None:
    listed = f"{header},{between.join(FRAMES)}"
    read_ = read(listed, kind="video")
    assert read_.startswith(FRAME_LIST)
    frames = [from_base64(frame) for frame in read_.removeprefix(FRAME_LIST).split(b",")]
    assert [Image.open(io.BytesIO(frame)).size for frame in frames] == [(8, 8)] * 3


@pytest.mark.parametrize("frame", ["AAAA", "AA A\nA ", "%41AAA"])
def test_a_list_of_frames_is_no_larger_than_a_video(frame: str) -> None:
    url = "data:video/jpeg;base64," + frame * ((LIST_SLACK + 302) // 3)
    assert read(url, 302, kind="video")
    assert code(url, 301, kind="video") == (400, "media_too_large")
