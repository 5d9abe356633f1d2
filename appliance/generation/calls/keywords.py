"""Arguments one by one, for formats that write each by its name: their schemas, and their order."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from appliance.generation.calls.tool import Tool
from appliance.generation.json_schema import referred

DEEPEST = 8  # references and choices that are followed to tell a type
SHARED = ("$defs", "definitions")  # that references point into, from wherever they stand
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
    if not properties and (schema is True or schema.get("additionalProperties", True) is not False):
        return None
    shared = {name: schema[name] for name in SHARED if name in schema}
    required = schema.get("required", ())
    return tuple(
        Keyword(name, (shared | one) if isinstance(one, dict) else shared, name in required)
        for name, one in (properties or {}).items()
    )


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
    listed: tuple[Keyword, ...], write: Callable[[Keyword], str], joint: str
) -> list[tuple[str, str]]:
    """Rules by name for arguments in order, those that are not required perhaps left out.

    The first is for all of them; `joint` stands between two.
    """
    rules: list[tuple[str, str]] = []
    for place, keyword in enumerate(listed):
        here, last = write(keyword), place + 1 == len(listed)
        then = "" if last else f" rest_{place + 1}"
        none = '""' if last else f"first_{place + 1}"
        rules.append(
            (f"first_{place}", f"{here}{then}" + ("" if keyword.required else f" | {none}"))
        )
        further = f"{joint} {here}".strip()
        rest = f"{further}{then}" if keyword.required else f"({further})?{then}"
        rules.append((f"rest_{place}", rest))
    return rules or [("first_0", '""')]
