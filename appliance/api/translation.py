"""Requests of other APIs, said as a chat request, and its faults said as theirs."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from appliance.api.chat.request import ChatRequest
from appliance.api.fields.unbuilt import UNBUILT_CHAT
from appliance.api.fields.validation import parse
from appliance.errors import ApplianceError

NEXT = re.compile(r"\.|\[|$")


@dataclass(slots=True)
class Translation:
    """`body` is the chat request; `places` are JSON paths in it and where they come from."""

    body: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)  # paths of fields that nobody knows

    def request(self) -> ChatRequest:
        """The chat request, checked. Raises ApplianceError."""
        try:
            fields, ignored = parse(ChatRequest, self.body, UNBUILT_CHAT, reject_unknown=False)
            fields.check()
        except ApplianceError as fault:
            raise self.own(fault) from None
        self.ignored += map(self.origin, ignored)
        return fields

    def origin(self, path: str) -> str:
        """Where in the client's request that is which the chat request has at `path`."""
        place = max((known for known in self.places if _below(path, known)), key=len, default=None)
        return path if place is None else self.places[place] + path[len(place) :]

    def own(self, fault: ApplianceError) -> ApplianceError:
        """The same fault in the client's terms."""
        if fault.param is None:
            return fault
        origin = self.origin(fault.param)
        moved = fault.at(origin)
        moved.message = fault.message.replace(f"'{fault.param}'", f"'{origin}'")
        return moved


def _below(path: str, place: str) -> bool:
    return path.startswith(place) and NEXT.match(path, len(place)) is not None
