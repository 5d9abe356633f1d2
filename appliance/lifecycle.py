"""Where the server is between its first second and its last."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from appliance.errors import ApplianceError, unavailable


@dataclass(slots=True)
class Lifecycle:
    """Loading phase and its progress, then ready, draining, or dead with a reason."""

    phase: str = "starting"
    fraction: float = 0.0
    detail: str = ""  # what the fraction is of, in words
    loaded: bool = False
    draining: bool = False
    dead: str | None = None
    open_requests: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def ready(self) -> bool:
        return self.loaded and not self.draining and self.dead is None

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def obstacle(self) -> ApplianceError | None:
        """Why no request can be taken now, as a 503 with Retry-After."""
        if self.dead is not None:
            return unavailable(
                f"The engine has stopped: {self.dead}. The server is going down.", "engine_dead"
            )
        if self.draining:
            return unavailable("The server is shutting down and takes no new requests.", "draining")
        if not self.loaded:
            return unavailable(
                f"The model is not loaded yet ({self.phase}, {self.fraction:.0%}).", "loading"
            )
        return None

    def report(self) -> dict[str, str | float]:
        """What the probes tell."""
        phase = self.phase
        if self.dead is not None:
            phase = "dead"
        elif self.draining:
            phase = "draining"
        elif self.loaded:
            phase = "ready"
        return {
            "phase": phase,
            "fraction": 1.0 if self.loaded else round(self.fraction, 3),
            "elapsed": round(self.elapsed, 1),
        }
