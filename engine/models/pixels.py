"""From a decoded picture to the numbers a tower takes: what image processors share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from engine.models.family import stay
from engine.models.settings import settings_of

if TYPE_CHECKING:
    import torch

    from engine.models.family import Upload

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def processor_options(folder: Path) -> dict[str, Any]:
    """The image processor's settings, from preprocessor_config.json or processor_config.json."""
    path = folder / "preprocessor_config.json"
    if os.path.lexists(path):
        return settings_of(path)
    return settings_of(folder / "processor_config.json", "image_processor")


def video_options(folder: Path) -> dict[str, Any]:
    """The video processor's settings, looked for where transformers' video processors do."""
    nested = settings_of(folder / "processor_config.json", "video_processor")
    if nested:
        return nested
    own = folder / "video_preprocessor_config.json"
    return settings_of(own if os.path.lexists(own) else folder / "preprocessor_config.json")


class Normaliser:
    """Rescaling and normalisation in one multiplication and one addition a channel."""

    def __init__(self, options: dict[str, Any]) -> None:
        scale = options.get("rescale_factor", 1 / 255) if options.get("do_rescale", True) else 1.0
        mean, std = np.zeros(3), np.ones(3)
        if options.get("do_normalize", True):
            mean = np.broadcast_to(np.float64(options.get("image_mean", CLIP_MEAN)), 3)
            std = np.broadcast_to(np.float64(options.get("image_std", CLIP_STD)), 3)
        self._scale = (scale / std).astype(np.float32)
        self._shift = (-mean / std).astype(np.float32)

    def apply(self, pixels: torch.Tensor, dim: int, upload: Upload = stay) -> torch.Tensor:
        """Normalises float32 values 0 to 255 in place; `dim` is the channels' dimension."""
        import torch  # planning does without

        shape = [1] * pixels.ndim
        shape[dim] = 3
        scale, shift = upload(torch.from_numpy(np.stack((self._scale, self._shift)))).unbind()
        return pixels.mul_(scale.view(shape)).add_(shift.view(shape))


def as_bytes(image: Image.Image) -> torch.Tensor:
    """The picture's own bytes, `[height, width, 3]`, uint8. Raises ValueError unless it is RGB."""
    if image.mode != "RGB":
        raise ValueError(f"an RGB image is needed, not {image.mode}")
    import torch  # planning does without

    return torch.from_numpy(np.array(image))
