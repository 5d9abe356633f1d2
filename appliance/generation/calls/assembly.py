"""Calls of one answer as they go to its reader, numbered and with ids."""

from __future__ import annotations

from collections.abc import Callable

from appliance.generation.parts import Parts, ToolCall


class Assembly:
    """Makes parts of an answer; a call's arguments come bit by bit."""

    def __init__(self, new_id: Callable[[], str]) -> None:
        self._new_id = new_id
        self._count = 0

    def begin(self, name: str, given_id: str = "") -> Parts:
        """The next call; the model may have given it an id."""
        self._count += 1
        call = ToolCall(self._count - 1, name=name, id=given_id or self._new_id())
        return Parts(tool_calls=[call])

    def arguments(self, text: str) -> Parts:
        """More of the latest call's arguments."""
        return Parts(tool_calls=[ToolCall(self._count - 1, text)] if text else [])
