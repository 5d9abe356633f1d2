"""The colours that the demo model names, and shades of each."""

from __future__ import annotations

import random

Colour = tuple[int, int, int]

# Shades that people use for each name: CSS names, plotting libraries' cycles, material palettes.
SHADES: dict[str, list[Colour]] = {
    "red": [(255, 0, 0), (220, 20, 60), (214, 39, 40), (200, 16, 16), (229, 57, 53)],
    "orange": [(255, 165, 0), (255, 140, 0), (255, 127, 14), (251, 140, 0), (245, 124, 0)],
    "yellow": [(255, 255, 0), (255, 235, 59), (253, 216, 53), (250, 220, 20), (255, 238, 88)],
    "green": [(0, 128, 0), (0, 255, 0), (44, 160, 44), (34, 139, 34), (67, 160, 71), (0, 100, 0)],
    "blue": [(0, 0, 255), (31, 119, 180), (30, 60, 200), (25, 118, 210), (65, 105, 225),
             (0, 0, 150)],
    "purple": [(128, 0, 128), (148, 103, 189), (142, 36, 170), (106, 27, 154), (138, 43, 226)],
    "pink": [(255, 192, 203), (255, 105, 180), (227, 119, 194), (244, 143, 177), (255, 160, 190)],
    "brown": [(139, 69, 19), (140, 86, 75), (121, 85, 72), (101, 67, 33), (110, 60, 20),
              (165, 42, 42)],
    "black": [(0, 0, 0), (0, 0, 0), (20, 20, 20), (33, 33, 33)],
    "white": [(255, 255, 255), (255, 255, 255), (250, 250, 250), (245, 245, 245)],
    "gray": [(128, 128, 128), (127, 127, 127), (160, 160, 160), (100, 100, 100), (185, 185, 185)],
    "cyan": [(0, 255, 255), (23, 190, 207), (0, 188, 212), (64, 224, 208), (0, 206, 209)],
}  # fmt: skip
NAMES = sorted(SHADES)
LEAST_CONTRAST = 95.0  # Euclidean distance in RGB between an object and what lies behind it


def shade(name: str, rng: random.Random, spread: int = 10) -> Colour:
    """Return a shade of the colour: a mixture of two of its known shades, slightly moved."""
    if rng.random() < 0.4:
        return rng.choice(SHADES[name])
    first, second = rng.choice(SHADES[name]), rng.choice(SHADES[name])
    part = rng.random()
    moved = [
        round(a + (b - a) * part) + rng.randint(-spread, spread)
        for a, b in zip(first, second, strict=True)
    ]
    return tuple(min(255, max(0, value)) for value in moved)  # type: ignore[return-value]


def contrast(first: Colour, second: Colour) -> float:
    """Return the Euclidean distance of two colours in RGB."""
    return sum((a - b) ** 2 for a, b in zip(first, second, strict=True)) ** 0.5


def lightness(colour: Colour) -> float:
    """Return how light a colour looks, 0 to 255 (ITU-R BT.601 luma)."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def shade_on(
    name: str, behind: Colour, rng: random.Random, *, legible: bool = False
) -> Colour | None:
    """Return a shade that stands out against `behind`, or None where none was found.

    `legible` asks that it be clearly lighter or darker too, as thin strokes need.
    """
    for _ in range(8):
        found = shade(name, rng)
        if contrast(found, behind) >= LEAST_CONTRAST and (
            not legible or abs(lightness(found) - lightness(behind)) >= 55
        ):
            return found
    return None
