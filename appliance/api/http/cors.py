"""Cross-origin requests, answered only for listed origins."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from appliance.api.http.faults import fault_response
from appliance.errors import bad_request

EXPOSED = (
    "X-Request-Id",
    "X-Ignored-Fields",
    "Retry-After",
    *(
        f"X-RateLimit-{part}-{what}"
        for what in ("Requests", "Tokens")
        for part in ("Limit", "Remaining", "Reset")
    ),
    "X-RateLimit-Limit-Concurrent",
    "X-RateLimit-Remaining-Concurrent",
)


class CrossOrigin(CORSMiddleware):
    """Starlette's middleware; the origin `*` lists them all. Refusals have the API's shape.

    A page on the open web that may reach a server on this machine or network asks for that as well:
    whoever listed its origin has allowed it.
    """

    def __init__(self, app: ASGIApp, origins: Iterable[str]) -> None:
        super().__init__(
            app,
            allow_origins=[origin.rstrip("/") for origin in origins],
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=EXPOSED,
            allow_private_network=True,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        answer = super().preflight_response(request_headers)
        if answer.status_code != 200:
            return fault_response(
                bad_request(
                    "This server answers no such request from this origin.", None, "cors_refused"
                )
            )
        for name in ("content-length", "content-type"):
            del answer.headers[name]
        return Response(status_code=204, headers=dict(answer.headers))
