"""The engine behind two pipes, usually in a process of its own.

Torch and the model are imported there and only there: the server that spawns it stays light.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from engine.device.process_setup import keep_memory
from engine.errors import DeviceLost, EngineError, RequestRefused
from engine.options import EngineOptions
from engine.parallel.exit_codes import PEER_GONE
from engine.process.frames import FrameSender
from engine.process.messages import Abort, Failed, Phase, Refused, Stepped
from engine.request import Output, Request

if TYPE_CHECKING:
    from engine.core import Engine

logger = logging.getLogger(__name__)

STATS_INTERVAL = 1.0  # seconds between statistics while nothing is put out: a sign of life


def run_process(
    options: EngineOptions,
    requests: Connection,
    outputs: FrameSender,
    links: Sequence[Connection] = (),
) -> None:
    """All that the engine process does. `links` lead to the processes of the other ranks."""
    if links:
        from engine.parallel.ranks import end_with

        end_with(links)
    try:
        run_engine(options, requests, outputs, links, prepare=keep_memory)
    except Exception as error:  # multiprocessing would print it as it is
        if not links or not isinstance(error, DeviceLost):
            logger.exception("the engine fails")
            sys.exit(1)
        logger.exception("rank 0 of %d gives up", options.tensor_parallel)
        os._exit(PEER_GONE)  # collective operations may never come back


def run_engine(
    options: EngineOptions,
    requests: Connection,
    outputs: FrameSender,
    links: Sequence[Connection] = (),
    prepare: Callable[[], None] = lambda: None,
) -> None:
    """Load, then step for as long as the other ends are there. `prepare` runs between the two."""
    with requests, contextlib.closing(outputs):
        _run_engine(options, requests, outputs, links, prepare)


def _run_engine(
    options: EngineOptions,
    requests: Connection,
    outputs: FrameSender,
    links: Sequence[Connection],
    prepare: Callable[[], None],
) -> None:
    from engine.core import Engine

    def report(name: str, fraction: float) -> None:
        outputs.send(Phase(name, fraction))

    try:
        engine = Engine(options, report, links=links)
    except EngineError as error:
        outputs.send(Failed(str(error), error.correctable))
        return
    except (OSError, RuntimeError, ValueError):
        logger.exception("the engine did not start")
        outputs.send(Failed("the model could not be loaded; the log says why"))
        return
    prepare()
    outputs.send(Phase("ready", 1.0))
    try:
        with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
            for message in _messages(engine, requests, outputs):
                _receive(engine, outputs, message)
    except DeviceLost as error:
        if not links:  # of several ranks it may be another's fault: see their exit codes
            outputs.send(Failed(str(error)))
        raise  # the process ends with an exit code for its supervisor
    engine.close()


def _messages(
    engine: Engine, requests: Connection, outputs: FrameSender
) -> Iterator[Request | Abort]:
    """Steps the engine while there is work; yields what arrives between steps."""
    reported = 0.0
    while True:
        added = engine.step()
        now = time.monotonic()
        if added or now - reported > STATS_INTERVAL or not engine.has_work():
            outputs.send(Stepped(added, engine.stats(), engine.encodes()))
            reported = now
        wait = 0.0 if engine.has_work() else STATS_INTERVAL
        while requests.poll(wait):
            message: Request | Abort | None = requests.recv()
            if message is None:
                return
            if isinstance(message, Request):
                for tensors in message.shared:
                    tensors.receive(requests)
            yield message
            wait = 0.0


def _receive(engine: Engine, outputs: FrameSender, message: Request | Abort) -> None:
    if isinstance(message, Abort):
        engine.abort(message.request_id, message.index)
        return
    try:
        engine.add(message)
    except RequestRefused as error:
        outputs.send(Refused(message.id, str(error)))
    except Exception:
        logger.exception("request %s could not be taken", message.id)
        failed = [
            Output(message.id, index, [], "error", error="the engine could not take this request")
            for index in range(message.n)
        ]
        outputs.send(Stepped(failed, engine.stats(), []))
