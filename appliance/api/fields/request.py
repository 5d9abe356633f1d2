"""The fields that all requests to the model share."""

from __future__ import annotations

import hashlib

from pydantic import Field

from appliance.api.fields.named import NamedFields
from appliance.api.fields.whole import Whole
from appliance.generation.structure import Structure

INT32 = 2**31


class RequestFields(NamedFields):
    """Which model, how soon, and whose caches."""

    cache_salt: str | None = None  # or empty, which is none
    priority: Whole = Field(default=0, ge=-INT32, lt=INT32)

    @property
    def structure(self) -> Structure | None:
        """What the answers are held to."""
        return None

    def salt(self, scope: bytes) -> bytes:
        """What its cached prompts are kept apart by, in a scope that may be empty."""
        if not scope and not self.cache_salt:
            return b""
        return hashlib.blake2b((self.cache_salt or "").encode(), key=scope, digest_size=16).digest()
