"""Every format that is read here, prepared by a worker as it is without one.

A worker may open no file and make few system calls: what a decoder needs only once it meets a
format has to be there before.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from PIL import Image

from appliance.media.audio import load_audio
from appliance.media.image import load_image
from appliance.media.image_formats import register
from appliance.media.video import load_video
from engine.models.family import Family
from engine.models.item_tensors import tensors_of
from engine.models.qwen2_vl import Qwen2VL
from engine.models.registry import family_for
from tests.checkpoints import write_qwen2_vl, write_ultravox
from tests.engine.models.pictures import picture
from tests.media.clips import video
from tests.media.desk import Desk, desk, part
from tests.media.policies import audio_policy, image_policy, video_policy
from tests.media.test_audio import muxed, written
from tests.media.test_image import encoded

IMAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {}),
    "jpeg": ("JPEG", {}),
    "progressive jpeg": ("JPEG", {"progressive": True}),
    "webp": ("WEBP", {}),
    "lossless webp": ("WEBP", {"lossless": True}),
    "gif": ("GIF", {}),
    "bmp": ("BMP", {}),
    "tiff": ("TIFF", {}),
    "tiff of deflate": ("TIFF", {"compression": "tiff_deflate"}),
    "tiff of lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "tiff of jpeg": ("TIFF", {"compression": "jpeg"}),
    "avif": ("AVIF", {}),
    "jpeg 2000": ("JPEG2000", {}),
    "jpeg 2000 without a container": ("JPEG2000", {"no_jp2": True}),
    "tiled jpeg 2000": ("JPEG2000", {"tile_size": (64, 64), "irreversible": True}),
    "heif": ("HEIF", {}),
    "lossless heif": ("HEIF", {"quality": -1, "chroma": 444}),
    "tiled heif": ("HEIF", {"tile_size": 64}),
}
VIDEOS = {
    "mp4": ("mp4", "libx264"),
    "mov": ("mov", "libx264"),
    "mp4 of hevc": ("mp4", "libx265"),
    "mp4 of mpeg4": ("mp4", "mpeg4"),
    "matroska": ("matroska", "libx264"),
    "webm of vp8": ("webm", "libvpx"),
    "webm of vp9": ("webm", "libvpx-vp9"),
    "webm of av1": ("webm", "libsvtav1"),
    "avi": ("avi", "mpeg4"),
    "mpeg transport stream": ("mpegts", "libx264"),
    "mpeg": ("mpeg", "mpeg2video"),
    "flv": ("flv", "flv"),
    "asf": ("asf", "wmv2"),
    "gif": ("gif", "gif"),
}
SOUNDS = {
    "wav": ("WAV", "PCM_16"),
    "wav of floats": ("WAV", "FLOAT"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}
TRACKS = {
    "m4a": ("ipod", "aac"),
    "alac": ("ipod", "alac"),
    "aac": ("adts", "aac"),
    "webm": ("webm", "libopus"),
    "mp3 in matroska": ("matroska", "libmp3lame"),
}


@pytest.fixture(scope="module")
def sees(tmp_path_factory: pytest.TempPathFactory) -> Qwen2VL:
    return Qwen2VL(write_qwen2_vl(tmp_path_factory.mktemp("qwen2_vl")))


@pytest.fixture(scope="module")
def hears(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return family_for(write_ultravox(tmp_path_factory.mktemp("ultravox")))


@pytest.fixture(scope="module")
def sight(sees: Qwen2VL) -> Iterator[Desk]:
    with desk(sees, "media.workers=1", "media.video.limit=1") as there:
        yield there


@pytest.fixture(scope="module")
def hearing(hears: Family) -> Iterator[Desk]:
    with desk(hears, "media.workers=1", "media.image.limit=0", "media.audio.limit=1") as there:
        yield there


def equal(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def other(kind: str, data: bytes) -> dict[str, Any]:
    url = f"data:{kind}/any;base64," + base64.b64encode(data).decode()
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


@pytest.mark.parametrize("name", IMAGES)
def test_pictures(name: str, sight: Desk, sees: Qwen2VL) -> None:
    form, options = IMAGES[name]
    if form == "HEIF":
        pytest.importorskip("pillow_heif")
    register()
    data = encoded(picture(300, 200), form, **options)
    expected = tensors_of(sees.preprocess_image(load_image(data, image_policy(), "")))
    assert equal(sight.one(part(data)).tensors, expected)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF", "HEIF"])
def test_pictures_with_all_that_may_come_beside_them(form: str, sight: Desk, sees: Qwen2VL) -> None:
    if form == "HEIF":
        pytest.importorskip("pillow_heif")
    register()
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "beside"
    colours = Image.new("RGBA", (90, 60), (200, 20, 60, 100))
    colours.paste(picture(40, 30), (9, 9))
    made = colours if form in ("PNG", "WEBP", "AVIF", "HEIF") else colours.convert("CMYK")
    data = encoded(made, form, exif=exif.tobytes(), icc_profile=profile())
    expected = tensors_of(sees.preprocess_image(load_image(data, image_policy(), "")))
    assert equal(sight.one(part(data)).tensors, expected)


def profile() -> bytes:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("name", VIDEOS)
def test_videos(name: str, sight: Desk, sees: Qwen2VL) -> None:
    form, codec = VIDEOS[name]
    rate = 25 if form == "mpeg" else 10
    data = video(25, form=form, codec=codec, rate=rate, size=(128, 96))
    clip = load_video(data, video_policy(), sees, "")
    made = sees.preprocess_video(clip.frames, len(clip.numbers), video_policy().options)
    assert equal(sight.one(other("video", data)).tensors, tensors_of(made))


def heard(data: bytes, hears: Family) -> Any:
    samples = load_audio(data, hears.audio_rate(), audio_policy(), "").samples
    return tensors_of(hears.preprocess_audio(samples))


@pytest.mark.parametrize("name", SOUNDS)
def test_sounds(name: str, hearing: Desk, hears: Family) -> None:
    form, subtype = SOUNDS[name]
    data = written(form, subtype, 48_000, channels=2)
    made = hearing.one(other("audio", data)).tensors
    torch.testing.assert_close(dict(made), heard(data, hears))


@pytest.mark.parametrize("name", TRACKS)
def test_sounds_in_containers(name: str, hearing: Desk, hears: Family) -> None:
    form, codec = TRACKS[name]
    data = muxed(form, codec, 48_000, "stereo")
    made = hearing.one(other("audio", data)).tensors
    torch.testing.assert_close(dict(made), heard(data, hears))


def test_a_video_of_ogg(sight: Desk, sees: Qwen2VL) -> None:
    try:
        data = video(25, form="ogg", codec="libtheora", size=(128, 96))
    except ValueError:
        pytest.skip("this build of PyAV makes no Theora")
    assert sight.one(other("video", data)).length


def test_what_is_in_no_format_is_refused(sight: Desk, hearing: Desk) -> None:
    for there, made in (
        (sight, part(b"no picture")),
        (sight, other("video", b"no video")),
        (hearing, other("audio", b"no sound")),
        (hearing, other("audio", b"fLaC" + io.BytesIO(bytes(999)).getvalue())),
    ):
        assert there.refusal([made]).code == "media_undecodable"
        assert there.metric("media_workers_replaced_total", cause="died") == 0
