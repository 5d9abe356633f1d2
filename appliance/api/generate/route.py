"""`POST /generate`."""

from __future__ import annotations

import secrets
import time

from starlette.requests import Request
from starlette.responses import Response

from appliance.api.accept import accept_answered, accept_named, told
from appliance.api.generate.reply import GenerateEvents
from appliance.api.generate.request import UNBUILT_GENERATE, GenerateRequest
from appliance.api.http.event_stream import EventStream, is_large
from appliance.api.http.responses import encode, json_response
from appliance.api.http.server_timing import server_timing
from appliance.api.replies import whole
from appliance.errors import ApplianceError
from appliance.generation.style import Reply
from appliance.service import Service


class Generate:
    """Continues plain text or token ids, in SGLang's words."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def create(self, request: Request) -> Response | EventStream:
        """Validate, tokenize, and answer as one body or as a stream."""
        arrived = time.perf_counter()
        asked, ignored = await accept_named(
            request, self._service, lambda body: (GenerateRequest, UNBUILT_GENERATE)
        )
        try:
            return await self._answer(request, asked, ignored, arrived)
        except ApplianceError as fault:
            raise asked.named(fault) from None

    async def _answer(
        self, request: Request, asked: GenerateRequest, ignored: list[str], arrived: float
    ) -> Response | EventStream:
        service = self._service
        fields = asked.completion()
        accepted = await accept_answered(request, service, fields, ignored, arrived)
        headers = told(request, service, ignored)
        generation = service.generator()
        options = fields.answer_options(
            accepted.origin,
            reply=Reply(accepted.grammar),
            continuing=True,
            discard=not fields.max_tokens,
        )
        answers = await generation.complete(fields.prompt, fields, options)
        events = GenerateEvents(answers, asked.rid or secrets.token_hex(16), arrived)
        if asked.stream:
            return EventStream(
                answers,
                events,
                keep_alive=service.keep_alive_seconds,
                headers=headers,
                aside=service.aside,
            )
        deltas = await whole(request, answers)

        def body() -> bytes:
            every = list(map(events.generated, deltas))
            return encode(every if answers.total > 1 or asked.prompts.many else every[0]).encode()

        headers |= server_timing(answers)
        return json_response(await service.aside(body) if is_large(deltas) else body(), headers)
