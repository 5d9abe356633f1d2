"""The engine as the server sees it, be it one process or several behind one endpoint."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Protocol

from appliance.metrics import EngineSource

if TYPE_CHECKING:
    from engine.request import Output, Request


class Client(EngineSource, Protocol):
    """Started and stopped by the loader, asked by generation; all on the event loop."""

    on_encode: Callable[[str, float], None]  # modality and seconds of an item in its tower
    phase: str  # of the start; then ready, or dead
    fraction: float  # of the phase

    async def start(self) -> None:
        """Bring the model up. Raises EngineDead with the reason."""

    def submit(self, request: Request) -> AsyncIterator[Output]:
        """Hand a request over; iterating raises RequestRefused or EngineDead."""

    def abort(self, request_id: str, index: int | None = None) -> None:
        """End a request, or one of its answers."""

    async def died(self) -> str:
        """Waits for the engine to be gone without having been stopped; returns why."""

    async def stop(self) -> None:
        """End it; what still runs there is lost."""

    def kill(self) -> None:
        """End it at once, whatever it is doing."""
