"""Tools as a request describes them, made into such that calls can be held to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from appliance.errors import ApplianceError, bad_request
from appliance.generation.calls.tool import Tool
from appliance.generation.json_schema import TooComplex, ends
from appliance.generation.structure import Structure, grammar_of
from appliance.generation.style import Style

ANY_ARGUMENTS = '{"type": "object"}'
REMEMBERED = 512


@dataclass(slots=True, frozen=True)
class ToolText:
    """A tool as sent. `parameters` is the JSON of its schema, `param` where that stands.

    `definition` is OpenAI's, for the chat template, and `length` its characters as JSON. With
    `strict` a call that breaks the schema may not come.
    """

    name: str
    definition: Mapping[str, Any] = field(compare=False)
    length: int = field(compare=False)
    parameters: str
    strict: bool
    param: str


@lru_cache(REMEMBERED)
def usable(tool: ToolText, style: Style) -> tuple[Tool, str | None]:
    """The tool, and the place of what its calls are not held to, if there is anything.

    Raises ApplianceError 400 for a strict one that cannot be held to.
    """
    whole = Tool(tool.name, tool.parameters)
    assert style.calls is not None
    try:
        grammar_of(Structure("json", tool.parameters, tool.param))
        unheld = style.calls.unheld(whole)
        if unheld is None and style.fault(whole) is not None:
            unheld = ""
    except ApplianceError as refused:
        if tool.strict:
            raise
        unheld = (refused.param or tool.param).removeprefix(tool.param)
    if unheld is None:
        return whole, None
    place = f"{tool.param}{unheld}"
    if tool.strict:
        raise bad_request(
            f"Calls of '{tool.name}' cannot be held to '{place}', which 'strict' asks for.",
            place,
            "invalid_value",
        )
    looser = Tool(tool.name, tool.parameters, lenient=True)
    if _has_end(tool.parameters) and style.fault(looser) is None:
        return looser, place
    return Tool(tool.name, ANY_ARGUMENTS), place


def _has_end(schema: str) -> bool:
    try:
        return ends(json.loads(schema))
    except TooComplex:
        return False
