"""Paged attention on the CPU against attention written out, one token and head at a time."""

from __future__ import annotations

import pytest
import torch

from bench.reference import greedy
from bench.stand_in import torch_flashinfer
from engine.attention.backend import AttentionShape, KVCache
from engine.attention.cpu import CpuAttention
from engine.attention.flashinfer import FlashInferAttention
from engine.device.device import Host
from engine.errors import ModelUnsupported
from engine.request import Request
from engine.scheduling.batch import Batch, build_batch
from engine.scheduling.scheduler import Slice
from engine.scheduling.sequence import Sequence

PAGE = 4


def batch_of(starts: list[int], lengths: list[int]) -> Batch:
    """Slices from `starts` to `lengths`, on pages in an order of their own."""
    free = torch.randperm(60, generator=torch.Generator().manual_seed(3)).add(1).tolist()
    slices = []
    for number, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        sequence = Sequence(
            request=Request(str(number), [1] * length, greedy(1)),
            index=0,
            arrival=0,
            salt=b"",
            positions=torch.arange(length)[None],
            position_offset=0,
            tokens=[1] * length,
            pages=[free.pop() for _ in range(-(-length // PAGE))],
        )
        slices.append(Slice(sequence, start, length))
    return build_batch(slices, PAGE)


@pytest.mark.parametrize("value_dim", [None, 8, 24])
def test_prompts_and_decoding_attend_to_all_keys_before_them(value_dim: int | None) -> None:
    shape = AttentionShape(1, 4, 2, 16, scale=0.25, value_dim=value_dim)
    lengths, wide = [13, 6, 9], value_dim or 16
    generator = torch.Generator().manual_seed(1)
    keys = [torch.randn(n, 2, 16, generator=generator) for n in lengths]
    values = [torch.randn(n, 2, wide, generator=generator) for n in lengths]
    queries = [torch.randn(n, 4, 16, generator=generator) for n in lengths]
    cache = KVCache(shape, 60, PAGE, torch.float32, torch.device("cpu"))
    backend = CpuAttention(shape, cache)
    starts = [0, 0, 0]
    for ends in ([7, 6, 3], [12, 6, 8], lengths):  # prompts in chunks, the last step decodes
        going = [n for n in range(3) if starts[n] < ends[n]]
        batch = batch_of([0] * 3, lengths)
        slices = [Slice(batch.slices[n].sequence, starts[n], ends[n]) for n in going]
        step = build_batch(slices, PAGE)
        backend.plan(step)
        parts = [
            torch.cat([tensors[n][starts[n] : ends[n]] for n in going])
            for tensors in (queries, keys, values)
        ]
        attended = backend.run(0, *parts).split([ends[n] - starts[n] for n in going])
        for n, found in zip(going, attended, strict=True):
            for row, position in enumerate(range(starts[n], ends[n])):
                for head in range(4):
                    seen = keys[n][: position + 1, head // 2] @ queries[n][position, head]
                    expected = (seen * 0.25).softmax(0) @ values[n][: position + 1, head // 2]
                    own = found[row, head * wide : (head + 1) * wide]
                    torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-4)
        starts = list(ends)
    assert cache.page_bytes == PAGE * 2 * (16 + wide) * 4


def test_a_backend_refuses_what_it_cannot_attend_to() -> None:
    capped = AttentionShape(1, 4, 2, 16, scale=0.25, soft_cap=5.0)
    cache = KVCache(capped, 4, PAGE, torch.float32, torch.device("cpu"))
    with pytest.raises(ModelUnsupported, match="score cap"):
        CpuAttention(capped, cache)
    narrow = AttentionShape(1, 4, 2, 16, scale=0.25, value_dim=8)
    with pytest.raises(ModelUnsupported, match="another size than keys"):
        FlashInferAttention(narrow, cache, Host(), torch.float32, torch_flashinfer)


@pytest.mark.parametrize("left", [float("nan"), float("inf"), 3e38])
def test_what_others_left_in_pages_is_not_attended_to(left: float) -> None:
    shape, lengths = AttentionShape(1, 4, 2, 16, scale=0.25), [13, 14, 17]
    attended = []
    for content in (0.0, left):
        generator = torch.Generator().manual_seed(1)
        cache = KVCache(shape, 60, PAGE, torch.float32, torch.device("cpu"))
        for part in cache.layers[0]:
            part[1:] = content
        backend = CpuAttention(shape, cache)
        whole = batch_of([0] * 3, lengths)
        starts = [0] * 3
        for ends in ([3, 9, 13], [11, 12, 15], [12, 13, 16], lengths):
            slices = [Slice(whole.slices[n].sequence, starts[n], ends[n]) for n in range(3)]
            starts = ends
            batch = build_batch(slices, PAGE)
            backend.plan(batch)
            query, key, value = (
                torch.randn(batch.tokens, heads, 16, generator=generator) for heads in (4, 2, 2)
            )
            attended.append(backend.run(0, query, key, value))
    for clean, used in zip(attended[:4], attended[4:], strict=True):
        assert torch.equal(clean, used)
