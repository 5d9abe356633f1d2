"""Fields that say what an answer's text has to be, under each name that clients know them by."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import PlainValidator, ValidationInfo, WithJsonSchema

from appliance.api.fields.request import RequestFields
from appliance.api.fields.text import as_json, read_text
from appliance.api.fields.unbuilt import harmless
from appliance.api.fields.validation import unsupported
from appliance.errors import bad_request
from appliance.generation.rules import WHITESPACE
from appliance.generation.structure import ANY_OBJECT, Structure

MOST_CHOICES = 10_000
KINDS = ("json", "json_object", "regex", "choice", "grammar")  # in `structured_outputs`
# vLLM's options of a structure; what is not one of these values is refused
OPTIONS: dict[str, tuple[Any, ...]] = {
    "disable_fallback": (True, False),  # there is one grammar engine, and nothing behind it
    "disable_additional_properties": (True, False),  # they are, unless a schema says otherwise
    "structural_tag": ("",),
}


def read_response_format(value: Any, info: ValidationInfo) -> Structure | None:
    """OpenAI's; `json_object` may have a `schema`, as llama.cpp's and others' servers take one."""
    path = "response_format"
    if harmless(value, ({"type": "text"}, {})):
        return None
    given = _object(value, path)
    kind = given.pop("type", None)
    if kind == "json_object":
        schema = given.pop("schema", None)
        _tell_unknown(given, path, info)
        if schema is None:
            return Structure("json", ANY_OBJECT, path)
        return _schema(schema, f"{path}.schema")
    if kind == "json_schema":
        inner = _object(given.pop("json_schema", None), f"{path}.json_schema")
        _tell_unknown(given, path, info)
        for name in ("name", "description"):
            if inner.get(name) is not None:
                read_text(inner[name], f"{path}.json_schema.{name}")
        if not isinstance(inner.get("strict"), bool | None):
            raise bad_request(
                f"'{path}.json_schema.strict' must be true or false.",
                f"{path}.json_schema.strict",
                "invalid_type",
            )
        known = {"name", "description", "strict", "schema"}
        _tell_unknown(inner.keys() - known, f"{path}.json_schema", info)
        return _schema(inner.get("schema"), f"{path}.json_schema.schema")
    if kind == "text":
        other = min(given)
        raise bad_request(f"'{path}.{other}' is not allowed with type 'text'.", f"{path}.{other}")
    raise bad_request(
        f"'{path}.type' must be 'text', 'json_object' or 'json_schema'.",
        f"{path}.type",
        "invalid_value",
    )


def read_structured_outputs(value: Any, info: ValidationInfo) -> Structure | None:
    """vLLM's: one of several kinds, with options."""
    path = "structured_outputs"
    given = _object(value, path)
    for name, harmless_ones in OPTIONS.items():
        if name in given and not harmless(given.pop(name), harmless_ones):
            raise unsupported(f"{path}.{name}", harmless_ones)
    whitespace = _whitespace(given, path)
    if given.get("json_object") is False:
        del given["json_object"]
    kinds = [name for name in KINDS if name in given]
    _tell_unknown(given.keys() - set(KINDS), path, info)
    if len(kinds) > 1:
        raise bad_request(
            f"'{path}' has '{kinds[0]}' and '{kinds[1]}'; send one.", f"{path}.{kinds[1]}"
        )
    for name in kinds:
        return _structure(name, given[name], f"{path}.{name}", whitespace)
    return None


def _read_named(value: Any, info: ValidationInfo) -> Structure | None:
    """A field that is the structure itself."""
    name = info.field_name or ""
    if value == "" or (value == [] and NAMED[name] == "choice"):
        return None
    return _structure(NAMED[name], value, name, WHITESPACE)


NAMED = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "json_schema": "json",
    "regex": "regex",
    "ebnf": "grammar",
}
Schema = Annotated[
    Structure | None,
    PlainValidator(_read_named, json_schema_input_type=dict[str, Any] | bool | str),
]
Text = Annotated[Structure | None, PlainValidator(_read_named, json_schema_input_type=str)]
Choice = Annotated[Structure | None, PlainValidator(_read_named, json_schema_input_type=list[str])]
TEXT = {"type": ["string", "null"]}
FLAG = {"type": ["boolean", "null"]}
ANY_SCHEMA = {"type": ["object", "boolean", "string", "null"]}  # or as JSON in a text
RESPONSE_FORMAT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "type": {"enum": ["text", "json_object", "json_schema", None]},
        "json_schema": {
            "type": ["object", "null"],
            "properties": {"name": TEXT, "description": TEXT, "strict": FLAG, "schema": ANY_SCHEMA},
        },
        "schema": ANY_SCHEMA,
    },
}
STRUCTURED_OUTPUTS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "json": ANY_SCHEMA,
        "json_object": FLAG,
        "regex": TEXT,
        "choice": {
            "type": ["array", "null"],
            "items": {"type": "string"},
            "maxItems": MOST_CHOICES,
        },
        "grammar": TEXT,
        "disable_any_whitespace": FLAG,
        "whitespace_pattern": TEXT,
    },
}


class StructureFields(RequestFields):
    """`response_format` is OpenAI's, `structured_outputs` vLLM's, `guided_…` vLLM's before that.

    `json_schema`, `regex` and `ebnf` are SGLang's.
    """

    response_format: Annotated[
        Structure | None,
        PlainValidator(read_response_format),
        WithJsonSchema(RESPONSE_FORMAT),
    ] = None
    structured_outputs: Annotated[
        Structure | None,
        PlainValidator(read_structured_outputs),
        WithJsonSchema(STRUCTURED_OUTPUTS),
    ] = None
    guided_json: Schema = None
    guided_regex: Text = None
    guided_choice: Choice = None
    guided_grammar: Text = None
    json_schema: Schema = None
    regex: Text = None
    ebnf: Text = None

    @property
    def structure(self) -> Structure | None:
        """Raises ApplianceError where there are several."""
        names = [name for name in STRUCTURES if getattr(self, name) is not None]
        if len(names) > 1:
            raise bad_request(
                f"'{names[0]}' and '{names[1]}' contradict each other; send one.", names[1]
            )
        found: Structure | None = getattr(self, names[0]) if names else None
        return found


STRUCTURES = [
    name for name in StructureFields.model_fields if name not in RequestFields.model_fields
]


def _structure(kind: str, value: Any, path: str, whitespace: str) -> Structure:
    match kind:
        case "json_object":
            if value is not True:
                raise bad_request(f"'{path}' must be true or false.", path, "invalid_type")
            return Structure("json", ANY_OBJECT, path, whitespace)
        case "json":
            return _schema(value, path, whitespace)
        case "choice":
            return Structure("choice", _choices(value, path), path)
        case "regex":
            return Structure("regex", _filled(value, path), path)
    return Structure("grammar", _filled(value, path), path)


def _schema(value: Any, path: str, whitespace: str = WHITESPACE) -> Structure:
    """A schema as an object, or as JSON in a text."""
    if value is None:
        raise bad_request(f"'{path}' is required.", path, "missing_required_parameter")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise bad_request(f"'{path}' is not valid JSON.", path, "invalid_value") from None
    if not isinstance(value, dict | bool):
        raise bad_request(f"'{path}' must be an object.", path, "invalid_type")
    return Structure("json", as_json(value, path), path, whitespace)


def _choices(value: Any, path: str) -> str:
    if not isinstance(value, list):
        raise bad_request(f"'{path}' must be an array of strings.", path, "invalid_type")
    if not value or len(value) > MOST_CHOICES:
        raise bad_request(
            f"'{path}' must hold from 1 to {MOST_CHOICES} strings.", path, "invalid_value"
        )
    choices = [read_text(one, f"{path}[{index}]") for index, one in enumerate(value)]
    return json.dumps(choices, ensure_ascii=False)


def _filled(value: Any, path: str) -> str:
    text = read_text(value, path)
    if not text:
        raise bad_request(f"'{path}' must not be empty.", path, "invalid_value")
    return text


def _whitespace(given: dict[str, Any], path: str) -> str:
    """What may stand between parts of JSON, by options that are taken out of `given`."""
    none = given.pop("disable_any_whitespace", False)
    if not isinstance(none, bool):
        name = f"{path}.disable_any_whitespace"
        raise bad_request(f"'{name}' must be true or false.", name, "invalid_type")
    pattern = given.pop("whitespace_pattern", None)
    if pattern is not None:
        return _filled(pattern, f"{path}.whitespace_pattern")
    return "" if none else WHITESPACE


def _object(value: Any, path: str) -> dict[str, Any]:
    """A copy without what is null."""
    if value is None:
        raise bad_request(f"'{path}' is required.", path, "missing_required_parameter")
    if not isinstance(value, dict):
        raise bad_request(f"'{path}' must be an object.", path, "invalid_type")
    return {name: inner for name, inner in value.items() if inner is not None}


def _tell_unknown(names: Any, path: str, info: ValidationInfo) -> None:
    if isinstance(info.context, list):
        info.context.extend(f"{path}.{name}" for name in sorted(names))
