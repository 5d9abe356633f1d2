"""What an orchestrator and a monitor ask: probes, metrics, version."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from appliance import __version__
from appliance.api.http.responses import json_response
from appliance.errors import ApplianceError
from appliance.metrics import CONTENT_TYPE
from appliance.service import Service


class Probes:
    """Probes answer from the first second on, without a key."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def livez(self, request: Request) -> Response:
        """200 unless the engine has died."""
        dead = self._service.lifecycle.dead is not None
        return self._probe(self._service.lifecycle.obstacle() if dead else None)

    async def readyz(self, request: Request) -> Response:
        """200 while requests are taken."""
        return self._probe(self._service.lifecycle.obstacle())

    async def startupz(self, request: Request) -> Response:
        """200 once the model is loaded; before, its phase and progress."""
        lifecycle = self._service.lifecycle
        started = lifecycle.loaded and lifecycle.dead is None
        return self._probe(None if started else self._service.lifecycle.obstacle())

    async def metrics(self, request: Request) -> Response:
        return Response(self._service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def version(self, request: Request) -> Response:
        service = self._service
        body = {
            "version": __version__,
            "recipe": service.config.recipe,
            "model": service.model,
            "digest": service.digest,
        }
        return json_response(body, {})

    def _probe(self, obstacle: ApplianceError | None) -> Response:
        report = self._service.lifecycle.report()
        if obstacle is None:
            return json_response({"status": "ok", **report}, {})
        return json_response({**obstacle.body(), **report}, obstacle.headers, obstacle.status)
