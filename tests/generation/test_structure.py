"""From what a request asks of an answer's text to a grammar, or to a refusal that says why."""

from __future__ import annotations

import json
from typing import Any

import pytest

from appliance.errors import ApplianceError
from appliance.generation.json_schema import closed, ends
from appliance.generation.regex import with_ascii_classes
from appliance.generation.structure import LONGEST, LONGEST_REGEX, Structure, grammar_of


def schema(value: Any) -> Structure:
    return Structure("json", json.dumps(value), "p")


def nested(levels: int) -> Any:
    value: Any = {"type": "integer"}
    for _ in range(levels):
        value = {"type": "array", "items": value}
    return value


def chain(length: int) -> Any:
    """A schema that refers to one that refers to one …"""
    links: dict[str, Any] = {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(length)}
    return {"$ref": "#/$defs/a0", "$defs": links | {f"a{length}": {}}}


LISTED: dict[str, Any] = {"properties": {"a": {"properties": {"b": {}}}, "c": {"type": "object"}}}


def test_objects_have_the_properties_that_are_listed() -> None:
    shut = closed({"type": "array", "items": LISTED, "$defs": {"d": LISTED}})
    for one in (shut["items"], shut["$defs"]["d"]):
        assert one["additionalProperties"] is False
        assert one["properties"]["a"]["additionalProperties"] is False
        assert one["properties"]["c"] == {"type": "object"}
    assert "additionalProperties" not in LISTED


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {**LISTED["properties"]["a"], "additionalProperties": {"type": "integer"}},
        {**LISTED["properties"]["a"], "patternProperties": {"^x": {}}},
        {"allOf": [LISTED, {"properties": {"e": {}}}]},
        {**LISTED, "anyOf": [{"required": ["a"]}, {"properties": {"e": {}}}]},
        {**LISTED, "$ref": "#/$defs/x", "$defs": {"x": {"properties": {"e": {}}}}},
        True,
    ],
    ids=str,
)
def test_what_says_more_of_its_objects_is_left_as_it_is(schema: Any) -> None:
    assert closed(schema) == schema


SELF = {"$ref": "#/$defs/a"}
WRONG = [
    (schema({"not": {}}), "p.not", "'not'"),
    (
        schema({"type": "object", "properties": {"x y": {"anyOf": [{"if": {}}, True]}}}),
        "p.properties.x y.anyOf[0].if",
        "'if'",
    ),
    (schema({"type": "array", "uniqueItems": True}), "p.uniqueItems", "'uniqueItems'"),
    (schema({"oneOf": [{"type": "number"}, {"type": "integer"}]}), "p", "take 'anyOf'"),
    (schema({"not": {}, "x-guidance": {"lenient": True}}), "p.x-guidance", "own"),
    (schema({"type": "foo"}), "p", "Invalid type: foo"),
    (schema({"type": "string", "format": "colour"}), "p", "Unknown format: colour"),
    (schema({"type": "integer", "minimum": 5, "maximum": 1}), "p", "minimum (5) is greater"),
    (schema({"$ref": "#/nope"}), "p", "'/nope' does not exist"),
    (schema({"$ref": "http://127.0.0.1/x"}), "p", "does not fetch"),
    (schema(False), "p", "no value fits it"),
    (schema({"type": "string", "pattern": "(?=a)"}), "p", "look-ahead"),
    (schema(SELF | {"$defs": {"a": SELF}}), "p", "no value that it describes has an end"),
    (schema(nested(80)), "p", "more than 64 levels"),
    (Structure("json", '{"description": "' + "x" * LONGEST + '"}', "p"), "p", "may hold at most"),
    (schema(chain(3000)), "p", "refer to too many others"),
    (Structure("regex", "(a", "p"), "p", "unclosed group"),
    (Structure("regex", r"(a)\1", "p"), "p", "backreferences"),
    (Structure("regex", r"\bx", "p"), "p", "cannot look around"),
    (Structure("regex", "a" * (LONGEST_REGEX + 1), "p"), "p", "may hold at most"),
    (Structure("grammar", "start: foo", "p"), "p", 'unknown name: "foo"'),
    (Structure("grammar", 'start: "a', "p"), "p", "lexer error"),
    (Structure("grammar", "root ::= foo", "p"), "p", "'foo' not found"),
    (Structure("grammar", 'foo ::= "a"', "p"), "p", "No 'root' rule"),
    (Structure("grammar", "what is this", "p"), "p", "cannot be used"),
]


@pytest.mark.parametrize(("structure", "param", "words"), WRONG, ids=lambda value: str(value)[:80])
def test_what_cannot_be_followed_is_refused(structure: Structure, param: str, words: str) -> None:
    with pytest.raises(ApplianceError) as refused:
        grammar_of(structure)
    error = refused.value
    assert (error.status, error.code, error.param) == (400, "invalid_value", param)
    assert words in error.message
    assert "\n" not in error.message
    assert len(error.message) < 400


@pytest.mark.parametrize(
    "structure",
    [
        schema(True),
        schema({}),
        schema({"type": "object", "x-note": 1, "title": "t", "$comment": "c", "examples": [1]}),
        schema(nested(60)),
        schema(chain(200)),
        schema({"type": "object", "properties": {"p" * 90 + str(i): {} for i in range(900)}}),
        Structure("regex", "((a{1,999}){1,999}){1,999}b{999}", "p"),
        Structure("regex", r"^[\d\-]+$", "p"),
        Structure("choice", json.dumps(['é "x"\n', "b\\", "/a/", "日本"]), "p"),
        Structure("grammar", 'start: "a" | "b"', "p"),
        Structure("grammar", 'root ::= "a" b\nb ::= [0-9]+', "p"),
    ],
    ids=lambda structure: str(structure)[:80],
)
def test_what_can_be_followed_is_taken_and_remembered(structure: Structure) -> None:
    grammar = grammar_of(structure)
    assert grammar_of(Structure(structure.kind, structure.text, "elsewhere")) is grammar


LINKED = {"type": "object", "properties": {"n": SELF}, "required": ["n"]}


@pytest.mark.parametrize(
    ("value", "has_end"),
    [
        (True, True),
        (LINKED | {"required": []}, True),
        ({"$defs": {"a": LINKED}, **SELF}, False),
        ({"$defs": {"a": LINKED | {"required": []}}, **SELF}, True),
        ({"$defs": {"a": LINKED | {"type": ["object", "null"]}}, **SELF}, True),
        ({"$defs": {"a": {"anyOf": [LINKED, {"type": "null"}]}}, **SELF}, True),
        ({"$defs": {"a": {"oneOf": [LINKED, SELF]}}, **SELF}, False),
        ({"$defs": {"a": {"allOf": [{"type": "object"}, LINKED]}}, **SELF}, False),
        ({"$defs": {"a": LINKED}, "type": "array", "items": SELF}, True),
        ({"$defs": {"a": LINKED}, "type": "array", "items": SELF, "minItems": 1}, False),
        ({"$defs": {"a": LINKED}, "type": "array", "prefixItems": [SELF], "minItems": 1}, False),
        (
            {"$defs": {"a": LINKED}, "type": "array", "prefixItems": [{}, SELF], "minItems": 1},
            True,
        ),
        ({"$defs": {"a": {"type": "array", "items": SELF}}, **SELF}, True),
        ({"type": "object", "properties": {"n": {"$ref": "#"}}, "required": ["n"]}, False),
        ({"type": "object", "properties": {"n": {"$ref": "#"}}}, True),
        ({"$ref": "#/items/0", "items": [{"type": "integer"}]}, True),
        ({"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": {"$ref": "#"}}}, False),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"type": "integer"}}, **SELF}, True),
    ],
    ids=str,
)
def test_whether_a_value_can_have_an_end(value: Any, has_end: bool) -> None:
    assert ends(value) is has_end


@pytest.mark.parametrize(
    ("pattern", "spelled"),
    [
        (r"\d+", "[0-9]+"),
        (r"[\d.]", "[[0-9].]"),
        (r"\W", "[^A-Za-z0-9_]"),
        (r"\\d\.\n", r"\\d\.\n"),
        ("a\\", "a\\"),
    ],
)
def test_digits_are_those_of_ascii(pattern: str, spelled: str) -> None:
    assert with_ascii_classes(pattern) == spelled
