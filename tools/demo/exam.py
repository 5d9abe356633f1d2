"""What the demo model is asked in its evaluation: chats that were never trained on.

Their pictures are drawn at sizes that the training does not have and are files as users send them,
their writing is in fonts and words that were kept back, and their clips are video files.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import av
import numpy as np
from PIL import Image, ImageDraw

from bench.exam.questions import FOREIGN, Item, stored
from tools.demo import clip as clips
from tools.demo import palette, questions, scene
from tools.demo.clip import Clip
from tools.demo.generator import Example, random_example
from tools.demo.palette import Colour
from tools.demo.questions import Turn, spoken
from tools.demo.scene import Scene

SIZES = (90, 400)  # pixels a side; the training has 110 to 180
# Each skill: its number in the list of what the model can do, and the kind of example that
# opens with a question of it.
SKILLS: dict[str, tuple[int | str, str]] = {
    "look": (1, "look"), "count": (2, "count"), "place": (2, "place"), "compare": (2, "place"),
    "number": (3, "read"), "word": (3, "read"),
    "transparent": (4, ""), "images": (5, "images"), "direction": (6, "video"),
    "first colour": (6, "video"), "distinct colours": (6, "video"), "no image": (7, "talk"),
    "talk": (7, "talk"), "foreign": ("", ""),
}  # fmt: skip


@dataclass(slots=True, frozen=True)
class Chat:
    """Questions in one conversation, the first with the items.

    `background` names the colour of the server that it is for, where that decides the answers.
    """

    skill: str
    items: tuple[Item, ...]
    turns: tuple[Turn, ...]
    background: str | None = None
    text_first: bool = False


def nearest(colour: Colour) -> str:
    """Return the name of the colour's nearest shade."""
    return min(
        palette.NAMES,
        key=lambda name: min(palette.contrast(colour, known) for known in palette.SHADES[name]),
    )


def chats(
    skills: Iterable[str], count: int, seed: int, backgrounds: Sequence[Colour]
) -> list[Chat]:
    """Return `count` chats a skill; of the transparent ones as many for each background.

    Raises FileNotFoundError where there are no fonts to write with.
    """
    made: list[Chat] = []
    for skill in skills:
        rng = random.Random(f"evaluation {seed} {skill}")
        if skill == "foreign":
            made += foreign()
        elif skill == "transparent":
            for _ in range(count):
                made += _transparent(rng, backgrounds)
        else:
            made += [_chat(rng, skill) for _ in range(count)]
    return made


def foreign() -> list[Chat]:
    """Return the questions about pictures that the generator did not draw."""
    return [
        Chat("foreign", q.items, (Turn(q.skill, q.text, q.answer),), q.background)
        for q in stored([FOREIGN])
    ]


def _chat(rng: random.Random, skill: str) -> Chat:
    kind = SKILLS[skill][1]
    while True:
        size = rng.uniform(*SIZES)
        example = random_example(rng, kind, round(size), held_out=True, most_turns=3)
        if example.turns[0].skill == skill:
            break
    turns = example.turns[:1] if rng.random() < 0.75 else example.turns
    return Chat(skill, _items(example, size, rng), tuple(turns), text_first=rng.random() < 0.1)


def _items(example: Example, size: float, rng: random.Random) -> tuple[Item, ...]:
    if example.clip is not None:
        return (Item("video", film(example.clip, size, rng), "video/mp4"),)
    return tuple(_picture(picture, rng) for picture in example.pictures)


def _picture(picture: Image.Image, rng: random.Random) -> Item:
    held = io.BytesIO()
    if rng.random() < 0.5:
        picture.save(held, "PNG")
        return Item("image", held.getvalue(), "image/png")
    picture.save(held, "JPEG", quality=rng.randint(70, 95))
    return Item("image", held.getvalue(), "image/jpeg")


def film(clip: Clip, size: float, rng: random.Random) -> bytes:
    """Return the clip as an MP4 file (H.264) of 24 to 48 frames."""
    count, rate = rng.randint(24, 48), rng.choice((8, 12, 24, 25, 30))
    root = math.sqrt(clip.aspect)
    # its colours are at half resolution, so sides are even
    sides = (2 * round(size * root / 2), 2 * round(size / root / 2))
    return encoded(clips.draw(clip, sides, [step / (count - 1) for step in range(count)]), rate)


def encoded(frames: Sequence[Image.Image], rate: int) -> bytes:
    """Return frames as an MP4 file."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return file.getvalue()


def _transparent(rng: random.Random, backgrounds: Sequence[Colour]) -> list[Chat]:
    """Return one question about one picture for each background that it may be laid on."""
    names = [nearest(background) for background in backgrounds]
    while True:
        shown = scene.random_scene(rng, rng.choice((1, 1, 2)))
        if all(_stands_out(shown, behind) for behind in backgrounds):
            break
    size = rng.uniform(*SIZES)
    root = math.sqrt(shown.aspect)
    picture = transparent_picture(shown, (round(size * root), round(size / root)), rng)
    held = io.BytesIO()
    picture.save(held, "PNG")
    item = Item("image", held.getvalue(), "image/png")
    told = rng.random() < 0.3 and len(shown.things) == 1
    question = spoken(rng, "caption" if told else "background")
    found = []
    for name in names:
        answer = f"The background is {name}."
        if told:
            answer = questions.caption(replace(shown, background=name))
        found.append(Chat("transparent", (item,), (Turn("look", question, answer),), name))
    return found


def _stands_out(shown: Scene, behind: Colour) -> bool:
    return all(
        thing.colour != nearest(behind)
        and palette.contrast(thing.rgb, behind) >= palette.LEAST_CONTRAST
        for thing in shown.things
    )


def transparent_picture(shown: Scene, size: tuple[int, int], rng: random.Random) -> Image.Image:
    """Return the things alone, with smooth edges, over transparent pixels of any hidden colour."""
    canvas = Image.new("RGBA", (size[0] * 4, size[1] * 4))
    pen = ImageDraw.Draw(canvas)
    for thing in shown.things:
        scene.draw_thing(pen, thing, canvas.size, False, rng)
    # averaged with colours weighed by their opacity, or edges would darken
    small = canvas.convert("RGBa").resize(size, Image.Resampling.BOX).convert("RGBA")
    pixels = np.array(small)
    hidden = rng.choice(((0, 0, 0), (255, 255, 255), palette.shade(rng.choice(palette.NAMES), rng)))
    pixels[pixels[..., 3] == 0, :3] = hidden
    return Image.fromarray(pixels)
