"""An item's bytes on their way to a worker, written once however often one is asked."""

from __future__ import annotations

import fcntl
import os
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle

from engine.device.shared_tensors import SEALS, write


class ItemBytes:
    """Content in anonymous memory, a Linux memfd; it lies there from the first `send` on."""

    def __init__(self, data: bytes) -> None:
        self.size = len(data)
        self._data: bytes | None = data
        self._handle = -1

    def send(self, channel: Connection) -> None:
        """Hand the memory to whoever reads `channel`; another thread must not do so meanwhile."""
        if self._data is not None:
            self._handle = os.memfd_create("item", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            write(self._handle, memoryview(self._data))
            fcntl.fcntl(self._handle, fcntl.F_ADD_SEALS, SEALS)  # a worker may be taken over
            self._data = None
        send_handle(channel, self._handle, os.getpid())

    def close(self) -> None:
        """Give the memory back; nothing can be sent any more."""
        handle, self._handle, self._data = self._handle, -1, None
        if handle >= 0:
            os.close(handle)

    def __del__(self) -> None:
        self.close()
