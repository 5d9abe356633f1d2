"""Small videos made with PyAV, every frame of which can be told from the others."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
from PIL import Image

MILLISECOND = Fraction(1, 1000)


def frame(number: int, width: int = 96, height: int = 64) -> Image.Image:
    """The bits of `number` as black and white squares, over a moving gradient."""
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([(across * 2 + number * 5) % 256, down * 3 % 256, (across + down) % 256], -1)
    pixels = pixels.astype(np.uint8)
    side = width // 12
    for bit in range(12):
        white = 255 * (number >> bit & 1)
        pixels[: height // 2, bit * side : (bit + 1) * side] = white
    return Image.fromarray(pixels)


def number_of(image: Image.Image) -> int:
    """Which frame it is."""
    side = image.width // 12
    row = np.asarray(image.convert("L"))[image.height // 4]
    return sum(1 << bit for bit in range(12) if row[bit * side + side // 2] > 127)


def video(
    frames: int = 40,
    *,
    form: str = "mp4",
    codec: str = "libx264",
    size: tuple[int, int] = (96, 64),
    rate: Any = 10,
    times: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    muxing: dict[str, str] | None = None,
    turn: tuple[int, bool, bool] | None = None,
    sound: bool = False,
) -> bytes:
    """`times` places frames in units of 1/1000 second; `turn` is (degrees, hflip, vflip)."""
    file = io.BytesIO()
    with av.open(file, "w", format=form, options=muxing or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        if times is not None:
            stream.codec_context.time_base = stream.time_base = MILLISECOND
        if turn is not None:
            stream.set_display_rotation(*turn)
        track = container.add_stream("aac", rate=16000) if sound else None
        for number in range(frames):
            picture = av.VideoFrame.from_image(frame(number, *size))
            picture.pts = number if times is None else times[number]
            if times is not None:
                picture.time_base = MILLISECOND
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
        if track is not None:
            silence = np.zeros((1, 16000), np.float32)
            chunk = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            chunk.sample_rate = 16000
            container.mux(track.encode(chunk))
            container.mux(track.encode())
    return file.getvalue()


def sound_with_cover() -> bytes:
    """An MP4 file of sound whose only picture is its cover."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        track = container.add_stream("aac", rate=16000)
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 96, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_image(frame(1))))
        container.mux(cover.encode())
        silence = np.zeros((1, 16000), np.float32)
        chunk = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        chunk.sample_rate = 16000
        container.mux(track.encode(chunk))
        container.mux(track.encode())
    return file.getvalue()


def again(
    data: bytes, form: str = "mp4", *, skipped: int = 0, muxing: dict[str, str] | None = None
) -> bytes:
    """The same packets in another file; the first `skipped` frames are before its begin.

    Of that MP4's muxer makes an edit list, as phones do when they trim.
    """
    file = io.BytesIO()
    with (
        av.open(io.BytesIO(data)) as given,
        av.open(file, "w", format=form, options=muxing or {}) as made,
    ):
        source = given.streams.video[0]
        stream = made.add_stream_from_template(source)
        packets = [packet for packet in given.demux(source) if packet.size]
        zero = sorted(packet.pts for packet in packets)[skipped] if skipped else 0
        for packet in packets:
            packet.pts, packet.dts, packet.stream = packet.pts - zero, packet.dts - zero, stream
            made.mux(packet)
    return file.getvalue()


def edited(data: bytes, edits: Sequence[tuple[int, int]]) -> bytes:
    """An MP4 whose edit list is this one: milliseconds shown, from which time of the track on."""
    place = data.index(b"elst") - 4
    end = place + int.from_bytes(data[place : place + 4], "big")
    entries = b"".join(struct.pack(">IiI", shown, time, 1 << 16) for shown, time in edits)
    body = b"elst" + bytes(4) + struct.pack(">I", len(edits)) + entries
    box = struct.pack(">I", len(body) + 4) + body
    made = bytearray(data[:place] + box + data[end:])
    for name in (b"edts", b"trak", b"moov"):
        at = made.rindex(name, 0, place) - 4
        size = int.from_bytes(made[at : at + 4], "big") + len(box) - (end - place)
        made[at : at + 4] = struct.pack(">I", size)
    return bytes(made)
