"""Every row of logits that the engine makes agrees with transformers' own forward.

On every path: the CPU's, and a CUDA device's with torch in FlashInfer's place.
"""

from __future__ import annotations

import json
import random
import shutil
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
from bench.stand_in.platforms import PATHS, engine_on, replayed
from engine.attention.flashinfer import FlashInferAttention
from engine.core import Engine
from engine.layers.decoder import TransformersDecoder
from engine.layers.fuse import FusedDecoder
from engine.layers.native import NativeDecoder
from engine.request import Request

TEXT = ["llama", "qwen2", "qwen3", "gemma3_text"]
VISION = ["qwen2_vl", "llava", "gemma3"]
Folder = Callable[[str], Path]
Model = Callable[[str], Reference]


def words(count: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(300, 500), k=count)


def requests_for(folder: Path, family: str) -> list[Request]:
    """Mixed lengths; for vision models also one, two and no pictures."""
    if family in TEXT:
        prompts = [(words(n, n), []) for n in (1, 5, 16, 33, 100, 150)]
    else:
        small, large = picture(60, 90, 1), picture(200, 120, 2)
        prompts = [
            (words(7, 7), []),
            prompt_with_images(folder, [words(5, 1), small, words(9, 2)]),
            prompt_with_images(folder, [large, words(20, 3), small, words(3, 4)]),
            prompt_with_images(folder, [words(40, 5), large, words(1, 6)]),
        ]
    return [Request(f"r{i}", tokens, greedy(6), media) for i, (tokens, media) in enumerate(prompts)]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("family", TEXT + VISION)
def test_a_packed_batch_of_mixed_lengths_agrees_with_transformers(
    family: str, path: str, checkpoint: Folder, reference: Model
) -> None:
    folder = checkpoint(family)
    engine = engine_on(path, folder, max_tokens_per_step=512)
    on_cuda, fused = path.startswith("cuda"), "unfused" not in path
    assert isinstance(engine._runner._backend, FlashInferAttention) == on_cuda
    kind = NativeDecoder if path == "cpu" else FusedDecoder if fused else TransformersDecoder
    assert isinstance(engine._runner._decoder, kind)
    recorder = Recorder(engine)
    requests = requests_for(folder, family)
    recorder.run(*requests)
    assert max(len(batch.slices) for batch in recorder.batches) == len(requests)
    assert replayed(engine) == bool(PATHS[path].get("graphs"))
    assert compare(recorder, reference(family), requests) < TOLERANCE
    for request in requests:
        expected = reference(family).generate(request.prompt_ids, 6, request.media)
        assert recorder.tokens[request.id, 0] == expected


@pytest.mark.parametrize("path", ["cpu", "cuda graphs", "cuda prefill graphs"])
@pytest.mark.parametrize("family", [*TEXT, "qwen2_vl", "llava"])
def test_chunks_that_end_anywhere_agree_at_every_prompt_token(
    family: str, path: str, checkpoint: Folder, reference: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.running.media.TURN", 60.0)  # who waits for a tower is cut elsewhere
    folder = checkpoint(family)
    recorder = Recorder(engine_on(path, folder, max_tokens_per_step=7))
    requests = [
        Request(r.id, r.prompt_ids, greedy(3, prompt_logprobs=0), r.media)
        for r in requests_for(folder, family)
    ]
    recorder.run(*requests)
    for request in requests:
        assert all((request.id, 0, p) in recorder.rows for p in range(len(request.prompt_ids)))
        if request.media:
            item = request.media[-1]
            cuts = {
                s.end for b in recorder.batches for s in b.slices if s.sequence.request is request
            }
            assert any(item.start < cut < item.end for cut in cuts), (
                "no chunk ended inside an image"
            )
    assert compare(recorder, reference(family), requests) < TOLERANCE


@pytest.mark.parametrize("path", ["cpu", "cuda"])
@pytest.mark.parametrize("family", ["llama", "qwen2_vl", "llava", "gemma3"])
def test_a_shared_prefix_is_not_computed_again_and_changes_nothing(
    family: str, path: str, checkpoint: Folder, reference: Model
) -> None:
    folder = checkpoint(family)
    recorder = Recorder(engine_on(path, folder))
    if family == "llama":
        shared, media = words(70, 1), []
    else:
        shared, media = prompt_with_images(
            folder, [words(20, 1), picture(200, 120, 2), words(9, 2)]
        )
    first = Request("first", shared + words(5, 3), greedy(20), media)
    recorder.run(first)
    # what was generated is findable too, on a card although it was in flight when computed
    continued = first.prompt_ids + recorder.tokens["first", 0]
    second = Request("second", continued + words(8, 4), greedy(4), media)
    third = Request("third", shared + words(8, 5), greedy(4), media)
    recorder.run(second, third)
    hits = {output.request_id: output.cached_tokens for output in recorder.outputs}
    assert hits == {
        "first": 0,
        "second": (len(continued) - 1) // 16 * 16,
        "third": len(shared) // 16 * 16,
    }
    assert compare(recorder, reference(family), [first, second, third]) < TOLERANCE


@pytest.mark.parametrize("path", ["cpu", "cuda graphs", "cuda prefill graphs"])
@pytest.mark.parametrize("family", ["llama", "qwen2_vl", "gemma3"])
def test_a_preempted_sequence_resumes_with_the_same_logits(
    family: str, path: str, checkpoint: Folder, reference: Model
) -> None:
    folder = checkpoint(family)
    engine = engine_on(path, folder, pages=14, max_tokens_per_step=512)
    recorder = Recorder(engine)
    if family == "llama":
        prompts = [(words(60, seed), []) for seed in range(3)]
    else:
        prompts = [
            prompt_with_images(folder, [words(20, seed), picture(120, 120, seed), words(9, seed)])
            for seed in range(3)
        ]
    requests = [
        Request(f"r{i}", tokens, greedy(40), media) for i, (tokens, media) in enumerate(prompts)
    ]
    recorder.run(*requests)
    assert engine.stats().preemptions > 0
    assert engine.stats().pages_used == 0
    assert compare(recorder, reference(family), requests) < TOLERANCE


@pytest.mark.parametrize("path", PATHS)
def test_windows_are_those_of_transformers(path: str, tmp_path: Path, checkpoint: Folder) -> None:
    folder = shutil.copytree(checkpoint("qwen2"), tmp_path / "windows")
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config |= {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    config["layer_types"] = ["full_attention", "sliding_attention", "sliding_attention"]
    file.write_text(json.dumps(config))
    requests = [Request(f"r{n}", words(n, n), greedy(12)) for n in (3, 20, 61)]
    recorder = Recorder(engine_on(path, folder, max_tokens_per_step=25))
    recorder.run(*requests)
    assert compare(recorder, Reference(folder), requests) < TOLERANCE
    assert compare(recorder, Reference(checkpoint("qwen2")), requests) > 100 * TOLERANCE


def test_answers_of_one_request_share_its_prompt(checkpoint: Folder, reference: Model) -> None:
    folder = checkpoint("llama")
    for prefix_cache in (True, False):
        recorder = Recorder(Engine(engine_options(folder, prefix_cache=prefix_cache)))
        request = Request("r", words(64, 1), greedy(5), n=3)
        recorder.run(request)
        computed = sum(batch.tokens for batch in recorder.batches)
        assert computed < 64 + 3 * (16 + 5)
        assert compare(recorder, reference("llama"), [request]) < TOLERANCE


def test_another_picture_of_the_same_size_changes_the_logits(
    checkpoint: Folder, reference: Model
) -> None:
    """Control: with the image zeroed, the comparison above must fail."""
    for family in VISION:
        folder = checkpoint(family)
        recorder = Recorder(Engine(engine_options(folder)))
        tokens, media = prompt_with_images(folder, [words(5, 1), picture(60, 90, 1), words(4, 2)])
        request = Request("r", tokens, greedy(2), media)
        recorder.run(request)
        assert compare(recorder, reference(family), [request]) < TOLERANCE
        media[0].tensors["pixels"].zero_()
        assert compare(recorder, reference(family), [request]) > 100 * TOLERANCE


def test_a_shuffled_page_table_is_noticed(checkpoint: Folder, reference: Model) -> None:
    """Control: reading the wrong pages must fail the comparison."""
    folder = checkpoint("llama")
    recorder = Recorder(Engine(engine_options(folder)))
    plan = recorder.engine._runner._backend.plan

    def shuffled(batch):  # type: ignore[no-untyped-def]
        batch.page_indices = batch.page_indices.flip(0)
        plan(batch)

    recorder.engine._runner._backend.plan = shuffled  # type: ignore[method-assign]
    request = Request("r", words(100, 1), greedy(3))
    recorder.run(request)
    assert compare(recorder, reference("llama"), [request]) > 100 * TOLERANCE


def test_prompt_logprobs_are_those_of_the_reference(checkpoint: Folder, reference: Model) -> None:
    folder = checkpoint("qwen2")
    recorder = Recorder(Engine(engine_options(folder, max_tokens_per_step=9)))
    request = Request("r", words(30, 1), greedy(2, prompt_logprobs=3, logprobs=3))
    recorder.run(request)
    first = recorder.outputs[0]
    assert first.prompt_logprobs is not None
    assert first.prompt_logprobs[0] is None
    expected = reference("qwen2").logits(request.prompt_ids).log_softmax(-1)
    for position, entry in enumerate(first.prompt_logprobs[1:], start=1):
        assert entry is not None
        row = expected[position - 1]
        assert entry.token_id == request.prompt_ids[position]
        assert abs(entry.logprob - row[entry.token_id].item()) < TOLERANCE
        assert [token for token, _ in entry.top] == row.topk(3).indices.tolist()
    assert first.logprobs is not None
    assert abs(first.logprobs[0].logprob - expected[-1].max().item()) < TOLERANCE


def test_the_encoder_cache_spares_the_tower(checkpoint: Folder) -> None:
    folder = checkpoint("qwen2_vl")
    engine = Engine(engine_options(folder, prefix_cache=False))
    recorder = Recorder(engine)
    tokens, media = prompt_with_images(folder, [words(5, 1), picture(60, 90, 1), words(4, 2)])
    recorder.run(Request("a", tokens, greedy(2), media))
    assert engine.stats().encoder_cache_misses == 1
    recorder.run(Request("b", tokens, greedy(2), media))
    assert engine.stats().encoder_cache_misses == 1
    assert engine.stats().encoder_cache_hits == 1
    assert recorder.tokens["a", 0] == recorder.tokens["b", 0]


def test_half_precision_agrees_as_far_as_its_bits_reach(
    checkpoint: Folder, reference: Model
) -> None:
    folder = checkpoint("llama")
    recorder = Recorder(Engine(engine_options(folder, dtype="bfloat16")))
    request = Request("r", words(50, 1), greedy(1))
    recorder.run(request)
    expected = reference("llama").logits(request.prompt_ids)[-1]
    found = recorder.rows["r", 0, len(request.prompt_ids) - 1]
    assert torch.nn.functional.cosine_similarity(found, expected, dim=0) > 0.999
