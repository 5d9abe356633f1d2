"""The path of a CUDA device, with torch in FlashInfer's place, agrees with transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine.attention.flashinfer import FlashInferAttention
from engine.core import Engine
from engine.errors import ModelUnsupported
from engine.fuse import FusedDecoder
from engine.platform import Host
from engine.request import Request
from tests.engine.harness import (
    TOLERANCE,
    Recorder,
    Reference,
    compare,
    engine_options,
    greedy,
    picture,
    prompt_with_images,
)
from tests.engine.test_oracle import TEXT, VISION, requests_for, words
from tests.gpu.platforms import Recording, cuda_path, standing_in
from tests.gpu.torch_flashinfer import (
    BatchDecodeWithPagedKVCacheWrapper,
    apply_rope_with_cos_sin_cache_inplace,
)

Folder = Callable[[str], Path]
Model = Callable[[str], Reference]


@pytest.mark.parametrize("path", ["fused", "unfused", "graphs"])
@pytest.mark.parametrize("family", TEXT + VISION)
def test_a_packed_batch_of_mixed_lengths_agrees_with_transformers(
    family: str, path: str, checkpoint: Folder, reference: Model
) -> None:
    folder = checkpoint(family)
    platform = Recording()
    engine = cuda_path(
        folder,
        platform,
        fuse=path != "unfused",
        graphs=path == "graphs",
        max_tokens_per_step=512,
    )
    assert isinstance(engine._runner._backend, FlashInferAttention)
    assert isinstance(engine._runner._decoder, FusedDecoder) == (path != "unfused")
    recorder = Recorder(engine)
    requests = requests_for(folder, family)
    recorder.run(*requests)
    assert max(len(batch.slices) for batch in recorder.batches) == len(requests)
    assert any("replay" in line for line in platform.log) == (path == "graphs")
    assert compare(recorder, reference(family), requests) < TOLERANCE
    for request in requests:
        expected = reference(family).generate(request.prompt_ids, 6, request.media)
        assert recorder.tokens[request.id, 0] == expected


@pytest.mark.parametrize("family", TEXT + VISION)
def test_chunks_that_end_anywhere_agree_at_every_prompt_token(
    family: str, checkpoint: Folder, reference: Model
) -> None:
    folder = checkpoint(family)
    recorder = Recorder(cuda_path(folder, Recording(), graphs=True, max_tokens_per_step=7))
    requests = [
        Request(r.id, r.prompt_ids, greedy(3, prompt_logprobs=0), r.media)
        for r in requests_for(folder, family)
    ]
    recorder.run(*requests)
    for request in requests:
        assert all((request.id, 0, p) in recorder.rows for p in range(len(request.prompt_ids)))
    assert compare(recorder, reference(family), requests) < TOLERANCE


@pytest.mark.parametrize("family", ["llama", "qwen2_vl"])
def test_a_preempted_sequence_resumes_with_the_same_logits(
    family: str, checkpoint: Folder, reference: Model
) -> None:
    folder = checkpoint(family)
    engine = cuda_path(folder, Recording(), graphs=True, pages=14, max_tokens_per_step=512)
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


@pytest.mark.parametrize("family", ["llama", "qwen2_vl"])
def test_a_shared_prefix_is_not_computed_again_and_changes_nothing(
    family: str, checkpoint: Folder, reference: Model
) -> None:
    folder = checkpoint(family)
    recorder = Recorder(cuda_path(folder))
    if family == "llama":
        shared, media = words(70, 1), []
    else:
        shared, media = prompt_with_images(
            folder, [words(20, 1), picture(200, 120, 2), words(9, 2)]
        )
    first = Request("first", shared + words(5, 3), greedy(20), media)
    recorder.run(first)
    # what was generated is findable too, though its tokens were in flight when computed
    continued = first.prompt_ids + recorder.tokens["first", 0]
    second = Request("second", continued + words(8, 4), greedy(4), media)
    recorder.run(second)
    hits = {output.request_id: output.cached_tokens for output in recorder.outputs}
    assert hits == {"first": 0, "second": (len(continued) - 1) // 16 * 16}
    assert compare(recorder, reference(family), [first, second]) < TOLERANCE


def test_windows_are_those_of_transformers(tmp_path: Path, checkpoint: Folder) -> None:
    folder = shutil.copytree(checkpoint("qwen2"), tmp_path / "windows")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    config["layer_types"] = ["full_attention", "sliding_attention", "sliding_attention"]
    path.write_text(json.dumps(config))
    requests = [Request(f"r{n}", words(n, n), greedy(12)) for n in (3, 20, 61)]
    reference = Reference(folder)
    for graphs in (False, True):
        recorder = Recorder(cuda_path(folder, Recording(), graphs=graphs, max_tokens_per_step=25))
        recorder.run(*requests)
        assert compare(recorder, reference, requests) < TOLERANCE
    assert compare(recorder, Reference(checkpoint("qwen2")), requests) > 100 * TOLERANCE
    with pytest.raises(ModelUnsupported, match=r"engine\.device=cuda"):
        Engine(engine_options(folder))


def test_float8_pages_are_near_and_not_equal(checkpoint: Folder, reference: Model) -> None:
    request = Request("r", words(100, 1), greedy(2))
    far = {}
    for kv_dtype in (None, "float8_e4m3fn"):
        recorder = Recorder(cuda_path(checkpoint("llama"), kv_dtype=kv_dtype))
        recorder.run(request)
        far[kv_dtype] = compare(recorder, reference("llama"), [request])
        row = recorder.rows["r", 0, 99]
        expected = reference("llama").logits(request.prompt_ids)[-1]
        assert torch.nn.functional.cosine_similarity(row, expected, dim=0) > 0.99
    assert far[None] < TOLERANCE < far["float8_e4m3fn"]


def test_wrong_pages_and_wrong_angles_are_noticed(checkpoint: Folder, reference: Model) -> None:
    """Controls: the comparison must fail when a kernel is fed something else."""

    class Shuffled(BatchDecodeWithPagedKVCacheWrapper):
        def plan(self, indptr, indices, *rest, **options):  # type: ignore[no-untyped-def]
            super().plan(indptr, indices.flip(0), *rest, **options)

    def turned(positions, query, key, size, cache, is_neox=True):  # type: ignore[no-untyped-def]
        apply_rope_with_cos_sin_cache_inplace(positions, query, key, size, cache.flip(-1))

    request = Request("r", words(100, 1), greedy(3))
    for replaced in (
        {"BatchDecodeWithPagedKVCacheWrapper": Shuffled},
        {"apply_rope_with_cos_sin_cache_inplace": turned},
    ):
        recorder = Recorder(cuda_path(checkpoint("llama"), Host(standing_in(**replaced))))
        recorder.run(request)
        assert compare(recorder, reference("llama"), [request]) > 100 * TOLERANCE
