"""What is common to all that is recorded: which sizes, in which order, and what if it cannot be."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch

from engine.device.device import Recorder
from engine.errors import EngineError

logger = logging.getLogger(__name__)

Made = TypeVar("Made")


class Recordings(Generic[Made]):
    """What was recorded for some sizes; a batch takes the next larger one."""

    def __init__(self, device: Recorder, what: str, remedy: str, *, strict: bool) -> None:
        """`what` is recorded, for people; `remedy` is the key to set where that fails.

        A model that cannot be recorded is an EngineError if `strict`. Otherwise it has no
        recordings, and a warning says so.
        """
        self._device = device
        self._what = what
        self._remedy = remedy
        self._strict = strict
        self._made: dict[int, Made] = {}
        self.sizes: list[int] = []

    def record(
        self,
        sizes: Sequence[int],
        make: Callable[[int], Made],
        progress: Callable[[float], None],
        *,
        largest: bool,
    ) -> None:
        """Make these, or the largest. It comes first: the others find room in its memory."""
        wanted = [max(sizes)] if largest else sorted(sizes, reverse=True)
        for done, size in enumerate(wanted):
            try:
                self._made[size] = make(size)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                if self._device.lost():
                    raise
                if self._strict:
                    raise EngineError(
                        f"{self._what} cannot be recorded: set {self._remedy}"
                    ) from error
                logger.warning(
                    "%s cannot be recorded on this model and runs kernel by kernel",
                    self._what,
                    exc_info=True,
                )
                self._made = {}
                break
            progress((done + 1) / len(wanted))
        self.sizes = sorted(self._made)

    def size_for(self, count: int) -> int | None:
        """The smallest recorded size for so many; None if there is none."""
        place = bisect_left(self.sizes, count)
        return self.sizes[place] if place < len(self.sizes) else None

    def __getitem__(self, size: int) -> Made:
        return self._made[size]
