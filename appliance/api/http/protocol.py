"""HTTP/1.1 by httptools: a connection's limits in bytes and time, and errors of the API's shape.

An offer to change to another protocol is ignored, as RFC 9110, 7.8 allows: stock Java clients offer
HTTP/2 with every request, and send its body in HTTP/1.1 all the same.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from appliance.api.http.connections import Connections
from appliance.errors import ApplianceError, bad_request, unavailable

MAX_HEADER_BYTES = 64 * 2**10
FRAMING = 16  # bytes around each byte of a body: chunks of one byte each take 5
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
# after a client has ended its side; then the last of them again and again
PROBE_SECONDS = (0.05, 0.2, 1.0, 5.0)


class Refused(Exception):
    """Stops the parser."""


class HttpProtocol(HttpToolsProtocol):
    """A connection. What is not HTTP, too long or too slow is answered 400, 431 or 408.

    httptools takes what follows the headers of an offer for another protocol's. So it is given the
    same headers again without the offer, and all that follows them.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        others: Connections,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._others = others
        self._header_bytes = 0  # parsed
        self._received = 0  # read of a request, its framing included
        self._body_bytes = 0
        self._in_headers = True
        self._offered = False  # to change the protocol, by the request whose headers are read
        self._arriving = False  # whether part of a request has come and its end has not
        self._begun = 0.0
        self._arrival: asyncio.TimerHandle | None = None
        self._half_closed: asyncio.TimerHandle | None = None
        self._fault: ApplianceError | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if not self._others.opened(self):
            self._answer(unavailable("Too many connections are open.", "too_many_connections", 1))
            return
        # uvicorn begins to count when an answer has ended: a client that never says a word has
        # none
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def connection_lost(self, exc: Exception | None) -> None:
        self._others.closed(self)
        self._unset_keepalive_if_required()
        for timer in (self._arrival, self._half_closed):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._received += len(data)
        if self._in_headers and self._received > MAX_HEADER_BYTES + len(data):
            self._fault = _headers_too_large()  # a header that never ends
            self.send_400_response("")
            return
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self.send_400_response("")
            return
        # what a client puts between the bytes of a body, such as extensions of chunks
        allowed = 2 * MAX_HEADER_BYTES + FRAMING * self._body_bytes
        if self._arriving and not self._in_headers and self._received > allowed + len(data):
            self.send_400_response("")

    def _parse(self, data: bytes) -> None:
        """Feed the parser. Raises HttpParserError."""
        rest = memoryview(data)
        while True:
            try:
                self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as pause:
                if not self._offered:  # CONNECT, which has been answered
                    return
                rest = rest[pause.args[0] :]
                self._ignore_offer()
            else:
                return

    def _ignore_offer(self) -> None:
        """Begin the request again that offers another protocol, as if it did not."""
        begun, received, method = self._begun, self._received, self.scope["method"]
        version = self.parser.get_http_version()
        head = [b"%s %s HTTP/%s\r\n" % (method.encode(), self.url, version.encode())]
        head += [b"%s: %s\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        self._offered = False
        self.parser = _parser(self)
        self.parser.feed_data(b"".join([*head, b"\r\n"]))
        self._begun, self._received = begun, received

    def eof_received(self) -> bool:  # type: ignore[override]
        """A client that has said all it had to say still gets its answer."""
        cycle = self.cycle
        if cycle is None or self._arriving or cycle.response_complete or self.scheme == "https":
            return False  # by TLS, which ends for both sides at once, nothing could be sent
        cycle.keep_alive = False
        self._probe(0)
        return True

    def close_idle(self) -> None:
        """Close the connection in favour of another one."""
        if not self.transport.is_closing():
            self.transport.close()

    def on_message_begin(self) -> None:
        self._in_headers = self._arriving = True
        self._header_bytes = self._received = self._body_bytes = 0
        self._begun = self.loop.time()
        if self._arrival is None:
            self._arrival = self.loop.call_later(self._others.read_seconds, self._check_arrival)
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        if self._in_headers:  # what comes after a body changes nothing any more
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        method = self.parser.get_method()
        if self.parser.should_upgrade() and method != b"CONNECT":
            self.scope["method"] = method.decode()
            self._offered = True
            return
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            # RFC 9112, 3.2
            self._fault = bad_request(
                "A request of HTTP/1.1 has exactly one Host header.", None, "invalid_http"
            )
            raise Refused
        self._in_headers = False
        self._others.at_work(self)
        if not self.url.startswith(b"/") and method != b"CONNECT":
            self.url = _with_path(self.url)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._offered:
            return
        self._arriving = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:
            self._others.at_rest(self)

    def send_400_response(self, msg: str) -> None:
        fault = self._fault or bad_request(
            "This is not a valid HTTP request.", None, "invalid_http"
        )
        self._answer(fault)

    def _answer(self, fault: ApplianceError) -> None:
        """Refuse what has come, and close."""
        if self.transport.is_closing():
            return
        cycle = self.cycle
        unanswered = cycle is None or cycle.response_complete
        if not unanswered and not self._in_headers:  # the last of several requests
            unanswered = not cycle.response_started and not self.pipeline
        if unanswered:
            content = json.dumps(fault.body()).encode()
            headers = {
                "content-type": "application/json",
                "content-length": str(len(content)),
                **fault.headers,
                "connection": "close",
            }
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            self.transport.write(STATUS_LINE[fault.status] + lines.encode() + b"\r\n" + content)
        self.transport.close()  # and an answer that is under way is cut, not mixed with this one

    def _check_arrival(self) -> None:
        """Close the connection if a request comes in too slowly."""
        self._arrival = None
        if self.transport.is_closing() or not self._arriving:
            return
        others, now = self._others, self.loop.time()
        if self.flow.read_paused:  # it is not the client who is slow
            self._begun = now
        allowed = others.read_seconds + self._received / others.BYTES_A_SECOND
        left = self._begun + allowed - now
        if left > 0:
            self._arrival = self.loop.call_later(left, self._check_arrival)
            return
        self._answer(
            ApplianceError(
                f"The request did not come in within {allowed:.0f} seconds.",
                status=408,
                code="request_timeout",
            )
        )

    def _probe(self, place: int) -> None:
        """Find out whether a client that ended its side is still there.

        Both a client that has left and one that only sends no more look like this. Something has to
        be sent for the former to show, and before an answer begins that is an interim response.
        """
        cycle = self.cycle
        if self.transport.is_closing() or cycle.response_complete:
            return
        if (
            not cycle.response_started
            and not self.pipeline
            and cycle.scope["http_version"] == "1.1"
        ):
            self.transport.write(INTERIM)
        place = min(place, len(PROBE_SECONDS) - 1)
        self._half_closed = self.loop.call_later(PROBE_SECONDS[place], self._probe, place + 1)

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:
            self._fault = _headers_too_large()
            raise Refused


def _with_path(url: bytes) -> bytes:
    """A whole URL in place of a path may have none (RFC 9112, 3.2.2)."""
    parsed = httptools.parse_url(url)
    path: bytes | None = parsed.path  # whatever its type says
    if path is not None:
        return url
    return b"/" + (b"?" + parsed.query if parsed.query else b"")


def _parser(protocol: HttpProtocol) -> httptools.HttpRequestParser:
    """As uvicorn makes it: what follows a `Connection: close` is left unread, and no fault."""
    parser = httptools.HttpRequestParser(protocol)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser


def _headers_too_large() -> ApplianceError:
    return ApplianceError(
        f"The request's headers are larger than {MAX_HEADER_BYTES} bytes.",
        status=431,
        code="headers_too_large",
    )
