"""Choices of plain completions, whole or in chunks, the prompt echoed first if that is wanted."""

from __future__ import annotations

from typing import Any

from appliance.api.completions.logprobs import CompletionLogprobs
from appliance.api.http.responses import encode
from appliance.api.openai_events import OpenAIEvents
from appliance.generation.answers import Answers, Delta
from appliance.prompt.tokenizer import Tokenizer


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

    def choice(self, delta: Delta) -> str:
        """One entry of `choices` as JSON, empty where there is nothing to tell."""
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
            "finish_reason": delta.finish_reason,
        }
        logprobs = "null"
        if self._logprobs is not None:
            logprobs = self._logprobs[delta.index].render(tokens, ids)
        elif not (text or delta.finish_reason or (self._token_ids and delta.token_ids)):
            return ""
        if self._token_ids:
            choice["token_ids"] = delta.token_ids
            if first:
                choice["prompt_token_ids"] = prompt.token_ids
        return f'{encode(choice)[:-1]},"logprobs":{logprobs}}}'


class CompletionChunks(OpenAIEvents):
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
        super().__init__(
            head, answers, include_usage=include_usage, continuous_usage=continuous_usage
        )
        self._choices = choices

    def opening(self) -> bytes:
        return b""

    def deltas(self, deltas: list[Delta]) -> bytes:
        tail = "]" + self._end()
        choices = (self._choices.choice(delta) for delta in deltas)
        return "".join(self._head + choice + tail for choice in choices if choice).encode()
