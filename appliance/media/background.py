"""What lies behind pixels that are not opaque: one step for every picture and frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

HALF_DEPTH = 256  # what values of 16 bits are divided by


def opaque(image: Image.Image, background: Sequence[int]) -> Image.Image:
    """A loaded image of any mode as RGB, composited on `background` where it is transparent.

    Exact to the byte with Pillow's `alpha_composite`.
    """
    transparent = None
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        colour = image.info.get("transparency")
        if isinstance(colour, int):
            transparent = np.asarray(image) == colour
        image = _of_eight_bits(image)
        if transparent is not None:
            image.putalpha(Image.fromarray(np.where(transparent, 0, 255).astype(np.uint8)))
    if image.has_transparency_data:
        made = Image.new("RGBA", image.size, (*background, 255))
        made.alpha_composite(image.convert("RGBA"))
        return made.convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def _of_eight_bits(image: Image.Image) -> Image.Image:
    """Eight bits of a grey image of 16 or 32 bits, or of floats from 0 to 1 (or to 255)."""
    values = np.asarray(image)
    if image.mode == "F":
        values = np.nan_to_num(values, posinf=0.0, neginf=0.0)
        if values.max() <= 1:
            values = values * 255
    elif image.mode.startswith("I;16") or values.max() > 255:
        values = values // HALF_DEPTH
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
