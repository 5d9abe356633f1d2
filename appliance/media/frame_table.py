"""Which frames a video has, when they are shown, and where decoding can begin."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

SHORT_LEAP = 8  # frames that are decoded rather than leapt over by a seek
USUAL_FPS = 24.0  # for a file that tells no rate

Entry = tuple[int | None, int | None, bool]  # shown at, decoded at, whether it is a keyframe


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


def frame_table(entries: Sequence[Entry], base: Fraction, rate: Fraction | None) -> FrameTable:
    """The table of packets in the order in which they are stored; there has to be one."""
    total = len(entries)
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
