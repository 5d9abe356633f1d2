"""Where a request has a media item: what its parser leaves for the intake."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True, frozen=True)
class EmbeddingFields:
    """Embeddings as they were sent: each tensor as text, or a grid as a list of numbers."""

    fields: Mapping[str, Any]

    def encoded(self) -> bytes:
        """The form in which a worker gets them."""
        return json.dumps(self.fields).encode()


@dataclass(slots=True, frozen=True)
class Source:
    """An item of a request; without `content` it is known by its `uuid` alone.

    `kind` is what it is prepared as (`appliance.media.prepare.PREPARERS`). `part` is the JSON path
    of the part of a message that it is in, `field` that of the field in it, and `inside` leads from
    there to the content.
    """

    kind: str
    content: str | bytes | EmbeddingFields | None  # a URL, of whatever scheme, or what was sent
    part: str
    field: str
    inside: str = ""
    uuid: str | None = None

    @property
    def param(self) -> str:
        """JSON path of the content."""
        return self.field + self.inside

    @property
    def modality(self) -> str:
        """Whose placeholders it takes."""
        return modality_of(self.kind)


def modality_of(kind: str) -> str:
    """`image` for items of kind `image` and `image_embeds`, and so on."""
    return kind.removesuffix("_embeds")
