"""Marks that stand in a template's input for what the template must not see as it is."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

OPEN, CLOSE = "\ue000", "\ue001"  # private use; the number after OPEN makes them unguessable
UNTOUCHED_KEYS = frozenset({"role", "type"})  # words that templates compare


@dataclass(slots=True)
class Rendered:
    """A rendered conversation with all marks resolved, and where plain text looks like a token.

    `plain` are ranges `(start, end)` in characters, in order.
    """

    text: str
    plain: list[tuple[int, int]] = field(default_factory=list)

    def replaced(self, old: str, new: str) -> Rendered:
        """The same with `new` for every `old` that touches no plain text."""
        pieces: list[str] = []
        plain: list[tuple[int, int]] = []
        position = shift = 0
        for start, end in [*self.plain, (len(self.text), len(self.text))]:
            between = self.text[position:start].replace(old, new)
            shift += len(between) - (start - position)
            pieces += [between, self.text[start:end]]
            plain.append((start + shift, end + shift))
            position = end
        return Rendered("".join(pieces), plain[:-1])


class Literals:
    """Finds tokens in text: whole, begun at its end or ended at its start (templates join)."""

    def __init__(self, tokens: Iterable[str]) -> None:
        whole = sorted({token for token in tokens if not token.isspace()}, key=len, reverse=True)
        self._whole = re.compile("|".join(map(re.escape, whole)) or "(?!)")
        self._begun = _longest_first(token[:at] for token in whole for at in range(1, len(token)))
        self._ended = _longest_first(token[at:] for token in whole for at in range(1, len(token)))

    def replace(self, text: str, marks: Marks) -> str:
        """`text` with a mark in place of each of them."""
        pieces: list[str] = []
        start = 0
        for begin, end in self._ranges(text):
            pieces += [text[start:begin], marks.plain(text[begin:end])]
            start = end
        return "".join([*pieces, text[start:]]) if pieces else text

    def _ranges(self, text: str) -> list[tuple[int, int]]:
        found = [match.span() for match in self._whole.finditer(text)]
        if text.startswith(self._ended):
            found.append((0, next(len(end) for end in self._ended if text.startswith(end))))
        if text.endswith(self._begun):
            length = next(len(begin) for begin in self._begun if text.endswith(begin))
            found.append((len(text) - length, len(text)))
        joined: list[tuple[int, int]] = []
        for begin, end in sorted(found):
            if joined and begin < joined[-1][1]:
                joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
            else:
                joined.append((begin, end))
        return joined


class Marks:
    """The marks of one conversation."""

    def __init__(self) -> None:
        self._number = str(secrets.randbits(64))
        self._nonce = f"{OPEN}{self._number}:"
        self._texts: list[tuple[str, bool]] = []
        self.end = f"{self._nonce}end{CLOSE}"

    def plain(self, text: str) -> str:
        """A mark for text that is plain whatever it looks like."""
        return self._mark(text, True)

    def trusted(self, text: str) -> str:
        """A mark for text that counts as the template's own."""
        return self._mark(text, False)

    def resolve(self, text: str) -> Rendered | None:
        """Text with every mark replaced; None if the template has cut one to pieces."""
        pattern = re.compile(re.escape(self._nonce) + r"(\d+)" + CLOSE)
        pieces: list[str] = []
        plain: list[tuple[int, int]] = []
        length = start = 0
        for match in pattern.finditer(text):
            before = text[start : match.start()]
            content, is_plain = self._texts[int(match[1])]
            length += len(before)
            if is_plain:
                plain.append((length, length + len(content)))
            length += len(content)
            pieces += [before, content]
            start = match.end()
        pieces.append(text[start:])
        whole = "".join(pieces)
        return None if self._number in whole else Rendered(whole, plain)

    def _mark(self, text: str, is_plain: bool) -> str:
        self._texts.append((text, is_plain))
        return f"{self._nonce}{len(self._texts) - 1}{CLOSE}"


def guard(value: Any, literals: Literals, marks: Marks) -> Any:
    """`value` with token-like text marked in every string of it, keys of inner objects included."""
    if isinstance(value, str):
        return literals.replace(value, marks)
    if isinstance(value, list):
        return [guard(item, literals, marks) for item in value]
    if isinstance(value, dict):
        return {
            guard(key, literals, marks): item
            if key in UNTOUCHED_KEYS and isinstance(item, str) and item.isidentifier()
            else guard(item, literals, marks)
            for key, item in value.items()
        }
    return value


def _longest_first(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(texts), key=len, reverse=True))
