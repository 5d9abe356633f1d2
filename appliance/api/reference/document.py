"""The OpenAPI document, made of the routes and of the models that read their bodies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode
from pydantic_core import CoreSchema
from starlette.routing import Route
from typing_extensions import TypedDict

from appliance import __version__
from appliance.api.reference.operations import JSON, OPERATIONS, Operation

OPENAPI = "3.1.0"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
REFERENCE = "#/components/schemas/{model}"
# what pydantic leaves of a bound that stands outside of a nullable number
BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
MEDIA = {
    "409": "A name of the client's stands for another item.",
    "422": "An item cannot be decoded.",
    "424": "An item's host refuses it.",
    "502": "An item's host fails.",
    "504": "An item takes too long.",
}
BODY = {
    "400": "Malformed, not supported here, or too long; `param` is the JSON path.",
    "404": "There is no such model.",
    "408": "The body came too slowly.",
    "413": "The body is too large.",
    "415": "The body is no JSON, or compressed in another way than is taken.",
    "429": "Too many requests wait, or the key has used up what it may.",
}
MODEL = {"503": "Loading, draining, or the engine is gone."}


class ErrorDetails(TypedDict):
    """Why; `param` is the JSON path of the field at fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(TypedDict):
    """What every failure answers."""

    error: ErrorDetails


class Plain(GenerateJsonSchema):
    """Schemas without a title for each field, which repeats its name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def document(routes: Iterable[Route], *, keys: bool) -> dict[str, Any]:
    """OpenAPI 3.1 of these routes, each of which has an entry; `keys` says whether one is needed.

    Raises KeyError for a route without an entry.
    """
    paths: dict[str, dict[str, Any]] = {}
    told: list[tuple[dict[str, Any], Operation]] = []
    for route in routes:
        path = route.path_format
        for method in sorted((route.methods or set()) - {"HEAD"}):
            operation = OPERATIONS[method, path]
            entry = _operation(method, path, operation, keys)
            paths.setdefault(path, {})[method.lower()] = entry
            told.append((entry, operation))
    return {
        "openapi": OPENAPI,
        "info": {
            "title": "Model appliance",
            "version": __version__,
            "description": "OpenAI's HTTP API for one model, and what belongs around it. "
            "Fields that are null are not there.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "jsonSchemaDialect": DIALECT,
        "paths": paths,
        "components": {
            "schemas": _schemas(told),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(method: str, path: str, operation: Operation, keys: bool) -> dict[str, Any]:
    """Without schemas, which are made for all of them together."""
    responses: dict[str, Any] = {}
    failures: dict[str, str] = {"500": "Ours; the message has the request's id."}
    if operation.bodies:
        failures |= BODY
    if operation.model:
        failures |= MODEL
    if operation.media:
        failures |= MEDIA
    if keys and not operation.open:
        failures["401"] = "A key is needed: `Authorization: Bearer`."
        failures["403"] = "The key may not ask for this route."
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in ("id",)
        if f"{{{name}}}" in path
    ]
    if parameters:
        failures["404"] = "There is no such model."
    for status, why in sorted(failures.items()):
        responses[status] = {
            "description": why,
            "content": {JSON: {"schema": {"$ref": REFERENCE.format(model=Error.__name__)}}},
        }
    entry: dict[str, Any] = {
        "operationId": _identity(method, path),
        "summary": operation.summary,
        "responses": responses,
        "security": [{"key": []}] if keys and not operation.open else [],
    }
    if parameters:
        entry["parameters"] = parameters
    return entry


def _identity(method: str, path: str) -> str:
    words = path.replace("{", "by/").replace("}", "").replace(".", "/").strip("/").split("/")
    return "_".join([method.lower(), *words])


def _schemas(told: list[tuple[dict[str, Any], Operation]]) -> dict[str, Any]:
    """All schemas by name; those of bodies and answers are put where they are referred to."""
    inputs: list[tuple[Any, JsonSchemaMode, CoreSchema]] = []
    wanted = {body: body for _, operation in told for body in operation.bodies}
    replies = {repr(operation.reply): operation.reply for _, operation in told if operation.reply}
    for body in wanted:
        inputs.append((body, "validation", body.__pydantic_core_schema__))
    for key, reply in {**replies, "error": Error}.items():
        inputs.append((key, "validation", TypeAdapter(reply).core_schema))
    references, definitions = Plain(ref_template=REFERENCE).generate_definitions(inputs)
    schemas: dict[str, dict[str, Any]] = {str(name): one for name, one in definitions.items()}
    for name in _reached([references[body, "validation"] for body in wanted], schemas):
        schemas[name] = _lenient(schemas[name])
    for entry, operation in told:
        _place(entry, operation, references)
    named = _reached([entry for entry, _ in told], schemas)
    return {name: _bounded(schemas[name]) for name in sorted(named)}


def _reached(start: Any, schemas: Mapping[str, Any]) -> set[str]:
    """Names of the schemas that are referred to, and not those of what bodies are read into."""
    reached: set[str] = set()
    open_ends = [start]
    while open_ends:
        found = open_ends.pop()
        if isinstance(found, dict):
            name = str(found.get("$ref", "")).rpartition("/")[2]
            if name and name not in reached:
                reached.add(name)
                open_ends.append(schemas[name])
            found = list(found.values())
        if isinstance(found, list):
            open_ends += found
    return reached


def _place(entry: dict[str, Any], operation: Operation, references: Mapping[Any, Any]) -> None:
    if operation.bodies:
        kinds = [references[body, "validation"] for body in operation.bodies]
        schema = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
        entry["requestBody"] = {"required": True, "content": {operation.takes: {"schema": schema}}}
    reply: dict[str, Any] = {"type": "string"}
    if operation.reply is not None:
        reply = references[repr(operation.reply), "validation"]
    content = {operation.media_type: {"schema": reply}}
    if operation.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    success = {"description": "The answer.", "content": content}
    entry["responses"] = {"200": success, **entry["responses"]}


def _lenient(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema as bodies are read: null is not there, and names nobody knows are let by."""
    if "properties" not in schema:
        return schema
    required = schema.get("required", [])
    properties = {
        name: field if name in required else _or_null(field)
        for name, field in schema["properties"].items()
    }
    return {**schema, "properties": properties, "additionalProperties": True}


def _or_null(field: dict[str, Any]) -> dict[str, Any]:
    default = {"default": field["default"]} if field.get("default") is not None else {}
    bare = {name: value for name, value in field.items() if name != "default"}
    choices = bare.get("anyOf", [bare])
    null = {"type": "null"}
    if bare == {} or null in choices:
        return {**bare, **default}
    if "anyOf" in bare:
        return {**bare, "anyOf": [*choices, null], **default}
    return {"anyOf": [bare, null], **default}


def _bounded(schema: Any) -> Any:
    """With JSON Schema's names of bounds."""
    if isinstance(schema, list):
        return [_bounded(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        BOUNDS.get(name, name) if isinstance(value, int | float) else name: _bounded(value)
        for name, value in schema.items()
    }
