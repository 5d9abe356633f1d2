"""`POST /v1/embeddings`."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from appliance.api.accept import accept, told
from appliance.api.embeddings.request import EmbeddingRequest
from appliance.api.fields.unbuilt import UNBUILT_EMBEDDING
from appliance.api.http.responses import encode, json_response
from appliance.api.http.tenants import caller_of
from appliance.api.replies import whole
from appliance.api.usage import usage
from appliance.service import Service

if TYPE_CHECKING:
    import numpy

FEW = 4096  # numbers that are written out on the event loop


class Embeddings:
    """Makes vectors of texts, token ids and conversations."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def create(self, request: Request) -> Response:
        """Validate, tokenize, and answer with all vectors at once."""
        service = self._service
        accepted = await accept(request, service, EmbeddingRequest, UNBUILT_EMBEDDING)
        fields, origin = accepted.fields, accepted.origin
        headers = told(request, service, accepted.ignored)
        generation = service.generator()
        settings = generation.vector_settings()
        settings.check_dimensions(fields.dimensions)
        prompts = fields.prompts(caller_of(request.scope).owner)
        answers = await generation.embed(prompts, fields, fields.answer_options(origin))
        deltas = await whole(request, answers)
        spent = usage(answers)
        del spent["completion_tokens"]

        def body() -> bytes:
            data = []
            for delta in deltas:
                assert delta.vector is not None
                vector = settings.finished(delta.vector, fields.dimensions, fields.normalize)
                told = written(vector, fields.encoding_format)
                data.append({"object": "embedding", "index": delta.index, "embedding": told})
            answer = {"object": "list", "data": data, "model": service.model, "usage": spent}
            return encode(answer).encode()

        large = len(deltas) * settings.width > FEW
        return json_response(await service.aside(body) if large else body(), headers)


def written(vector: numpy.ndarray, form: str) -> Any:
    """A vector as JSON has it: numbers, or float32 in little-endian order as base64."""
    if form == "float":
        return vector.tolist()
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
