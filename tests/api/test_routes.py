"""Routes besides completions, and the shape of every failure."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator

import pytest
from openai.types import Model
from prometheus_client.parser import text_string_to_metric_families

from appliance.api.http.faults import fault_response
from appliance.errors import internal
from engine.request import Output, Request
from tests.api.asgi_client import AsgiClient, chat_body
from tests.api.conftest import Kitchen
from tests.api.fake_engine import Step

pytestmark = pytest.mark.anyio
Cook = Callable[..., Kitchen]
CHAT = "/v1/chat/completions"


async def test_models_tell_what_they_take(cook: Cook) -> None:
    client = cook().client
    listed = (await client.ask("GET", "/v1/models")).json
    assert listed["object"] == "list"
    (card,) = listed["data"]
    Model.model_validate(card, strict=True)
    assert card["id"] == "tiny"
    assert card["max_model_len"] == 256
    assert card["modalities"] == {"input": ["text"], "output": ["text"]}
    assert card["limits"]["max_prompt_tokens"] == 255
    assert (await client.ask("GET", "/v1/models/tiny")).json == card
    missing = await client.ask("GET", "/v1/models/owner/other")
    assert (missing.status, missing.error["code"]) == (404, "model_not_found")


async def test_a_model_is_asked_for_by_any_of_its_names(cook: Cook) -> None:
    client = cook(..., "server.aliases=[gpt-4o,owner/big,tiny]").client
    listed = (await client.ask("GET", "/v1/models")).json["data"]
    assert [card["id"] for card in listed] == ["tiny", "gpt-4o", "owner/big"]
    for card in listed:
        name = card["id"]
        assert (await client.ask("GET", f"/v1/models/{name}")).json == card
        reply = await client.chat(model=name)
        assert (reply.status, reply.json["model"]) == (200, "tiny")
    assert (await client.chat(model="gpt-4")).error["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "route_not_found"),
        ("GET", "/", 404, "route_not_found"),
        ("POST", "/v1/chat/completions/", 404, "route_not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("OPTIONS", CHAT, 405, "method_not_allowed"),
        ("POST", "/livez", 405, "method_not_allowed"),
        ("POST", CHAT, 400, "invalid_json"),
    ],
)
async def test_failures_have_one_shape(
    cook: Cook, method: str, path: str, status: int, code: str
) -> None:
    reply = await cook().client.ask(method, path)
    assert (reply.status, reply.error["code"]) == (status, code)
    if status == 405:
        assert reply.headers["allow"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"model": "tiny",}',
        b"[]",
        b"null",
        b'"text"',
        b'{"temperature": NaN}',
        b'{"temperature": Infinity}',
        b'{"n": ' + b"1" * 5000 + b"}",
        b"\xff\xfe{}",
        b'{"messages": ' + b"[" * 100 + b"]" * 100 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
    ids=lambda body: repr(body[:20]),
)
async def test_a_body_that_is_no_json_object_is_400(cook: Cook, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    reply = await cook().client.ask("POST", CHAT, body=body, headers=headers)
    assert reply.status == 400
    assert reply.error["type"] == "invalid_request_error"


async def test_json_of_another_charset_parameter_is_json(cook: Cook) -> None:
    body = json.dumps(chat_body()).encode()
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    reply = await cook().client.ask("POST", CHAT, body=body, headers=headers)
    assert reply.status == 200


@pytest.mark.parametrize("kind", [None, "application/x-www-form-urlencoded"])
async def test_what_curl_says_of_any_body_is_json_unless_a_browser_says_it(
    cook: Cook, kind: str | None
) -> None:
    """A page of somebody else's can have a browser send such a body without asking first."""
    headers = {} if kind is None else {"Content-Type": kind}
    body = json.dumps(chat_body()).encode()
    assert (await cook().client.ask("POST", CHAT, body=body, headers=headers)).status == 200
    for sign in ({"Origin": "https://example.com"}, {"Sec-Fetch-Site": "cross-site"}):
        reply = await cook().client.ask("POST", CHAT, body=body, headers=headers | sign)
        assert (reply.status, reply.error["code"]) == (415, "unsupported_media_type")
    reply = await cook().client.ask("POST", CHAT, body=b"a=b", headers=headers)
    assert (reply.status, reply.error["code"]) == (400, "invalid_json")


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "image/png"])
async def test_another_type_is_415(cook: Cook, kind: str) -> None:
    headers = {"Content-Type": kind}
    reply = await cook().client.ask("POST", CHAT, body=b"{}", headers=headers)
    assert reply.status == 415
    assert kind.partition(";")[0] in reply.error["message"]


async def test_a_declared_length_over_the_limit_is_413(cook: Cook) -> None:
    headers = {"Content-Type": "application/json", "Content-Length": "1001"}
    kitchen = cook(..., "server.max_body_bytes=1000")
    reply = await kitchen.client.ask("POST", CHAT, body=b"x" * 1001, headers=headers)
    assert (reply.status, reply.error["code"]) == (413, "body_too_large")


async def test_an_undeclared_length_is_counted_while_reading(cook: Cook) -> None:
    headers = {"Content-Type": "application/json"}
    client = cook(..., "server.max_body_bytes=1000").client
    reply = await client.ask("POST", CHAT, body=[b" " * 400] * 3, headers=headers)
    assert reply.status == 413
    whole = json.dumps(chat_body()).encode()
    pieces = [whole[:20], whole[20:], b" " * (1000 - len(whole))]
    assert (await client.ask("POST", CHAT, body=pieces, headers=headers)).status == 200


async def test_keys_guard_everything_but_the_probes(cook: Cook) -> None:
    hashed = "sha256:" + "4c806362b613f7496abf284146efd31da90e4b16169fe001841ca17290f427c4"
    client = cook(..., f"server.api_keys=[first,'{hashed}']").client
    for path in ("/livez", "/readyz", "/startupz", "/health"):
        assert (await client.ask("GET", path)).status == 200
    for path in ("/v1/models", "/metrics", "/version", "/nowhere"):
        refused = await client.ask("GET", path)
        assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")
        assert refused.headers["www-authenticate"] == "Bearer"
    for given in ("Bearer wrong", "Basic first", "first", "Bearer", f"Bearer {hashed}"):
        refused = await client.ask("GET", "/v1/models", headers={"Authorization": given})
        assert refused.status == 401
        assert "wrong" not in refused.error["message"]
    for given in ("Bearer first", "bearer first", "Bearer second"):
        headers = {"Authorization": given}
        assert (await client.ask("GET", "/v1/models", headers=headers)).status == (
            401 if given == "Bearer second" else 200
        )
    headers = {"Authorization": "Bearer test\u0074"}
    assert (await client.ask("GET", "/v1/models", headers=headers)).status == 401


async def test_a_hashed_key_lets_its_key_in(cook: Cook) -> None:
    import hashlib

    digest = hashlib.sha256(b"quiet").hexdigest()
    client = cook(..., f"server.api_keys=['sha256:{digest}']").client
    good = await client.ask("GET", "/v1/models", headers={"Authorization": "Bearer quiet"})
    bad = await client.ask("GET", "/v1/models", headers={"Authorization": "Bearer loud"})
    assert (good.status, bad.status) == (200, 401)


async def test_request_ids_go_through_or_are_made(cook: Cook) -> None:
    client = cook().client
    kept = await client.ask("GET", "/livez", headers={"X-Request-Id": "abc-1.2_3"})
    assert kept.headers["x-request-id"] == "abc-1.2_3"
    for wild in ("a b", "a\nSet-Cookie: b", "x" * 200, ""):
        made = await client.ask("GET", "/livez", headers={"X-Request-Id": wild})
        assert made.headers["x-request-id"].startswith("req-")
    assert (await client.ask("GET", "/nowhere")).headers["x-request-id"].startswith("req-")


async def test_origins_have_to_be_listed(cook: Cook) -> None:
    asking = {
        "Origin": "https://app.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    off = await cook().client.ask("OPTIONS", CHAT, headers=asking)
    assert off.status == 405
    assert "access-control-allow-origin" not in off.headers
    overrides = ("server.cors_origins=['https://app.example']", "server.api_keys=[k]")
    client = cook(..., *overrides).client
    preflight = await client.ask("OPTIONS", CHAT, headers=asking)
    assert preflight.status == 204
    assert preflight.headers["access-control-allow-origin"] == "https://app.example"
    assert preflight.headers["access-control-allow-headers"] == "authorization"
    refused = await client.ask("GET", "/v1/models", headers={"Origin": "https://app.example"})
    assert refused.status == 401
    assert refused.headers["access-control-allow-origin"] == "https://app.example"
    other = await client.ask("OPTIONS", CHAT, headers={**asking, "Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers
    assert (other.status, other.error["code"]) == (400, "cors_refused")
    exposed = refused.headers["access-control-expose-headers"]
    assert {"X-Request-Id", "X-Ignored-Fields", "Retry-After"} <= set(exposed.split(", "))


async def test_before_loading_probes_tell_phase_and_others_wait(cook: Cook) -> None:
    kitchen = cook()
    kitchen.service.generation = None
    lifecycle = kitchen.service.lifecycle
    lifecycle.loaded, lifecycle.phase, lifecycle.fraction = False, "loading weights", 0.25
    assert (await kitchen.client.ask("GET", "/livez")).status == 200
    for path in ("/startupz", "/readyz", "/health"):
        reply = await kitchen.client.ask("GET", path)
        assert reply.status == 503
        assert reply.json["phase"] == "loading weights"
        assert reply.json["fraction"] == 0.25
        assert reply.json["elapsed"] >= 0
        assert reply.json["error"]["code"] == "loading"
    for reply in (await kitchen.client.chat(), await kitchen.client.ask("GET", "/v1/models")):
        assert (reply.status, reply.error["code"]) == (503, "loading")
        assert int(reply.headers["retry-after"]) > 0


async def test_draining_refuses_new_requests(cook: Cook) -> None:
    kitchen = cook()
    kitchen.service.lifecycle.draining = True
    reply = await kitchen.client.chat()
    assert (reply.status, reply.error["code"]) == (503, "draining")
    assert int(reply.headers["retry-after"]) > 0
    assert (await kitchen.client.ask("GET", "/readyz")).status == 503
    assert (await kitchen.client.ask("GET", "/livez")).status == 200
    assert (await kitchen.client.ask("GET", "/startupz")).status == 200


async def test_a_dead_engine_is_told_by_livez(cook: Cook) -> None:
    kitchen = cook()
    kitchen.service.lifecycle.dead = "killed by signal 9"
    reply = await kitchen.client.ask("GET", "/livez")
    assert reply.status == 503
    assert reply.json["phase"] == "dead"
    assert (await kitchen.client.chat()).error["code"] == "engine_dead"


async def test_a_full_queue_is_429(cook: Cook) -> None:
    def script(request: Request) -> Iterator[Step]:
        while True:
            yield 0.01
            yield Output(request.id, 0, [5])

    kitchen = cook(script, "server.max_queue=2")
    running = [
        kitchen.client.begin("POST", CHAT, chat_body(stream=True))
        for _ in range(6)  # four in the batch, two waiting
    ]
    await asyncio.gather(*(exchange.begun.wait() for exchange in running))
    reply = await kitchen.client.chat()
    assert (reply.status, reply.error["code"]) == (429, "queue_full")
    assert int(reply.headers["retry-after"]) > 0
    for exchange in running:
        exchange.gone.set()
        await exchange.done()
    await asyncio.sleep(0.02)
    assert kitchen.service.generation is not None
    assert kitchen.service.generation.waiting == 0


async def test_version_names_the_recipe_by_digest(cook: Cook) -> None:
    body = (await cook().client.ask("GET", "/version")).json
    assert body["digest"] == "0123456789ab"
    assert body["model"] == "tiny"
    assert body["version"]


async def test_metrics_count_what_happened(cook: Cook) -> None:
    kitchen = cook()
    await kitchen.client.chat()
    await kitchen.client.ask("GET", "/nowhere/at/all")
    reply = await kitchen.client.ask("GET", "/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, sample.labels.get("route"), sample.labels.get("status")): sample.value
        for family in text_string_to_metric_families(reply.body.decode())
        for sample in family.samples
    }
    assert samples["appliance_requests_total", CHAT, "200"] == 1
    assert samples["appliance_requests_total", "other", "404"] == 1
    plain = {name: value for (name, route, _), value in samples.items() if route is None}
    assert plain["appliance_time_to_first_token_seconds_count"] == 1
    assert plain["appliance_inter_token_latency_seconds_count"] == 2
    assert plain["appliance_e2e_request_latency_seconds_count"] == 1
    assert plain["appliance_num_requests_running"] == 3
    assert plain["appliance_kv_pages_used"] == 4
    assert plain["appliance_kv_cache_usage_perc"] == 0.4
    assert plain["appliance_prefix_cache_hit_tokens_total"] == 7


async def test_one_line_is_logged_for_a_request(
    cook: Cook, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    client = cook().client
    await client.chat()
    await client.ask("GET", "/livez")
    (record,) = [record for record in caplog.records if record.name == "appliance.requests"]
    fields = record.__dict__["fields"]
    assert fields["status"] == 200
    assert fields["generated_tokens"] == 3
    assert fields["prompt_tokens"] > 0


async def test_a_bug_is_a_500_with_the_request_id(
    cook: Cook, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kitchen = cook()

    async def broken(*_: object, **__: object) -> None:
        raise ValueError("a secret path")

    monkeypatch.setattr(kitchen.service.generation, "chat", broken)
    reply = await kitchen.client.ask("POST", CHAT, chat_body(), headers={"X-Request-Id": "find-me"})
    assert reply.status == 500
    assert "find-me" in reply.error["message"]
    assert b"secret" not in reply.body
    assert "find-me" in caplog.text


async def test_outside_the_routes_a_bug_is_a_500_too(cook: Cook) -> None:
    from appliance.api.http.exchange import Exchange

    kitchen = cook()

    async def broken(*_: object) -> None:
        raise ValueError("a secret path")

    client = AsgiClient(Exchange(broken, kitchen.service, frozenset()))
    reply = await client.ask("GET", "/x")
    assert reply.status == 500
    assert reply.body != fault_response(internal("")).body
    assert reply.error["code"] == "internal_error"
