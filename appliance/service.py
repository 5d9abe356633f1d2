"""What the routes share: configuration, lifecycle, metrics, and the model once it is there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from appliance.config.schema import Config
from appliance.errors import not_found, overloaded
from appliance.lifecycle import Lifecycle
from appliance.metrics import Metrics
from appliance.secrecy import Secrecy
from appliance.tracing import Tracing

if TYPE_CHECKING:
    from appliance.generation.generation import Generation  # loads the model's libraries


Made = TypeVar("Made")


def _one_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "aside")


@dataclass(slots=True)
class Service:
    """One served model; `generation` is None until it is loaded."""

    config: Config
    model: str  # the name clients ask for
    digest: str  # of the composed recipe
    metrics: Metrics = field(default_factory=Metrics)
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    generation: Generation | None = None
    secrecy: Secrecy = field(default_factory=Secrecy)
    tracing: Tracing | None = None
    address: str = ""  # where it listens
    keep_alive_seconds: float = 10.0
    created: int = field(default_factory=lambda: int(time.time()))

    _aside: ThreadPoolExecutor = field(default_factory=_one_thread)

    async def aside(self, work: Callable[[], Made]) -> Made:
        """Do work that would hold up the event loop: large bodies and answers, one at a time.

        One thread, since each that computes takes the interpreter from the loop for a moment.
        """
        return await asyncio.get_running_loop().run_in_executor(self._aside, work)

    @property
    def fingerprint(self) -> str:
        return f"fp_{self.digest[:12]}"

    def loaded(self) -> Generation:
        """The model. Raises ApplianceError 503 before it is loaded."""
        if self.generation is None:
            raise self.lifecycle.obstacle() or AssertionError("loaded without a generation")
        return self.generation

    def generator(self) -> Generation:
        """The loaded model, ready for one more request. Raises ApplianceError 503 or 429."""
        obstacle = self.lifecycle.obstacle()
        if obstacle is not None:
            raise obstacle
        assert self.generation is not None
        if self.generation.waiting >= self.config.server.max_queue:
            raise overloaded(
                f"{self.config.server.max_queue} requests are waiting already; try again soon."
            )
        return self.generation

    def check_model(self, name: str) -> None:
        """Raise ApplianceError 404 unless `name` is the model served here."""
        if name != self.model and name not in self.config.server.aliases:
            raise not_found(
                f"The model '{name[:200]}' does not exist here; this server has '{self.model}'.",
                "model_not_found",
                "model",
            )
