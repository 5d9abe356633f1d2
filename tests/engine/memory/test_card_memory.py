"""What of a card is set aside beside weights and caches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engine.attention.limits import MIB, WORKSPACE_BYTES
from engine.memory.card_memory import overhead_bytes
from engine.memory.checkpoint import read_checkpoint


def test_scratch_for_attention_does_not_depend_on_the_groups_of_heads(
    checkpoint: Callable[[str], Path],
) -> None:
    """Groups of 6 and 7, Qwen2-VL's, took 512 MiB, which FlashInfer has not needed since 0.7."""
    read = read_checkpoint(checkpoint("llama"))
    overheads = [
        overhead_bytes(replace(read, heads=heads, kv_heads=2), 0, 1, graphs=False)
        for heads in (8, 12, 14)
    ]
    assert len(set(overheads)) == 1
    assert overheads[0] < 800 * MIB


@pytest.mark.parametrize(("kv_heads", "head_dim"), [(2, 128), (4, 128), (8, 128), (4, 256)])
def test_scratch_suffices_to_record_a_thousand_sequences(kv_heads: int, head_dim: int) -> None:
    """By FlashInfer's planner: a tile of 16 rows and heads a sequence, split in any case."""
    rows = 1024 * 16
    assert rows * kv_heads * (head_dim + 1) * 4 <= WORKSPACE_BYTES
