"""`POST /v1/chat/completions`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from appliance.api.chat.chunks import ChatChunks
from appliance.api.chat.media_options import read_media_options
from appliance.api.chat.request import ChatRequest
from appliance.api.fields.unbuilt import UNBUILT_CHAT
from appliance.api.fields.validation import unsupported
from appliance.api.http.auth import owner
from appliance.api.http.event_stream import EventStream
from appliance.api.logprobs import chat_logprobs
from appliance.api.replies import accept, head, json_response, whole, wish
from appliance.api.usage import usage
from appliance.errors import bad_request
from appliance.generation.answers import Answers, Delta
from appliance.service import Service

if TYPE_CHECKING:
    from appliance.generation.generation import Generation  # loads the model's libraries


class Chat:
    """Continues conversations."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def create(self, request: Request) -> Response | EventStream:
        """Validate, build the prompt, and answer as one body or as a stream."""
        arrived = time.perf_counter()
        service = self._service
        fields, headers = await accept(request, service, ChatRequest, UNBUILT_CHAT)
        self._check_template(fields)
        generation = service.generator()
        answers = await self._start(fields, generation, arrived, owner(request.scope))
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
                answers, chunks, keep_alive=service.keep_alive_seconds, headers=headers
            )
        deltas = await whole(request, answers)
        body = head(service, "chatcmpl", "chat.completion")
        body["choices"] = [self._choice(delta, fields, generation) for delta in deltas]
        body["usage"] = usage(answers)
        if fields.return_token_ids:
            body["prompt_token_ids"] = answers.prompts[0].token_ids
        return json_response(body, headers)

    async def _start(
        self, fields: ChatRequest, generation: Generation, arrived: float, key: bytes
    ) -> Answers:
        job, max_tokens = await generation.chat(
            fields.messages,
            add_generation_prompt=fields.generation_prompt,
            continue_final_message=fields.continue_final_message,
            template=fields.chat_template,
            template_kwargs=fields.chat_template_kwargs,
            wanted_tokens=fields.wanted_tokens,
            tokens_field=fields.max_tokens_field,
            owner=key,
            media_options=read_media_options(fields.media_io_kwargs, self._service.config.media),
        )
        sampling = fields.sampling(
            max_tokens=max_tokens,
            max_tokens_field=fields.max_tokens_field,
            vocab_size=generation.tokenizer.vocab_size,
            defaults=generation.sampling,
            logprobs=fields.wanted_logprobs,
        )
        wanted = wish(fields, arrived, continuing=fields.continue_final_message)
        return generation.start([job], [sampling], wanted)

    def _check_template(self, fields: ChatRequest) -> None:
        chat = self._service.config.chat
        if fields.chat_template is not None and not chat.allow_request_template:
            raise bad_request(
                "This server does not take a template from a request.",
                "chat_template",
                "unsupported_parameter",
            )
        for name in fields.chat_template_kwargs:
            if name not in chat.template_kwargs:
                raise unsupported(f"chat_template_kwargs.{name[:100]}")

    @staticmethod
    def _choice(delta: Delta, fields: ChatRequest, generation: Generation) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": delta.index,
            "message": {"role": "assistant", "content": delta.text, "refusal": None},
            "logprobs": None,
            "finish_reason": delta.finish_reason,
        }
        if fields.logprobs:
            choice["logprobs"] = chat_logprobs(delta.logprobs, generation.tokenizer)
        if fields.return_token_ids:
            choice["token_ids"] = delta.token_ids
        return choice
