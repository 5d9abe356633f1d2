"""Noticing that another process says nothing any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

TICKS = 9  # in a row without a word; a tenth of the time allowed each


class Silence:
    """Calls `broken` when nothing was heard for `seconds`, at the latest.

    It counts ticks rather than seconds: a machine that was suspended, or a loop that was held up,
    accuses nobody.
    """

    def __init__(self, seconds: float, broken: Callable[[], None]) -> None:
        self._interval = seconds / (TICKS + 1)
        self._broken = broken
        self._ticks = 0
        self._timer: asyncio.TimerHandle | None = None

    def watch(self) -> None:
        """Begin to count."""
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._tick)

    def heard(self) -> None:
        """The other process is there."""
        self._ticks = 0

    def stop(self) -> None:
        """Count no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        self._ticks += 1
        if self._ticks > TICKS:
            self._broken()
        else:
            self.watch()
