"""`POST /v1/messages` and `POST /v1/messages/count_tokens`, for clients of Anthropic's API."""

from __future__ import annotations

import time
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from appliance.api.accept import Accepted, accept_answered, accept_named, told
from appliance.api.chat.request import ChatRequest
from appliance.api.chat.route import begin
from appliance.api.http.event_stream import EventStream
from appliance.api.http.responses import encode, json_response
from appliance.api.http.server_timing import server_timing
from appliance.api.http.tenants import caller_of
from appliance.api.messages.reply import MessageEvents, message
from appliance.api.messages.request import UNBUILT_MESSAGES, CountRequest, MessagesRequest
from appliance.api.messages.translated import translated
from appliance.api.replies import whole
from appliance.api.translation import Translation
from appliance.errors import ApplianceError
from appliance.service import Service


class Messages:
    """Continues conversations."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def create(self, request: Request) -> Response | EventStream:
        """Validate, translate, build the prompt, and answer as one body or as a stream."""
        service, arrived = self._service, time.perf_counter()
        fields, ignored = await accept_named(
            request, service, lambda body: (MessagesRequest, UNBUILT_MESSAGES)
        )
        made = await service.aside(partial(translated, fields))
        chat = await service.aside(made.request)
        ignored += made.ignored
        try:
            accepted = await accept_answered(request, service, chat, ignored, arrived)
            return await self._answered(request, accepted, made)
        except ApplianceError as fault:
            raise made.own(fault) from fault

    async def _answered(
        self, request: Request, accepted: Accepted[ChatRequest], made: Translation
    ) -> Response | EventStream:
        service = self._service
        answers, headers = await begin(request, service, accepted)
        if accepted.fields.stream:
            return EventStream(
                answers,
                MessageEvents(service.model, answers, made),
                keep_alive=service.keep_alive_seconds,
                headers=headers,
                aside=service.aside,
            )
        (delta,) = await whole(request, answers)
        headers |= server_timing(answers)
        return json_response(encode(message(service.model, answers, delta)).encode(), headers)

    async def count_tokens(self, request: Request) -> Response:
        """Tokens of the prompt that `create` would answer."""
        service = self._service
        fields, ignored = await accept_named(
            request, service, lambda body: (CountRequest, UNBUILT_MESSAGES)
        )
        made = await service.aside(partial(translated, fields))
        chat = await service.aside(made.request)
        headers = told(request, service, ignored + made.ignored)
        prompt = chat.prompt(caller_of(request.scope).owner, service.config.media)
        try:
            shown = await service.generator().count_chat(prompt)
        except ApplianceError as fault:
            raise made.own(fault) from fault
        counted = {"input_tokens": len(shown.prompt.token_ids)}
        return json_response(encode(counted).encode(), headers)
