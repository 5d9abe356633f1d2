"""Stop strings over text that comes in pieces."""

from __future__ import annotations


class StopStrings:
    """Lets text through up to the first stop string, holding back what could still become one.

    The first to be complete counts, and of several that end together the longest, so that the
    result does not depend on how the text was cut. `include` shows the stop string itself.
    """

    def __init__(self, stops: list[str], include: bool = False) -> None:
        self._stops = sorted((stop for stop in stops if stop), key=len, reverse=True)
        self._include = include
        self._held = ""
        self._stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """Text that is safe to show, and whether a stop string was met (then nothing follows)."""
        if self._stopped:
            return "", True
        text = self._held + text
        met = self._first_complete(text)
        if met is not None:
            start, end = met
            self._held, self._stopped = "", True
            return text[: end if self._include else start], True
        keep = self._possible_start(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def finish(self) -> str:
        """What was still held back when the answer ended."""
        held, self._held = self._held, ""
        return held

    def _first_complete(self, text: str) -> tuple[int, int] | None:
        ends = ((text.find(stop) + len(stop), stop) for stop in self._stops if stop in text)
        end, stop = min(ends, key=lambda found: (found[0], -len(found[1])), default=(0, ""))
        return (end - len(stop), end) if stop else None

    def _possible_start(self, text: str) -> int:
        """How many characters at the end could begin a stop string."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:length]):
                    longest = length
                    break
        return longest
