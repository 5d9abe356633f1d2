"""Traces of requests for OpenTelemetry: one span a request, and one for each of its stages."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from appliance import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

QUEUE = 8192  # spans that wait for their collector; more are lost
BATCH = 512
DELAY_MS = 2000
EXPORT_MS = 10_000
NAMES = ("traceparent", "tracestate")  # headers of W3C Trace Context

Value = str | bool | int | float
Interval = tuple[str, float, float]  # a stage, from when and until when, by time.perf_counter()


class Tracing:
    """Sends spans to a collector by a thread of its own; nothing waits for it.

    OpenTelemetry is imported when this is made, and only then. Raises ModuleNotFoundError where it
    is not installed.
    """

    def __init__(self, service: str, exporter: SpanExporter, *, at_once: bool = False) -> None:
        """`at_once` sends each span before going on: for tests."""
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased

        resource = Resource({"service.name": service, "service.version": __version__})
        self._provider = TracerProvider(ParentBased(ALWAYS_ON), resource, shutdown_on_exit=False)
        if at_once:
            self._provider.add_span_processor(SimpleSpanProcessor(exporter))
        else:
            self._provider.add_span_processor(
                BatchSpanProcessor(exporter, QUEUE, DELAY_MS, BATCH, EXPORT_MS)
            )
        self._tracer = self._provider.get_tracer("appliance", __version__)

    @classmethod
    def to(cls, service: str, endpoint: str) -> Tracing:
        """Spans for the OTLP/HTTP collector at a URL. Raises ModuleNotFoundError."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return cls(service, OTLPSpanExporter(endpoint, timeout=EXPORT_MS / 1000))

    def request(
        self,
        name: str,
        headers: Iterable[tuple[bytes, bytes]],
        whole: tuple[float, float],
        stages: Sequence[Interval],
        attributes: Mapping[str, Value],
        *,
        failed: bool,
    ) -> None:
        """Tell of a request that is over; its headers may say whose part it is."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = {
            str(name, "ascii"): str(value, "latin-1")
            for name, value in headers
            if str(name, "latin-1") in NAMES
        }
        past = time.time_ns() - time.perf_counter_ns()  # from that clock to the calendar's

        def moment(seconds: float) -> int:
            return past + round(seconds * 1e9)

        span = self._tracer.start_span(
            name,
            TraceContextTextMapPropagator().extract(carrier),
            SpanKind.SERVER,
            dict(attributes),
            start_time=moment(whole[0]),
        )
        within = set_span_in_context(span)
        for stage, begun, ended in stages:
            part = self._tracer.start_span(stage, within, start_time=moment(begun))
            part.end(moment(ended))
        if failed:
            span.set_status(Status(StatusCode.ERROR))
        span.end(moment(whole[1]))

    def close(self) -> None:
        """Send what waits, and end the thread."""
        self._provider.shutdown()
