"""Arguments one by one, for formats that write each by its name: their schemas, and their order."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from appliance.generation.calls.tool import Tool
from appliance.generation.json_schema import referred
from appliance.generation.rules import Rules

DEEPEST = 8  # references and choices that are followed to tell a type
SHARED = ("$defs", "definitions")  # that references point into, from wherever they stand
WRITABLE = re.compile(r"[\w.$@-]+")  # names that stand in no bracket's way
SAID = {"type", "properties", "required", "additionalProperties"}
NOTES = {"title", "description", "default", "examples", "$comment", "$schema", "$id", "deprecated"}
TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "integer": (int,),
    "number": (int, float),
    "array": (list,),
    "object": (dict,),
}


@dataclass(slots=True, frozen=True)
class Keyword:
    """One argument: its schema stands by itself."""

    name: str
    schema: dict[str, Any]
    required: bool

    @property
    def kinds(self) -> frozenset[str]:
        """JSON types that it may be of."""
        return kinds(self.schema)


def keywords(tool: Tool) -> tuple[Keyword, ...] | None:
    """Those of a tool, in the order of its schema; None where it takes any."""
    schema = json.loads(tool.parameters)
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if not all(map(WRITABLE.fullmatch, properties or ())):
        return None
    if not properties and (schema is True or schema.get("additionalProperties", True) is not False):
        return None
    shared = {name: schema[name] for name in SHARED if name in schema}
    required = schema.get("required", ())
    return tuple(
        Keyword(name, (shared | one) if isinstance(one, dict) else shared, name in required)
        for name, one in (properties or {}).items()
    )


def unheld(tool: Tool, plain_texts: bool) -> str | None:
    """The place of a keyword that arguments one by one cannot be held to.

    It is one about all of them together or, with `plain_texts`, one about a text's characters.
    """
    schema = json.loads(tool.parameters)
    if not isinstance(schema, dict):
        return None
    for name in schema.keys() - SAID - NOTES - {*SHARED}:
        return f".{name}"
    for name in schema.get("properties", ()):
        if not WRITABLE.fullmatch(name):
            return f".properties.{name}"
    for one in keywords(tool) or () if plain_texts else ():
        if (name := text_limit(one.schema, one.schema)) is not None:
            return f".properties.{one.name}.{name}"
    return None


def text_limit(schema: dict[str, Any], root: dict[str, Any], depth: int = 0) -> str | None:
    """A keyword about the characters of a text that a schema lets stand there, if there is one."""
    if "string" not in kinds(schema, root) or {"enum", "const"} & schema.keys():
        return None
    choices = [one for name in ("anyOf", "oneOf") for one in schema.get(name, ())]
    if isinstance(schema.get("$ref"), str):
        choices.append(referred(root, schema["$ref"]))
    own = schema.keys() - NOTES - {*SHARED, "type", "anyOf", "oneOf", "$ref"}
    inner = (
        text_limit(one, root, depth + 1)
        for one in choices
        if isinstance(one, dict) and depth < DEEPEST
    )
    return next(iter(sorted(own)), None) or next(filter(None, inner), None)


def kinds(
    schema: dict[str, Any], root: dict[str, Any] | None = None, depth: int = 0
) -> frozenset[str]:
    """JSON types of values of a schema; `root` is what its references point into."""
    root = schema if root is None else root
    if isinstance(schema.get("$ref"), str) and depth < DEEPEST:
        found = referred(root, schema["$ref"])
        return kinds(found, root, depth + 1) if isinstance(found, dict) else frozenset(TYPES)
    if "const" in schema or "enum" in schema:
        values = schema.get("enum", [schema.get("const")])
        return frozenset(kind for value in values for kind in TYPES if of_kind(value, kind))
    if "type" in schema:
        stated = schema["type"]
        return frozenset([stated] if isinstance(stated, str) else stated)
    several: set[str] = set()
    for name in ("anyOf", "oneOf"):
        for one in schema.get(name, ()) if depth < DEEPEST else ():
            several |= kinds(one, root, depth + 1) if isinstance(one, dict) else set(TYPES)
    return frozenset(several or TYPES)


def of_kind(value: Any, kind: str) -> bool:
    """Whether a value is of a JSON type; true is no number."""
    if isinstance(value, bool) and kind != "boolean":
        return False
    return isinstance(value, TYPES.get(kind, ()))


def in_order(
    rules: Rules,
    prefix: str,
    listed: tuple[Keyword, ...],
    write: Callable[[Keyword], str],
    joint: str,
) -> str:
    """A rule for arguments in order, those that are not required perhaps left out.

    `joint` stands between two. Rules that it needs have names that begin with `prefix`.
    """
    if not listed:
        return '""'
    for place, keyword in enumerate(listed):
        here, last = write(keyword), place + 1 == len(listed)
        then = "" if last else f" {prefix}_rest_{place + 1}"
        none = '""' if last else f"{prefix}_first_{place + 1}"
        left_out = "" if keyword.required else f" | {none}"
        rules.add(f"{prefix}_first_{place}", f"{here}{then}{left_out}")
        if place:
            further = f"{joint} {here}".strip()
            rest = f"{further}{then}" if keyword.required else f"({further})?{then}"
            rules.add(f"{prefix}_rest_{place}", rest)
    return f"{prefix}_first_0"
