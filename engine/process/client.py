"""The server's end of the engine process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import queue
import threading
from collections.abc import AsyncIterator, Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from engine.device.environment import variables
from engine.device.log_lines import LogStyle
from engine.errors import EngineDead, RequestRefused
from engine.options import EngineOptions
from engine.process.engine_process import run_engine
from engine.process.followers import Followers
from engine.process.frames import FrameReceiver, frame_pipe
from engine.process.messages import Abort, Failed, FromEngine, Phase, Refused, Stepped, ToEngine
from engine.process.silence import Silence
from engine.process.spawned import ENVIRONMENT, SpawnedEngine
from engine.request import Output, Request
from engine.stats import EngineStats

logger = logging.getLogger(__name__)

STOP_SECONDS = 0.5  # what a stopped engine process may take to leave by itself


class EngineClient:
    """Starts the engine process and carries requests and outputs, all on the event loop.

    Requests go through a blocking pipe of their own by a thread of its own, so that a full pipe
    (large images, an engine in a long step) never stops the loop; outputs come as frames through
    another. The loop watches that one alone: what it does to a descriptor cannot reach the sender.
    """

    def __init__(
        self,
        options: EngineOptions,
        *,
        in_process: bool = False,
        spawned: SpawnedEngine | None = None,
    ) -> None:
        """`in_process` runs the same engine in a thread instead: for scripts, not for serving.

        `spawned` is a process that waits for its options; unless given it is made by `start`.
        """
        self.options = options
        self._spawned = spawned
        self._in_process = in_process
        self.on_encode: Callable[[str, float], None] = lambda modality, seconds: None
        self.phase = "starting"
        self.fraction = 0.0
        self.stats = EngineStats(pages_total=options.pages)
        self._process: BaseProcess | None = None if spawned is None else spawned.process
        self._thread: threading.Thread | None = None
        self._followers = Followers(options)
        self._outputs: FrameReceiver | None = None
        self._outbox: queue.SimpleQueue[ToEngine] = queue.SimpleQueue()
        self._streams: dict[str, OutputStream] = {}
        self._reason: str | None = None
        self._correctable = False
        self._started: asyncio.Future[None] | None = None
        self._ended: asyncio.Future[str] | None = None
        self._stopping = False
        self._silence = Silence(options.step_seconds, self._hung)

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Spawn the process and wait for its model. Raises EngineDead with the reason."""
        loop = asyncio.get_running_loop()
        self._started, self._ended = loop.create_future(), loop.create_future()
        to_engine = self._begin()
        for process in self._followers.processes:
            loop.add_reader(process.sentinel, self._follower_ended)
        assert self._outputs is not None
        loop.add_reader(self._outputs.fileno(), self._read)
        sender = threading.Thread(
            target=self._send, args=(to_engine, loop), name="to-engine", daemon=True
        )
        sender.start()
        await self._started

    def _begin(self) -> Connection:
        """Have an engine run somewhere; returns where its messages go."""
        with variables(ENVIRONMENT):
            self._followers.start(LogStyle.current())
        links = self._followers.links
        if self._in_process:
            to_engine, requests = multiprocessing.Pipe()
            self._outputs, outputs = frame_pipe()
            self._thread = threading.Thread(
                target=run_engine,
                args=(self.options, requests, outputs, links),
                name="engine",
                daemon=True,
            )
            self._thread.start()
            return to_engine
        spawned = self._spawned or SpawnedEngine(self.options.model_path, links)
        self._process, self._outputs = spawned.process, spawned.outputs
        self._outbox.put(self.options)
        self._followers.close_links()
        return spawned.requests

    def submit(self, request: Request) -> OutputStream:
        """Hand a request over at once; its outputs are read from the stream returned."""
        if self.phase != "ready":
            raise EngineDead(self._reason or "the engine is not ready")
        stream = OutputStream(self, request)
        self._streams[request.id] = stream
        self._outbox.put(request)
        return stream

    def abort(self, request_id: str, index: int | None = None) -> None:
        """End a request, or one of its answers; a stream aborted whole yields nothing more."""
        stream = self._streams.get(request_id)
        if stream is None:
            return
        stream.drop(index)
        if stream.complete:
            del self._streams[request_id]
        if self.phase == "ready":
            self._outbox.put(Abort(request_id, index))

    async def died(self) -> str:
        """Waits for the process to be gone without having been stopped; returns why."""
        assert self._ended is not None
        return await asyncio.shield(self._ended)

    async def stop(self) -> None:
        """End the process; what still runs there is lost."""
        self._stopping = True
        loop = asyncio.get_running_loop()
        process = self._process
        if self._outputs is None:
            if process is not None:  # it may have closed its pipe and be in no hurry to leave
                process.kill()
                await loop.run_in_executor(None, process.join, 5)
            return
        self._outbox.put(None)
        if process is None:
            assert self._thread is not None
            await loop.run_in_executor(None, self._thread.join)
            self._close("the engine was stopped")
            return
        await loop.run_in_executor(None, process.join, STOP_SECONDS)
        if process.is_alive():  # it has nothing to save
            process.kill()
            await loop.run_in_executor(None, process.join, 5)
        self._close("the engine was stopped")

    def kill(self) -> None:
        """End the process at once; a thread of this process ends with it."""
        if self._process is not None:
            self._process.kill()

    def _send(self, requests: Connection, loop: asyncio.AbstractEventLoop) -> None:
        message: ToEngine = None
        with requests:
            try:
                while (message := self._outbox.get()) is not None:
                    requests.send(message)
                    if isinstance(message, Request):
                        for tensors in message.shared:
                            tensors.send(requests, self.pid or os.getpid())
                requests.send(None)
            except (BrokenPipeError, ConnectionResetError):
                return  # the engine is gone: the reader notices and says why
            except Exception:  # whatever it is, without this thread no request is ever answered
                logger.exception("requests can no longer be sent to the engine")
                with contextlib.suppress(RuntimeError):  # the loop has ended before
                    loop.call_soon_threadsafe(self._close, "requests do not reach the engine")

    def _read(self) -> bool:
        """Take what is there, up to a bound; whether there was a whole message."""
        if self._outputs is None:
            return False
        try:
            messages = self._outputs.receive()
        except (EOFError, OSError):
            self._close(self._reason or self._failure())
            return False
        if messages:
            self._silence.heard()
        for message in messages:
            self._take(message)
        return bool(messages)

    def _hung(self) -> None:
        """No step has ended for too long: nothing that waits for one would ever be told."""
        heard = False
        while self._read():  # it may be this process that was held up
            heard = True
        if heard:
            self._silence.watch()
        if heard or self._outputs is None:
            return
        self.kill()
        self._close(self._reason or f"no step has ended for {self.options.step_seconds:g} seconds")

    def _follower_ended(self) -> None:
        while self._read():  # rank 0 may have said why
            pass
        self._close(self._reason or self._failure())

    def _failure(self) -> str:
        found = self._followers.failure(self._process) if self._followers.processes else None
        return found or "the engine process ended unexpectedly"

    def _take(self, message: FromEngine) -> None:
        match message:
            case Phase(name="ready"):
                self.phase, self.fraction = "ready", 1.0
                self._silence.watch()
                if self._started is not None and not self._started.done():
                    self._started.set_result(None)
            case Phase(name=name, fraction=fraction):
                self.phase, self.fraction = name, fraction
            case Failed(reason=reason, correctable=correctable):
                self._reason, self._correctable = reason, correctable
            case Refused(request_id=request_id, reason=reason):
                stream = self._streams.pop(request_id, None)
                if stream is not None:
                    stream.fail(RequestRefused(reason))
            case Stepped(outputs=outputs, stats=stats, encodes=encodes):
                self.stats = stats
                for modality, seconds in encodes:
                    self.on_encode(modality, seconds)
                for output in outputs:
                    stream = self._streams.get(output.request_id)
                    if stream is not None:
                        stream.put(output)
                        if stream.complete:
                            del self._streams[output.request_id]

    def _close(self, reason: str) -> None:
        if self._outputs is None:
            return
        self._silence.stop()
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._outputs.fileno())
        self._outputs.close()
        for process in self._followers.processes:
            loop.remove_reader(process.sentinel)
        if self._followers.processes and self._process is not None:
            self._process.kill()  # it may be waiting for a rank that is gone
        self._followers.kill()
        self._outputs = None
        self.phase, self._reason = "dead", reason
        self._outbox.put(None)
        error = EngineDead(reason, self._correctable)
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.fail(error)
        if self._started is not None and not self._started.done():
            self._started.set_exception(error)
        if self._ended is not None and not self._ended.done() and not self._stopping:
            self._ended.set_result(reason)


class OutputStream(AsyncIterator[Output]):
    """Outputs of one request, until all its answers have finished.

    Iterating raises RequestRefused or EngineDead. Call `close` when reading stops early: the engine
    then drops the request. `ready` tells whether more can be had without waiting.
    """

    def __init__(self, client: EngineClient, request: Request) -> None:
        self._client = client
        self._id = request.id
        self._open = set(range(request.n))
        self._outputs: list[Output] = []
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def complete(self) -> bool:
        """Whether every answer has finished, was dropped or failed."""
        return not self._open

    @property
    def ready(self) -> bool:
        return bool(self._outputs)

    async def __anext__(self) -> Output:
        while not self._outputs:
            if self._error is not None:
                raise self._error
            if not self._open:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._outputs.pop(0)

    def close(self) -> None:
        """Abort what is still running."""
        if self._open:
            self._client.abort(self._id)

    async def aclose(self) -> None:
        self.close()

    def put(self, output: Output) -> None:
        if output.index not in self._open:
            return
        if output.finish_reason is not None:
            self._open.discard(output.index)
        self._outputs.append(output)
        self._wake()

    def drop(self, index: int | None) -> None:
        if index is None:
            self._open.clear()
        else:
            self._open.discard(index)
        self._wake()

    def fail(self, error: Exception) -> None:
        self._error = error
        self._open.clear()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
