"""Failures as responses, all of one shape."""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.api.http.paths import neighbour
from appliance.api.http.responses import encode
from appliance.errors import ApplianceError, method_not_allowed, not_found

ANTHROPIC = "/v1/messages"
OVERLOADED = "overloaded_error"
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
}


def fault_response(fault: ApplianceError, path: str = "") -> Response:
    """The response for a failure before its first byte, shaped as clients of `path` know it."""
    return Response(
        encode(fault_body(fault, path)),
        status_code=fault.status,
        headers=fault.headers,
        media_type="application/json",
    )


def fault_body(fault: ApplianceError, path: str) -> dict[str, Any]:
    """OpenAI's, or for routes of Anthropic's API theirs with our fields in it."""
    if not path.startswith(ANTHROPIC):
        return fault.body()
    error = {**fault.body()["error"], "type": TYPES.get(fault.status, fault.type)}
    if fault.status >= 500:
        error["type"] = OVERLOADED if fault.status == 503 else "api_error"
    return {"type": "error", "error": error}


def on_fault(request: Request, fault: Exception) -> Response:
    """Starlette's handler for our own refusals."""
    assert isinstance(fault, ApplianceError)
    return fault_response(fault, request.url.path)


def on_http_exception(request: Request, fault: Exception) -> Response:
    """Starlette's handler for what its router refuses: an unknown route or method."""
    assert isinstance(fault, HTTPException)
    path = request.url.path[:200]
    if fault.status_code == 405:
        allowed = (fault.headers or {}).get("Allow", "")
        return fault_response(method_not_allowed(request.method, path, allowed))
    if fault.status_code == 404:
        return fault_response(_no_route(request, path))
    return fault_response(
        ApplianceError("The request cannot be answered.", status=fault.status_code)
    )


def _no_route(request: Request, path: str) -> ApplianceError:
    known = [route.path for route in request.app.routes if isinstance(route, Route)]
    near = neighbour(path, known)
    meant = f"; did you mean {near}?" if near else "."
    return not_found(f"There is no route {path} here{meant}", "route_not_found")
