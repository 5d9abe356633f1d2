"""The fields that all requests to the model share."""

from __future__ import annotations

import hashlib

from pydantic import BaseModel, ConfigDict, Field

from appliance.api.fields.whole import Whole
from appliance.generation.structure import Structure

INT32 = 2**31


class RequestFields(BaseModel):
    """Which model, how soon, and whose caches."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    model: str
    cache_salt: str | None = None  # or empty, which is none
    priority: Whole = Field(default=0, ge=-INT32, lt=INT32)

    @property
    def structure(self) -> Structure | None:
        """What the answers are held to."""
        return None

    def check(self) -> None:
        """Raise for fields that contradict each other."""

    def salt(self, scope: bytes) -> bytes:
        """What its cached prompts are kept apart by, in a scope that may be empty."""
        if not scope and not self.cache_salt:
            return b""
        return hashlib.blake2b((self.cache_salt or "").encode(), key=scope, digest_size=16).digest()
