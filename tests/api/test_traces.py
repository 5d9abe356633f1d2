"""Traces as OpenTelemetry's own SDK makes and sends them."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from appliance import preflight
from appliance.config.errors import ConfigurationError
from appliance.tracing import Tracing
from tests.api.asgi_client import chat_body
from tests.api.conftest import Kitchen

pytestmark = pytest.mark.anyio

Cook = Callable[..., Kitchen]
CHAT = "/v1/chat/completions"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def kitchen(cook: Cook, spans: InMemorySpanExporter) -> Kitchen:
    return cook(tracing=Tracing("tiny", spans, at_once=True))


def finished(spans: InMemorySpanExporter) -> tuple[ReadableSpan, list[ReadableSpan]]:
    """The request's span, and those of its stages in their order."""
    told = spans.get_finished_spans()
    [whole] = [span for span in told if span.kind is SpanKind.SERVER]
    return whole, [span for span in told if span is not whole]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_is_a_span_and_each_stage_is_one_inside(
    kitchen: Kitchen, spans: InMemorySpanExporter, stream: bool
) -> None:
    await kitchen.client.ask(
        "POST",
        CHAT,
        chat_body(stream=stream, cache_salt="quiet"),
        headers={"X-Request-Id": "mine"},
    )
    whole, stages = finished(spans)
    assert whole.name == f"POST {CHAT}"
    assert whole.resource.attributes["service.name"] == "tiny"
    told = dict(whole.attributes or {})
    assert told["http.route"] == CHAT
    assert told["http.response.status_code"] == 200
    assert told["appliance.request_id"] == "mine"
    assert told["gen_ai.usage.output_tokens"] == 3
    assert told["gen_ai.response.model"] == "tiny"
    assert [span.name for span in stages] == ["read", "prompt", "prefill", "decode"]
    assert whole.start_time is not None
    moment = whole.start_time
    for span in stages:
        assert span.parent is not None
        assert span.parent.span_id == whole.context.span_id
        assert span.context.trace_id == whole.context.trace_id
        assert moment <= span.start_time <= span.end_time
        moment = span.end_time
    assert moment <= whole.end_time
    assert "Hello" not in str([span.to_json() for span in spans.get_finished_spans()])
    assert "quiet" not in str([span.to_json() for span in spans.get_finished_spans()])


async def test_a_callers_trace_goes_on(kitchen: Kitchen, spans: InMemorySpanExporter) -> None:
    """W3C Trace Context, with its own example."""
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "congo=t61rcWkgMzE"}
    await kitchen.client.ask("POST", CHAT, chat_body(), headers=headers)
    whole, _ = finished(spans)
    assert f"{whole.context.trace_id:032x}" == TRACE
    assert whole.parent is not None
    assert f"{whole.parent.span_id:016x}" == PARENT
    assert whole.context.trace_state.get("congo") == "t61rcWkgMzE"


async def test_a_caller_that_is_not_traced_is_not_traced_here(
    kitchen: Kitchen, spans: InMemorySpanExporter
) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    await kitchen.client.ask("POST", CHAT, chat_body(), headers=headers)
    assert not spans.get_finished_spans()


@pytest.mark.parametrize("given", ["", "00-x", f"ff-{TRACE}-{PARENT}-01", "\xff" * 99, "0" * 9000])
async def test_a_trace_that_is_none_is_a_new_one(
    kitchen: Kitchen, spans: InMemorySpanExporter, given: str
) -> None:
    exchange = kitchen.client.begin("GET", "/v1/models", headers={"traceparent": given})
    assert (await exchange.done()).status == 200
    whole, stages = finished(spans)
    assert whole.parent is None
    assert stages == []


async def test_faults_are_marked_and_probes_are_none(
    kitchen: Kitchen, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    await kitchen.client.ask("GET", "/livez")
    await kitchen.client.ask("GET", "/metrics")
    assert not spans.get_finished_spans()
    await kitchen.client.chat(temperature=9)
    whole, _ = finished(spans)
    assert whole.status.status_code is StatusCode.UNSET  # the client's fault
    spans.clear()

    async def broken(*_: object, **__: object) -> None:
        raise ValueError("a secret")

    monkeypatch.setattr(kitchen.service.generation, "chat", broken)
    await kitchen.client.chat()
    whole, stages = finished(spans)
    assert whole.status.status_code is StatusCode.ERROR
    assert [span.name for span in stages] == ["read"]
    assert "secret" not in whole.to_json()


async def test_a_collector_gets_them(cook: Cook) -> None:
    received: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        tracing = Tracing.to("tiny", f"http://127.0.0.1:{server.server_port}/v1/traces")
        await cook(tracing=tracing).client.chat()
        tracing.close()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    request = ExportTraceServiceRequest.FromString(b"".join(received))
    [resource] = request.resource_spans
    names = [span.name for scope in resource.scope_spans for span in scope.spans]
    assert sorted(names) == sorted(["read", "prompt", "prefill", "decode", f"POST {CHAT}"])


def test_nothing_of_it_is_imported_unless_it_is_asked_for() -> None:
    found = "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    script = f"import sys, appliance.tasks.serve, appliance.tracing; {found}"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "url", ["collector:4318", "http://collector:4318", "ftp://a/b", "http:///v1"]
)
def test_what_is_no_collectors_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"with its path"):
        preflight.check_traces(url)
    preflight.check_traces("http://127.0.0.1:4318/v1/traces")
    preflight.check_traces(None)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"model-appliance\[traces\]"):
        preflight.check_traces("http://127.0.0.1:4318/v1/traces")
