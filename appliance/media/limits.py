"""What is taken of each kind of media, as the server tells it to its workers.

Keys and their meaning are those of `media` in `appliance.config.schema`, values the recipe's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from appliance.request_options import CEILINGS
from engine.models.family import VideoOptions


@dataclass(slots=True, frozen=True)
class ImagePolicy:
    """Limits on images: how large, which formats, what shows through.

    `formats` are Pillow's names; one whose decoder is not installed is never recognised.
    """

    max_bytes: int
    max_pixels: int
    formats: Sequence[str]
    rgba_background: Sequence[int]


@dataclass(slots=True, frozen=True)
class VideoPolicy:
    """Limits on videos, and how frames are sampled.

    `formats` are those of images in a list of frames, `rgba_background` is what frames show
    through, as pictures do. The last four are settings of the model's processor (`VideoOptions`);
    None takes the checkpoint's own.
    """

    max_bytes: int
    max_seconds: float
    max_pixels: int
    max_decoded_bytes: int
    formats: Sequence[str]
    rgba_background: Sequence[int]
    frames: int | None
    fps: float | None
    frame_pixels: int | None
    tokens: int | None

    @property
    def options(self) -> VideoOptions:
        return VideoOptions(self.frames, self.fps, self.frame_pixels, self.tokens)

    def lowered(self, options: Mapping[str, Any]) -> VideoPolicy:
        """With what a request asks for, if that is less."""
        lower: dict[str, Any] = {}
        for option, own in CEILINGS.items():
            modality, name = option.split(".")
            asked, ceiling = options.get(name), getattr(self, own, None)
            if modality == "video" and asked is not None and (ceiling is None or asked < ceiling):
                lower[own] = asked
        return replace(self, **lower)


@dataclass(slots=True, frozen=True)
class AudioPolicy:
    """Limits on sounds: how large, how long."""

    max_bytes: int
    max_seconds: float


@dataclass(slots=True, frozen=True)
class EmbeddingsPolicy:
    """How large the embeddings of one item may be."""

    max_bytes: int
