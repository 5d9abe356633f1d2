"""Parts of an answer that are no plain text: what was thought, and what is to be called."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(slots=True)
class ToolCall:
    """What came of call number `index`: its name and id at first, its arguments bit by bit."""

    index: int
    arguments: str = ""  # JSON, perhaps only its beginning
    name: str | None = None
    id: str | None = None

    def add(self, later: ToolCall) -> None:
        """Append what came after it."""
        self.arguments += later.arguments


@dataclass(slots=True)
class Parts:
    """What more of an answer belongs to each of its parts."""

    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)

    @property
    def spoken(self) -> str:
        """All of it as one text, as it came."""
        calls = (f"{call.name or ''}{call.arguments}" for call in self.tool_calls)
        return f"{self.reasoning}{self.text}{''.join(calls)}"

    def __bool__(self) -> bool:
        return bool(self.text or self.reasoning or self.tool_calls)

    def add(self, later: Parts) -> None:
        """Append what came after it."""
        self.text += later.text
        self.reasoning += later.reasoning
        known = {call.index: call for call in self.tool_calls}
        for call in later.tool_calls:
            if call.index in known:
                known[call.index].add(call)
            else:
                self.tool_calls.append(call)


class AnswerParser(Protocol):
    """Tells the parts of one answer apart while its text comes; a model's own marks are its own.

    It stands between the text of an answer, cut at stop strings, and what its reader gets.
    """

    def push(self, text: str) -> Parts:
        """What `text` adds; what could still be the beginning of a mark is kept back."""

    def finish(self) -> Parts:
        """What was kept back."""
