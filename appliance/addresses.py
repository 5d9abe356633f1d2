"""Where the server listens: a TCP port or a Unix socket, and what may be wrong with it."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

from appliance.config.errors import ConfigurationError

LONGEST_PATH = 107  # bytes of a Unix socket's name, unix(7)
FREE = "server.port=0 takes any free one"


class CannotListen(ConfigurationError):
    """The address is taken, not ours, or not an address."""


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens where it was told to. Raises CannotListen."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as fault:
        raise CannotListen(
            f"server.host={host} is not an address of this machine: 127.0.0.1 is for programs on "
            "it, 0.0.0.0 for everybody"
        ) from fault
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen()
    except OSError as fault:
        listener.close()
        raise CannotListen(unbound(host, port, fault.errno)) from fault
    listener.setblocking(False)
    return listener


def unbound(host: str, port: int, code: int | None) -> str:
    """Why a port cannot be had, and what to type instead."""
    if code == errno.EADDRINUSE:
        other = port + 1 if port < 65535 else port - 1
        return f"port {port} of {host} is in use: set server.port={other}, or {FREE}"
    if code in (errno.EACCES, errno.EPERM):
        return f"port {port} of {host} needs rights that this user lacks: set server.port=8000"
    if code == errno.EADDRNOTAVAIL:
        return f"server.host={host} is not an address of this machine: set server.host=0.0.0.0"
    why = os.strerror(code).lower() if code else "refused"
    return f"port {port} of {host} cannot be listened on ({why})"


def check_socket_path(path: str) -> None:
    """Raise CannotListen where no Unix socket can be made; one that nobody serves is replaced."""
    place = Path(path)
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise CannotListen(f"server.uds is longer than {LONGEST_PATH} bytes: set a shorter path")
    folder = place.parent
    if not folder.is_dir():
        raise CannotListen(f"server.uds={path}: no folder '{folder}'")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CannotListen(f"server.uds={path}: '{folder}' cannot be written to")
    try:
        mode = os.lstat(place).st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise CannotListen(f"server.uds={path} is there already and no socket: set another path")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        if client.connect_ex(path) == 0:
            raise CannotListen(f"server.uds={path} is in use by another server: set another path")


def url(listener: socket.socket, scheme: str = "http") -> str:
    """Where a client on this machine finds the server."""
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
