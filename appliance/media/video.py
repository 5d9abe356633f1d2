"""Untrusted videos to the frames that a model looks at, within the policy's limits."""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from appliance.errors import ApplianceError, bad_request, media_too_large, media_undecodable
from appliance.media.image import ImagePolicy, image_size, load_image
from appliance.media.video_file import VideoDamaged, VideoFile, VideoTooLarge
from engine.models.family import Family, VideoOptions

FRAME_LIST = re.compile(rb"data:video/(jpeg|png);base64,", re.IGNORECASE)
MOST_FPS = 240  # of a file, for the number of frames that `max_seconds` allows
ENDLESS = 1_000_000  # frames of a video that any family samples as few from as it ever does


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
        """With what a request asks for (`num_frames`, `fps`, `max_pixels`), if that is less."""
        names = {"num_frames": "frames", "fps": "fps", "max_pixels": "frame_pixels"}
        lower: dict[str, Any] = {}
        for name, own in names.items():
            asked, ceiling = options.get(name), getattr(self, own)
            if asked is not None and (ceiling is None or asked < ceiling):
                lower[own] = asked
        return replace(self, **lower)


@dataclass(slots=True, frozen=True)
class Clip:
    """Sampled frames, RGB and upright, that are decoded while they are taken, once.

    `total` frames of `fps` a second were there and last `seconds`; those of `numbers` were taken
    and are shown at `times`. What a list of frames does not tell is None or empty.
    """

    frames: Iterator[Image.Image]
    size: tuple[int, int]
    numbers: Sequence[int]
    total: int
    fps: float | None = None
    seconds: float | None = None
    times: Sequence[float] = ()

    @property
    def details(self) -> dict[str, Any]:
        """The clip's facts as JSON."""
        return {
            "size": list(self.size),
            "frames": len(self.numbers),
            "total_frames": self.total,
            "fps": self.fps,
            "seconds": self.seconds,
            "times": [round(time, 3) for time in self.times],
        }


def load_video(data: bytes, policy: VideoPolicy, family: Family, param: str) -> Clip:
    """The frames that the family's processor takes of a video file or a data URL of frames.

    Such a URL, `data:video/jpeg;base64,<frame>,<frame>,…`, has its frames already sampled.

    Raises ApplianceError: 400 for a video beyond the policy, 422 for one that cannot be decoded;
    taking the frames raises VideoDamaged for one that turns out to be so.
    """
    listed = FRAME_LIST.match(data)
    if listed is not None:
        form = listed[1].decode().upper()
        return _frame_list(data[listed.end() :], form, policy, family, param)
    if len(data) > policy.max_bytes:
        raise media_too_large("video", policy.max_bytes, param)
    try:
        file = VideoFile(data, policy.max_pixels, int(policy.max_seconds * MOST_FPS) + 1)
    except VideoDamaged as fault:
        raise video_undecodable(fault, param) from fault.__cause__
    except VideoTooLarge as fault:
        raise bad_request(f"The video {fault}.", param, "media_too_large") from None
    table = file.table
    if table.seconds > policy.max_seconds:
        raise bad_request(
            f"The video lasts {table.seconds:.1f} seconds; the limit is {policy.max_seconds:g}.",
            param,
            "media_too_large",
        )
    numbers = family.sample_frames(table.total, table.fps, policy.options)
    _check_budget(len(numbers), file.size, policy, param)
    times = [table.second(number) for number in numbers]
    frames = file.frames(numbers)
    return Clip(frames, file.size, numbers, table.total, table.fps, table.seconds, times)


def clip_of(frames: Sequence[Image.Image], policy: VideoPolicy, family: Family, param: str) -> Clip:
    """RGB frames as they are, which were sampled by whoever made them."""
    sizes = [frame.size for frame in frames]
    _check_list(sizes, policy, family, param)
    return Clip(iter(frames), sizes[0], range(len(frames)), len(frames))


def video_tokens(clip: Clip, policy: VideoPolicy, family: Family, param: str) -> int:
    """Placeholders of a clip. Raises ApplianceError for a size that the family refuses."""
    try:
        return family.video_tokens(len(clip.numbers), *clip.size, policy.options)
    except ValueError:
        raise bad_request(
            f"The model cannot take a video of {clip.size[0]} x {clip.size[1]} pixels.",
            param,
            "video_size_unsupported",
        ) from None


def video_undecodable(fault: VideoDamaged, param: str) -> ApplianceError:
    """422: what is wrong with the file."""
    return media_undecodable(f"The video {fault}.", param)


def _frame_list(listed: bytes, form: str, policy: VideoPolicy, family: Family, param: str) -> Clip:
    encoded = listed.split(b",", _most(policy, family))
    _check_count(len(encoded), policy, family, param)
    if sum(len(frame) // 4 * 3 - 2 for frame in encoded) > policy.max_bytes:
        raise media_too_large("video", policy.max_bytes, param)
    try:
        frames = [binascii.a2b_base64(frame, strict_mode=True) for frame in encoded]
    except binascii.Error:
        raise bad_request(
            "The data URL of frames is not a list of valid base64.", param, "invalid_data_url"
        ) from None
    limits = ImagePolicy(
        limit=1, max_bytes=policy.max_bytes, max_pixels=policy.max_pixels, formats=(form,)
    )
    sizes = [image_size(frame, limits, param) for frame in frames]
    _check_list(sizes, policy, family, param)
    images = (load_image(frame, limits, param) for frame in frames)
    return Clip(images, sizes[0], range(len(frames)), len(frames))


def _most(policy: VideoPolicy, family: Family) -> int:
    return len(family.sample_frames(ENDLESS, 1.0, policy.options))


def _check_count(count: int, policy: VideoPolicy, family: Family, param: str) -> None:
    most = _most(policy, family)
    if count > most:
        raise bad_request(
            f"The video is a list of more than {most} frames, which is the limit.",
            param,
            "media_too_large",
        )


def _check_list(
    sizes: Sequence[tuple[int, int]], policy: VideoPolicy, family: Family, param: str
) -> None:
    if not sizes:
        raise media_undecodable("The video has no frames.", param)
    _check_count(len(sizes), policy, family, param)
    if len(set(sizes)) > 1:
        raise media_undecodable("The frames of the video are not all of one size.", param)
    _check_budget(len(sizes), sizes[0], policy, param)


def _check_budget(count: int, size: tuple[int, int], policy: VideoPolicy, param: str) -> None:
    decoded = count * size[0] * size[1] * 3
    if decoded > policy.max_decoded_bytes:
        raise bad_request(
            f"The {count} frames of {size[0]} x {size[1]} pixels that are taken of the video have "
            f"{decoded} bytes; the limit is {policy.max_decoded_bytes}.",
            param,
            "media_too_large",
        )
