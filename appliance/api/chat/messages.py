"""The conversation of a chat request, checked part by part and brought to one canonical shape."""

from __future__ import annotations

from typing import Any

from appliance.api.chat.media_parts import KINDS, read_media_part
from appliance.api.chat.past_calls import read_calls
from appliance.api.fields.text import read_text
from appliance.api.fields.validation import unsupported
from appliance.errors import bad_request
from appliance.generation.conversation import Conversation, Message
from appliance.media.source import Source

ROLES = ("system", "developer", "user", "assistant", "tool")
CACHING = "cache_control"  # where a prefix worth keeping ends; here all are kept
UNBUILT_FIELDS = ("function_call", "audio")
MESSAGE_FIELDS = frozenset({"role", "content", "name", CACHING})
OF_ROLE = {
    "assistant": frozenset(
        {"refusal", "annotations", "tool_calls", "reasoning_content", "reasoning"}
    ),
    "tool": frozenset({"tool_call_id"}),
}
PARTS = ("text", *KINDS)
MOST_PARTS = 100_000  # of all messages; a token each is more than most models take
UNBUILT_PARTS = (
    "audio_embeds",
    "video",
    "input_image",
    "file",
    "image",
)


def read_messages(messages: Any, ignored: list[str]) -> Conversation:
    """The conversation that `messages` is; paths of unknown fields are added to `ignored`.

    Raises ApplianceError with the JSON path of the fault.
    """
    if not isinstance(messages, list):
        raise bad_request("'messages' must be an array.", "messages", "invalid_type")
    if not messages:
        raise bad_request("'messages' must not be empty.", "messages", "invalid_value")
    parts = sum(
        len(content) if isinstance(content := message.get("content"), list) else 1
        for message in messages
        if isinstance(message, dict)
    )
    if parts > MOST_PARTS:
        raise bad_request(
            f"'messages' holds {parts} messages and parts, more than {MOST_PARTS}.",
            "messages",
            "invalid_value",
        )
    sources: list[Source] = []
    read = [
        _message(message, f"messages[{index}]", sources, ignored)
        for index, message in enumerate(messages)
    ]
    lengths = [(message["role"], _text_length(message)) for message in read]
    return Conversation(
        read,
        sources,
        text_length=sum(whole for _, (whole, _) in lengths),
        certain_length=sum(bare for role, (_, bare) in lengths if role != "assistant"),
        parts=parts,
    )


def _text_length(message: Message) -> tuple[int, int]:
    """Characters with and without white space at the ends."""
    content = message["content"]
    texts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
    more = len(message.get("reasoning_content", "")) + len(str(message.get("tool_calls", "")))
    return sum(map(len, texts)) + more, sum(len(text.strip()) for text in texts)


def _message(message: Any, path: str, sources: list[Source], ignored: list[str]) -> Message:
    if not isinstance(message, dict):
        raise bad_request(f"'{path}' must be an object.", path, "invalid_type")
    role = message.get("role")
    if role is None:
        raise bad_request(
            f"'{path}.role' is required.", f"{path}.role", "missing_required_parameter"
        )
    if role == "function":
        raise bad_request(
            f"'{path}.role': 'function' is out of use; send 'tool' with a 'tool_call_id'.",
            f"{path}.role",
            "unsupported_parameter",
        )
    if role not in ROLES:
        raise bad_request(
            f"'{path}.role' must be one of {', '.join(ROLES)}.", f"{path}.role", "invalid_value"
        )
    for name in UNBUILT_FIELDS:
        if message.get(name) not in (None, [], {}):
            raise unsupported(f"{path}.{name}")
    ignored.extend(
        f"{path}.{name}"
        for name, value in message.items()
        if name not in MESSAGE_FIELDS | OF_ROLE.get(role, frozenset())
        and name not in UNBUILT_FIELDS
        and value is not None
    )
    content = message.get("content")
    if content in (None, []) and role == "assistant":
        # it said nothing: it was stopped, or it refused
        refusal = message.get("refusal")
        content = "" if refusal is None else read_text(refusal, f"{path}.refusal")
    if content == [] and role == "tool":
        content = ""  # it had nothing to say
    read: Message = {
        "role": "system" if role == "developer" else role,
        "content": _content(content, f"{path}.content", sources, ignored),
    }
    if message.get("name") not in (None, ""):
        read["name"] = read_text(message["name"], f"{path}.name")
    if role == "assistant":
        read |= _thought(message, path) | read_calls(message.get("tool_calls"), path, ignored)
    elif role == "tool":
        read["tool_call_id"] = read_text(message.get("tool_call_id"), f"{path}.tool_call_id")
    return read


def _thought(message: dict[str, Any], path: str) -> Message:
    """What was thought before the message, for templates that want it."""
    for name in ("reasoning_content", "reasoning"):
        if message.get(name) not in (None, ""):
            return {"reasoning_content": read_text(message[name], f"{path}.{name}")}
    return {}


def _content(
    content: Any, path: str, sources: list[Source], ignored: list[str]
) -> str | list[dict[str, str]]:
    if content is None:
        raise bad_request(f"'{path}' is required.", path, "missing_required_parameter")
    if isinstance(content, str):
        return read_text(content, path)
    if not isinstance(content, list):
        raise bad_request(
            f"'{path}' must be a string or an array of content parts.", path, "invalid_type"
        )
    if not content:
        raise bad_request(f"'{path}' must not be empty.", path, "invalid_value")
    read: list[dict[str, str]] = []
    for index, part in enumerate(content):
        found = _part(part, f"{path}[{index}]", ignored)
        if isinstance(found, str):
            read.append({"type": "text", "text": found})
        else:
            sources += found
            read += [{"type": source.modality} for source in found]
    return read


def _part(part: Any, path: str, ignored: list[str]) -> str | list[Source]:
    """The text of a part, or the items that it brings; typeless short forms are understood."""
    if isinstance(part, str):
        return read_text(part, path)
    if not isinstance(part, dict):
        raise bad_request(f"'{path}' must be an object or a string.", path, "invalid_type")
    kind = part.get("type")
    typed = kind is not None
    if not typed:
        names = [name for name in (*PARTS, *UNBUILT_PARTS) if name in part]
        kind = next((name for name in names if part[name] is not None), next(iter(names), None))
    if kind is None:
        raise bad_request(
            f"'{path}.type' is required.", f"{path}.type", "missing_required_parameter"
        )
    if kind in UNBUILT_PARTS:
        raise bad_request(
            f"'{path}': content parts of type '{kind}' are not supported by this server.",
            f"{path}.type" if typed else f"{path}.{kind}",
            "unsupported_parameter",
        )
    if kind == "refusal":
        return read_text(part.get("refusal"), f"{path}.refusal")
    if kind not in PARTS:
        raise bad_request(
            f"'{path}.type' must be one of {', '.join(PARTS)}.", f"{path}.type", "invalid_value"
        )
    known = {"type", kind, CACHING} if kind == "text" else {"type", kind, CACHING, "uuid"}
    ignored.extend(
        f"{path}.{name}" for name, value in part.items() if name not in known and value is not None
    )
    if kind == "text":
        return read_text(part.get("text"), f"{path}.text")
    return read_media_part(kind, part, path, typed, ignored)
