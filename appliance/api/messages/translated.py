"""Anthropic's messages, tools and options in terms of a chat request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from appliance.api.fields.text import read_text
from appliance.api.fields.validation import unsupported
from appliance.api.messages.request import CountRequest, MessagesRequest
from appliance.api.translation import Translation
from appliance.errors import bad_request

HINTS: Final = frozenset({"type", "cache_control", "citations"})
CHOICES: Final = {"auto": "auto", "any": "required", "none": "none"}
FAILED = "Error: "  # before what a tool says that failed: templates have no other word for it


def translated(fields: CountRequest) -> Translation:
    """Raises ApplianceError with the path of the fault in the request."""
    made = Translation({"model": fields.model, "messages": []})
    _system(fields.system, made)
    for index, message in enumerate(fields.messages):
        _Message(message, f"messages[{index}]", made).translate()
    made.body["tools"] = [
        _tool(tool, f"tools[{index}]", made) for index, tool in enumerate(fields.tools)
    ]
    if fields.tool_choice is not None:
        _choice(fields.tool_choice, made)
    if fields.thinking is not None:
        given = {name: inner for name, inner in fields.thinking.items() if name != "display"}
        made.body["thinking"] = given
        made.places |= {"thinking_token_budget": "thinking.budget_tokens"}
    _output(fields.output_config or {}, made)
    if isinstance(fields, MessagesRequest):
        made.body |= {
            "max_tokens": fields.max_tokens,
            "stream": fields.stream,
            "stop": list(fields.stop_sequences),
            "temperature": fields.temperature,
            "top_p": fields.top_p,
            "top_k": fields.top_k,
        }
        made.places["stop"] = "stop_sequences"
    return made


def _system(system: Any, made: Translation) -> None:
    if system in (None, "", []):
        return
    if not isinstance(system, str | list):
        raise bad_request("'system' must be a string or an array.", "system", "invalid_type")
    made.places["messages[0]"] = made.places["messages[0].content"] = "system"
    if isinstance(system, list):
        for index, block in enumerate(system):
            if not isinstance(block, dict) or block.get("type") != "text":
                path = f"system[{index}].type"
                raise bad_request(f"'{path}' must be 'text'.", path, "invalid_value")
    made.body["messages"].append({"role": "system", "content": system})


class _Message:
    """One message, which may become several: answers of tools are messages of their own."""

    def __init__(self, message: Mapping[str, Any], path: str, made: Translation) -> None:
        self._message, self._path, self._made = message, path, made
        self._parts: list[dict[str, Any]] = []
        self._origins: list[str] = []
        self._more: dict[str, Any] = {}

    def translate(self) -> None:
        message, path = self._message, self._path
        role, content = message.get("role"), message.get("content")
        if role not in ("user", "assistant"):
            raise bad_request(
                f"'{path}.role' must be user or assistant.", f"{path}.role", "invalid_value"
            )
        self._made.ignored += [
            f"{path}.{name}" for name in message.keys() - {"role", "content", "cache_control"}
        ]
        if isinstance(content, str):
            self._send(role, content)
            return
        if not isinstance(content, list):
            problem = "is required" if content is None else "must be a string or an array of blocks"
            raise bad_request(f"'{path}.content' {problem}.", f"{path}.content", "invalid_type")
        for index, block in enumerate(content):
            place = f"{path}.content[{index}]"
            if not isinstance(block, dict):
                raise bad_request(f"'{place}' must be an object.", place, "invalid_type")
            self._block(role, block, place)
        if self._parts or self._more or not content:
            self._send(role, self._parts)

    def _block(self, role: str, block: dict[str, Any], path: str) -> None:
        kind = block.get("type")
        allowed = BLOCKS[role]
        if kind not in allowed:
            raise bad_request(
                f"'{path}.type' must be one of {', '.join(allowed)} in messages of the {role}.",
                f"{path}.type",
                "unsupported_parameter" if kind in UNBUILT_BLOCKS else "invalid_value",
            )
        known = HINTS | FIELDS[kind]
        self._made.ignored += [f"{path}.{name}" for name in block.keys() - known]
        match kind:
            case "text" | "image":
                self._part(block, path)
            case "tool_result":
                self._tool_result(block, path)
            case "tool_use":
                self._tool_use(block, path)
            case "thinking":
                thought = self._more.get("reasoning_content", "")
                self._more["reasoning_content"] = thought + read_text(
                    block.get("thinking"), f"{path}.thinking"
                )
            case _:  # nobody but who wrote it can read it
                self._made.ignored.append(path)

    def _part(self, block: dict[str, Any], path: str) -> None:
        self._parts.append(_part(block, path))
        self._origins.append(path)

    def _tool_use(self, block: dict[str, Any], path: str) -> None:
        calls = self._more.setdefault("tool_calls", [])
        given = block.get("input")
        if not isinstance(given, dict | None):
            raise bad_request(f"'{path}.input' must be an object.", f"{path}.input", "invalid_type")
        function = {"name": block.get("name"), "arguments": given or {}}
        place = f"messages[{len(self._made.body['messages'])}].tool_calls[{len(calls)}]"
        self._made.places |= {
            place: path,
            f"{place}.function": path,
            f"{place}.function.arguments": f"{path}.input",
        }
        calls.append({"id": block.get("id"), "type": "function", "function": function})

    def _tool_result(self, block: dict[str, Any], path: str) -> None:
        if self._parts:
            self._send("user", self._parts)
        content = block.get("content")
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
        if not isinstance(blocks, list):
            raise bad_request(
                f"'{path}.content' must be a string or an array of blocks.",
                f"{path}.content",
                "invalid_type",
            )
        if block.get("is_error"):
            blocks = [{"type": "text", "text": FAILED}, *blocks]
        shift = 1 if block.get("is_error") else 0
        for index, inner in enumerate(blocks):
            place = f"{path}.content[{index - shift}]"
            if not isinstance(inner, dict) or inner.get("type") not in ("text", "image"):
                raise bad_request(
                    f"'{place}.type' must be text or image.", f"{place}.type", "invalid_value"
                )
            self._part(inner, place)
        place = f"messages[{len(self._made.body['messages'])}]"
        self._made.places[f"{place}.tool_call_id"] = f"{path}.tool_use_id"
        self._more = {"tool_call_id": block.get("tool_use_id")}
        self._send("tool", self._parts or "", path)

    def _send(self, role: str, content: Any, path: str | None = None) -> None:
        """The message as it is by now."""
        made = self._made
        place = f"messages[{len(made.body['messages'])}]"
        made.places[place] = path or self._path
        for index, origin in enumerate(self._origins):
            made.places[f"{place}.content[{index}]"] = origin
            made.places[f"{place}.content[{index}].image_url.url"] = f"{origin}.source.url"
            made.places[f"{place}.content[{index}].image_url"] = f"{origin}.source"
        made.body["messages"].append({"role": role, "content": content, **self._more})
        self._parts, self._origins, self._more = [], [], {}


def _part(block: dict[str, Any], path: str) -> dict[str, Any]:
    if block["type"] == "text":
        return {"type": "text", "text": block.get("text")}
    source = block.get("source")
    source = source if isinstance(source, dict) else {}
    if source.get("type") == "url":
        return {"type": "image_url", "image_url": {"url": source.get("url")}}
    if source.get("type") != "base64":
        raise bad_request(
            f"'{path}.source.type' must be base64 or url.", f"{path}.source.type", "invalid_value"
        )
    for name in ("media_type", "data"):
        if not isinstance(source.get(name), str):
            place = f"{path}.source.{name}"
            raise bad_request(f"'{place}' must be a string.", place, "invalid_type")
    return {
        "type": "image_url",
        "image_url": {"url": f"data:{source['media_type']};base64,{source['data']}"},
    }


def _tool(tool: dict[str, Any], path: str, made: Translation) -> dict[str, Any]:
    if tool.get("type", "custom") not in ("custom", None):
        raise bad_request(
            f"'{path}.type' must be 'custom'; tools that a server runs are not supported.",
            f"{path}.type",
            "unsupported_parameter",
        )
    known = {"type", "name", "description", "input_schema", "strict", "cache_control"}
    made.ignored += [f"{path}.{name}" for name in tool.keys() - known]
    place = f"{path}.function"
    made.places |= {place: path, f"{place}.parameters": f"{path}.input_schema"}
    function = {
        "name": tool.get("name"),
        "description": tool.get("description"),
        "parameters": tool.get("input_schema"),
        "strict": tool.get("strict"),
    }
    return {"type": "function", "function": function}


def _choice(choice: dict[str, Any], made: Translation) -> None:
    kind = choice.get("type")
    made.ignored += [
        f"tool_choice.{name}"
        for name in choice.keys() - {"type", "name", "disable_parallel_tool_use"}
    ]
    if kind == "tool":
        named = {"type": "function", "function": {"name": choice.get("name")}}
        made.body["tool_choice"] = named
        made.places["tool_choice.function"] = "tool_choice"
    elif isinstance(kind, str) and kind in CHOICES:
        made.body["tool_choice"] = CHOICES[kind]
    else:
        path = "tool_choice.type"
        raise bad_request(
            f"'{path}' must be one of {', '.join([*CHOICES, 'tool'])}.", path, "invalid_value"
        )
    alone = choice.get("disable_parallel_tool_use")
    if alone is not None:
        if not isinstance(alone, bool):
            path = "tool_choice.disable_parallel_tool_use"
            raise bad_request(f"'{path}' must be true or false.", path, "invalid_type")
        made.body["parallel_tool_calls"] = not alone


def _output(config: dict[str, Any], made: Translation) -> None:
    """The form of the text; how much effort is meant is left to the model."""
    form = config.get("format")
    made.ignored += [f"output_config.{name}" for name in config.keys() - {"format"}]
    if form is None:
        return
    path = "output_config.format"
    if not isinstance(form, dict) or form.get("type") != "json_schema":
        raise unsupported(f"{path}.type", ({"type": "json_schema"},))
    made.body["response_format"] = {
        "type": "json_schema",
        "json_schema": {"name": "format", "schema": form.get("schema")},
    }
    made.places["response_format.json_schema"] = path


FIELDS: Final = {
    "text": {"text"},
    "image": {"source"},
    "tool_result": {"tool_use_id", "content", "is_error"},
    "tool_use": {"id", "name", "input", "caller"},
    "thinking": {"thinking", "signature"},
    "redacted_thinking": {"data"},
}
BLOCKS: Final = {
    "user": ("text", "image", "tool_result"),
    "assistant": ("text", "tool_use", "thinking", "redacted_thinking"),
}
UNBUILT_BLOCKS: Final = ("document", "search_result", "server_tool_use", "container_upload")
