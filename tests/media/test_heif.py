"""HEIF as phones write it, and formats that are named only where they are read."""

from __future__ import annotations

import importlib
import logging
import struct
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from appliance.api.models import media_limits
from appliance.errors import ApplianceError
from appliance.media import heif, image_formats
from appliance.media.assembly import media_settings
from appliance.media.image import image_size, load_image
from appliance.media.limits import ImagePolicy
from appliance.media.signature import modalities
from tests.engine.models.pictures import picture
from tests.media.policies import defaults, image_policy
from tests.media.test_image import encoded, same

pytest.importorskip("pillow_heif")
image_formats.register()
FORMATS = ("PNG", "JPEG", "AVIF", "HEIF", "JPEG2000")
POLICY = image_policy(formats=FORMATS)


def as_pillow(data: bytes) -> Image.Image:
    image = Image.open(BytesIO(data))
    image.load()
    return image


def loaded(data: bytes, policy: ImagePolicy = POLICY) -> Image.Image:
    image = load_image(data, policy, "p")
    assert image_size(data, policy, "p") == image.size
    return image


def refusal(data: bytes, policy: ImagePolicy = POLICY) -> tuple[int, str | None]:
    with pytest.raises(ApplianceError) as refused:
        load_image(data, policy, "p")
    return refused.value.status, refused.value.code


def turned(orientation: int) -> dict[str, Any]:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif.tobytes()}


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "lossless": {"quality": -1, "chroma": 444},
    "in tiles, as phones do": {"tile_size": 64},
    "with a profile": {"icc_profile": b"profile" * 100},
    "with words": {"xmp": b"<x:xmpmeta/>"},
    **{f"turned {n}": turned(n) for n in range(2, 9)},
}


@pytest.mark.parametrize("name", KINDS)
def test_a_heif_is_what_its_plugin_decodes(name: str) -> None:
    image = picture(200, 128)
    data = encoded(image, "HEIF", **KINDS[name])
    assert modalities(data) == {"image"}
    made = loaded(data)
    assert same(made, as_pillow(data).convert("RGB"))
    sideways = name.startswith("turned") and int(name[-1]) > 4
    assert made.size == ((128, 200) if sideways else (200, 128))


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1"])
def test_its_brand_may_be_a_general_one(brand: bytes) -> None:
    data = encoded(picture(64, 48), "HEIF")
    assert same(loaded(data[:8] + brand + data[12:]), loaded(data))


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 128, 0)])
def test_a_heif_lies_on_the_background(background: tuple[int, ...]) -> None:
    image = picture(64, 48).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize((64, 48)))
    data = encoded(image, "HEIF")
    decoded = as_pillow(data)
    assert decoded.mode == "RGBA"
    ground = Image.new("RGBA", decoded.size, (*background, 255))
    expected = Image.alpha_composite(ground, decoded).convert("RGB")
    assert same(loaded(data, image_policy(formats=FORMATS, rgba_background=background)), expected)


def test_the_picture_of_several_is_the_one_that_the_file_names() -> None:
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], "HEIF", save_all=True, append_images=frames[1:], primary_index=1)
    red, green, blue = loaded(data).getpixel((9, 9))  # type: ignore[misc]
    assert green > 200 > max(red, blue)


def test_limits_and_damage() -> None:
    data = encoded(picture(200, 128), "HEIF")
    assert loaded(data, image_policy(formats=FORMATS, max_pixels=25_600)).size == (200, 128)
    few = image_policy(formats=FORMATS, max_pixels=25_599)
    assert refusal(data, few) == (400, "media_too_large")
    assert refusal(data, image_policy(formats=FORMATS, max_bytes=99)) == (400, "media_too_large")
    assert refusal(data, image_policy(formats=["PNG"])) == (422, "media_undecodable")
    for cut in (9, 40, 200, len(data) // 2, len(data) - 300):
        assert refusal(data[:cut]) == (422, "media_undecodable")
    place = data.index(b"ispe") + 8
    for size in ((60_000, 60_000), (1, 1), (2**31 - 1, 1), (0, 5), (400, 300)):
        lying = data[:place] + struct.pack(">II", *size) + data[place + 8 :]
        assert refusal(lying)[0] in (400, 422)


def outcome(data: bytes) -> int:
    try:
        load_image(data, POLICY, "p")
    except ApplianceError as refused:
        return refused.status
    return 200


def test_flipped_bytes_are_a_picture_or_a_refusal() -> None:
    data = encoded(picture(64, 48), "HEIF")
    outcomes = set()
    for step in range(60):
        broken = bytearray(data)
        for place in range(step, min(len(data), 900), 61):
            broken[place] ^= 0x41
        outcomes.add(outcome(bytes(broken)))
    assert outcomes <= {200, 400, 422}
    assert 422 in outcomes


def test_no_thread_is_made_to_decode() -> None:
    tasks = Path("/proc/self/task")
    if not tasks.exists():
        pytest.skip("no such list here")
    data = encoded(picture(640, 480), "HEIF", tile_size=128)
    image = Image.open(BytesIO(data))
    before = {task.name for task in tasks.iterdir()}
    image.load()
    after = {task.name for task in tasks.iterdir()}
    assert after <= before


@pytest.fixture
def without_plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def import_module(name: str) -> Any:
        if name == "pillow_heif":
            raise ImportError
        return importlib.import_module(name)

    monkeypatch.setattr(heif, "import_module", import_module)
    monkeypatch.delitem(Image.OPEN, "HEIF")
    image_formats.register.cache_clear()
    yield
    monkeypatch.undo()
    image_formats.register.cache_clear()
    image_formats.register()


def test_a_format_without_its_decoder_is_named_nowhere(
    without_plugin: None, caplog: pytest.LogCaptureFixture
) -> None:
    config = defaults()
    with caplog.at_level(logging.WARNING):
        settings = media_settings(config)
    assert "HEIF" in config.image.formats
    assert "HEIF cannot be decoded here and is left out" in caplog.text
    assert "HEIF" not in settings.image.formats
    assert "HEIF" not in settings.video.formats
    assert "HEIF" not in media_limits(config, ("image",))["image"]["formats"]
    with pytest.raises(ApplianceError, match="none of the formats") as refused:
        load_image(b"\0\0\0\x18ftypheic" + bytes(99), POLICY, "p")
    assert "HEIF" not in refused.value.message


def test_a_format_with_its_decoder_is_named() -> None:
    config = defaults()
    assert "HEIF" in media_settings(config).image.formats
    assert media_limits(config, ("image",))["image"]["formats"] == list(config.image.formats)
