"""Limits on videos, sounds and embeddings, as the server tells them to its workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from engine.models.family import VideoOptions


@dataclass(slots=True, frozen=True)
class VideoPolicy:
    """Limits on videos, and how frames are sampled.

    `max_pixels` are those of one frame of the file, `max_decoded_bytes` those of all sampled
    frames before they are resized. The last four are settings of the model's processor
    (`VideoOptions`); None takes the checkpoint's own.
    """

    limit: int
    max_bytes: int = 256 << 20
    max_seconds: float = 600.0
    max_pixels: int = 10_000_000
    max_decoded_bytes: int = 2 << 30
    frames: int | None = None
    fps: float | None = None
    frame_pixels: int | None = None
    tokens: int | None = None

    @property
    def options(self) -> VideoOptions:
        return VideoOptions(self.frames, self.fps, self.frame_pixels, self.tokens)

    def lowered(self, options: Mapping[str, Any]) -> VideoPolicy:
        """With what a request asks for (`num_frames`, `fps`), if that is less."""
        names = {"num_frames": "frames", "fps": "fps"}
        lower: dict[str, Any] = {}
        for name, own in names.items():
            asked, ceiling = options.get(name), getattr(self, own)
            if asked is not None and (ceiling is None or asked < ceiling):
                lower[own] = asked
        return replace(self, **lower)


@dataclass(slots=True, frozen=True)
class AudioPolicy:
    """Limits on sounds: how many in one request, how large, how long."""

    limit: int
    max_bytes: int = 25 << 20
    max_seconds: float = 600.0


@dataclass(slots=True, frozen=True)
class EmbeddingsPolicy:
    """Whether embeddings are taken, and how large those of one item may be."""

    accept: bool = False
    max_bytes: int = 128 << 20
