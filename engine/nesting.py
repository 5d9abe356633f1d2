"""How deep JSON nests, found out without going down into it."""

from __future__ import annotations

from typing import Any


def nests_deeper(content: Any, most: int) -> bool:
    """Whether lists and objects lie within each other more than `most` times."""
    level = [content]
    for _ in range(most):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True
