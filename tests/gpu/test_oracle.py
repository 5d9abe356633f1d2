"""What only the path of a CUDA device does; torch stands in FlashInfer's place.

That its logits are transformers' is tested with the CPU's: `tests/engine/running/test_oracle.py`.
"""

from __future__ import annotations

import json
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
)
from bench.stand_in.platforms import StandIn, cuda_path, standing_in
from bench.stand_in.torch_flashinfer import (
    BatchDecodeWithPagedKVCacheWrapper,
    apply_rope_with_cos_sin_cache_inplace,
)
from engine.core import Engine
from engine.errors import ModelUnsupported
from engine.request import Request
from tests.engine.running.test_oracle import words

Folder = Callable[[str], Path]
Model = Callable[[str], Reference]


def test_a_score_cap_is_ours_or_flashinfers(tmp_path: Path, checkpoint: Folder) -> None:
    folder = shutil.copytree(checkpoint("gemma3_text"), tmp_path / "capped")
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"attn_logit_softcapping": 20.0}))
    assert cuda_path(folder)._runner.loaded.shape.soft_cap == 20.0
    with pytest.raises(ModelUnsupported, match=r"engine\.native=auto .* or engine=cuda"):
        Engine(engine_options(folder, native="torch"))
    request = Request("r", words(100, 1), greedy(4))
    found = []
    for engine in (
        cuda_path(folder),
        Engine(engine_options(folder)),
        Engine(engine_options(checkpoint("gemma3_text"))),
    ):
        recorder = Recorder(engine)
        recorder.run(request)
        found.append(recorder.rows["r", 0, 99])
    card, capped, plain = found
    assert (card - capped).abs().max() < 3 * TOLERANCE  # two roundings apart
    assert (plain - capped).abs().max() > 100 * TOLERANCE


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
        recorder = Recorder(cuda_path(checkpoint("llama"), StandIn(standing_in(**replaced))))
        recorder.run(request)
        assert compare(recorder, reference("llama"), [request]) > 100 * TOLERANCE
