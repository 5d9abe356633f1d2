"""How far fetching and converting are."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told of a phase, the part of it that is done, and what that is in words."""

    def __call__(self, phase: str, fraction: float, detail: str = "") -> None: ...


def silent(phase: str, fraction: float, detail: str = "") -> None:
    """Tell nobody."""
