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
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle

from appliance.media.worker import Begin, End, WorkerSettings

logger = logging.getLogger("appliance.media")

END_SECONDS = 1.0  # it has nothing to save, and may still be importing
STALL_SECONDS = 10
# librosa's mel filters need nothing compiled, and numba caches in folders that may be read-only
ENVIRONMENT = {"NUMBA_DISABLE_JIT": "1"}
LAUNCH = """
import os, sys
sys.path[:] = {path}
from appliance.media.worker import main
os._exit(main({handle}))
"""


class ForkServer:
    """Started again if it dies."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: Connection | None = None
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
        code = LAUNCH.format(path=list(sys.path), handle=handle)
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - the code is ours, only numbers are put in
                [sys.executable, "-c", code],
                pass_fds=[handle],
                stdin=subprocess.DEVNULL,
                env=os.environ | ENVIRONMENT,
            )
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
