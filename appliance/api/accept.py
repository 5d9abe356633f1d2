"""Taking a request in: its body read, parsed and checked, whatever the route."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from starlette.requests import Request

from appliance.api.fields.named import NamedFields
from appliance.api.fields.request import RequestFields
from appliance.api.fields.validation import parse
from appliance.api.http.body import parse_json, read_body
from appliance.api.http.content_coding import content_coding, decoded
from appliance.api.http.exchange import note
from appliance.api.http.tenants import caller_of
from appliance.generation.answers import Origin
from appliance.generation.stages import Stages
from appliance.generation.structure import grammar_of
from appliance.service import Service
from engine.sampling.grammar import Grammar

logger = logging.getLogger("appliance.api")

Fields = TypeVar("Fields", bound=RequestFields)
Named = TypeVar("Named", bound=NamedFields)

Body = Mapping[str, Any]
Unbuilt = Mapping[str, tuple[Any, ...]]  # by field, what asks for nothing

IGNORED_HEADER_LENGTH = 1000
LONG_BODY = 1 << 14  # bytes from which on reading leaves the event loop


@dataclass(slots=True, frozen=True)
class Accepted(Generic[Fields]):
    """A checked request, whose it is, what its text is held to, and fields that nobody knows."""

    fields: Fields
    origin: Origin
    grammar: Grammar | None
    ignored: list[str]


async def accept(
    request: Request, service: Service, model: type[Fields], unbuilt: Unbuilt
) -> Accepted[Fields]:
    """Raises ApplianceError."""
    arrived = time.perf_counter()
    fields, ignored = await accept_named(request, service, lambda body: (model, unbuilt))
    return await accept_answered(request, service, fields, ignored, arrived)


async def accept_answered(
    request: Request, service: Service, fields: Fields, ignored: list[str], arrived: float
) -> Accepted[Fields]:
    """What a request that was read has to be answered by. Raises ApplianceError."""
    caller = caller_of(request.scope)
    caller.tenant.check_priority(fields.priority)
    scope = caller.owner if service.config.cache.share == "key" else b""
    structure, grammar = fields.structure, None
    if structure is not None:
        grammar = await service.aside(partial(grammar_of, structure))
    stages = request.scope["appliance.stages"] = Stages(arrived)
    stages.end("read")
    logged = service.config.server.log_requests == "text"
    origin = Origin(arrived, scope, caller.tenant.charge, stages, logged)
    return Accepted(fields, origin, grammar, ignored)


async def accept_named(
    request: Request, service: Service, kind: Callable[[Body], tuple[type[Named], Unbuilt]]
) -> tuple[Named, list[str]]:
    """A checked request, and its fields that nobody knows; `kind` tells what a body is to be.

    Raises ApplianceError.
    """
    service.generator()
    server = service.config.server
    coding = content_coding(request.headers)
    body = await read_body(request, server.max_body_bytes)
    content = partial(decoded, body, coding, server.max_body_bytes) if coding else lambda: body
    read = partial(_read, content, kind, server.unknown_fields == "reject")
    long = coding is not None or len(body) > LONG_BODY  # few bytes may become many
    fields, ignored = await service.aside(read) if long else read()
    if "model" in fields.model_fields_set:
        service.check_model(fields.model)
    return fields, ignored


def told(request: Request, service: Service, ignored: list[str]) -> dict[str, str]:
    """The headers of an answer, and a line of the log, that name what of a request is ignored."""
    if not ignored:
        return {}
    names = ", ".join(quote(service.secrecy.hide(name), safe="[]._-*$") for name in ignored)[
        :IGNORED_HEADER_LENGTH
    ]
    logger.warning("ignored fields: %s", names)
    note(request.scope, ignored_fields=names)
    return {"X-Ignored-Fields": names}


def _read(
    content: Callable[[], bytearray],
    kind: Callable[[Body], tuple[type[Named], Unbuilt]],
    reject_unknown: bool,
) -> tuple[Named, list[str]]:
    """The request and the paths of its ignored fields."""
    body = parse_json(content())
    model, unbuilt = kind(body)
    fields, ignored = parse(model, body, unbuilt, reject_unknown=reject_unknown)
    fields.check()
    return fields, ignored
