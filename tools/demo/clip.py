"""Clips: one shape that moves, or colours one after another."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw

from tools.demo import palette, shapes
from tools.demo.palette import Colour
from tools.demo.scene import Thing, draw_thing

DIRECTIONS = ("left", "right", "up", "down")


@dataclass(slots=True)
class Clip:
    """A clip before it is drawn: a moving thing, or the colours that follow each other.

    `turns` are the fractions of the time at which the colour changes, one fewer than `colours`.
    """

    background: str
    background_rgb: Colour
    thing: Thing | None
    aspect: float
    direction: str | None = None
    start: float = 0.0
    end: float = 1.0
    across: float = 0.5
    colours: tuple[str, ...] = ()
    rgbs: tuple[Colour, ...] = ()
    turns: tuple[float, ...] = ()
    filled: bool = False  # the whole frame takes the colour, and there is no thing


def random_clip(rng: random.Random) -> Clip:
    background = rng.choice(("white", "black")) if rng.random() < 0.4 else rng.choice(palette.NAMES)
    behind = palette.shade(background, rng)
    clip = Clip(background, behind, None, rng.choice((1.0, 1.0, 4 / 3, 16 / 9, 3 / 4)))
    radius = rng.uniform(0.12, 0.28)
    shape = rng.choice(shapes.NAMES)
    angle = 0.0 if rng.random() < 0.5 else rng.uniform(0, 6.28)
    if rng.random() < 0.35:
        colour, rgb = _colour_on(background, behind, rng, ())
        clip.thing = Thing(shape, colour, rgb, 0.5, 0.5, radius, angle)
        clip.direction = rng.choice(DIRECTIONS)
        distance = rng.uniform(0.3, 0.65)
        clip.start = rng.uniform(0.15, 0.85 - distance)
        clip.end = clip.start + distance
        if clip.direction in ("left", "up"):
            clip.start, clip.end = clip.end, clip.start
        clip.across = rng.uniform(0.25, 0.75)
        return clip
    clip.filled = rng.random() < 0.4
    count = rng.choice((1, 2, 2, 2, 3, 3, 4))
    for _ in range(count):
        colour, rgb = _colour_on(None if clip.filled else background, behind, rng, clip.colours)
        clip.colours += (colour,)
        clip.rgbs += (rgb,)
    clip.turns = tuple((step + rng.uniform(-0.15, 0.15)) / count for step in range(1, count))
    if not clip.filled:
        clip.thing = Thing(shape, clip.colours[0], clip.rgbs[0], 0.5, 0.5, radius, angle)
        clip.thing.x, clip.thing.y = rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7)
    return clip


def _colour_on(
    background: str | None, behind: Colour, rng: random.Random, taken: tuple[str, ...]
) -> tuple[str, Colour]:
    while True:
        name = rng.choice(palette.NAMES)
        if name == background or name in taken:
            continue
        rgb = (
            palette.shade(name, rng) if background is None else palette.shade_on(name, behind, rng)
        )
        if rgb is not None:
            return name, rgb


def draw(clip: Clip, size: tuple[int, int], times: list[float]) -> list[Image.Image]:
    """Return one frame for each of `times`, fractions of the clip's length in 0 to 1."""
    return [_frame(clip, size, time) for time in times]


def colours_of(clip: Clip) -> tuple[str, ...]:
    """Return the names of the thing's colours, or the filled frame's, one after another."""
    if clip.thing is not None and not clip.colours:
        return (clip.thing.colour,)
    return clip.colours


def colour_at(clip: Clip, time: float) -> str:
    """Return the name of the thing's colour, or of the filled frame's."""
    return colours_of(clip)[turned(clip, time)]


def thing_at(clip: Clip, time: float) -> Thing | None:
    """Return the thing as it is at a time, or None where the frame is filled."""
    if clip.thing is None:
        return None
    thing = replace(clip.thing, rgb=clip.rgbs[turned(clip, time)] if clip.rgbs else clip.thing.rgb)
    if clip.direction is not None:
        along = clip.start + (clip.end - clip.start) * time
        sideways = clip.direction in ("left", "right")
        thing.x, thing.y = (along, clip.across) if sideways else (clip.across, along)
    return thing


def turned(clip: Clip, time: float) -> int:
    """Return how often the colour has changed by then."""
    return sum(time >= turn for turn in clip.turns)


def _frame(clip: Clip, size: tuple[int, int], time: float) -> Image.Image:
    factor = 2
    large = (size[0] * factor, size[1] * factor)
    filled = clip.filled and clip.rgbs
    canvas = Image.new(
        "RGB", large, clip.rgbs[turned(clip, time)] if filled else clip.background_rgb
    )
    thing = thing_at(clip, time)
    if thing is not None:
        draw_thing(ImageDraw.Draw(canvas), thing, large, False, random.Random(0))
    return canvas.resize(size, Image.Resampling.BOX)
