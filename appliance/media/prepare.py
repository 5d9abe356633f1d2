"""What a media worker does with the bytes of an item: one preparer a kind of message part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from appliance.errors import media_undecodable
from appliance.media.image import image_size, load_image
from appliance.media.item_bytes import ItemBytes
from appliance.media.limits import AudioPolicy, EmbeddingsPolicy, ImagePolicy, VideoPolicy
from appliance.media.source import modality_of
from engine.models.family import Family

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

PARAM = ""  # of errors raised here: where the item stands in its request is known to the server

Options = Mapping[str, Any]


@dataclass(slots=True, frozen=True)
class MediaSettings:
    """The recipe's limits and choices of every kind, as the workers get them."""

    image: ImagePolicy
    video: VideoPolicy
    audio: AudioPolicy
    embeddings: EmbeddingsPolicy


@dataclass(slots=True, frozen=True)
class MediaTask:
    """An item's bytes; `options` are those of the request that the recipe allows, as JSON."""

    kind: str  # of PREPARERS
    data: ItemBytes
    options: Options = field(default_factory=dict)

    @property
    def modality(self) -> str:
        """Whose placeholders it takes."""
        return modality_of(self.kind)


@dataclass(slots=True, frozen=True)
class Prepared:
    """What the engine needs of an item."""

    tokens: int
    arrays: dict[str, NDArray[np.generic]]


class Preparer(Protocol):
    """Turns items of one kind into arrays, in a worker. All methods raise ApplianceError."""

    def probe(self, data: bytes, options: Options) -> int | None:
        """Placeholders that the item will take, from its header; None if that does not tell."""

    def decode(self, data: bytes, options: Options) -> Any:
        """What `preprocess` takes."""

    def preprocess(self, decoded: Any, options: Options) -> Prepared:
        """Its arrays."""


class ImagePreparer:
    """Pictures."""

    def __init__(self, family: Family, settings: MediaSettings) -> None:
        self._family = family
        self._policy = settings.image

    def probe(self, data: bytes, options: Options) -> int | None:
        return self._tokens(image_size(data, self._policy, PARAM))

    def decode(self, data: bytes, options: Options) -> Image.Image:
        return load_image(data, self._policy, PARAM)

    def preprocess(self, decoded: Image.Image, options: Options) -> Prepared:
        tokens = self._tokens(decoded.size)
        return Prepared(tokens, self._family.preprocess_image(decoded))

    def _tokens(self, size: tuple[int, int]) -> int:
        try:
            return self._family.image_tokens(*size)
        except ValueError:
            raise media_undecodable(
                f"The model cannot take an image of {size[0]} x {size[1]} pixels.", PARAM
            ) from None


PREPARERS = {  # module:class, imported where the recipe takes such items
    "image": "appliance.media.prepare:ImagePreparer",
    "image_embeds": "appliance.media.embeddings:EmbeddingsPreparer",
    "video": "appliance.media.video:VideoPreparer",
    "audio": "appliance.media.audio:AudioPreparer",
}


def preparer_for(kind: str, family: Family, settings: MediaSettings) -> Preparer:
    """The preparer of a kind of PREPARERS."""
    module, name = PREPARERS[kind].split(":")
    preparer: Preparer = getattr(import_module(module), name)(family, settings)
    return preparer
