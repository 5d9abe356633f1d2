"""The exam as a server of the demo answers it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.exam.questions import Question
from bench.gpu_calls import of_exam
from bench.load import run_level
from bench.server_process import ServerCommand, ServerProcess, free_port

READY_SECONDS = 180.0
AT_ONCE = 8


def answers(questions: Sequence[Question], log: Path, *overrides: str) -> list[str]:
    """What `recipe=demo` with these overrides says to each; raises LoadError where it does not."""
    port = free_port()
    told = ["recipe=demo", f"server.port={port}", *overrides]
    command = ServerCommand(
        "appliance", [sys.executable, "-m", "appliance", *told], "/readyz", port
    )
    with ServerProcess(command, log) as server:
        asyncio.run(server.wait_ready(READY_SECONDS))
        return asyncio.run(run_level(server.host, port, of_exam(questions), AT_ONCE)).texts
