"""Media workers: processes that read what strangers sent, so that nothing else has to.

The fork server is a process that imports what workers need and forks one whenever the server asks,
so that a worker that died is replaced in milliseconds. A worker gives up all rights first
(`appliance.media.sandbox`). It gets an item's bytes in shared memory and answers in JSON, with
tensors in shared memory again.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import logging
import mmap
import os
import resource
import signal
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from pathlib import Path
from typing import Any

from appliance.errors import ApplianceError, media_undecodable
from appliance.media import sandbox
from appliance.media.prepare import PARAM, MediaSettings, Preparer, preparer_for
from appliance.media.rehearsal import rehearse
from engine.device.log_lines import set_levels
from engine.device.process_setup import end_with_parent, leave_stopping
from engine.device.shared_tensors import SharedTensors
from engine.models.registry import family_for

logger = logging.getLogger("appliance.media")

TRIM_BYTES = 128 << 20  # what a worker may keep beyond what it began with
FIRST_TO_DIE = "800"  # of 1000, when the machine runs out of memory


@dataclass(slots=True, frozen=True)
class WorkerSettings:
    """What the server sends the fork server first."""

    folder: str
    kinds: tuple[str, ...]
    media: MediaSettings
    memory_bytes: int  # that decoding one item may take
    log_level: int


@dataclass(slots=True, frozen=True)
class Begin:
    """To the fork server, with the handle of a connection: fork worker `number`."""

    number: int


@dataclass(slots=True, frozen=True)
class End:
    """To the fork server: kill worker `number`."""

    number: int


@dataclass(slots=True, frozen=True)
class Order:
    """To a worker, with the handle of `size` bytes: `probe` the item, or prepare it."""

    kind: str
    size: int
    options: dict[str, Any]
    probe: bool


def main(handle: int, parent: int) -> int:
    """The fork server, at its end of a connection to the server; returns in each worker too.

    `parent` is the process of the server.
    """
    end_with_parent(parent)
    leave_stopping()
    control = Connection(handle)
    settings: WorkerSettings = control.recv()
    # lines go through the server, which gives them its own form
    logging.basicConfig(format="%(levelname)s %(message)s")
    set_levels(settings.log_level)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(FIRST_TO_DIE)
    gc.disable()  # a sixth of the time of imports, and nothing to find
    family = family_for(settings.folder)
    preparers = {kind: preparer_for(kind, family, settings.media) for kind in settings.kinds}
    rehearse(settings.kinds, family)
    gc.collect()
    gc.freeze()  # what is imported is no garbage: workers look for it after every item
    gc.enable()
    logger.debug("ready to be forked, for %s", ", ".join(settings.kinds))
    fork_server = os.getpid()
    channel = _fork_until_worker(control)
    if channel is not None:
        control.close()
        missing = _confine(channel, settings.memory_bytes, fork_server)
        with Connection(sandbox.CHANNEL) as connection, contextlib.suppress(EOFError, OSError):
            connection.send_bytes(json.dumps({"missing": missing}).encode())
            Worker(preparers, connection).run()
    return 0


def _fork_until_worker(control: Connection) -> int | None:
    """In a worker the handle of its connection, in the fork server None when the server is gone."""
    children: dict[int, int] = {}  # process by number
    try:
        while True:
            message = control.recv()
            if isinstance(message, Begin):
                handle = recv_handle(control)
                child = os.fork()
                if not child:
                    children.clear()
                    return handle
                os.close(handle)
                children[message.number] = child
            elif message.number in children:
                os.kill(children[message.number], signal.SIGKILL)
            for number, child in list(children.items()):
                if os.waitpid(child, os.WNOHANG)[0]:
                    del children[number]
    except (EOFError, OSError):
        return None
    finally:
        for child in children.values():
            os.kill(child, signal.SIGKILL)


def _confine(channel: int, memory_bytes: int, fork_server: int) -> list[str]:
    """Bound private memory to what is held already and this much more, and enter the sandbox.

    Returns what of it there is not.
    """
    held = _data_bytes() + memory_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (held, held))
    memory = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    return sandbox.enter((channel, memory), memory_bytes, fork_server)


def _data_bytes() -> int:
    """Private memory that this process may write to."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) << 10
    return 0


def _resident_bytes() -> int:
    """Memory of a worker that is there (proc_pid_statm(5)); it can open no file any more."""
    return int(os.pread(sandbox.MEMORY, 128, 0).split()[1]) * mmap.PAGESIZE


class Worker:
    """Takes one order after the other until its connection ends."""

    def __init__(self, preparers: Mapping[str, Preparer], channel: Connection) -> None:
        self._preparers = preparers
        self._channel = channel
        self._held = _resident_bytes()

    def run(self) -> None:
        """Raises EOFError when the server lets go."""
        while True:
            order: Order = self._channel.recv()
            handle = recv_handle(self._channel)
            tensors: SharedTensors | None = None
            try:
                data = _read(handle, order.size)
                answer, tensors = self._answer(order, data)
                del data
            except ApplianceError as refusal:
                answer = _refused(refusal)
            except MemoryError:
                what = "It takes more memory to decode than is allowed for one item."
                answer = _refused(media_undecodable(what, PARAM))
            except Exception as failure:  # of a decoder, on bytes made to hurt it
                _log(failure, order.kind)
                what = "It cannot be decoded."
                answer = _refused(media_undecodable(what, PARAM))
            self._channel.send_bytes(json.dumps(answer).encode())
            if tensors is not None:
                tensors.send(self._channel, os.getppid())
            del tensors
            self._tidy()

    def _answer(self, order: Order, data: bytes) -> tuple[dict[str, Any], SharedTensors | None]:
        preparer = self._preparers[order.kind]
        if order.probe:
            return {"tokens": preparer.probe(data, order.options)}, None
        begun = time.perf_counter()
        decoded = preparer.decode(data, order.options)
        middle = time.perf_counter()
        prepared = preparer.preprocess(decoded, order.options)
        tensors = SharedTensors.store(prepared.arrays)
        answer = {
            "tokens": prepared.tokens,
            "tensors": tensors.layout(),
            "seconds": {"decode": middle - begun, "preprocess": time.perf_counter() - middle},
        }
        return answer, tensors

    def _tidy(self) -> None:
        """Give back what an item left."""
        gc.collect()  # frames of a video are in cycles, whose few objects hide many bytes
        if _resident_bytes() > self._held + TRIM_BYTES:
            libc = ctypes.CDLL(None)
            if hasattr(libc, "malloc_trim"):
                libc.malloc_trim(0)


def _read(handle: int, size: int) -> bytes:
    try:
        if not size:
            return b""
        with mmap.mmap(handle, size, access=mmap.ACCESS_READ) as memory:
            return bytes(memory)
    finally:
        os.close(handle)


def _refused(refusal: ApplianceError) -> dict[str, Any]:
    return {"refusal": {"code": refusal.code, "message": refusal.message}}


def _log(failure: Exception, kind: str) -> None:
    """Where it happened; its message may quote the item."""
    last = traceback.extract_tb(failure.__traceback__)[-1]
    what = "%s while preparing an item of kind %s, at %s:%d %s"
    fault = type(failure).__name__
    logger.warning(what, fault, kind, last.filename, last.lineno, last.name)
