"""Nothing that a request brings holds the server's event loop, and nobody else waits for it."""

from __future__ import annotations

import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.attack.wire import completion, post, wire
from tests.serving.conftest import Server, serving

ATTEMPTS = 5  # what holds the loop does so each time, a busy machine does not
LATE = "0.05"  # seconds; a bucket of the metric


@pytest.fixture(scope="module")
def server(checkpoint: Callable[[str], Path]) -> Iterator[Server]:
    told = [f"model.path={checkpoint('llama')}", "model.name=tiny", "engine.threads=1"]
    with serving(*told, "media.image.limit=0") as server:
        yield server


def chat(*content: Any, **fields: Any) -> tuple[str, dict[str, Any]]:
    messages = [{"role": "user", "content": one} for one in content or ("Hello",)]
    return "/v1/chat/completions", {"model": "tiny", "messages": messages, **fields}


def complete(**fields: Any) -> tuple[str, dict[str, Any]]:
    return "/v1/completions", completion(**fields)


def picture(data: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


LARGE: dict[str, tuple[int, tuple[str, dict[str, Any]]]] = {
    "text": (400, complete(prompt="hello world " * 1_500_000)),
    "text of a chat": (400, chat("hello world " * 1_500_000)),
    "white space of a chat": (400, chat(" " * 3_000_000 + "." * 100_000)),
    "commas": (400, complete(prompt=", " * 1_500_000)),
    "token ids": (400, complete(prompt=[7] * 1_000_000)),
    "messages": (400, chat(*["hi"] * 60_000)),
    "parts": (400, chat([{"type": "text", "text": "hi"}] * 60_000)),
    "biases": (400, chat(logit_bias={str(token): 1 for token in range(300_000)})),
    "stop tokens": (400, chat(stop_token_ids=[1] * 2_000_000)),
    "unknown fields": (200, chat(max_tokens=1, **{f"u{n}": 1 for n in range(40_000)})),
    "metadata": (400, chat(metadata={f"u{n}": 1 for n in range(300_000)})),
    "nested lists": (400, chat(metadata={"a": [[[]]] * 900_000})),
    "base64": (
        400,
        chat([picture("A" * 30_000_000)]),
    ),
    "prompts": (200, complete(prompt=["hello " * 200] * 1000, max_tokens=1)),
    "prompts that are shown": (
        200,
        ("/v1/completions/render", completion(prompt=["hello " * 200] * 1000, max_tokens=1)),
    ),
    "text that is counted": (400, ("/tokenize", {"prompt": "hello world " * 1_500_000})),
    "token ids that are text": (400, ("/detokenize", {"tokens": [7] * 2_000_000})),
    "texts in other words": (200, ("/generate", {"text": ["hello"] * 1000})),
    "stop strings": (200, chat(stop=["a" * 4000 + end for end in "abcd"], max_tokens=50)),
    "answers": (
        200,
        chat(n=128, logprobs=True, top_logprobs=20, max_tokens=60, ignore_eos=True),
    ),
    "echo": (200, complete(prompt=[[7] * 480] * 40, echo=True, logprobs=5, max_tokens=1)),
    "too many log-probabilities": (
        400,
        complete(prompt=["a"] * 1024, logprobs=5, max_tokens=500),
    ),
}


@pytest.mark.parametrize("case", LARGE)
def test_no_input_that_the_limits_admit_holds_the_loop(server: Server, case: str) -> None:
    status, (path, body) = LARGE[case]
    request = post(path, body)
    late = 0.0
    for _ in range(ATTEMPTS):
        before = moments_late(server)
        with wire(server.base_url) as client:
            client.socket.settimeout(60)
            client.send(request)
            answer = client.answer()
        assert answer.status == status, answer.body[:300]
        late = moments_late(server) - before
        if not late:
            return
    pytest.fail(f"the loop was held for more than {LATE} seconds in each of {ATTEMPTS} attempts")


def test_a_loop_that_is_held_would_be_seen(server: Server) -> None:
    """The control: a process that stands still is late once it goes on."""
    before = moments_late(server)
    server.process.send_signal(signal.SIGSTOP)
    time.sleep(0.2)
    server.process.send_signal(signal.SIGCONT)
    assert moments_late(server) > before


def moments_late(server: Server) -> float:
    """How often the loop has been late by more than LATE so far."""
    with urllib.request.urlopen(server.base_url + "/metrics", timeout=20) as answer:
        lines = [line for line in answer.read().decode().splitlines() if line[0] != "#"]
    name = "appliance_event_loop_lag_seconds"
    values = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}
    return values[f"{name}_count"] - values[f'{name}_bucket{{le="{LATE}"}}']
