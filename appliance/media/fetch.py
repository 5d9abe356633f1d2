"""Media from the hosts that a policy allows, within its time and size."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import ssl
from collections.abc import Sequence
from dataclasses import dataclass

import httpcore2

from appliance import __version__
from appliance.errors import ApplianceError, media_fetch_failed, media_timeout, media_too_large
from appliance.media.content_encoding import Decoder, decoder_for
from appliance.media.dial import DIAL, CheckedDialler, Dial, ResolveLater, resolve_name
from appliance.media.freshness import Fetched, fresh_seconds
from appliance.media.host import is_address
from appliance.media.policy import MediaPolicy, Target, check_addresses, read_redirect

logger = logging.getLogger("appliance.media")

MAX_CONNECTIONS = 256
IDLE_CONNECTIONS = 32
IDLE_SECONDS = 15.0
ATTEMPTS = 3  # of one hop, while there is no answer
PAUSE_SECONDS = 0.05  # before the second attempt, doubled before the third
REDIRECTS = frozenset({301, 302, 303, 307, 308})
FAILURES = (httpcore2.NetworkError, httpcore2.ProtocolError)
HEADERS = (
    (b"User-Agent", f"model-appliance/{__version__}".encode()),
    (b"Accept", b"*/*"),
    (b"Accept-Encoding", b"identity"),
)


class Fetcher:
    """Fetches items over connections that all of them share. Nothing comes from the environment.

    `ca_file` holds the certificates to trust instead of the system's.
    """

    def __init__(self, *, ca_file: str | None = None, resolve: ResolveLater = resolve_name) -> None:
        self._resolve = resolve
        self._trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if ca_file is None:
            self._trust.load_default_certs()
        else:
            self._trust.load_verify_locations(ca_file)
        self._pools: dict[str | None, httpcore2.AsyncConnectionPool] = {}

    async def fetch(self, target: Target, policy: MediaPolicy, *, param: str) -> Fetched:
        """What `read_url` made of a URL, fetched. Raises ApplianceError.

        All of it, from resolving the name to the last byte and over all redirects and retries,
        has to fit into the policy's time; every redirect passes the whole check again.
        """
        deadline = asyncio.get_running_loop().time() + policy.timeout
        item = _Item(policy, param, deadline)
        try:
            async with asyncio.timeout_at(deadline):
                return await self._follow(target, item)
        except (TimeoutError, httpcore2.TimeoutException):
            item.log(target, "it took too long")
            raise media_timeout(policy.modality, policy.timeout, param) from None

    async def close(self) -> None:
        """Close every connection."""
        for pool in self._pools.values():
            await pool.aclose()
        self._pools.clear()

    async def _follow(self, target: Target, item: _Item) -> Fetched:
        fresh = math.inf
        for hop in range(1, item.policy.max_redirects + 3):  # read_redirect refuses the last
            target = await self._checked(target, item)
            try:
                response = await self._ask(target, item)
                fresh = min(fresh, fresh_seconds(response.headers))
                try:
                    if response.status not in REDIRECTS:
                        return Fetched(await item.content(target, response), fresh)
                finally:
                    await response.aclose()
            except (*FAILURES, httpcore2.ProxyError) as failure:
                item.log(target, type(failure).__name__)
                raise item.failed("its host could not be reached, or broke off", 502) from None
            location = _only(response, b"location")
            if location is None:
                item.log(target, f"status {response.status} without one Location")
                raise item.failed("its host sent a redirect that leads nowhere", 502)
            target = read_redirect(target, location, hop, item.policy, param=item.param)
        raise AssertionError("redirects were not counted")

    async def _checked(self, target: Target, item: _Item) -> Target:
        addresses: Sequence[str] = ()
        if not is_address(target.host) and item.policy.proxy is None:
            with contextlib.suppress(OSError):  # none are found
                addresses = await self._resolve(target.host)
        return check_addresses(target, item.policy, lambda _: addresses, param=item.param)

    async def _ask(self, target: Target, item: _Item) -> httpcore2.Response:
        """The head of the answer, asked for again while there is none."""
        pool = self._pool(item.policy.proxy)
        DIAL.set(_dial(target, item))
        bracketed = item.policy.proxy is not None and ":" in target.host
        request = httpcore2.Request(
            b"GET",
            httpcore2.URL(
                scheme=target.scheme.encode(),
                host=(f"[{target.host}]" if bracketed else target.host).encode(),
                port=target.port,
                target=target.path.encode(),
            ),
            headers=[(b"Host", target.authority.encode()), *HEADERS],
            extensions={"sni_hostname": target.host},
        )
        for attempt in range(ATTEMPTS - 1):
            try:
                return await pool.handle_async_request(request)
            except FAILURES:
                await asyncio.sleep(PAUSE_SECONDS * 2**attempt)
        return await pool.handle_async_request(request)

    def _pool(self, proxy: str | None) -> httpcore2.AsyncConnectionPool:
        if proxy not in self._pools:
            self._pools[proxy] = httpcore2.AsyncConnectionPool(
                ssl_context=self._trust,
                proxy=None if proxy is None else httpcore2.Proxy(proxy),
                max_connections=MAX_CONNECTIONS,
                max_keepalive_connections=IDLE_CONNECTIONS,
                keepalive_expiry=IDLE_SECONDS,
                network_backend=CheckedDialler(),
            )
        return self._pools[proxy]


@dataclass(slots=True, frozen=True)
class _Item:
    """One item on its way in."""

    policy: MediaPolicy
    param: str
    deadline: float

    async def content(self, target: Target, response: httpcore2.Response) -> bytes:
        """The body of an answer, no more of it than allowed before and after decoding."""
        if response.status != 200:
            self.log(target, f"status {response.status}")
            status = 424 if 400 <= response.status < 500 else 502
            raise self.failed(f"its host answered with status {response.status}", status)
        declared = _only(response, b"content-length") or ""
        if declared.isdecimal() and int(declared) > self.policy.max_bytes:
            raise self.too_large()
        try:
            decoder = decoder_for(_only(response, b"content-encoding") or "")
        except ValueError:
            self.log(target, "several content encodings")
            raise self.failed("its host encoded it more than once", 502) from None
        try:
            return await self._decoded(response, decoder)
        except ValueError:
            self.log(target, "damaged content encoding")
            raise self.failed("its content encoding is damaged", 502) from None

    async def _decoded(self, response: httpcore2.Response, decoder: Decoder) -> bytes:
        content, received = bytearray(), 0
        async for data in response.aiter_stream():
            received += len(data)
            if received > self.policy.max_bytes:
                raise self.too_large()
            for piece in decoder.feed(data):
                content += piece
                if len(content) > self.policy.max_bytes:
                    raise self.too_large()
                if len(piece) > len(data):  # inflating keeps others waiting
                    await asyncio.sleep(0)
        decoder.finish()
        return bytes(content)

    def failed(self, what: str, status: int) -> ApplianceError:
        return media_fetch_failed(
            f"The {self.policy.modality} could not be fetched: {what}.", self.param, status
        )

    def too_large(self) -> ApplianceError:
        return media_too_large(self.policy.modality, self.policy.max_bytes, self.param)

    def log(self, target: Target, reason: str) -> None:
        host = f"{target.scheme}://{target.authority}"
        logger.info("media not fetched", extra={"fields": {"host": host, "reason": reason}})


def _dial(target: Target, item: _Item) -> Dial:
    proxy = item.policy.proxy
    if proxy is None:
        return Dial(target.host, target.addresses, item.deadline)
    host = httpcore2.URL(proxy).host.decode()
    return Dial(host, (host,), item.deadline)


def _only(response: httpcore2.Response, name: bytes) -> str | None:
    """The value of a header that may occur once; None where it does not, or is not text."""
    values = {value for key, value in response.headers if key.lower() == name}
    if len(values) != 1:
        return None
    try:
        return values.pop().decode()
    except UnicodeDecodeError:
        return None
