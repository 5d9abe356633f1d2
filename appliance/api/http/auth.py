"""Letting requests in: a key that is known, and a tenant that has something left to use."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from appliance.api.http.faults import fault_response
from appliance.api.http.tenants import Caller, Tenants
from appliance.errors import ApplianceError

OPEN_PATHS = frozenset({"/livez", "/readyz", "/startupz", "/health", "/ping", "/docs"})


class Authentication:
    """ASGI middleware that lets nobody without a key past, if there are keys.

    What is posted is charged to its tenant; the answer's headers tell what is left.
    """

    def __init__(self, app: ASGIApp, tenants: Tenants) -> None:
        self._app = app
        self._tenants = tenants

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        try:
            caller = scope["appliance.caller"] = self._tenants.caller(scope)
            caller.tenant.check_route(scope["path"])
        except ApplianceError as refused:
            await fault_response(refused, scope["path"])(scope, receive, send)
            return
        if self._tenants:
            scope["appliance.notes"]["tenant"] = caller.tenant.name
        if scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        await self._charged(caller, scope, receive, send)

    async def _charged(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        tenant = caller.tenant

        async def send_with_rest(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(tenant.headers())
            await send(message)

        try:
            with tenant.request():
                await self._app(scope, receive, send_with_rest)
        except ApplianceError as refused:
            await fault_response(refused, scope["path"])(scope, receive, send_with_rest)
