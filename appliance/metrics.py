"""Prometheus metrics of one server, in a registry of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from engine.stats import EngineStats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0),
)
TOKEN_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
LATENCY_BUCKETS = (
    0.1,
    0.3,
    0.5,
    0.8,
    1.0,
    1.5,
    2.0,
    2.5,
    5.0,
    10.0,
    15.0,
    30.0,
    60.0,
    120.0,
    300.0,
)
LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
MEDIA_BUCKETS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
LENGTH_BUCKETS = tuple(float(2**power) for power in range(18))


GAUGES = (
    ("running", "num_requests_running", "Sequences in the engine's batch."),
    ("waiting", "num_requests_waiting", "Sequences waiting for a place in the batch."),
    ("pages_total", "kv_pages", "Pages of the KV cache."),
    ("pages_used", "kv_pages_used", "Pages held by running sequences."),
    ("pages_cached", "kv_pages_cached", "Free pages whose content later prompts can still use."),
    ("encoder_cache_bytes", "encoder_cache_bytes", "Bytes of cached tower outputs."),
)
COUNTERS = (
    ("prefix_hit_tokens", "prefix_cache_hit_tokens", "Prompt tokens found in the prefix cache."),
    ("prompt_tokens", "prompt_tokens", "Prompt tokens taken in by the engine."),
    ("generated_tokens", "generation_tokens", "Tokens generated."),
    ("preemptions", "num_preemptions", "Sequences put back to waiting for want of pages."),
    ("encoder_cache_hits", "encoder_cache_hits", "Items whose tower output was cached."),
    ("encoder_cache_misses", "encoder_cache_misses", "Items that went through their tower."),
    ("steps", "engine_steps", "Steps of the engine."),
    ("draft_tokens", "spec_decode_num_draft_tokens", "Tokens guessed by engine.speculation."),
    ("accepted_tokens", "spec_decode_num_accepted_tokens", "Guessed tokens that were right."),
)


class EngineSource(Protocol):
    """Whatever has the engine's latest numbers."""

    @property
    def stats(self) -> EngineStats: ...


class EngineCollector(Collector):
    """Turns the engine's latest numbers into metrics when somebody asks."""

    def __init__(self, engine: EngineSource) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats
        for field, name, help in GAUGES:
            yield GaugeMetricFamily(f"appliance_{name}", help, value=getattr(stats, field))
        for field, name, help in COUNTERS:
            yield CounterMetricFamily(f"appliance_{name}", help, value=getattr(stats, field))
        usage = stats.pages_used / stats.pages_total if stats.pages_total else 0.0
        yield GaugeMetricFamily(
            "appliance_kv_cache_usage_perc", "Share of KV pages in use, 0 to 1.", value=usage
        )


class Metrics:
    """Counts and histograms of the HTTP side, and the engine's once it is watched."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "appliance_requests",
            "Requests answered.",
            ["route", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "appliance_request_seconds",
            "Time from a request's first byte to its answer's last.",
            ["route"],
            buckets=LATENCY_BUCKETS,
            registry=self.registry,
        )
        self.first_token = self._histogram(
            "time_to_first_token_seconds", "Time from a request to its first token.", TTFT_BUCKETS
        )
        self.inter_token = self._histogram(
            "inter_token_latency_seconds", "Time between an answer's tokens.", TOKEN_BUCKETS
        )
        self.end_to_end = self._histogram(
            "e2e_request_latency_seconds",
            "Time from a request to the last token of its last answer.",
            LATENCY_BUCKETS,
        )
        self.loop_lag = self._histogram(
            "event_loop_lag_seconds", "How late the server's event loop was.", LAG_BUCKETS
        )
        self.prompt_length = self._histogram(
            "request_prompt_tokens", "Prompt tokens of a request.", LENGTH_BUCKETS
        )
        self.answer_length = self._histogram(
            "request_generation_tokens", "Tokens generated for an answer.", LENGTH_BUCKETS
        )
        self.finished = Counter(
            "appliance_request_success",
            "Answers finished, by reason.",
            ["finished_reason"],
            registry=self.registry,
        )
        self.aborted = Counter(
            "appliance_requests_aborted",
            "Requests given up because their client left.",
            registry=self.registry,
        )

        self._stage_seconds = Histogram(
            "appliance_request_stage_seconds",
            "Time of a request in a stage: read, fetch, prompt, media, queue, prefill, decode.",
            ["stage"],
            buckets=MEDIA_BUCKETS,
            registry=self.registry,
        )
        self._media_seconds = Histogram(
            "appliance_media_seconds",
            "Time of one media item in a stage: fetch, queue, decode, preprocess, encode.",
            ["stage", "modality"],
            buckets=MEDIA_BUCKETS,
            registry=self.registry,
        )
        self.media_refusals = self._counter(
            "media_refusals", "Media items refused, by error code.", ["code", "modality"]
        )
        self.media_cache_hits = self._counter(
            "media_cache_hits", "Items that were prepared already.", ["modality"]
        )
        self.media_cache_misses = self._counter(
            "media_cache_misses", "Items that were not prepared yet.", ["modality"]
        )
        self.media_workers_replaced = self._counter(
            "media_workers_replaced", "Media workers ended by an item, by cause.", ["cause"]
        )

    def _counter(self, name: str, help: str, labels: list[str]) -> Counter:
        return Counter(f"appliance_{name}", help, labels, registry=self.registry)

    def gauge(self, name: str, help: str, value: Callable[[], float]) -> None:
        """Add a gauge that is read when somebody asks."""
        Gauge(f"appliance_{name}", help, registry=self.registry).set_function(value)

    def media_took(self, stage: str, modality: str, seconds: float) -> None:
        """Count one item's time in a stage; may be called from any thread."""
        self._media_seconds.labels(stage, modality).observe(seconds)

    def stages_took(self, seconds: Mapping[str, float]) -> None:
        """Count where one request's time went."""
        for stage, passed in seconds.items():
            self._stage_seconds.labels(stage).observe(passed)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"appliance_{name}", help, buckets=buckets, registry=self.registry)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count one request of any route."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def watch(self, engine: EngineSource) -> None:
        """Add the engine's numbers from now on."""
        self.registry.register(EngineCollector(engine))

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
