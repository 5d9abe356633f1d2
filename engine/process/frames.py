"""Messages of any size from the engine to an event loop that must not wait for them."""

from __future__ import annotations

import pickle
import socket
import struct
from typing import Any

LENGTH = struct.Struct("<Q")
CHUNK = 1 << 17  # bytes that one `receive` takes at most, so that a flood leaves the loop its turns


class FrameSender:
    """The engine's end. Pickles like a socket, while a process is spawned."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def send(self, message: Any) -> None:
        """Waits for as long as the reader is slow. Raises OSError when it is gone."""
        payload = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        self._end.sendall(LENGTH.pack(len(payload)) + payload)

    def close(self) -> None:
        self._end.close()


class FrameReceiver:
    """The event loop's end, read whenever something is there.

    No loop can break it by its way with descriptors: each read asks for what is there and no more,
    whether or not the loop has made the descriptor non-blocking, and nothing is ever sent here.
    """

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._buffer = bytearray()

    def fileno(self) -> int:
        return self._end.fileno()

    def receive(self) -> list[Any]:
        """The messages that are whole by now. Raises EOFError or OSError when the sender is gone.

        A message of which only a part has come is kept for the next call.
        """
        try:
            received = self._end.recv(CHUNK, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        if not received:
            raise EOFError
        buffer = self._buffer
        buffer += received
        messages, start = [], 0
        while len(buffer) - start >= LENGTH.size:
            begin = start + LENGTH.size
            end = begin + LENGTH.unpack_from(buffer, start)[0]
            if len(buffer) < end:
                break
            with memoryview(buffer)[begin:end] as payload:
                messages.append(pickle.loads(payload))  # noqa: S301 - from the engine that we started
            start = end
        del buffer[:start]
        return messages

    def close(self) -> None:
        self._end.close()


def frame_pipe() -> tuple[FrameReceiver, FrameSender]:
    """Two connected ends, for one direction."""
    ours, theirs = socket.socketpair()
    return FrameReceiver(ours), FrameSender(theirs)
