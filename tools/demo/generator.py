"""Examples for training and evaluation: pictures or a clip, and a chat about them."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

from PIL import Image

from tools.demo import clip as clips
from tools.demo import marks, reading, talk
from tools.demo import scene as scenes
from tools.demo.questions import Turn, about_clip, about_page, about_scene, about_several

# Three pairs of frames, no more than a frame has rows or columns of tokens: then it is one whether
# positions after a clip go on from its last pair (vLLM) or its last row and column (transformers).
FRAMES = 6

# What a mixture is made of, by weight.
KINDS = {
    "look": 20, "count": 14, "place": 18, "read": 22, "read many": 8,
    "images": 12, "video": 12, "talk": 3,
}  # fmt: skip


@dataclass(slots=True)
class Example:
    """A chat about pictures, or about one clip's frames, or about nothing shown."""

    kind: str
    turns: list[Turn]
    pictures: list[Image.Image] = field(default_factory=list)
    frames: list[Image.Image] = field(default_factory=list)
    clip: clips.Clip | None = None
    marks: list[marks.Marks] = field(default_factory=list)  # one a picture


def random_example(
    rng: random.Random, kind: str, size: int, *, held_out: bool = False, most_turns: int = 4
) -> Example:
    """Return an example of `kind`, its pictures of about `size` by `size` pixels."""
    if kind == "talk":
        return Example(kind, talk.random_talk(rng))
    if kind == "video":
        clip = clips.random_clip(rng)
        frames = clips.draw(
            clip, _sides(clip.aspect, size * 0.6), frame_times(FRAMES, rng.random() < 0.5)
        )
        return Example(
            kind, _some(about_clip(clip, rng), rng, most_turns), frames=frames, clip=clip
        )
    if kind == "images":
        shown = _several(rng)
        pictures = [scenes.draw(s, _sides(s.aspect, size), rng) for s in shown]
        seen = [marks.of_scene(s, p.size) for s, p in zip(shown, pictures, strict=True)]
        turns = _some(about_several(shown, rng), rng, most_turns)
        return Example(kind, turns, pictures, marks=seen)
    if kind in ("read", "read many"):
        page = reading.random_page(rng, held_out=held_out, many=kind == "read many")
        picture = reading.draw(page, _sides(page.aspect, size), rng)
        turns = _some(about_page(page, rng), rng, min(2, most_turns))
        return Example(kind, turns, [picture], marks=[marks.of_page(page, picture.size)])
    things = {
        "look": lambda: rng.choice((0, 1, 1, 1, 1, 2, 2, 3)),
        "count": lambda: rng.randint(0, 9),
        "place": lambda: rng.choice((1, 2, 2, 3, 3, 4, 5)),
    }[kind]()
    scene = scenes.random_scene(
        rng,
        things,
        repeat=0.6 if kind == "count" else 0.25,
        neat=0.8 if kind == "place" else 0.3,
    )
    wanted = {"look": ("look",), "count": ("count",), "place": ("place", "compare")}[kind]
    turns = about_scene(scene, rng)
    first = [turn for turn in turns if turn.skill in wanted]
    picture = scenes.draw(scene, _sides(scene.aspect, size), rng)
    turns = _some(turns, rng, most_turns, first)
    return Example(kind, turns, [picture], marks=[marks.of_scene(scene, picture.size)])


def frame_times(frames: int, to_the_end: bool) -> list[float]:
    """Return when frames are taken, evenly: up to the last, or at the starts of equal parts."""
    return [step / (frames - to_the_end) for step in range(frames)]


def _sides(aspect: float, size: float) -> tuple[int, int]:
    root = math.sqrt(aspect)
    return max(8, round(size * root)), max(8, round(size / root))


def _several(rng: random.Random) -> list[scenes.Scene]:
    while True:
        shown = [
            scenes.random_scene(rng, rng.choice((1, 1, 1, 2)))
            for _ in range(rng.choice((2, 2, 2, 3, 4)))
        ]
        if (
            rng.random() < 0.5
        ):  # a pair that agrees in something, or the questions answer themselves
            one, two = shown[0].things, shown[1].things
            if one and two and one[0].colour != shown[1].background:
                two[0].shape = rng.choice((two[0].shape, one[0].shape))
                if scenes.palette.contrast(one[0].rgb, shown[1].background_rgb) > 95:
                    two[0].colour, two[0].rgb = one[0].colour, one[0].rgb
        if all(scene.things for scene in shown):
            return shown


def _some(
    turns: list[Turn], rng: random.Random, most: int, first: list[Turn] | None = None
) -> list[Turn]:
    """Return up to `most` turns in random order; a follow-up only after what it follows."""
    opening = rng.choice(first or turns)
    if opening.skill == "look next":
        opening = next(turn for turn in turns if turn.skill == "look")
    rest = [turn for turn in turns if turn is not opening and turn.skill != "look next"]
    rng.shuffle(rest)
    chosen = [opening, *rest[: rng.randint(0, most - 1)]]
    follow = next((turn for turn in turns if turn.skill == "look next"), None)
    if follow is not None and most > 1:
        for number, turn in enumerate(chosen):
            if turn.answer.startswith("The ") and _leads(turn, turns, follow):
                chosen.insert(number + 1, follow)
                break
    return chosen


def _leads(turn: Turn, turns: list[Turn], follow: Turn) -> bool:
    """Whether `follow` ("And the star?") was made as what comes after `turn`."""
    where = turns.index(follow)
    return where > 0 and turns[where - 1] is turn
