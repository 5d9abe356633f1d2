"""What every request has: the name of its model."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class NamedFields(BaseModel):
    """A request to one model."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    model: str

    def check(self) -> None:
        """Raise ApplianceError for fields that contradict each other."""
