"""What breaks breaks alone, and is said."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import time
from pathlib import Path

import openai
import psutil
import pytest

from tests.checkpoints import WRITERS
from tests.serving.conftest import Server, metric, serving

ASK = [{"role": "user", "content": "What is the capital of France?"}]


def engine_process(server: Server) -> psutil.Process:
    """The child that holds the model: the largest one."""
    children = psutil.Process(server.process.pid).children(recursive=True)
    return max(children, key=lambda child: child.memory_info().rss)


def test_a_killed_engine_ends_streams_with_an_error_and_the_server_with_a_code(
    tmp_path: Path,
) -> None:
    folder = WRITERS["llama"](tmp_path / "llama")
    with serving(f"model.path={folder}", "model.name=tiny", "model.max_len=512") as server:
        stream = server.client.chat.completions.create(
            model="tiny", messages=ASK, stream=True, max_tokens=450, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        os.kill(engine_process(server).pid, signal.SIGKILL)
        with pytest.raises(openai.APIError):
            for _ in stream:
                pass
        assert server.process.wait(20) != 0
        assert "engine" in server.output


def test_two_hundred_requests_at_once_on_a_pool_for_twenty(tmp_path: Path) -> None:
    folder = WRITERS["llama"](tmp_path / "llama")
    told = [f"model.path={folder}", "model.name=tiny", "model.max_len=64", "server.max_queue=1000"]
    told += ["engine.kv_cache_gb=0.00035", "engine.max_sequences=32"]  # some 80 pages
    with serving(*told) as server:
        client = server.client

        def ask(number: int) -> str | None:
            answer = client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": f"Count {number % 7}."}],
                temperature=0,
                max_tokens=12,
            )
            return answer.choices[0].message.content

        with concurrent.futures.ThreadPoolExecutor(64) as many:
            answers = list(many.map(ask, range(200)))
        for number in range(7):
            assert len(set(answers[number::7])) == 1
            assert answers[number] == ask(number)


def test_a_client_that_leaves_frees_its_pages(tiny_llama: Server) -> None:
    stream = tiny_llama.client.chat.completions.create(
        model="tiny", messages=ASK, stream=True, max_tokens=400, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 10
    while metric(tiny_llama, "appliance_kv_pages_used") > 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_answer_larger_than_a_pipe_holds_ends_nobody(tiny_llama: Server) -> None:
    for length in (200, 400, 500):
        answer = tiny_llama.client.completions.create(
            model="tiny", prompt=[7] * length, echo=True, logprobs=5, max_tokens=1, temperature=0
        )
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None
        assert len(logprobs.token_logprobs or []) == length + 1
    assert tiny_llama.status("/readyz") == 200
