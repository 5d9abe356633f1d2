"""What may be used up in a minute."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

MINUTE = 60.0


class Allowance:
    """So much a minute, filled up steadily, all of it there at first (a token bucket).

    More may be taken than is there: the debt has to be paid off before anything else.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._level = float(per_minute)
        self._at = clock()

    @property
    def remaining(self) -> int:
        """What is there now."""
        return max(0, math.floor(self._filled()))

    @property
    def reset_seconds(self) -> float:
        """Until all of it is there."""
        return (self.per_minute - self._filled()) * MINUTE / self.per_minute

    def take(self, count: float) -> None:
        """Use some up, whether or not it is there."""
        self._level = self._filled() - count

    def wait(self) -> float:
        """Seconds until there is anything to take; 0 for now."""
        missing = 1.0 - self._filled()
        return max(0.0, missing * MINUTE / self.per_minute)

    def _filled(self) -> float:
        now = self._clock()
        gained = (now - self._at) * self.per_minute / MINUTE
        self._level, self._at = min(self._level + gained, float(self.per_minute)), now
        return self._level
