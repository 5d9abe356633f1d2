"""What an answer's text has to be, under each name that clients know it by."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from appliance.generation.json_schema import closed
from appliance.generation.rules import WHITESPACE
from appliance.generation.structure import ANY_OBJECT
from engine.sampling.grammar import Grammar
from tests.api.conftest import Kitchen

pytestmark = pytest.mark.anyio
Cook = Callable[..., Kitchen]

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TEXT = json.dumps(SCHEMA)
FORMAT = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}

SAME: dict[str, list[dict[str, Any]]] = {
    TEXT: [
        {"response_format": FORMAT},
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        {"structured_outputs": {"json": SCHEMA}},
        {"structured_outputs": {"json": TEXT, "regex": None, "disable_fallback": True}},
        {"guided_json": SCHEMA},
        {"guided_json": TEXT},
        {"json_schema": TEXT},
    ],
    ANY_OBJECT: [
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"json_object": True}},
        {"guided_json": {"type": "object"}},
    ],
    "a+b": [
        {"structured_outputs": {"regex": "a+b"}},
        {"guided_regex": "a+b"},
        {"regex": "a+b"},
    ],
    "one": [
        {"structured_outputs": {"choice": ["one", "two"]}},
        {"guided_choice": ["one", "two"]},
    ],
    "[0-9]": [
        {"structured_outputs": {"grammar": "root ::= [0-9]"}},
        {"guided_grammar": "root ::= [0-9]"},
        {"ebnf": "root ::= [0-9]"},
        {"ebnf": "start: /[0-9]/"},
    ],
}


async def held_to(cook: Cook, fields: dict[str, Any], route: str = "chat") -> str:
    kitchen = cook()
    if route == "chat":
        reply = await kitchen.client.chat(**fields)
    else:
        reply = await kitchen.client.complete(**fields)
    assert reply.status == 200, reply.body
    assert "x-ignored-fields" not in reply.headers
    (request,) = kitchen.engine.requests
    assert isinstance(request.constraint, Grammar)
    return request.constraint.text


@pytest.mark.parametrize("words", SAME, ids=str)
async def test_every_name_means_the_same(cook: Cook, words: str) -> None:
    told = [await held_to(cook, fields) for fields in SAME[words]]
    if words.startswith("{"):
        assert all(schema_in(one) == closed(json.loads(words)) for one in told)
        assert len(set(told)) == 1
    else:  # rules may be written in two ways for one thing
        assert all(words in one for one in told)


def schema_in(grammar: str) -> Any:
    (inner,) = json.loads(grammar)["grammars"]
    return {name: value for name, value in inner["json_schema"].items() if name != "x-guidance"}


async def test_completions_take_it_too(cook: Cook) -> None:
    assert await held_to(cook, {"guided_regex": "a+b"}, "completions")


async def test_what_may_stand_between_the_parts(cook: Cook) -> None:
    for options, pattern in (
        ({}, WHITESPACE),
        ({"disable_any_whitespace": True}, ""),
        ({"whitespace_pattern": " ?"}, " ?"),
    ):
        told = await held_to(cook, {"structured_outputs": {"json": SCHEMA, **options}})
        (inner,) = json.loads(told)["grammars"]
        assert inner["json_schema"]["x-guidance"]["whitespace_pattern"] == pattern


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"schema": {}}}, "response_format.type"),
    ({"response_format": {"type": "text", "json_schema": {}}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        "response_format.json_schema.schema",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": [], "name": "x"}}},
        "response_format.json_schema.schema",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "name": 5}}},
        "response_format.json_schema.name",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "strict": 1}}},
        "response_format.json_schema.strict",
    ),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"schema": {"items": {"contains": {}}}},
            }
        },
        "response_format.json_schema.schema.items.contains",
    ),
    ({"response_format": {"type": "json_object", "schema": 5}}, "response_format.schema"),
    ({"structured_outputs": []}, "structured_outputs"),
    ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex"),
    ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
    ({"structured_outputs": {"choice": "a"}}, "structured_outputs.choice"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
    ({"structured_outputs": {"choice": ["a", 5]}}, "structured_outputs.choice[1]"),
    ({"structured_outputs": {"choice": ["a"] * 10_001}}, "structured_outputs.choice"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
    ({"structured_outputs": {"json_object": 1}}, "structured_outputs.json_object"),
    ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs.regex"),
    (
        {"structured_outputs": {"json": {}, "whitespace_pattern": 5}},
        "structured_outputs.whitespace_pattern",
    ),
    (
        {"structured_outputs": {"json": {}, "whitespace_pattern": "("}},
        "structured_outputs.json",
    ),
    (
        {"structured_outputs": {"json": {}, "disable_any_whitespace": "no"}},
        "structured_outputs.disable_any_whitespace",
    ),
    (
        {"structured_outputs": {"json": {}, "disable_additional_properties": 5}},
        "structured_outputs.disable_additional_properties",
    ),
    ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
    ({"guided_json": 5}, "guided_json"),
    ({"guided_json": '{"const": NaN}'}, "guided_json"),
    ({"guided_json": '{"const": 1e999}'}, "guided_json"),
    ({"guided_json": '{"items":' * 2000 + "{}" + "}" * 2000}, "guided_json"),
    ({"guided_json": "\ud800"}, "guided_json"),
    ({"guided_choice": {}}, "guided_choice"),
    ({"guided_regex": 5}, "guided_regex"),
    ({"guided_grammar": "root ::= foo"}, "guided_grammar"),
    ({"ebnf": "what"}, "ebnf"),
    ({"regex": "a", "ebnf": "start: /a/"}, "ebnf"),
    ({"response_format": FORMAT, "guided_regex": "a"}, "guided_regex"),
]


@pytest.mark.parametrize(("fields", "param"), WRONG, ids=lambda value: str(value)[:80])
async def test_what_is_wrong_is_named(cook: Cook, fields: dict[str, Any], param: str) -> None:
    kitchen = cook()
    for stream in (False, True):
        reply = await kitchen.client.chat(**fields, stream=stream)
        assert reply.status == 400, reply.body
        assert reply.error["param"] == param
    assert kitchen.engine.requests == []


async def test_what_nobody_knows_is_told(cook: Cook) -> None:
    reply = await cook().client.chat(structured_outputs={"regex": "a", "colour": 1})
    assert reply.status == 200
    assert reply.headers["x-ignored-fields"] == "structured_outputs.colour"
    format_ = {"type": "json_schema", "json_schema": {"schema": {}, "name": "x", "size": 1}}
    reply = await cook().client.chat(response_format=format_)
    assert reply.headers["x-ignored-fields"] == "response_format.json_schema.size"
