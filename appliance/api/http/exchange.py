"""One request and its answer seen from outside: id, log line, count, and the net under faults."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from appliance.api.http.faults import fault_response
from appliance.errors import internal
from appliance.generation.stages import Stages
from appliance.service import Service
from appliance.tracing import Tracing

logger = logging.getLogger("appliance.requests")

REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
QUIET_PATHS = frozenset({"/livez", "/readyz", "/startupz", "/health", "/ping", "/metrics"})
CLIENT_GONE = 499  # nginx's number for a client that closed the connection before the answer


def request_id(scope: Scope) -> str:
    """The client's X-Request-Id if it is a plain token, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and REQUEST_ID.fullmatch(value):
            return str(value, "ascii")
    return new_id()


def new_id() -> str:
    """An id for a request that brought none."""
    return f"req-{secrets.token_hex(12)}"


def note(scope: Scope, **fields: Any) -> None:
    """Add fields to the request's log line."""
    scope["appliance.notes"].update(fields)


class Exchange:
    """The outermost ASGI middleware."""

    def __init__(self, app: ASGIApp, service: Service, routes: Sequence[Route]) -> None:
        self._app = app
        self._metrics = service.metrics
        self._lifecycle = service.lifecycle
        self._routes = routes
        self._secrecy = service.secrecy
        self._tracing, self._model = service.tracing, service.model
        self._silent = service.config.server.log_requests == "none"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        identity = request_id(scope)
        if self._secrecy.hide(identity) != identity:  # somebody sent a key as X-Request-Id
            identity = new_id()
        scope["appliance.request_id"] = identity
        scope["appliance.notes"] = {}
        status, complete = 0, False
        self._lifecycle.open_requests += 1

        async def send_with_id(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = identity
            else:
                if status >= 400:  # a message may quote what a client put in an odd place
                    message["body"] = self._secrecy.blot(message.get("body", b""))
                complete = not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            status = status or CLIENT_GONE
        except Exception:
            logger.exception("request %s failed", identity)
            if status and not complete:
                raise  # the server cuts the connection: half an answer must not look whole
            if not status:
                await fault_response(internal(identity))(scope, receive, send_with_id)
        finally:
            self._lifecycle.open_requests -= 1
            self._finish(scope, identity, status or CLIENT_GONE, started)

    def _finish(self, scope: Scope, identity: str, status: int, started: float) -> None:
        path, ended = scope["path"], time.perf_counter()
        seconds = ended - started
        route = next((r.path_format for r in self._routes if r.path_regex.match(path)), "other")
        self._metrics.answered(route, status, seconds)
        if self._tracing is not None and path not in QUIET_PATHS:
            self._trace(self._tracing, scope, identity, status, route, (started, ended))
        level = logging.DEBUG if path in QUIET_PATHS else logging.INFO
        if self._silent or not logger.isEnabledFor(level):
            return
        fields = {
            "request_id": identity,
            "method": scope["method"],
            "path": path,
            "status": status,
            "seconds": round(seconds, 4),
            **scope["appliance.notes"],
        }
        logger.log(level, "request", extra={"fields": fields})

    def _trace(
        self,
        tracing: Tracing,
        scope: Scope,
        identity: str,
        status: int,
        route: str,
        whole: tuple[float, float],
    ) -> None:
        """Tell of a request in the words of OpenTelemetry's conventions; no text of it."""
        notes = scope["appliance.notes"]
        told = {
            "http.request.method": scope["method"],
            "http.route": route,
            "http.response.status_code": status,
            "appliance.request_id": identity,
            "gen_ai.response.model": self._model if "generated_tokens" in notes else None,
            "gen_ai.usage.input_tokens": notes.get("prompt_tokens"),
            "gen_ai.usage.output_tokens": notes.get("generated_tokens"),
        }
        stages: Stages | None = scope.get("appliance.stages")
        tracing.request(
            f"{scope['method']} {route}",
            scope["headers"],
            whole,
            [] if stages is None else stages.intervals,
            {name: value for name, value in told.items() if value is not None},
            failed=status >= 500,
        )
