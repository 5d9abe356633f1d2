"""Architectures that kernels are compiled for, as FlashInfer and nvcc name them: 8.0, 9.0a, 12.0f.

With `a` the code runs on that compute capability alone, without a letter or with `f` on later ones
of its major number too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from engine.errors import EngineError

NAME = re.compile(r"(\d{1,2})\.(\d)([af]?)")


class ArchitectureUnknown(EngineError):
    """A text that is no list of architectures."""

    correctable = True


def named(capability: tuple[int, int]) -> str:
    """The architecture that FlashInfer compiles for on a card of this compute capability."""
    major, minor = capability
    if capability == (12, 0):
        return "12.0f"
    return f"{major}.{minor}a" if major >= 9 else f"{major}.{minor}"


def capability_of(architecture: str) -> tuple[int, int]:
    match = NAME.fullmatch(architecture)
    if match is None:
        raise ArchitectureUnknown(f"'{architecture}' is no architecture, such as 8.0, 8.9 or 9.0a")
    return int(match[1]), int(match[2])


def parsed(text: str) -> tuple[str, ...]:
    """Architectures that are separated by blanks or commas, each with its letter.

    Raises ArchitectureUnknown.
    """
    words = text.replace(",", " ").split()
    if not words:
        raise ArchitectureUnknown(f"'{text}' names no architecture, such as 8.0, 8.9 or 9.0a")
    found = {word if word[-1].isalpha() else named(capability_of(word)) for word in words}
    return tuple(sorted(found, key=capability_of))


def covers(architectures: Iterable[str], capability: tuple[int, int]) -> bool:
    """Whether code for these runs on a card of this compute capability."""
    return any(_runs(one, capability) for one in architectures)


def _runs(architecture: str, capability: tuple[int, int]) -> bool:
    major, minor = capability_of(architecture)
    if architecture.endswith("a"):
        return (major, minor) == capability
    return major == capability[0] and minor <= capability[1]
