"""`POST /v1/chat/completions`."""

from __future__ import annotations

from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from appliance.api.accept import Accepted, accept, told
from appliance.api.account import account
from appliance.api.chat.chunks import ChatChunks
from appliance.api.chat.logprobs import ChatLogprobs
from appliance.api.chat.parts import chat_parts
from appliance.api.chat.request import ChatRequest
from appliance.api.fields.unbuilt import UNBUILT_CHAT
from appliance.api.http.event_stream import EventStream, is_large
from appliance.api.http.responses import encode, json_response
from appliance.api.http.server_timing import server_timing
from appliance.api.http.tenants import caller_of
from appliance.api.replies import body_of, head, whole
from appliance.errors import bad_request
from appliance.generation.answers import Answers, Delta
from appliance.generation.style import Reply
from appliance.service import Service
from engine.sampling.grammar import Grammar


class Chat:
    """Continues conversations."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def create(self, request: Request) -> Response | EventStream:
        """Validate, build the prompt, and answer as one body or as a stream."""
        service = self._service
        accepted = await accept(request, service, ChatRequest, UNBUILT_CHAT)
        fields, generation = accepted.fields, service.generator()
        answers, headers = await begin(request, service, accepted)
        if fields.stream:
            chunks = ChatChunks(
                head(service, "chatcmpl", "chat.completion.chunk"),
                answers,
                generation.tokenizer,
                logprobs=fields.logprobs,
                include_usage=fields.include_usage,
                continuous_usage=fields.continuous_usage,
                token_ids=fields.return_token_ids,
            )
            return EventStream(
                answers,
                chunks,
                keep_alive=service.keep_alive_seconds,
                headers=headers,
                aside=service.aside,
            )
        deltas = await whole(request, answers)
        tail = account(answers)
        if fields.return_token_ids:
            tail["prompt_token_ids"] = answers.prompts[0].token_ids

        def body() -> bytes:
            logprobs = ChatLogprobs(generation.tokenizer) if fields.logprobs else None
            choices = (self._choice(delta, logprobs, fields.return_token_ids) for delta in deltas)
            return body_of(head(service, "chatcmpl", "chat.completion"), choices, tail)

        headers |= server_timing(answers)
        return json_response(await service.aside(body) if is_large(deltas) else body(), headers)

    @staticmethod
    def _choice(delta: Delta, logprobs: ChatLogprobs | None, token_ids: bool) -> str:
        choice: dict[str, Any] = {
            "index": delta.index,
            "message": {
                "role": "assistant",
                "refusal": None,
                **chat_parts(delta.parts, delta=False),
            },
            "finish_reason": delta.finish_reason,
        }
        if token_ids:
            choice["token_ids"] = delta.token_ids
        told = "null" if logprobs is None else logprobs.render(delta.logprobs)
        return f'{encode(choice)[:-1]},"logprobs":{told}}}'


async def begin(
    request: Request, service: Service, accepted: Accepted[ChatRequest]
) -> tuple[Answers, dict[str, str]]:
    """Begin the answers to a conversation; headers that go with them. Raises ApplianceError."""
    fields = accepted.fields
    check_template(service, fields)
    reply, unheld = await reply_of(service, fields, accepted.grammar)
    headers = told(request, service, accepted.ignored + unheld)
    prompt = fields.prompt(caller_of(request.scope).owner, service.config.media)
    options = fields.answer_options(
        accepted.origin, reply=reply, continuing=fields.continue_final_message
    )
    return await service.generator().chat(prompt, fields, options), headers


async def reply_of(
    service: Service, fields: ChatRequest, grammar: Grammar | None
) -> tuple[Reply, list[str]]:
    """What the answers may be, and places of schemas that they are not held to.

    Raises ApplianceError.
    """
    unheld: list[str] = []
    make = partial(fields.reply, grammar, service.generator().style, unheld)
    return await service.aside(make) if fields.tools else make(), unheld


def check_template(service: Service, fields: ChatRequest) -> None:
    """Raise ApplianceError for a template of the request's own where none is taken."""
    if fields.chat_template and not service.config.chat.allow_request_template:
        raise bad_request(
            "This server does not take a template from a request.",
            "chat_template",
            "unsupported_parameter",
        )
