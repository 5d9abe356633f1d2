"""Clients' own names for media: each means the content first seen under it, and nothing else."""

from __future__ import annotations

from collections import OrderedDict

from appliance.errors import media_uuid_conflict

MOST = 100_000  # bindings; the least recently used are forgotten


class Bindings:
    """From the API key and `uuid` of a request to the digest of the content bound to them.

    A name is never an identity: it finds content for the key that sent it, and is checked against
    the content that comes with it.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._bound: OrderedDict[tuple[bytes, str], bytes] = OrderedDict()

    def find(self, owner: bytes, uuid: str) -> bytes | None:
        """The digest bound to a name, None if there is none."""
        digest = self._bound.get((owner, uuid))
        if digest is not None:
            self._bound.move_to_end((owner, uuid))
        return digest

    def check(self, owner: bytes, uuid: str, digest: bytes, param: str) -> None:
        """Raise ApplianceError 409 if the name is bound to other content."""
        if self.find(owner, uuid) not in (None, digest):
            raise media_uuid_conflict(param)

    def bind(self, owner: bytes, uuid: str, digest: bytes, param: str) -> None:
        """Bind a name that is free. Raises as `check` does."""
        self.check(owner, uuid, digest, param)
        self._bound[owner, uuid] = digest
        if len(self._bound) > self._most:
            self._bound.popitem(last=False)
