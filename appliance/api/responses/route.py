"""`POST /v1/responses`, and what is kept of them under `/v1/responses/{id}`."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from appliance.api.accept import Accepted, accept_answered, accept_named
from appliance.api.chat.request import ChatRequest
from appliance.api.chat.route import begin
from appliance.api.http.event_stream import EventStream
from appliance.api.http.responses import encode, json_response
from appliance.api.http.server_timing import server_timing
from appliance.api.http.tenants import caller_of
from appliance.api.replies import whole
from appliance.api.responses.reply import ResponseEvents, ResponseObject
from appliance.api.responses.request import UNBUILT_RESPONSES, ResponsesRequest
from appliance.api.responses.store import ResponseStore
from appliance.api.responses.translated import translated
from appliance.api.translation import Translation
from appliance.errors import ApplianceError
from appliance.service import Service


class Responses:
    """Responds to items."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._store = ResponseStore(service.config.server.response_store_bytes)

    async def create(self, request: Request) -> Response | EventStream:
        """Validate, translate, build the prompt, and answer as one body or as a stream."""
        service, arrived = self._service, time.perf_counter()
        hints: dict[str, Any] = {}

        def kind(body: Any) -> tuple[type[ResponsesRequest], Any]:
            hints.update({name: body[name] for name in ("metadata", "store") if name in body})
            return ResponsesRequest, UNBUILT_RESPONSES

        fields, ignored = await accept_named(request, service, kind)
        owner, earlier = caller_of(request.scope).owner, []
        if fields.previous_response_id:
            earlier = self._store.messages(owner, fields.previous_response_id)
        made = await service.aside(partial(translated, fields, earlier))
        chat = await service.aside(made.request)
        ignored += made.ignored
        try:
            accepted = await accept_answered(request, service, chat, ignored, arrived)
            return await self._answered(request, fields, accepted, made, hints)
        except ApplianceError as fault:
            raise made.own(fault) from fault

    async def _answered(
        self,
        request: Request,
        fields: ResponsesRequest,
        accepted: Accepted[ChatRequest],
        made: Translation,
        hints: dict[str, Any],
    ) -> Response | EventStream:
        service = self._service
        answers, headers = await begin(request, service, accepted)
        stored = bool(self._store) and hints.get("store") is not False
        response = ResponseObject(service.model, fields, answers, hints.get("metadata"), stored)

        def keep(body: dict[str, Any]) -> None:
            if not stored:
                return
            messages = made.body["messages"][1 if fields.instructions else 0 :]
            owner = caller_of(request.scope).owner
            told = encode(body).encode()
            self._store.keep(owner, response.id, told, [*messages, response.message()])

        if fields.stream:
            return EventStream(
                answers,
                ResponseEvents(response, made, keep),
                keep_alive=service.keep_alive_seconds,
                headers=headers,
                aside=service.aside,
            )
        (delta,) = await whole(request, answers)
        response.push(delta)
        response.finish()
        body = response.body(response.status)
        keep(body)
        headers |= server_timing(answers)
        return json_response(encode(body).encode(), headers)

    async def retrieve(self, request: Request) -> Response:
        """A response that is kept."""
        owner = caller_of(request.scope).owner
        return json_response(self._store.response(owner, request.path_params["id"]), {})

    async def delete(self, request: Request) -> Response:
        """Forget a response."""
        identity = request.path_params["id"]
        self._store.forget(caller_of(request.scope).owner, identity)
        gone = {"id": identity, "object": "response", "deleted": True}
        return json_response(encode(gone).encode(), {})
