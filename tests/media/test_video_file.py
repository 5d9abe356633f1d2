from __future__ import annotations

import io
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.video_utils import read_video_pyav

from appliance.media import video_file
from appliance.media.video_file import VideoDamaged, VideoFile, VideoTooLarge
from tests.media.clips import frame, number_of, sound_with_cover, video

KINDS: list[dict[str, Any]] = [
    {},
    {"options": {"g": "6", "bf": "3", "b_strategy": "0"}},
    {"sound": True},
    {"muxing": {"movflags": "frag_keyframe+empty_moov"}},
    {"form": "webm", "codec": "libvpx-vp9"},
    {"form": "webm", "codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "8"}},
    {"form": "matroska", "codec": "libx264", "options": {"g": "5", "x264-params": "open-gop=1"}},
    {"form": "avi", "codec": "mpeg4", "options": {"bf": "2"}},
    {"form": "mpegts"},
    {"form": "mpeg", "codec": "mpeg2video", "rate": 25},
    {"form": "gif", "codec": "gif"},
]


def opened(data: bytes, max_pixels: int = 100_000, most: int = 10_000) -> VideoFile:
    return VideoFile(data, max_pixels, most, (255, 255, 255))


def numbers(file: VideoFile, wanted: Any) -> list[int]:
    return [number_of(image) for image in file.frames(list(wanted))]


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_is_found_where_it_was_put(kind: dict[str, Any]) -> None:
    file = opened(video(40, **kind))
    assert (file.table.total, file.size) == (40, (96, 64))
    assert file.table.fps == kind.get("rate", 10)
    assert file.table.seconds == pytest.approx(40 / file.table.fps, abs=0.01)
    assert numbers(file, range(40)) == list(range(40))
    for wanted in ([0], [39], [0, 20, 39], [3, 3, 17, 30, 31], range(1, 40, 6)):
        assert numbers(file, wanted) == list(wanted)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.get("form", "mp4") == "mp4"][:3])
def test_pixels_equal_those_that_transformers_reads(kind: dict[str, Any]) -> None:
    data = video(40, **kind)
    wanted = [0, 1, 9, 25, 26, 38]
    theirs, metadata = read_video_pyav(io.BytesIO(data), lambda metadata: wanted)
    file = opened(data)
    ours = np.stack([np.asarray(image) for image in file.frames(wanted)])
    assert np.array_equal(ours, theirs)
    assert file.table.total == metadata.total_num_frames
    assert (file.table.fps, file.table.seconds) == (metadata.fps, metadata.duration)
    shifted = np.stack([np.asarray(image) for image in file.frames([n + 1 for n in wanted])])
    assert not np.array_equal(shifted, theirs)


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch, astray: bool = False) -> Iterator[list[int]]:
    """Where files are sought in meanwhile; `astray` makes every seek end at the file's end."""
    sought: list[int] = []
    real = video_file.opened

    class Container:
        def __init__(self, container: Any) -> None:
            self._container = container

        def __getattr__(self, name: str) -> Any:
            return getattr(self._container, name)

        def seek(self, time: int, **options: Any) -> None:
            sought.append(time)
            self._container.seek(1 << 40 if astray else time, **options)

    @contextmanager
    def wrapped(*arguments: Any) -> Iterator[Any]:
        with real(*arguments) as container:
            yield Container(container)

    with monkeypatch.context() as patch:
        patch.setattr(video_file, "opened", wrapped)
        yield sought


@pytest.mark.parametrize("form", ["mp4", "matroska", "mpegts"])
def test_long_gaps_are_leapt_over_and_seeks_are_bounded(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = video(400, form=form, options={"g": "10", "bf": "2"})
    rng = random.Random(3)
    with watched(monkeypatch) as sought:
        file = opened(data)
        for count in (1, 3, 10, 60):
            wanted = sorted(rng.sample(range(400), count))
            del sought[:]
            assert numbers(file, wanted) == wanted
            assert len(sought) <= count
            assert sought == sorted(sought)
        del sought[:]
        assert numbers(file, [399]) == [399]
        assert len(sought) == 1
        del sought[:]
        assert numbers(file, range(50)) == list(range(50))
        assert not sought


def test_an_index_that_leads_astray_is_left_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    data = video(200, options={"g": "10"})
    with watched(monkeypatch, astray=True) as sought:
        assert numbers(opened(data), [5, 60, 120, 150]) == [5, 60, 120, 150]
        assert len(sought) == 1


def test_frames_that_are_shown_unevenly_keep_their_times() -> None:
    times = [0, 10, 500, 510, 520, 900, *range(2000, 5400, 100)]
    file = opened(video(40, form="matroska", times=times))
    assert [round(1000 * file.table.second(number)) for number in range(40)] == times
    assert numbers(file, [1, 4, 5, 6, 39]) == [1, 4, 5, 6, 39]
    assert file.table.seconds == pytest.approx(5.3, abs=0.2)


@pytest.mark.parametrize("flips", [(), ("FLIP_LEFT_RIGHT",), ("FLIP_TOP_BOTTOM",)])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_display_matrix_is_followed(degrees: int, flips: tuple[str, ...]) -> None:
    turn = (degrees, "FLIP_LEFT_RIGHT" in flips, "FLIP_TOP_BOTTOM" in flips)
    file = opened(video(3, turn=turn, options={"crf": "4"}))
    expected = frame(1).rotate(degrees, expand=True)
    for flip in flips:
        expected = expected.transpose(Image.Transpose[flip])
    [found] = file.frames([1])
    assert file.size == found.size == expected.size
    assert difference(found, expected) < 12
    assert difference(found, expected.transpose(Image.Transpose.FLIP_TOP_BOTTOM)) > 30


def difference(one: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(one, float) - np.asarray(other, float)).mean())


@pytest.mark.parametrize("kind", KINDS[3:6] + KINDS[7:8])
def test_a_file_that_is_cut_off_is_damaged(kind: dict[str, Any]) -> None:
    data = video(40, **kind)
    for part in (0.02, 0.2, 0.35):
        with pytest.raises(VideoDamaged):
            list(opened(data[: int(len(data) * part)]).frames([0, 39]))


def test_an_mp4_without_its_end_is_damaged() -> None:
    data = video(40)
    for cut in (200, len(data) // 2, len(data) - 8):
        with pytest.raises(VideoDamaged):
            opened(data[:-cut])


@pytest.mark.parametrize("form", ["mp4", "webm", "avi", "mpegts"])
def test_flipped_bits_give_frames_or_damage_and_nothing_else(form: str) -> None:
    codec = {"webm": "libvpx", "avi": "mpeg4"}.get(form, "libx264")
    data = video(20, form=form, codec=codec)
    rng = random.Random(form)
    outcomes = set()
    for _ in range(60):
        broken = bytearray(data)
        for _ in range(rng.choice([1, 5, 50])):
            broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        try:
            outcomes.add(len(list(opened(bytes(broken), most=100).frames([0, 7, 19]))))
        except (VideoDamaged, VideoTooLarge):
            outcomes.add(-1)
    assert outcomes <= {-1, 3}
    assert -1 in outcomes


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 5000,
        b"no video" * 500,
        b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom",
        b"RIFF\x24\x00\x00\x00AVI LIST",
        b"\x1aE\xdf\xa3" + b"\x42" * 100,
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"<?xml version='1.0'?><MPD><BaseURL>http://127.0.0.1:9/</BaseURL></MPD>",
    ],
)
def test_what_is_no_video_is_damaged(data: bytes) -> None:
    with pytest.raises(VideoDamaged):
        opened(data)


def test_sound_alone_is_no_video() -> None:
    with pytest.raises(VideoDamaged, match="has no pictures"):
        opened(sound_with_cover())


@pytest.mark.parametrize("form", ["mp4", "matroska", "avi", "mpegts"])
def test_a_video_of_no_frames_is_damaged(form: str) -> None:
    with pytest.raises(VideoDamaged):
        opened(video(0, form=form))


def test_limits_hold_before_anything_is_decoded() -> None:
    data = video(40)
    with pytest.raises(VideoTooLarge, match="96 x 64"):
        opened(data, max_pixels=96 * 64 - 1)
    with pytest.raises(VideoTooLarge, match="39 frames"):
        opened(data, most=39)
    assert opened(data, max_pixels=96 * 64, most=40).size == (96, 64)


def test_a_file_that_grows_is_stopped_at_the_limit() -> None:
    small = video(5, form="mpegts", times=range(0, 500, 100))
    large = video(5, form="mpegts", times=range(500, 1000, 100), size=(960, 640))
    sizes = [image.size for image in opened(small + large, 960 * 640).frames([0, 4, 9])]
    assert sizes == [(96, 64), (96, 64), (960, 640)]
    for limit in (96 * 64, 960 * 640 - 1):
        with pytest.raises((VideoDamaged, VideoTooLarge)):
            list(opened(small + large, max_pixels=limit).frames([0, 4, 9]))
