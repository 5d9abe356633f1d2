"""Reading what calls are written in, while it comes: marks, the prose around them, JSON."""

from __future__ import annotations

SPACES = " \r\n\t"


class Until:
    """Looks for a mark in text that comes in pieces."""

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """What stands before the mark, and what behind it; None where it has not come."""
        whole = self._held + text
        before, found, behind = whole.partition(self.mark)
        if found:
            self._held = ""
            return before, behind
        longest = min(len(self.mark) - 1, len(whole))
        kept = next((n for n in range(longest, 0, -1) if whole.endswith(self.mark[:n])), 0)
        self._held = whole[len(whole) - kept :]
        return whole[: len(whole) - kept], None

    def finish(self) -> str:
        """What could still have become the mark."""
        held, self._held = self._held, ""
        return held


class Prose:
    """Text around calls, without the white space that only sets them apart."""

    def __init__(self) -> None:
        self._held = ""
        self._begun = self._cut = False

    def push(self, text: str) -> str:
        """What of it can be shown: white space waits for what follows it."""
        whole = self._held + text
        bare = whole.rstrip(SPACES)
        if not bare:
            self._held = whole
            return ""
        self._held = whole[len(bare) :]
        if self._cut and not self._begun:
            bare = bare.lstrip(SPACES)
        self._begun = True
        return bare

    def cut(self) -> None:
        """A call, or what else is no prose, stands here."""
        self._held, self._cut, self._begun = "", True, False

    def finish(self) -> str:
        """White space at the end, which is no call's."""
        held, self._held = self._held, ""
        return "" if self._cut and not self._begun else held


class JsonExtent:
    """Finds the end of a JSON object, array or string; it is not checked otherwise.

    No white space may stand before it.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = False

    def push(self, text: str) -> int | None:
        """How much of `text` belongs to it, if it ends in there."""
        for place, character in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
                continue
            elif character in "}]":
                self._depth -= 1
            if not self._depth and not self._in_string:
                return place + 1
        return None
