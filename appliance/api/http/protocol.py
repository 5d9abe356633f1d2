"""HTTP parsing by httptools, with a limit on headers and errors of the API's shape."""

from __future__ import annotations

import json

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from appliance.errors import ApplianceError, bad_request

MAX_HEADER_BYTES = 64 * 2**10


class HeadersTooLarge(Exception):
    """Stops the parser."""


class HttpProtocol(HttpToolsProtocol):
    """A connection; what is not HTTP or has too long headers is answered 400 or 431."""

    _header_bytes = 0  # parsed
    _received = 0  # read while headers are awaited
    _in_headers = True
    _too_large = False

    def data_received(self, data: bytes) -> None:
        if self._in_headers:
            self._received += len(data)
            if self._received > MAX_HEADER_BYTES + len(data):  # a header that never ends
                self._too_large = True
                self.send_400_response("")
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        self._in_headers = True
        self._header_bytes = self._received = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_headers = False
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        if self.transport.is_closing():
            return
        fault = bad_request("This is not a valid HTTP request.", None, "invalid_http")
        if self._too_large:
            fault = ApplianceError(
                f"The request's headers are larger than {MAX_HEADER_BYTES} bytes.",
                status=431,
                code="headers_too_large",
            )
        content = json.dumps(fault.body()).encode()
        lines = [
            STATUS_LINE[fault.status],
            b"content-type: application/json\r\n",
            b"content-length: %d\r\n" % len(content),
            b"connection: close\r\n\r\n",
            content,
        ]
        self.transport.write(b"".join(lines))
        self.transport.close()

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:
            self._too_large = True
            raise HeadersTooLarge
