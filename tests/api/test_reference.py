"""The API's own description: valid, complete, and what the routes do."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.routing import Route

from appliance.api.app import routes
from appliance.api.reference.document import document
from tests.api.asgi_client import chat_body
from tests.api.conftest import Kitchen
from tests.api.test_neutral import CHAT, COMPLETION, QUIET, cases
from tests.api.test_validation import WRONG_CHAT

pytestmark = pytest.mark.anyio

Cook = Callable[..., Kitchen]


@pytest.fixture
async def told(cook: Cook) -> dict[str, Any]:
    return (await cook().client.ask("GET", "/openapi.json")).json


def validator(told: dict[str, Any], schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": told["components"]})


def body_of(told: dict[str, Any], path: str) -> Draft202012Validator:
    content = told["paths"][path]["post"]["requestBody"]["content"]
    return validator(told, content["application/json"]["schema"])


async def test_the_document_is_valid_openapi(told: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(told).validate()
    assert "Conversation" not in told["components"]["schemas"]  # what messages are read into
    for schema in told["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    told["paths"]["/tokenize"]["post"]["responses"]["200"].pop("description")
    assert not OpenAPIV31SpecValidator(told).is_valid()


async def test_every_route_is_described(cook: Cook, told: dict[str, Any]) -> None:
    table = routes(cook().service)
    described = {
        (method.upper(), path) for path, methods in told["paths"].items() for method in methods
    }
    assert described == {
        (method, route.path_format) for route in table for method in route.methods - {"HEAD"}
    }
    stranger = Route("/v1/new", lambda request: None, methods=["POST"])
    with pytest.raises(KeyError):
        document([*table, stranger], keys=False)


async def test_what_is_taken_fits_the_document(told: dict[str, Any]) -> None:
    checked = body_of(told, "/v1/chat/completions")
    for name, value in cases(CHAT):
        checked.validate(chat_body(**{name: value}))
    for turn in QUIET:
        checked.validate(chat_body(messages=[turn]))
    for content in (["a", {"text": "b"}, {"image_url": "data:,"}], [{"type": "text", "text": ""}]):
        checked.validate(chat_body(messages=[{"role": "user", "content": content}]))
    function = {"name": "f", "parameters": {"type": "object"}}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    asked = {"role": "assistant", "content": None, "tool_calls": [call]}
    answered = {"role": "tool", "tool_call_id": "1", "content": []}
    for choice in ("auto", {"type": "function", "function": {"name": "f"}}):
        tools = {"tools": [{"type": "function", "function": function}], "tool_choice": choice}
        checked.validate(chat_body(messages=[asked, answered], **tools))
    assert not checked.is_valid(chat_body(tools=[{"type": "function"}]))
    checked = body_of(told, "/v1/completions")
    for name, value in cases(COMPLETION):
        checked.validate({"model": "tiny", "prompt": "a", name: value})


async def test_the_document_knows_most_of_what_is_wrong(told: dict[str, Any]) -> None:
    """Not all: what contradicts itself, and what the model or the recipe lacks, no schema says."""
    checked = body_of(told, "/v1/chat/completions")
    found = [fields for fields, _ in WRONG_CHAT if not checked.is_valid(chat_body(**fields))]
    assert len(found) > len(WRONG_CHAT) // 2
    prompts = body_of(told, "/v1/completions")
    for prompt in ("a", [1, 2], ["a", "b"], [[1], [2]]):
        prompts.validate({"model": "tiny", "prompt": prompt, "logprobs": False, "stop": None})
    for wrong in ({}, {"prompt": {}}, {"prompt": "a", "logprobs": 6}, {"prompt": "a", "n": 0}):
        assert not prompts.is_valid({"model": "tiny", **wrong})


REPLIES = [
    ("GET", "/v1/models", None),
    ("GET", "/v1/models/{id}", None),
    ("GET", "/livez", None),
    ("GET", "/readyz", None),
    ("GET", "/health", None),
    ("GET", "/startupz", None),
    ("GET", "/version", None),
    ("GET", "/openapi.json", None),
    ("POST", "/v1/chat/completions", chat_body()),
    ("POST", "/v1/completions", {"model": "tiny", "prompt": "a"}),
    ("POST", "/v1/chat/completions/render", chat_body()),
    ("POST", "/v1/completions/render", {"model": "tiny", "prompt": ["a", "b"]}),
    ("POST", "/tokenize", {"prompt": "a", "return_token_strs": True}),
    ("POST", "/tokenize", chat_body()),
    ("POST", "/detokenize", {"tokens": [5]}),
]


@pytest.mark.parametrize(("method", "path", "body"), REPLIES, ids=str)
async def test_answers_are_what_the_document_says(
    cook: Cook, told: dict[str, Any], method: str, path: str, body: Any
) -> None:
    responses = told["paths"][path][method.lower()]["responses"]
    client = cook().client
    reply = await client.ask(method, path.format(id="tiny"), body)
    assert reply.status == 200
    content = responses["200"]["content"]["application/json"]
    validator(told, content["schema"]).validate(reply.json)
    if body is not None:
        refused = await client.ask(method, path, {**body, "model": 5})
        content = responses[str(refused.status)]["content"]["application/json"]
        validator(told, content["schema"]).validate(refused.json)


async def test_keys_are_told_of_where_there_are_any(cook: Cook) -> None:
    client = cook(..., "server.api_keys=[first]").client
    assert (await client.ask("GET", "/openapi.json")).status == 401
    bearer = {"Authorization": "Bearer first"}
    told = (await client.ask("GET", "/openapi.json", headers=bearer)).json
    assert told["paths"]["/v1/models"]["get"]["security"] == [{"key": []}]
    assert told["paths"]["/livez"]["get"]["security"] == []
    assert (await client.ask("GET", "/docs")).status == 200  # and it asks for the key


async def test_the_page_runs_its_own_script_and_asks_nobody_else(cook: Cook) -> None:
    reply = await cook().client.ask("GET", "/docs")
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    page, policy = reply.body.decode(), reply.headers["content-security-policy"]
    assert not re.search(r"https?://|\bsrc=|innerHTML|\son\w+=|style=", page)
    assert "default-src 'none'" in policy
    for kind in ("script", "style"):
        [content] = re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert len(reply.body) < 10_000


async def test_the_document_says_nothing_of_the_configuration(cook: Cook) -> None:
    told = await cook(..., "server.api_keys=[first]", "model.path=/secret/place").client.ask(
        "GET", "/openapi.json", headers={"Authorization": "Bearer first"}
    )
    assert b"secret" not in told.body
    assert json.loads(told.body)["openapi"] == "3.1.0"
