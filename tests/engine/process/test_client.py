"""The engine in its own process, seen from the server's event loop."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

from bench.reference import Recorder, engine_options, greedy, picture, prompt_with_images
from engine.core import Engine
from engine.errors import EngineDead, RequestRefused
from engine.options import EngineOptions
from engine.process.client import EngineClient
from engine.request import Request, SamplingOptions

Folder = Callable[[str], Path]


def test_the_process_answers_as_the_engine_does_in_process(checkpoint: Folder) -> None:
    folder = checkpoint("qwen2_vl")
    options = engine_options(folder)
    tokens, media = prompt_with_images(folder, [[5, 6, 7], picture(60, 90, 1), [8, 9]])
    recorder = Recorder(Engine(options))
    recorder.run(Request("image", tokens, greedy(6), media))
    expected = recorder.tokens["image", 0]

    async def scenario() -> None:
        client = EngineClient(options)
        assert client.phase == "starting"
        await client.start()
        assert (client.phase, client.fraction) == ("ready", 1.0)

        async def answer(request: Request) -> list[int]:
            return [t async for output in client.submit(request) for t in output.token_ids]

        many = [
            answer(Request("image", tokens, greedy(6), media)),
            answer(Request("text", [5, 6, 7], greedy(12))),
        ]
        image, text = await asyncio.gather(*many)
        assert image == expected
        assert len(text) == 12
        with pytest.raises(RequestRefused):
            await answer(Request("long", [5] * 600, greedy(6)))

        # a reader that leaves: its pages are free within a step, others go on
        stream = client.submit(Request("gone", [5, 6, 7], greedy(400)))
        await stream.__anext__()
        stream.close()
        other = await answer(Request("other", [5, 6, 7], greedy(12)))
        assert other == text
        for _ in range(100):
            if client.stats.pages_used == 0:
                break
            await asyncio.sleep(0.05)
        assert client.stats.pages_used == 0
        await client.stop()
        assert client.phase == "dead"
        with pytest.raises(EngineDead):
            client.submit(Request("late", [5], greedy(1)))

    asyncio.run(scenario())


def test_a_killed_process_ends_every_stream_and_says_so(checkpoint: Folder) -> None:
    async def scenario() -> None:
        client = EngineClient(engine_options(checkpoint("llama")))
        await client.start()
        streams = [client.submit(Request(f"r{i}", [5, 6, 7], greedy(400))) for i in range(3)]
        for stream in streams:
            await stream.__anext__()
        assert client.pid is not None
        os.kill(client.pid, signal.SIGKILL)

        async def drain(stream) -> None:  # type: ignore[no-untyped-def]
            async for _ in stream:
                pass

        for stream in streams:
            with pytest.raises(EngineDead):
                await asyncio.wait_for(drain(stream), 10)
        assert "unexpectedly" in await asyncio.wait_for(client.died(), 10)
        assert client.phase == "dead"

    asyncio.run(scenario())


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_pipe_that_is_full_in_either_direction_loses_nothing(
    checkpoint: Folder, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """More than a socket holds: requests for an engine that stands still, and a large answer."""

    async def scenario() -> None:
        client = EngineClient(engine_options(checkpoint("llama")))
        await client.start()
        assert client.pid is not None
        os.kill(client.pid, signal.SIGSTOP)  # as in a step that takes long
        requests = [Request(f"r{i}", [5 + i % 90] * 500, greedy(1)) for i in range(400)]
        streams = [client.submit(request) for request in requests]
        await asyncio.sleep(1)
        os.kill(client.pid, signal.SIGCONT)
        for stream in streams:
            assert [output async for output in stream][-1].finish_reason == "length"

        everything = SamplingOptions(1, temperature=0.0, prompt_logprobs=90)
        outputs = [o async for o in client.submit(Request("large", [5] * 500, everything))]
        noted = outputs[-1].prompt_logprobs
        assert noted is not None
        assert len(noted) == 500
        assert len(pickle.dumps(outputs[-1])) > 400_000
        again = [o async for o in client.submit(Request("again", [5, 6, 7], greedy(3)))]
        assert again[-1].finish_reason == "length"
        await client.stop()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(asyncio.wait_for(scenario(), 120))


@pytest.mark.parametrize("busy", [True, False])
def test_an_engine_that_says_nothing_is_ended(checkpoint: Folder, busy: bool) -> None:
    options = engine_options(checkpoint("llama"), step_seconds=3.0)

    async def scenario() -> None:
        client = EngineClient(options)
        await client.start()
        assert client.pid is not None
        os.kill(client.pid, signal.SIGSTOP)
        await asyncio.sleep(1.5)  # a step may take that long
        os.kill(client.pid, signal.SIGCONT)
        outputs = [o async for o in client.submit(Request("a", [5, 6, 7], greedy(3)))]
        assert outputs[-1].finish_reason == "length"
        await asyncio.sleep(4)  # nor is it held against it that it has nothing to do
        assert client.phase == "ready"

        stream = client.submit(Request("b", [5, 6, 7], greedy(400))) if busy else None
        if stream is not None:
            await anext(stream)
        os.kill(client.pid, signal.SIGSTOP)
        assert "3 seconds" in await asyncio.wait_for(client.died(), 60)
        if stream is not None:
            with pytest.raises(EngineDead):
                async for _ in stream:
                    pass
        await client.stop()
        with pytest.raises(ProcessLookupError):
            os.kill(client.pid, 0)

    asyncio.run(scenario())


def test_a_checkpoint_that_cannot_be_served_gives_the_reason(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["SecretForCausalLM"]}')

    async def scenario() -> None:
        options = EngineOptions(str(tmp_path), "float32", "cpu", 1, 16, 8, 64, 64, 4, True, 0)
        client = EngineClient(options)
        with pytest.raises(EngineDead, match="SecretForCausalLM"):
            await client.start()
        await client.stop()

    asyncio.run(scenario())


def test_clients_are_what_the_server_takes_for_an_engine(checkpoint: Folder) -> None:
    from appliance.client import Client
    from tests.api.fake_engine import FakeEngine, speak

    wanted = {name for name in (*vars(Client), *Client.__annotations__) if name[0] != "_"}
    assert {"start", "submit", "on_encode", "phase", "kill"} <= wanted
    for client in (EngineClient(engine_options(checkpoint("llama"))), FakeEngine(speak(1))):
        assert all(hasattr(client, name) for name in wanted | {"stats"})
