from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from appliance.errors import ApplianceError
from appliance.media.image import ImagePolicy, load_image
from appliance.media.png import chunk
from tests.engine.models.pictures import picture
from tests.media.policies import image_policy

POLICY = image_policy()
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def refusal(data: bytes, policy: ImagePolicy = POLICY) -> tuple[int, str | None]:
    with pytest.raises(ApplianceError) as refused:
        load_image(data, policy, "messages[0].content[0].image_url.url")
    assert refused.value.param == "messages[0].content[0].image_url.url"
    return refused.value.status, refused.value.code


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.mode == other.mode and one.size == other.size and one.tobytes() == other.tobytes()


@pytest.mark.parametrize("form", ["PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_a_lossless_image_comes_back_as_it_was(form: str) -> None:
    image = picture(31, 17)
    if form == "GIF":
        image = image.quantize(64).convert("RGB")
    options = {"lossless": True} if form == "WEBP" else {}
    assert same(load_image(encoded(image, form, **options), POLICY, "p"), image)


@pytest.mark.parametrize("form", ["JPEG", "AVIF", "WEBP"])
def test_a_lossy_image_is_what_pillow_decodes(form: str) -> None:
    data = encoded(picture(64, 48), form)
    assert same(load_image(data, POLICY, "p"), Image.open(BytesIO(data)).convert("RGB"))


def see_through(size: tuple[int, int] = (40, 30)) -> Image.Image:
    image = picture(*size).convert("RGBA")
    alpha = np.random.default_rng(3).integers(0, 256, size[::-1], dtype=np.uint8)
    image.putalpha(Image.fromarray(alpha))
    return image


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), (12, 200, 99)])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparency_is_composited_as_pillow_does_it(
    background: tuple[int, int, int], mode: str
) -> None:
    image = see_through()
    match mode:
        case "LA" | "RGBA":
            data = encoded(image.convert(mode))
        case "PA":
            indexed = image.convert("RGB").quantize(8).convert("PA")
            indexed.putalpha(image.getchannel("A"))
            data = encoded(indexed, "TIFF")
        case _:
            indexed = image.convert("RGB").quantize(8)
            data = encoded(indexed, transparency=bytes([0, 80, 160, 255, 255, 10, 255, 255]))
    decoded = Image.open(BytesIO(data))
    expected = Image.alpha_composite(
        Image.new("RGBA", image.size, (*background, 255)), decoded.convert("RGBA")
    ).convert("RGB")
    policy = image_policy(rgba_background=list(background))
    assert same(load_image(data, policy, "p"), expected)
    assert not same(load_image(data, policy, "p"), decoded.convert("RGB"))


def test_a_transparent_colour_of_an_opaque_mode_is_composited() -> None:
    image = Image.new("RGB", (4, 4), (9, 8, 7))
    image.putpixel((0, 0), (1, 2, 3))
    loaded = load_image(encoded(image, transparency=(9, 8, 7)), POLICY, "p")
    assert loaded.getpixel((0, 0)) == (1, 2, 3)
    assert loaded.getpixel((3, 3)) == (255, 255, 255)


def grey_png(values: np.ndarray, depth: int, transparent: int, colours: int = 1) -> bytes:
    """Rows of samples of any depth, `transparent` the colour that nothing is seen of."""
    height, width = values.shape[:2]
    bits = np.unpackbits(values.astype(">u2").view(np.uint8).reshape(height, -1, 2), axis=2)
    packed = np.packbits(bits[:, :, 16 - depth :].reshape(height, -1), axis=1)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    kind = 0 if colours == 1 else 2
    header = struct.pack(">IIBBBBB", width // colours, height, depth, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"tRNS", struct.pack(">H", transparent) * colours)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("background", [(255, 255, 255), (0, 128, 0)])
def test_a_transparent_grey_of_any_depth_shows_the_background(
    depth: int, background: tuple[int, ...]
) -> None:
    most = (1 << depth) - 1
    values = np.linspace(0, most, 64).astype(np.uint16).reshape(4, 16)
    for transparent in {0, most, int(values[2, 3])}:
        policy = image_policy(rgba_background=background)
        made = np.asarray(load_image(grey_png(values, depth, transparent), policy, "p"))
        eight = values >> 8 if depth == 16 else values * 255 // most
        expected = np.where((values == transparent)[..., None], background, eight[..., None])
        assert np.array_equal(made, expected)


def test_a_transparent_colour_of_16_bits_shows_the_background() -> None:
    values = np.repeat(np.array([[[0], [32768], [65535]]]), 3, axis=2).reshape(1, 9)
    policy = image_policy(rgba_background=(1, 2, 3))
    for place, transparent in enumerate((0, 32768, 65535)):
        data = grey_png(values, 16, transparent, colours=3)
        made = np.asarray(load_image(data, policy, "p"))[0].tolist()
        expected = [[value >> 8] * 3 for value in (0, 32768, 65535)]
        expected[place] = [1, 2, 3]
        assert made == expected


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(48, 32), form, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(BytesIO(data)).convert("RGB"))
    if form == "TIFF":
        expected = Image.open(BytesIO(data))
        expected.load()  # turns by itself
    loaded = load_image(data, POLICY, "p")
    assert same(loaded, expected.convert("RGB"))
    assert loaded.size == ((48, 32) if orientation < 5 else (32, 48))


def test_broken_exif_is_ignored() -> None:
    image = picture(20, 10)
    data = encoded(image, exif=b"Exif\0\0II*\0\xff\xff\xff\xff\x01\x00\x12\x01")
    assert same(load_image(data, POLICY, "p"), image)


def test_deep_grey_keeps_its_brightness() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, axis=0)
    for form in ("PNG", "TIFF"):
        loaded = load_image(encoded(Image.fromarray(ramp), form), POLICY, "p")
        assert np.array_equal(np.asarray(loaded)[0, :, 0], ramp[0] // 256)
    floats = Image.fromarray(np.float32([[0.0, 0.5, 1.0, np.nan, np.inf]]))
    assert np.asarray(load_image(encoded(floats, "TIFF"), POLICY, "p"))[0, :, 0].tolist() == [
        0, 127, 255, 0, 0,
    ]  # fmt: skip


def test_other_modes_become_rgb_as_pillow_does_it() -> None:
    for mode, form in [
        ("CMYK", "JPEG"),
        ("CMYK", "TIFF"),
        ("1", "PNG"),
        ("L", "JPEG"),
        ("P", "GIF"),
    ]:
        data = encoded(picture(24, 16).convert(mode), form)
        assert same(load_image(data, POLICY, "p"), Image.open(BytesIO(data)).convert("RGB"))


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for form in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if form == "WEBP" else {}
        data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
        assert load_image(data, POLICY, "p").getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (2, 3), (10000, 1)])
def test_odd_sizes_are_read(size: tuple[int, int]) -> None:
    assert load_image(encoded(Image.new("RGB", size)), POLICY, "p").size == size


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "AVIF", "BMP"])
def test_damaged_files_are_unreadable(form: str) -> None:
    data = encoded(picture(64, 64), form)
    assert refusal(data[: len(data) // 2]) == (422, "media_undecodable")
    assert refusal(data[:9]) == (422, "media_undecodable")


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"hello", b"<svg xmlns='x'/>", b"%PDF-1.7", b"GIF89a"]
)
def test_what_is_no_image_is_unreadable(data: bytes) -> None:
    assert refusal(data) == (422, "media_undecodable")


def outcome(data: bytes) -> int | str:
    try:
        load_image(data, image_policy(max_pixels=100_000), "p")
    except ApplianceError as refused:
        return refused.status
    return "read"


def test_flipped_bytes_never_escape_as_another_error() -> None:
    rng = np.random.default_rng(5)
    for form in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"):
        whole = np.frombuffer(encoded(picture(24, 24), form), dtype=np.uint8)
        for _ in range(40):
            data = whole.copy()
            data[rng.integers(0, min(len(data), 200), 4)] = rng.integers(0, 256, 4)
            assert outcome(data.tobytes()) in ("read", 400, 422)


def test_only_listed_formats_are_read() -> None:
    policy = image_policy(formats=["PNG", "HEIF"])
    assert load_image(encoded(picture(8, 8)), policy, "p").size == (8, 8)
    assert refusal(encoded(picture(8, 8), "JPEG"), policy) == (422, "media_undecodable")
    assert refusal(encoded(picture(8, 8), "PPM")) == (422, "media_undecodable")


def bomb(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(20000, 10000), (60000, 60000), (2**31 - 1, 1)])
def test_a_bomb_is_refused_from_its_header(size: tuple[int, int], tracing: Any) -> None:
    with tracing() as peak:
        assert refusal(bomb(*size)) == (400, "media_too_large")
        assert peak() < 5 << 20


def test_limits_are_exact() -> None:
    data = encoded(Image.new("RGB", (100, 50)))
    exact = image_policy(max_bytes=len(data), max_pixels=5000)
    assert load_image(data, exact, "p").size == (100, 50)
    fewer_pixels = image_policy(max_pixels=4999)
    assert refusal(data, fewer_pixels) == (400, "media_too_large")
    fewer_bytes = image_policy(max_bytes=len(data) - 1)
    assert refusal(data, fewer_bytes) == (400, "media_too_large")
