"""From a decoded picture to the numbers a tower takes: what image processors share."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine.models.family import stay
from engine.models.settings import settings_of
from engine.native import resizing
from engine.native.loading import LibraryUnusable, library

if TYPE_CHECKING:
    import torch

    from engine.models.family import Upload

logger = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]  # [height, width, 3]

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
        import torch  # the light half does without

        shape = [1] * pixels.ndim
        shape[dim] = 3
        scale, shift = upload(torch.from_numpy(np.stack((self._scale, self._shift)))).unbind()
        return pixels.mul_(scale.view(shape)).add_(shift.view(shape))


def as_bytes(image: Image.Image) -> Pixels:
    """The picture's own bytes. Raises ValueError unless it is RGB."""
    if image.mode != "RGB":
        raise ValueError(f"an RGB image is needed, not {image.mode}")
    return np.asarray(image)


def resized(pixels: Pixels, width: int, height: int, *, cubic: bool) -> Pixels:
    """As torchvision resizes bytes for transformers: bicubic or bilinear, antialiased."""
    return _resizer()(pixels, width, height, cubic)


@cache  # a worker that asked again could open no file
def _resizer() -> Callable[[Pixels, int, int, bool], Pixels]:
    """Our library's, or torch's where that was not built: the same to the last bit."""
    try:
        library()
    except LibraryUnusable as why:
        logger.warning("frames of videos are resized by torch, which takes 190 MB more: %s", why)
        from torch.nn.functional import interpolate  # before workers are forked: by a rehearsal
    else:
        return lambda pixels, width, height, cubic: resizing.resized(
            pixels, width, height, cubic=cubic
        )
    from torch import from_numpy

    def by_torch(pixels: Pixels, width: int, height: int, cubic: bool) -> Pixels:
        planes = from_numpy(np.array(pixels)).permute(2, 0, 1)[None]
        mode = "bicubic" if cubic else "bilinear"
        found = interpolate(planes, (height, width), mode=mode, antialias=True)
        made: Pixels = found[0].permute(1, 2, 0).contiguous().numpy()
        return made

    return by_torch
