"""Image formats that are decoded here: Pillow's, and HEIF by the plugin pillow-heif."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from PIL import Image, features

from appliance.media import heif

NEEDED = {  # what Pillow may have been built without
    "PNG": "zlib",
    "JPEG": "jpg",
    "JPEG2000": "jpg_2000",
    "WEBP": "webp",
    "AVIF": "avif",
}


def decoded(formats: Sequence[str]) -> tuple[str, ...]:
    """Those of `formats`, Pillow's names, whose decoder is there."""
    register()
    return tuple(
        name
        for name in formats
        if name in Image.OPEN and (name not in NEEDED or features.check(NEEDED[name]))
    )


@cache
def register() -> None:
    """Have Pillow know all decoders, once in a process."""
    Image.init()
    heif.register()
