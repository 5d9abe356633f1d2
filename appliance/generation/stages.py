"""Where a request's time went: stages one after the other, whose times add up to all of it."""

from __future__ import annotations

import time
from collections.abc import Callable

# in the order in which a request goes through them
STAGES = ("read", "fetch", "prompt", "media", "queue", "prefill", "decode")


class Stages:
    """Seconds by stage; a stage lasts from the end of the one before.

    `read` is the body's, until it is checked; `fetch` reads and measures media, `media` decodes and
    prepares them; `prompt` renders and tokenizes; `queue` waits for a place in the engine's batch,
    `prefill` lasts until the first token, `decode` until the last one of all answers.
    """

    def __init__(
        self, begun: float | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._clock = clock
        self._last = clock() if begun is None else begun
        self.seconds: dict[str, float] = {}
        self.intervals: list[tuple[str, float, float]] = []  # stage, from when, until when

    def end(self, stage: str) -> None:
        """What has passed since the last stage belongs to this one."""
        self._until(stage, self._clock())

    def begin_answer(self, admitted: float | None) -> None:
        """The first token is there; its sequence left the queue at `admitted`, if that is known."""
        now = self._clock()
        if admitted is not None:
            self._until("queue", min(admitted, now))
        self._until("prefill", now)

    def _until(self, stage: str, moment: float) -> None:
        moment = max(moment, self._last)
        self.seconds[stage] = self.seconds.get(stage, 0.0) + moment - self._last
        begun = self._last
        if self.intervals and self.intervals[-1][0] == stage:
            _, begun, _ = self.intervals.pop()
        self.intervals.append((stage, begun, moment))
        self._last = moment
