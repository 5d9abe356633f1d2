"""Attention over pages by every variant against attention in float64, a sequence at a time."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from engine.attention.backend import AttentionShape, KVCache
from engine.attention.native import NativeAttention
from engine.native.library import Machine
from engine.request import Request, SamplingOptions
from engine.scheduling.batch import build_batch
from engine.scheduling.scheduler import Slice
from engine.scheduling.sequence import Sequence

Machines = dict[int, Machine]
NOTHING = float("nan")  # what lies where no key of the batch does


@dataclass(frozen=True)
class Part:
    """The last `count` of `length` tokens of a sequence; `seed` says which."""

    seed: int
    length: int
    count: int
    spans: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Tokens:
    """Of a sequence, `[length, heads, size]` each."""

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor


def shape_of(
    heads: int = 4, kv_heads: int = 2, head_dim: int = 64, **more: object
) -> AttentionShape:
    settings = {"scale": head_dim**-0.5} | more
    return AttentionShape(1, heads, kv_heads, head_dim, **settings)  # type: ignore[arg-type]


def drawn(part: Part, shape: AttentionShape, dtype: torch.dtype) -> Tokens:
    generator = torch.Generator().manual_seed(part.seed)
    sizes = [(shape.heads, shape.head_dim), *shape.stored]
    return Tokens(
        *(torch.randn(part.length, *size, generator=generator).to(dtype) for size in sizes)
    )


def exact(part: Part, shape: AttentionShape, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
    """What the last tokens attend to, and how large the terms of its sums are, in float64."""
    first, group = part.length - part.count, shape.heads // shape.kv_heads
    queries = tokens.queries[first:].double()
    keys, values = (
        kept.double().repeat_interleave(group, dim=1) for kept in (tokens.keys, tokens.values)
    )
    scores = torch.einsum("qhd,khd->hqk", queries, keys) * shape.scale
    if shape.soft_cap is not None:
        scores = shape.soft_cap * torch.tanh(scores / shape.soft_cap)
    own, other = torch.arange(first, part.length)[:, None], torch.arange(part.length)
    seen = other <= own
    for start, end in part.spans:
        seen |= (own >= start) & (own < end) & (other >= start) & (other < end)
    if (left := shape.window_left(0)) >= 0:
        seen &= other >= own - left
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return (
        torch.einsum("hqk,khd->qhd", weights, values).flatten(1),
        torch.einsum("hqk,khd->qhd", weights, values.abs()).flatten(1),
    )


class Stage:
    """Pages in which sequences lie anyhow, and a batch of their last tokens attended to."""

    def __init__(
        self,
        shape: AttentionShape,
        dtype: torch.dtype,
        parts: list[Part],
        tokens: list[Tokens],
        page_size: int = 16,
    ) -> None:
        self.shape, self.parts, self.tokens = shape, parts, tokens
        count = sum(-(-part.length // page_size) for part in parts) + 2
        self.cache = KVCache(shape, count, page_size, dtype, torch.device("cpu"))
        for kept in self.cache.layers[0]:
            kept.fill_(NOTHING)
        free = list(range(1, count + 1))
        random.Random(3).shuffle(free)
        slices = []
        for part, own in zip(parts, tokens, strict=True):
            pages = [free.pop() for _ in range(-(-part.length // page_size))]
            sequence = Sequence(
                request=Request("r", [1] * part.length, SamplingOptions(max_tokens=1)),
                index=0,
                arrival=0,
                salt=b"",
                positions=torch.arange(part.length)[None],
                position_offset=0,
                tokens=[1] * part.length,
                spans=list(part.spans),
                pages=pages,
            )
            first = part.length - part.count
            slices.append(Slice(sequence, first, part.length))
            places = torch.arange(first)
            slots = torch.tensor(pages)[places // page_size] * page_size + places % page_size
            for kept, earlier in zip(self.cache.layers[0], (own.keys, own.values), strict=True):
                kept.flatten(0, 1)[slots] = earlier[:first]
        self.batch = build_batch(slices, page_size)

    def attended(self, machine: Machine) -> list[torch.Tensor]:
        """Of each part `[count, heads * value_dim]`."""
        backend = NativeAttention(self.shape, self.cache, machine)
        backend.plan(self.batch)
        pairs = list(zip(self.parts, self.tokens, strict=True))
        found = backend.run(
            0,
            *(
                torch.cat([getattr(own, name)[part.length - part.count :] for part, own in pairs])
                for name in ("queries", "keys", "values")
            ),
        )
        return list(found.split([part.count for part in self.parts]))


def staged(
    shape: AttentionShape, dtype: torch.dtype, parts: list[Part], page_size: int = 16
) -> Stage:
    return Stage(shape, dtype, parts, [drawn(part, shape, dtype) for part in parts], page_size)


def excess(found: torch.Tensor, part: Part, shape: AttentionShape, tokens: Tokens) -> float:
    """The largest error over what is allowed; above 1 it is no rounding."""
    expected, terms = exact(part, shape, tokens)
    allowed = 1e-5 * terms + 1e-7
    if found.dtype == torch.bfloat16:  # the weights of prompts, and the result, are rounded to it
        allowed += 2.0**-8 * (terms + expected.abs())
    errors = (found.double() - expected).abs() / allowed
    return errors.nan_to_num(nan=float("inf")).max().item()


def agree(machine: Machine, stage: Stage) -> None:
    for part, own, found in zip(stage.parts, stage.tokens, stage.attended(machine), strict=True):
        assert excess(found, part, stage.shape, own) <= 1, part


MIXED = [  # single tokens behind keys of one part and of several, prompts whole and in chunks
    Part(1, 1, 1),
    Part(2, 37, 37),
    Part(3, 18, 1),
    Part(4, 256, 1),
    Part(5, 150, 51),
    Part(6, 257, 1),
    Part(7, 2, 2),
    Part(8, 701, 1),
    Part(9, 321, 2),
]


@pytest.mark.parametrize("page_size", [1, 3, 16, 64])
@pytest.mark.parametrize("window", [None, 1, 24, 256, 300])
def test_prompts_and_single_tokens_in_one_batch(
    machines: Machines, dtype: torch.dtype, page_size: int, window: int | None
) -> None:
    shape = shape_of(windows=(window,))
    stage = staged(shape, dtype, MIXED, page_size)
    agree(machines[2], stage)
    found = stage.attended(machines[2])
    step = 1 if dtype == torch.float32 else 1 + (window or 701) // 2  # what would not be rounding
    for number in (7, 8):
        part, own = MIXED[number], stage.tokens[number]
        other = replace(shape, windows=(abs((window or part.length) - step) or 2,))
        assert excess(found[number], part, other, own) > 3


SHAPES = {
    "a head of keys each": shape_of(2, 2),
    "three share one": shape_of(6, 2),
    "seven share one": shape_of(14, 2),
    "more than a tile of heads": shape_of(24, 2),
    "more than a tile of rows": shape_of(200, 1, 16),
    "small heads": shape_of(4, 2, 16),
    "heads of odd blocks": shape_of(4, 2, 80),
    "large heads": shape_of(4, 2, 128),
    "the largest heads": shape_of(4, 1, 256),
    "values smaller than keys": shape_of(4, 2, 64, value_dim=16),
    "values larger than keys": shape_of(4, 2, 16, value_dim=144),
    "a cap on scores": shape_of(4, 2, 64, soft_cap=2.0, scale=0.5),
    "a cap on scores in a window": shape_of(4, 2, 64, soft_cap=2.0, scale=0.5, windows=(70,)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_of_heads(machines: Machines, dtype: torch.dtype, name: str) -> None:
    parts = [Part(1, 300, 1), Part(2, 23, 23), Part(3, 530, 1), Part(4, 90, 15), Part(5, 7, 1)]
    stage = staged(SHAPES[name], dtype, parts)
    agree(machines[2], stage)
    found = stage.attended(machines[2])
    others = replace(SHAPES[name], scale=SHAPES[name].scale * 1.2)
    assert excess(found[1], parts[1], others, stage.tokens[1]) > 1.5


@pytest.mark.parametrize("window", [None, 30])
def test_tokens_of_a_span_see_each_other(
    machines: Machines, dtype: torch.dtype, window: int | None
) -> None:
    """Whole spans, one that a chunk begins within, one that others of the batch do not have."""
    shape = shape_of(windows=(window,))
    parts = [
        Part(1, 150, 150, spans=((3, 40), (60, 141))),
        Part(2, 90, 30, spans=((50, 80),)),
        Part(3, 40, 40),
        Part(4, 65, 1, spans=((10, 65),)),
    ]
    stage = staged(shape, dtype, parts)
    agree(machines[2], stage)
    found = stage.attended(machines[2])
    for number in (0, 1):
        plain = replace(parts[number], spans=())
        assert excess(found[number], plain, shape, stage.tokens[number]) > 5


def test_a_span_that_is_cut_ends_with_the_keys_that_there_are(
    machines: Machines, dtype: torch.dtype
) -> None:
    shape = shape_of()
    for length, count in ((40, 30), (64, 64), (65, 1)):
        stage = staged(shape, dtype, [Part(1, length, count, spans=((20, 260),))], page_size=64)
        agree(machines[1], stage)


def test_a_prompt_in_chunks_is_that_of_one_piece(machines: Machines, dtype: torch.dtype) -> None:
    """The library's own stores are read by the steps behind them."""
    shape, length = shape_of(), 333
    whole = Part(1, length, length)
    tokens = drawn(whole, shape, dtype)
    stage = Stage(shape, dtype, [whole], [tokens], page_size=3)
    sequence = stage.batch.slices[0].sequence
    backend = NativeAttention(shape, stage.cache, machines[2])
    found, start = [], 0
    for end in (70, 71, 200, 264, 265, 266, length):
        backend.plan(build_batch([Slice(sequence, start, end)], 3))
        rows = (part[start:end] for part in (tokens.queries, tokens.keys, tokens.values))
        found.append(backend.run(0, *rows))
        start = end
    assert excess(torch.cat(found), whole, shape, tokens) <= 1


def test_a_token_is_the_same_whatever_runs_beside_it(
    machines: Machines, dtype: torch.dtype
) -> None:
    """To the last bit: beside prompts, in other places, in other pages, on other threads."""
    for window in (None, 300):
        shape = shape_of(14, 2, windows=(window,))
        alone = {part: staged(shape, dtype, [part]).attended(machines[1])[0] for part in MIXED}
        for machine in machines.values():
            for parts in (MIXED, MIXED[::-1], [*MIXED[3:], *MIXED[:3]], [MIXED[7]]):
                found = staged(shape, dtype, parts, page_size=64).attended(machine)
                for part, own in zip(parts, found, strict=True):
                    assert torch.equal(own, alone[part]), part


@pytest.mark.parametrize("cap", [None, 50.0])
@pytest.mark.parametrize("count", [1, 40])
def test_scores_that_are_far_apart(
    machines: Machines, dtype: torch.dtype, cap: float | None, count: int
) -> None:
    """Of 10,000 and less than nothing, both of them numbers that bfloat16 has."""
    shape, part = shape_of(2, 1, 16, scale=1.0, soft_cap=cap), Part(1, 600, count)
    tokens = drawn(part, shape, dtype)
    tokens.queries.zero_()[..., 0] = 128.0
    tokens.keys.zero_()[..., 0] = torch.tensor([-80.0, 0, -80.0, 80.0, 0, 80.0, -80.0])[
        torch.arange(600) % 7
    ].unsqueeze(1)
    found = Stage(shape, dtype, [part], [tokens]).attended(machines[2])[0]
    assert excess(found, part, shape, tokens) <= 1
    tokens.queries.neg_()
    assert excess(found, part, shape, tokens) > 5


@pytest.mark.parametrize("low", [-1e4, -2e38])
def test_keys_that_are_all_far_below_nothing(
    machines: Machines, dtype: torch.dtype, low: float
) -> None:
    """The largest score is what weights are relative to, however low it is."""
    shape = shape_of(2, 1, 16, scale=1.0)
    for part in (Part(1, 600, 1), Part(1, 80, 80)):
        tokens = drawn(part, shape, dtype)
        tokens.queries.zero_()[..., 0] = 1.0
        tokens.keys.zero_()[..., 0] = low
        found = Stage(shape, dtype, [part], [tokens]).attended(machines[1])[0]
        assert excess(found, part, shape, tokens) <= 1


@pytest.mark.parametrize("cap", [None, 5.0])
def test_no_number_stays_none(machines: Machines, dtype: torch.dtype, cap: float | None) -> None:
    """In a query its token's result, in a key those of all that see it; nobody else's."""
    shape = shape_of(soft_cap=cap)
    parts = [Part(1, 300, 1), Part(2, 40, 20), Part(3, 18, 1), Part(4, 90, 30)]
    clean = staged(shape, dtype, parts).attended(machines[2])
    for name, place in (("queries", 39), ("keys", 25), ("values", 25)):
        stage = staged(shape, dtype, parts)
        getattr(stage.tokens[1], name)[place] = NOTHING
        found = stage.attended(machines[2])
        for number in (0, 2, 3):
            assert torch.equal(found[number], clean[number])
        assert found[1][place - 20 :].isnan().all(), name
        single = staged(shape, dtype, parts)
        getattr(single.tokens[2], name)[17] = NOTHING
        assert single.attended(machines[2])[2].isnan().all(), name


def test_a_long_context_is_merged_of_many_parts(machines: Machines, dtype: torch.dtype) -> None:
    shape = shape_of(2, 1, 16)
    parts = [Part(1, 40_000, 1), Part(2, 30, 30), Part(3, 20_000, 3)]
    stage = staged(shape, dtype, parts)
    agree(machines[5], stage)


def test_scratch_memory_is_as_much_as_is_used(machines: Machines, dtype: torch.dtype) -> None:
    """Memory of exactly that size: what runs under a sanitizer sees any byte beyond it."""
    for shape in (shape_of(), shape_of(24, 2, windows=(300,))):
        for parts in (MIXED, MIXED[:1], MIXED[3:4], MIXED[1:2]):
            stage = staged(shape, dtype, parts)
            backend = NativeAttention(shape, stage.cache, machines[2])
            backend.plan(stage.batch)
            needed = backend.machine.scratch_bytes(backend.stack, backend.batch)
            backend._scratch = torch.full((needed + 4096,), 0x5A, dtype=torch.uint8)
            stage_run(stage, backend)
            assert backend._scratch[needed:].eq(0x5A).all()
            backend._scratch = torch.empty(needed, dtype=torch.uint8)
            stage_run(stage, backend)


def stage_run(stage: Stage, backend: NativeAttention) -> None:
    pairs = list(zip(stage.parts, stage.tokens, strict=True))
    rows = (
        torch.cat([getattr(own, name)[part.length - part.count :] for part, own in pairs])
        for name in ("queries", "keys", "values")
    )
    found = backend.run(0, *rows).split([part.count for part in stage.parts])
    for own, (part, tokens) in zip(found, pairs, strict=True):
        assert excess(own, part, stage.shape, tokens) <= 1


def test_rows_that_are_not_the_planned_batch_are_refused(machines: Machines, built: Path) -> None:
    shape = shape_of()
    stage = staged(shape, torch.float32, [Part(1, 20, 20)])
    backend = NativeAttention(shape, stage.cache, machines[1])
    backend.plan(stage.batch)
    good = [torch.zeros(20, heads, 64) for heads in (4, 2, 2)]
    backend.run(0, *good)
    for index in range(3):
        for wrong in (good[index][:19], good[index][:, :1], good[index].bfloat16()):
            rows = [*good[:index], wrong, *good[index + 1 :]]
            with pytest.raises(ValueError, match="in place of"):
                backend.run(0, *rows)
    with pytest.raises(ValueError, match="in place of"):
        backend.run(0, *(part[:19] for part in good))
