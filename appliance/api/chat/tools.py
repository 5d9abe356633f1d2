"""Fields about tools: which there are, and which of them may or must be called."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import PlainValidator, ValidationInfo

from appliance.api.fields.text import as_json, read_text
from appliance.api.fields.unbuilt import harmless
from appliance.errors import bad_request
from appliance.generation.json_schema import closed
from appliance.generation.tools import ToolText

MOST_TOOLS = 1024
LONGEST_TOOLS = 1 << 19  # characters of all of them as JSON
NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
NO_ARGUMENTS = '{"type":"object","properties":{},"additionalProperties":false}'
UNSAID: Final[tuple[Any, ...]] = ("", {})

Mode = Literal["none", "auto", "required"]
MODES: Final[tuple[Mode, ...]] = ("none", "auto", "required")
ANY: Final = {"any": "required"}  # Anthropic's and Mistral's word for it


@dataclass(slots=True, frozen=True)
class ToolChoice:
    """Which tools may be called: those of `names`, all for None; `param` is where it is said.

    With `once` there is a single call.
    """

    mode: Mode
    names: tuple[str, ...] | None = None
    param: str = "tool_choice"
    once: bool = False


def _tools(value: Any, info: ValidationInfo) -> list[ToolText]:
    if not isinstance(value, list):
        raise bad_request("'tools' must be an array.", "tools", "invalid_type")
    if len(value) > MOST_TOOLS:
        raise bad_request(f"'tools' may hold at most {MOST_TOOLS}.", "tools", "invalid_value")
    ignored = info.context if isinstance(info.context, list) else []
    read = [_tool(one, f"tools[{index}]", ignored) for index, one in enumerate(value)]
    names: set[str] = set()
    for index, tool in enumerate(read):
        if tool.name in names:
            path = f"tools[{index}].function.name"
            raise bad_request(f"'{path}': there is another '{tool.name}'.", path, "invalid_value")
        names.add(tool.name)
    if sum(tool.length for tool in read) > LONGEST_TOOLS:
        raise bad_request(
            f"'tools' may hold at most {LONGEST_TOOLS} characters.", "tools", "invalid_value"
        )
    return read


def _tool(value: Any, path: str, ignored: list[str]) -> ToolText:
    if not isinstance(value, dict):
        raise bad_request(f"'{path}' must be an object.", path, "invalid_type")
    kind = value.get("type", "function")
    if kind != "function":
        raise bad_request(
            f"'{path}.type' must be 'function'; tools that a server runs are not supported.",
            f"{path}.type",
            "unsupported_parameter",
        )
    place = f"{path}.function"
    function = value.get("function")
    if not isinstance(function, dict):
        problem = "is required" if function is None else "must be an object"
        code = "missing_required_parameter" if function is None else "invalid_type"
        raise bad_request(f"'{place}' {problem}.", place, code)
    name = read_tool_name(function.get("name"), f"{place}.name")
    description = function.get("description")
    if description is not None:
        read_text(description, f"{place}.description")
    strict = function.get("strict")
    if not isinstance(strict, bool | None):
        raise bad_request(
            f"'{place}.strict' must be true or false.", f"{place}.strict", "invalid_type"
        )
    known = {"name", "description", "parameters", "strict"}
    ignored.extend(f"{place}.{key}" for key in function.keys() - known)
    ignored.extend(f"{path}.{key}" for key in value.keys() - {"type", "function"})
    parameters = function.get("parameters")
    shown = {"name": name, "description": description, "parameters": parameters}
    definition = {"type": "function", "function": {k: v for k, v in shown.items() if v is not None}}
    where = f"{place}.parameters"
    schema, length = _schema(parameters, where), len(as_json(definition, place))
    return ToolText(name, definition, length, schema, bool(strict), where)


def read_tool_name(value: Any, path: str) -> str:
    """The name of a tool. Raises ApplianceError."""
    if value is None:
        raise bad_request(f"'{path}' is required.", path, "missing_required_parameter")
    name = read_text(value, path)
    if not NAME.fullmatch(name):
        raise bad_request(
            f"'{path}' must have from 1 to 128 letters, digits and _ . : / or -.",
            path,
            "invalid_value",
        )
    return name


def _schema(parameters: Any, path: str) -> str:
    """The JSON of what arguments are held to: of an object, which has no others than are listed."""
    if parameters is None:
        return NO_ARGUMENTS
    if not isinstance(parameters, dict):
        raise bad_request(f"'{path}' must be an object.", path, "invalid_type")
    schema = json.loads(as_json(parameters, path))
    if schema.setdefault("type", "object") not in ("object", ["object"]):
        raise bad_request(
            f"'{path}.type' must be 'object': arguments have names.",
            f"{path}.type",
            "invalid_value",
        )
    if not isinstance(schema.get("properties", {}), dict):
        raise bad_request(
            f"'{path}.properties' must be an object.", f"{path}.properties", "invalid_type"
        )
    return json.dumps(closed(schema), ensure_ascii=False)


def _choice(value: Any) -> ToolChoice | None:
    path = "tool_choice"
    if harmless(value, UNSAID):
        return None
    if isinstance(value, str):
        return ToolChoice(_mode(value, path))
    if not isinstance(value, dict):
        raise bad_request(f"'{path}' must be a string or an object.", path, "invalid_type")
    kind = value.get("type")
    if kind == "function":
        function = value.get("function", value)  # the responses API has the name beside the type
        name = function.get("name") if isinstance(function, dict) else None
        place = f"{path}.function.name"
        return ToolChoice("required", (read_tool_name(name, place),), place, once=True)
    if kind == "allowed_tools":
        return _allowed(value.get("allowed_tools", value), f"{path}.allowed_tools")
    return ToolChoice(_mode(kind, f"{path}.type"))


def _allowed(value: Any, path: str) -> ToolChoice:
    listed = value.get("tools") if isinstance(value, dict) else None
    if not isinstance(listed, list) or not listed:
        raise bad_request(
            f"'{path}.tools' must be an array that is not empty.", f"{path}.tools", "invalid_value"
        )
    names = []
    for index, one in enumerate(listed):
        function = one.get("function", one) if isinstance(one, dict) else {}
        place = f"{path}.tools[{index}].function.name"
        name = function.get("name") if isinstance(function, dict) else None
        names.append(read_tool_name(name, place))
    mode = _mode(value.get("mode", "auto"), f"{path}.mode")
    return ToolChoice(mode, tuple(names), f"{path}.tools")


def _mode(value: Any, path: str) -> Mode:
    word = ANY.get(value, value) if isinstance(value, str) else value
    for mode in MODES:
        if word == mode:
            return mode
    raise bad_request(
        f"'{path}' must be one of {', '.join(MODES)}, or name a function.", path, "invalid_value"
    )


Tools = Annotated[list[ToolText], PlainValidator(_tools)]
Choice = Annotated[ToolChoice | None, PlainValidator(_choice)]


def offered(
    tools: Sequence[ToolText], choice: ToolChoice | None
) -> tuple[Sequence[ToolText], tuple[str, ...]]:
    """The tools that a model is told of, and names of those that may be called.

    None where none may. Raises ApplianceError for a choice of what there is not.
    """
    names = tuple(tool.name for tool in tools)
    if choice is None or (choice.mode == "auto" and choice.names is None):
        return tools, names
    if choice.mode == "none":
        return (), ()
    if not tools:
        raise bad_request("'tool_choice' needs 'tools'.", choice.param, "invalid_value")
    for name in choice.names or ():
        if name not in names:
            raise bad_request(
                f"'{choice.param}' names '{name}', which is none of 'tools'.",
                choice.param,
                "invalid_value",
            )
    return tools, choice.names or names
