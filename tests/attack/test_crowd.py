"""A crowd: who stays gets what it would have got alone, and nothing is left of who went."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.attack.crowd import Crowd
from tests.attack.wire import Wire, completion, until
from tests.serving.conftest import Server, metric, serving

STREAMS = 128


@pytest.fixture(scope="module")
def server(checkpoint: Callable[[str], Path]) -> Iterator[Server]:
    told = [f"model.path={checkpoint('llama')}", "model.name=tiny", "engine.threads=1"]
    with serving(*told, "media.image.limit=0", "engine.max_sequences=32") as server:
        yield server


def asked(number: int) -> dict[str, Any]:
    return completion(
        prompt=f"Count {number % 16} again",
        max_tokens=20 + number % 16 * 6,
        ignore_eos=True,
        stream=True,
    )


def answers_alone(server: Server) -> dict[int, bytes]:
    """What each of the sixteen requests gets when there is no other."""
    alone = Crowd(server.base_url, seed=0)
    while missing := [number for number in range(16) if number not in alone.answers]:
        alone.seed += 1  # some clients of a seed leave
        for number in missing:
            asyncio.run(alone.ask(number, asked(number)))
    return alone.answers


def said(body: bytes) -> str:
    """The text of a stream."""
    events = [event for event in body.decode().split("\n\n") if event.startswith("data: {")]
    return "".join(json.loads(event[6:])["choices"][0]["text"] for event in events)


def at_rest(server: Server) -> bool:
    running = ("kv_pages_used", "num_requests_running", "num_requests_waiting")
    return all(metric(server, f"appliance_{name}") == 0 for name in running)


def test_each_remaining_answer_is_that_of_its_single_run(server: Server) -> None:
    alone = answers_alone(server)
    crowd = Crowd(server.base_url, seed=7)
    asyncio.run(crowd.rush([asked(number) for number in range(STREAMS)], STREAMS))
    assert crowd.left > STREAMS // 8
    assert len(crowd.answers) + crowd.left == STREAMS
    assert len(crowd.answers) > STREAMS // 3
    for number, body in crowd.answers.items():
        assert said(body) == said(alone[number % 16])
    assert len({said(body) for body in crowd.answers.values()}) > 8
    assert until(lambda: at_rest(server))
    assert metric(server, "appliance_requests_aborted_total") > 0


def test_descriptors_are_given_back(server: Server) -> None:
    process = psutil.Process(server.process.pid)
    family = [process, *process.children(recursive=True)]
    for seed in (11, 12):  # the first opens what is opened once
        before = [one.num_fds() for one in family]
        crowd = Crowd(server.base_url, seed)
        asyncio.run(crowd.rush([asked(number) for number in range(60)], 60))
        assert until(lambda: at_rest(server))
    assert until(lambda: [one.num_fds() for one in family] <= before, 5)


def test_a_server_that_may_open_few_files_still_serves(
    checkpoint: Callable[[str], Path],
) -> None:
    """More connections than descriptors: the server keeps as many as it can and goes on."""
    told = [f"model.path={checkpoint('llama')}", "model.name=tiny", "engine.threads=1"]
    with serving(*told, "media.image.limit=0", files=256) as server:
        assert "at most 128 connections" in server.output
        held = [Wire(server.base_url) for _ in range(400)]
        try:
            assert [server.status("/livez") for _ in range(10)] == [200] * 10
        finally:
            for client in held:
                client.close()
        assert server.status("/readyz") == 200
    assert "Traceback" not in server.output
