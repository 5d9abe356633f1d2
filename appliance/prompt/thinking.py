"""Whether a model is to think before it answers, and how much."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, frozen=True)
class Thinking:
    """`wanted` is None where a request leaves it to the model, `effort` one of OpenAI's levels.

    `tokens` is how many it may take. `param` is where the request says so.
    """

    wanted: bool | None = None
    effort: str | None = None
    tokens: int | None = None
    param: str = "reasoning_effort"


UNSAID = Thinking()
