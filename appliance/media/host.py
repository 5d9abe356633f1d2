"""Hosts as a URL or an allow-list spells them, brought to one form."""

from __future__ import annotations

import ipaddress
import re

import idna

LONGEST_NAME = 253
LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


def read_host(text: str) -> str:
    """Lower-case ASCII name, dotted IPv4 or compressed IPv6 (no brackets) of a host.

    Names follow IDNA 2008 with the mapping of UTS 46; one trailing dot is dropped. Addresses have
    one spelling each: four decimal numbers, or IPv6 in brackets without a zone. Whatever a browser
    would take for a number in another notation is refused, as in the WHATWG URL standard, 3.5
    ("ends in a number"). Raises ValueError saying what is wrong, without the text.
    """
    if text.startswith("["):
        return _ipv6(text)
    if not text or len(text) > 4 * LONGEST_NAME:
        raise ValueError("its host is empty or too long")
    name = text.lower()
    if not name.isascii() or "xn--" in name:
        name = _to_ascii(name)
    whole = name.removesuffix(".")
    labels = whole.split(".")
    if len(whole) > LONGEST_NAME or not all(LABEL.fullmatch(label) for label in labels):
        raise ValueError("its host is not a name")
    if NUMBER.fullmatch(labels[-1]) is None:
        return whole
    if text != whole or len(labels) != 4:
        raise ValueError("its host is an address in an odd notation")
    try:
        return str(ipaddress.IPv4Address(whole))
    except ValueError:
        raise ValueError("its host is an address in an odd notation") from None


def is_address(host: str) -> bool:
    """Whether a host from `read_host` is an address and no name."""
    return ":" in host or NUMBER.fullmatch(host.rpartition(".")[2]) is not None


def _ipv6(text: str) -> str:
    if not text.endswith("]") or "%" in text:
        raise ValueError("its host is no IPv6 address")
    try:
        return str(ipaddress.IPv6Address(text[1:-1]))
    except ValueError:
        raise ValueError("its host is no IPv6 address") from None


def _to_ascii(name: str) -> str:
    try:
        return idna.encode(name, uts46=True, std3_rules=True, transitional=False).decode("ascii")
    except (idna.IDNAError, UnicodeError):
        raise ValueError("its host is not an internationalised name") from None
