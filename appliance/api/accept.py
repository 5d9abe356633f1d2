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

from appliance.api.fields.request import RequestFields
from appliance.api.fields.validation import parse
from appliance.api.http.body import parse_json, read_body
from appliance.api.http.content_coding import content_coding, decoded
from appliance.api.http.exchange import note
from appliance.api.http.tenants import caller_of
from appliance.generation.answers import Origin
from appliance.generation.structure import grammar_of
from appliance.service import Service
from engine.sampling.grammar import Grammar

logger = logging.getLogger("appliance.api")

Fields = TypeVar("Fields", bound=RequestFields)

IGNORED_HEADER_LENGTH = 1000
LONG_BODY = 1 << 14  # bytes from which on reading leaves the event loop


@dataclass(slots=True, frozen=True)
class Accepted(Generic[Fields]):
    """A checked request, whose it is, what its answers are held to, and the answer's headers."""

    fields: Fields
    origin: Origin
    grammar: Grammar | None
    headers: dict[str, str]


async def accept(
    request: Request, service: Service, model: type[Fields], unbuilt: Mapping[str, tuple[Any, ...]]
) -> Accepted[Fields]:
    """Raises ApplianceError."""
    arrived = time.perf_counter()
    caller = caller_of(request.scope)
    service.generator()
    server = service.config.server
    coding = content_coding(request.headers)
    body = await read_body(request, server.max_body_bytes)
    content = partial(decoded, body, coding, server.max_body_bytes) if coding else lambda: body
    read = partial(_read, content, model, unbuilt, server.unknown_fields == "reject")
    long = coding is not None or len(body) > LONG_BODY  # few bytes may become many
    fields, ignored = await service.aside(read) if long else read()
    caller.tenant.check_priority(fields.priority)
    service.check_model(fields.model)
    scope = caller.owner if service.config.cache.share == "key" else b""
    origin = Origin(arrived, scope, caller.tenant.charge)
    structure, grammar = fields.structure, None
    if structure is not None:
        grammar = await service.aside(partial(grammar_of, structure))
    if not ignored:
        return Accepted(fields, origin, grammar, {})
    names = ", ".join(quote(service.secrecy.hide(name), safe="[]._-*") for name in ignored)[
        :IGNORED_HEADER_LENGTH
    ]
    logger.warning("ignored unknown fields: %s", names)
    note(request.scope, ignored_fields=names)
    return Accepted(fields, origin, grammar, {"X-Ignored-Fields": names})


def _read(
    content: Callable[[], bytearray],
    model: type[Fields],
    unbuilt: Mapping[str, tuple[Any, ...]],
    reject_unknown: bool,
) -> tuple[Fields, list[str]]:
    """The request and the paths of its ignored fields."""
    fields, ignored = parse(model, parse_json(content()), unbuilt, reject_unknown=reject_unknown)
    fields.check()
    return fields, ignored
