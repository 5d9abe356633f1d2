"""Random pictures and the media items made of them."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from engine.models.family import Family
from engine.models.item_tensors import tensors_of
from engine.request import MediaItem


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colour with noise on it, so that resizing filters matter."""
    rng = np.random.default_rng([seed, width, height])
    coarse = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noise = rng.integers(-40, 41, (height, width, 3))
    return Image.fromarray(np.clip(np.array(smooth) + noise, 0, 255).astype(np.uint8))


def processed(family: Family, image: Image.Image) -> dict[str, torch.Tensor]:
    """A picture as the tower takes it."""
    return tower_inputs(family, media_item(family, image))


def tower_inputs(family: Family, item: MediaItem) -> dict[str, torch.Tensor]:
    return family.tower_inputs(item)


def media_item(family: Family, image: Image.Image, start: int = 0) -> MediaItem:
    tensors = tensors_of(family.preprocess_image(image))
    length = family.image_tokens(*image.size)
    return MediaItem("image", image.tobytes()[:32], start, length, tensors)
