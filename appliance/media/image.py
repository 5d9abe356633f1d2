"""Untrusted image bytes to an RGB picture within the policy's limits."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from appliance.errors import ApplianceError, bad_request, media_too_large, media_undecodable
from appliance.media.limits import ImagePolicy

warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # clients choose the text
Image.MAX_IMAGE_PIXELS = None  # the policy's max_pixels counts, checked before anything is decoded

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)


def image_size(data: bytes, policy: ImagePolicy, param: str) -> tuple[int, int]:
    """Width and height that `load_image` will give, from the header alone. Raises as it does."""
    with _opened(data, policy, param) as image:
        width, height = image.size
        exif = image.info.get("exif")
        turned = isinstance(exif, bytes) and _orientation(image) in SIDEWAYS
        return (height, width) if turned else (width, height)


def load_image(data: bytes, policy: ImagePolicy, param: str) -> Image.Image:
    """The first frame of an encoded image as RGB, turned upright, transparency composited.

    Raises ApplianceError: 400 for one larger than the policy allows, 422 for one that cannot be
    decoded; and MemoryError.
    """
    with _opened(data, policy, param) as image:
        image.load()
        return _upright(_as_rgb(image, tuple(policy.rgba_background)), _orientation(image))


@contextmanager
def _opened(data: bytes, policy: ImagePolicy, param: str) -> Iterator[Image.Image]:
    """An image whose header is read and within the policy."""
    if len(data) > policy.max_bytes:
        raise media_too_large("image", policy.max_bytes, param)
    try:
        with Image.open(BytesIO(data), formats=_installed(policy.formats)) as image:
            _check_size(image.size, policy, param)
            yield image
    except (ApplianceError, MemoryError):
        raise
    except UnidentifiedImageError:
        listed = ", ".join(policy.formats)
        raise media_undecodable(
            f"The image is in none of the formats read here ({listed}), or is damaged.", param
        ) from None
    except Exception as failure:  # decoders raise anything on bytes made to hurt them
        raise media_undecodable("The image is damaged and cannot be decoded.", param) from failure


def _installed(formats: Sequence[str]) -> list[str]:
    Image.init()
    return [name for name in formats if name in Image.OPEN]


def _check_size(size: tuple[int, int], policy: ImagePolicy, param: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise media_undecodable("The image has no pixels.", param)
    if width * height > policy.max_pixels:
        raise bad_request(
            f"The image has {width} x {height} pixels; the limit is {policy.max_pixels} in all.",
            param,
            "media_too_large",
        )


def _as_rgb(image: Image.Image, background: tuple[int, ...]) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _from_deep_grey(image).convert("RGB")
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, (*background, 255))
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """Eight bits of a grey image of 16 or 32 bits, or of floats from 0 to 1 (or to 255)."""
    values = np.asarray(image)
    if image.mode == "F":
        values = np.nan_to_num(values, posinf=0.0, neginf=0.0)
        if values.max() <= 1:
            values = values * 255
    elif image.mode.startswith("I;16") or values.max() > 255:
        values = values // 256
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def _orientation(image: Image.Image) -> int:
    """EXIF orientation of a loaded image, 1 where there is none that can be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # metadata that cannot be read says nothing about the picture
        return 1
    return value if isinstance(value, int) else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)
