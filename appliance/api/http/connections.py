"""How many connections there are, and which of them make room for a new one."""

from __future__ import annotations

import resource
from typing import Protocol

SHARE = 2  # of the descriptors, connections may take one in so many: items of media need some too


class Closable(Protocol):
    """A connection as seen from here."""

    def close_idle(self) -> None:
        """Close it: it has nothing to answer."""


class Connections:
    """All connections of a server, at most `limit`.

    A new one beyond that takes the place of the one that has been idle for longest, so that clients
    who only hold connections keep nobody out. Each gets `read_seconds` for a request's headers, and
    for its body a second more for every BYTES_A_SECOND.
    """

    BYTES_A_SECOND = 64 * 2**10

    def __init__(self, limit: int, read_seconds: float) -> None:
        self.limit = limit
        self.read_seconds = read_seconds
        self._open: set[Closable] = set()
        self._idle: dict[Closable, None] = {}  # in the order in which they became so

    def __len__(self) -> int:
        return len(self._open)

    def opened(self, connection: Closable) -> bool:
        """Add a connection, idle at first; False when all others are at work."""
        if len(self._open) >= self.limit:
            longest = next(iter(self._idle), None)
            if longest is None:
                return False
            self.closed(longest)
            longest.close_idle()
        self._open.add(connection)
        self._idle[connection] = None
        return True

    def at_work(self, connection: Closable) -> None:
        """It has a request that is to be answered."""
        self._idle.pop(connection, None)

    def at_rest(self, connection: Closable) -> None:
        """All its requests are answered."""
        if connection in self._open:
            self._idle[connection] = None

    def closed(self, connection: Closable) -> None:
        """It is gone."""
        self._open.discard(connection)
        self._idle.pop(connection, None)


def most_connections(wanted: int) -> int:
    """`wanted`, or as many as the process may open; raises its soft limit of descriptors for them.

    Many systems start processes with a soft limit of 1,024, for the sake of select().
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted * SHARE
    if hard != resource.RLIM_INFINITY:
        needed = min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        soft = needed
    if soft == resource.RLIM_INFINITY:
        return wanted
    return min(wanted, soft // SHARE)
