"""Pictures of coloured shapes: what is in them, and their pixels."""

from __future__ import annotations

import io
import math
import random
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tools.demo import palette, shapes
from tools.demo.palette import Colour

ROWS = ("top", "", "bottom")
COLUMNS = ("left", "", "right")
CELL_EDGES = (0.36, 0.42, 0.58, 0.64)  # between two of these a position has no clear name


@dataclass(slots=True)
class Thing:
    """One shape. `x`, `y` are fractions of the sides, `radius` one of the shorter side."""

    shape: str
    colour: str
    rgb: Colour
    x: float
    y: float
    radius: float
    angle: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def place(self) -> str | None:
        """Return "top left" and the like, or None where it lies between two places."""
        row, column = _third(self.y), _third(self.x)
        if row is None or column is None:
            return None
        return f"{ROWS[row]} {COLUMNS[column]}".strip() or "centre"


@dataclass(slots=True)
class Scene:
    """A picture before it is drawn. `aspect` is width over height."""

    background: str
    background_rgb: Colour
    things: list[Thing] = field(default_factory=list)
    aspect: float = 1.0


def _third(value: float) -> int | None:
    first, second, third, fourth = CELL_EDGES
    if value < first:
        return 0
    if second < value < third:
        return 1
    return 2 if value > fourth else None


def random_aspect(rng: random.Random) -> float:
    if rng.random() < 0.5:
        return 1.0
    return math.exp(rng.uniform(-0.65, 0.65))


def random_scene(
    rng: random.Random, things: int, *, repeat: float = 0.3, neat: float = 0.5
) -> Scene:
    """Return a scene of up to `things` shapes that do not touch.

    `repeat` is the chance that a shape or colour is taken again on purpose, so that questions
    about "the red one" differ from "the circle"; `neat` that all lie in clearly named places.
    """
    background = "white" if rng.random() < 0.25 else rng.choice(palette.NAMES)
    scene = Scene(background, palette.shade(background, rng), aspect=random_aspect(rng))
    in_places = rng.random() < neat and things <= 6
    cells = rng.sample(range(9), min(things, 9))
    largest = {0: 0.4, 1: 0.42, 2: 0.26, 3: 0.22, 4: 0.19}.get(things, 0.16)
    smallest = max(0.07, largest * rng.choice((0.3, 0.6)))
    equal = rng.uniform(smallest, largest) if rng.random() < 0.25 else None
    for number in range(things):
        radius = equal or rng.uniform(smallest, largest)
        if in_places and things > 1:
            radius = min(radius, 0.155)
        spot = _free_spot(scene, rng, radius, cells[number] if in_places else None)
        if spot is None:
            continue
        thing = _random_thing(scene, rng, repeat)
        thing.x, thing.y, thing.radius = *spot, radius
        scene.things.append(thing)
    return scene


def _random_thing(scene: Scene, rng: random.Random, repeat: float) -> Thing:
    while True:
        shape, colour = rng.choice(shapes.NAMES), rng.choice(palette.NAMES)
        if scene.things and rng.random() < repeat:
            shape = rng.choice(scene.things).shape
        if scene.things and rng.random() < repeat:
            colour = rng.choice(scene.things).colour
        if colour == scene.background:
            continue
        rgb = palette.shade_on(colour, scene.background_rgb, rng)
        if rgb is not None:
            angle = 0.0 if rng.random() < 0.4 else rng.uniform(0, 2 * math.pi)
            return Thing(shape, colour, rgb, 0.0, 0.0, 0.0, angle)


def _free_spot(
    scene: Scene, rng: random.Random, radius: float, cell: int | None
) -> tuple[float, float] | None:
    shorter = min(scene.aspect, 1.0)
    across, down = radius * shorter / scene.aspect, radius * shorter
    for _ in range(30):
        if cell is None:
            x, y = rng.uniform(across, 1 - across), rng.uniform(down, 1 - down)
        else:
            x = _inside((cell % 3 * 2 + 1) / 6 + rng.uniform(-0.06, 0.06), across)
            y = _inside((cell // 3 * 2 + 1) / 6 + rng.uniform(-0.06, 0.06), down)
        if all(
            math.hypot((x - other.x) * scene.aspect, y - other.y)
            > (radius + other.radius) * shorter * 1.02
            for other in scene.things
        ):
            return x, y
    return None


def _inside(value: float, margin: float) -> float:
    return min(1 - margin, max(margin, value))


def draw(scene: Scene, size: tuple[int, int], rng: random.Random) -> Image.Image:
    """Return the scene at `size` (width, height), anti-aliased, as a source might have made it."""
    factor = 2
    canvas = blank(scene.background_rgb, (size[0] * factor, size[1] * factor), rng)
    pen = ImageDraw.Draw(canvas)
    outlined = rng.random() < 0.08
    for thing in scene.things:
        draw_thing(pen, thing, canvas.size, outlined, rng)
    return finish(canvas, size, rng)


def draw_thing(
    pen: ImageDraw.ImageDraw,
    thing: Thing,
    size: tuple[int, int],
    outlined: bool,
    rng: random.Random,
) -> None:
    radius = thing.radius * min(size)
    x, y = thing.x * size[0], thing.y * size[1]
    edge = {"outline": (0, 0, 0), "width": max(1, int(radius * 0.06))} if outlined else {}
    if thing.shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=thing.rgb, **edge)
    else:
        pen.polygon(shapes.placed(thing.shape, x, y, radius, thing.angle), fill=thing.rgb, **edge)


def blank(colour: Colour, size: tuple[int, int], rng: random.Random) -> Image.Image:
    """Return a canvas of one colour, seldom with a faint gradient."""
    if rng.random() > 0.1:
        return Image.new("RGB", size, colour)
    slope = np.linspace(-rng.uniform(0, 12), rng.uniform(0, 12), size[0])[None, :, None]
    flat = np.broadcast_to(np.array(colour, dtype=np.float32), (size[1], size[0], 3))
    return Image.fromarray(np.clip(flat + slope, 0, 255).astype(np.uint8))


def finish(canvas: Image.Image, size: tuple[int, int], rng: random.Random) -> Image.Image:
    """Return the canvas at its final size with what cameras and files add: blur, noise, JPEG."""
    filters = (Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.BOX)
    picture = canvas.resize(size, rng.choice(filters))
    chance = rng.random()
    if chance < 0.1:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9)))
    elif chance < 0.25:
        values = np.asarray(picture, dtype=np.float32)
        noise = np.random.default_rng(rng.getrandbits(32)).normal(
            0, rng.uniform(1, 9), values.shape
        )
        picture = Image.fromarray(np.clip(values + noise, 0, 255).astype(np.uint8))
    return as_jpeg(picture, rng) if rng.random() < 0.2 else picture


def as_jpeg(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Return what a JPEG file keeps of the picture."""
    held = io.BytesIO()
    picture.save(held, "JPEG", quality=rng.randint(50, 95))
    return Image.open(held).convert("RGB")
