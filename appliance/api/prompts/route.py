"""`POST /tokenize`, `/detokenize`, `/v1/chat/completions/render` and `/v1/completions/render`."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from appliance.api.accept import accept, accept_named, told
from appliance.api.chat.request import ChatRequest
from appliance.api.chat.route import check_template, reply_of
from appliance.api.completions.request import CompletionRequest
from appliance.api.fields.unbuilt import UNBUILT_CHAT, UNBUILT_COMPLETION
from appliance.api.http.responses import encode, json_response
from appliance.api.http.tenants import caller_of
from appliance.api.prompts.reply import LARGE, Detokenized, Tokenized, rendered, text_of
from appliance.api.prompts.request import DetokenizeRequest, TokenizeText, tokenized
from appliance.prompt.tokenizer import Tokenizer
from appliance.service import Service

if TYPE_CHECKING:
    from appliance.generation.prompting import Shown  # loads the model's libraries

AT_ONCE = 32  # prompts that are made in one turn of the event loop


class Prompts:
    """Shows what a request's prompt is, by the code that makes it for an answer."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def tokenize(self, request: Request) -> Response:
        """Count and tell the tokens of a text or a conversation, of any length."""
        service = self._service
        fields, ignored = await accept_named(request, service, tokenized)
        headers = told(request, service, ignored)
        generation = service.generator()
        if isinstance(fields, TokenizeText):
            [source] = fields.prompt
            shown = await generation.show_text(
                source, "prompt", own_tokens=fields.add_special_tokens
            )
        else:
            check_template(service, fields)
            owner = caller_of(request.scope).owner
            shown = await generation.count_chat(fields.prompt(owner, service.config.media))
        ids = shown.prompt.token_ids

        def body() -> bytes:
            names = generation.tokenizer.token_names(ids) if fields.return_token_strs else None
            counted: Tokenized = {
                "count": len(ids),
                "max_model_len": generation.limits.max_len,
                "tokens": ids,
                "token_strs": names,
            }
            return encode(counted).encode()

        large = len(ids) > LARGE
        return json_response(await service.aside(body) if large else body(), headers)

    async def detokenize(self, request: Request) -> Response:
        """Write token ids as text."""
        service = self._service
        fields, ignored = await accept_named(request, service, lambda body: (DetokenizeRequest, {}))
        headers = told(request, service, ignored)
        generation = service.generator()
        fields.check_tokens(generation.limits.max_len, generation.tokenizer.vocab_size)
        decode = partial(text_of, fields.tokens, generation.tokenizer)
        large = len(fields.tokens) > LARGE
        text: Detokenized = {"prompt": await service.aside(decode) if large else decode()}
        return json_response(encode(text).encode(), headers)

    async def render_chat(self, request: Request) -> Response:
        """What a chat request comes to before it is answered, or why it is refused."""
        service = self._service
        accepted = await accept(request, service, ChatRequest, UNBUILT_CHAT)
        fields = accepted.fields
        check_template(service, fields)
        reply, unheld = await reply_of(service, fields, accepted.grammar)
        headers = told(request, service, accepted.ignored + unheld)
        prompt = fields.prompt(caller_of(request.scope).owner, service.config.media)
        generation = service.generator()
        shown = await generation.show_chat(prompt, fields, reply)
        return await self._rendered(shown, generation.tokenizer, headers)

    async def render_text(self, request: Request) -> Response:
        """The same of plain completions, whose prompts may be several: a list."""
        service = self._service
        accepted = await accept(request, service, CompletionRequest, UNBUILT_COMPLETION)
        fields = accepted.fields
        generation = service.generator()
        many = len(fields.prompt) > 1
        shown: list[Shown] = []
        for number, source in enumerate(fields.prompt):
            param = f"prompt[{number}]" if many else "prompt"
            shown.append(await generation.show_text(source, param, fields))
            if len(shown) % AT_ONCE == 0:
                await asyncio.sleep(0)
        headers = told(request, service, accepted.ignored)
        return await self._rendered(shown, generation.tokenizer, headers)

    async def _rendered(
        self, shown: Shown | list[Shown], tokenizer: Tokenizer, headers: dict[str, str]
    ) -> Response:
        def body() -> bytes:
            if isinstance(shown, list):
                return encode([rendered(one, tokenizer) for one in shown]).encode()
            return encode(rendered(shown, tokenizer)).encode()

        every = shown if isinstance(shown, list) else [shown]
        large = sum(len(one.prompt.token_ids) for one in every) > LARGE
        return json_response(await self._service.aside(body) if large else body(), headers)
