"""Stop strings over text that comes in pieces."""

from __future__ import annotations


class StopStrings:
    """Lets text through up to the first stop string, holding back what could still become one.

    The first to be complete counts, and of several that end together the longest, so that the
    result does not depend on how the text was cut. `include` shows the stop string itself. Time is
    linear in the text, whatever it and the stop strings are.
    """

    def __init__(self, stops: list[str], include: bool = False) -> None:
        by_length = sorted((stop for stop in stops if stop), key=len, reverse=True)
        self._patterns = [_Pattern(stop) for stop in by_length]
        self._include = include
        self._held = ""
        self.met: str | None = None  # the one that ended the text

    def push(self, text: str) -> tuple[str, bool]:
        """Text that is safe to show, and whether a stop string was met (then nothing follows)."""
        if self.met is not None:
            return "", True
        before = len(self._held)
        whole = self._held + text
        for end, character in enumerate(text, before + 1):
            for pattern in self._patterns:  # all of them: each has to keep up with the text
                if pattern.advance(character) and self.met is None:
                    self.met = pattern.text
            if self.met is not None:
                self._held = ""
                return whole[: end if self._include else end - len(self.met)], True
        keep = max((pattern.matched for pattern in self._patterns), default=0)
        self._held = whole[len(whole) - keep :]
        return whole[: len(whole) - keep], False

    def finish(self) -> str:
        """What was still held back when the answer ended."""
        held, self._held = self._held, ""
        return held


class _Pattern:
    """One string that is looked for, by the method of Knuth, Morris and Pratt (1977)."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0  # how much of its beginning the text seen so far ends with
        self._borders = _borders(text)

    def advance(self, character: str) -> bool:
        """Whether the text ends with the whole string, one character later."""
        text, matched = self.text, self.matched
        while matched and text[matched] != character:
            matched = self._borders[matched - 1]
        matched += text[matched] == character
        self.matched = matched
        return matched == len(text)


def _borders(text: str) -> list[int]:
    """Of each beginning of `text` the longest shorter one that it also ends with."""
    borders = [0] * len(text)
    matched = 0
    for place in range(1, len(text)):
        while matched and text[matched] != text[place]:
            matched = borders[matched - 1]
        matched += text[matched] == text[place]
        borders[place] = matched
    return borders
