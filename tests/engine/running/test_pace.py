"""Prompts are cut by the time that steps take, and nothing else is different for it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench.reference import TOLERANCE, Recorder, engine_options, greedy, picture, prompt_with_images
from bench.stand_in.platforms import Recording
from engine.core import Engine
from engine.request import Request
from engine.running.runner import Computed
from engine.scheduling.batch import Batch

Folder = Callable[[str], Path]
ALLOWED = 0.05
PLATFORMS = {"cpu": lambda: None, "overlapping": Recording}


class Machine:
    """Runs an engine whose tokens take a millisecond each, and a step five, by its own clock."""

    def __init__(
        self, folder: Path, allowed: float | None, platform: str = "cpu", native: str = "auto"
    ) -> None:
        self.now = 0.0
        options = engine_options(
            folder,
            prefill_seconds=allowed,
            max_tokens_per_step=256,
            encoder_cache_bytes=0,
            native=native,
        )
        engine = Engine(options, platform=PLATFORMS[platform](), clock=lambda: self.now)
        self.recorder = Recorder(engine)
        run = engine._runner.run

        def timed(batch: Batch) -> Computed:
            self.now += 5e-3 + 1e-3 * batch.tokens
            return run(batch)

        engine._runner.run = timed  # type: ignore[method-assign]

    def answer(self, *late: Request) -> list[tuple[int, float]]:
        """Answer something short, and others that come later; tokens and seconds of each step."""
        self.recorder.engine.add(Request("first", words(40, 1), greedy(60)))
        for _ in range(6):
            self.recorder.step()
        for request in late:
            self.recorder.engine.add(request)
        steps = []
        while self.recorder.engine.has_work():
            begun = self.now
            self.recorder.step()
            batch = self.recorder.batches[-1]
            if len(batch.slices) > 1:
                steps.append((batch.tokens, self.now - begun))
        return steps


def words(count: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(300, 500), k=count)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_answers_go_on_beside_a_long_prompt_and_stay_what_they_are(
    platform: str, checkpoint: Folder
) -> None:
    late = Request("late", words(400, 2), greedy(4))
    found, rows = {}, {}
    for allowed in (ALLOWED, None):
        machine = Machine(checkpoint("llama"), allowed, platform)
        steps = machine.answer(late)
        longest = max(seconds for _, seconds in steps)
        assert (longest <= 1.2 * (ALLOWED + 6e-3)) == (allowed is not None)
        found[allowed], rows[allowed] = machine.recorder.tokens, machine.recorder.rows
    assert found[ALLOWED] == found[None]
    for place, row in rows[None].items():
        assert torch.allclose(rows[ALLOWED][place], row, atol=TOLERANCE, rtol=0), place
    assert rows[ALLOWED].keys() == rows[None].keys()


@pytest.mark.parametrize("native", ["auto", "torch"])
def test_a_picture_that_is_cut_goes_through_its_tower_once(native: str, checkpoint: Folder) -> None:
    folder = checkpoint("qwen2_vl")
    shown = picture(224, 224, 2)
    ids, media = prompt_with_images(folder, [words(8, 3), shown, words(8, 4)])
    machine = Machine(folder, ALLOWED, native=native)
    encoded = []
    encode = machine.recorder.engine._runner.media.encode
    machine.recorder.engine._runner.media.encode = (  # type: ignore[method-assign]
        lambda items: encoded.extend(items) or encode(items)
    )
    machine.answer(Request("late", ids, greedy(4), media))
    cut = [
        item
        for batch in machine.recorder.batches
        for item in batch.slices
        if media[0].start < item.end < media[0].end
    ]
    assert cut
    assert len(encoded) == 1
