"""What lies where in a picture or clip: dense labels by which the tower learns to see.

A chat tells the tower little about a picture, these tell it something about every patch: which
shape or character covers it, in which colour, the place of the character in its text, where the
thing moves, and whether its middle lies there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from tools.demo import clip as clips
from tools.demo import palette, reading, shapes
from tools.demo.clip import Clip
from tools.demo.reading import Page
from tools.demo.scene import Scene, Thing

SHAPES = {name: number + 1 for number, name in enumerate(shapes.NAMES)}
COLOURS = {name: number + 1 for number, name in enumerate(palette.NAMES)}
CHARACTERS = {name: number + 1 for number, name in enumerate("0123456789" + reading.LETTERS)}
MOTIONS = {name: number + 1 for number, name in enumerate(clips.DIRECTIONS)}
LONGEST = 6  # characters of a text, things side by side
PLACES = (
    "top left", "top", "top right", "left", "centre", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip
SIZES = (0.1, 0.135, 0.18, 0.24, 0.32)  # radii at which the next size begins
UNLEARNED = -100
# classes of each label of a patch; 0 is "none". A patch covers two frames, in a clip of different
# times: "later" are the colours in the second one.
CLASSES = {
    "shape": len(SHAPES) + 1,
    "colour": len(COLOURS) + 1,
    "later colour": len(COLOURS) + 1,
    "character": len(CHARACTERS) + 1,
    "ordinal": LONGEST + 1,
    "motion": len(MOTIONS) + 1,
    "level": LONGEST + 1,
    "place": len(PLACES) + 1,
    "size": len(SIZES) + 2,
    "middle": 2,
    "background": len(COLOURS) + 1,
    "later background": len(COLOURS) + 1,
}
# What is said with one token each, as it stands in an answer.
WORDS = (
    *(f" {name}" for name in (*SHAPES, *COLOURS, *MOTIONS, "top", "bottom", "centre")),
    *CHARACTERS,
)
COUNTED = 1 + len(SHAPES) + len(COLOURS)  # all things, those of each shape, of each colour
FINE = 4  # points along a patch's side at which is looked what covers it
LEAST_COVER = 3  # of the 16 points


class Label(NamedTuple):
    """The classes of one thing or character. `ordinal` and `level` count from the left and from
    the top."""

    shape: int = 0
    colour: int = 0
    later_colour: int = 0
    character: int = 0
    ordinal: int = 0
    motion: int = 0
    level: int = 0
    place: int = 0
    size: int = 0


@dataclass(slots=True)
class Marks:
    """`areas` numbers the things of a picture, mode L, 0 for none; `things` are their classes,
    `middles` where they are, as fractions of the sides. `background` is named in both frames;
    `nth` are how many colours a clip had shown by each of them, `before` the class of the colour
    in the frame before both, 0 for the first pair."""

    background: tuple[str, str]
    areas: Image.Image
    things: list[Label] = field(default_factory=list)
    middles: list[tuple[float, float]] = field(default_factory=list)
    nth: tuple[int, int] | None = None
    before: int = UNLEARNED


def of_scene(scene: Scene, size: tuple[int, int]) -> Marks:
    """Return the marks of a scene drawn at `size` (width, height)."""
    marks = Marks((scene.background,) * 2, Image.new("L", size))
    pen = ImageDraw.Draw(marks.areas)
    for thing in scene.things:
        colour = COLOURS[thing.colour]
        label = Label(SHAPES[thing.shape], colour, colour)
        marks.things.append(label._replace(**_place_of(thing, scene.things)))
        _cover(marks, pen, thing)
    return marks


def _place_of(thing: Thing, among: Sequence[Thing]) -> dict[str, int]:
    """Return the labels of where a thing lies, how large it is, and the how many of all it is."""
    column, row = (int(side > 0.39) + int(side > 0.61) for side in (thing.x, thing.y))
    return {
        "ordinal": min(LONGEST, 1 + sum(other.x < thing.x for other in among)),
        "level": min(LONGEST, 1 + sum(other.y < thing.y for other in among)),
        "place": 1 + 3 * row + column,
        "size": 1 + sum(thing.radius >= radius for radius in SIZES),
    }


def _cover(marks: Marks, pen: ImageDraw.ImageDraw, thing: Thing) -> None:
    """Mark where the newest of the things lies."""
    width, height = marks.areas.size
    radius, x, y = thing.radius * min(width, height), thing.x * width, thing.y * height
    pen.polygon(shapes.placed(thing.shape, x, y, radius, thing.angle), fill=len(marks.things))
    marks.middles.append((thing.x, thing.y))


def of_page(page: Page, size: tuple[int, int]) -> Marks:
    """Return the marks of a page drawn at `size`: one for each character's box."""
    marks = Marks((page.background,) * 2, Image.new("L", size))
    pen = ImageDraw.Draw(marks.areas)
    colour = COLOURS[page.colour]
    for line in page.lines:
        font, (x, y) = reading.placed(page, line, size)
        for at, character in enumerate(line.text):
            left, right = font.getlength(line.text[:at]), font.getlength(line.text[: at + 1])
            _, top, _, bottom = font.getbbox(character)
            box = (x + left, y + top, x + right, y + bottom)
            ordinal = min(at + 1, LONGEST)
            marks.things.append(Label(0, colour, colour, CHARACTERS[character], ordinal))
            pen.rectangle(box, fill=len(marks.things))
            marks.middles.append(((box[0] + box[2]) / 2 / size[0], (box[1] + box[3]) / 2 / size[1]))
    if page.turned:
        marks.areas = marks.areas.rotate(page.turned)
    return marks


def of_clip(clip: Clip, size: tuple[int, int], times: Sequence[float]) -> list[Marks]:
    """Return the marks of every pair of a clip's frames, drawn at `size` at `times`."""
    made = []
    before = 0
    for first, second in zip(times[::2], times[1::2], strict=True):
        colours = [clips.colour_at(clip, time) for time in (first, second)]
        behind = (colours[0], colours[1]) if clip.filled else (clip.background,) * 2
        marks = Marks(behind, Image.new("L", size))
        marks.nth = (clips.turned(clip, first) + 1, clips.turned(clip, second) + 1)
        marks.before, before = before, COLOURS[colours[1]]
        thing = clips.thing_at(clip, (first + second) / 2)
        if thing is not None:
            colour, later = (COLOURS[name] for name in colours)
            label = Label(SHAPES[thing.shape], colour, later)
            if clip.direction:
                where = dict.fromkeys(("ordinal", "level", "place", "size"), UNLEARNED)
                label = label._replace(motion=MOTIONS[clip.direction], **where)
            else:
                label = label._replace(**_place_of(thing, [thing]))
            marks.things.append(label)
            _cover(marks, ImageDraw.Draw(marks.areas), thing)
        made.append(marks)
    return made


def counts(marks: Marks) -> list[int]:
    """Return how many shapes a scene has: in all, of each shape, of each colour."""
    shapes_of, colours_of = [[thing[at] for thing in marks.things] for at in (0, 1)]
    return [
        len(marks.things),
        *(shapes_of.count(shape) for shape in SHAPES.values()),
        *(colours_of.count(colour) for colour in COLOURS.values()),
    ]


class Found(NamedTuple):
    """What a word names in what is shown: how many things, and if it is one, the class of its
    other name (a colour, or a shape behind them) and its place; and in which of several pictures,
    or as which of a clip's colours, 0 for none and ELSEWHERE for several. The other name of a
    clip's colour is the one that follows it, 0 behind the last. Classes of FOUND."""

    count: int
    other: int = UNLEARNED
    place: int = UNLEARNED
    at: int = UNLEARNED


MOST_COUNTED = 10
ELSEWHERE = 5
FOUND = (MOST_COUNTED, 1 + len(COLOURS) + len(SHAPES), 1 + len(PLACES), ELSEWHERE + 1)


def found(shown: Sequence[Marks], turns: Sequence[int] | None = None) -> dict[str, Found]:
    """Return what every colour, every shape and both together ("red star"), as they stand in a
    sentence, name in pictures; `turns` are the colours that a clip shows, one after another."""
    if turns is not None:
        following = dict(zip(turns, (*turns[1:], 0), strict=True))
        return {
            name: Found(
                UNLEARNED,
                following.get(number, UNLEARNED),
                at=turns.index(number) + 1 if number in turns else 0,
            )
            for name, number in COLOURS.items()
        }
    things = [(at, thing) for at, each in enumerate(shown, 1) for thing in each.things]
    told: dict[str, Found] = {}
    for colour, colours in (("", None), *COLOURS.items()):
        for shape, shapes_ in (("", None), *SHAPES.items()):
            hits = [
                (at, thing)
                for at, thing in things
                if colours in (None, thing.colour) and shapes_ in (None, thing.shape)
            ]
            told[f"{colour} {shape}".strip()] = _found(hits, colours, shapes_)
    del told[""]
    return told


def _found(hits: list[tuple[int, Label]], colour: int | None, shape: int | None) -> Found:
    pictures = {at for at, _ in hits}
    at = 0 if not pictures else min(pictures) if len(pictures) == 1 else ELSEWHERE
    count = min(len(hits), MOST_COUNTED - 1)
    if len(hits) != 1:
        return Found(count, at=at)
    thing = hits[0][1]
    other = UNLEARNED
    if shape is None:
        other = len(COLOURS) + thing.shape
    elif colour is None:
        other = thing.colour
    return Found(count, other, thing.place, at)


def of_patches(marks: Marks, rows: int, columns: int) -> np.ndarray:
    """Return the labels `[rows, columns, classes]` in the order of CLASSES."""
    fine = marks.areas.resize((columns * FINE, rows * FINE), Image.Resampling.NEAREST)
    points = np.asarray(fine).reshape(rows, FINE, columns, FINE)
    labels = np.zeros((rows, columns, len(CLASSES)), dtype=np.int64)
    most = np.full((rows, columns), LEAST_COVER - 1)
    for number, thing in enumerate(marks.things, 1):
        cover = (points == number).sum(axis=(1, 3))
        labels[cover > most, : len(thing)] = thing
        most = np.maximum(most, cover)
    for row, column in _places(marks, rows, columns):
        labels[row, column, len(Label._fields)] = 1
    labels[..., -2:] = [COLOURS[name] for name in marks.background]
    return labels


def of_tokens(marks: Marks, rows: int, columns: int) -> np.ndarray:
    """Return how many shapes have their middle in each token `[rows, columns, COUNTED]`, as
    `counts` orders them."""
    found = np.zeros((rows, columns, COUNTED), dtype=np.float32)
    for thing, (row, column) in zip(marks.things, _places(marks, rows, columns), strict=True):
        if thing.shape:
            found[row, column, [0, thing.shape, len(SHAPES) + thing.colour]] += 1
    return found


def _places(marks: Marks, rows: int, columns: int) -> list[tuple[int, int]]:
    return [
        (min(rows - 1, int(y * rows)), min(columns - 1, int(x * columns))) for x, y in marks.middles
    ]


def words_of(labels: np.ndarray) -> np.ndarray:
    """Return which of WORDS name something in each token, from its patches' labels
    `[tokens, patches, classes]`."""
    named = list(CLASSES)
    columns: dict[str, np.ndarray] = dict.fromkeys(WORDS, np.zeros(len(labels), dtype=bool))
    for names, known in (
        (("shape",), {f" {name}": [number] for name, number in SHAPES.items()}),
        (
            ("colour", "later colour", "background", "later background"),
            {f" {name}": [number] for name, number in COLOURS.items()},
        ),
        (("motion",), {f" {name}": [number] for name, number in MOTIONS.items()}),
        (("place",), _PLACE_WORDS),
        (("character",), {name: [number] for name, number in CHARACTERS.items()}),
    ):
        at = labels[..., [named.index(name) for name in names]]
        for word, numbers in known.items():
            columns[word] = columns[word] | np.isin(at, numbers).any(axis=(1, 2))
    return np.stack([columns[word] for word in WORDS], axis=-1).astype(np.float32)


def spelled(labels: np.ndarray) -> np.ndarray:
    """Return the characters `[tokens, 2]` in each token, from its patches' labels
    `[tokens, patches, classes]`: that at an odd place of its text and that at an even one, 0 where
    there is none and UNLEARNED where there are several.

    A token may show two characters, which stand side by side: so they are told apart.
    """
    named = list(CLASSES)
    characters, ordinals = (labels[..., named.index(name)] for name in ("character", "ordinal"))
    found = np.zeros((len(labels), 2), dtype=np.int64)
    for side in (0, 1):
        of_side = (characters > 0) & (ordinals % 2 == 1 - side)
        most = np.where(of_side, ordinals, 0).max(axis=-1)
        least = np.where(of_side, ordinals, LONGEST + 1).min(axis=-1)
        found[:, side] = np.where(of_side, characters, 0).max(axis=-1)
        found[(most != least) & of_side.any(axis=-1), side] = UNLEARNED
    return found


_PLACE_WORDS = {
    f" {word}": [at for at, place in enumerate(PLACES, 1) if word in place.split()]
    for word in ("top", "bottom", "left", "right", "centre")
}
