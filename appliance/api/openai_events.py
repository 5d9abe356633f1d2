"""The shape of OpenAI's streams: chunks after `data:`, usage if it is asked for, `[DONE]` last."""

from __future__ import annotations

from typing import Any

from appliance.api.account import account
from appliance.api.http.responses import encode
from appliance.api.usage import usage
from appliance.errors import ApplianceError
from appliance.generation.answers import Answers

DONE = "data: [DONE]\n\n"


class OpenAIEvents:
    """What the streams of chats and of plain completions have in common.

    `head` has the fields that every chunk begins with. With `include_usage` the last chunk has the
    usage and no choices; with `continuous_usage` too every chunk tells it so far. Where the request
    asked for its stages, they are in the last chunk too.
    """

    def __init__(
        self,
        head: dict[str, Any],
        answers: Answers,
        *,
        include_usage: bool,
        continuous_usage: bool,
    ) -> None:
        self._answers = answers
        self._head = "data: " + encode(head)[:-1] + ',"choices":['
        self._include_usage = include_usage
        self._continuous_usage = include_usage and continuous_usage
        self._tail = ',"usage":null}\n\n' if include_usage else "}\n\n"

    def closing(self) -> bytes:
        final, told = "", account(self._answers, include_usage=self._include_usage)
        if told:
            final = f"{self._head}],{encode(told)[1:]}\n\n"
        return f"{final}{DONE}".encode()

    def failure(self, fault: ApplianceError) -> bytes:
        return f"data: {encode(fault.body())}\n\n{DONE}".encode()

    def _end(self) -> str:
        """What ends a chunk behind its choices."""
        if self._continuous_usage:
            return f',"usage":{encode(usage(self._answers))}}}\n\n'
        return self._tail
