"""An answer as blocks one after the other: thoughts, texts and calls, of which one is open."""

from __future__ import annotations

from collections.abc import Iterator
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

    def push(self, parts: Parts) -> Iterator[tuple[Change, Block, str]]:
        """What changes, and the text that it adds."""
        if parts.reasoning:
            yield from self._to("reasoning", parts.reasoning)
        if parts.text:
            yield from self._to("text", parts.text)
        for call in parts.tool_calls:
            if self._open is None or self._open.call != call.index:
                yield from self.finish()
                made = Block(
                    len(self.closed), "call", "", call.index, call.name or "", call.id or ""
                )
                yield from self._begin(made)
            yield from self._add(call.arguments)

    def finish(self) -> Iterator[tuple[Change, Block, str]]:
        """Closes what is open."""
        if self._open is not None:
            self.closed.append(self._open)
            yield "close", self._open, ""
            self._open = None

    def _to(self, kind: Kind, text: str) -> Iterator[tuple[Change, Block, str]]:
        if self._open is None or self._open.kind != kind:
            yield from self.finish()
            yield from self._begin(Block(len(self.closed), kind))
        yield from self._add(text)

    def _begin(self, block: Block) -> Iterator[tuple[Change, Block, str]]:
        self._open = block
        yield "open", block, ""

    def _add(self, text: str) -> Iterator[tuple[Change, Block, str]]:
        if text and self._open is not None:
            self._open.content += text
            yield "add", self._open, text


def blocks_of(parts: Parts) -> list[Block]:
    """The blocks of a whole answer."""
    blocks = Blocks()
    for _ in blocks.push(parts):
        pass
    for _ in blocks.finish():
        pass
    return blocks.closed
