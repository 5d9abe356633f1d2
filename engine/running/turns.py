"""Long work beside short steps: it goes on for a while at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Dropped(BaseException):
    """Nobody wants what the work would give; not an Exception, so that it ends all of it."""


class Turns(Generic[Result]):
    """Work in a thread of its own, which runs only while its owner waits for it.

    The two never compute at once. Work that calls `give_way` between its parts, none of them long,
    stops there when its turn is over.
    """

    def __init__(self) -> None:
        self.seconds = 0.0  # that the work has had
        self._turn = threading.Semaphore(0)
        self._over = threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        self._end = 0.0
        self._dropped = False
        self._result: Result | None = None
        self._error: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether there is work that is not done."""
        return self._thread is not None

    def begin(self, work: Callable[[], Result]) -> None:
        """Have work to go on with; what was there must be done or dropped."""
        assert self._thread is None
        self.seconds, self._dropped = 0.0, False
        self._result = self._error = None
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def go_on(self, seconds: float) -> Result | None:
        """Have it work for about so long; what it gives, once it is done. Raises what it raises."""
        assert self._thread is not None
        begun = time.monotonic()
        self._end = begun + seconds
        self._turn.release()
        self._over.acquire()
        self.seconds += time.monotonic() - begun
        if self._result is None and self._error is None:
            return None
        self._thread.join()
        self._thread = None
        if self._error is not None:
            raise self._error
        return self._result

    def drop(self) -> None:
        """End work that is not done."""
        self._dropped = True
        try:
            self.go_on(0)
        except Dropped:
            return

    def give_way(self) -> None:
        """Called by the work: wait for the next turn if this one is over."""
        if threading.current_thread() is not self._thread or time.monotonic() < self._end:
            return
        self._over.release()
        self._turn.acquire()
        if self._dropped:
            raise Dropped

    def _run(self, work: Callable[[], Result]) -> None:
        self._turn.acquire()
        try:
            if self._dropped:
                raise Dropped
            self._result = work()
        except BaseException as error:
            self._error = error
        self._over.release()
