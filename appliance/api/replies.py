"""Sending answers out: what replies of several routes have in common."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterable, Mapping
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from appliance.api.http.event_stream import close_when_gone
from appliance.api.http.exchange import note
from appliance.api.http.responses import encode
from appliance.generation.answers import Answers, Delta
from appliance.service import Service

# OpenAI's log-probability of a token that cannot come; max(FLOOR, …) gives it for NaN too
FLOOR = -9999.0


def created() -> int:
    """When an answer is made, in the seconds that OpenAI counts."""
    return int(time.time())


def head(service: Service, prefix: str, kind: str) -> dict[str, Any]:
    """The fields that body and chunks of one answer begin with."""
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "object": kind,
        "created": created(),
        "model": service.model,
        "system_fingerprint": service.fingerprint,
    }


def body_of(head: Mapping[str, Any], choices: Iterable[str], tail: Mapping[str, Any]) -> bytes:
    """A whole answer as JSON: fields, choices that are JSON already, and further fields."""
    told = b",".join([choice.encode() for choice in choices])
    parts = [encode(head)[:-1].encode(), b',"choices":[', told, b"],", encode(tail)[1:].encode()]
    return b"".join(parts)


async def whole(request: Request, answers: Answers) -> list[Delta]:
    """Every answer complete. Raises ApplianceError, and ClientDisconnect when nobody waits."""
    try:
        return await read_while_wanted(request.receive, answers)
    finally:
        note(request.scope, **answers.summary())


async def read_while_wanted(receive: Receive, answers: Answers) -> list[Delta]:
    """The same, of answers that are a part of one: nothing is noted of them."""
    watch = asyncio.create_task(close_when_gone(receive, answers))
    try:
        deltas = await answers.whole()
        if answers.closed:
            raise ClientDisconnect
        return deltas
    finally:
        watch.cancel()
        answers.close()
