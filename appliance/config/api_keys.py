"""API keys as they are configured: checked, read from a file, and told as digests."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.config.errors import ConfigurationError
from appliance.config.schema import ServerConfig

DIGEST = re.compile(r"sha256:([0-9A-Fa-f]{64})")
PLAIN = re.compile(r"[!-~]+")  # what an Authorization header can carry behind "Bearer "
LARGEST_FILE = 1 << 20
FILE = "server.api_keys_file"


@dataclass(slots=True, frozen=True)
class KeyFile:
    """What a file of keys says, and whether everybody on this machine may read it."""

    entries: list[str]
    public: bool


def key_digest(entry: str) -> bytes:
    """SHA-256 of a key, which is configured plain or as `sha256:` and that in hexadecimal."""
    if match := DIGEST.fullmatch(entry):
        return bytes.fromhex(match[1])
    return hashlib.sha256(entry.encode()).digest()


def as_digest(entry: str) -> str:
    """An entry that lets the same key in and is no secret."""
    return f"sha256:{key_digest(entry).hex()}"


def plain_keys(server: ServerConfig) -> list[str]:
    """All keys that are not configured as digests."""
    lists = [server.api_keys, *(tenant.keys for tenant in server.tenants.values())]
    return [entry for entries in lists for entry in entries if not DIGEST.fullmatch(entry)]


def check_server_keys(server: Mapping[str, Any]) -> None:
    """Raise ConfigurationError, which quotes no key, for what `server` of a recipe has wrong.

    Values that are still missing are left to those who need them.
    """
    places = [("server.api_keys", server["api_keys"])]
    for name, tenant in server["tenants"].items():
        keys = tenant["keys"]
        if keys == []:  # if it were the only one, the server would be open to all
            raise ConfigurationError(f"server.tenants.{name}.keys is empty, must hold a key")
        places.append((f"server.tenants.{name}.keys", keys))
    _check([(place, keys) for place, keys in places if isinstance(keys, list)])


def gather_keys(server: ServerConfig) -> KeyFile | None:
    """Add the keys of `server.api_keys_file` to `server.api_keys`; returns what the file said.

    Raises ConfigurationError with one line.
    """
    if server.api_keys_file is None:
        return None
    file = read_key_file(server.api_keys_file)
    tenants = [(f"server.tenants.{name}.keys", one.keys) for name, one in server.tenants.items()]
    _check([(FILE, file.entries), *tenants])
    server.api_keys = [*server.api_keys, *file.entries]
    return file


def read_key_file(path: str) -> KeyFile:
    """One entry a line; blank lines and those that begin with `#` are notes."""
    try:
        content, mode = _read(os.path.expanduser(path))
    except (OSError, ValueError) as error:
        why = os.strerror(error.errno or 0).lower() if isinstance(error, OSError) else "no path"
        raise ConfigurationError(f"{FILE}: cannot read '{path}': {why}") from error
    if not stat.S_ISREG(mode):
        raise ConfigurationError(f"{FILE}: '{path}' is not a regular file")
    if len(content) > LARGEST_FILE:
        raise ConfigurationError(f"{FILE}: '{path}' is larger than {LARGEST_FILE} bytes")
    entries = []
    for number, entry in _lines(content):
        if wrong := _fault(entry):
            raise ConfigurationError(f"{FILE}: '{path}', line {number} {wrong}")
        entries.append(entry)
    if not entries:  # the server would be open to all
        raise ConfigurationError(f"{FILE}: '{path}' holds no key")
    return KeyFile(entries, bool(mode & stat.S_IROTH))


def _read(path: str) -> tuple[bytes, int]:
    """Content, a byte more than allowed at most, and mode; of what is no file the mode alone."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not block
    try:
        mode = os.fstat(handle).st_mode
        if not stat.S_ISREG(mode):
            return b"", mode
        with open(handle, "rb", closefd=False) as file:
            return file.read(LARGEST_FILE + 1), mode
    finally:
        os.close(handle)


def _lines(content: bytes) -> Iterator[tuple[int, str]]:
    text = content.decode("utf-8-sig", errors="replace")
    for number, line in enumerate(re.split(r"\r?\n", text), start=1):
        entry = line.strip(" \t")
        if entry and not entry.startswith("#"):
            yield number, entry


def _check(places: Iterable[tuple[str, Sequence[str]]]) -> None:
    owners: dict[bytes, str] = {}
    for place, entries in places:
        for number, entry in enumerate(entries):
            if wrong := _fault(entry):
                raise ConfigurationError(f"{place}[{number}] {wrong}")
            owner = owners.setdefault(key_digest(entry), place)
            if owner != place:  # whose limits would hold?
                raise ConfigurationError(f"{owner} and {place} have a key in common")


def _fault(entry: object) -> str | None:
    """What is wrong with an entry, in words that do not quote it."""
    if not isinstance(entry, str):
        return "is not a key but a list or a group"
    if not entry:
        return "is empty, must be a key"
    if not PLAIN.fullmatch(entry):
        return "has white space or characters that are not printable ASCII, which no key has"
    if entry.lower().startswith("sha256:") and not DIGEST.fullmatch(entry):
        return "begins with 'sha256:', but 64 hexadecimal digits do not follow"
    return None
