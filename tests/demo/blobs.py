"""What is seen in a picture, found without knowing what was drawn."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage, spatial

from tools.demo import palette


class Plain(random.Random):
    """A generator that draws neither noise, blur, gradients, outlines nor JPEG."""

    def random(self) -> float:
        return 0.99


@dataclass(slots=True)
class Blob:
    """What is seen of one thing: pixels, middle as fractions of the sides."""

    pixels: np.ndarray  # [pixels, 2], row and column
    x: float
    y: float
    rgb: np.ndarray

    @property
    def extent(self) -> float:
        """Half the greatest distance of two of its pixels."""
        hull = self.pixels[spatial.ConvexHull(self.pixels).vertices].astype(float)
        return max(spatial.distance.pdist(hull)) / 2

    @property
    def features(self) -> tuple[float, float]:
        """Area over that of the hull, and over the squared extent."""
        hull = spatial.ConvexHull(self.pixels)
        return len(self.pixels) / hull.volume, len(self.pixels) / self.extent**2


def blobs(picture: Image.Image, background: palette.Colour) -> list[Blob]:
    """Return what stands out from the background, piece by piece."""
    values = np.asarray(picture, dtype=float)
    seen = np.linalg.norm(values - background, axis=2) > palette.LEAST_CONTRAST / 2
    pieces, _ = ndimage.label(seen)
    found = []
    for number, box in enumerate(ndimage.find_objects(pieces), 1):
        pixels = np.argwhere(pieces[box] == number)
        rgb = np.median(values[box][pieces[box] == number], axis=0)
        pixels += (box[0].start, box[1].start)
        if len(pixels) > 4:
            y, x = (pixels.mean(axis=0) + 0.5) / seen.shape
            found.append(Blob(pixels, float(x), float(y), rgb))
    return found
