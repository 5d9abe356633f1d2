"""The labels by which the tower learns to see, held against the pixels that they are about."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from tests.demo.blobs import Plain
from tools.demo import checkpoint, clip, encoding, marks, reading, scene
from tools.demo.marks import CHARACTERS, CLASSES, COLOURS, Label

ROWS, COLUMNS = 20, 20  # patches
NAMED = list(CLASSES)


def labels_of(each: marks.Marks) -> dict[str, np.ndarray]:
    labels = marks.of_patches(each, ROWS, COLUMNS)
    return {name: labels[..., at] for at, name in enumerate(CLASSES)}


def shades(pixels: np.ndarray) -> np.ndarray:
    """The colour in the middle of every patch."""
    height, width, _ = pixels.shape
    return pixels[height // ROWS // 2 :: height // ROWS, width // COLUMNS // 2 :: width // COLUMNS]


def test_colours_of_a_scene_lie_where_they_are_drawn() -> None:
    rng = random.Random(1)
    for number in range(12):
        made = scene.random_scene(rng, 1 + number % 4)
        picture = scene.draw(made, (400, 400), Plain(number))
        labels = labels_of(marks.of_scene(made, (400, 400)))
        found = shades(np.asarray(picture))
        named = {COLOURS[thing.colour]: thing.rgb for thing in made.things}
        behind = np.array(made.background_rgb)
        covered = (np.abs(found - behind) > 2).any(axis=-1)
        agree = covered == (labels["colour"] > 0)
        assert agree.mean() > 0.9  # edges fall one way or the other
        assert (covered == (labels["colour"].T > 0)).mean() < agree.mean()
        assert (labels["background"] == COLOURS[made.background]).all()
        assert (labels["later colour"] == labels["colour"]).all()
        for number_of_colour, rgb in named.items():
            here = (labels["colour"] == number_of_colour) & covered
            alike = [t.rgb for t in made.things if COLOURS[t.colour] == number_of_colour]
            if len(alike) == 1 and here.any():
                assert np.median(np.abs(found[here] - np.array(rgb)).max(axis=-1)) < 10


def test_pairs_of_a_clip_are_labelled_with_both_of_their_colours_and_the_motion() -> None:
    rng, kinds = random.Random(2), set()
    for _ in range(60):
        made = clip.random_clip(rng)
        times = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
        frames = [np.asarray(frame) for frame in clip.draw(made, (200, 200), times)]
        told = marks.of_clip(made, (200, 200), times)
        assert len(told) == 3
        named = dict(zip(made.colours, made.rgbs, strict=True))
        if made.thing is not None and not named:
            named = {made.thing.colour: made.thing.rgb}
        numbers = {COLOURS[name]: rgb for name, rgb in named.items()}
        for pair, each in enumerate(told):
            labels = labels_of(each)
            kinds.add((made.filled, made.direction))
            first, second = ("background", "later background") if made.filled else NAMED[1:3]
            x, y = (0.5, 0.5) if made.filled else each.middles[0]
            row, column = int(y * ROWS), int(x * COLUMNS)
            for frame, name in enumerate((first, second), 2 * pair):
                if made.direction:  # its middle lies between the frames
                    break
                seen = frames[frame][int(y * 200), int(x * 200)].astype(int)
                assert np.abs(seen - numbers[int(labels[name][row, column])]).max() <= 2
            moving = labels["motion"][labels["shape"] > 0]
            expected = marks.MOTIONS[made.direction] if made.direction else 0
            assert (moving == expected).all()
    assert len(kinds) == 6  # filled, still, and each direction


def test_things_are_numbered_placed_and_measured_as_they_are_asked_about() -> None:
    rng, placed = random.Random(5), 0
    for number in range(40):
        made = scene.random_scene(rng, 1 + number % 5, neat=0.7)
        told = marks.of_scene(made, (300, 300)).things
        for along, name in (("x", "ordinal"), ("y", "level")):
            order = sorted(range(len(told)), key=lambda at: getattr(made.things[at], along))
            numbers = [getattr(told[at], name) for at in order]
            assert numbers == sorted(numbers)
            if len({getattr(thing, along) for thing in made.things}) == len(told):
                assert numbers == list(range(1, len(told) + 1))
        for thing, label in zip(made.things, told, strict=True):
            if thing.place:
                placed += 1
                assert marks.PLACES[label.place - 1] == thing.place
        for one, label in zip(made.things, told, strict=True):
            for two, other in zip(made.things, told, strict=True):
                if one.radius > 1.45 * two.radius:  # as far apart as the question needs, and more
                    assert label.size > other.size or label.size == len(marks.SIZES) + 1
    assert placed > 20


@pytest.mark.usefixtures("one_font")
def test_characters_are_numbered_in_the_order_of_their_text() -> None:
    rng = random.Random(3)
    for _ in range(12):
        page = reading.random_page(rng)
        page.turned = 0.0
        labels = labels_of(marks.of_page(page, (400, 400)))
        text = page.lines[0].text
        by_column: dict[int, int] = {}
        for _row, column in np.argwhere(labels["ordinal"]):
            by_column.setdefault(int(column), int(labels["ordinal"][_row, column]))
        numbers = [by_column[column] for column in sorted(by_column)]
        assert numbers == sorted(numbers)
        assert set(numbers) <= set(range(1, len(text) + 1))
        for at, character in enumerate(text, 1):
            seen = labels["character"][labels["ordinal"] == at]
            assert (seen == CHARACTERS[character]).all()


def test_tokens_count_the_middles_that_lie_in_them() -> None:
    rng = random.Random(4)
    for number in range(20):
        made = scene.random_scene(rng, number % 10)
        each = marks.of_scene(made, (300, 300))
        of_tokens = marks.of_tokens(each, 5, 5)
        assert of_tokens.sum(axis=(0, 1)).tolist() == marks.counts(each)
        for thing in made.things:
            assert of_tokens[int(thing.y * 5), int(thing.x * 5), 0] >= 1


def test_words_name_all_that_lies_in_a_token() -> None:
    labels = np.zeros((2, 4, len(CLASSES)), dtype=np.int64)
    labels[..., -2:] = COLOURS["white"]
    parts = len(Label._fields)
    labels[0, 1, :parts] = Label(marks.SHAPES["star"], COLOURS["red"], COLOURS["blue"], motion=1)
    labels[0, 3, NAMED.index("place")] = 1 + marks.PLACES.index("bottom right")
    labels[0, 2, :parts] = Label(0, COLOURS["black"], COLOURS["black"], CHARACTERS["7"], 2)
    found = [
        {word for word, is_named in zip(marks.WORDS, row, strict=True) if is_named}
        for row in marks.words_of(labels)
    ]
    assert found == [
        {
            " star",
            " red",
            " blue",
            " black",
            " white",
            " left",
            "7",
            " bottom",
            " right",
        },
        {" white"},
    ]


def test_characters_side_by_side_are_told_apart() -> None:
    characters = [marks.CHARACTERS[name] for name in "CAT7"]
    labels = np.zeros((4, 4, len(CLASSES)), dtype=np.int64)
    character, ordinal = (list(CLASSES).index(name) for name in ("character", "ordinal"))
    for token, places in enumerate(([1, 1, 2, 2], [2, 0, 2, 0], [0, 0, 0, 0], [1, 2, 3, 0])):
        for patch, place in enumerate(places):
            if place:
                labels[token, patch, [character, ordinal]] = characters[place - 1], place
    c, a, none = characters[0], characters[1], marks.UNLEARNED
    assert marks.spelled(labels).tolist() == [[c, a], [0, a], [0, 0], [none, a]]
    swapped = labels[:, ::-1]
    assert marks.spelled(swapped).tolist() == marks.spelled(labels).tolist()


def test_the_first_layer_notices_changes_and_reads_pictures_as_before() -> None:
    torch.manual_seed(1)
    weight = torch.randn(32, 3, 2, 14, 14)
    changed = weight.clone()
    checkpoint.notice_changes(changed)

    def answers(weights: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        return torch.einsum("cktij,nktij->nc", weights, patches)

    still = torch.randn(5, 3, 1, 14, 14).expand(-1, -1, 2, -1, -1)
    torch.testing.assert_close(answers(changed, still), answers(weight, still), rtol=0, atol=1e-3)
    moving = torch.zeros(1, 3, 2, 14, 14)
    moving[:, :, 1] = 1
    assert (answers(changed, moving) - answers(weight, moving)).abs().mean() > 1


def test_a_token_has_the_labels_of_its_own_patches() -> None:
    made = scene.Scene(
        "white", (255, 255, 255), [scene.Thing("square", "red", (220, 0, 0), 0.2, 0.8, 0.1)]
    )
    each = marks.of_scene(made, (140, 140))
    patches = encoding._marked(each, (1, 10, 10)).reshape(5, 5, 4, -1)
    shown = [tuple(at) for at in np.argwhere(patches[..., 0].any(axis=-1))]
    assert (4, 1) in shown or (3, 0) in shown
    assert all(row >= 3 and column <= 1 for row, column in shown)
