"""What crosses the pipe between server and engine process, beside requests and outputs."""

from __future__ import annotations

from dataclasses import dataclass

from engine.options import EngineOptions
from engine.request import Output, Request
from engine.stats import EngineStats


@dataclass(slots=True, frozen=True)
class Abort:
    """To the engine: end a request, or one of its answers."""

    request_id: str
    index: int | None


@dataclass(slots=True, frozen=True)
class Phase:
    """From the engine: how far the start is."""

    name: str
    fraction: float


@dataclass(slots=True, frozen=True)
class Refused:
    """From the engine: a request that was not taken."""

    request_id: str
    reason: str


@dataclass(slots=True, frozen=True)
class Stepped:
    """From the engine: what a step added, and the state after it."""

    outputs: list[Output]
    stats: EngineStats
    encodes: list[tuple[str, float]]  # modality and seconds of items that went through a tower


@dataclass(slots=True, frozen=True)
class Failed:
    """From the engine, last of all: why it ends."""

    reason: str
    correctable: bool = False  # as in engine.errors


ToEngine = EngineOptions | Request | Abort | None  # the options come first; None: stop
FromEngine = Phase | Refused | Stepped | Failed
