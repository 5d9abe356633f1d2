"""JSON schemas as they are written: the schemas in them, and whether a value can have an end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

SchemaPath = tuple[str | int, ...]

ONE = ("additionalProperties", "items", "not", "if", "then", "else", "contains", "propertyNames")
MANY = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
TOGETHER = {"anyOf", "oneOf", "$ref", "if", "not", "dependentSchemas", "$dynamicRef"}
MORE = {"additionalProperties", "patternProperties", "unevaluatedProperties"}
MOST_VISITS = 100_000  # some 0.1 s
EVERY_TYPE = ("null", "boolean", "number", "string", "array", "object")


def places(schema: Any, path: SchemaPath = ()) -> Iterator[tuple[SchemaPath, dict[str, Any]]]:
    """A schema and all that are in it, each with its place."""
    pending = [(path, schema)]
    while pending:
        path, schema = pending.pop()
        if not isinstance(schema, dict):
            continue
        yield path, schema
        for name in ONE:
            if name in schema:
                pending.append(((*path, name), schema[name]))
        for name in MANY:
            if isinstance(schema.get(name), list):
                pending += [((*path, name, i), one) for i, one in enumerate(schema[name])]
        for name in NAMED:
            if isinstance(schema.get(name), dict):
                pending += [((*path, name, key), one) for key, one in schema[name].items()]


def closed(schema: Any) -> Any:
    """The same with objects that have the properties that are listed, and no others.

    JSON Schema lets any come. A model that knows no better fills such a gap for ever, and whoever
    lists properties means these: where a schema says more of an object than its properties, or
    puts objects together from several schemas, it is left as it is.
    """
    found = [inner for _, inner in places(schema)]
    objects = [inner for inner in found if isinstance(inner.get("properties"), dict)]
    if any("allOf" in inner for inner in found) or any(
        TOGETHER & inner.keys() for inner in objects
    ):
        return schema
    copied = json.loads(json.dumps(schema))
    for _, inner in places(copied):
        if isinstance(inner.get("properties"), dict) and not MORE & inner.keys():
            inner["additionalProperties"] = False
    return copied


class TooComplex(Exception):
    """It would take too long to tell."""


class Ending(set[str]):
    """References of which it is known that a value has an end, found by so many visits at most."""

    left = MOST_VISITS

    def visit(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise TooComplex


def ends(schema: Any) -> bool:
    """Whether some value that a schema describes can be written in full.

    One that requires itself has none, however long it gets. Raises TooComplex where references
    refer to so many others that more than MOST_VISITS schemas would have to be looked at.
    """
    references = {
        reference for _, inner in places(schema) if isinstance(reference := inner.get("$ref"), str)
    }
    ending, before = Ending(), -1
    while before != len(ending):  # until no more of them are found
        before = len(ending)
        for reference in references - ending:
            if _ends(referred(schema, reference), ending):
                ending.add(reference)
    return _ends(schema, ending)


def referred(schema: Any, reference: str) -> Any:
    """What a pointer into the schema refers to; True, any value, for what is not there."""
    place, _, pointer = reference.partition("#")
    if place:
        return True
    for step in pointer.split("/")[1:]:
        name = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(schema, list) and name.isdecimal() and int(name) < len(schema):
            schema = schema[int(name)]
        elif isinstance(schema, dict) and name in schema:
            schema = schema[name]
        else:
            return True
    return schema


def _ends(schema: Any, ending: Ending) -> bool:
    """Whether a value has an end where those of the references in `ending` have."""
    ending.visit()
    if not isinstance(schema, dict):
        return True
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference not in ending:
        return False
    for name in ("anyOf", "oneOf"):
        choices = schema.get(name)
        if isinstance(choices, list) and choices and not any(_ends(one, ending) for one in choices):
            return False
    parts = schema.get("allOf")
    if isinstance(parts, list) and not all(_ends(one, ending) for one in parts):
        return False
    if "enum" in schema or "const" in schema:
        return True
    kinds = schema.get("type", EVERY_TYPE)
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return not isinstance(kinds, list | tuple) or any(
        _kind_ends(kind, schema, ending) for kind in kinds
    )


def _kind_ends(kind: Any, schema: dict[str, Any], ending: Ending) -> bool:
    if kind == "object":
        required, properties = schema.get("required"), schema.get("properties")
        if not isinstance(required, list) or not isinstance(properties, dict):
            return True
        return all(
            _ends(properties.get(name), ending) for name in required if isinstance(name, str)
        )
    if kind == "array":
        least, first = schema.get("minItems", 0), schema.get("prefixItems")
        first = first if isinstance(first, list) else []
        if not isinstance(least, int) or not all(_ends(one, ending) for one in first[:least]):
            return not isinstance(least, int)
        return least <= len(first) or _ends(schema.get("items"), ending)
    return True
