"""What lies where in a picture: dense labels by which the tower learns to see.

A chat tells the tower little about a picture, these tell it something about every patch: which
shape or character covers it, in which colour, and whether the middle of one lies in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from tools.demo import palette, reading, shapes
from tools.demo.reading import Page
from tools.demo.scene import Scene

SHAPES = {name: number + 1 for number, name in enumerate(shapes.NAMES)}
COLOURS = {name: number + 1 for number, name in enumerate(palette.NAMES)}
CHARACTERS = {name: number + 1 for number, name in enumerate("0123456789" + reading.LETTERS)}
# classes of each label of a patch; 0 is "none"
CLASSES = {
    "shape": len(SHAPES) + 1,
    "colour": len(COLOURS) + 1,
    "character": len(CHARACTERS) + 1,
    "middle": 2,
    "background": len(COLOURS) + 1,
}
COUNTED = 1 + len(SHAPES) + len(COLOURS)  # all things, those of each shape, of each colour
FINE = 4  # points along a patch's side at which is looked what covers it
LEAST_COVER = 3  # of the 16 points


@dataclass(slots=True)
class Marks:
    """`areas` numbers the things of a picture, mode L, 0 for none; `things` are their classes
    (shape, colour, character), `middles` where they are, as fractions of the sides."""

    background: str
    areas: Image.Image
    things: list[tuple[int, int, int]] = field(default_factory=list)
    middles: list[tuple[float, float]] = field(default_factory=list)


def of_scene(scene: Scene, size: tuple[int, int]) -> Marks:
    """Return the marks of a scene drawn at `size` (width, height)."""
    marks = Marks(scene.background, Image.new("L", size))
    pen = ImageDraw.Draw(marks.areas)
    for number, thing in enumerate(scene.things, 1):
        radius, x, y = thing.radius * min(size), thing.x * size[0], thing.y * size[1]
        pen.polygon(shapes.placed(thing.shape, x, y, radius, thing.angle), fill=number)
        marks.things.append((SHAPES[thing.shape], COLOURS[thing.colour], 0))
        marks.middles.append((thing.x, thing.y))
    return marks


def of_page(page: Page, size: tuple[int, int]) -> Marks:
    """Return the marks of a page drawn at `size`: one for each character's box."""
    marks = Marks(page.background, Image.new("L", size))
    pen = ImageDraw.Draw(marks.areas)
    for line in page.lines:
        font, (x, y) = reading.placed(page, line, size)
        for at, character in enumerate(line.text):
            left, right = font.getlength(line.text[:at]), font.getlength(line.text[: at + 1])
            _, top, _, bottom = font.getbbox(character)
            box = (x + left, y + top, x + right, y + bottom)
            marks.things.append((0, COLOURS[page.colour], CHARACTERS[character]))
            pen.rectangle(box, fill=len(marks.things))
            marks.middles.append(((box[0] + box[2]) / 2 / size[0], (box[1] + box[3]) / 2 / size[1]))
    if page.turned:
        marks.areas = marks.areas.rotate(page.turned)
    return marks


def counts(marks: Marks) -> list[int]:
    """Return how many shapes a scene has: in all, of each shape, of each colour."""
    shapes_of, colours_of = [[thing[at] for thing in marks.things] for at in (0, 1)]
    return [
        len(marks.things),
        *(shapes_of.count(shape) for shape in SHAPES.values()),
        *(colours_of.count(colour) for colour in COLOURS.values()),
    ]


def of_patches(marks: Marks, rows: int, columns: int) -> np.ndarray:
    """Return the labels `[rows, columns, 5]` in the order of CLASSES."""
    fine = marks.areas.resize((columns * FINE, rows * FINE), Image.Resampling.NEAREST)
    points = np.asarray(fine).reshape(rows, FINE, columns, FINE)
    labels = np.zeros((rows, columns, len(CLASSES)), dtype=np.int64)
    most = np.full((rows, columns), LEAST_COVER - 1)
    for number, thing in enumerate(marks.things, 1):
        cover = (points == number).sum(axis=(1, 3))
        labels[cover > most, :3] = thing
        most = np.maximum(most, cover)
    for x, y in marks.middles:
        labels[min(rows - 1, int(y * rows)), min(columns - 1, int(x * columns)), 3] = 1
    labels[..., 4] = COLOURS[marks.background]
    return labels
