"""The appliance as ever, with the engine noting when each of its steps has ended.

    BENCH_STAMPS=FILE python -m bench.stamped recipe=NAME [key=value ...]

A line of FILE is a step that gave tokens: when they were known and when they were on their way to
the server, in seconds of `time.perf_counter`, which is one clock for all processes of a machine,
and the tokens by the engine's name of their request. This module is imported again by each process
that the server spawns, so the engine notes too; it costs some microseconds a step.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from engine.process.frames import FrameSender
from engine.process.messages import Stepped

FILE = "BENCH_STAMPS"
plainly = FrameSender.send


def send(self: FrameSender, message: Any) -> None:
    """`FrameSender.send`, with a line behind it."""
    known = time.perf_counter()
    plainly(self, message)
    if isinstance(message, Stepped) and message.outputs:
        tokens = [(output.request_id, output.token_ids) for output in message.outputs]
        with Path(os.environ[FILE]).open("a", encoding="utf-8") as file:
            file.write(json.dumps([known, time.perf_counter(), tokens]) + "\n")


if FILE in os.environ:  # else a test of the benches has imported it
    FrameSender.send = send  # type: ignore[method-assign]

if __name__ == "__main__":
    from appliance.__main__ import main

    raise SystemExit(main())
