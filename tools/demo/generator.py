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

# What a mixture is made of, by weight. "pairs" are two pictures of one shape each that agree in
# something, "colours" clips of three or four colours: what is hard is rare among the others.
KINDS = {
    "look": 18, "count": 14, "place": 14, "read": 16, "images": 16, "pairs": 5, "video": 18,
    "colours": 10, "talk": 2,
}  # fmt: skip
HARDER = ("pairs", "colours")  # kinds that say nothing which the others do not
TO_THE_END = 0.2  # of the clips have their last frame taken, which no request has


@dataclass(slots=True)
class Example:
    """Pictures, or one clip's frames, or nothing shown, and chats about them.

    Each of `chats` stands for itself: none knows what another asked.
    """

    kind: str
    chats: list[list[Turn]]
    pictures: list[Image.Image] = field(default_factory=list)
    frames: list[Image.Image] = field(default_factory=list)
    clip: clips.Clip | None = None
    marks: list[marks.Marks] = field(default_factory=list)  # one a picture or pair of frames

    @property
    def turns(self) -> list[Turn]:
        """The first chat."""
        return self.chats[0]


def random_example(
    rng: random.Random,
    kind: str,
    size: int,
    *,
    held_out: bool = False,
    chats: int = 1,
    most_turns: int = 4,
) -> Example:
    """Return an example of `kind`, its pictures of about `size` by `size` pixels, with up to
    `chats` chats."""
    if kind == "talk":
        return Example(kind, [talk.random_talk(rng) for _ in range(chats)])
    if kind in ("video", "colours"):
        clip = clips.random_clip(rng)
        # those of four are half as many as those of three, so of these only every second is taken
        while kind == "colours" and len(clip.colours) < rng.choice((3, 4)):
            clip = clips.random_clip(rng)
        to_the_end = rng.random() < TO_THE_END
        sides, times = _sides(clip.aspect, size * 0.6), frame_times(FRAMES, to_the_end)
        turns = [turn for _ in range(_rounds(chats)) for turn in about_clip(clip, rng)]
        held = _chats(turns, rng, chats, most_turns)
        frames = clips.draw(clip, sides, times)
        if rng.random() < 0.4:
            frames = [scenes.as_jpeg(frame, rng) for frame in frames]
        return Example("video", held, [], frames, clip, marks.of_clip(clip, sides, times))
    if kind in ("images", "pairs"):
        shown = _several(rng)
        while kind == "pairs" and not _agree(shown):
            shown = _several(rng)
        pictures = [scenes.draw(s, _sides(s.aspect, size), rng) for s in shown]
        seen = [marks.of_scene(s, p.size) for s, p in zip(shown, pictures, strict=True)]
        turns = [turn for _ in range(_rounds(chats)) for turn in about_several(shown, rng)]
        return Example("images", _chats(turns, rng, chats, most_turns), pictures, marks=seen)
    if kind in ("read", "read many"):
        page = reading.random_page(rng, held_out=held_out, many=kind == "read many")
        picture = reading.draw(page, _sides(page.aspect, size), rng)
        held = []
        if kind == "read":  # the others are only looked at
            held = _chats(about_page(page, rng), rng, chats, min(2, most_turns))
        return Example(kind, held, [picture], marks=[marks.of_page(page, picture.size)])
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
    turns = [turn for _ in range(_rounds(chats)) for turn in about_scene(scene, rng)]
    first = [turn for turn in turns if turn.skill in wanted]
    picture = scenes.draw(scene, _sides(scene.aspect, size), rng)
    held = _chats(turns, rng, chats, most_turns, first)
    return Example(kind, held, [picture], marks=[marks.of_scene(scene, picture.size)])


def _rounds(chats: int) -> int:
    """Return how often to ask everything, so that many chats find questions enough."""
    return 1 if chats < 5 else 2


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


def _agree(shown: list[scenes.Scene]) -> bool:
    """Whether these are two pictures of one shape each that have something in common."""
    if len(shown) != 2 or any(len(scene.things) != 1 for scene in shown):
        return False
    one, two = (scene.things[0] for scene in shown)
    return (
        one.shape == two.shape
        or one.colour == two.colour
        or shown[0].background == shown[1].background
    )


def _chats(
    turns: list[Turn], rng: random.Random, count: int, most: int, first: list[Turn] | None = None
) -> list[list[Turn]]:
    """Return up to `count` chats that open with different questions, the first of `first`; of
    several chats most have one turn."""
    opening = rng.choice(first or turns)
    if opening.skill == "look next":
        opening = next(turn for turn in turns if turn.skill == "look")
    held = [_some(opening, turns, rng, most)]
    asked = {opening.question}
    others = [turn for turn in turns if turn.skill != "look next"]
    rng.shuffle(others)
    others.sort(key=lambda turn: turn.answer.startswith("The background is"))  # soon known
    for turn in others:
        if len(held) >= count:
            break
        if turn.question not in asked:
            held.append(_some(turn, turns, rng, most if rng.random() < 0.15 else 1))
            asked.add(turn.question)
    return held


def _some(opening: Turn, turns: list[Turn], rng: random.Random, most: int) -> list[Turn]:
    """Return up to `most` turns, `opening` and others in random order; a follow-up only after what
    it follows."""
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
