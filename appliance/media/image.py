"""Untrusted image bytes to an RGB picture within the policy's limits."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO

from PIL import ExifTags, Image, ImageChops, UnidentifiedImageError

from appliance.errors import ApplianceError, bad_request, media_too_large, media_undecodable
from appliance.media import jpeg, png, webp
from appliance.media.background import opaque
from appliance.media.image_formats import decoded
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
    with _opened(_essence(data, policy, param)[0], policy, param) as image:
        width, height = image.size
        return (height, width) if _orientation(image) in SIDEWAYS else (width, height)


def load_image(data: bytes, policy: ImagePolicy, param: str) -> Image.Image:
    """The first frame of an encoded image as RGB, turned upright, transparency composited.

    What only describes the picture cannot fail it. Raises ApplianceError: 400 for one larger than
    the policy allows, 422 for one that cannot be decoded; and MemoryError.
    """
    first, *others = _essence(data, policy, param)
    picture = _loaded(first, policy, param)
    for other in others:
        if ImageChops.difference(picture, _loaded(other, policy, param)).getbbox() is not None:
            raise media_undecodable("The image is cut off.", param)
    return picture


def _essence(data: bytes, policy: ImagePolicy, param: str) -> Sequence[bytes]:
    """What decoders get to see; several are to come to the same (`appliance.media.jpeg`)."""
    if len(data) > policy.max_bytes:
        raise media_too_large("image", policy.max_bytes, param)
    if data.startswith(jpeg.START):
        file = jpeg.without_metadata(data)
        return (file.data, *file.others)
    return (webp.without_metadata(data) if webp.is_webp(data) else png.without_metadata(data),)


def _loaded(data: bytes, policy: ImagePolicy, param: str) -> Image.Image:
    with _opened(data, policy, param) as image:
        orientation = _orientation(image)
        image.load()
        _check_size(image.size, policy, param)  # which decoding may have changed
        return _upright(opaque(image, policy.rgba_background), orientation)


@contextmanager
def _opened(data: bytes, policy: ImagePolicy, param: str) -> Iterator[Image.Image]:
    """An image whose header is read and within the policy."""
    try:
        with Image.open(BytesIO(data), formats=decoded(policy.formats)) as image:
            _check_size(image.size, policy, param)
            yield image
    except (ApplianceError, MemoryError):
        raise
    except UnidentifiedImageError:
        listed = ", ".join(decoded(policy.formats))
        raise media_undecodable(
            f"The image is in none of the formats read here ({listed}), or is damaged.", param
        ) from None
    except Exception as failure:  # decoders raise anything on bytes made to hurt them
        raise media_undecodable("The image is damaged and cannot be decoded.", param) from failure


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


def _orientation(image: Image.Image) -> int:
    """EXIF orientation of an image that is not loaded yet, 1 where there is none to be read."""
    if image.format == "TIFF":  # Pillow turns it by itself
        return 1
    try:
        exif = Image.Image.getexif(image)  # that of a PNG would decode it
        value = exif.get(ExifTags.Base.Orientation, 1)
    except Exception:  # metadata that cannot be read says nothing about the picture
        return 1
    return value if isinstance(value, int) else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)
