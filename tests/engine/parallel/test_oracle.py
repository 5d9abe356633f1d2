"""Several ranks make the logits that one makes, in every row."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench.reference import (
    TOLERANCE,
    Recorder,
    Reference,
    compare,
    engine_options,
    greedy,
    picture,
    prompt_with_images,
)
from engine.core import Engine
from engine.options import EngineOptions
from engine.request import Request
from tests.engine.parallel.ranked import of_ranks, of_two_ranks_on_a_card
from tests.engine.running.test_oracle import VISION, words

FAMILIES = ["llama", "qwen2", "qwen3", "qwen2_vl", "llava"]
Folder = Callable[[str], Path]
Model = Callable[[str], Reference]


def cramped(folder: Path, **changes: object) -> EngineOptions:
    """Chunks that end anywhere, and too few pages for all that runs."""
    return engine_options(folder, pages=16, max_tokens_per_step=23, **changes)


def requests_for(folder: Path, family: str) -> list[Request]:
    """Every row of one prompt, a prefix that two share, and more than the pages hold."""
    if family in VISION:
        shared, media = prompt_with_images(
            folder, [words(20, 1), picture(120, 120, 2), words(17, 2)]
        )
    else:
        shared, media = words(50, 1), []
    return [
        Request("rows", shared + words(5, 3), greedy(20, prompt_logprobs=0), media),
        Request("first", shared + words(9, 4), greedy(30), media),
        Request("second", shared + words(30, 5), greedy(30), media),
        Request("text", words(60, 6), greedy(40)),
    ]


def same_rows(one: Recorder, two: Recorder) -> float:
    """Largest difference between any logits of the two."""
    assert one.tokens == two.tokens
    assert one.rows.keys() == two.rows.keys()
    return max((one.rows[place] - two.rows[place]).abs().max().item() for place in one.rows)


@pytest.mark.parametrize(
    ("family", "ranks"), [*((family, 2) for family in FAMILIES), ("odd", 2), ("threefold", 3)]
)
def test_ranks_agree_with_one_through_chunks_shared_prefixes_and_preemption(
    family: str, ranks: int, checkpoint: Folder, reference: Model
) -> None:
    folder = checkpoint(family)
    requests = requests_for(folder, family)
    one = Recorder(Engine(cramped(folder)))
    one.run(*requests)
    with of_ranks(cramped(folder, tensor_parallel=ranks)) as several:
        several.run(*requests)
        stats = several.engine.stats()
    assert stats.preemptions > 0
    assert stats.prefix_hit_tokens > 0
    assert any(0 < batch.slices[0].start < 40 for batch in several.batches)  # chunks
    assert same_rows(one, several) < TOLERANCE
    assert compare(several, reference(family), requests) < TOLERANCE


def test_two_ranks_check_drafts_as_one_does(checkpoint: Folder, reference: Model) -> None:
    folder = checkpoint("llama")
    requests = [Request(f"r{n}", words(10, n) * 3, greedy(40)) for n in range(3)]
    plain = Recorder(Engine(engine_options(folder)))
    plain.run(*requests)
    with of_ranks(engine_options(folder, tensor_parallel=2, speculation="ngram")) as drafting:
        drafting.run(*requests)
        stats = drafting.engine.stats()
    assert 0 < stats.accepted_tokens < stats.draft_tokens
    assert drafting.tokens == plain.tokens
    assert compare(drafting, reference("llama"), requests) < TOLERANCE


def test_leaving_out_one_sum_is_noticed(checkpoint: Folder, reference: Model) -> None:
    """Control: with any one sum over the ranks left out, the comparison above must fail."""
    folder = checkpoint("llama")
    with of_ranks(engine_options(folder, tensor_parallel=2)) as recorder:
        runner = recorder.engine._runner
        layer, ranks = runner._decoder._layers[1], runner._ranks
        summed = ranks.sum

        def unsummed(tensor: torch.Tensor) -> torch.Tensor:
            summed(tensor.clone())  # the other rank waits for it
            return tensor

        def difference(name: str) -> float:
            request = Request(name, words(40, 1), greedy(4))
            recorder.run(request)
            return compare(recorder, reference("llama"), [request])

        assert difference("whole") < TOLERANCE
        for left_out in (0, 1):  # of a layer's two sums, behind attention and behind the MLP
            turns = itertools.cycle([unsummed if turn == left_out else summed for turn in (0, 1)])
            layer._reduce = lambda product, turns=turns: next(turns)(product)
            assert difference(f"sum {left_out}") > 100 * TOLERANCE
        layer._reduce = summed
        runner._ranks.sum = unsummed  # the embeddings too
        assert difference("all") > 100 * TOLERANCE
        runner._ranks.sum = summed
        assert difference("whole again") < TOLERANCE


@pytest.mark.parametrize("family", ["qwen2", "qwen2_vl"])
def test_two_ranks_on_the_path_of_a_card_agree(
    family: str, checkpoint: Folder, reference: Model
) -> None:
    """Graphs, one step ahead: the other rank learns of tokens in flight from the device."""
    folder = checkpoint(family)
    options = engine_options(
        folder,
        tensor_parallel=2,
        graphs=True,
        max_sequences=4,
        tower_graphs=family in VISION,  # rank 0's
    )
    with of_two_ranks_on_a_card(options) as (recorder, platform):
        requests = requests_for(folder, family)
        recorder.run(*requests)
        assert any("replay" in line for line in platform.log)
        assert any((batch.token_ids < 0).any() for batch in recorder.batches)
        assert compare(recorder, reference(family), requests) < TOLERANCE
