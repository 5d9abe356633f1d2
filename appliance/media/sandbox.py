"""What a media worker gives up before it reads what strangers sent.

A decoder that is taken over finds one channel to the server, the item that it was given, and
memory. Every layer is put on by itself, so that a kernel that lacks one still has the others.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import struct
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

from appliance.media import syscall_filter
from engine.device.process_setup import end_with_parent

# An id that distributions give to nobody, within the 16 bits that user namespaces map: limits by
# user count this server's workers alone, and nothing belongs to it.
STRANGER = 65_521
CHANNEL, MEMORY = 3, 4  # descriptors of a worker: to the server, and what tells its memory
DESCRIPTORS = 16  # the standard ones, the channel, what memory it has, an item, what is made of it

MOST_DESCRIPTORS = 1 << 20  # of any process, unless an administrator raised it

PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 4, 24, 38  # linux/prctl.h
PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_SETPCAP, CAPABILITIES = 5, 6, 7, 8, 64
CAPABILITY_VERSION = 0x20080522  # linux/capability.h
CREATE_RULESET, RESTRICT_SELF, GET_VERSION = 444, 446, 1  # linux/landlock.h
FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # how many there are, by version
LAST_FILE_RIGHTS = 16  # from version 5 on
TCP, SCOPES = 0b11, 0b11  # bind and connect; abstract sockets and signals

Step = Callable[[], str | None]


def enter(keep: tuple[int, int], memory_bytes: int, parent: int) -> list[str]:
    """Give up what decoding does not need, for good; returns what could not be, in words.

    `keep` are the descriptors to be kept beside the standard ones; they become CHANNEL and MEMORY.
    A file may get `memory_bytes`. This process ends with its parent, `parent`. Raises RuntimeError
    if there are threads, which would keep what they have.
    """
    _keep(keep)
    if sys.platform != "linux":
        return ["this system has no sandbox"]
    if len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError("a media worker has threads before it begins")
    steps: dict[str, Step] = {
        "limits are not all set": lambda: _limit(memory_bytes),
        "capabilities may come back": _drop_bounds,
        "they are root": _change_user,
        "capabilities are kept": _drop_capabilities,
        "privileges may be gained": lambda: _prctl(PR_SET_NO_NEW_PRIVS, 1),
        "their memory may be read": lambda: _prctl(PR_SET_DUMPABLE, 0),
        "they may outlive the server": lambda: end_with_parent(parent),
        "files are left to the filter (no Landlock)": _landlock,
        "system calls are not filtered (no seccomp)": syscall_filter.install,
    }
    missing = []
    for lack, step in steps.items():
        try:
            part = step()
        except OSError:
            part = lack
        if part is not None:
            missing.append(part)
    return missing


def _keep(handles: tuple[int, int]) -> None:
    """Close all descriptors but these and the standard ones."""
    above = [fcntl.fcntl(handle, fcntl.F_DUPFD_CLOEXEC, MEMORY + 1) for handle in handles]
    for number, handle in zip((CHANNEL, MEMORY), above, strict=True):
        os.dup2(handle, number, inheritable=False)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    os.closerange(MEMORY + 1, most if 0 < most < MOST_DESCRIPTORS else MOST_DESCRIPTORS)


def _limit(memory_bytes: int) -> None:
    """Nothing is above these limits, so nothing can raise them again."""
    for kind, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, DESCRIPTORS),
        (resource.RLIMIT_NPROC, 0),  # neither processes nor threads, of a user that is not root
        (resource.RLIMIT_FSIZE, memory_bytes),  # counts memory without a name too
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        highest = resource.getrlimit(kind)[1]
        lowered = most if highest == resource.RLIM_INFINITY else min(most, highest)
        resource.setrlimit(kind, (lowered, lowered))


def _drop_bounds() -> None:
    """Empty the set that no program's capabilities go beyond, which a user without any cannot."""
    if not _has(CAP_SETPCAP):
        return
    for capability in range(CAPABILITIES):
        try:
            _prctl(PR_CAPBSET_DROP, capability)
        except OSError as unknown:
            if unknown.errno != errno.EINVAL:
                raise


def _change_user() -> None:
    """Become nobody's user, where the server may do that and may still end what it made."""
    if _has(CAP_SETUID, CAP_SETGID, CAP_KILL):
        os.setgroups([])
        os.setresgid(STRANGER, STRANGER, STRANGER)
        os.setresuid(STRANGER, STRANGER, STRANGER)
    elif os.geteuid() == 0:
        raise PermissionError


def _drop_capabilities() -> None:
    _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    header = struct.pack("=Ii", CAPABILITY_VERSION, 0)
    _call(_libc().capset(header, bytes(24)))


def _landlock() -> str | None:
    """No file system, and what else the kernel's version can close."""
    libc = _libc()
    version = _call(libc.syscall(CREATE_RULESET, None, 0, GET_VERSION))
    rights = (1 << FILE_RIGHTS.get(version, LAST_FILE_RIGHTS)) - 1
    words = [rights, *([TCP] if version >= 4 else []), *([SCOPES] if version >= 6 else [])]
    rules = struct.pack(f"={len(words)}Q", *words)
    ruleset = _call(libc.syscall(CREATE_RULESET, rules, len(rules), 0))
    try:
        _call(libc.syscall(RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)
    if version < 6:
        return f"sockets and signals are left to the filter (Landlock is of version {version})"
    return None


def _has(*capabilities: int) -> bool:
    """Whether these capabilities are in effect."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            held = int(line.split()[1], 16)
            return all(held >> capability & 1 for capability in capabilities)
    return False


def _prctl(option: int, value: int) -> None:
    _call(_libc().prctl(option, value, 0, 0, 0))


def _call(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "the kernel refuses")
    return result


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
