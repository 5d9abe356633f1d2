"""The process of an engine, begun before anybody knows with which options."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from engine.device.environment import variables
from engine.device.log_lines import LogStyle
from engine.device.process_setup import set_up, start
from engine.process.frames import FrameSender, frame_pipe
from engine.process.imports import bring, sparing

if TYPE_CHECKING:
    from engine.options import EngineOptions

# OpenMP reads the first when torch is loaded: waiting threads spin from one operation to the next,
# but not much longer. The default is fifteen times as long. The others are how many products torch
# and oneDNN keep the machine code of, one for each number of rows: 1,024 of each kind by default.
ENVIRONMENT = {
    "GOMP_SPINCOUNT": "20000",
    "LRU_CACHE_CAPACITY": "256",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256",
}
END_SECONDS = 5.0


class SpawnedEngine:
    """Imports what a checkpoint in `folder` takes, until options come through `requests`.

    To be made on a thread that lives as long as the process is to: the kernel ends it with that.
    """

    def __init__(self, folder: str, links: Sequence[Connection] = ()) -> None:
        """`links` lead to the processes of the other ranks."""
        context = multiprocessing.get_context("spawn")
        self.requests: Connection
        self.requests, theirs = context.Pipe()
        self.outputs, outputs = frame_pipe()
        self.process = context.Process(
            target=run_when_told,
            args=(folder, theirs, outputs, LogStyle.current(), links),
            name="engine",
            daemon=True,
        )
        with variables(ENVIRONMENT):
            start(self.process)
        theirs.close()
        outputs.close()

    def end(self) -> None:
        """Do without it."""
        self.requests.close()
        self.outputs.close()
        self.process.kill()
        self.process.join(END_SECONDS)


def run_when_told(
    folder: str,
    requests: Connection,
    outputs: FrameSender,
    style: LogStyle,
    links: Sequence[Connection],
) -> None:
    """Body of the engine process."""
    with sparing():
        set_up(style)
        with contextlib.suppress(Exception):  # what is wrong with it is told when it is loaded
            bring(folder)
    try:
        options: EngineOptions = requests.recv()
    except EOFError:  # nobody wants an engine any more
        return
    from engine.process.engine_process import run_process

    run_process(options, requests, outputs, links)
