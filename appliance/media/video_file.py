"""A video file: which frames it has, and those of them that somebody wants."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

import av
from av.container import InputContainer
from av.sidedata.sidedata import SideData
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from appliance.media.container import VIDEO_CODECS, VIDEO_FORMATS, opened

FULL_TURN = 1 << 16  # 1.0 in a display matrix
SHORT_LEAP = 8  # frames that are decoded rather than leapt over by a seek
USUAL_FPS = 24.0  # for a file that tells no rate
SHORTFALL = 0.5  # seconds by which a single stream may end before the container says

# Display matrix (a, b, c, d) of x' = ax + cy, y' = bx + dy to what Pillow calls it.
TURNS = {
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


class VideoDamaged(Exception):
    """The file is no video that can be read; the message ends `The video ...`."""


class VideoTooLarge(Exception):
    """The file is beyond a limit; the message ends `The video ...`."""


@dataclass(slots=True, frozen=True)
class Keyframe:
    """Where decoding can begin: a frame's number, and the time to seek to."""

    number: int
    time: int


@dataclass(slots=True, frozen=True)
class FrameTable:
    """Frames in the order shown; `times` are empty where the file does not tell them."""

    total: int
    times: Sequence[int]  # in units of the stream's time base
    keyframes: Sequence[Keyframe]
    fps: float
    seconds: float
    time_base: Fraction

    def second(self, number: int) -> float:
        """When a frame is shown, counted from the first."""
        if not self.times:
            return number / self.fps
        return float((self.times[number] - self.times[0]) * self.time_base)

    def leap(self, start: int, wanted: int) -> Keyframe | None:
        """The keyframe to seek to for `wanted` when `start` is the next to be decoded."""
        place = bisect_right(self.keyframes, wanted, key=lambda keyframe: keyframe.number)
        keyframe = self.keyframes[place - 1] if place else None
        worth = keyframe is not None and keyframe.number > start + SHORT_LEAP
        return keyframe if worth else None


class VideoFile:
    """A video in memory whose frames have at most `max_pixels`, at most `most` of them.

    Raises VideoDamaged or VideoTooLarge, everywhere.
    """

    def __init__(self, data: bytes, max_pixels: int, most: int) -> None:
        self._data = data
        self._max_pixels = max_pixels
        self.table = self._read_table(most)
        self.size = next(self.frames([0])).size

    def frames(self, numbers: Sequence[int]) -> Iterator[Image.Image]:
        """RGB frames of these ascending numbers, upright.

        No more seeks are made than numbers given, and only forward; a file whose frames are not
        where its index says is decoded from the start, once.
        """
        done = 0
        if self.table.times:
            for frame in self._by_time(numbers):
                if frame is None:
                    break
                done += 1
                yield frame
        if done < len(numbers):
            yield from self._by_count(numbers[done:])

    def _read_table(self, most: int) -> FrameTable:
        """Every packet is read, none is decoded."""
        with _faults(), self._opened() as (container, stream):
            entries: list[tuple[int | None, int | None, bool]] = []
            seen, cut = 0, False
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                seen, cut = seen + 1, packet.is_corrupt
                if packet.is_discard:
                    continue
                entries.append((packet.pts, packet.dts, packet.is_keyframe))
                if len(entries) > most:
                    raise VideoTooLarge(f"has more than the {most} frames that are allowed")
            if cut or seen < stream.frames:
                raise VideoDamaged("is cut off")
            table = _table(entries, stream)
            alone = len(container.streams) == 1 and container.duration is not None
            if alone and table.times:
                declared = container.duration / av.time_base  # type: ignore[operator]
                if table.seconds < declared / 2 - SHORTFALL:
                    raise VideoDamaged("is cut off")
            return table

    def _by_time(self, numbers: Sequence[int]) -> Iterator[Image.Image | None]:
        """Frames found by their times, seeking over what lies between; None where that fails."""
        table = self.table
        with _faults(), self._opened() as (container, stream):
            decoded = container.decode(stream)
            frame: VideoFrame | None = None
            following, sought = 0, False
            for number in numbers:
                wanted = table.times[number]
                keyframe = table.leap(following, number)
                if keyframe is not None:
                    container.seek(keyframe.time, stream=stream, backward=True)
                    decoded, frame, sought = container.decode(stream), None, True
                while frame is None or frame.pts is None or frame.pts < wanted:
                    frame = next(decoded, None)
                    if frame is None:
                        break
                    if frame.pts is None or (sought and frame.pts > wanted):
                        frame = None
                        break
                    sought = False
                if frame is None:
                    yield None
                    return
                following = number + 1
                yield self._picture(frame)

    def _by_count(self, numbers: Sequence[int]) -> Iterator[Image.Image]:
        """Frames found by counting from the first."""
        places = iter(numbers)
        place = next(places)
        with _faults(), self._opened() as (container, stream):
            for count, frame in enumerate(container.decode(stream)):
                while count == place:
                    yield self._picture(frame)
                    following = next(places, None)
                    if following is None:
                        return
                    place = following
        raise VideoDamaged("ends before its last frame")

    @contextmanager
    def _opened(self) -> Iterator[tuple[InputContainer, VideoStream]]:
        most = _padded(self._max_pixels)
        with opened(self._data, VIDEO_FORMATS, VIDEO_CODECS, most) as container:
            stream = next(filter(_is_moving, container.streams.video), None)
            if stream is None:
                raise VideoDamaged("has no pictures")
            context = stream.codec_context
            if context is None or context.name not in VIDEO_CODECS:
                raise VideoDamaged("is in a codec that is not decoded here")
            if context.width < 1 or context.height < 1:
                raise VideoDamaged("has no pixels")
            self._check_size(context.width, context.height)
            context.options = {"max_pixels": str(_padded(self._max_pixels))}
            context.thread_count = 1  # worker processes are the parallelism
            yield container, stream

    def _picture(self, frame: VideoFrame) -> Image.Image:
        """A frame as RGB, upright; its size may have changed since the header."""
        self._check_size(frame.width, frame.height)
        return _upright(frame)

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self._max_pixels:
            raise VideoTooLarge(
                f"has frames of {width} x {height} pixels; the limit is {self._max_pixels} in all"
            )


@contextmanager
def _faults() -> Iterator[None]:
    """What FFmpeg says, in our words."""
    try:
        yield
    except MemoryError:
        raise
    except (av.FFmpegError, ValueError, LookupError) as failure:
        raise VideoDamaged("is damaged, or in a format that is not read here") from failure


def _padded(pixels: int) -> int:
    """What decoders are limited to: they count the padding of lines and macroblocks too."""
    return 2 * pixels + (1 << 16)


def _is_moving(stream: VideoStream) -> bool:
    """Whether it is no cover picture of a sound file."""
    return not stream.disposition & Disposition.attached_pic


def _table(
    entries: Sequence[tuple[int | None, int | None, bool]], stream: VideoStream
) -> FrameTable:
    total, base = len(entries), stream.time_base or Fraction(1, 1)
    if not total:
        raise VideoDamaged("has no frames")
    rate = stream.average_rate or stream.guessed_rate
    shown = sorted(
        (pts, pts if dts is None else dts, key) for pts, dts, key in entries if pts is not None
    )
    if len(shown) < total:
        fps = float(rate or USUAL_FPS)
        return FrameTable(total, (), (), fps, total / fps, base)
    times = [pts for pts, _, _ in shown]
    span = float((times[-1] - times[0]) * base)
    fps = float(rate) if rate else (total - 1) / span if span else USUAL_FPS
    keyframes = [Keyframe(n, decoding) for n, (_, decoding, key) in enumerate(shown) if key]
    return FrameTable(total, times, keyframes, fps, max(span + 1 / fps, total / fps), base)


def _upright(frame: VideoFrame) -> Image.Image:
    # one thread: each of more takes a stack out of the memory that a worker may have
    pixels = frame.reformat(format="rgb24", threads=1).to_ndarray()
    image = Image.fromarray(pixels)
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(matrix, SideData):
        return image
    a, b, _, c, d, *_ = struct.unpack("9i", bytes(matrix))
    turn = TURNS.get(tuple(round(value / FULL_TURN) for value in (a, b, c, d)))
    return image if turn is None else image.transpose(turn)
