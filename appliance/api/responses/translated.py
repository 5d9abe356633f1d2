"""Items, tools and options of a response in terms of a chat request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from appliance.api.fields.text import read_text
from appliance.api.fields.validation import unsupported
from appliance.api.responses.request import ResponsesRequest
from appliance.api.responses.schema import ROLES
from appliance.api.translation import Translation
from appliance.errors import bad_request

Messages = list[dict[str, Any]]

INCLUDED: Final = ("reasoning.encrypted_content",)  # what there is none of, and clients always ask
PARTS: Final = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}


def translated(fields: ResponsesRequest, earlier: Sequence[dict[str, Any]]) -> Translation:
    """`earlier` messages stand before those of the request.

    Raises ApplianceError with the path of the fault in the request.
    """
    made = Translation({"model": fields.model, "messages": []})
    messages = made.body["messages"]
    made.places["messages"] = "input"
    if fields.instructions:
        made.places["messages[0]"] = made.places["messages[0].content"] = "instructions"
        messages.append({"role": "system", "content": fields.instructions})
    messages += earlier
    _Items(made).translate(fields.input)
    made.body["tools"] = [
        _tool(tool, f"tools[{index}]", made) for index, tool in enumerate(fields.tools)
    ]
    made.places |= {
        "tool_choice.function": "tool_choice",
        "tool_choice.allowed_tools": "tool_choice",
    }
    for index, name in enumerate(fields.include):
        if name not in INCLUDED:
            raise unsupported(f"include[{index}]")
    _text(fields.text or {}, made)
    reasoning = dict(fields.reasoning or {})
    made.ignored += [
        f"reasoning.{name}"
        for name in ("summary", "generate_summary")
        if reasoning.pop(name, None) is not None
    ]
    made.body |= {
        "reasoning": reasoning,
        "tool_choice": fields.tool_choice,
        "parallel_tool_calls": fields.parallel_tool_calls,
        "max_completion_tokens": fields.max_output_tokens,
        "temperature": fields.temperature,
        "top_p": fields.top_p,
        "stream": fields.stream,
    }
    made.places |= {
        "max_completion_tokens": "max_output_tokens",
        "reasoning_effort": "reasoning.effort",
    }
    return made


class _Items:
    """Items of the input as messages: thoughts, text and calls of one turn are one message."""

    def __init__(self, made: Translation) -> None:
        self._made = made
        self._messages: Messages = made.body["messages"]
        self._first = len(self._messages)
        self._thought = ""

    def translate(self, given: Any) -> None:
        if isinstance(given, str):
            self._append("user", given, "input")
            return
        if not isinstance(given, list):
            raise bad_request(
                "'input' must be a string or an array of items.", "input", "invalid_type"
            )
        for index, item in enumerate(given):
            path = f"input[{index}]"
            if not isinstance(item, dict):
                raise bad_request(f"'{path}' must be an object.", path, "invalid_type")
            self._item(item, path)

    def _item(self, item: dict[str, Any], path: str) -> None:
        match item.get("type", "message"):
            case "message":
                self._message(item, path)
            case "function_call":
                self._call(item, path)
            case "function_call_output":
                self._result(item, path)
            case "reasoning":
                self._reasoning(item, path)
            case _:
                raise bad_request(
                    f"'{path}.type' must be message, function_call, function_call_output or "
                    "reasoning.",
                    f"{path}.type",
                    "unsupported_parameter",
                )

    def _message(self, item: dict[str, Any], path: str) -> None:
        role = item.get("role")
        if role not in ROLES:
            raise bad_request(
                f"'{path}.role' must be one of {', '.join(ROLES)}.", f"{path}.role", "invalid_value"
            )
        self._unknown(item, path, {"role", "content", "phase"})
        content = item.get("content")
        if isinstance(content, list):
            content = self._parts(content, f"{path}.content", f"messages[{len(self._messages)}]")
        self._append(role, content, path)

    def _parts(self, parts: list[Any], path: str, place: str) -> list[dict[str, Any]]:
        read = []
        for index, part in enumerate(parts):
            origin, here = f"{path}[{index}]", f"{place}.content[{index}]"
            if not isinstance(part, dict):
                raise bad_request(f"'{origin}' must be an object.", origin, "invalid_type")
            self._made.places |= {here: origin, f"{here}.image_url.url": f"{origin}.image_url"}
            self._made.places[f"{here}.image_url.detail"] = f"{origin}.detail"
            read.append(_part(part, origin))
        return read

    def _call(self, item: dict[str, Any], path: str) -> None:
        self._unknown(item, path, {"call_id", "name", "arguments", "caller"})
        last = self._messages[-1] if len(self._messages) > self._first else None
        if last is None or last["role"] != "assistant" or self._thought:
            self._append("assistant", None, path)
            last = self._messages[-1]
        calls = last.setdefault("tool_calls", [])
        place = f"messages[{len(self._messages) - 1}].tool_calls[{len(calls)}]"
        self._made.places |= {
            place: path,
            f"{place}.function": path,
            f"{place}.id": f"{path}.call_id",
        }
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        calls.append({"id": item.get("call_id"), "type": "function", "function": function})

    def _result(self, item: dict[str, Any], path: str) -> None:
        self._unknown(item, path, {"call_id", "output", "caller"})
        output = item.get("output")
        place = f"messages[{len(self._messages)}]"
        if isinstance(output, list):
            output = self._parts(output, f"{path}.output", place)
        elif output is None:
            raise bad_request(
                f"'{path}.output' is required.", f"{path}.output", "missing_required_parameter"
            )
        self._append("tool", output, path)
        self._messages[-1]["tool_call_id"] = item.get("call_id")
        self._made.places[f"{place}.tool_call_id"] = f"{path}.call_id"
        self._made.places[f"{place}.content"] = f"{path}.output"

    def _reasoning(self, item: dict[str, Any], path: str) -> None:
        self._unknown(item, path, {"summary", "content", "encrypted_content"})
        for name in ("content", "summary"):
            listed = item.get(name) or []
            if not isinstance(listed, list):
                where = f"{path}.{name}"
                raise bad_request(f"'{where}' must be an array.", where, "invalid_type")
            for index, part in enumerate(listed):
                where = f"{path}.{name}[{index}].text"
                self._thought += read_text(
                    part.get("text") if isinstance(part, dict) else None, where
                )
            if self._thought:
                return

    def _append(self, role: str, content: Any, path: str) -> None:
        message: dict[str, Any] = {"role": role, "content": content}
        if role == "assistant" and self._thought:
            message["reasoning_content"] = self._thought
        self._thought = ""
        self._made.places[f"messages[{len(self._messages)}]"] = path
        self._messages.append(message)

    def _unknown(self, item: dict[str, Any], path: str, known: set[str]) -> None:
        known |= {"type", "id", "status"}
        self._made.ignored += [f"{path}.{name}" for name in item.keys() - known]


def _part(part: dict[str, Any], path: str) -> dict[str, Any]:
    kind = part.get("type")
    if kind in PARTS:
        field = PARTS[kind]
        return {"type": "text", "text": read_text(part.get(field), f"{path}.{field}")}
    if kind == "input_image":
        url = part.get("image_url")
        if part.get("file_id") is not None or not isinstance(url, str):
            raise bad_request(
                f"'{path}.image_url' must be a URL: this server keeps no files.",
                f"{path}.image_url",
                "invalid_type",
            )
        return {"type": "image_url", "image_url": {"url": url, "detail": part.get("detail")}}
    raise bad_request(
        f"'{path}.type' must be one of {', '.join([*PARTS, 'input_image'])}.",
        f"{path}.type",
        "unsupported_parameter" if kind == "input_file" else "invalid_value",
    )


def _tool(tool: dict[str, Any], path: str, made: Translation) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise bad_request(
            f"'{path}.type' must be 'function'; tools that a server runs are not supported.",
            f"{path}.type",
            "unsupported_parameter",
        )
    made.places[f"{path}.function"] = path
    known = ("name", "description", "parameters", "strict")
    made.ignored += [f"{path}.{name}" for name in tool.keys() - {"type", *known}]
    return {"type": "function", "function": {name: tool.get(name) for name in known}}


def _text(text: dict[str, Any], made: Translation) -> None:
    """The form of the text; how wordy it is to be is left to the model."""
    form = text.get("format")
    made.ignored += [f"text.{name}" for name in text.keys() - {"format", "verbosity"}]
    if form is None:
        return
    if not isinstance(form, dict):
        raise bad_request("'text.format' must be an object.", "text.format", "invalid_type")
    made.places |= {"response_format.json_schema": "text.format", "response_format": "text.format"}
    if form.get("type") == "json_schema":
        inner = {name: value for name, value in form.items() if name != "type"}
        form = {"type": "json_schema", "json_schema": inner}
    made.body["response_format"] = form
