"""Fields by which clients say whether a model is to think, under the names they have for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Final

from pydantic import PlainValidator, ValidationInfo

from appliance.api.fields.unbuilt import harmless
from appliance.api.fields.validation import unsupported
from appliance.errors import bad_request
from appliance.prompt.thinking import UNSAID, Thinking

EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh")
NOTHING: Final[tuple[Any, ...]] = ("", {})
TYPES: Final = {"enabled": True, "adaptive": True, "disabled": False}


def _effort(value: Any, param: str) -> Thinking:
    """OpenAI's `reasoning_effort`, and what stands under that name elsewhere."""
    if value not in EFFORTS:
        raise bad_request(f"'{param}' must be one of {', '.join(EFFORTS)}.", param, "invalid_value")
    return Thinking(value != "none", None if value == "none" else value, param=param)


def _read(value: Any, info: ValidationInfo) -> Thinking:
    name = info.field_name or ""
    if harmless(value, NOTHING):
        return UNSAID
    if name == "reasoning_effort":
        return _effort(value, name)
    if isinstance(value, bool):
        return Thinking(value, param=name)
    if not isinstance(value, dict):
        raise bad_request(f"'{name}' must be an object.", name, "invalid_type")
    given = {key: inner for key, inner in value.items() if inner is not None}
    read = READERS[name](given, name)
    for key in given:
        raise unsupported(f"{name}.{key}")
    return read


def _reasoning(given: dict[str, Any], name: str) -> Thinking:
    """Of OpenAI's responses, and OpenRouter's."""
    enabled, effort = given.pop("enabled", None), given.pop("effort", None)
    tokens = _tokens(given.pop("max_tokens", None), f"{name}.max_tokens")
    if enabled is not None and not isinstance(enabled, bool):
        raise bad_request(
            f"'{name}.enabled' must be true or false.", f"{name}.enabled", "invalid_type"
        )
    if effort is None:
        wanted = enabled if tokens is None else enabled is not False
        return Thinking(wanted, tokens=tokens, param=name)
    read = _effort(effort, f"{name}.effort")
    if enabled is not None and enabled != read.wanted:
        raise bad_request(
            f"'{name}.enabled' and '{name}.effort' contradict each other.", f"{name}.enabled"
        )
    return replace(read, tokens=tokens)


def _thinking(given: dict[str, Any], name: str) -> Thinking:
    """Anthropic's, DeepSeek's and GLM's."""
    kind = given.pop("type", None)
    if kind not in TYPES:
        raise bad_request(
            f"'{name}.type' must be one of {', '.join(TYPES)}.", f"{name}.type", "invalid_value"
        )
    tokens = _tokens(given.pop("budget_tokens", None), f"{name}.budget_tokens")
    return Thinking(TYPES[kind], tokens=tokens, param=name)


def _tokens(value: Any, path: str) -> int | None:
    """How many a thought may have."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
        raise bad_request(f"'{path}' must be an integer from 0 on.", path, "invalid_value")
    return value


READERS: Final = {"reasoning": _reasoning, "thinking": _thinking}
Said = Annotated[Thinking, PlainValidator(_read)]


def agreed(*said: Thinking) -> Thinking:
    """What several fields say together. Raises ApplianceError where they contradict each other."""
    tokens = next((one.tokens for one in said if one.tokens is not None), None)
    spoken = [one for one in said if one.wanted is not None]
    for other in spoken[1:]:
        if (other.wanted, other.effort or spoken[0].effort) != (
            spoken[0].wanted,
            spoken[0].effort or other.effort,
        ):
            raise bad_request(
                f"'{spoken[0].param}' and '{other.param}' contradict each other; send one.",
                other.param,
            )
    first = next((one for one in spoken if one.effort is not None), (*spoken, UNSAID)[0])
    return replace(first, tokens=tokens)
