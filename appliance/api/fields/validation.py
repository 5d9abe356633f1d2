"""From a JSON object to a request model, or to a refusal naming the field by its JSON path."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from appliance.api.fields.unbuilt import HINTS, asks_for_nothing
from appliance.errors import ApplianceError, bad_request

logger = logging.getLogger("appliance.api")

Model = TypeVar("Model", bound=BaseModel)

TYPES = {
    "string_type": "a string",
    "string_unicode": "valid Unicode without lone surrogates",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing_size": "a smaller integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


class Ignored(list[str]):
    """Paths of fields that nobody knows, the first MOST of them: a body may have millions."""

    MOST = 100

    def extend(self, paths: Iterable[str]) -> None:
        """Add as many of them as there is room for."""
        super().extend(path[:200] for path in islice(paths, self.MOST - len(self)))


def parse(
    model: type[Model],
    body: Mapping[str, Any],
    unbuilt: Mapping[str, tuple[Any, ...]],
    *,
    reject_unknown: bool,
) -> tuple[Model, list[str]]:
    """The request and the paths of its ignored fields. Raises ApplianceError 400."""
    known = model.model_fields
    fields: dict[str, Any] = {}
    ignored = Ignored()
    for name, value in body.items():
        if value is None or (name in HINTS and name not in known):
            continue
        if name in known:
            fields[name] = value
        elif name in unbuilt:
            if not asks_for_nothing(name, body, unbuilt[name]):
                raise unsupported(name, unbuilt[name])
        else:
            ignored.extend([name])
    try:
        request = model.model_validate(fields, context=ignored)
    except ValidationError as invalid:
        raise refusal(invalid.errors(include_url=False)[0]) from None
    if ignored and reject_unknown:
        raise bad_request(
            f"Unknown field '{ignored[0][:100]}'.", ignored[0][:200], "unknown_parameter"
        )
    return request, ignored


def unsupported(name: str, neutral: Sequence[Any] = ()) -> ApplianceError:
    """400 for a field that would change the answer and is not built."""
    only = ""
    if any(value not in ([], {}, "", None) for value in neutral):
        only = f" except as {' or '.join(json.dumps(value) for value in neutral)}"
    return bad_request(
        f"'{name}' is not supported by this server{only}.", name, "unsupported_parameter"
    )


def refusal(error: ErrorDetails) -> ApplianceError:
    """OpenAI's error for one of pydantic's, in our own words."""
    path = json_path(error["loc"])
    kind, context = error["type"], error.get("ctx", {})
    name = f"'{path}'" if path else "The body"
    if kind == "missing":
        return bad_request(f"{name} is required.", path, "missing_required_parameter")
    if kind in TYPES:
        return bad_request(f"{name} must be {TYPES[kind]}.", path, "invalid_type")
    if kind in BOUNDS:
        words, key = BOUNDS[kind]
        return bad_request(f"{name} must be {words} {context[key]}.", path, "invalid_value")
    if kind == "literal_error":
        return bad_request(f"{name} must be {context['expected']}.", path, "invalid_value")
    if kind in ("too_long", "string_too_long"):
        limit = context["max_length"]
        return bad_request(f"{name} may hold at most {limit}.", path, "invalid_value")
    if kind in ("too_short", "string_too_short"):
        return bad_request(f"{name} must not be empty.", path, "invalid_value")
    logger.warning("no wording for a validation error of kind %s", kind)
    return bad_request(f"{name} is not valid.", path, "invalid_value")


def json_path(location: Sequence[int | str]) -> str:
    """`messages[0].content` for `("messages", 0, "content")`."""
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif step != "[key]":
            path += f".{step}" if path else step
    return path[:200]
