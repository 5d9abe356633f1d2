"""What the generator says of its pictures, held against their pixels."""

from __future__ import annotations

import io
import math
import random
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageFont

from tests.demo.blobs import Blob, Plain, blobs
from tools.demo import clip, fonts, generator, judging, reading, scene, shapes
from tools.demo.clip import Clip
from tools.demo.generator import Example, random_example
from tools.demo.questions import Turn, about_clip, about_scene
from tools.demo.scene import Scene, Thing

COMPARISON = re.compile(
    r"(?:(Yes|No), )?[Tt]he (.+?) is (?:not )?(?:further |the )?(\w+)(?: of)?(?: the (.+))?\."
)


Scenes = list[tuple[Scene, list[Blob]]]


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    """Scenes of 0 to 9 things, most of few, with what is seen of them."""
    rng, found = random.Random(20), []
    for number in range(60):
        made = scene.random_scene(rng, number % (10 if number < 20 else 5), repeat=0.5, neat=0.5)
        root = math.sqrt(made.aspect)
        picture = scene.draw(made, (round(500 * root), round(500 / root)), Plain(number))
        found.append((made, blobs(picture, made.background_rgb)))
    return found


def seen_as(made: Scene, found: list[Blob]) -> list[tuple[Thing, Blob]]:
    """Return each thing with the piece that is nearest to where it should be."""
    return [
        (thing, min(found, key=lambda blob: math.hypot(blob.x - thing.x, blob.y - thing.y)))
        for thing in made.things
    ]


def test_as_many_pieces_are_seen_as_are_counted(scenes: Scenes) -> None:
    for made, found in scenes:
        turns = [turn for turn in about_scene(made, random.Random(1)) if turn.skill == "count"]
        said = re.fullmatch(r"I see (\d+) shapes?\.", turns[0].answer)
        assert said is not None
        assert int(said[1]) == len(found)
        for turn in turns[1:]:
            number, name = re.fullmatch(r"I see (\d+) (.+)\.", turn.answer).groups()  # type: ignore[union-attr]
            named = [
                blob
                for thing, blob in seen_as(made, found)
                if name.startswith((thing.shape, f"{thing.colour} "))
            ]
            assert int(number) == len(named)


def test_things_are_where_and_in_the_colour_that_is_said(scenes: Scenes) -> None:
    places = 0
    for made, found in scenes:
        for thing, blob in seen_as(made, found):
            near = thing.radius * min(made.aspect, 1.0) * 0.2  # a heart's middle lies elsewhere
            assert abs(blob.x - thing.x) < near / made.aspect + 0.01
            assert abs(blob.y - thing.y) < near + 0.01
            assert np.abs(blob.rgb - thing.rgb).max() <= 1
            if thing.place is None:
                continue
            places += 1
            for word, value, low, high in (
                ("left", blob.x, 0, 0.4), ("right", blob.x, 0.6, 1), ("top", blob.y, 0, 0.4),
                ("bottom", blob.y, 0.6, 1),
            ):  # fmt: skip
                assert (word in thing.place.split()) == (low <= value <= high)
    assert places > 20


def test_comparisons_are_those_of_the_pixels(scenes: Scenes) -> None:
    answers = 0
    for made, found in scenes:
        seen = {}
        for thing, blob in seen_as(made, found):
            seen |= {thing.shape: blob, thing.name: blob}  # a name that is asked about is one's own
        for turn in about_scene(made, random.Random(2)):
            if turn.skill != "compare":
                continue
            answers += 1
            asked = sorted(
                (name for name in seen if re.search(rf"\bthe {name}\b", turn.question.lower())),
                key=turn.question.lower().index,
            )
            said = COMPARISON.fullmatch(turn.answer)
            assert said is not None
            word, one = said[3], seen[said[2]]
            if word == "largest":
                assert one.extent == max(blob.extent for blob in found)
                continue
            other = seen[said[4] or next(name for name in asked if name != said[2])]
            true = {
                "left": one.x < other.x, "right": one.x > other.x, "higher": one.y < other.y,
                "lower": one.y > other.y, "above": one.y < other.y, "below": one.y > other.y,
                "larger": one.extent > other.extent, "smaller": one.extent < other.extent,
            }[word]  # fmt: skip
            assert true == (said[1] != "No")
    assert answers > 40


@pytest.mark.parametrize("name", shapes.NAMES)
@pytest.mark.parametrize("angle", [0.0, 0.4, 2.0])
def test_shapes_have_the_areas_of_their_names(name: str, angle: float) -> None:
    """By geometry: how much of its hull a shape fills, and of the square of half its diameter."""
    a, b, fifth = 0.95, 0.3, math.pi / 5  # a cross's arms, long and wide
    known = {
        "circle": (1, math.pi),
        "square": (1, 2),
        "triangle": (1, math.sqrt(3)),
        "star": (0.42 / math.cos(fifth), 5 * math.sin(fifth) * 0.42 / math.sin(2 * fifth) ** 2),
        "cross": (0.694, (8 * a * b - 4 * b * b) / (a * a + b * b)),
        "heart": (0.92, 180 * math.pi / 16**2),  # the curve's area and width
    }
    thing = Thing(name, "red", (220, 20, 20), 0.5, 0.5, 0.4, angle)
    made = Scene("white", (255, 255, 255), [thing])
    (blob,) = blobs(scene.draw(made, (300, 300), Plain(0)), made.background_rgb)
    solidity, area = blob.features
    nearest = min(
        known, key=lambda other: math.hypot(known[other][0] - solidity, known[other][1] - area)
    )
    assert nearest == name
    assert (solidity, area) == pytest.approx(known[name], abs=0.13)


def moved(made: Clip) -> tuple[float, float]:
    """How far the thing's middle moves from the first to the last frame, right and down."""
    first, last = (
        max(blobs(frame, made.background_rgb), key=lambda blob: len(blob.pixels))
        for frame in clip.draw(made, (160, 120), [0.0, 1.0])
    )
    return last.x - first.x, last.y - first.y


def test_clips_move_where_they_say() -> None:
    rng, asked = random.Random(4), 0
    while asked < 24:
        made = clip.random_clip(rng)
        if made.direction is None:
            continue
        asked += 1
        right, down = moved(made)
        towards = ("left" if right < 0 else "right") if abs(right) > abs(down) else None
        towards = towards or ("up" if down < 0 else "down")
        for turn in about_clip(made, rng):
            if turn.skill == "direction":
                assert re.search(rf"\b{towards}\b", turn.answer)
        made.start, made.end = made.end, made.start
        assert moved(made) == pytest.approx((-right, -down), abs=0.02)


def test_clips_show_the_colours_that_they_say_in_order() -> None:
    rng, asked = random.Random(5), 0
    while asked < 24:
        made = clip.random_clip(rng)
        if not made.colours:
            continue
        asked += 1
        shown: list[tuple[int, ...]] = []
        for frame in clip.draw(made, (80, 80), [step / 29 for step in range(30)]):
            middle = made.thing
            at = (40, 40) if middle is None else (round(middle.x * 80), round(middle.y * 80))
            rgb = frame.getpixel(at)
            if not shown or shown[-1] != rgb:
                shown.append(rgb)  # type: ignore[arg-type]
        assert shown == list(made.rgbs)
        names = dict(zip(made.rgbs, made.colours, strict=True))
        for turn in about_clip(made, rng):
            words = judging.key_words(turn.answer)
            if turn.skill == "distinct colours":
                counted = [str(len(shown))] if turn.answer.startswith("I see") else []
                assert words == [names[rgb] for rgb in shown] + counted
            else:
                both = [name for name in made.colours if name in turn.question.lower().split() or
                        f"{name}?" in turn.question.lower()]  # fmt: skip
                assert words[0] == (both[0] if "first" in turn.answer else both[-1])


@pytest.mark.usefixtures("one_font")
@pytest.mark.parametrize("many", [False, True])
def test_pages_show_every_character_that_is_read(many: bool) -> None:
    rng = random.Random(6)
    for _ in range(12):
        page = reading.random_page(rng, many=many)
        text = "".join(line.text for line in page.lines)
        root = math.sqrt(page.aspect)
        picture = reading.draw(page, (round(700 * root), round(700 / root)), Plain(0))
        found = blobs(picture, page.background_rgb)
        assert len(found) == len(text)  # a letter in capitals, like a digit, is one piece
        width, height = picture.size
        for blob in found:
            low, high = blob.pixels.min(axis=0), blob.pixels.max(axis=0)
            assert min(low) >= 1 or page.turned
            assert (high[0] <= height - 2 and high[1] <= width - 2) or page.turned
        rows = [line.y for line in page.lines]
        assert rows == sorted(rows) or many


@pytest.mark.usefixtures("one_font")
@pytest.mark.parametrize("kind", generator.KINDS)
def test_a_seed_gives_the_same_example_again(kind: str) -> None:
    def looks(example: Example) -> tuple[list[Turn], list[bytes]]:
        return example.turns, [image.tobytes() for image in example.pictures + example.frames]

    first, again, other = (
        looks(random_example(random.Random(seed), kind, 64)) for seed in (31, 31, 32)
    )
    assert first == again
    assert first != other


@pytest.mark.usefixtures("one_font")
def test_pairs_agree_in_something_and_are_asked_about_it() -> None:
    rng, said = random.Random(9), []
    for _ in range(40):
        example = random_example(rng, "pairs", 80, chats=8)
        first, second = (each.things for each in example.marks)
        assert len(first) == len(second) == 1
        behind = [each.background[0] for each in example.marks]
        assert any((
            first[0].shape == second[0].shape,
            first[0].colour == second[0].colour,
            behind[0] == behind[1],
        ))  # fmt: skip
        said += [turn.answer for chat in example.chats for turn in chat]
    assert sum(answer.startswith("Yes, both are") for answer in said) > 20
    assert sum(answer.startswith("No, the first is") for answer in said) > 20


def test_words_and_fonts_that_are_held_out_are_not_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not set(reading.WORDS["held out"]) & set(reading.WORDS["training"])
    rng = random.Random(7)
    shown = {reading.random_text(rng, "word", True) for _ in range(300)}
    assert shown <= set(reading.WORDS["held out"])
    font = ImageFont.load_default(20).path
    assert isinstance(font, io.BytesIO)
    names = ["Lato-Bold", "Roboto-Regular", *(f"{name}-Bold" for name in fonts.HELD_OUT)]
    for name in names:
        (tmp_path / f"{name}.ttf").write_bytes(font.getvalue())
    monkeypatch.setattr(fonts, "FOLDERS", (tmp_path,))
    fonts.faces.cache_clear()
    sides = [{file.stem for file in fonts.faces(held_out)} for held_out in (False, True)]
    fonts.faces.cache_clear()
    assert sides == [{"Lato-Bold", "Roboto-Regular"}, set(names[2:])]
