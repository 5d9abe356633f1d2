"""Whatever fits the API's own description, and much that does not: refused or answered, no fault.

Bodies are made by schemathesis of `/openapi.json`, and sent as they are.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.core import NotSet

from appliance.api.reference.operations import JSON, OPERATIONS
from tests.api.asgi_client import AsgiClient, Reply
from tests.api.conftest import Kitchen

Cook = Callable[..., Kitchen]

EXAMPLES = 40  # of each operation and kind
QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
BODIES = sorted(
    path for (_, path), told in OPERATIONS.items() if told.bodies and told.takes == JSON
)
# what the model of these tests answers; others are for models of other kinds, and refuse it, or
# their bodies are contradictory more often than not
ANSWERED = {path for path in BODIES if path.startswith(("/v1/chat", "/v1/compl", "/v1/messages"))}
ANSWERED |= {"/tokenize", "/detokenize", "/v1/responses"}


async def ask(client: AsgiClient, path: str, body: Any) -> Reply:
    encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    return await client.ask("POST", path, body=encoded, headers=headers)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=str)
@pytest.mark.parametrize("path", BODIES)
def test_no_body_is_a_fault_of_ours(cook: Cook, path: str, mode: GenerationMode) -> None:
    with asyncio.Runner() as runner:
        kitchen = cook()
        told = runner.run(kitchen.client.ask("GET", "/openapi.json")).json
        operation = schemathesis.openapi.from_dict(told)[path]["POST"]
        statuses = set()

        @seed(1)
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=QUIET,
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case: schemathesis.Case) -> None:
            body = b"" if isinstance(case.body, NotSet) else case.body
            if isinstance(body, dict) and "model" in body and isinstance(body["model"], str):
                body = {**body, "model": "tiny"}  # any other is 404, and nothing else is seen
            reply = runner.run(ask(kitchen.client, path, body))
            statuses.add(reply.status)
            assert str(reply.status) in told["paths"][path]["post"]["responses"], reply.body
            assert reply.status < 500, reply.body
            if reply.status != 200:
                assert reply.error["message"]

        check()
        assert 200 in statuses or mode is GenerationMode.NEGATIVE or path not in ANSWERED
        assert 400 in statuses or mode is GenerationMode.POSITIVE
