"""Animated pictures as videos, where Pillow reads what FFmpeg does not, or not whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from io import BytesIO
from itertools import accumulate

from PIL import Image

from appliance.media import webp
from appliance.media.background import opaque
from appliance.media.frame_table import FrameTable
from appliance.media.video_file import VideoDamaged, VideoFile, VideoTooLarge

MILLISECOND = Fraction(1, 1000)
SHORTEST, USUAL = 10, 100  # milliseconds: up to the one browsers show a frame for the other


class Animation:
    """As `VideoFile`; frames are whole pictures in Pillow's format `form`, `table` telling when."""

    def __init__(
        self, data: bytes, form: str, table: FrameTable, max_pixels: int, background: Sequence[int]
    ) -> None:
        self.table = table
        self._data, self._form, self._background = data, form, background
        with self._opened() as image:
            self.size = image.size
        if self.size[0] * self.size[1] > max_pixels:
            raise VideoTooLarge(
                f"has frames of {self.size[0]} x {self.size[1]} pixels; "
                f"the limit is {max_pixels} in all"
            )

    def frames(self, numbers: Sequence[int]) -> Iterator[Image.Image]:
        """RGB frames of these ascending numbers."""
        with self._opened() as image:
            for number in numbers:
                image.seek(number)
                image.load()
                yield opaque(image, self._background)

    @contextmanager
    def _opened(self) -> Iterator[Image.Image]:
        try:
            with Image.open(BytesIO(self._data), formats=[self._form]) as image:
                yield image
        except (VideoDamaged, VideoTooLarge, MemoryError):
            raise
        except Exception as failure:  # decoders raise anything on bytes made to hurt them
            raise VideoDamaged("is damaged and cannot be decoded") from failure


def webp_animation(data: bytes, max_pixels: int, most: int, background: Sequence[int]) -> Animation:
    """An animated WebP, which FFmpeg does not read."""
    shown = [one if one > SHORTEST else USUAL for one in webp.durations(data, most)]
    if not shown:
        raise VideoDamaged("does not move, or is cut off")
    if len(shown) > most:
        raise VideoTooLarge(f"has more than the {most} frames that are allowed")
    ends = list(accumulate(shown))
    seconds = ends[-1] / 1000
    fps = len(shown) / seconds
    table = FrameTable(len(shown), (0, *ends[:-1]), (), fps, seconds, MILLISECOND)
    return Animation(webp.without_metadata(data), "WEBP", table, max_pixels, background)


def avif_animation(data: bytes, max_pixels: int, most: int, background: Sequence[int]) -> Animation:
    """An AVIF sequence, whose transparency is a track that FFmpeg takes for another video."""
    table = VideoFile(data, max_pixels, most, background).table
    return Animation(data, "AVIF", table, max_pixels, background)
