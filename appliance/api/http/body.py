"""A request's JSON body: bounded while it is read, bounded in depth, and never trusted."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect, Request

from appliance.errors import ApplianceError, bad_request, body_too_large, wrong_content_type

MAX_DEPTH = 64
LINGER_SECONDS = 5.0
LINGER_BYTES = 64 * 2**20


async def read_json(request: Request, limit: int) -> dict[str, Any]:
    """The body as an object. Raises ApplianceError 400, 413 or 415, and ClientDisconnect."""
    _check_content_type(request.headers.get("content-type"))
    return parse_json(await read_bytes(request, limit))


async def read_bytes(request: Request, limit: int) -> bytes:
    """The body, counted while it comes in. Raises ApplianceError 413."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        await _discard(request)
        raise body_too_large(limit)
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece = message.get("body", b"")
        size += len(piece)
        if size > limit:
            pieces.clear()
            if message.get("more_body", False):
                await _discard(request)
            raise body_too_large(limit)
        pieces.append(piece)
        if not message.get("more_body", False):
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def _discard(request: Request) -> None:
    """Take more of an unwanted body, so that the client reads the answer instead of a reset."""
    taken = 0
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            while taken < LINGER_BYTES:
                message = await request.receive()
                taken += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return


def _check_content_type(given: str | None) -> None:
    kind = (given or "").partition(";")[0].strip().lower()
    if kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
        return
    raise wrong_content_type(kind[:100] or None)


def parse_json(data: bytes) -> dict[str, Any]:
    """A JSON object of at most MAX_DEPTH levels. Raises ApplianceError 400."""
    try:
        body = json.loads(data, parse_constant=_no_constant)
    except json.JSONDecodeError as fault:
        raise invalid_json(f"at line {fault.lineno}, column {fault.colno}") from None
    except RecursionError:
        raise _too_deep() from None
    except UnicodeDecodeError:
        raise invalid_json("it is not UTF-8") from None
    except ValueError:
        raise invalid_json("a number is too long") from None
    if not isinstance(body, dict):
        raise bad_request("The body must be a JSON object.", None, "invalid_type")
    _check_depth(body)
    return body


def _no_constant(name: str) -> NoReturn:
    raise invalid_json(f"{name} is not a JSON number")


def invalid_json(why: str) -> ApplianceError:
    """400 for bytes that are not JSON."""
    return bad_request(f"The body is not valid JSON: {why}.", None, "invalid_json")


def _too_deep() -> ApplianceError:
    return bad_request(
        f"The body is nested deeper than {MAX_DEPTH} levels.", None, "nested_too_deep"
    )


def _check_depth(body: dict[str, Any]) -> None:
    level: list[Any] = [body]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise _too_deep()
