"""What the routes share: configuration, lifecycle, metrics, and the model once it is there."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from appliance.config.schema import Config
from appliance.errors import not_found, overloaded
from appliance.lifecycle import Lifecycle
from appliance.metrics import Metrics

if TYPE_CHECKING:
    from appliance.generation.generation import Generation  # loads the model's libraries


@dataclass(slots=True)
class Service:
    """One served model; `generation` is None until it is loaded."""

    config: Config
    model: str  # the name clients ask for
    digest: str  # of the composed recipe
    metrics: Metrics = field(default_factory=Metrics)
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    generation: Generation | None = None
    address: str = ""  # where it listens
    keep_alive_seconds: float = 10.0
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def fingerprint(self) -> str:
        return f"fp_{self.digest[:12]}"

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
        if name != self.model:
            raise not_found(
                f"The model '{name[:200]}' does not exist here; this server has '{self.model}'.",
                "model_not_found",
                "model",
            )

    def card(self) -> dict[str, Any]:
        """The model's entry in `/v1/models`. Raises ApplianceError 503 before it is loaded."""
        if self.generation is None:
            raise self.lifecycle.obstacle() or AssertionError("loaded without a generation")
        image = self.config.media.image
        inputs = list(self.generation.modalities)
        limits: dict[str, Any] = {
            "max_body_bytes": self.config.server.max_body_bytes,
            "max_prompt_tokens": self.generation.limits.longest - 1,
        }
        if "image" in inputs:
            limits["image"] = {
                "limit": image.limit,
                "max_bytes": image.max_bytes,
                "max_pixels": image.max_pixels,
                "formats": list(image.formats),
            }
        if "video" in inputs:
            video = self.config.media.video
            limits["video"] = {
                "limit": video.limit,
                "max_bytes": video.max_bytes,
                "max_seconds": video.max_seconds,
                "max_pixels": video.max_pixels,
            }
        return {
            "id": self.model,
            "object": "model",
            "created": self.created,
            "owned_by": "appliance",
            "max_model_len": self.generation.limits.max_len,
            "modalities": {"input": ["text", *inputs], "output": ["text"]},
            "limits": limits,
        }
