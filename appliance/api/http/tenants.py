"""Who asks: which keys belong together, what they may use, and what their caches are known by."""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from starlette.types import Scope

from appliance.api.http.allowance import Allowance
from appliance.config.api_keys import key_digest
from appliance.config.schema import LimitsConfig, ServerConfig
from appliance.errors import bad_request, forbidden, rate_limited, unauthorized
from appliance.secrecy import Secrecy


class Tenant:
    """Some keys that are limited together, or everybody where no keys are asked for."""

    def __init__(self, name: str, limits: LimitsConfig) -> None:
        self.name = name
        self._priority = limits.priority or []
        self._concurrent = limits.concurrent
        self._requests = _allowance(limits.requests_per_minute)
        self._tokens = _allowance(limits.tokens_per_minute)
        self._routes = limits.routes
        self._running = 0

    def check_route(self, path: str) -> None:
        """Raise ApplianceError 403 for a route that is not this tenant's to ask."""
        if self._routes is None:
            return
        for route in self._routes:
            if path == route or (route.endswith("*") and path.startswith(route[:-1])):
                return
        raise forbidden("This API key may not ask for this route.")

    def check_priority(self, priority: int) -> None:
        """Raise ApplianceError 400 for a priority that is not this tenant's to ask for."""
        least, greatest = self._priority
        if not least <= priority <= greatest:
            raise bad_request(
                f"'priority' must be from {least} to {greatest} for this API key.",
                "priority",
                "invalid_value",
            )

    @contextmanager
    def request(self) -> Iterator[None]:
        """One more request, while it lasts. Raises ApplianceError 429."""
        if self._concurrent is not None and self._running >= self._concurrent:
            raise rate_limited(
                f"{self._concurrent} requests of this API key are being answered already.", 1
            )
        for allowance, what in ((self._requests, "requests"), (self._tokens, "tokens")):
            wait = 0.0 if allowance is None else allowance.wait()
            if allowance is not None and wait > 0:
                raise rate_limited(
                    f"This API key may use {allowance.per_minute} {what} a minute.",
                    math.ceil(wait),
                )
        if self._requests is not None:
            self._requests.take(1)
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    def charge(self, tokens: int) -> None:
        """Count tokens of a prompt or of an answer."""
        if self._tokens is not None:
            self._tokens.take(tokens)

    def headers(self) -> dict[str, str]:
        """What is left, in the headers that OpenAI has for it."""
        told = {}
        for allowance, what in ((self._requests, "requests"), (self._tokens, "tokens")):
            if allowance is not None:
                told[f"x-ratelimit-limit-{what}"] = str(allowance.per_minute)
                told[f"x-ratelimit-remaining-{what}"] = str(allowance.remaining)
                told[f"x-ratelimit-reset-{what}"] = f"{allowance.reset_seconds:.3f}s"
        if self._concurrent is not None:
            told["x-ratelimit-limit-concurrent"] = str(self._concurrent)
            told["x-ratelimit-remaining-concurrent"] = str(self._concurrent - self._running)
        return told


def _allowance(per_minute: int | None) -> Allowance | None:
    return None if per_minute is None else Allowance(per_minute)


@dataclass(slots=True, frozen=True)
class Caller:
    """Who sent a request; `owner` is what media names and caches of theirs are kept apart by."""

    tenant: Tenant
    owner: bytes


class Tenants:
    """All that may call, by the SHA-256 of their keys."""

    def __init__(self, server: ServerConfig, secrecy: Secrecy) -> None:
        self._secrecy = secrecy
        self._known: list[tuple[bytes, Caller]] = []
        for name, config in server.tenants.items():
            limits = replace(
                server.limits,
                **{
                    limit: value
                    for limit in LimitsConfig.__dataclass_fields__
                    if (value := getattr(config, limit)) is not None
                },
            )
            together = Caller(Tenant(name, limits), hashlib.sha256(name.encode()).digest())
            self._known += [(key_digest(entry), together) for entry in config.keys]
        for entry in server.api_keys:
            digest = key_digest(entry)
            tenant = Tenant(f"key {digest.hex()[:8]}", server.limits)
            self._known.append((digest, Caller(tenant, digest)))
        self._everybody = Tenant("everybody", server.limits)

    def __bool__(self) -> bool:
        """Whether a key is asked for."""
        return bool(self._known)

    def caller(self, scope: Scope) -> Caller:
        """Who sends a request. Raises ApplianceError 401 for a key that is needed and not known."""
        given = _authorization(scope)
        if not self._known:
            owner = b"" if given is None else hashlib.sha256(given[1]).digest()
            return Caller(self._everybody, owner)
        if given is None:
            raise unauthorized("An API key is needed: send 'Authorization: Bearer <key>'.")
        scheme, key = given
        digest, found = hashlib.sha256(key).digest(), None
        for known, caller in self._known:  # all of them: time tells nothing of which it is
            if hmac.compare_digest(known, digest):
                found = found or caller
        if found is None or scheme != b"bearer":
            raise unauthorized("The API key is not known here.")
        self._secrecy.learn(key.decode("latin-1"))  # of a digest it was not known before
        return found


def _authorization(scope: Scope) -> tuple[bytes, bytes] | None:
    """Scheme in lower case and credentials of the first such header, else Anthropic's for a key."""
    headers: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name, value)
    if b"authorization" in headers:
        scheme, _, key = headers[b"authorization"].partition(b" ")
        return scheme.lower(), key.strip()
    if b"x-api-key" in headers:
        return b"bearer", headers[b"x-api-key"].strip()
    return None


def caller_of(scope: Scope) -> Caller:
    """Who sent a request that was let in."""
    caller = scope["appliance.caller"]
    assert isinstance(caller, Caller)
    return caller
