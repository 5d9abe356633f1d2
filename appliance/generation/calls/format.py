"""What there is to know of a way in which models write calls."""

from __future__ import annotations

import secrets
import string
from collections.abc import Sequence
from typing import Protocol

from appliance.generation.calls.tool import Tool
from appliance.generation.parts import AnswerParser
from appliance.generation.rules import Rules

DIGITS = string.ascii_letters + string.digits


class CallFormat(Protocol):
    """One file a format: the marks, the grammar and the parser, which have to agree."""

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts, most of them added tokens, that are a call's and no reader's."""

    def calls(self, rules: Rules, tools: Sequence[Tool], *, parallel: bool) -> str:
        """A rule for one call, or with `parallel` for at least one, and nothing else."""

    def amid_text(self, rules: Rules, tools: Sequence[Tool], *, parallel: bool) -> str:
        """A rule for any text that holds such calls, or none."""

    def unheld(self, tool: Tool) -> str | None:
        """The place in a tool's schema of what calls in this format cannot be held to, if any."""

    def parser(self, tools: Sequence[Tool]) -> AnswerParser:
        """What tells calls of these tools from text."""


def call_id() -> str:
    """As OpenAI's look."""
    return "call_" + "".join(secrets.choice(DIGITS) for _ in range(24))


def short_call_id() -> str:
    """Nine letters and digits, which is what Mistral's templates ask for."""
    return "".join(secrets.choice(DIGITS) for _ in range(9))
