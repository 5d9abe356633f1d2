"""`GET /v1/models` and `GET /v1/models/{id}`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from appliance.api.http.paths import single
from appliance.api.http.responses import encode, json_response
from appliance.config.schema import MediaConfig
from appliance.media.image_formats import decoded
from appliance.service import Service

if TYPE_CHECKING:
    from appliance.generation.vectors import VectorSettings  # imports numpy

# The limits of each modality that a client can heed before it sends anything.
LIMITS = {
    "image": ("limit", "max_bytes", "max_pixels", "formats"),
    "video": ("limit", "max_bytes", "max_seconds", "max_pixels"),
    "audio": ("limit", "max_bytes", "max_seconds"),
}


class SglangCard(TypedDict):
    """What SGLang's clients ask first."""

    model_path: str
    tokenizer_path: str
    is_generation: bool
    preferred_sampling_params: dict[str, Any] | None
    has_image_understanding: bool
    has_audio_understanding: bool


class Models:
    """Tells which model is served here and what it takes."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def list(self, request: Request) -> Response:
        names = dict.fromkeys([self._service.model, *self._service.config.server.aliases])
        card = self._card()
        cards = [{**card, "id": name} for name in names]
        return json_response({"object": "list", "data": cards}, {})

    async def retrieve(self, request: Request) -> Response:
        card = self._card()
        asked, own = request.path_params["id"], self._service.model
        if single(asked).strip("/") != single(own).strip("/"):
            self._service.check_model(asked)
            card["id"] = asked
        return json_response(card, {})

    async def sglang(self, request: Request) -> Response:
        """SGLang's card; a path would say where the weights lie here, so the name stands for it."""
        service = self._service
        inputs = service.loaded().modalities
        card: SglangCard = {
            "model_path": service.model,
            "tokenizer_path": service.model,
            "is_generation": True,
            "preferred_sampling_params": None,
            "has_image_understanding": "image" in inputs,
            "has_audio_understanding": "audio" in inputs,
        }
        return json_response(encode(card).encode(), {})

    def _card(self) -> dict[str, Any]:
        """The model's entry. Raises ApplianceError 503 before it is loaded."""
        service = self._service
        generation = service.loaded()
        inputs, vectors = generation.modalities, generation.vectors
        outputs = ["text"] if generation.generates else []
        if vectors is not None:
            outputs.append("embedding")
        if generation.scores is not None:
            outputs.append("score")
        return {
            "id": service.model,
            "object": "model",
            "created": service.created,
            "owned_by": "appliance",
            "max_model_len": generation.limits.max_len,
            "modalities": {"input": ["text", *inputs], "output": outputs},
            **({} if vectors is None else {"embeddings": vector_card(vectors)}),
            "limits": {
                "max_body_bytes": service.config.server.max_body_bytes,
                "max_prompt_tokens": generation.limits.longest - int(generation.generates),
                **media_limits(service.config.media, inputs),
            },
        }


def vector_card(vectors: VectorSettings) -> dict[str, Any]:
    """What vectors are like, and to which lengths a request may cut them; null is any."""
    lengths = vectors.lengths
    return {
        "width": vectors.width,
        "dimensions": None if lengths is None else sorted({*lengths, vectors.width}),
        "pooling": vectors.pooling,
        "normalize": vectors.normalize,
    }


def media_limits(media: MediaConfig, modalities: tuple[str, ...]) -> dict[str, Any]:
    """What may be sent of each modality, and of embeddings where they are taken."""
    limits: dict[str, Any] = {
        modality: {key: getattr(getattr(media, modality), key) for key in LIMITS[modality]}
        for modality in modalities
    }
    if "image" in limits:
        limits["image"]["formats"] = list(decoded(media.image.formats))
    if media.embeddings.accept:
        limits["embeddings"] = {"max_bytes": media.embeddings.max_bytes}
    return limits
