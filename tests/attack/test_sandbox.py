"""A decoder that is taken over gets nothing: code of an attacker's, inside the real sandbox.

Each attack is a function that runs in a process of its own, once as the server runs and once after
`sandbox.enter`, as a media worker calls it: what fails inside has to work outside.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import platform
import resource
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.media import sandbox, syscall_filter
from appliance.media.fork_server import ENVIRONMENT, environment
from engine.models.qwen2_vl import Qwen2VL
from tests.checkpoints import write_qwen2_vl
from tests.media.desk import desk, part
from tests.media.test_pool import SMALL, eventually, fork_server, workers

MACHINE = platform.machine()
LIBC = ctypes.CDLL(None, use_errno=True)
X86 = MACHINE == "x86_64"
SECRET = "hf_never_told_to_a_decoder"
MEMORY = 1 << 28
# numbers that the C library has no function for (asm/unistd.h)
PROCESS_VM_READV, PTRACE, UNSHARE = (310, 101, 272) if X86 else (270, 117, 97)
IO_URING_SETUP, PIDFD_OPEN, CLONE3 = 425, 434, 435
PTRACE_SEIZE, CLONE_NEWUSER = 0x4206, 0x10000000

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or MACHINE not in syscall_filter.ARCHITECTURES,
    reason="seccomp and Landlock are Linux's, and the tables those of two machines",
)


@dataclass
class Target:
    """What attackers are after: this process, its secret, what it may open and who listens."""

    process: int
    folder: Path
    secret: ctypes.Array[ctypes.c_char]
    tcp: int
    udp: int
    path: str
    abstract: str
    log: int


Attack = Callable[[Target], object]
Confine = Callable[[int, int], object]


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    (tmp_path / "recipe.yaml").write_text("api_key: secret")
    os.chmod(tmp_path, 0o777)
    with contextlib.ExitStack() as stack:
        short = stack.enter_context(tempfile.TemporaryDirectory())  # names of sockets are bounded
        os.chmod(short, 0o777)
        path, abstract = f"{short}/s", f"\0attacked-{os.getpid()}"
        places: list[int] = []
        for family, kind, place in (
            (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            (socket.AF_UNIX, socket.SOCK_STREAM, path),
            (socket.AF_UNIX, socket.SOCK_STREAM, abstract),
        ):
            listener = stack.enter_context(socket.socket(family, kind))
            listener.bind(place)
            if kind == socket.SOCK_STREAM:
                listener.listen()
            if family == socket.AF_INET:
                places.append(listener.getsockname()[1])
        os.chmod(path, 0o777)
        log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
        stack.callback(os.close, log)
        secret = ctypes.create_string_buffer(SECRET.encode())
        yield Target(os.getpid(), tmp_path, secret, places[0], places[1], path, abstract, log)


def outcome(attack: Attack, target: Target, confine: Confine | None, wait: float = 20) -> str:
    """What an attack says, run in a process of its own, confined or not; how it ends otherwise."""
    ours, theirs = socket.socketpair()
    parent = os.getpid()
    process = os.fork()
    if not process:
        try:
            said = theirs.detach()
            ours.close()
            if confine is not None:
                confine(said, parent)
                said = sandbox.CHANNEL
            try:
                answer = f"done: {attack(target)}"
            except OSError as refused:
                answer = f"refused: {refused.errno}"
            except BaseException as wrong:
                answer = f"failed: {wrong!r}"
            os.write(said, answer.encode())
        finally:
            os._exit(0)
    theirs.close()
    ours.settimeout(wait)
    with ours:
        answer = ours.recv(10_000).decode()
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return answer if not status else f"ended: {status} {answer}"


def confine(channel: int, parent: int) -> list[str]:
    memory = os.open("/proc/self/statm", os.O_RDONLY)
    return sandbox.enter((channel, memory), MEMORY, parent)


def called(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result


def linked(kind: int, place: object, family: int = socket.AF_INET) -> int:
    with socket.socket(family, kind) as made:
        made.settimeout(5)
        made.connect(place)  # type: ignore[arg-type]
        return made.send(b"hello")


def bound(family: int, place: object) -> None:
    with socket.socket(family) as made:
        made.bind(place)  # type: ignore[arg-type]
        made.listen()


def forked() -> None:
    process = os.fork()
    if not process:
        os._exit(0)
    os.waitpid(process, 0)


def executed() -> None:
    os.execv("/bin/true", ["true"])


def threaded() -> None:
    thread = threading.Thread(target=lambda: None)
    try:
        thread.start()
    except RuntimeError:
        raise OSError from None
    thread.join()


def read_memory(target: Target) -> str:
    """Of another process, at an address that is known."""

    class Piece(ctypes.Structure):
        _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))

    into = ctypes.create_string_buffer(len(SECRET))
    mine = Piece(ctypes.addressof(into), len(SECRET))
    theirs = Piece(ctypes.addressof(target.secret), len(SECRET))
    called(
        LIBC.syscall(
            PROCESS_VM_READV, target.process, ctypes.byref(mine), 1, ctypes.byref(theirs), 1, 0
        )
    )
    return into.raw.decode()


def read_mem_file(target: Target) -> str:
    handle = os.open(f"/proc/{target.process}/mem", os.O_RDONLY)
    return os.pread(handle, len(SECRET), ctypes.addressof(target.secret)).decode()


def looked(target: Target) -> str:
    """Whether the secret is in the environment that the kernel tells."""
    return str(SECRET in Path(f"/proc/{target.process}/environ").read_bytes().decode())


def raised(kind: int) -> None:
    """A limit set to more than there is now, where that can be."""
    hard = resource.getrlimit(kind)[1]
    more = hard if hard == resource.RLIM_INFINITY else hard + 1
    try:
        resource.setrlimit(kind, (more, more))
    except ValueError:  # what Python makes of the kernel's refusal
        raise OSError(1, "refused") from None


def gained() -> str:
    os.setuid(0)
    os.setgid(0)
    return str(os.getuid())


def mounted(target: Target) -> None:
    called(LIBC.mount(b"none", str(target.folder).encode(), b"tmpfs", 0, None))
    called(LIBC.umount(str(target.folder).encode()))


def unshared() -> None:
    called(LIBC.syscall(UNSHARE, CLONE_NEWUSER))


def shared_memory() -> int:
    return len(mmap.mmap(-1, 4096))


def large_file() -> None:
    handle = os.memfd_create("large", 0)
    os.ftruncate(handle, MEMORY + 1)


def many_files() -> None:
    for _ in range(100):
        os.memfd_create("many", 0)


def core() -> None:
    called(LIBC.prctl(sandbox.PR_SET_DUMPABLE, 1, 0, 0, 0))


ATTACKS: dict[str, Attack] = {
    "read a file": lambda target: Path("/etc/passwd").read_text(),
    "read the recipe": lambda target: (target.folder / "recipe.yaml").read_text(),
    "list a folder": lambda target: os.listdir(target.folder),
    "ask whether a file exists": lambda target: os.stat("/etc/passwd").st_size,
    "write a file": lambda target: (target.folder / "new").write_text("here"),
    "remove a file": lambda target: (target.folder / "recipe.yaml").unlink(),
    "truncate a file": lambda target: os.truncate(target.folder / "recipe.yaml", 0),
    "make a fifo": lambda target: os.mkfifo(target.folder / "fifo"),
    "read the server's environment": looked,
    "read the server's memory as a file": read_mem_file,
    "read the server's memory": read_memory,
    "trace the server": lambda target: called(
        LIBC.syscall(PTRACE, PTRACE_SEIZE, target.process, None, None)
    ),
    "open the server's process": lambda target: called(LIBC.syscall(PIDFD_OPEN, target.process, 0)),
    "signal the server": lambda target: os.kill(target.process, 0),
    "signal a group": lambda target: os.killpg(os.getpgrp(), 0),
    "connect by tcp": lambda target: linked(socket.SOCK_STREAM, ("127.0.0.1", target.tcp)),
    "send by udp": lambda target: linked(socket.SOCK_DGRAM, ("127.0.0.1", target.udp)),
    "connect to a socket file": lambda target: linked(
        socket.SOCK_STREAM, target.path, socket.AF_UNIX
    ),
    "connect to an abstract socket": lambda target: linked(
        socket.SOCK_STREAM, target.abstract, socket.AF_UNIX
    ),
    "listen on tcp": lambda target: bound(socket.AF_INET, ("127.0.0.1", 0)),
    "listen on an abstract socket": lambda target: bound(socket.AF_UNIX, f"\0there-{os.getpid()}"),
    "make a pair of sockets": lambda target: socket.socketpair(),
    "make a process": lambda target: forked(),
    "make a thread": lambda target: threaded(),
    "run a program": lambda target: executed(),
    "raise the limit on descriptors": lambda target: raised(resource.RLIMIT_NOFILE),
    "raise the limit on core dumps": lambda target: raised(resource.RLIMIT_CORE),
    "raise the limit on files": lambda target: raised(resource.RLIMIT_FSIZE),
    "write a file larger than an item": lambda target: large_file(),
    "hold many files": lambda target: many_files(),
    "take memory that no limit counts": lambda target: shared_memory(),
    "be dumped": lambda target: core(),
    "use a terminal": lambda target: os.openpty(),
    "write to what the server has open": lambda target: os.write(target.log, b"wiped"),
    "make a namespace": lambda target: unshared(),
    "set up a ring of calls": lambda target: called(LIBC.syscall(IO_URING_SETUP, 1, bytes(120))),
}
OF_ROOT: dict[str, Attack] = {
    "become root": lambda target: gained(),
    "mount": mounted,
    "set the time back": lambda target: time.clock_settime(
        time.CLOCK_REALTIME, time.clock_gettime(time.CLOCK_REALTIME)
    ),
    "be scheduled first": lambda target: os.setpriority(os.PRIO_PROCESS, 0, -5),
}


def works_outside(attack: Attack, target: Target) -> None:
    """The control. What this machine lets nobody do proves nothing."""
    said = outcome(attack, target, None)
    if said.startswith(("refused", "failed")):
        pytest.skip(f"cannot be done here in any case: {said}")
    assert said.startswith("done") or not said  # of a program that ran in its place


def lacking(target: Target) -> list[str]:
    """What the sandbox cannot do on this machine."""
    lacks: list[str] = []

    def noted(channel: int, parent: int) -> None:
        lacks.extend(confine(channel, parent))

    said = outcome(lambda target: json.dumps(lacks), target, noted)
    assert said.startswith("done: ")
    return list(json.loads(said.removeprefix("done: ")))


@pytest.mark.parametrize("name", [*ATTACKS, *OF_ROOT])
def test_what_works_outside_is_refused_inside(name: str, target: Target) -> None:
    attack = (ATTACKS | OF_ROOT)[name]
    if lacks := lacking(target):
        pytest.skip(f"this kernel has not all of it: {lacks}")
    assert outcome(attack, target, confine).startswith("refused")
    works_outside(attack, target)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else first")
@pytest.mark.parametrize("name", ATTACKS)
def test_a_server_without_rights_confines_its_workers_too(name: str, target: Target) -> None:
    def without_rights(channel: int, parent: int) -> None:
        os.setgroups([])
        os.setresgid(1000, 1000, 1000)
        os.setresuid(1000, 1000, 1000)
        assert not confine(channel, parent)
        assert os.getuid() == 1000

    assert outcome(ATTACKS[name], target, without_rights).startswith("refused")


def by(*steps: Callable[[], object]) -> Confine:
    """Some layers alone, each of which has to hold by itself."""

    def made(channel: int, parent: int) -> None:
        os.dup2(channel, sandbox.CHANNEL)
        sandbox._prctl(sandbox.PR_SET_NO_NEW_PRIVS, 1)
        for step in steps:
            step()

    return made


FILES = ["read a file", "read the recipe", "list a folder", "write a file", "remove a file"]
FILES += ["truncate a file", "make a fifo", "run a program", "read the server's environment"]
FILES += ["read the server's memory as a file"]
REACHED = ["connect by tcp", "connect to an abstract socket", "signal the server"]
REACHED += ["read the server's memory", "trace the server"]


@pytest.mark.parametrize("name", FILES + REACHED)
def test_landlock_holds_where_the_filter_does_not(name: str, target: Target) -> None:
    if any("Landlock" in lack for lack in lacking(target)):
        pytest.skip("this kernel has no Landlock, or an old one")
    assert outcome(ATTACKS[name], target, by(sandbox._landlock)).startswith("refused")


@pytest.mark.parametrize("name", [*ATTACKS, *OF_ROOT])
def test_the_filter_holds_where_nothing_else_does(name: str, target: Target) -> None:
    if any("seccomp" in lack for lack in lacking(target)):
        pytest.skip("this kernel has no seccomp")
    said = outcome((ATTACKS | OF_ROOT)[name], target, by(syscall_filter.install))
    left_to_limits = name.startswith(("write to what", "write a file larger", "hold many"))
    assert said.startswith("done" if left_to_limits else "refused")


def test_a_lack_is_told_and_the_rest_holds(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise OSError(38, "no such call")

    whole = lacking(target)
    monkeypatch.setattr(sandbox, "_landlock", none)
    assert [lack for lack in lacking(target) if lack not in whole] == [
        "files are left to the filter (no Landlock)"
    ]
    assert outcome(ATTACKS["read a file"], target, confine).startswith("refused")
    monkeypatch.setattr(syscall_filter, "install", none)
    assert len(lacking(target)) == len(whole) + 2
    assert outcome(ATTACKS["read a file"], target, confine).startswith("done")
    assert outcome(ATTACKS["hold many files"], target, confine).startswith("refused")
    monkeypatch.setattr(sandbox.sys, "platform", "other")
    assert lacking(target) == ["this system has no sandbox"]


def test_threads_would_keep_what_they_have_so_there_may_be_none(target: Target) -> None:
    def with_a_thread(channel: int, parent: int) -> None:
        threading.Thread(target=time.sleep, args=(5,), daemon=True).start()
        os.dup2(channel, sandbox.CHANNEL)
        with pytest.raises(RuntimeError, match="threads"):
            confine(channel, parent)

    assert outcome(lambda target: "seen", target, with_a_thread) == "done: seen"


@pytest.mark.skipif(not X86, reason="x86_64 alone has other interfaces to its calls")
def test_other_interfaces_to_the_kernel_are_refused(target: Target) -> None:
    getpid, x32 = 39, 0x40000000
    assert outcome(lambda _: called(LIBC.syscall(getpid)), target, confine).startswith("done")
    said = outcome(lambda _: called(LIBC.syscall(x32 | getpid)), target, confine)
    assert said == "refused: 1"
    # int 0x80; ret: the calls of 32-bit programs, where 20 is getpid
    code = bytes.fromhex("b814000000cd80c3")
    memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(code)
    old = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
    said = outcome(lambda _: old(), target, confine)
    assert said == f"ended: {-signal.SIGSYS} "


def test_libraries_are_told_softly(target: Target) -> None:
    def by_clone3(_: Target) -> None:
        called(LIBC.syscall(CLONE3, None, 0))

    assert outcome(by_clone3, target, confine) == "refused: 38"
    assert outcome(lambda _: os.fork(), target, confine) == "refused: 11"
    aborted = outcome(lambda _: os.abort(), target, confine)
    assert aborted == f"ended: {-signal.SIGABRT} ", "a decoder may end itself as C does"


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Qwen2VL:
    return Qwen2VL(write_qwen2_vl(tmp_path_factory.mktemp("qwen2_vl")))


def test_the_workers_of_a_server_are_in_it(
    family: Qwen2VL, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "HTTPS_PROXY", "APPLIANCE_API_KEY"):
        monkeypatch.setenv(name, SECRET)
    with desk(family, "media.workers=1") as intake:
        (worker,) = workers(intake)
        assert intake.one(part(SMALL)).length
        for process in (worker, fork_server(intake)):
            told = Path(f"/proc/{process}/environ").read_bytes().decode()
            assert SECRET not in told
            assert all(f"{name}=1" in told for name in ENVIRONMENT)
        fields = dict(
            line.split(":", 1) for line in Path(f"/proc/{worker}/status").read_text().splitlines()
        )
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert os.geteuid() or not int(fields[name], 16)
        assert (fields["NoNewPrivs"].strip(), fields["Threads"].strip()) == ("1", "1")
        if os.geteuid() == 0:
            assert set(fields["Uid"].split() + fields["Gid"].split()) == {str(sandbox.STRANGER)}
            assert not fields["Groups"].strip()
        assert fields["Seccomp"].strip() == "2"
        eventually(lambda: len(os.listdir(f"/proc/{worker}/fd")) == 5)  # the item is given back
        open_files = {
            int(number): os.readlink(f"/proc/{worker}/fd/{number}")
            for number in os.listdir(f"/proc/{worker}/fd")
        }
        assert sorted(open_files) == [0, 1, 2, sandbox.CHANNEL, sandbox.MEMORY]
        assert open_files[0] == open_files[1] == "/dev/null"
        assert open_files[2].startswith("pipe:"), "not the log of the server"
        limits = Path(f"/proc/{worker}/limits").read_text()
        assert limits.split("Max open files")[1].split()[:2] == [str(sandbox.DESCRIPTORS)] * 2
        parent = set(os.listdir(f"/proc/{fork_server(intake)}/fd"))
        assert len(parent) == 4, "standard ones and its connection"


def test_an_environment_is_what_is_listed() -> None:
    given = {"PATH": "/bin", "LC_ALL": "C", "HF_TOKEN": SECRET, "PYTHONSTARTUP": "x", "HOME": "/"}
    assert environment(given) == {"PATH": "/bin", "LC_ALL": "C", **ENVIRONMENT}


def test_what_is_missing_is_one_line_at_the_start(
    family: Qwen2VL, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lines() -> list[str]:
        return [message for message in caplog.messages if "confined in part" in message]

    with desk(family, "media.workers=2"):
        assert not lines()
    monkeypatch.setattr("appliance.media.pool.missing", lambda said: ["one thing", "another"])
    with desk(family, "media.workers=2"):
        assert lines() == ["media workers are confined in part: one thing; another"]
