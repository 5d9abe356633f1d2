"""What a header counts is no truth: the frames that are there and shown are the video."""

from __future__ import annotations

import io
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import av
import numpy as np
import pytest

from appliance.media.extent import is_cut_off
from appliance.media.video_file import VideoDamaged, VideoFile
from tests.media.clips import again, edited, number_of, video

PLAIN: dict[str, Any] = {"options": {"g": "100", "bf": "0"}}
WHITE = (255, 255, 255)


def opened(data: bytes) -> VideoFile:
    return VideoFile(data, 100_000, 1000, WHITE)


def shown(data: bytes) -> list[Any]:
    """Every frame that PyAV decodes."""
    with av.open(io.BytesIO(data)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def replaced(data: bytes, tag: bytes, offset: int, value: bytes) -> bytes:
    """`data` with `value` at so many bytes after the first `tag`."""
    place = data.index(tag) + offset
    return data[:place] + value + data[place + len(value) :]


def avi(codec: str = "mpeg4", **options: Any) -> bytes:
    return video(24, form="avi", codec=codec, **options)


def counted(data: bytes, frames: int) -> bytes:
    """An AVI whose headers count so many frames."""
    count = struct.pack("<I", frames)
    return replaced(replaced(data, b"avih", 24, count), b"strh", 40, count)


def sized(data: bytes, size: int, tag: bytes = b"RIFF") -> bytes:
    """An AVI whose chunk, or list of frames, is said to be so long."""
    return replaced(data, tag, 4 if tag == b"RIFF" else -4, struct.pack("<I", size))


def lasting(data: bytes, seconds: float) -> bytes:
    """A Matroska file that is said to last so long."""
    return replaced(data, b"\x44\x89\x88", 3, struct.pack(">d", seconds * 1000))


def hiding(*hidden: int) -> bytes:
    """A WebM file of VP8, some frames of which are there for others only (RFC 6386, 9.1)."""
    data = video(24, form="webm", codec="libvpx")
    return changed(data, hidden, lambda content: bytes([content[0] & 0xEF]) + content[1:])


def changed(data: bytes, numbers: Sequence[int], change: Callable[[bytes], bytes]) -> bytes:
    """A Matroska file with these packets changed."""
    file = io.BytesIO()
    with av.open(io.BytesIO(data)) as given, av.open(file, "w", format="matroska") as made:
        source = given.streams.video[0]
        stream = made.add_stream_from_template(source)
        packets = [packet for packet in given.demux(source) if packet.size]
        for number, packet in enumerate(packets):
            content = bytes(packet)
            copy = av.Packet(change(content) if number in numbers else content)
            copy.pts, copy.dts, copy.is_keyframe = packet.pts, packet.dts, packet.is_keyframe
            copy.time_base, copy.stream = packet.time_base, stream
            made.mux(copy)
    return file.getvalue()


def in_fragments(data: bytes) -> bytes:
    return again(data, muxing={"movflags": "frag_every_frame+empty_moov"})


WHOLE: dict[str, tuple[Callable[[], bytes], int]] = {
    "mp4 trimmed before a keyframe": (
        lambda: again(video(24, options={"g": "12"}), skipped=12),
        12,
    ),
    "mp4 trimmed behind one": (lambda: again(video(24, options={"g": "10"}), skipped=13), 11),
    "mp4 trimmed far behind one": (lambda: again(video(24, **PLAIN), skipped=20), 4),
    "mp4 trimmed, frames reordered": (lambda: again(video(24, options={"bf": "2"}), skipped=9), 15),
    "mp4 of hevc, trimmed": (
        lambda: again(video(24, codec="libx265", options={"x265-params": "keyint=8"}), skipped=8),
        16,
    ),
    "mp4 of mpeg4, trimmed": (lambda: again(video(24, codec="mpeg4"), skipped=12), 12),
    "mov, trimmed": (lambda: again(video(24, form="mov", **PLAIN), "mov", skipped=7), 17),
    "mp4 whose end is hidden": (lambda: edited(video(24, **PLAIN), [(600, 0)]), 6),
    "mp4 whose middle is shown": (lambda: edited(video(24, **PLAIN), [(600, 6 * 1024)]), 6),
    "mp4 of two pieces": (
        lambda: edited(video(24, **PLAIN), [(300, 0), (300, 15 * 1024)]),
        6,
    ),
    "mp4 shown twice": (lambda: edited(video(24, **PLAIN), [(300, 6144), (300, 6144)]), 6),
    "mp4 that begins late": (lambda: edited(video(24, **PLAIN), [(500, -1), (2400, 0)]), 24),
    "mp4 shown for longer than it is": (lambda: edited(video(24, **PLAIN), [(9000, 0)]), 24),
    "mp4 of a wrong duration": (
        lambda: replaced(video(24, **PLAIN), b"mvhd", 20, struct.pack(">I", 99_000)),
        24,
    ),
    "mp4 of no duration": (lambda: replaced(video(24), b"mvhd", 20, bytes(4)), 24),
    "mp4 in fragments without their index": (
        lambda: (data := in_fragments(video(24, **PLAIN)))[: data.rindex(b"mfra") - 4],
        24,
    ),
    "mp4 in fragments, half an index": (lambda: in_fragments(video(24, **PLAIN))[:-20], 24),
    "avi that counts too many": (lambda: counted(avi(), 30), 24),
    "avi that counts far too many": (lambda: counted(avi(), 0x7FFFFFFF), 24),
    "avi that counts none": (lambda: counted(avi(), 0), 24),
    "avi that counts few": (lambda: counted(avi(), 3), 24),
    "avi of mjpeg that counts too many": (
        lambda: counted(avi("mjpeg", options={"strict": "-2"}), 99),
        24,
    ),
    "avi of no length": (lambda: sized(avi(), 0), 24),
    "avi of unknown length": (lambda: sized(avi(), 0xFFFFFFFF), 24),
    "avi whose list is of unknown length": (lambda: sized(avi(), 0xFFFFFFFF, b"movi"), 24),
    "avi without its index": (lambda: (data := avi())[: data.index(b"idx1")], 24),
    "matroska said to last longer": (lambda: lasting(video(24, form="matroska"), 500), 24),
    "webm said to last longer": (
        lambda: lasting(video(24, form="webm", codec="libvpx"), 500),
        24,
    ),
    "webm written to a stream": (
        lambda: video(24, form="webm", codec="libvpx", muxing={"live": "1"}),
        24,
    ),
    "webm of frames that are not shown": (lambda: hiding(5, 11, 17), 21),
    "webm whose last frame is not shown": (lambda: hiding(23), 23),
    "matroska without its index": (lambda: video(24, form="matroska")[:-9], 24),
    "flv": (lambda: video(24, form="flv", codec="flv"), 24),
    "gif without its trailer": (lambda: video(24, form="gif", codec="gif")[:-1], 24),
    "gif with more behind it": (lambda: video(24, form="gif", codec="gif") + b"more", 24),
    "asf": (lambda: video(24, form="asf", codec="wmv2"), 24),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WHOLE)
def test_frames_that_are_there_and_shown_are_the_video(name: str) -> None:
    made, count = WHOLE[name]
    data = made()
    assert not is_cut_off(data)
    file = opened(data)
    expected = shown(data)
    assert (file.table.total, len(expected)) == (count, count)
    found = [np.asarray(image) for image in file.frames(list(range(count)))]
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
    (last,) = file.frames([count - 1])
    assert np.array_equal(last, expected[-1])
    assert file.table.seconds == pytest.approx(count / file.table.fps, rel=0.2)


def test_frames_before_the_cut_of_a_trimmed_clip_are_never_seen() -> None:
    file = opened(again(video(24, options={"g": "10"}), skipped=13))
    assert [number_of(image) for image in file.frames([0, 5, 10])] == [13, 18, 23]


def test_a_few_packets_without_a_frame_leave_the_last_one_standing() -> None:
    data = video(24, form="matroska", codec="mpeg4", options={"g": "100", "bf": "0"})

    def uncoded(content: bytes) -> bytes:  # a VOP that says that nothing changed (MPEG-4, 6.2.5)
        return content[:5] + b"\x9f"

    file = opened(changed(data, [22, 23], uncoded))
    assert file.table.total == 24
    frames = [number_of(image) for image in file.frames([0, 20, 21, 22, 23])]
    assert frames == [0, 20, 21, 21, 21]
    file = opened(video(24, form="avi", codec="mpeg4"))
    for more in (1, 2):
        file.table = replace(file.table, total=24 + more, times=())
        frames = [number_of(image) for image in file.frames([0, 23, 23 + more])]
        assert frames == [0, 23, 23]
    file.table = replace(file.table, total=27, times=())
    with pytest.raises(VideoDamaged, match="ends before"):
        list(file.frames([0, 23, 26]))


HALVED: dict[str, Callable[[], bytes]] = {
    "mp4 in fragments": lambda: video(24, muxing={"movflags": "frag_keyframe+empty_moov"}),
    "mp4 in many fragments": lambda: in_fragments(video(24)),
    "mp4": lambda: video(24),
    "matroska": lambda: video(24, form="matroska"),
    "webm": lambda: video(24, form="webm", codec="libvpx"),
    "webm written to a stream": lambda: video(
        24, form="webm", codec="libvpx", muxing={"live": "1"}
    ),
    "avi": avi,
    "avi of mjpeg": lambda: avi("mjpeg", options={"strict": "-2"}),
    "avi that counts too few": lambda: counted(avi(), 2),
    "flv": lambda: video(24, form="flv", codec="flv"),
    "gif": lambda: video(24, form="gif", codec="gif"),
    "asf": lambda: video(24, form="asf", codec="wmv2"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", HALVED)
def test_what_is_cut_off_is_refused(name: str) -> None:
    data = HALVED[name]()
    assert opened(data).table.total == 24
    for share in (0.5, 0.6, 0.7):
        with pytest.raises(VideoDamaged):
            list(opened(data[: int(len(data) * share)]).frames([0]))


def front_loaded() -> bytes:
    """An MP4 whose table of samples comes before them."""
    data = video(24, **PLAIN)
    moov, mdat = data.index(b"moov") - 4, data.index(b"mdat") - 4
    front, media, table = data[:mdat], data[mdat:moov], bytearray(data[moov:])
    at = table.index(b"stco") + 12
    offset = int.from_bytes(table[at : at + 4], "big") + len(table)
    table[at : at + 4] = struct.pack(">I", offset)
    return front + bytes(table) + media


def test_samples_that_a_table_names_are_missed() -> None:
    data = front_loaded()
    assert opened(data).table.total == 24
    for cut in (1, 40, 300, len(data) // 3):
        with pytest.raises(VideoDamaged, match="cut off"):
            opened(data[:-cut])
    longer = replaced(data, b"mdat", -4, struct.pack(">I", 1 << 24))  # all samples are there
    assert opened(longer).table.total == 24
    assert opened(data + b"\0\0\0\x10free").table.total == 24


@pytest.mark.parametrize("data", [b"", b"RIFF", b"GIF89a", b"FLV\1\5\0\0\0\x09", b"\x1aE\xdf\xa3"])
def test_nothing_tells_of_what_is_too_short(data: bytes) -> None:
    for size in range(len(data), 40):
        is_cut_off(data.ljust(size, b"\0"))
        is_cut_off(data.ljust(size, b"\xff"))


BOMBS = {
    "boxes": b"\0\0\0\x08ftyp" + b"\0\0\0\x08moof" * 4_000_000,
    "lists": b"RIFF\0\0\0\0AVI " + b"RIFF\4\0\0\0AVIX" * 3_000_000,
    "empty lists": b"RIFF\0\0\0\0AVI " + b"LIST\0\0\0\0" * 4_000_000,
    "elements": b"\x1aE\xdf\xa3\x80\x18\x53\x80\x67\xff" + b"\xec\x80" * 16_000_000,
    "tags": b"FLV\1\5\0\0\0\x09\0\0\0\0" + bytes(32 << 20),
    "blocks": b"GIF89a\1\0\1\0\0\0\0!\xff" + b"\1a" * 16_000_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_many_small_elements_take_no_long_time(name: str) -> None:
    begun = time.process_time()
    is_cut_off(BOMBS[name])
    assert time.process_time() - begun < 5
