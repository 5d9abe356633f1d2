"""Frames lie on the recipe's background wherever they come from, as pictures do."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageSequence

from appliance.errors import ApplianceError
from appliance.media.data_url import FRAME_LIST
from appliance.media.image import load_image
from appliance.media.limits import VideoPolicy
from appliance.media.video import load_video
from engine.models.qwen2_vl import Qwen2VL
from tests.checkpoints import write_qwen2_vl
from tests.media.desk import Desk, desk, part
from tests.media.policies import image_policy, video_policy
from tests.media.test_metadata import BESIDE_PNG, with_chunk

BACKGROUNDS = [(255, 255, 255), (0, 128, 0), (3, 2, 1)]
SIZE = (96, 64)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Qwen2VL:
    return Qwen2VL(write_qwen2_vl(tmp_path_factory.mktemp("qwen2_vl")))


def clear(step: int, soft: bool = True) -> Image.Image:
    """A disc that moves, its edge soft, on nothing."""
    image = Image.new("RGBA", SIZE, (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    left = 10 + step * 4
    draw.ellipse([left, 10, left + 34, 44], fill=(255, 0, 0, 120 if soft else 255))
    draw.ellipse([left + 8, 18, left + 26, 36], fill=(40, 90, 255, 255))
    return image


def saved(form: str, count: int = 12, soft: bool = True, **options: Any) -> bytes:
    frames = [clear(step, soft) for step in range(count)]
    file = io.BytesIO()
    frames[0].save(
        file, form, save_all=True, append_images=frames[1:], duration=100, loop=0, **options
    )
    return file.getvalue()


ANIMATIONS: dict[str, dict[str, Any]] = {
    "gif": {"form": "GIF", "soft": False},
    "gif that restores": {"form": "GIF", "soft": False, "disposal": 2},
    "gif that keeps": {"form": "GIF", "soft": False, "disposal": 1},
    "png": {"form": "PNG"},
    "png that restores": {"form": "PNG", "disposal": 1},
    "png that goes back": {"form": "PNG", "disposal": 2},
    "png that replaces": {"form": "PNG", "blend": 0, "disposal": 1},
    "webp": {"form": "WEBP", "lossless": True},
    "lossy webp": {"form": "WEBP", "quality": 70},
    "avif": {"form": "AVIF"},
    "avif of other sizes": {"form": "AVIF", "quality": 40, "subsampling": "4:4:4"},
    "webp of many kinds": {"form": "WEBP", "allow_mixed": True, "minimize_size": True},
}


def on(frame: Image.Image, background: tuple[int, ...]) -> Image.Image:
    """As Pillow composites it."""
    ground = Image.new("RGBA", frame.size, (*background, 255))
    return Image.alpha_composite(ground, frame.convert("RGBA")).convert("RGB")


def policy(background: tuple[int, ...], **changes: Any) -> VideoPolicy:
    return video_policy(fps=10.0, rgba_background=background, **changes)


def taken(data: bytes, background: tuple[int, ...], family: Qwen2VL) -> Iterator[Image.Image]:
    clip = load_video(data, policy(background), family, "p")
    assert list(clip.numbers) == list(range(clip.total))
    return clip.frames


def equal(one: Any, other: Any) -> bool:
    return all(
        np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("name", ANIMATIONS)
def test_an_animation_is_composited_as_pillow_does_it(
    name: str, background: tuple[int, ...], family: Qwen2VL
) -> None:
    data = saved(**ANIMATIONS[name])
    expected = [
        on(frame, background) for frame in ImageSequence.Iterator(Image.open(io.BytesIO(data)))
    ]
    assert len(expected) == 12
    clip = load_video(data, policy(background), family, "p")
    assert (clip.total, clip.size) == (12, SIZE)
    assert clip.seconds == pytest.approx(1.2)
    assert clip.times == pytest.approx([step / 10 for step in range(12)])
    assert equal(clip.frames, expected)
    others = [
        on(frame, (9, 9, 9)) for frame in ImageSequence.Iterator(Image.open(io.BytesIO(data)))
    ]
    assert not equal(taken(data, background, family), others)
    # as a picture it is its first frame
    first = load_image(data, image_policy(rgba_background=background), "p")
    assert equal([first], expected[:1])


LISTED: dict[str, dict[str, Any]] = {
    "png": {"form": "PNG"},
    "webp": {"form": "WEBP", "lossless": True},
    "lossy webp": {"form": "WEBP"},
    "gif": {"form": "GIF", "soft": False},
    "tiff": {"form": "TIFF"},
    "avif": {"form": "AVIF"},
}


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("name", LISTED)
def test_frames_of_a_list_are_composited_as_pictures_are(
    name: str, background: tuple[int, ...], family: Qwen2VL
) -> None:
    options = dict(LISTED[name])
    form, soft = options.pop("form"), options.pop("soft", True)
    frames = []
    for step in range(4):
        file = io.BytesIO()
        clear(step, soft).save(file, form, **options)
        frames.append(file.getvalue())
    data = FRAME_LIST + b",".join(base64.b64encode(frame) for frame in frames)
    expected = [on(Image.open(io.BytesIO(frame)), background) for frame in frames]
    assert equal(taken(data, background, family), expected)
    pictures = image_policy(rgba_background=background)
    assert equal(expected, [load_image(frame, pictures, "p") for frame in frames])


def grey(step: int) -> Image.Image:
    return Image.fromarray(np.full((8, 8), 1000 * step, np.uint16))


def test_deep_grey_and_palettes_of_a_list_are_composited_too(family: Qwen2VL) -> None:
    frames = []
    for image, options in (
        (grey(3), {"transparency": 3000}),
        (Image.new("RGB", (8, 8), "red").quantize(2), {"transparency": 0}),
        (Image.new("L", (8, 8), 7), {"transparency": 7}),
        (Image.new("LA", (8, 8), (50, 0)), {}),
    ):
        file = io.BytesIO()
        image.save(file, "PNG", **options)
        frames.append(base64.b64encode(file.getvalue()))
    data = FRAME_LIST + b",".join(frames)
    for image in taken(data, (0, 128, 0), family):
        assert image.getpixel((4, 4)) == (0, 128, 0)


def encoded(form: str, codec: str, pixels: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        options = {"auto-alt-ref": "0"} if codec == "libvpx" else {}
        stream = container.add_stream(codec, rate=10, options=options)
        (stream.width, stream.height), stream.pix_fmt = SIZE, pixels
        for step in range(12):
            frame = av.VideoFrame.from_ndarray(np.asarray(clear(step)), format="rgba")
            frame.pts = step
            container.mux(stream.encode(frame.reformat(format=pixels)))
        container.mux(stream.encode())
    return file.getvalue()


FILES = {
    "vp9": ("webm", "libvpx-vp9", "yuva420p"),
    "vp8": ("webm", "libvpx", "yuva420p"),
    "vp9 in matroska": ("matroska", "libvpx-vp9", "yuva420p"),
    "prores": ("mov", "prores_ks", "yuva444p10le"),
}


def seen_through(data: bytes, codec: str) -> list[Image.Image]:
    """RGBA frames of PyAV, by the decoder that keeps transparency."""
    frames = []
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        decoder: Any = av.CodecContext.create(codec, "r") if "vpx" in codec else None
        for packet in container.demux(stream):
            for frame in decoder.decode(packet) if decoder else packet.decode():
                frames.append(Image.fromarray(frame.to_ndarray(format="rgba")))
    return frames


@pytest.mark.parametrize("background", BACKGROUNDS[:2])
@pytest.mark.parametrize("name", FILES)
def test_a_video_that_can_be_seen_through_lies_on_the_background(
    name: str, background: tuple[int, ...], family: Qwen2VL
) -> None:
    data = encoded(*FILES[name])
    frames = seen_through(data, FILES[name][1])
    assert frames[0].getpixel((90, 60)) == (0, 0, 0, 0)
    assert equal(taken(data, background, family), [on(frame, background) for frame in frames])
    sparse = load_video(data, policy(background, frames=4), family, "p")
    assert equal(sparse.frames, [on(frames[number], background) for number in sparse.numbers])


@pytest.fixture(scope="module")
def green(family: Qwen2VL) -> Iterator[Desk]:
    told = ["media.video.limit=1", "media.workers=1", "media.image.rgba_background=[0,128,0]"]
    with desk(family, *told, "media.video.fps=10") as there:
        yield there


@pytest.mark.parametrize("name", [*ANIMATIONS, *FILES, "list"])
def test_workers_composite_them(name: str, green: Desk, family: Qwen2VL) -> None:
    if name == "list":
        data = FRAME_LIST + base64.b64encode(png_of(clear(1)))
        url = data.replace(FRAME_LIST, b"data:video/png;base64,").decode()
    else:
        data = saved(**ANIMATIONS[name]) if name in ANIMATIONS else encoded(*FILES[name])
        url = "data:application/octet-stream;base64," + base64.b64encode(data).decode()
    clip = load_video(data, policy((0, 128, 0)), family, "p")
    options = video_policy(fps=10.0).options
    expected = family.preprocess_video(clip.frames, len(clip.numbers), options)
    made = green.one({"type": "video_url", "video_url": {"url": url}}).tensors
    assert made.keys() == expected.keys()
    assert all(np.array_equal(made[key], expected[key]) for key in expected)
    assert green.metric("media_workers_replaced_total", cause="died") == 0


def png_of(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def refusal(data: bytes, limits: VideoPolicy, family: Qwen2VL) -> tuple[int, str | None]:
    with pytest.raises(ApplianceError) as refused:
        list(load_video(data, limits, family, "p").frames)
    return refused.value.status, refused.value.code


@pytest.mark.parametrize("name", BESIDE_PNG)
def test_what_stands_beside_an_animated_png_cannot_fail_it(name: str, family: Qwen2VL) -> None:
    if "animation" in name or "transparent" in name:
        pytest.skip("that is no metadata of an animation")
    plain = saved("PNG")
    data = with_chunk(plain, BESIDE_PNG[name], b"acTL")
    for made in (data, with_chunk(plain, BESIDE_PNG[name], b"IEND")):
        assert equal(taken(made, (1, 2, 3), family), taken(plain, (1, 2, 3), family))


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_an_animation_has_the_limits_of_a_video(form: str, family: Qwen2VL) -> None:
    data = saved(form, 20, soft=False)
    area = SIZE[0] * SIZE[1]
    assert load_video(data, video_policy(max_pixels=area), family, "p").total == 20
    for limits in (
        video_policy(max_pixels=area - 1),
        video_policy(max_seconds=1.9),
        video_policy(max_seconds=0.1),
        video_policy(max_bytes=len(data) - 1),
        video_policy(max_decoded_bytes=area * 3),
    ):
        assert refusal(data, limits, family) == (400, "media_too_large")
    for cut in (len(data) // 2, len(data) * 2 // 3):
        assert refusal(data[:cut], video_policy(), family) == (422, "media_undecodable")


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG", "BMP", "AVIF"])
def test_a_picture_that_does_not_move_is_no_video(form: str, family: Qwen2VL) -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, form)
    assert refusal(file.getvalue(), video_policy(), family) == (422, "media_undecodable")


def test_a_gif_as_a_picture_has_the_limits_of_a_picture(green: Desk) -> None:
    assert green.one(part(saved("GIF", soft=False))).modality == "image"
