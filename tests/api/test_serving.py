"""A real server on a free port: the official client, probes while loading, drain, death."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import trustme
import yaml
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from appliance.addresses import CannotListen, bind
from appliance.api.http.protocol import MAX_HEADER_BYTES
from appliance.certificates import certificate_of
from appliance.config.errors import ConfigurationError
from appliance.health import asked
from appliance.service import Service
from appliance.tasks.serve import Serving
from engine.errors import EngineDead
from engine.request import Output, Request, TokenLogprob
from tests.api.asgi_client import chat_body
from tests.api.conftest import PromptSide, configuration, generation
from tests.api.fake_engine import FakeEngine, Script, Step, speak

pytestmark = pytest.mark.anyio


@dataclass
class FakeLoader:
    """Loads when it is told to."""

    side: PromptSide
    engine: FakeEngine
    pool: ThreadPoolExecutor
    summary: str = ""
    go: asyncio.Event = field(default_factory=asyncio.Event)
    fault: Exception | None = None

    async def load(self, service: Service) -> None:
        service.lifecycle.phase = "loading weights"
        await self.go.wait()
        if self.fault is not None:
            raise self.fault
        metrics = service.metrics
        service.generation = generation(self.side, self.engine, service.config, metrics, self.pool)
        service.lifecycle.loaded = True

    async def died(self) -> str:
        return await self.engine.died()

    async def stop(self) -> None:
        await self.engine.stop()

    def kill(self) -> None:
        raise AssertionError("not killed here")


@dataclass
class Running:
    """A server under test."""

    service: Service
    serving: Serving
    loader: FakeLoader
    task: asyncio.Task[int]

    @property
    def url(self) -> str:
        return self.service.address

    @cached_property
    def client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="key", max_retries=0)

    async def close(self) -> None:
        if "client" in self.__dict__:
            await self.client.close()

    async def get(self, path: str) -> tuple[int, dict[str, object]]:
        data = await self.raw(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        head, _, body = data.partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body)

    async def raw(self, text: str) -> bytes:
        """All that the server says to these bytes until it closes."""
        host, port = self.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(text.encode())
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        data = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return data


Start = Callable[..., "contextlib.AbstractAsyncContextManager[Running]"]


@pytest.fixture
def start(prompt_side: PromptSide, pool: ThreadPoolExecutor) -> Start:
    @contextlib.asynccontextmanager
    async def run(script: Script, *overrides: str, load: bool = True) -> AsyncIterator[Running]:
        config = configuration("server.port=0", *overrides)
        service = Service(config, "tiny", "0123456789ab")
        loader = FakeLoader(prompt_side, FakeEngine(script), pool)
        serving = Serving(config.server, service, loader)
        task = asyncio.create_task(serving.run())
        running = Running(service, serving, loader, task)
        try:
            async with asyncio.timeout(10):
                while not service.address and not task.done():
                    await asyncio.sleep(0.01)
                if load:
                    loader.go.set()
                    while not service.lifecycle.loaded:
                        await asyncio.sleep(0.01)
            yield running
        finally:
            await running.close()
            serving.stop()
            await asyncio.wait_for(task, 15)

    return run


def endless(request: Request) -> Iterator[Step]:
    while True:
        for index in range(request.n):
            yield Output(request.id, index, [5])
        yield 0.01


def reciter(side: PromptSide, text: str) -> Script:
    """Says `text` in every answer, with log-probabilities."""
    ids = side.ids(text)

    def script(request: Request) -> Iterator[Step]:
        for place, token in enumerate(ids):
            for index in range(request.n):
                yield Output(
                    request.id,
                    index,
                    [token],
                    "length" if place == len(ids) - 1 else None,
                    logprobs=[TokenLogprob(token, -0.1, [(token, -0.1)])],
                )

    return script


async def test_the_official_client_chats(start: Start, prompt_side: PromptSide) -> None:
    async with start(reciter(prompt_side, "Grüße aus Köln")) as server:
        client = server.client
        ask = [{"role": "user", "content": "Hello"}]
        answer = await client.chat.completions.create(
            model="tiny", messages=ask, n=2, logprobs=True, top_logprobs=1, seed=1
        )
        assert [choice.message.content for choice in answer.choices] == ["Grüße aus Köln"] * 2
        assert answer.choices[0].logprobs is not None
        stream = await client.chat.completions.create(
            model="tiny", messages=ask, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == "Grüße aus Köln"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == len(prompt_side.ids("Grüße aus Köln"))
        plain = await client.completions.create(model="tiny", prompt="Hello", echo=True)
        assert plain.choices[0].text == "HelloGrüße aus Köln"
        assert [model.id async for model in client.models.list()] == ["tiny"]


async def test_the_official_client_raises_its_typed_exceptions(
    start: Start, prompt_side: PromptSide
) -> None:
    script = reciter(prompt_side, "Hello")
    async with start(script, "server.api_keys=[key]", "server.max_body_bytes=5000") as server:
        client = server.client
        ask = [{"role": "user", "content": "Hello"}]
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(model="other", messages=ask)
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as bad:
            await client.chat.completions.create(model="tiny", messages=ask, temperature=9)
        assert bad.value.param == "temperature"
        with pytest.raises(openai.AuthenticationError):
            await client.with_options(api_key="no").models.list()
        huge = [{"role": "user", "content": "x" * 10_000_000}]
        with pytest.raises(openai.APIStatusError) as large:
            await client.chat.completions.create(model="tiny", messages=huge)
        assert large.value.status_code == 413


async def test_an_error_event_reaches_the_official_client(start: Start) -> None:
    def script(request: Request) -> Iterator[Step]:
        yield Output(request.id, 0, [5])
        yield 0.05
        yield Output(request.id, 0, [], "error", error="The step failed.")

    async with start(script) as server:
        stream = await server.client.chat.completions.create(**chat_body(), stream=True)
        with pytest.raises(openai.APIError, match="The step failed"):
            async for _ in stream:
                pass


async def test_probes_answer_while_the_model_loads(start: Start) -> None:
    async with start(endless, load=False) as server:
        status, body = await server.get("/startupz")
        assert (status, body["phase"]) == (503, "loading weights")
        assert (await server.get("/livez"))[0] == 200
        assert (await server.get("/readyz"))[0] == 503
        with pytest.raises(openai.InternalServerError) as early:
            await server.client.chat.completions.create(**chat_body())
        assert early.value.response.headers["retry-after"]
        server.loader.go.set()
        while (await server.get("/readyz"))[0] != 200:
            await asyncio.sleep(0.01)
        assert (await server.get("/startupz"))[0] == 200


async def test_a_stop_while_loading_ends_at_once(start: Start) -> None:
    async with start(endless, load=False) as server:
        server.serving.stop()
        assert await asyncio.wait_for(server.task, 60) == 0
        assert server.loader.engine.stopped


async def test_a_model_that_cannot_load_is_one_line_and_exit_code_1(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    async with start(endless, load=False) as server:
        server.loader.fault = EngineDead("no family for this checkpoint")
        server.loader.go.set()
        assert await asyncio.wait_for(server.task, 60) == 1
    (line,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "no family for this checkpoint" in line.getMessage()
    assert line.exc_info is None


async def test_sigterm_lets_running_answers_finish(start: Start, prompt_side: PromptSide) -> None:
    ids = prompt_side.ids("one two three four five six")

    def script(request: Request) -> Iterator[Step]:
        for place, token in enumerate(ids):
            yield Output(request.id, 0, [token], "length" if place == len(ids) - 1 else None)
            yield 0.1

    async with start(script) as server:
        stream = await server.client.chat.completions.create(**chat_body(), stream=True)
        chunks = [await anext(stream)]
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.05)
        assert (await server.get("/readyz"))[0] == 503
        with pytest.raises(openai.InternalServerError) as refused:
            await server.client.chat.completions.create(**chat_body())
        assert refused.value.code == "draining"
        chunks += [chunk async for chunk in stream]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text == "one two three four five six"
        assert await asyncio.wait_for(server.task, 60) == 0


async def test_a_drain_ends_what_takes_too_long(start: Start) -> None:
    async with start(endless, "server.drain_seconds=0.2") as server:
        stream = await server.client.chat.completions.create(**chat_body(), stream=True)
        await anext(stream)
        server.serving.stop()
        with pytest.raises(openai.APIError, match="shut down"):
            async for _ in stream:
                pass
        assert await asyncio.wait_for(server.task, 60) == 0


async def test_a_dead_engine_ends_streams_and_the_server(start: Start) -> None:
    async with start(endless) as server:
        stream = await server.client.chat.completions.create(**chat_body(), stream=True)
        await anext(stream)
        whole = asyncio.create_task(server.client.chat.completions.create(**chat_body()))
        await asyncio.sleep(0.1)
        server.loader.engine.die("killed by signal 9")
        with pytest.raises(openai.APIError, match="stopped"):
            async for _ in stream:
                pass
        with pytest.raises(openai.InternalServerError):
            await whole
        status, body = await server.get("/livez")
        assert (status, body["phase"]) == (503, "dead")
        assert await asyncio.wait_for(server.task, 60) == 1


async def test_a_lost_connection_aborts(start: Start) -> None:
    async with start(endless) as server:
        stream = await server.client.chat.completions.create(**chat_body(), stream=True)
        await anext(stream)
        await stream.close()
        await asyncio.sleep(0.2)
        assert [request for request, _ in server.loader.engine.aborted] == [
            server.loader.engine.requests[0].id
        ]


async def test_headers_without_end_are_431(start: Start) -> None:
    async with start(endless) as server:
        big = "x" * (MAX_HEADER_BYTES + 1)
        data = await server.raw(f"GET /livez HTTP/1.1\r\nHost: x\r\nX-Big: {big}\r\n\r\n")
        assert data.startswith(b"HTTP/1.1 431 ")
        assert json.loads(data.partition(b"\r\n\r\n")[2])["error"]["code"] == "headers_too_large"
        try:
            data = await server.raw("GET /livez HTTP/1.1\r\nX-Endless: " + "x" * 2_000_000)
        except ConnectionResetError:  # what was not read any more resets the connection
            data = b""
        assert data == b"" or data.startswith(b"HTTP/1.1 431 ")


async def test_what_is_not_http_is_400(start: Start) -> None:
    async with start(endless) as server:
        data = await server.raw("HELLO\r\n\r\n")
        assert data.startswith(b"HTTP/1.1 400 ")
        assert json.loads(data.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_http"


async def test_a_unix_socket(start: Start, tmp_path: Path, prompt_side: PromptSide) -> None:
    path = tmp_path / "s.sock"
    async with start(reciter(prompt_side, "Hello"), f"server.uds={path}") as server:
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        writer.close()
        assert server.url == f"unix:{path}"
    assert not path.exists()


async def test_a_taken_port_is_one_line_and_exit_code_2(
    prompt_side: PromptSide, pool: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    taken = bind("127.0.0.1", 0)
    taken.listen()
    port = taken.getsockname()[1]
    config = configuration(f"server.port={port}")
    loader = FakeLoader(prompt_side, FakeEngine(endless), pool)
    assert await Serving(config.server, Service(config, "tiny", "0"), loader).run() == 2
    assert f"port {port} of 127.0.0.1 is in use: set server.port=" in caplog.text
    taken.close()


def test_a_name_nobody_has_cannot_be_listened_on() -> None:
    with pytest.raises(CannotListen, match=r"not an address"):
        bind("no.such.host.invalid", 1)


DEPLOY = Path(__file__).parents[2] / "deploy"
BOARD, ALERTS = DEPLOY / "grafana.json", DEPLOY / "alerts.yaml"


async def test_the_board_and_the_alerts_ask_for_what_there_is(start: Start) -> None:
    """Each expression by its names: of metrics, of the labels that they have, of its brackets."""
    expressions = [
        target["expr"]
        for panel in json.loads(BOARD.read_text())["panels"]
        for target in panel["targets"]
    ]
    rules = [
        rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
    ]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    assert all({"summary", "description"} == set(rule["annotations"]) for rule in rules)
    expressions += [rule["expr"] for rule in rules]
    async with start(speak(5, 6)) as running:
        running.service.metrics.watch(running.loader.engine)
        await running.client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "Hi"}]
        )
        page = await running.raw("GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    families = list(text_string_to_metric_families(page.partition(b"\r\n\r\n")[2].decode()))
    for expression in expressions:
        unknown = strangers(expression, families)
        assert not unknown, (expression, unknown)
    assert strangers("rate(appliance_nothing_total[5m])", families) == {"appliance_nothing_total"}
    assert strangers("sum by (tone) (appliance_kv_pages)", families) == {"tone"}


def strangers(expression: str, families: list[Metric]) -> set[str]:
    """Names in an expression that no metric has."""
    names: set[str] = set()
    labels = {"le", "job", "instance"}  # the latter are Prometheus' own
    for family in families:
        endings = {
            "counter": ["_total"],
            "histogram": ["_bucket", "_sum", "_count"],
        }.get(family.type, [""])
        names |= {family.name + ending for ending in endings}
        labels |= {label for sample in family.samples for label in sample.labels}
    labels |= {"code", "modality", "cause"}  # of refusals, which there are none of yet
    assert all(expression.count(a) == expression.count(b) for a, b in ("()", "{}", "[]"))
    used = set(re.findall(r"\bappliance_\w+", expression))
    by = ",".join(re.findall(r"(?:by|on|ignoring)\s*\(([^)]*)\)", expression))
    matched = re.findall(r"(\w+)\s*=~?\s*\"", expression)
    return (used - names) | ({*re.findall(r"\w+", by), *matched} - labels)


def certify(authority: trustme.CA, folder: Path) -> list[str]:
    """Files of a new certificate and its key, as overrides of keys that name them."""
    issued = authority.issue_cert("127.0.0.1")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    issued.cert_chain_pems[0].write_to_path(str(certificate))
    issued.private_key_pem.write_to_path(str(key))
    return [f"server.tls_certificate={certificate}", f"server.tls_key={key}"]


async def seen(running: Running, trust: ssl.SSLContext) -> bytes:
    """The certificate that a new connection is shown."""
    host, port = running.url.removeprefix("https://").split(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=trust)
    shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return shown


async def test_clients_speak_tls_and_a_renewed_certificate_is_shown(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = trustme.CA()
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    async with start(speak(5, 6), *certify(authority, tmp_path)) as running:
        assert running.url.startswith("https://")
        http = httpx.AsyncClient(verify=trust)
        client = openai.AsyncOpenAI(
            base_url=f"{running.url}/v1", api_key="key", http_client=http, max_retries=0
        )
        fields: Any = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
        whole = await client.chat.completions.create(**fields)
        stream = await client.chat.completions.create(**fields, stream=True)
        text = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(text) == whole.choices[0].message.content
        first = await seen(running, trust)
        assert await seen(running, trust) == first

        certify(authority, tmp_path)
        os.kill(os.getpid(), signal.SIGHUP)
        async with asyncio.timeout(30):
            while (renewed := await seen(running, trust)) == first:
                await asyncio.sleep(0.05)
        (tmp_path / "key.pem").write_text("nothing")
        os.kill(os.getpid(), signal.SIGHUP)
        async with asyncio.timeout(30):
            while "stays as it was" not in caplog.text:
                await asyncio.sleep(0.05)
        assert await seen(running, trust) == renewed
        assert (await client.chat.completions.create(**fields)).choices
        host, port = running.url.removeprefix("https://").split(":")
        assert await asyncio.to_thread(asked, (host, int(port))) == "200"
        await http.aclose()


async def test_by_tls_a_client_that_leaves_ends_its_answer(start: Start, tmp_path: Path) -> None:
    authority = trustme.CA()
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    async with start(endless, *certify(authority, tmp_path)) as running:
        host, port = running.url.removeprefix("https://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), ssl=trust)
        body = json.dumps(chat_body(stream=True))
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}"
        writer.write(f"{head}\r\nContent-Type: application/json\r\n\r\n{body}".encode())
        await reader.readuntil(b"data: ")
        writer.close()
        async with asyncio.timeout(30):
            while not running.loader.engine.aborted:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["tls_key"], "server.tls_certificate needs server.tls_key"),
        (["tls_certificate"], "server.tls_key needs server.tls_certificate"),
        (["missing"], "no such file"),
        (["other"], "is not the key of"),
        (["text"], "in PEM form"),
        (["uds"], "exclude each other"),
    ],
)
def test_files_that_are_no_certificate_with_its_key_are_named(
    tmp_path: Path, overrides: list[str], words: str
) -> None:
    authority = trustme.CA()
    config = configuration(*certify(authority, tmp_path)).server
    assert certificate_of(config) is not None
    [fault] = overrides
    if fault in ("tls_key", "tls_certificate"):
        setattr(config, fault, None)
    elif fault == "uds":
        config.uds = str(tmp_path / "socket")
    elif fault == "missing":
        config.tls_key = str(tmp_path / "nowhere.pem")
    elif fault == "other":
        authority.issue_cert("b").private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    else:
        (tmp_path / "certificate.pem").write_text("text")
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        certificate_of(config)
    assert certificate_of(configuration().server) is None
