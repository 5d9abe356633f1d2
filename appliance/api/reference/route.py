"""`GET /openapi.json`, and `GET /docs` that shows it without anybody else's scripts."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cached_property
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.api.http.responses import encode, json_response
from appliance.api.reference.document import document
from appliance.service import Service

INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


class Reference:
    """Tells what can be asked here."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._document: bytes | None = None

    async def openapi(self, request: Request) -> Response:
        """The document; made once, of the routes that there are."""
        if self._document is None:
            server = self._service.config.server
            routes = [route for route in request.app.routes if isinstance(route, Route)]
            told = document(routes, keys=bool(server.api_keys or server.tenants))
            if server.root_path is not None:
                told["servers"] = [{"url": server.root_path}]
            self._document = encode(told).encode()
        return json_response(self._document, {})

    async def docs(self, request: Request) -> Response:
        """A page for a person; it knows nothing, and asks for a key where the document needs one.

        Whatever the document said, a browser would run nothing but the page's own script.
        """
        headers = {
            "Content-Security-Policy": self._policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
        return Response(self._page, headers=headers, media_type="text/html")

    @cached_property
    def _page(self) -> str:
        return resources.files("appliance.api.reference").joinpath("page.html").read_text("utf-8")

    @cached_property
    def _policy(self) -> str:
        allowed = [
            f"{kind}-src '{_digest(content)}'" for kind, content in INLINE.findall(self._page)
        ]
        nothing = ("default-src", "base-uri", "form-action", "frame-ancestors")
        return "; ".join(
            [*(f"{one} 'none'" for one in nothing), "connect-src 'self'", *sorted(allowed)]
        )


def _digest(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"
