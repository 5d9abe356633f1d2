"""`task=serve`: listen at once, load in the background, drain when told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from functools import partial
from typing import Protocol

import uvicorn

from appliance import preflight, progress
from appliance.addresses import CannotListen, bind, url
from appliance.api.app import create_app
from appliance.api.http.connections import Connections, most_connections
from appliance.api.http.lag import LoopLag
from appliance.api.http.protocol import HttpProtocol
from appliance.certificates import Certificate, certificate_of
from appliance.config.api_keys import KeyFile, gather_keys, plain_keys
from appliance.config.compose import Composed
from appliance.config.environment import forget, hub_tokens
from appliance.config.errors import USAGE_ERROR, ConfigurationError
from appliance.config.schema import ServerConfig
from appliance.errors import ApplianceError
from appliance.log_lines import configure
from appliance.secrecy import Secrecy
from appliance.service import Service
from appliance.tracing import Tracing
from engine.errors import EngineError

logger = logging.getLogger("appliance.serve")

DRAIN_POLL_SECONDS = 0.05
DEATH_LINGER_SECONDS = 2.0  # so that streams end and probes can tell
CLOSE_SECONDS = 2
IDLE_SECONDS = 75
SWITCH_SECONDS = 0.001  # for which a thread that computes may keep the interpreter from the loop
BACKLOG = 4096
STOPPING = (signal.SIGTERM, signal.SIGINT)


class ModelLoader(Protocol):
    """Makes a service able to answer."""

    summary: str

    async def load(self, service: Service) -> None: ...

    async def died(self) -> str: ...

    async def stop(self) -> None: ...

    def kill(self) -> None: ...


class Server(uvicorn.Server):
    """uvicorn without its signal handlers; ours drain.

    TLS is spoken by `certificate`; a handshake may take `read_seconds`, for which uvicorn has no
    option.
    """

    def __init__(
        self, config: uvicorn.Config, certificate: Certificate | None, read_seconds: float
    ) -> None:
        super().__init__(config)
        self._certificate = certificate
        self._read_seconds = read_seconds

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._certificate is None or sockets is None:
            await super().startup(sockets)
            return
        await super().startup([])

        def connection() -> asyncio.Protocol:
            return self.config.http_protocol_class(  # type: ignore[call-arg]
                config=self.config,
                server_state=self.server_state,
                app_state=self.lifespan.state,
            )

        for one in sockets:
            listening = await asyncio.get_running_loop().create_server(
                connection,
                sock=one,
                ssl=self._certificate.context,
                ssl_handshake_timeout=self._read_seconds,
                backlog=self.config.backlog,
            )
            self.servers.append(listening)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Serving:
    """One run of the server, from the first second to the exit code."""

    def __init__(self, config: ServerConfig, service: Service, loader: ModelLoader) -> None:
        self._config = config
        self._service = service
        self._loader = loader
        self._stop = asyncio.Event()
        self._signals = 0

    async def run(self) -> int:
        """Serve until a signal or a failure; returns the exit code."""
        try:
            sockets = None if self._config.uds else [bind(self._config.host, self._config.port)]
        except CannotListen as fault:
            logger.error("cannot listen: %s", fault)
            return USAGE_ERROR
        certificate = certificate_of(self._config)
        server = Server(self._uvicorn(), certificate, self._config.read_seconds)
        loop = asyncio.get_running_loop()
        if certificate is not None:
            loop.add_signal_handler(signal.SIGHUP, certificate.renew)
        before = {number: signal.getsignal(number) for number in STOPPING}
        for number in STOPPING:
            loop.add_signal_handler(number, self._on_signal)
        http = asyncio.create_task(server.serve(sockets))
        lag = LoopLag(self._service.metrics.loop_lag)
        lag.start()
        try:
            while not server.started and not http.done():
                await asyncio.sleep(0.005)
            if http.done():
                logger.error("cannot listen on %s", self._config.uds or self._config.host)
                return USAGE_ERROR
            scheme = "http" if certificate is None else "https"
            address = f"unix:{self._config.uds}" if sockets is None else url(sockets[0], scheme)
            self._service.address = address
            logger.info("listening on %s", address)
            return await self._live()
        finally:
            server.should_exit = True
            await asyncio.gather(http, return_exceptions=True)
            await self._loader.stop()
            lag.stop()
            if self._service.tracing is not None:
                await loop.run_in_executor(None, self._service.tracing.close)
            if self._config.uds:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._config.uds)
            if certificate is not None:
                loop.remove_signal_handler(signal.SIGHUP)
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)

    def stop(self) -> None:
        """Drain and end."""
        self._stop.set()

    async def _live(self) -> int:
        stop = asyncio.create_task(self._stop.wait())
        load = asyncio.create_task(self._load())
        watched: list[asyncio.Task[object]] = [stop, load]
        try:
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            if stop.done():
                return 0
            if code := load.result():
                return code
            death = asyncio.create_task(self._loader.died())
            watched.append(death)
            await asyncio.wait([stop, death], return_when=asyncio.FIRST_COMPLETED)
            if not death.done():
                drain = asyncio.create_task(self._drain())
                watched.append(drain)
                await asyncio.wait([drain, death], return_when=asyncio.FIRST_COMPLETED)
            if death.done():
                return await self._mourn(death.result())
            return 0
        finally:
            for task in watched:
                task.cancel()
            await asyncio.gather(*watched, return_exceptions=True)

    async def _load(self) -> int:
        """Returns the exit code, 0 for a model that is ready."""
        lifecycle = self._service.lifecycle
        shown = asyncio.create_task(progress.show(lifecycle))
        reason, code = None, 1
        try:
            await self._loader.load(self._service)
        except ApplianceError as fault:
            reason = fault.message
        except EngineError as fault:
            reason, code = str(fault), USAGE_ERROR if fault.correctable else 1
        except ConfigurationError as fault:
            reason, code = str(fault), USAGE_ERROR
        except Exception:
            logger.exception("the model could not be loaded")
            return 1
        finally:
            shown.cancel()
            await asyncio.gather(shown, return_exceptions=True)
        if reason is not None:
            logger.error("the model could not be loaded: %s", reason)
            return code
        gc.collect()
        gc.freeze()  # what is loaded stays: looking at it again and again holds up the event loop
        if self._loader.summary:
            print(self._loader.summary, flush=True)
        logger.info("ready", extra={"fields": {"elapsed": round(lifecycle.elapsed, 1)}})
        return 0

    async def _drain(self) -> None:
        """Refuse new requests, wait for running ones, end what is left after the time allowed."""
        lifecycle, generation = self._service.lifecycle, self._service.generation
        lifecycle.draining = True
        seconds = self._config.drain_seconds
        fields = {"open": lifecycle.open_requests, "seconds": seconds}
        logger.info(
            "draining: running requests are finished; a second Ctrl-C or SIGTERM ends them now",
            extra={"fields": fields},
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while lifecycle.open_requests:
                    await asyncio.sleep(DRAIN_POLL_SECONDS)
        if generation is not None and generation.active:
            logger.warning("ending requests", extra={"fields": {"running": generation.active}})
            generation.stop_all("The server shut down before the answer was finished.")

    async def _mourn(self, reason: str) -> int:
        logger.error("the engine has stopped: %s", reason)
        self._service.lifecycle.dead = reason
        await asyncio.sleep(DEATH_LINGER_SECONDS)
        return 1

    def _on_signal(self) -> None:
        self._signals += 1
        if self._signals > 1:
            self._loader.kill()
            os._exit(1)
        self.stop()

    def _uvicorn(self) -> uvicorn.Config:
        most = most_connections(self._config.max_connections)
        if most < self._config.max_connections:
            logger.warning("at most %d connections: the process may open no more files", most)
        connections = Connections(most, self._config.read_seconds)
        self._service.metrics.gauge(
            "http_connections", "Open connections.", lambda: len(connections)
        )
        return uvicorn.Config(
            create_app(self._service),
            uds=self._config.uds,
            http=partial(HttpProtocol, others=connections),  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=CLOSE_SECONDS,
        )


def warn_of_keys(composed: Composed, file: KeyFile | None) -> None:
    """Log how keys were given that others may have read."""
    for name in composed.exposed:
        logger.warning(
            "%s was given on the command line, where others can read it until it is overwritten; "
            "a file (server.api_keys_file) or the environment keeps it",
            name,
        )
    if file is not None and file.public:
        path = composed.config.server.api_keys_file
        logger.warning("every user of this machine may read server.api_keys_file '%s'", path)


def run(composed: Composed) -> int:
    """Serve the composed recipe until told to stop; returns the exit code."""
    import uvloop

    from appliance.loading import Loader

    config = composed.config
    file = gather_keys(config.server)
    secrecy = Secrecy([*plain_keys(config.server), *hub_tokens()])
    configure(config.logging, secrecy.hide)
    warn_of_keys(composed, file)
    preflight.check(config)
    forget(composed.secret_variables)  # processes that are started from here have none of them
    sys.setswitchinterval(SWITCH_SECONDS)

    async def main() -> int:
        name = config.model.name or "model"
        traces = config.server.traces
        tracing = None if traces is None else Tracing.to(name, traces)
        service = Service(config, name, composed.digest, secrecy=secrecy, tracing=tracing)
        return await Serving(config.server, service, Loader(composed)).run()

    return uvloop.run(main())
