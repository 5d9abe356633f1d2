"""What a model thinks before it answers, told from the answer by the marks around it."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.generation.calls.reading import SPACES, Prose, Until
from appliance.generation.parts import AnswerParser, Parts
from appliance.generation.rules import Rules


@dataclass(slots=True, frozen=True)
class Reasoning:
    """The marks at the start and the end of a thought."""

    start: str
    end: str

    def thought(self, rules: Rules, *, begun: bool) -> str:
        """A rule for a thought, `begun` by the prompt or else perhaps left out."""
        to_end = f"{rules.until(self.end)} GAP"
        if begun:
            return rules.add("thought", to_end)
        return rules.add("thought", f"(GAP {rules.mark(self.start)} {to_end})?")


class ThoughtParser:
    """`AnswerParser`: a thought, if there is one, and then what `behind` makes of the rest."""

    def __init__(
        self, reasoning: Reasoning, behind: AnswerParser | None, *, begun: bool, shown: bool
    ) -> None:
        """With `begun` the prompt ends inside a thought; without `shown` it is left out."""
        self._start, self._end = reasoning.start, Until(reasoning.end)
        self._behind, self._shown = behind, shown
        self.inside = begun
        self._ahead: str | None = None if begun else ""  # while it may become the first mark
        self._thought, self._over = Prose(), False
        self._thought.cut()

    def push(self, text: str) -> Parts:
        if self._ahead is not None:
            self._ahead += text
            ahead = self._ahead.lstrip(SPACES)
            if len(ahead) < len(self._start) and self._start.startswith(ahead):
                return Parts()
            self.inside = ahead.startswith(self._start)
            text = ahead[len(self._start) :] if self.inside else self._ahead
            self._ahead = None
        if not self.inside:
            return self._answer(text)
        before, behind = self._end.push(text)
        parts = self._reasoning(self._thought.push(before))
        if behind is not None:
            self.inside, self._over = False, True
            parts.add(self._answer(behind))
        return parts

    def _answer(self, text: str) -> Parts:
        if self._over:
            text = text.lstrip(SPACES)
            self._over = not text
        if not text:
            return Parts()
        return Parts(text) if self._behind is None else self._behind.push(text)

    def _reasoning(self, text: str) -> Parts:
        return Parts(reasoning=text if self._shown else "")

    def finish(self) -> Parts:
        parts = Parts()
        if self._ahead:
            parts.add(self._answer(self._ahead))
        if self.inside:
            parts.add(self._reasoning(self._thought.push(self._end.finish())))
        if self._behind is not None:
            parts.add(self._behind.finish())
        return parts
