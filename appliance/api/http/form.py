"""A request's multipart body: bounded while it is read, and never written to a disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from typing import Any

from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from appliance.api.http.body import OF_BROWSERS, read_bounded
from appliance.api.http.content_coding import content_coding, decoded
from appliance.errors import ApplianceError, bad_request

MULTIPART = "multipart/form-data"
MOST_FIELDS = 64
LONGEST_FIELD = 1 << 16  # bytes
PIECE = 1 << 18  # bytes that are parsed at once
Aside = Callable[[Callable[[], bytearray]], Awaitable[bytearray]]
SAME = ("same-origin", "none")


async def read_form(
    request: Request, limit: int, origins: list[str], aside: Aside
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Fields and files by name; those whose names end in `[]` are lists, without it.

    `origins` are those whose pages may send forms; `aside` does what would hold up the event loop.
    Raises ApplianceError, ClientDisconnect.
    """
    _check(request.headers, origins)
    coding = content_coding(request.headers)
    body = await read_bounded(request, limit)
    if coding is not None:
        body = await aside(partial(decoded, body, coding, limit))

    async def stream() -> AsyncGenerator[bytes, None]:
        for start in range(0, len(body), PIECE):
            yield bytes(body[start : start + PIECE])
            await asyncio.sleep(0)  # others want the event loop
        yield b""

    parser = MultiPartParser(
        request.headers,
        stream(),
        max_files=1,
        max_fields=MOST_FIELDS,
        max_part_size=LONGEST_FIELD,
    )
    parser.spool_max_size = limit + 1
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, UnicodeError, ValueError) as failure:
        raise bad_request(
            f"The body is no multipart form that is taken: one file, at most {MOST_FIELDS} fields "
            f"of {LONGEST_FIELD} bytes, and a boundary that its Content-Type names.",
            None,
            "invalid_form",
        ) from failure
    try:
        return await _sorted(form)
    finally:
        await form.close()


async def _sorted(form: FormData) -> tuple[dict[str, Any], dict[str, bytes]]:
    fields: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            files[name] = await value.read()
        elif name.endswith("[]"):
            fields.setdefault(name.removesuffix("[]"), []).append(value)
        elif name in fields:
            raise bad_request(f"'{name[:100]}' is given twice.", name[:200], "invalid_value")
        else:
            fields[name] = value
    return fields, files


def _check(headers: Headers, origins: list[str]) -> None:
    """Raises ApplianceError for another type, and for a form that a page of others sends.

    Browsers send forms to anywhere without asking first (the Fetch standard, CORS).
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != MULTIPART:
        seen = f"not '{kind[:100]}'" if kind else "and none was given"
        raise ApplianceError(
            f"The body must be a form: Content-Type has to be {MULTIPART}, {seen}.",
            status=415,
            code="unsupported_media_type",
        )
    if not any(name in headers for name in OF_BROWSERS):
        return
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site in SAME or "*" in origins or origin in origins:
        return
    raise ApplianceError(
        "Pages of this origin may not send forms here: server.cors_origins does not list it.",
        status=403,
        code="origin_not_allowed",
    )
