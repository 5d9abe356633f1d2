"""A server of two ranks, as a user starts it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import openai
import psutil
import pytest

from tests.engine.parallel.test_processes import gone
from tests.serving.conftest import Server, serving

Folder = Callable[[str], Path]
ASK = [{"role": "user", "content": "What is the capital of France?"}]


def overrides(folder: Path) -> list[str]:
    told = [f"model.path={folder}", "model.name=tiny", "media.image.limit=0", "engine.threads=1"]
    return [*told, "parallelism.tensor=2"]


def children(server: Server) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children(recursive=True)


def rank(server: Server, number: int) -> psutil.Process:
    """Both ranks are the two largest children, and rank 1 was started first."""
    largest = sorted(children(server), key=lambda child: child.memory_info().rss)[-2:]
    return (
        max(largest, key=lambda child: child.pid)
        if number == 0
        else min(largest, key=lambda child: child.pid)
    )


def stream_of(server: Server) -> openai.Stream[openai.types.chat.ChatCompletionChunk]:
    stream = server.client.chat.completions.create(
        model="tiny", messages=ASK, stream=True, max_tokens=2000, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    return stream


def test_a_killed_rank_ends_streams_with_an_error_and_the_server_with_a_reason(
    checkpoint: Folder,
) -> None:
    with serving(*overrides(checkpoint("llama"))) as server:
        processes = children(server)
        stream = stream_of(server)
        os.kill(rank(server, 1).pid, signal.SIGKILL)
        with pytest.raises(openai.APIError):
            for _ in stream:
                pass
        assert server.process.wait(60) != 0
        assert "rank 1 of 2 ended unexpectedly (SIGKILL)" in server.output
        assert gone(processes)


def test_a_killed_server_leaves_no_process_behind(checkpoint: Folder) -> None:
    with serving(*overrides(checkpoint("llama"))) as server:
        stream_of(server)
        processes = children(server)
        assert len(processes) >= 2
        server.process.kill()
        assert gone(processes)


def test_a_server_killed_while_loading_leaves_no_process_behind(checkpoint: Folder) -> None:
    with serving(*overrides(checkpoint("llama")), ready=False) as server:
        deadline = time.monotonic() + 30
        while len(children(server)) < 3 and time.monotonic() < deadline:  # with a resource tracker
            time.sleep(0.05)
        time.sleep(1)
        processes = children(server)
        assert len(processes) >= 2
        server.process.kill()
        assert gone(processes, 20)


def test_a_server_told_to_stop_ends_all_ranks_and_with_0(checkpoint: Folder) -> None:
    with serving(*overrides(checkpoint("llama"))) as server:
        answer = server.client.chat.completions.create(model="tiny", messages=ASK, max_tokens=5)
        assert answer.usage is not None
        assert answer.usage.completion_tokens > 0
        assert "2 processes" in server.output
        processes = children(server)
        assert server.stop() == 0
        assert gone(processes)
        assert "Traceback" not in server.output
