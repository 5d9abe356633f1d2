"""A request's JSON body: bounded while it is read, bounded in depth, and never trusted."""

from __future__ import annotations

import asyncio
import json
from json.decoder import JSONArray, JSONObject  # type: ignore[attr-defined]
from json.scanner import py_make_scanner  # type: ignore[attr-defined]
from typing import Any, NoReturn

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request

from appliance.errors import ApplianceError, bad_request, body_too_large, wrong_content_type
from engine.nesting import nests_deeper

MAX_DEPTH = 64
# Values of a body, by the characters between them. C reads the fewer ones within milliseconds, and
# without giving way to anything else; more are read by Python, slower and giving way all the time.
AT_ONCE = 300_000
MOST_VALUES = 4_000_000
MOST_KEYS = 50_000  # of one object in such a body
WEIGHTS = {b",": 1, b":": 1, b'"': 1, b"[": 2, b"{": 2}
UNTYPED = ("", "application/x-www-form-urlencoded")
OF_BROWSERS = ("origin", "sec-fetch-site")
LINGER_SECONDS = 5.0
LINGER_BYTES = 64 * 2**20


async def read_body(request: Request, limit: int) -> bytearray:
    """The body, counted while it comes in. Raises ApplianceError 413 or 415, ClientDisconnect."""
    _check_content_type(request.headers)
    return await read_bounded(request, limit)


async def read_bounded(request: Request, limit: int) -> bytearray:
    """A body of whatever type. Raises ApplianceError 413, ClientDisconnect."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        await _discard(request)
        raise body_too_large(limit)
    body = bytearray()
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > limit:
            body.clear()
            if more:
                await _discard(request)
            raise body_too_large(limit)
        if not more:
            return body


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


def _check_content_type(headers: Headers) -> None:
    """Raises ApplianceError 415 for a type that is not JSON's.

    What curl says of any body by itself, or nothing, is taken for JSON, but from no browser: there
    pages of others can send such a body without being asked first (the Fetch standard, CORS).
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
        return
    if kind in UNTYPED and not any(name in headers for name in OF_BROWSERS):
        return
    raise wrong_content_type(kind[:100] or None)


def parse_json(data: bytes | bytearray) -> dict[str, Any]:
    """A JSON object of at most MAX_DEPTH levels. Raises ApplianceError 400."""
    try:
        body = _decoder(data).decode(data.decode(json.detect_encoding(data), "surrogatepass"))
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
    if nests_deeper(body, MAX_DEPTH):
        raise _too_deep()
    return body


def _decoder(data: bytes | bytearray) -> json.JSONDecoder:
    """What reads a body of so many values. Raises ApplianceError where there are too many."""
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    if len(data) <= AT_ONCE // 2:
        return decoder
    values = sum(weight * data.count(mark) for mark, weight in WEIGHTS.items())
    if values > MOST_VALUES:
        raise _too_many_values()
    if values > AT_ONCE:
        decoder.object_pairs_hook = _small_object
        decoder.parse_object = JSONObject  # type: ignore[attr-defined]
        decoder.parse_array = JSONArray  # type: ignore[attr-defined]
        decoder.scan_once = py_make_scanner(decoder)  # type: ignore[attr-defined]
    return decoder


def _small_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose making takes no time worth mentioning. Raises ApplianceError."""
    if len(pairs) > MOST_KEYS:
        raise _too_many_values()
    return dict(pairs)


def _too_many_values() -> ApplianceError:
    return bad_request(
        "The body holds more values than any request needs.", None, "body_too_complex"
    )


def _no_constant(name: str) -> NoReturn:
    raise invalid_json(f"{name} is not a JSON number")


def invalid_json(why: str) -> ApplianceError:
    """400 for bytes that are not JSON."""
    return bad_request(f"The body is not valid JSON: {why}.", None, "invalid_json")


def _too_deep() -> ApplianceError:
    return bad_request(
        f"The body is nested deeper than {MAX_DEPTH} levels.", None, "nested_too_deep"
    )
