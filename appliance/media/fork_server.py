"""The process that media workers are forked from, seen from the server."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from typing import BinaryIO, cast

from appliance.media.worker import Begin, End, WorkerSettings
from appliance.media.worker_log import WorkerLog
from engine.device.process_setup import held_back

logger = logging.getLogger("appliance.media")

END_SECONDS = 1.0  # it has nothing to save, and may still be importing
STALL_SECONDS = 10
# What is passed on of the server's environment: where programs, libraries and modules lie, and how
# text is written. Tokens, keys and proxies are none of a decoder's business.
PASSED_ON = frozenset(
    (
        "PATH",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TMPDIR",
        "LD_LIBRARY_PATH",
        "LD_PRELOAD",
        "VIRTUAL_ENV",
        "PYTHONHOME",
        "PYTHONPATH",
        "PYTHONSAFEPATH",
        "PYTHONNOUSERSITE",
        "PYTHONUSERBASE",
        "PYTHONDONTWRITEBYTECODE",
        "PYTHONPYCACHEPREFIX",
        "PYTHONUTF8",
        "PYTHONIOENCODING",
    )
)
PASSED_ON_PREFIX = "LC_"
ENVIRONMENT = {
    # librosa's mel filters need nothing compiled, and numba caches in folders that may be read-only
    "NUMBA_DISABLE_JIT": "1",
    # worker processes are the parallelism, and may have no thread beside their first
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
LAUNCH = """
import os, sys
sys.path[:] = {path}
from appliance.media.worker import main
os._exit(main({handle}, {parent}))
"""


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """What the fork server and its workers know of the server's environment."""
    passed = {
        name: value
        for name, value in given.items()
        if name in PASSED_ON or name.startswith(PASSED_ON_PREFIX)
    }
    return passed | ENVIRONMENT


class ForkServer:
    """Started again if it dies."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: Connection | None = None
        self._log: WorkerLog | None = None
        self._stopped = False

    def start(self) -> None:
        with self._lock:
            self._start()

    def begin(self, number: int) -> Connection:
        """A connection to a new worker."""
        with self._lock:
            try:
                return self._begin(number)
            except OSError:
                if self._stopped:
                    raise
                logger.warning("the parent of the media workers died; starting another")
                self._start()
                return self._begin(number)

    def end(self, number: int) -> None:
        """Kill a worker if it still runs."""
        with self._lock, contextlib.suppress(OSError):
            if self._control is not None:
                self._control.send(End(number))

    def stop(self) -> None:
        """End it and all workers."""
        with self._lock:
            self._stopped = True
            self._close()

    def _start(self) -> None:
        self._close()
        ours, theirs = socket.socketpair()
        handle = theirs.fileno()
        code = LAUNCH.format(path=list(sys.path), handle=handle, parent=os.getpid())
        with theirs, held_back():
            self._process = subprocess.Popen(  # noqa: S603 - the code is ours, only numbers are put in
                [sys.executable, "-c", code],
                pass_fds=[handle],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=environment(os.environ),
            )
        assert self._process.stderr is not None
        self._log = WorkerLog(cast(BinaryIO, self._process.stderr))
        self._log.start()
        self._control = Connection(ours.detach())
        self._control.send(self._settings)

    def _begin(self, number: int) -> Connection:
        control, process = self._control, self._process
        if control is None or process is None or process.poll() is not None:
            raise BrokenPipeError
        ours, theirs = socket.socketpair()
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):  # half a message blocks nobody
            ours.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", STALL_SECONDS, 0))
        with theirs:
            control.send(Begin(number))
            send_handle(control, theirs.fileno(), process.pid)
        return Connection(ours.detach())

    def _close(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            try:
                self._process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._log is not None:
            self._log.finish()
            self._log = None
