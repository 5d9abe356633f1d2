"""The entries of `media.allowed_domains`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from appliance.media.host import is_address, read_host

DEFAULT_PORTS = {"http": 80, "https": 443}
PORT = re.compile(r"[1-9][0-9]{0,4}")
ENTRY = re.compile(r"(?P<host>\[[^\]]*\]|[^:]*)(?::(?P<port>.*))?")


@dataclass(slots=True, frozen=True)
class Domain:
    """One entry: a host, its subdomains, or every host; and the ports it may be reached at.

    As in a Content-Security-Policy (CSP 3, section 6.7.2.8), an entry without a port is the
    scheme's own port only; `:*` is any.
    """

    host: str  # "" for every host
    subdomains: bool
    port: int | None  # None for the scheme's own
    any_port: bool

    def covers(self, scheme: str, host: str, port: int) -> bool:
        """Whether a host from `read_host` may be fetched from under this entry."""
        if not self.any_port and port != (self.port or DEFAULT_PORTS[scheme]):
            return False
        if self.subdomains:
            return host.endswith(f".{self.host}") and not is_address(host)
        return not self.host or host == self.host


@lru_cache(maxsize=4096)
def read_domain(text: str) -> Domain:
    """Parse `example.org`, `*.example.org` or `*`, each with an optional `:port` or `:*`.

    Raises ValueError saying what is wrong, in words for the operator.
    """
    if "/" in text or "@" in text:
        raise ValueError("is a URL; give the host alone, without scheme and path")
    match = ENTRY.fullmatch(text)
    if match is None:
        raise ValueError("is not a host with an optional :port")
    host, port = match["host"], match["port"]
    if port is not None and port != "*":
        read_port(port)
    number = int(port) if port not in (None, "*") else None
    if host == "*":
        return Domain("", False, number, port == "*")
    subdomains = host.startswith("*.")
    if "*" in host.removeprefix("*."):
        raise ValueError("has a * elsewhere than in front of a whole name, as in *.example.org")
    if host.startswith("."):
        raise ValueError(f"begins with a dot; for subdomains write *{host}")
    try:
        name = read_host(host.removeprefix("*."))
    except ValueError:
        raise ValueError("is not a host") from None
    if subdomains and is_address(name):
        raise ValueError("is an address, which has no subdomains")
    return Domain(name, subdomains, number, port == "*")


def read_port(text: str) -> int:
    """A TCP port in plain decimal. Raises ValueError."""
    if PORT.fullmatch(text) is None or int(text) > 65535:
        raise ValueError("its port is not a number from 1 to 65535")
    return int(text)
