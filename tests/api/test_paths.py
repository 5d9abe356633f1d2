"""Which route a path means, and which one it nearly does."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.api.asgi_client import chat_body
from tests.api.conftest import Kitchen

pytestmark = pytest.mark.anyio
Cook = Callable[..., Kitchen]
CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "//v1/chat/completions"),
        ("POST", "/v1//chat/completions"),
        ("POST", "/v1/chat//completions"),
        ("POST", "///v1////chat//completions"),
        ("GET", "//v1/models"),
        ("GET", "/v1//models"),
        ("GET", "/v1//models/tiny"),
        ("GET", "/v1/models//tiny"),
        ("GET", "//v1//models//tiny"),
        ("GET", "//version"),
        ("GET", "///metrics"),
        ("GET", "//livez"),
    ],
)
async def test_doubled_slashes_are_one(cook: Cook, method: str, path: str) -> None:
    client = cook().client
    body = chat_body() if method == "POST" else None
    assert (await client.ask(method, path, body)).status == 200
    other = "GET" if method == "POST" else "POST"
    assert (await client.ask(other, path, body)).status in (404, 405)


async def test_doubled_slashes_open_nothing(cook: Cook) -> None:
    client = cook(..., "server.api_keys=[first]").client
    for path in ("//v1/models", "/v1//models", "//metrics", "//version", "//livez//metrics"):
        assert (await client.ask("GET", path)).status == 401
    assert (await client.ask("POST", f"/{CHAT}", chat_body())).status == 401
    assert (await client.ask("GET", "//livez")).status == 200
    key = {"Authorization": "Bearer first"}
    assert (await client.ask("GET", "//livez//metrics", headers=key)).status == 404


async def test_a_request_is_counted_by_the_route_that_it_meant(cook: Cook) -> None:
    kitchen = cook()
    await kitchen.client.ask("POST", "/v1//chat/completions", chat_body())
    assert f'route="{CHAT}",status="200"' in kitchen.service.metrics.text().decode()


async def test_a_model_may_have_slashes_in_its_name(cook: Cook) -> None:
    kitchen = cook()
    kitchen.service.model = "/models//of/ours"
    for asked in ("/models//of/ours", "/models/of/ours", "models/of/ours"):
        assert (await kitchen.client.ask("GET", f"/v1/models/{asked}")).status == 200
    assert (await kitchen.client.ask("GET", "/v1/models/of/ours")).status == 404


NEAR = {
    "/chat/completions": CHAT,
    "/v1/v1/chat/completions": CHAT,
    "/api/v1/chat/completions": CHAT,
    "/v1/chat/completions/": CHAT,
    "/V1/Chat/Completions": CHAT,
    "/v1/chat/completion": CHAT,
    "/v1/chat/completions/chat/completions": CHAT,
    "//chat/completions": CHAT,
    "/api/chat": CHAT,
    "/completions": "/v1/completions",
    "/v1/completion": "/v1/completions",
    "/api/generate": "/v1/completions",
    "/models": "/v1/models",
    "/v1/model": "/v1/models",
    "/v1/": "/v1/models",
    "/api/tags": "/v1/models",
    "/healthz": "/health",
    "/readyz/": "/readyz",
    "/ready": "/readyz",
    "/v1/metrics": "/metrics",
}


@pytest.mark.parametrize("path", NEAR)
async def test_an_unknown_route_names_its_neighbour(cook: Cook, path: str) -> None:
    reply = await cook().client.ask("POST", path, chat_body())
    assert (reply.status, reply.error["code"]) == (404, "route_not_found")
    assert reply.error["message"].endswith(f"did you mean {NEAR[path]}?")


@pytest.mark.parametrize("path", ["/", "/favicon.ico", "/v1/images/edits", "/x" * 40_000, "//"])
async def test_a_route_like_none_names_none(cook: Cook, path: str) -> None:
    reply = await cook().client.ask("GET", path)
    assert reply.status == 404
    assert "mean" not in reply.error["message"]
    assert len(reply.body) < 500


PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
    "Access-Control-Request-Private-Network": "true",
}
ALLOWED = "access-control-allow-private-network"


@pytest.mark.parametrize(
    ("listed", "origin", "allowed"),
    [
        ("https://app.example", "https://app.example", True),
        ("https://app.example", "http://app.example", False),
        ("https://app.example", "https://app.example:8443", False),
        ("https://app.example", "https://evil.app.example", False),
        ("https://app.example", "https://app.example.evil", False),
        ("https://app.example", "null", False),
        ("https://app.example/", "https://app.example", True),
        ("http://localhost:3000", "http://localhost:3000", True),
        ("http://localhost:3000", "http://localhost", False),
        ("*", "https://anywhere.example", True),
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/v1//models", "/metrics"])
async def test_a_listed_page_may_reach_a_private_network(
    cook: Cook, listed: str, origin: str, allowed: bool, path: str
) -> None:
    client = cook(..., f"server.cors_origins=['{listed}']").client
    reply = await client.ask("OPTIONS", path, headers={**PREFLIGHT, "Origin": origin})
    assert reply.status == (204 if allowed else 400)
    assert reply.headers.get(ALLOWED) == ("true" if allowed else None)
    plain = {**PREFLIGHT, "Origin": origin}
    del plain["Access-Control-Request-Private-Network"]
    assert ALLOWED not in (await client.ask("OPTIONS", path, headers=plain)).headers


async def test_where_no_origin_is_listed_none_may(cook: Cook) -> None:
    asked = {**PREFLIGHT, "Origin": "https://app.example"}
    reply = await cook().client.ask("OPTIONS", CHAT, headers=asked)
    assert reply.status == 405
    assert ALLOWED not in reply.headers


async def test_behind_a_proxys_path_requests_are_answered_with_it_and_without(cook: Cook) -> None:
    kitchen = cook(..., "server.root_path=/models/one", "server.api_keys=[ann]")
    bearer = {"Authorization": "Bearer ann"}
    for prefix in ("", "/models/one"):
        reply = await kitchen.client.ask("POST", f"{prefix}{CHAT}", chat_body(), headers=bearer)
        assert reply.status == 200
        assert (await kitchen.client.ask("GET", f"{prefix}/livez")).status == 200
        assert (await kitchen.client.ask("GET", f"{prefix}/metrics")).status == 401
        told = (await kitchen.client.ask("GET", f"{prefix}/openapi.json", headers=bearer)).json
        assert told["servers"] == [{"url": "/models/one"}]
    text = kitchen.service.metrics.text().decode()
    assert f'route="{CHAT}",status="200"}} 2.0' in text
    for path in ("/models/one", "/models/onetwo/livez", "/models/one/models/one/livez"):
        assert (await kitchen.client.ask("GET", path, headers=bearer)).status == 404
    plain = cook()
    assert (await plain.client.ask("GET", "/models/one/livez")).status == 404
    assert "servers" not in (await plain.client.ask("GET", "/openapi.json")).json
