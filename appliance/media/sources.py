"""Where the messages of a conversation have their media."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# What a part's type is prepared as, and where in it the URL came from.
KINDS = {
    "image_url": ("image", ".url"),
    "video_url": ("video", ".url"),
    "audio_url": ("audio", ".url"),
    "input_audio": ("audio", ".data"),
    "image_embeds": ("image_embeds", ""),
}


@dataclass(slots=True, frozen=True)
class Source:
    """Where a message says that an item is; without `url` it is known by its `uuid`."""

    kind: str
    url: str | None
    uuid: str | None
    param: str
    part: str  # path of the part

    @property
    def modality(self) -> str:
        """Whose placeholders it takes."""
        return modality_of(self.kind)


def modality_of(kind: str) -> str:
    """`image` for a part of type `image`, `image_url` or `image_embeds`, and so on."""
    return KINDS.get(kind, (kind, ""))[0].removesuffix("_embeds")


def sources(messages: Sequence[Mapping[str, Any]]) -> Iterator[Source]:
    """Where the messages say that their items are, in order."""
    for row, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, str) or content is None:
            continue
        for column, part in enumerate(content):
            if part["type"] in KINDS:
                kind, field = KINDS[part["type"]]
                media, type_ = part[part["type"]], part["type"]
                param = part.get("param", f"messages[{row}].content[{column}].{type_}")
                yield Source(
                    kind=kind,
                    url=None if media is None else media["url"],
                    uuid=part.get("uuid"),
                    param=param + field,
                    part=param.rpartition(f".{type_}")[0],
                )
