"""`GET /v1/models` and `GET /v1/models/{id}`."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from appliance.api.http.responses import json_response
from appliance.service import Service


class Models:
    """Tells which model is served here and what it takes."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def list(self, request: Request) -> Response:
        return json_response({"object": "list", "data": [self._service.card()]}, {})

    async def retrieve(self, request: Request) -> Response:
        card = self._service.card()
        self._service.check_model(request.path_params["id"])
        return json_response(card, {})
