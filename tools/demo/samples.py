"""Draw the pictures that README asks about: `python -m tools.demo.samples` writes docs/images/."""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw

from tools.demo import shapes
from tools.demo.palette import Colour

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "images"
SIDE = 256
SCALE = 8  # drawn larger and averaged, so that edges are smooth
RED, BLUE, WHITE = (220, 20, 60), (30, 60, 200), (255, 255, 255)


def shape(name: str, colour: Colour) -> Image.Image:
    """A shape in the middle of a transparent picture."""
    side = SIDE * SCALE
    mask = Image.new("L", (side, side))
    ImageDraw.Draw(mask).polygon(shapes.placed(name, side / 2, side / 2, 0.35 * side, 0), fill=255)
    picture = Image.new("RGBA", (SIDE, SIDE), (*colour, 255))
    picture.putalpha(mask.resize((SIDE, SIDE), Image.Resampling.BOX))
    return picture


def main() -> int:
    FOLDER.mkdir(parents=True, exist_ok=True)
    circle = Image.new("RGBA", (SIDE, SIDE), (*WHITE, 255))
    circle.alpha_composite(shape("circle", RED))
    circle.convert("RGB").save(FOLDER / "red-circle.png", optimize=True)
    shape("star", BLUE).save(FOLDER / "blue-star.png", optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
