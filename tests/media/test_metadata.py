"""What stands beside a picture cannot fail it; what is missing of it still does."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from appliance.errors import ApplianceError
from appliance.media import jpeg
from appliance.media.image import image_size, load_image
from appliance.media.png import chunk, without_metadata
from tests.engine.models.pictures import picture
from tests.media.policies import image_policy
from tests.media.test_image import encoded, same

POLICY = image_policy()
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
WORDS = b"a red circle, masterpiece, " * 60_000
NOISE = np.random.default_rng(7).integers(0, 256, 1_300_000, np.uint8).tobytes()
PICTURE = picture(60, 40)


def loaded(data: bytes) -> Image.Image:
    image = load_image(data, POLICY, "p")
    assert image_size(data, POLICY, "p") == image.size
    return image


def refused(data: bytes) -> bool:
    with pytest.raises(ApplianceError) as caught:
        load_image(data, POLICY, "p")
    return (caught.value.status, caught.value.code) == (422, "media_undecodable")


def pillow(data: bytes) -> Image.Image:
    return Image.open(BytesIO(data)).convert("RGB")


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    place = 8
    while place < len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        yield data[place + 4 : place + 8], place, end
        place = end


def with_chunk(data: bytes, made: bytes, before: bytes = b"IDAT") -> bytes:
    place = next(begin for name, begin, _ in png_chunks(data) if name == before)
    return data[:place] + made + data[place:]


def wrong(made: bytes) -> bytes:
    """A chunk whose checksum is wrong."""
    return made[:-1] + bytes([made[-1] ^ 0x55])


BESIDE_PNG = {
    "a large profile": chunk(b"iCCP", b"p\0\0" + zlib.compress(NOISE)),
    "a bomb of a profile": chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(50 << 20))),
    "a profile that is none": chunk(b"iCCP", b"p\0\0no zlib"),
    "a profile of another method": chunk(b"iCCP", b"p\0\7" + zlib.compress(b"x")),
    "long plain text": chunk(b"tEXt", b"parameters\0" + WORDS),
    "long packed text": chunk(b"zTXt", b"parameters\0\0" + zlib.compress(WORDS)),
    "long international text": chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(WORDS)),
    "a bomb of a text": chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200 << 20), 9)),
    "text that is damaged": chunk(b"zTXt", b"a\0\0\x78\x9c\xff\xff"),
    "text without a keyword": chunk(b"iTXt", b""),
    "many texts": chunk(b"tEXt", b"a\0" + WORDS[:500_000]) * 5,
    "resolution, wrong checksum": wrong(chunk(b"pHYs", struct.pack(">IIB", 2835, 2835, 1))),
    "text, wrong checksum": wrong(chunk(b"tEXt", b"Software\0scanner")),
    "profile, wrong checksum": wrong(chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(300)))),
    "time, wrong checksum": wrong(chunk(b"tIME", bytes(7))),
    "gamma, wrong checksum": wrong(chunk(b"gAMA", struct.pack(">I", 45455))),
    "short gamma": chunk(b"gAMA", b"\0"),
    "short resolution": chunk(b"pHYs", b"\0\0"),
    "short chroma": chunk(b"cHRM", b"\0\0"),
    "an empty rendering intent": chunk(b"sRGB", b""),
    "somebody's own": chunk(b"vpAg", b"\0" * 9) + wrong(chunk(b"prVt", NOISE)),
    "broken EXIF": chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"),
    "a broken XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0broken"),
    "an animation of none": chunk(b"acTL", struct.pack(">II", 0, 0)),
    "half an animation": chunk(b"acTL", struct.pack(">II", 9, 0)) + chunk(b"fcTL", bytes(26)),
    "a transparent colour, wrong checksum": wrong(chunk(b"tRNS", bytes(6))),
}


@pytest.mark.parametrize("name", BESIDE_PNG)
@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
def test_a_png_is_what_its_pixels_are(name: str, before: bytes, tracing: Any) -> None:
    data = with_chunk(encoded(PICTURE), BESIDE_PNG[name], before)
    with tracing() as peak:
        assert same(loaded(data), PICTURE)
        assert peak() < 12 << 20


@pytest.mark.parametrize("name", [b"IHDR", b"PLTE"])
def test_a_wrong_checksum_of_what_makes_the_picture_is_damage(name: bytes) -> None:
    data = encoded(PICTURE.quantize(16))
    begin, end = next((begin, end) for found, begin, end in png_chunks(data) if found == name)
    assert refused(data[:begin] + wrong(data[begin:end]) + data[end:])


def test_pixels_of_a_png_that_are_missing_or_damaged_are_refused() -> None:
    data = encoded(PICTURE)
    begin, end = next((begin, end) for name, begin, end in png_chunks(data) if name == b"IDAT")
    for cut in (9, 30, begin, begin + 20, (begin + end) // 2, end - 12):
        assert refused(data[:cut])
    flipped = bytearray(data)
    flipped[end - 6] ^= 1  # of zlib's own checksum
    assert refused(bytes(flipped))
    for cut in (end, end + 4, len(data) - 4, len(data) - 1):  # all pixels, without the last chunk
        assert same(loaded(data[:cut]), PICTURE)


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


def test_orientation_is_no_mere_metadata() -> None:
    turned = PICTURE.transpose(Image.Transpose.ROTATE_270)
    raw = exif(6).tobytes()
    profile = f"\nexif\n{len(raw):8}\n{raw.hex()}\n".encode()
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    plain = encoded(PICTURE)
    for made in (
        chunk(b"eXIf", raw.removeprefix(b"Exif\0\0")),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile)),
        chunk(b"tEXt", b"Raw profile type exif\0" + profile),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp)),
    ):
        for before in (b"IDAT", b"IEND"):
            assert same(loaded(with_chunk(plain, made, before)), turned)
        assert same(loaded(with_chunk(plain, wrong(made))), PICTURE)
    bomb = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile + bytes(9 << 20)))
    assert same(loaded(with_chunk(plain, bomb)), PICTURE)
    for form in ("JPEG", "WEBP"):
        data = encoded(PICTURE, form, xmp=xmp)
        assert loaded(data).size == turned.size
        assert same(loaded(data), pillow(data).transpose(Image.Transpose.ROTATE_270))


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


BESIDE_JPEG = {
    "broken EXIF": segment(0xE1, b"Exif\0\0" + NOISE[:60]),
    "EXIF of no length": segment(0xE1, b"Exif\0\0"),
    "a broken index of pictures": segment(0xE2, b"MPF\0II*\0\x08\0\0\0" + NOISE[:80]),
    "a broken profile": segment(0xE2, b"ICC_PROFILE\0\5\1" + NOISE[:60]),
    "a large profile": segment(0xE2, b"ICC_PROFILE\0\1\1" + NOISE[:65_000]) * 20,
    "broken Photoshop blocks": segment(0xED, b"Photoshop 3.0\0008BIM" + NOISE[:60]),
    "a comment of anything": segment(0xFE, NOISE[:9000]),
    "a short JFIF": segment(0xE0, b"JFIF\0\1"),
    "a short Adobe": segment(0xEE, b"Adobe"),
    "broken XMP": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + NOISE[:99]),
    "a heat picture": segment(0xE1, b"FLIR\0\1\0\0" + NOISE[:30_000]) * 9,
    "a picture in a comment": segment(0xFE, jpeg.START + NOISE[:50] + jpeg.END),
    "fill bytes": b"\xff" * 9,
}
KINDS: dict[str, dict[str, Any]] = {
    "baseline": {"quality": 90},
    "coarse colours": {"quality": 50, "subsampling": "4:2:0"},
    "progressive": {"quality": 85, "progressive": True},
    "restarts": {"quality": 85, "restart_marker_rows": 1},
    "grey": {"quality": 85, "grey": True},
}


def photo(kind: str, size: tuple[int, int] = (61, 43)) -> bytes:
    options = dict(KINDS[kind])
    image = picture(*size)
    return encoded(image.convert("L") if options.pop("grey", False) else image, "JPEG", **options)


@pytest.mark.parametrize("name", BESIDE_JPEG)
@pytest.mark.parametrize("kind", ["baseline", "progressive"])
def test_a_jpeg_is_what_its_pixels_are(name: str, kind: str) -> None:
    data = photo(kind)
    made = data[:2] + BESIDE_JPEG[name] + data[2:]
    assert same(loaded(made), pillow(data))
    assert same(loaded(made[:-2]), pillow(data))
    assert refused(made[: len(made) - len(data) // 2])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(61, 43), (64, 48), (7, 5), (200, 120)])
def test_a_jpeg_with_all_its_rows_is_whole(kind: str, size: tuple[int, int]) -> None:
    data = photo(kind, size)
    expected = pillow(data)
    for end in (b"", b"\xff", b"\0", bytes(4000), b"\xff" * 300, b"\xff\0\0\xff"):
        assert same(loaded(data[:-2] + end), expected)
    assert same(loaded(data + NOISE[:300]), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(64, 48), (200, 120)])
def test_a_jpeg_that_lacks_pixels_is_refused(kind: str, size: tuple[int, int]) -> None:
    data = photo(kind, size)
    start = data.index(b"\xff\xda") + 16
    cuts = [len(data) - n for n in (4, 6, 9, 20, 60)]
    cuts += [start + (len(data) - start) * share // 20 for share in range(1, 19)]
    for cut in cuts:
        assert refused(data[:cut])
        assert refused(data[:cut] + bytes(5000))


def test_flat_pictures_that_lack_pixels_are_refused() -> None:
    """A decoder makes up for what is missing with the last colour, which may be the right one."""
    image = Image.new("RGB", (320, 240), "white")
    image.paste("red", (10, 10, 60, 60))
    for options in KINDS.values():
        data = encoded(image, "JPEG", **{k: v for k, v in options.items() if k != "grey"})
        assert same(loaded(data[:-2]), pillow(data))
        for cut in (len(data) // 2, len(data) - 12, len(data) - 40):
            assert refused(data[:cut])


def test_scans_that_never_came_are_missed() -> None:
    data = photo("progressive", (200, 120))
    scans = [at for at in range(len(data) - 1) if data[at : at + 2] == b"\xff\xda"]
    assert len(scans) > 5
    for scan in scans[1:]:
        huffman = data.rfind(b"\xff\xc4", 0, scan)
        assert refused(data[: huffman if huffman > scans[0] else scan])


@pytest.mark.parametrize("lossless", [True, False])
def test_a_webp_is_what_its_pixels_are(lossless: bool) -> None:
    profile = NOISE[:3001]
    data = encoded(
        PICTURE, "WEBP", lossless=lossless, icc_profile=profile, exif=exif(1), xmp=b"<x/>"
    )
    expected = pillow(encoded(PICTURE, "WEBP", lossless=lossless))
    assert same(loaded(data), expected)
    for cut in (1, 3, 12, 20):  # of what follows the pixels
        assert same(loaded(data[:-cut]), expected)
    for size in (0, 12, len(data) + 99, 0xFFFFFFFF):
        assert same(loaded(data[:4] + struct.pack("<I", size) + data[8:]), expected)
    assert same(loaded(data + NOISE[:99]), expected)
    pixels = data.index(b"VP8L" if lossless else b"VP8 ")
    for cut in (pixels + 4, pixels + 20, data.index(b"EXIF") - 9):
        assert refused(data[:cut])


def test_nothing_of_another_format_is_touched() -> None:
    for form in ("GIF", "BMP", "TIFF"):
        data = encoded(PICTURE, form)
        assert without_metadata(data) is data


def test_broken_headers_of_scans_are_damage() -> None:
    for kind in ("baseline", "progressive"):
        data = photo(kind)[:-2]
        place = data.index(b"\xff\xda") + 2
        for length in (0, 1, 2, 3, 4, 7, 500):
            broken = data[:place] + struct.pack(">H", length) + data[place + 2 :]
            for end in range(place + 2, place + 14):
                assert refused(broken[:end])
        for count in (0, 2, 9, 255):
            assert refused(data[: place + 2] + bytes([count]) + data[place + 3 :])


def test_many_small_segments_take_no_long_time() -> None:
    tables = segment(0xDB, b"") * 300_000
    data = photo("baseline")
    begun = time.process_time()
    for end in (len(data), -2):
        with suppress(ApplianceError):
            load_image(data[:2] + tables + data[2:end], POLICY, "p")
    assert time.process_time() - begun < 5
