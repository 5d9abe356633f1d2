"""`POST /v1/completions`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from appliance.api.accept import accept, told
from appliance.api.account import account
from appliance.api.completions.chunks import CompletionChoices, CompletionChunks
from appliance.api.completions.request import CompletionRequest
from appliance.api.fields.unbuilt import UNBUILT_COMPLETION
from appliance.api.http.event_stream import EventStream, is_large
from appliance.api.http.responses import json_response
from appliance.api.http.server_timing import server_timing
from appliance.api.replies import body_of, head, whole
from appliance.generation.style import Reply
from appliance.service import Service

if TYPE_CHECKING:
    from appliance.generation.generation import Generation  # loads the model's libraries


class Completions:
    """Continues plain text or token ids."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def create(self, request: Request) -> Response | EventStream:
        """Validate, tokenize, and answer as one body or as a stream."""
        service = self._service
        accepted = await accept(request, service, CompletionRequest, UNBUILT_COMPLETION)
        fields, headers = accepted.fields, told(request, service, accepted.ignored)
        generation = service.generator()
        discard = not fields.max_tokens
        options = fields.answer_options(
            accepted.origin, reply=Reply(accepted.grammar), continuing=True, discard=discard
        )
        answers = await generation.complete(fields.prompt, fields, options)
        choices = CompletionChoices(
            answers,
            generation.tokenizer,
            echoes=self._echoes(fields, generation) if fields.echo else None,
            logprobs=fields.logprobs is not None,
            token_ids=fields.return_token_ids,
        )
        if fields.stream:
            chunks = CompletionChunks(
                head(service, "cmpl", "text_completion"),
                answers,
                choices,
                include_usage=fields.include_usage,
                continuous_usage=fields.continuous_usage,
            )
            return EventStream(
                answers,
                chunks,
                keep_alive=service.keep_alive_seconds,
                headers=headers,
                aside=service.aside,
            )
        deltas = await whole(request, answers)

        def body() -> bytes:
            begun = head(service, "cmpl", "text_completion")
            return body_of(begun, map(choices.choice, deltas), account(answers))

        headers |= server_timing(answers)
        large = is_large(deltas, answers.prompts)
        return json_response(await service.aside(body) if large else body(), headers)

    @staticmethod
    def _echoes(fields: CompletionRequest, generation: Generation) -> list[str]:
        return [
            source
            if isinstance(source, str)
            else generation.tokenizer.decode(source, skip_special_tokens=fields.skip_special_tokens)
            for source in fields.prompt
        ]
