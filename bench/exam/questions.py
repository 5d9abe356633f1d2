"""The stored questions, and what is shown with them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from appliance.media.background import opaque

FOREIGN, DRAWN = (Path(__file__).with_name(name) for name in ("foreign", "drawn"))
TABLE = "questions.json"
TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".mp4": "video/mp4"}
# what a transparent picture may lie on, as answers name it; the first is a server's default
BACKGROUNDS = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "green": (0, 128, 0),
    "blue": (30, 60, 200),
}


@dataclass(slots=True, frozen=True)
class Item:
    """A picture or a clip as a file."""

    modality: str  # "image" or "video"
    data: bytes
    media_type: str


@dataclass(slots=True, frozen=True)
class Question:
    """`background` names the colour that the items lie on, where that decides the answer."""

    skill: str
    items: tuple[Item, ...]
    text: str
    answer: str
    background: str | None = None

    def right(self, said: str) -> bool:
        """The model words each kind of answer in one way alone, so that it is all of it or none."""
        return said.strip() == self.answer


def stored(folders: Iterable[Path] = (FOREIGN, DRAWN)) -> list[Question]:
    """Return the questions of folders; one about a transparent picture once for each background."""
    found = []
    for folder in folders:
        for asked in json.loads((folder / TABLE).read_text(encoding="utf-8")):
            items = tuple(_item(folder / name) for name in asked["files"])
            answers = asked.get("answers") or {None: asked["answer"]}
            for background, answer in answers.items():
                question = Question(asked["skill"], items, asked["question"], answer, background)
                found.append(question)
    return found


def laid(item: Item, background: str) -> Item:
    """Return a picture on one of `BACKGROUNDS`, as a server with that background composites it."""
    held = io.BytesIO()
    with Image.open(io.BytesIO(item.data)) as picture:
        opaque(picture, BACKGROUNDS[background]).save(held, "PNG")
    return Item("image", held.getvalue(), "image/png")


def _item(path: Path) -> Item:
    media_type = TYPES[path.suffix]
    return Item(media_type.partition("/")[0], path.read_bytes(), media_type)
