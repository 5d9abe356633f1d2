"""What media workers write to stderr, on its way into the server's log.

They do not get the server's own: one that is taken over could wipe a log file behind it, or read
what is typed at its terminal. Here lines are bounded in length and number, and hold no control
characters.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import BinaryIO

logger = logging.getLogger("appliance.media")

LONGEST = 2000  # bytes of a line
LINES, WINDOW = 200, 10.0  # so many in so many seconds
END_SECONDS = 1.0


class WorkerLog(threading.Thread):
    """Reads until everybody who could write has ended."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(name="media log", daemon=True)
        self._stream = stream

    def run(self) -> None:
        begun, lines = time.monotonic(), 0
        with self._stream as stream:
            while line := stream.readline(LONGEST):
                if time.monotonic() - begun > WINDOW:
                    self._tell_left_out(lines)
                    begun, lines = time.monotonic(), 0
                lines += 1
                if lines <= LINES and (text := shown(line)):
                    name, _, said = text.partition(" ")  # of a level, where Python logs
                    level = logging.getLevelNamesMapping().get(name)
                    if level is None:
                        level, said = logging.WARNING, text
                    logger.log(level, "media worker: %s", said)
        self._tell_left_out(lines)

    def finish(self) -> None:
        """Wait for the last lines of processes that have ended."""
        self.join(END_SECONDS)

    def _tell_left_out(self, lines: int) -> None:
        if lines > LINES:
            logger.warning("media workers wrote %d more lines, left out here", lines - LINES)


def shown(line: bytes) -> str:
    """A line without what would not be shown as it is."""
    text = line.decode(errors="replace").rstrip()
    return "".join(one if one.isprintable() else "?" for one in text)
