"""Sounds longer than a tower hears at once, cut into pieces that it does."""

from __future__ import annotations

AT_ONCE = 8  # chunks that go through a tower together; bounds what it takes of memory


def chunk_lengths(frames: int, context: int) -> list[int]:
    """Frames of each chunk: all but the last are as long as the tower's context."""
    return [min(context, frames - start) for start in range(0, frames, context)]
