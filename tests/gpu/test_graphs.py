"""Which recording a batch replays, what it is fed, and in which order."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.reference import Recorder, greedy
from bench.stand_in.platforms import Recording, cuda_path, standing_in
from bench.stand_in.torch_flashinfer import BatchDecodeWithPagedKVCacheWrapper
from engine.attention.flashinfer import Rows
from engine.core import Engine
from engine.device.device import Graph, Host
from engine.layers.decoder import DecoderInput
from engine.memory.card_memory import graph_sizes
from engine.request import Request
from engine.running.graphs import DecodeGraphs, StepMemory
from engine.running.runner import Runner
from engine.scheduling.batch import Batch
from tests.engine.running.test_oracle import words

Folder = Callable[[str], Path]


def graphs_of(engine: Engine) -> DecodeGraphs:
    graphs = engine._runner._graphs
    assert graphs is not None
    return graphs


def test_sizes() -> None:
    assert graph_sizes(1) == [1]
    assert graph_sizes(3) == [1, 2, 3]
    assert graph_sizes(20) == [1, 2, 4, 8, 16, 20]
    assert graph_sizes(32) == [1, 2, 4, 8, 16, 24, 32]


def test_a_batch_replays_the_next_larger_size(checkpoint: Folder) -> None:
    graphs = graphs_of(cuda_path(checkpoint("llama"), Recording(), graphs=True, max_sequences=20))
    assert graphs.sizes == [1, 2, 4, 8, 16, 20]
    assert [graphs.size_for(n) for n in (1, 2, 3, 5, 16, 17, 20)] == [1, 2, 4, 8, 16, 20, 20]
    assert graphs.size_for(21) is None


def test_the_largest_size_is_recorded_first_and_all_share_one_pool(
    checkpoint: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    pools: set[int] = set()
    compute = Runner._embedded

    def watched(runner: Runner, token_ids: torch.Tensor, *rest: Any, **more: Any) -> DecoderInput:
        sizes.append(len(token_ids))
        return compute(runner, token_ids, *rest, **more)

    class Pooled(Recording):
        def graph_pool(self) -> Any:
            return object()

        def capture(self, work: Callable[[], None], pool: Any) -> Graph:
            pools.add(id(pool))
            return super().capture(work, pool)

    monkeypatch.setattr(Runner, "_embedded", watched)
    cuda_path(checkpoint("llama"), Pooled(), graphs=True, max_sequences=16)
    assert sizes[-5:] == [16, 8, 4, 2, 1]
    assert len(pools) == 1


def test_padding_writes_to_page_0_only() -> None:
    rows = Rows(
        query_start=torch.arange(3, dtype=torch.int32),
        page_start=torch.tensor([0, 2, 3], dtype=torch.int32),
        page_indices=torch.tensor([7, 5, 9], dtype=torch.int32),
        last_page_length=torch.tensor([3, 16], dtype=torch.int32),
        owners=torch.arange(2),
        positions=torch.tensor([18, 15]),
    )
    padded = rows.padded(4)
    assert padded.page_start.tolist() == [0, 2, 3, 4, 5]
    assert padded.page_indices.tolist() == [7, 5, 9, 0, 0]
    assert padded.last_page_length.tolist() == [3, 16, 1, 1]
    assert padded.positions.tolist() == [18, 15, 0, 0]
    assert padded.owners.tolist() == [0, 1, 2, 3]
    assert all(part.dtype == torch.int32 for part in (padded.page_start, padded.page_indices))
    assert rows.padded(2) is rows


def test_a_step_of_decoding_is_written_where_its_recording_reads() -> None:
    memory = StepMemory(size=4, pages=8, position_rows=2, device=Host())
    for tokens in (3, 2):  # a shorter one leaves nothing of the one before
        rows = dataclasses.replace(
            Rows.dummies(tokens),
            page_indices=torch.arange(5, 5 + tokens, dtype=torch.int32),
            positions=torch.arange(30, 30 + tokens),
        )
        positions = torch.arange(2 * tokens).view(2, tokens) + 10
        pages = memory.fill(torch.arange(1, 1 + tokens), positions, rows.padded(4))
        padding = [0] * (4 - tokens)
        assert memory.token_ids(4).tolist() == [*range(1, 1 + tokens), *padding]
        assert memory.positions(4).tolist() == [[*row, *padding] for row in positions.tolist()]
        assert memory.key_positions(4).tolist() == [*range(30, 30 + tokens), *padding]
        assert pages.tolist() == [*range(5, 5 + tokens), *padding]


def test_rows_of_one_token_each_are_those_of_any_batch() -> None:
    def batch(query_start: list[int], lengths: list[int]) -> Batch:
        none = torch.zeros(0, dtype=torch.int32)
        starts = torch.tensor(query_start, dtype=torch.int32)
        ids = torch.zeros(query_start[-1], dtype=torch.int64)
        return Batch([], ids, ids[None], ids, starts, none, none, none, lengths, ids, 16)

    rows = Rows.of(batch([0, 1, 2, 3], [5, 1, 40]))
    assert (rows.owners.tolist(), rows.positions.tolist()) == ([0, 1, 2], [4, 0, 39])
    rows = Rows.of(batch([0, 1, 3, 4], [5, 2, 40]))
    assert (rows.owners.tolist(), rows.positions.tolist()) == ([0, 1, 1, 2], [4, 0, 1, 39])


def test_padding_changes_nothing_for_the_others(checkpoint: Folder) -> None:
    """Five rows in a recording of eight; every page but page 0 keeps what was there."""
    engine = cuda_path(checkpoint("llama"), Recording(), graphs=True)
    recorder = Recorder(engine)
    for i in range(5):
        engine.add(Request(f"r{i}", words(10 + i, i), greedy(20)))
    recorder.step()
    recorder.step()
    cache = engine._runner._cache
    free = [page for page in range(1, 65) if engine._pool._references[page] == 0]
    parts = [part for layer in cache.layers for part in layer]
    before = [part[free] for part in parts]
    used = [page for page in range(1, 65) if page not in free]
    written = [part[used] for part in parts]
    recorder.step()
    for part, kept, old in zip(parts, before, written, strict=True):
        assert torch.equal(part[free], kept)
        assert not torch.equal(part[used], old)


def test_each_plan_waits_for_its_staging_buffer_and_comes_before_its_replay(
    checkpoint: Folder,
) -> None:
    platform = Recording()

    class Planned(BatchDecodeWithPagedKVCacheWrapper):
        def plan(self, *arguments, **options):  # type: ignore[no-untyped-def]
            super().plan(*arguments, **options)
            platform.log.append("plan")

    platform.library = standing_in(BatchDecodeWithPagedKVCacheWrapper=Planned)
    engine = cuda_path(checkpoint("llama"), platform, graphs=True)
    recorder = Recorder(engine)
    engine.add(Request("r", words(10, 1), greedy(6)))
    recorder.step()
    platform.log.clear()
    recorder.finish()
    steps = [platform.log[i : i + 4] for i in range(0, len(platform.log), 4)]
    assert len(steps) == 5
    event = steps[0][0].split()[1]
    assert all(step == [f"wait {event}", "plan", f"record {event}", step[3]] for step in steps)
    assert {step[3].split()[0] for step in steps} == {"replay"}


def test_a_model_that_cannot_be_recorded_runs_as_it_is(
    checkpoint: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    class Unrecordable(Recording):
        def capture(self, work: Callable[[], None], pool: Any) -> Graph:
            work()
            raise RuntimeError("operation not permitted when stream is capturing")

    with caplog.at_level(logging.WARNING):
        engine = cuda_path(checkpoint("llama"), Unrecordable(), graphs=True)
    assert "cannot be recorded" in caplog.text
    recorder, recorded = (
        Recorder(engine),
        Recorder(cuda_path(checkpoint("llama"), Recording(), graphs=True)),
    )
    for each in (recorder, recorded):
        each.run(Request("r", words(10, 1), greedy(6)))
    assert recorder.tokens == recorded.tokens


def test_a_stale_step_memory_is_noticed(checkpoint: Folder) -> None:
    """Control: a replay that is not fed repeats the step before."""

    def tokens(fed: bool) -> list[int]:
        engine = cuda_path(checkpoint("llama"), Recording(), graphs=True)
        memory = graphs_of(engine)._memory
        if not fed:
            memory.fill = lambda ids, positions, rows: memory.page_indices(  # type: ignore[method-assign]
                len(rows.page_indices)
            )
        recorder = Recorder(engine)
        recorder.run(Request("r", words(10, 1), greedy(6)))
        return recorder.tokens["r", 0]

    assert tokens(fed=True) != tokens(fed=False)
