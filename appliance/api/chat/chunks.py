"""Chunks of a streamed chat: the constant parts are written once, each chunk costs one string."""

from __future__ import annotations

import json
from typing import Any

from appliance.api.logprobs import chat_logprobs
from appliance.api.usage import usage
from appliance.generation.answers import Answers, Delta
from appliance.prompt.tokenizer import Tokenizer

encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class ChatChunks:
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
        self._answers = answers
        self._tokenizer = tokenizer
        self._head = "data: " + encode(head)[:-1] + ',"choices":['
        self._logprobs = logprobs
        self._include_usage = include_usage
        self._continuous_usage = include_usage and continuous_usage
        self._tail = ',"usage":null}\n\n' if include_usage else "}\n\n"
        self._token_ids = token_ids
        self._plain = [
            (f'{self._head}{{"index":{index},"delta":{{"content":', "},")
            for index in range(answers.total)
        ]

    def opening(self) -> bytes:
        extra = ""
        if self._token_ids:
            extra = f',"prompt_token_ids":{encode(self._answers.prompts[0].token_ids)}'
        tail = extra + self._usage()
        return "".join(
            f'{self._head}{{"index":{index},"delta":'
            '{"role":"assistant","content":"","refusal":null},'
            f'"logprobs":null,"finish_reason":null}}]{tail}'
            for index in range(self._answers.total)
        ).encode()

    def deltas(self, deltas: list[Delta]) -> bytes:
        tail = "]" + self._usage()
        return "".join(
            self._chunk(delta) + tail
            for delta in deltas
            if delta.text
            or delta.finish_reason
            or delta.logprobs
            or (self._token_ids and delta.token_ids)
        ).encode()

    def closing(self) -> bytes:
        if not self._include_usage:
            return b""
        return f'{self._head}],"usage":{encode(usage(self._answers))}}}\n\n'.encode()

    def _chunk(self, delta: Delta) -> str:
        logprobs = "null"
        if self._logprobs and delta.logprobs:
            logprobs = encode(chat_logprobs(delta.logprobs, self._tokenizer))
        finish = f'"{delta.finish_reason}"' if delta.finish_reason else "null"
        ids = f',"token_ids":{encode(delta.token_ids)}' if self._token_ids else ""
        before, after = self._plain[delta.index]
        if delta.text or not delta.finish_reason:
            start = before + encode(delta.text) + after
        else:
            start = f'{self._head}{{"index":{delta.index},"delta":{{}},'
        return f'{start}"logprobs":{logprobs},"finish_reason":{finish}{ids}}}'

    def _usage(self) -> str:
        if self._continuous_usage:
            return f',"usage":{encode(usage(self._answers))}}}\n\n'
        return self._tail
