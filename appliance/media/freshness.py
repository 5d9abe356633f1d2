"""How long fetched content may be taken for what its URL still leads to (RFC 9111, section 4.2)."""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

LONGEST = 3600.0  # seconds, whatever an origin says
MOST = 100_000  # URLs; the least recently used are forgotten
DIRECTIVE = re.compile(r'([a-z-]+)(?:=(?:"([^"]*)"|([^\s,"]*)))?\s*(?:,|$)\s*')
UNSHARED = frozenset({"no-store", "no-cache", "private", "must-understand"})


@dataclass(slots=True, frozen=True)
class Fetched:
    """Content, and for how many seconds its URL may be taken to lead to it."""

    data: bytes
    fresh_seconds: float = 0.0


def fresh_seconds(headers: Iterable[tuple[bytes, bytes]]) -> float:
    """Seconds for which a shared cache may reuse an answer: what its origin says, or none.

    Only `s-maxage` and `max-age` count, less `Age`; nothing is guessed where they are not there.
    What an answer varies by does not matter, since all requests have the same headers.
    """
    found: dict[str, list[str]] = {}
    for name, value in headers:
        found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    said = directives(", ".join(found.get("cache-control", ())))
    if said is None or UNSHARED & said.keys() or "*" in found.get("vary", []):
        return 0.0
    lifetime = said.get("s-maxage", said.get("max-age", "0"))
    age = found.get("age", ["0"])[0]
    if not (lifetime.isdecimal() and age.isdecimal()) or len(found.get("age", [])) > 1:
        return 0.0
    return min(max(float(lifetime[:10]) - float(age[:10]), 0.0), LONGEST)


def directives(header: str) -> dict[str, str] | None:
    """The directives of a Cache-Control header; None if it cannot be read or says a thing twice."""
    said: dict[str, str] = {}
    text, place = header.strip().lower(), 0
    while place < len(text):
        match = DIRECTIVE.match(text, place)
        if match is None or match[1] in said:
            return None
        said[match[1]] = match[2] or match[3] or ""
        place = match.end()
    return said


class FreshUrls:
    """What the content of a URL was, for as long as that holds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, most: int = MOST) -> None:
        self._clock = clock
        self._most = most
        self._known: OrderedDict[str, tuple[bytes, float]] = OrderedDict()

    def find(self, url: str) -> bytes | None:
        """The digest of its content, None when that has to be asked for."""
        known = self._known.get(url)
        if known is None:
            return None
        if known[1] <= self._clock():
            del self._known[url]
            return None
        self._known.move_to_end(url)
        return known[0]

    def put(self, url: str, digest: bytes, seconds: float) -> None:
        """Remember what a URL's content is for some seconds."""
        self._known.pop(url, None)
        if seconds > 0:
            self._known[url] = (digest, self._clock() + seconds)
            if len(self._known) > self._most:
                self._known.popitem(last=False)
