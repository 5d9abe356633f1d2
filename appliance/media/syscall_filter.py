"""The system calls that a media worker may make, as a seccomp filter.

Whatever is not listed answers EPERM, so that a library that only would like to have it goes on
without. What decoders call was found by tracing every format of `tests/media/test_formats.py`.
Numbers are those of `asm/unistd.h`, the program that of `linux/filter.h` and `linux/seccomp.h`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct
from collections.abc import Iterable

PR_SET_SECCOMP, FILTER = 22, 2  # linux/prctl.h, linux/seccomp.h
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
LOAD, JUMP_EQUAL, JUMP_AT_LEAST, AND, RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
X32 = 0x40000000  # bit of the numbers of x86_64's other interface

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h
PLACES = {"x86_64": 0, "aarch64": 1}  # in each pair of numbers

FREE = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "fstat": (5, 80),
    "lseek": (8, 62),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "readv": (19, 65),
    "writev": (20, 66),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "nanosleep": (35, 101),
    "getpid": (39, 172),
    "sendmsg": (46, 211),
    "recvmsg": (47, 212),
    "getsockname": (51, 204),
    "exit": (60, 93),
    "uname": (63, 160),
    "ftruncate": (77, 46),
    "gettimeofday": (96, 169),
    "getrlimit": (97, 163),
    "getrusage": (98, 165),
    "sysinfo": (99, 179),
    "times": (100, 153),
    "getuid": (102, 174),
    "getgid": (104, 176),
    "geteuid": (107, 175),
    "getegid": (108, 177),
    "getppid": (110, 173),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "time": (201, None),
    "sched_getaffinity": (204, 123),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "set_robust_list": (273, 99),
    "getcpu": (309, 168),
    "getrandom": (318, 278),
    "rseq": (334, 293),
}
MMAP, FCNTL, FUTEX = (9, 222), (72, 25), (202, 98)
CLONE, CLONE3 = (56, 220), (435, 435)
TGKILL, PRLIMIT, MEMFD_CREATE = (234, 131), (302, 261), (319, 279)

SHARED_NAMELESS = 0x21  # MAP_SHARED | MAP_ANONYMOUS: memory that no limit counts
FUTEX_COMMAND = 0x7F  # without the flags of private futexes and of the clock
FUTEX_COMMANDS = (0, 1, 9, 10)  # wait, wake, and both with a bitset
MEMFD_FLAGS = 3  # MFD_CLOEXEC | MFD_ALLOW_SEALING
FCNTL_COMMANDS = (
    fcntl.F_DUPFD,
    fcntl.F_DUPFD_CLOEXEC,
    fcntl.F_GETFD,
    fcntl.F_SETFD,
    fcntl.F_GETFL,
    fcntl.F_ADD_SEALS,
    fcntl.F_GET_SEALS,
)

Numbers = tuple[int | None, int | None]
Program = list[tuple[int, int, int, int]]  # code, jump if true, jump if false, operand


def install() -> None:
    """Filter the calls of this thread and of all that it makes, for good.

    Needs `no_new_privs`. Raises OSError where the kernel has no such filters or there is no table
    for the machine.
    """
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no table of system calls for {machine}")
    code = b"".join(struct.pack("=HBBI", *step) for step in program(machine, os.getpid()))
    steps = ctypes.create_string_buffer(code, len(code))

    class Filter(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_void_p))

    whole = Filter(len(code) // 8, ctypes.addressof(steps))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_SECCOMP, FILTER, ctypes.byref(whole), 0, 0):
        raise OSError(ctypes.get_errno(), "the kernel takes no filter")


def program(machine: str, process: int) -> Program:
    """The filter for process `process`, which may signal itself alone, as abort() does."""
    made: Program = [
        (LOAD, 0, 0, ARCHITECTURE),
        (JUMP_EQUAL, 1, 0, ARCHITECTURES[machine]),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER),
    ]
    if machine == "x86_64":
        made += [(JUMP_AT_LEAST, 0, 1, X32), _refusal(errno.EPERM)]
    place = PLACES[machine]

    def on(numbers: Numbers, body: Program) -> None:
        number = numbers[place]
        if number is not None:
            made.extend([(JUMP_EQUAL, 0, len(body), number), *body])

    for numbers in FREE.values():
        on(numbers, [(RETURN, 0, 0, ALLOW)])
    on(FUTEX, _one_of(1, FUTEX_COMMANDS, mask=FUTEX_COMMAND))
    on(FCNTL, _one_of(1, FCNTL_COMMANDS))
    on(TGKILL, _one_of(0, (process,)))
    on(MEMFD_CREATE, _one_of(1, (0,), mask=0xFFFFFFFF & ~MEMFD_FLAGS))
    on(MMAP, _but(3, SHARED_NAMELESS))
    on(PRLIMIT, _null(2))
    on(CLONE3, [_refusal(errno.ENOSYS)])  # its flags lie in memory: have libraries ask by clone
    on(CLONE, [_refusal(errno.EAGAIN)])  # what a thread that there is no room for is told
    made.append(_refusal(errno.EPERM))
    return made


def _refusal(error: int) -> tuple[int, int, int, int]:
    return RETURN, 0, 0, ERRNO | error


def _low(argument: int) -> tuple[int, int, int, int]:
    """Load the low half of an argument, on little-endian machines."""
    return LOAD, 0, 0, ARGUMENTS + 8 * argument


def _one_of(argument: int, values: Iterable[int], mask: int | None = None) -> Program:
    """Allow these values of an argument of 32 bits."""
    body = [_low(argument)]
    if mask is not None:
        body.append((AND, 0, 0, mask))
    for value in values:
        body += [(JUMP_EQUAL, 0, 1, value), (RETURN, 0, 0, ALLOW)]
    return [*body, _refusal(errno.EPERM)]


def _but(argument: int, bits: int) -> Program:
    """Allow an argument in which not all of these bits are set."""
    return [
        _low(argument),
        (AND, 0, 0, bits),
        (JUMP_EQUAL, 0, 1, bits),
        _refusal(errno.EPERM),
        (RETURN, 0, 0, ALLOW),
    ]


def _null(argument: int) -> Program:
    """Allow a pointer that is none."""
    low = ARGUMENTS + 8 * argument
    return [
        (LOAD, 0, 0, low),
        (JUMP_EQUAL, 0, 3, 0),
        (LOAD, 0, 0, low + 4),
        (JUMP_EQUAL, 0, 1, 0),
        (RETURN, 0, 0, ALLOW),
        _refusal(errno.EPERM),
    ]
