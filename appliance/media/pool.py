"""The server's end of the media workers: a bounded queue, and a thread for each process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from appliance.errors import (
    ApplianceError,
    media_timeout,
    media_undecodable,
    overloaded,
    unavailable,
)
from appliance.media.answer import (
    STAGES,
    OddAnswer,
    check_refusal,
    made,
    measured,
    missing,
    receive,
)
from appliance.media.fork_server import ForkServer
from appliance.media.prepare import PARAM, MediaTask
from appliance.media.worker import Order, WorkerSettings
from appliance.metrics import Metrics
from engine.device.shared_tensors import SharedTensors
from engine.errors import EngineError

logger = logging.getLogger("appliance.media")

START_SECONDS = 120.0  # for the fork server's imports, on a busy machine


@dataclass(slots=True, frozen=True)
class Ready:
    """A prepared item."""

    kind: str
    tokens: int
    tensors: SharedTensors


@dataclass(slots=True)
class _Call:
    task: MediaTask
    probe: bool
    asked: float = field(default_factory=time.perf_counter)
    result: Future[int | Ready | None] = field(default_factory=Future)


class _Idle(Exception):
    """The worker was gone before it was asked."""


class MediaPool:
    """Decodes and preprocesses in `workers` processes.

    An item that takes a worker longer than `seconds`, or that ends it, fails alone and the worker
    is replaced. At most `places` items are let in at a time.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        *,
        workers: int,
        places: int,
        seconds: float,
        metrics: Metrics,
    ) -> None:
        self._fork_server = ForkServer(settings)
        self._most_bytes = settings.memory_bytes
        self._places = places
        self._seconds = seconds
        self._metrics = metrics
        self._inside = 0
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._missing: list[str] = []
        self._begun: list[Future[bool]] = [Future() for _ in range(workers)]
        self._threads = [
            threading.Thread(target=self._serve, args=(number,), name="media", daemon=True)
            for number in range(workers)
        ]

    async def start(self) -> None:
        """Start the processes and wait until they are ready. Raises EngineError."""
        self._fork_server.start()
        for thread in self._threads:
            thread.start()
        begun = [asyncio.wrap_future(future) for future in self._begun]
        if not all(await asyncio.gather(*begun)):
            raise EngineError("the media workers could not be started; the log says why")
        if self._missing:
            logger.warning("media workers are confined in part: %s", "; ".join(self._missing))

    async def stop(self) -> None:
        """End the processes, whatever they are doing."""
        with contextlib.suppress(queue.Empty):
            while (call := self._calls.get_nowait()) is not None:
                call.result.cancel()
        for _ in self._threads:
            self._calls.put(None)
        await asyncio.get_running_loop().run_in_executor(None, self._fork_server.stop)

    @property
    def inside(self) -> int:
        """Items that have a place."""
        return self._inside

    @contextlib.contextmanager
    def places(self, count: int) -> Iterator[None]:
        """Room for the items of one request. Raises ApplianceError 429 where there is none.

        A request of more items than there are places gets in when nothing else is.
        """
        if self._inside and self._inside + count > self._places:
            raise overloaded("Too many media are being prepared already; try again soon.")
        self._inside += count
        try:
            yield
        finally:
            self._inside -= count

    async def probe(self, task: MediaTask) -> int | None:
        """Placeholders that an item will take, where its header tells. Raises ApplianceError."""
        tokens = await self._ask(_Call(task, probe=True))
        assert not isinstance(tokens, Ready)
        return tokens

    async def prepare(self, task: MediaTask) -> Ready:
        """An item's tensors. Raises ApplianceError."""
        ready = await self._ask(_Call(task, probe=False))
        assert isinstance(ready, Ready)
        return ready

    async def _ask(self, call: _Call) -> int | Ready | None:
        self._calls.put(call)
        return await asyncio.wrap_future(call.result)

    def _serve(self, number: int) -> None:
        """Body of a thread: keeps one worker, and passes calls on to it."""
        channel = self._begin(number)
        with contextlib.suppress(InvalidStateError):  # the server stopped meanwhile
            self._begun[number].set_result(channel is not None)
        while (call := self._calls.get()) is not None:
            if call.result.set_running_or_notify_cancel():
                channel = self._pass_on(number, channel, call)
                if not call.probe or call.result.exception() is not None:
                    call.task.data.close()  # now, and not with the traceback that may hold it
            del call  # while waiting for the next one, nothing of an item is kept
        self._end(number, channel)

    def _pass_on(self, number: int, channel: Connection | None, call: _Call) -> Connection | None:
        """Settles a call; returns the worker for the next one."""
        waited = time.perf_counter() - call.asked
        self._metrics.media_took("queue", call.task.modality, waited)
        try:
            for _ in range(2):
                if channel is None:
                    channel = self._begin(number)
                try:
                    call.result.set_result(self._on_worker(channel, call))
                    return channel
                except _Idle:  # it ended or spoke while it had nothing to do: not this item's fault
                    self._end(number, channel)
                    channel = None
            call.result.set_exception(
                unavailable("No media worker could be started.", "media_workers_dead")
            )
            return None
        except ApplianceError as refusal:
            call.result.set_exception(refusal)
            return channel
        except Exception as fault:
            self._end(number, channel)
            call.result.set_exception(self._blame(fault, call))
            return self._begin(number)

    def _begin(self, number: int) -> Connection | None:
        """A connection to a new worker that is ready; None if there can be none."""
        again = self._begun[number].done()  # later on, its parent may have been about to die
        for _ in range(1 + again):
            try:
                channel = self._fork_server.begin(number)
            except OSError:
                return None
            try:
                self._missing = missing(receive(channel, time.monotonic() + START_SECONDS))
                return channel
            except (EOFError, OSError, OddAnswer):
                self._end(number, channel)
        return None

    def _end(self, number: int, channel: Connection | None) -> None:
        self._fork_server.end(number)
        if channel is not None:
            channel.close()

    def _on_worker(self, channel: Connection | None, call: _Call) -> int | Ready | None:
        """Raises ApplianceError for what the worker refuses, and others for what ended it."""
        if channel is None:
            raise _Idle
        task, deadline = call.task, time.monotonic() + self._seconds
        try:
            if channel.poll():  # gone, or it says what nobody asked for
                raise _Idle
            channel.send(Order(task.kind, task.data.size, dict(task.options), call.probe))
            task.data.send(channel)
        except ConnectionError as fault:
            raise _Idle from fault
        # whatever the worker read may have taken it over: what it says is data, and checked
        said = receive(channel, deadline)
        check_refusal(said)
        if call.probe:
            return measured(said)
        item = made(said, self._most_bytes, self._seconds)
        if not channel.poll(max(0.0, deadline - time.monotonic())):
            raise TimeoutError
        try:
            item.tensors.receive(channel)
            item.tensors.check()
        except ValueError as wrong:
            raise OddAnswer(str(wrong)) from None
        for stage in STAGES:
            self._metrics.media_took(stage, task.modality, item.seconds[stage])
        return Ready(task.kind, item.tokens, item.tensors)

    def _blame(self, fault: Exception, call: _Call) -> ApplianceError:
        modality = call.task.modality
        late, odd = isinstance(fault, TimeoutError), isinstance(fault, OddAnswer)
        cause = "timeout" if late else "odd" if odd else "died"
        self._metrics.media_workers_replaced.labels(cause).inc()
        fields = {"kind": call.task.kind, "bytes": call.task.data.size}
        if late:
            logger.warning("a media worker took too long", extra={"fields": fields})
            return media_timeout(modality, self._seconds, PARAM)
        if odd:
            logger.warning(
                "a media worker answered what none says, and was replaced: %s",
                str(fault),  # with the exception itself, a log might hold the item
                extra={"fields": fields},
            )
        else:
            logger.warning("a media worker died", extra={"fields": fields})
        return media_undecodable(f"The {modality} cannot be decoded.", PARAM)
