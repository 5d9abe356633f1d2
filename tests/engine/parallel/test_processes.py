"""Ranks as processes: they answer as one engine does, and none outlives the others."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from bench.reference import Recorder, engine_options, greedy, picture, prompt_with_images
from engine.core import Engine
from engine.errors import EngineDead, EngineError, RequestRefused
from engine.options import EngineOptions
from engine.process.client import EngineClient
from engine.request import Request

Folder = Callable[[str], Path]


@asynccontextmanager
async def started(options: EngineOptions) -> AsyncIterator[EngineClient]:
    client = EngineClient(options)
    await client.start()
    try:
        yield client
    finally:
        await client.stop()


async def answer(client: EngineClient, request: Request) -> list[int]:
    return [token async for output in client.submit(request) for token in output.token_ids]


def ranks_of(client: EngineClient) -> list[psutil.Process]:
    """All processes of the engine, rank 0 first."""
    pids = [client.pid, *(process.pid for process in client._followers.processes)]
    return [psutil.Process(pid) for pid in pids if pid is not None]


def gone(processes: list[psutil.Process], seconds: float = 10) -> bool:
    _, alive = psutil.wait_procs(processes, seconds)
    return all(process.status() == psutil.STATUS_ZOMBIE for process in alive)


def test_the_processes_answer_as_one_engine_does(checkpoint: Folder) -> None:
    folder = checkpoint("qwen2_vl")
    tokens, media = prompt_with_images(folder, [[5, 6, 7], picture(60, 90, 1), [8, 9]])
    requests = [
        Request("image", tokens, greedy(12), media),
        Request("text", [5, 6, 7], greedy(30)),
        Request("seeded", [5, 6, 8], greedy(30, temperature=1.0, seed=7)),
    ]
    recorder = Recorder(Engine(engine_options(folder)))
    recorder.run(*requests)

    async def scenario() -> None:
        async with started(engine_options(folder, tensor_parallel=2)) as client:
            answers = await asyncio.gather(*(answer(client, request) for request in requests))
            assert answers == [recorder.tokens[request.id, 0] for request in requests]
            # what no rank could compute is refused
            broken = prompt_with_images(folder, [[5], picture(90, 90, 2), [8]])
            broken[1][0].tensors["image_grid_thw"][0, 1] += 2
            request = Request("broken", broken[0], greedy(3), broken[1])
            with pytest.raises(RequestRefused):
                await answer(client, request)
            assert await answer(client, requests[1]) == answers[1]
            processes = ranks_of(client)
            assert len(processes) == 2
            for process in processes:  # rendezvous and sums stay on this machine
                for connection in process.net_connections("inet"):
                    assert connection.laddr.ip in ("127.0.0.1", "::1", "::ffff:127.0.0.1")
        assert gone(processes, 5)

    asyncio.run(scenario())


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_every_stream_and_the_other_rank(
    victim: int, checkpoint: Folder
) -> None:
    async def scenario() -> None:
        async with started(engine_options(checkpoint("llama"), tensor_parallel=2)) as client:
            streams = [client.submit(Request(f"r{i}", [5, 6, 7], greedy(500))) for i in range(3)]
            for stream in streams:
                await stream.__anext__()
            processes = ranks_of(client)
            os.kill(processes[victim].pid, signal.SIGKILL)

            async def drain(stream) -> None:  # type: ignore[no-untyped-def]
                async for _ in stream:
                    pass

            for stream in streams:
                with pytest.raises(EngineDead, match=rf"rank {victim} of 2 .* \(SIGKILL\)"):
                    await asyncio.wait_for(drain(stream), 60)
            reason = await asyncio.wait_for(client.died(), 60)
            assert f"rank {victim} of 2 ended unexpectedly (SIGKILL)" in reason
            assert client.phase == "dead"
            assert gone(processes)

    asyncio.run(scenario())


def test_a_rank_killed_while_idle_is_noticed_too(checkpoint: Folder) -> None:
    async def scenario() -> None:
        async with started(engine_options(checkpoint("llama"), tensor_parallel=2)) as client:
            processes = ranks_of(client)
            os.kill(processes[1].pid, signal.SIGKILL)
            assert "rank 1 of 2" in await asyncio.wait_for(client.died(), 60)
            with pytest.raises(EngineDead, match="rank 1 of 2"):
                client.submit(Request("late", [5], greedy(1)))
            assert gone(processes)

    asyncio.run(scenario())


def test_a_rank_killed_while_loading_ends_the_start(checkpoint: Folder) -> None:
    async def scenario() -> None:
        client = EngineClient(engine_options(checkpoint("llama"), tensor_parallel=2))
        start = asyncio.create_task(client.start())
        while not client._followers.processes:
            await asyncio.sleep(0.05)
        processes = ranks_of(client)
        os.kill(processes[1].pid, signal.SIGKILL)
        with pytest.raises(EngineDead, match="rank 1 of 2"):
            await asyncio.wait_for(start, 20)
        assert gone(processes)
        await client.stop()

    asyncio.run(scenario())


def test_layers_that_cannot_be_split_are_refused_with_a_reason(checkpoint: Folder) -> None:
    async def scenario() -> None:
        cases = {
            "are not of Llama's pattern": engine_options(checkpoint("gelu"), tensor_parallel=2),
            "set engine.fuse=true": engine_options(
                checkpoint("llama"), tensor_parallel=2, fuse=False
            ),
        }
        for reason, options in cases.items():
            client = EngineClient(options)
            with pytest.raises(EngineDead, match=reason) as told:
                await client.start()
            assert "parallelism.tensor=2" in str(told.value)
            assert "\n" not in str(told.value)
            assert not any(process.is_alive() for process in client._followers.processes)

    asyncio.run(scenario())


def test_an_engine_does_not_start_without_its_other_ranks(checkpoint: Folder) -> None:
    with pytest.raises(EngineError, match="every rank"):
        Engine(engine_options(checkpoint("llama"), tensor_parallel=2))


def test_a_script_can_run_several_ranks_one_engine_after_the_other(checkpoint: Folder) -> None:
    options = engine_options(checkpoint("llama"), tensor_parallel=2)

    async def scenario() -> None:
        for _ in range(2):
            client = EngineClient(options, in_process=True)
            await client.start()
            processes = [psutil.Process(p.pid) for p in client._followers.processes]
            assert len(await answer(client, Request("r", [5, 6, 7], greedy(5)))) == 5
            await client.stop()
            assert gone(processes)

    asyncio.run(scenario())
