"""A video file: which frames it has, and those of them that somebody wants."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction

import av
from av.container import InputContainer
from av.sidedata.sidedata import SideData
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from appliance.media.background import opaque
from appliance.media.container import VIDEO_CODECS, VIDEO_FORMATS, lacks_media, opened
from appliance.media.frame_table import Entry, FrameTable, frame_table

FULL_TURN = 1 << 16  # 1.0 in a display matrix
FEW = 20  # one in so many packets may hold no frame of its own
VP8_SHOWN = 0x10  # of the first byte of a frame (RFC 6386, 9.1)
SEES_THROUGH = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # decoders that keep transparency

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


class VideoFile:
    """A video in memory whose frames have at most `max_pixels`, at most `most` of them.

    What they show through is `background`. Raises VideoDamaged or VideoTooLarge, everywhere.
    """

    def __init__(self, data: bytes, max_pixels: int, most: int, background: Sequence[int]) -> None:
        self._data = data
        self._max_pixels = max_pixels
        self._background = background
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
            entries: list[Entry] = []
            cut, hides = False, stream.codec_context.name == "vp8"
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                cut = packet.is_corrupt
                # some are decoded for the sake of others, and not shown
                if packet.is_discard or (hides and not memoryview(packet)[0] & VP8_SHOWN):
                    continue
                entries.append((packet.pts, packet.dts, packet.is_keyframe))
                if len(entries) > most:
                    raise VideoTooLarge(f"has more than the {most} frames that are allowed")
            if cut or lacks_media(self._data, container, stream):
                raise VideoDamaged("is cut off")
            if not entries:
                raise VideoDamaged("has no frames")
            base = stream.time_base or Fraction(1, 1)
            return frame_table(entries, base, stream.average_rate or stream.guessed_rate)

    def _by_time(self, numbers: Sequence[int]) -> Iterator[Image.Image | None]:
        """Frames found by their times, seeking over what lies between; None where that fails."""
        table = self.table
        with _faults(), self._opened() as (container, stream):
            decoded = _decoded(container, stream)
            frame: VideoFrame | None = None
            following, sought = 0, False
            for number in numbers:
                wanted = table.times[number]
                keyframe = table.leap(following, number)
                if keyframe is not None:
                    container.seek(keyframe.time, stream=stream, backward=True)
                    decoded, frame, sought = _decoded(container, stream), None, True
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
        """Frames found by counting from the first; the last stays, as in players, for a few."""
        places = iter(numbers)
        place = next(places)
        with _faults(), self._opened() as (container, stream):
            count, frame = 0, None
            for frame in _decoded(container, stream):
                while count == place:
                    yield self._picture(frame)
                    following = next(places, None)
                    if following is None:
                        return
                    place = following
                count += 1
            if frame is None or self.table.total - count > 1 + self.table.total // FEW:
                raise VideoDamaged("ends before its last frame")
            for _ in (place, *places):
                yield self._picture(frame)

    @contextmanager
    def _opened(self) -> Iterator[tuple[InputContainer, VideoStream]]:
        most = _padded(self._max_pixels)
        with opened(self._data, VIDEO_FORMATS, VIDEO_CODECS, most) as container:
            streams = list(filter(_is_moving, container.streams.video))
            if not streams:
                raise VideoDamaged("has no pictures")
            # a sequence of pictures begins with one of them as a still
            stream = next((one for one in streams if one.frames != 1), streams[0])
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
        return _upright(frame, self._background)

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


def _decoded(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Frames from where the container stands."""
    name = SEES_THROUGH.get(stream.codec_context.name)
    if name is None or stream.metadata.get("alpha_mode") != "1":
        yield from container.decode(stream)
        return
    decoder = av.CodecContext.create(name, "r")
    assert isinstance(decoder, VideoCodecContext)
    decoder.options, decoder.thread_count = stream.codec_context.options, 1
    for packet in container.demux(stream):
        yield from decoder.decode(packet)


def _upright(frame: VideoFrame, background: Sequence[int]) -> Image.Image:
    # one thread: each of more takes a stack out of the memory that a worker may have
    transparent = frame.format.has_palette or any(one.is_alpha for one in frame.format.components)
    form = "rgba" if transparent else "rgb24"
    pixels = frame.reformat(format=form, threads=1).to_ndarray()
    image = opaque(Image.fromarray(pixels), background)
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(matrix, SideData):
        return image
    a, b, _, c, d, *_ = struct.unpack("9i", bytes(matrix))
    turn = TURNS.get(tuple(round(value / FULL_TURN) for value in (a, b, c, d)))
    return image if turn is None else image.transpose(turn)
