"""An intake with its workers, for tests that do not need a server."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from appliance.api.chat.messages import read_messages
from appliance.config.compose import compose
from appliance.errors import ApplianceError
from appliance.media.assembly import intake_for
from appliance.media.intake import Intake
from appliance.metrics import Metrics
from engine.models.family import Family
from engine.request import MediaItem


@dataclass
class Desk:
    """Where messages are handed in, on an event loop of its own."""

    intake: Intake
    metrics: Metrics
    runner: asyncio.Runner

    def load(self, messages: list[Any], owner: bytes = b"", options: Any = None) -> list[MediaItem]:
        return self.runner.run(self.loaded(messages, owner, options))

    async def loaded(
        self, messages: list[Any], owner: bytes = b"", options: Any = None
    ) -> list[MediaItem]:
        spoken = [{"role": "user", **message} for message in messages]
        sources = read_messages(spoken, []).sources
        async with self.intake.take(sources, owner, options) as items:
            return await self.intake.load(items, owner, [0] * len(items))

    def refusal(self, content: list[Any], owner: bytes = b"") -> ApplianceError:
        with pytest.raises(ApplianceError) as refused:
            self.load([{"role": "user", "content": content}], owner)
        return refused.value

    def one(self, part: dict[str, Any], owner: bytes = b"") -> MediaItem:
        (item,) = self.load([{"role": "user", "content": [part]}], owner)
        return item

    def metric(self, name: str, **labels: str) -> float:
        """Its value now, 0 where nothing was counted yet."""
        return self.metrics.registry.get_sample_value(f"appliance_{name}", labels) or 0.0


@contextmanager
def desk(family: Family, *overrides: str) -> Iterator[Desk]:
    """Raises whatever the overrides are refused with."""
    path = f"model.path={family.folder}"
    config = compose([path, "model.name=tiny", "media.image.limit=3", *overrides]).config
    metrics = Metrics()
    with asyncio.Runner() as runner, ThreadPoolExecutor(2) as threads:
        intake = intake_for(config, family, threads, metrics)
        runner.run(intake.start())
        try:
            yield Desk(intake, metrics, runner)
        finally:
            runner.run(intake.close())


def part(data: bytes | str | None, uuid: str | None = None) -> dict[str, Any]:
    """A part of a message as a client sends it."""
    if isinstance(data, bytes):
        data = "data:image/png;base64," + base64.b64encode(data).decode()
    made: dict[str, Any] = {
        "type": "image_url",
        "image_url": None if data is None else {"url": data},
    }
    return made if uuid is None else {**made, "uuid": uuid}


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content}
