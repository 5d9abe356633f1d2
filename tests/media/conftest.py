from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest


@pytest.fixture
def tracing() -> Callable[[], AbstractContextManager[Callable[[], int]]]:
    """Measures the highest amount of memory allocated through Python meanwhile."""

    @contextmanager
    def measure() -> Iterator[Callable[[], int]]:
        tracemalloc.start()
        try:
            yield lambda: tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return measure
