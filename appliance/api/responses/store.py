"""Responses that others may go on from: the latest ones, in memory."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from appliance.errors import ApplianceError, bad_request, not_found

CONTAINER = 256  # bytes of an object or a list beside what is in it
Key = tuple[bytes, str]  # whose, and its id


@dataclass(slots=True, frozen=True)
class Kept:
    """`messages` are the conversation up to the response, its own among them; nobody changes them.

    `size` is about how many bytes that takes.
    """

    response: bytes
    messages: list[dict[str, Any]]
    size: int


class ResponseStore:
    """Keeps so many bytes, none by default. A response is known to the key that asked for it."""

    def __init__(self, most_bytes: int) -> None:
        self._most, self._bytes = most_bytes, 0
        self._kept: OrderedDict[Key, Kept] = OrderedDict()

    def __bool__(self) -> bool:
        return self._most > 0

    def keep(
        self, owner: bytes, identity: str, response: bytes, messages: list[dict[str, Any]]
    ) -> None:
        """Forgets the oldest ones where there is no room."""
        kept = Kept(response, messages, len(response) + weight(messages))
        if kept.size > self._most:
            return
        self._kept[owner, identity] = kept
        self._bytes += kept.size
        while self._bytes > self._most:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.size

    def messages(self, owner: bytes, identity: str) -> list[dict[str, Any]]:
        """What a response goes on from. Raises ApplianceError 400."""
        param = "previous_response_id"
        if not self:
            raise bad_request(
                "This server keeps no responses (server.response_store_bytes is 0): send the whole "
                "conversation as 'input'.",
                param,
                "unsupported_parameter",
            )
        kept = self._kept.get((owner, identity))
        if kept is None:
            raise bad_request(
                "There is no such response here, or none any more.",
                param,
                "previous_response_not_found",
            )
        self._kept.move_to_end((owner, identity))
        return kept.messages

    def response(self, owner: bytes, identity: str) -> bytes:
        """The body of a response. Raises ApplianceError 404."""
        kept = self._kept.get((owner, identity))
        if kept is None:
            raise missing()
        return kept.response

    def forget(self, owner: bytes, identity: str) -> None:
        """Raises ApplianceError 404."""
        kept = self._kept.pop((owner, identity), None)
        if kept is None:
            raise missing()
        self._bytes -= kept.size


def weight(value: Any) -> int:
    """Bytes that it takes, about: a picture is one text, and is not written out to be measured."""
    if isinstance(value, str):
        return len(value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return CONTAINER + sum(map(weight, inner))


def missing() -> ApplianceError:
    """404: it was never kept, is another key's, or had to make room."""
    return not_found("There is no such response here, or none any more.", "response_not_found")
