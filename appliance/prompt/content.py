"""The content of a message in the shapes that templates take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from appliance.prompt.sentinels import Marks
from engine.models.family import Family

Part = Mapping[str, Any]  # {"type": "text", "text": …}, or {"type": modality}
Shape = Literal["parts", "string", "one_part"]


def text_part(text: str) -> dict[str, str]:
    """A part that is text."""
    return {"type": "text", "text": text}


def merged(parts: Sequence[Part], joint: str) -> list[Part]:
    """The parts with neighbouring texts made one, `joint` between them.

    Templates are written for one text: some read the first alone.
    """
    found: list[Part] = []
    texts: list[str] = []
    for part in parts:
        if part["type"] == "text":
            texts.append(part["text"])
            continue
        if texts:
            found.append(text_part(joint.join(texts)))
            texts = []
        found.append(part)
    return [*found, text_part(joint.join(texts))] if texts else found


def spelled(
    parts: Sequence[Part], family: Family, marks: Marks, write: Callable[[str], str] = str
) -> str:
    """Parts as one text, with what stands for an item of its family where there is one."""
    return "".join(
        write(part["text"])
        if part["type"] == "text"
        else marks.trusted(family.item_text(part["type"]))
        for part in parts
    )
