"""What both completion routes share: taking the request in, sending the answers out."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import secrets
import time
from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import quote

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from appliance.api.fields.sampling import SamplingFields
from appliance.api.fields.validation import parse
from appliance.api.http.body import read_json
from appliance.api.http.event_stream import close_when_gone
from appliance.api.http.exchange import note
from appliance.generation.answers import Answers, Delta, Wish
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


def wish(
    fields: SamplingFields, arrived: float, *, continuing: bool, discard: bool = False
) -> Wish:
    """What the request wants of its answers besides sampling."""
    salt = fields.cache_salt
    return Wish(
        n=fields.n,
        stop=tuple(fields.stop),
        include_stop=fields.include_stop_str_in_output,
        skip_special_tokens=fields.skip_special_tokens,
        priority=fields.priority,
        salt=hashlib.blake2b(salt.encode(), digest_size=16).digest() if salt else b"",
        min_tokens=fields.min_tokens,
        continuing=continuing,
        discard=discard,
        arrived=arrived,
    )


def head(service: Service, prefix: str, kind: str) -> dict[str, Any]:
    """The fields that body and chunks of one answer begin with."""
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": service.model,
        "system_fingerprint": service.fingerprint,
    }


async def whole(request: Request, answers: Answers) -> list[Delta]:
    """Every answer complete. Raises ApplianceError, and ClientDisconnect when nobody waits."""
    watch = asyncio.create_task(close_when_gone(request.receive, answers))
    try:
        deltas = await answers.whole()
        if answers.closed:
            raise ClientDisconnect
        return deltas
    finally:
        watch.cancel()
        answers.close()
        note(request.scope, **answers.summary())


def json_response(
    body: Mapping[str, Any], headers: Mapping[str, str], status: int = 200
) -> Response:
    """A JSON response, text as it is."""
    return Response(
        json.dumps(body, ensure_ascii=False, separators=(",", ":")),
        status_code=status,
        headers=headers,
        media_type="application/json",
    )
