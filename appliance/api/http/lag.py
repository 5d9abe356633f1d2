"""How late the event loop is: whatever holds it up holds up every stream and probe."""

from __future__ import annotations

import asyncio

from prometheus_client import Histogram

INTERVAL = 0.02  # seconds; some 20 microseconds of work each


class LoopLag:
    """Looks at the loop again and again, and counts by how much it came late."""

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin, on the running loop."""
        self._wait(asyncio.get_running_loop())

    def stop(self) -> None:
        """Count no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = loop.time() + INTERVAL
        self._timer = loop.call_at(self._due, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._histogram.observe(max(0.0, loop.time() - self._due))
        self._wait(loop)
