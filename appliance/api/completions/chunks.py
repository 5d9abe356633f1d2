"""Choices of plain completions, whole or in chunks, the prompt echoed first if that is wanted."""

from __future__ import annotations

import json
from typing import Any

from appliance.api.logprobs import CompletionLogprobs
from appliance.api.usage import usage
from appliance.generation.answers import Answers, Delta
from appliance.prompt.tokenizer import Tokenizer

encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class CompletionChoices:
    """Turns deltas into choices, the first of each answer with its echoed prompt."""

    def __init__(
        self,
        answers: Answers,
        tokenizer: Tokenizer,
        *,
        echoes: list[str] | None,
        logprobs: bool,
        token_ids: bool,
    ) -> None:
        self._answers = answers
        self._echoes = echoes
        self._token_ids = token_ids
        self._logprobs = (
            [CompletionLogprobs(tokenizer) for _ in range(answers.total)] if logprobs else None
        )
        self._begun = [False] * answers.total

    def choice(self, delta: Delta) -> dict[str, Any]:
        """One entry of `choices`."""
        prompt = self._answers.prompts[delta.index // self._answers.n]
        first = not self._begun[delta.index]
        self._begun[delta.index] = True
        text = delta.text
        scored = list(delta.logprobs)
        tokens: list[Any] = [*scored]
        ids = [token.token_id for token in scored]
        if first and self._echoes is not None:
            text = self._echoes[delta.index // self._answers.n] + text
            if prompt.logprobs is not None:
                tokens = [*prompt.logprobs, *tokens]
                ids = [*prompt.token_ids, *ids]
        choice: dict[str, Any] = {
            "index": delta.index,
            "text": text,
            "logprobs": None,
            "finish_reason": delta.finish_reason,
        }
        if self._logprobs is not None:
            choice["logprobs"] = self._logprobs[delta.index].render(tokens, ids)
        if self._token_ids:
            choice["token_ids"] = delta.token_ids
            if first:
                choice["prompt_token_ids"] = prompt.token_ids
        return choice


class CompletionChunks:
    """Events of a streamed `object: text_completion`."""

    def __init__(
        self,
        head: dict[str, Any],
        answers: Answers,
        choices: CompletionChoices,
        *,
        include_usage: bool,
        continuous_usage: bool,
    ) -> None:
        self._answers = answers
        self._choices = choices
        self._head = "data: " + encode(head)[:-1] + ',"choices":['
        self._include_usage = include_usage
        self._continuous_usage = include_usage and continuous_usage

    def opening(self) -> bytes:
        return b""

    def deltas(self, deltas: list[Delta]) -> bytes:
        tail = "]" + self._usage()
        choices = (self._choices.choice(delta) for delta in deltas)
        return "".join(
            self._head + encode(choice) + tail
            for choice in choices
            if choice["text"]
            or choice["finish_reason"]
            or choice["logprobs"]
            or choice.get("token_ids")
        ).encode()

    def closing(self) -> bytes:
        if not self._include_usage:
            return b""
        return f'{self._head}],"usage":{encode(usage(self._answers))}}}\n\n'.encode()

    def _usage(self) -> str:
        if self._continuous_usage:
            return f',"usage":{encode(usage(self._answers))}}}\n\n'
        return ',"usage":null}\n\n' if self._include_usage else "}\n\n"
