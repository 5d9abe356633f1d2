"""Chunks of a streamed chat: the constant parts are written once, each chunk costs one string."""

from __future__ import annotations

from typing import Any

from appliance.api.chat.logprobs import ChatLogprobs
from appliance.api.chat.parts import chat_parts
from appliance.api.http.responses import encode
from appliance.api.openai_events import OpenAIEvents
from appliance.generation.answers import Answers, Delta
from appliance.prompt.tokenizer import Tokenizer


class ChatChunks(OpenAIEvents):
    """Events of `object: chat.completion.chunk`."""

    def __init__(
        self,
        head: dict[str, Any],
        answers: Answers,
        tokenizer: Tokenizer,
        *,
        logprobs: bool,
        include_usage: bool,
        continuous_usage: bool,
        token_ids: bool,
    ) -> None:
        super().__init__(
            head, answers, include_usage=include_usage, continuous_usage=continuous_usage
        )
        self._logprobs = ChatLogprobs(tokenizer) if logprobs else None
        self._token_ids = token_ids
        self._plain = [
            (f'{self._head}{{"index":{index},"delta":{{"content":', "},")
            for index in range(answers.total)
        ]

    def opening(self) -> bytes:
        extra = ""
        if self._token_ids:
            extra = f',"prompt_token_ids":{encode(self._answers.prompts[0].token_ids)}'
        tail = extra + self._end()
        return "".join(
            f'{self._head}{{"index":{index},"delta":'
            '{"role":"assistant","content":"","refusal":null},'
            f'"logprobs":null,"finish_reason":null}}]{tail}'
            for index in range(self._answers.total)
        ).encode()

    def deltas(self, deltas: list[Delta]) -> bytes:
        tail = "]" + self._end()
        return "".join(
            self._chunk(delta) + tail
            for delta in deltas
            if delta.parts
            or delta.finish_reason
            or delta.logprobs
            or (self._token_ids and delta.token_ids)
        ).encode()

    def _chunk(self, delta: Delta) -> str:
        logprobs = "null"
        if self._logprobs is not None and delta.logprobs:
            logprobs = self._logprobs.render(delta.logprobs)
        finish = f'"{delta.finish_reason}"' if delta.finish_reason else "null"
        ids = f',"token_ids":{encode(delta.token_ids)}' if self._token_ids else ""
        before, after = self._plain[delta.index]
        parts = delta.parts
        if parts.reasoning or parts.tool_calls:
            fields = encode(chat_parts(parts, delta=True))
            start = f'{self._head}{{"index":{delta.index},"delta":{fields},'
        elif parts.text or not delta.finish_reason:
            start = before + encode(parts.text) + after
        else:
            start = f'{self._head}{{"index":{delta.index},"delta":{{}},'
        return f'{start}"logprobs":{logprobs},"finish_reason":{finish}{ids}}}'
