"""Taking a request in: its body read, parsed and checked, whatever the route."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import quote

from starlette.requests import Request

from appliance.api.fields.sampling import SamplingFields
from appliance.api.fields.validation import parse
from appliance.api.http.body import read_json
from appliance.api.http.exchange import note
from appliance.service import Service

logger = logging.getLogger("appliance.api")

Fields = TypeVar("Fields", bound=SamplingFields)

IGNORED_HEADER_LENGTH = 1000


async def accept(
    request: Request, service: Service, model: type[Fields], unbuilt: Mapping[str, tuple[Any, ...]]
) -> tuple[Fields, dict[str, str]]:
    """The checked request, and the headers its answer gets. Raises ApplianceError."""
    service.generator()
    server = service.config.server
    body = await read_json(request, server.max_body_bytes)
    fields, ignored = parse(model, body, unbuilt, reject_unknown=server.unknown_fields == "reject")
    fields.check()
    service.check_model(fields.model)
    if not ignored:
        return fields, {}
    names = ", ".join(quote(name, safe="[]._-") for name in ignored)[:IGNORED_HEADER_LENGTH]
    logger.warning("ignored unknown fields: %s", names)
    note(request.scope, ignored_fields=names)
    return fields, {"X-Ignored-Fields": names}
