"""Every failure has a name: one exception carries status and fields of OpenAI's error body."""

from __future__ import annotations

from collections.abc import Mapping


class ApplianceError(Exception):
    """What a client is told; `message` is in our own words, `param` a JSON path into the body."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        type: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.type = type
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def at(self, param: str) -> ApplianceError:
        """The same of another field."""
        return ApplianceError(
            self.message,
            status=self.status,
            type=self.type,
            code=self.code,
            param=param,
            headers=self.headers,
        )

    def body(self) -> dict[str, dict[str, str | None]]:
        """The response body, `{"error": {"message", "type", "param", "code"}}`."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


def bad_request(message: str, param: str | None, code: str | None = None) -> ApplianceError:
    """400: the request is malformed, contradictory, or asks for what this server does not do."""
    return ApplianceError(message, param=param, code=code)


def media_not_allowed(message: str, param: str) -> ApplianceError:
    """400: the recipe's media policy refuses the item."""
    return ApplianceError(message, param=param, code="media_not_allowed")


def media_undecodable(message: str, param: str) -> ApplianceError:
    """422: the item's bytes are here but cannot be decoded."""
    return ApplianceError(message, status=422, param=param, code="media_undecodable")


def media_too_large(modality: str, max_bytes: int, param: str) -> ApplianceError:
    """400: the item has more bytes than the recipe allows."""
    return ApplianceError(
        f"The {modality} is larger than the limit of {max_bytes} bytes.",
        param=param,
        code="media_too_large",
    )


def media_fetch_failed(message: str, param: str, status: int) -> ApplianceError:
    """424: the item's origin answered that the client may not have it; 502: it failed."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return ApplianceError(message, status=status, type=kind, param=param, code="media_fetch_failed")


def media_timeout(modality: str, seconds: float, param: str) -> ApplianceError:
    """504: the item was not there in time."""
    return ApplianceError(
        f"The {modality} could not be read within {seconds:g} seconds.",
        status=504,
        type="server_error",
        param=param,
        code="media_timeout",
    )


def too_many_items(modality: str, limit: int, given: int, param: str) -> ApplianceError:
    """400: a request has more items of a modality than the recipe allows."""
    return ApplianceError(
        f"At most {limit} {modality}s may be in one request; {given} were given "
        f"(modality: {modality}).",
        param=param,
        code="too_many_items",
    )


def media_cache_miss(modality: str, param: str) -> ApplianceError:
    """400: nothing is kept under a `uuid` that came without its content."""
    return ApplianceError(
        f"No {modality} is kept under this uuid: it was never sent with this API key, or has been "
        f"evicted. Send the {modality} itself.",
        param=param,
        code="media_cache_miss",
    )


def media_uuid_conflict(param: str) -> ApplianceError:
    """409: a `uuid` came with other content than it is bound to."""
    return ApplianceError(
        "This uuid already stands for other content; take a new one.",
        status=409,
        param=param,
        code="media_uuid_conflict",
    )


def context_length_exceeded(message: str, param: str) -> ApplianceError:
    """400: prompt and answer do not fit the model or the page pool."""
    return ApplianceError(message, param=param, code="context_length_exceeded")


def unauthorized(message: str) -> ApplianceError:
    """401: no key, or one that is not known."""
    return ApplianceError(
        message,
        status=401,
        type="authentication_error",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


def forbidden(message: str) -> ApplianceError:
    """403: a known key without the right."""
    return ApplianceError(message, status=403, type="permission_error", code="route_not_allowed")


def not_found(message: str, code: str, param: str | None = None) -> ApplianceError:
    """404: no such route (`route_not_found`) or model (`model_not_found`)."""
    return ApplianceError(message, status=404, code=code, param=param)


def method_not_allowed(method: str, path: str, allowed: str) -> ApplianceError:
    """405: the route exists, but not for this method."""
    return ApplianceError(
        f"{method} is not allowed on {path}; allowed: {allowed}.",
        status=405,
        code="method_not_allowed",
        headers={"Allow": allowed},
    )


def body_too_large(limit: int, how: str = "") -> ApplianceError:
    """413: the body is longer than server.max_body_bytes."""
    body = f"request body, {how}," if how else "request body"
    return ApplianceError(
        f"The {body} is larger than the limit of {limit} bytes.",
        status=413,
        code="body_too_large",
        headers={"Connection": "close"},
    )


def wrong_content_type(given: str | None) -> ApplianceError:
    """415: the body is not declared to be JSON."""
    seen = f"not '{given}'" if given else "and none was given"
    return ApplianceError(
        f"The body must be JSON: Content-Type has to be application/json, {seen}.",
        status=415,
        code="unsupported_media_type",
    )


def overloaded(message: str, retry_after: int = 1, code: str = "queue_full") -> ApplianceError:
    """429: the queue is full; the client should come back."""
    return ApplianceError(
        message,
        status=429,
        type="rate_limit_error",
        code=code,
        headers={"Retry-After": str(retry_after)},
    )


def rate_limited(message: str, retry_after: int) -> ApplianceError:
    """429: the API key has used up what it may use for now."""
    return overloaded(message, retry_after, "rate_limit_exceeded")


def unavailable(message: str, code: str, retry_after: int = 5) -> ApplianceError:
    """503: `loading`, `draining`, or the engine is gone (`engine_dead`)."""
    return ApplianceError(
        message,
        status=503,
        type="server_error",
        code=code,
        headers={"Retry-After": str(retry_after)},
    )


def internal(request_id: str) -> ApplianceError:
    """500: our bug; the request id finds it in the log."""
    return ApplianceError(
        f"The server failed while answering. Please report request id {request_id}.",
        status=500,
        type="server_error",
        code="internal_error",
    )


def engine_failed(message: str) -> ApplianceError:
    """500: the engine ended this answer with an error, or died under it."""
    return ApplianceError(message, status=500, type="server_error", code="engine_error")
