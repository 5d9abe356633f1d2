"""An engine's process that is begun before its options are known."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.loading import Loader
from appliance.recipe import compose_recipe
from appliance.service import Service
from bench.reference import engine_options, greedy
from engine.errors import EngineDead
from engine.process.client import EngineClient
from engine.process.spawned import SpawnedEngine
from engine.request import Request
from tests.conftest import CHECKOUT

DEMO = CHECKOUT / "recipes" / "demo"
Folder = Callable[[str], Path]


async def answer(client: EngineClient) -> list[int]:
    stream = client.submit(Request("r", [5, 6, 7], greedy(4)))
    return [token async for output in stream for token in output.token_ids]


def test_it_runs_with_the_options_that_come(checkpoint: Folder) -> None:
    folder = checkpoint("llama")

    async def scenario() -> list[list[int]]:
        answers = []
        for spawned in (SpawnedEngine(str(folder)), None):
            client = EngineClient(engine_options(folder), spawned=spawned)
            await client.start()
            assert spawned is None or client.pid == spawned.process.pid
            answers.append(await answer(client))
            await client.stop()
        return answers

    first, second = asyncio.run(scenario())
    assert len(first) == 4
    assert first == second


@pytest.mark.parametrize("folder", [Path("/nowhere"), DEMO])
def test_one_that_nobody_wants_leaves_by_itself(folder: Path) -> None:
    spawned = SpawnedEngine(str(folder))
    spawned.requests.close()
    spawned.process.join(30)
    assert spawned.process.exitcode == 0
    spawned.end()


def test_one_that_has_died_is_told(checkpoint: Folder) -> None:
    async def scenario() -> None:
        spawned = SpawnedEngine("/nowhere")
        spawned.process.kill()
        spawned.process.join()
        client = EngineClient(engine_options(checkpoint("llama")), spawned=spawned)
        with pytest.raises(EngineDead, match="ended unexpectedly"):
            await client.start()
        await client.stop()

    asyncio.run(scenario())


def test_a_client_that_never_starts_ends_it() -> None:
    async def scenario() -> None:
        spawned = SpawnedEngine(str(DEMO))
        client = EngineClient(engine_options(DEMO), spawned=spawned)
        await client.stop()
        assert not spawned.process.is_alive()

    asyncio.run(scenario())


def test_on_a_card_it_imports_while_the_plan_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    composed = compose_recipe(["recipe=demo", "engine=cuda"])
    loader, seen = Loader(composed), []

    def plan(self: Loader, folder: Path) -> None:
        spawned = self._spawned
        assert spawned is not None
        seen.append(spawned)
        time.sleep(0.1)
        assert spawned.process.is_alive()
        raise RuntimeError("no card after all")

    monkeypatch.setattr(Loader, "_plan", plan)

    async def scenario() -> None:
        with pytest.raises(RuntimeError, match="no card after all"):
            await loader.load(Service(composed.config, "demo", composed.digest))
        await loader.stop()

    asyncio.run(scenario())
    assert not seen[0].process.is_alive()


def test_on_a_cpu_the_plan_is_made_first(monkeypatch: pytest.MonkeyPatch) -> None:
    composed = compose_recipe(["recipe=demo"])
    loader = Loader(composed)

    def plan(self: Loader, folder: Path) -> None:
        assert self._spawned is None
        raise RuntimeError("planned")

    monkeypatch.setattr(Loader, "_plan", plan)
    with pytest.raises(RuntimeError, match="planned"):
        asyncio.run(loader.load(Service(composed.config, "demo", composed.digest)))
