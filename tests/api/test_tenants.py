"""Keys are kept apart: in what they may use, in what they may ask for, and in the caches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from appliance.api.app import create_app
from appliance.api.http.allowance import Allowance
from appliance.config.schema import TenantConfig
from engine.request import Output, Request
from tests.api.asgi_client import AsgiClient, Reply, chat_body
from tests.api.conftest import Kitchen
from tests.api.fake_engine import Step, speak

pytestmark = pytest.mark.anyio

Cook = Callable[..., Kitchen]
KEYS = "server.api_keys=[ann,bob]"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}


async def ask(kitchen: Kitchen, key: str, **fields: object) -> Reply:
    body = chat_body(**fields)
    return await kitchen.client.ask("POST", "/v1/chat/completions", body, headers=bearer(key))


@pytest.mark.parametrize("share", ["key", "all"])
async def test_caches_are_kept_apart_by_key(cook: Cook, share: str) -> None:
    kitchen = cook(..., KEYS, f"cache.share={share}")
    for key, salt in (("ann", None), ("bob", None), ("ann", None), ("ann", "s"), ("bob", "s")):
        assert (await ask(kitchen, key, cache_salt=salt)).status == 200
    ann, bob, again, salted, other = (request.salt for request in kitchen.engine.requests)
    assert ann == again
    assert salted != ann
    assert (ann == bob, salted == other) == ((share == "all",) * 2)


async def test_a_tenants_keys_share_caches_and_limits(cook: Cook) -> None:
    kitchen = cook(..., KEYS)
    kitchen.service.config.server.tenants = {
        "team": TenantConfig(keys=["one", "two"], requests_per_minute=2)
    }
    kitchen.client = AsgiClient(create_app(kitchen.service))
    assert (await ask(kitchen, "one")).headers["x-ratelimit-remaining-requests"] == "1"
    assert (await ask(kitchen, "two")).headers["x-ratelimit-remaining-requests"] == "0"
    assert (await ask(kitchen, "one")).status == 429
    assert "x-ratelimit-limit-requests" not in (await ask(kitchen, "ann")).headers
    one, two, ann = (request.salt for request in kitchen.engine.requests)
    assert one == two != ann


async def test_requests_a_minute_are_limited_for_each_key(cook: Cook) -> None:
    kitchen = cook(..., KEYS, "server.limits.requests_per_minute=2")
    for left in ("1", "0"):
        reply = await ask(kitchen, "ann")
        assert (reply.status, reply.headers["x-ratelimit-remaining-requests"]) == (200, left)
        assert reply.headers["x-ratelimit-limit-requests"] == "2"
        assert reply.headers["x-ratelimit-reset-requests"].endswith("s")
    refused = await ask(kitchen, "ann")
    assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
    assert 0 < int(refused.headers["retry-after"]) <= 30
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert (await ask(kitchen, "bob")).status == 200
    models = await kitchen.client.ask("GET", "/v1/models", headers=bearer("ann"))
    assert models.status == 200  # nothing is generated there


async def test_tokens_a_minute_count_prompts_and_answers(cook: Cook) -> None:
    kitchen = cook(speak(5, 6, 7), KEYS, "server.limits.tokens_per_minute=100")
    reply = await ask(kitchen, "ann", n=2)
    used = reply.json["usage"]["total_tokens"]
    assert used > 6
    left = int((await ask(kitchen, "ann")).headers["x-ratelimit-remaining-tokens"])
    prompt = reply.json["usage"]["prompt_tokens"]
    assert 100 - used - prompt - 3 <= left <= 100 - used - prompt - 3 + 2  # filled up meanwhile
    while (reply := await ask(kitchen, "ann")).status == 200:
        pass
    assert (reply.status, reply.error["code"]) == (429, "rate_limit_exceeded")
    assert (await ask(kitchen, "bob")).status == 200


async def test_requests_at_once_are_limited_and_counted_down_however_they_end(cook: Cook) -> None:
    def slow(request: Request) -> Iterator[Step]:
        yield Output(request.id, 0, [5])
        while True:
            yield 0.01

    kitchen = cook(slow, KEYS, "server.limits.concurrent=2")
    path, body = "/v1/chat/completions", chat_body(stream=True)
    running = [kitchen.client.begin("POST", path, body, headers=bearer("ann")) for _ in range(2)]
    for exchange in running:
        await asyncio.wait_for(exchange.begun.wait(), 60)
    assert running[1].reply.headers["x-ratelimit-remaining-concurrent"] == "0"
    refused = await ask(kitchen, "ann")
    assert (refused.status, refused.headers["retry-after"]) == (429, "1")
    for exchange in running:
        exchange.gone.set()
        await exchange.done()
    again = kitchen.client.begin("POST", path, body, headers=bearer("ann"))
    await asyncio.wait_for(again.begun.wait(), 60)
    assert again.reply.status == 200
    again.gone.set()
    await again.done()


@pytest.mark.parametrize("priority", [-1, 1001])
async def test_a_priority_beyond_the_keys_range_is_refused(cook: Cook, priority: int) -> None:
    refused = await ask(cook(..., KEYS), "ann", priority=priority)
    assert (refused.status, refused.error["param"]) == (400, "priority")
    allowed = cook(..., KEYS, "server.limits.priority=[-5,2000]")
    assert (await ask(allowed, "ann", priority=priority)).status == 200
    assert allowed.engine.requests[0].priority == priority


async def test_without_keys_everybody_is_limited_together(cook: Cook) -> None:
    kitchen = cook(..., "server.limits.requests_per_minute=1")
    assert (await ask(kitchen, "ann")).status == 200
    assert (await ask(kitchen, "bob")).status == 429


def test_an_allowance_is_filled_up_steadily_and_pays_its_debts() -> None:
    now = 0.0
    allowance = Allowance(60, clock=lambda: now)
    allowance.take(90)  # an answer that went on
    assert (allowance.remaining, allowance.wait()) == (0, 31.0)
    now = 30.5
    assert allowance.wait() == 0.5
    now = 40.0
    assert (allowance.remaining, allowance.wait(), allowance.reset_seconds) == (10, 0.0, 50.0)
    now = 1e6
    assert (allowance.remaining, allowance.reset_seconds) == (60, 0.0)


async def test_a_key_asks_for_its_routes_and_no_others(cook: Cook) -> None:
    kitchen = cook(..., KEYS, "server.limits.routes=[/v1/*]")
    kitchen.service.config.server.tenants = {
        "monitor": TenantConfig(keys=["eye"], routes=["/metrics"])
    }
    kitchen.client = AsgiClient(create_app(kitchen.service))
    client = kitchen.client
    for key, path, status in (
        ("ann", "/v1/models", 200),
        ("ann", "/v1/models/tiny", 200),
        ("ann", "/metrics", 403),
        ("ann", "/v1", 403),
        ("ann", "//metrics", 403),
        ("ann", "/nowhere", 403),
        ("eye", "/metrics", 200),
        ("eye", "/metrics/", 403),
        ("eye", "/v1/models", 403),
        ("eye", "/livez", 200),
        ("odd", "/metrics", 401),
    ):
        reply = await client.ask("GET", path, headers=bearer(key))
        assert reply.status == status, (key, path)
        if status == 403:
            assert reply.error["code"] == "route_not_allowed"
    assert (await ask(kitchen, "ann")).status == 200
    refused = await ask(kitchen, "eye")
    assert (refused.status, refused.error["type"]) == (403, "permission_error")
    assert len(kitchen.engine.requests) == 1
