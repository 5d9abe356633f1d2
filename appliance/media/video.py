"""Untrusted videos to the frames that a model looks at, within the policy's limits."""

from __future__ import annotations

import binascii
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import Image

from appliance.errors import bad_request, media_too_large, media_undecodable
from appliance.media import png, webp
from appliance.media.animation import Animation, avif_animation, webp_animation
from appliance.media.data_url import FRAME_LIST, from_base64
from appliance.media.image import image_size, load_image
from appliance.media.limits import ImagePolicy, VideoPolicy
from appliance.media.prepare import PARAM, MediaSettings, Options, Prepared
from appliance.media.signature import IMAGE, is_avif_sequence, modalities
from appliance.media.video_file import VideoDamaged, VideoFile, VideoTooLarge
from engine.models.family import Family

MOST_FPS = 240  # of a file, for the number of frames that `max_seconds` allows
ENDLESS = 1_000_000  # frames of a video that any family samples as few from as it ever does


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


class VideoPreparer:
    """Videos. Frames are decoded while they are preprocessed, so that few are held at a time."""

    def __init__(self, family: Family, settings: MediaSettings) -> None:
        self._family = family
        self._policy = settings.video

    def probe(self, data: bytes, options: Options) -> int | None:
        return self._tokens(self.decode(data, options), self._policy.lowered(options))

    def decode(self, data: bytes, options: Options) -> Clip:
        return load_video(data, self._policy.lowered(options), self._family, PARAM)

    def preprocess(self, decoded: Clip, options: Options) -> Prepared:
        policy = self._policy.lowered(options)
        tokens = self._tokens(decoded, policy)
        count = len(decoded.numbers)
        arrays = self._family.preprocess_video(decoded.frames, count, policy.options)
        return Prepared(tokens, arrays)

    def _tokens(self, clip: Clip, policy: VideoPolicy) -> int:
        try:
            return self._family.video_tokens(len(clip.numbers), *clip.size, policy.options)
        except ValueError:
            raise media_undecodable(
                f"The model cannot take a video of {clip.size[0]} x {clip.size[1]} pixels.", PARAM
            ) from None


def load_video(data: bytes, policy: VideoPolicy, family: Family, param: str) -> Clip:
    """The frames that the family's processor takes of a video file or of a list of frames.

    Such a list is what `read_data_url` makes of one; its frames are already sampled.

    Raises ApplianceError, also while frames are taken: 400 for a video beyond the policy, 422 for
    one that cannot be decoded.
    """
    if data.startswith(FRAME_LIST):
        return _frame_list(data.removeprefix(FRAME_LIST), policy, family, param)
    if len(data) > policy.max_bytes:
        raise media_too_large("video", policy.max_bytes, param)
    if modalities(data) == IMAGE:
        raise media_undecodable("The video is a picture that does not move.", param)
    most = int(policy.max_seconds * MOST_FPS) + 1
    with _told(param):
        file = _opened(data, policy.max_pixels, most, policy.rgba_background)
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
    frames = _frames(file, numbers, param)
    return Clip(frames, file.size, numbers, table.total, table.fps, table.seconds, times)


def _opened(
    data: bytes, max_pixels: int, most: int, background: Sequence[int]
) -> VideoFile | Animation:
    if webp.is_webp(data):
        return webp_animation(data, max_pixels, most, background)
    if is_avif_sequence(data):
        return avif_animation(data, max_pixels, most, background)
    return VideoFile(png.without_metadata(data, moving=True), max_pixels, most, background)


@contextmanager
def _told(param: str) -> Iterator[None]:
    """What is wrong with a file, to the client."""
    try:
        yield
    except VideoDamaged as fault:
        raise media_undecodable(f"The video {fault}.", param) from fault.__cause__
    except VideoTooLarge as fault:
        raise bad_request(f"The video {fault}.", param, "media_too_large") from None


def _frames(
    file: VideoFile | Animation, numbers: Sequence[int], param: str
) -> Iterator[Image.Image]:
    with _told(param):
        yield from file.frames(numbers)


def _frame_list(listed: bytes, policy: VideoPolicy, family: Family, param: str) -> Clip:
    encoded = listed.split(b",", _most(policy, family))
    _check_count(len(encoded), policy, family, param)
    if sum(len(frame) // 4 * 3 - 2 for frame in encoded) > policy.max_bytes:
        raise media_too_large("video", policy.max_bytes, param)
    try:
        frames = [from_base64(frame) for frame in encoded]
    except binascii.Error:
        raise bad_request(
            "The data URL of frames is not a list of valid base64.", param, "invalid_data_url"
        ) from None
    limits = ImagePolicy(
        policy.max_bytes, policy.max_pixels, policy.formats, policy.rgba_background
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
