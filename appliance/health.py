"""`python -m appliance.health`: whether the server in this container is ready; exit code 0 or 1.

It asks wherever the server listens, which recipe and arguments decide and which the kernel knows:
composing them again for every check would take more time than the answer.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
LISTENING, ACCEPTING = "0A", "00010000"  # state in tcp, flags in unix; proc_pid_net(5)
SECONDS = 4
SERVER = b"server=container"  # among the arguments of the process to ask, and of no other
REQUEST = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def main() -> int:
    for process in servers():
        for address in addresses(process):
            status = asked(address)
            print(f"{address}: {status}")
            return 0 if status == "200" else 1
    print("nothing listens")
    return 1


def servers(proc: Path = PROC) -> Iterator[Path]:
    """Processes that are the launcher's."""
    for process in sorted(proc.glob("[0-9]*")):
        try:
            if SERVER in (process / "cmdline").read_bytes().split(b"\0"):
                yield process
        except OSError:  # gone meanwhile
            continue


Address = tuple[str, int] | str


def addresses(process: Path) -> Iterator[Address]:
    """Hosts with their ports, and paths of Unix sockets, that a process listens on."""
    sockets = set()
    for handle in (process / "fd").iterdir():
        try:
            sockets |= set(re.findall(r"socket:\[(\d+)\]", os.readlink(handle)))
        except OSError:
            continue
    for table in ("tcp", "tcp6"):
        for entry in _entries(process / "net" / table):
            if entry[3] == LISTENING and entry[9] in sockets:
                host, _, port = entry[1].partition(":")
                yield readable(host), int(port, 16)
    for entry in _entries(process / "net" / "unix"):
        if len(entry) > 7 and entry[3] == ACCEPTING and entry[6] in sockets:
            yield entry[7]


def readable(host: str) -> str:
    """An address as one can be connected to: that of the kernel's tables is in words of 4 bytes.

    All interfaces are reached by the one that is always there.
    """
    words = [int(host[start : start + 8], 16) for start in range(0, len(host), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    if any(words):
        return socket.inet_ntop(socket.AF_INET6 if len(words) > 1 else socket.AF_INET, packed)
    return "::1" if len(words) > 1 else "127.0.0.1"


def _entries(table: Path) -> Iterator[list[str]]:
    if table.exists():
        yield from (line.split() for line in table.read_text().splitlines()[1:])


def asked(address: Address) -> str:
    """The status of an answer, or why there is none; by TLS where nothing else is understood."""
    status = _status(address)
    if isinstance(address, str) or status.isdecimal():
        return status
    context = ssl.create_default_context()
    context.check_hostname = False  # it is this container that is asked, by its address
    context.verify_mode = ssl.CERT_NONE
    return _status(address, context)


def _status(address: Address, tls: ssl.SSLContext | None = None) -> str:
    family = socket.AF_UNIX
    if not isinstance(address, str):
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    try:
        with contextlib.ExitStack() as opened:
            client = opened.enter_context(socket.socket(family))
            client.settimeout(SECONDS)
            client.connect(address)
            if tls is not None:
                client = opened.enter_context(tls.wrap_socket(client))
            client.sendall(REQUEST)
            return client.recv(64).split()[1].decode()
    except (OSError, IndexError, UnicodeError) as fault:
        return type(fault).__name__


if __name__ == "__main__":
    sys.exit(main())
