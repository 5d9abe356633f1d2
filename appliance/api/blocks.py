"""An answer as blocks one after the other: thoughts, texts and calls, of which one is open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from appliance.generation.parts import Parts

Kind = Literal["reasoning", "text", "call"]
Change = Literal["open", "add", "close"]


@dataclass(slots=True)
class Block:
    """Number `place` of an answer; `content` is what came of it so far. A call has name and id."""

    place: int
    kind: Kind
    content: str = ""
    call: int = -1
    name: str = ""
    id: str = ""


class Blocks:
    """Makes blocks of parts as they come."""

    def __init__(self) -> None:
        self.closed: list[Block] = []
        self._open: Block | None = None

    def push(self, parts: Parts) -> list[tuple[Change, Block, str]]:
        """What changes, and the text that it adds."""
        changes: list[tuple[Change, Block, str]] = []
        if parts.reasoning:
            changes += self._to("reasoning", parts.reasoning)
        if parts.text:
            changes += self._to("text", parts.text)
        for call in parts.tool_calls:
            if self._open is None or self._open.call != call.index:
                place, name = len(self.closed) + (self._open is not None), call.name or ""
                changes += self._begin(Block(place, "call", "", call.index, name, call.id or ""))
            changes += self._add(call.arguments)
        return changes

    def finish(self) -> list[tuple[Change, Block, str]]:
        """Closes what is open."""
        if self._open is None:
            return []
        block, self._open = self._open, None
        self.closed.append(block)
        return [("close", block, "")]

    def _to(self, kind: Kind, text: str) -> list[tuple[Change, Block, str]]:
        if self._open is not None and self._open.kind == kind:
            return self._add(text)
        place = len(self.closed) + (self._open is not None)
        return [*self._begin(Block(place, kind)), *self._add(text)]

    def _begin(self, block: Block) -> list[tuple[Change, Block, str]]:
        closed = self.finish()
        self._open = block
        return [*closed, ("open", block, "")]

    def _add(self, text: str) -> list[tuple[Change, Block, str]]:
        if not text or self._open is None:
            return []
        self._open.content += text
        return [("add", self._open, text)]


def blocks_of(parts: Parts) -> list[Block]:
    """The blocks of a whole answer."""
    blocks = Blocks()
    blocks.push(parts)
    blocks.finish()
    return blocks.closed
