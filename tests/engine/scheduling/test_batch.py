"""A step's tensors are those of a builder that goes token by token, at a price that does not."""

from __future__ import annotations

import random
from array import array
from dataclasses import fields
from types import ModuleType

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.request import Pooling, Request, SamplingOptions
from engine.scheduling import batch as module
from engine.scheduling.batch import Batch, build_batch
from engine.scheduling.page_pool import PagePool
from engine.scheduling.scheduler import Scheduler, Slice
from engine.scheduling.sequence import Sequence, in_flight

PAGE = 4
ROWS = 3  # of positions


def plain(slices: list[Slice], page_size: int) -> Batch:
    """The batch as its description reads, one token at a time."""
    token_ids, slots, positions, spans = [], [], [], []
    query_start, page_start, page_indices, last_page_length = [0], [0], [], []
    logit_rows, hidden_rows = [], []
    for item in slices:
        sequence, prompt = item.sequence, len(item.sequence.request.prompt_ids)
        for index in range(item.start, item.end):
            token_ids.append(sequence.tokens[index] if item.draft is None else item.draft)
            slots.append(sequence.pages[index // page_size] * page_size + index % page_size)
            if index < prompt:
                positions.append(sequence.positions[:, index].tolist())
            else:
                positions.append([index + sequence.position_offset] * ROWS)
            around = [span for span in sequence.spans if span[0] <= index < span[1]]
            spans.append((around[0][0], around[0][1] - 1) if around else (-1, -1))
            row = index - item.start
            asked = item.wants_prompt_logprobs or item.draft is not None
            if asked or (item.samples and index == item.end - 1):
                logit_rows.append(query_start[-1] + row)
            if row in item.pooled:
                hidden_rows.append(query_start[-1] + row)
        query_start.append(len(token_ids))
        page_indices += [sequence.pages[n] for n in range(-(-item.end // page_size))]
        page_start.append(len(page_indices))
        last_page_length.append((item.end - 1) % page_size + 1)
    if all(span == (-1, -1) for span in spans):
        spans = []
    return Batch(
        slices=slices,
        token_ids=torch.tensor(token_ids),
        positions=torch.tensor(positions).T,
        slots=torch.tensor(slots),
        query_start=torch.tensor(query_start, dtype=torch.int32),
        page_start=torch.tensor(page_start, dtype=torch.int32),
        page_indices=torch.tensor(page_indices, dtype=torch.int32),
        last_page_length=torch.tensor(last_page_length, dtype=torch.int32),
        lengths=[item.end for item in slices],
        logit_rows=torch.tensor(logit_rows, dtype=torch.int64),
        page_size=page_size,
        spans=torch.tensor(spans, dtype=torch.int32).view(-1, 2),
        hidden_rows=torch.tensor(hidden_rows, dtype=torch.int64),
    )


def assert_equal(found: Batch, expected: Batch) -> None:
    for name in (each.name for each in fields(Batch)):
        one, other = getattr(found, name), getattr(expected, name)
        if isinstance(other, torch.Tensor):
            assert (one.dtype, one.shape) == (other.dtype, other.shape), name
            assert torch.equal(one, other), name
        else:
            assert one == other, name


def drawn_slice(chance: random.Random, pages: list[int]) -> Slice:
    """Some tokens of some sequence: a chunk of a prompt, a step of decoding, or both at once."""
    prompt, generated = chance.randint(1, 20), chance.randint(0, 9)
    poolings: list[Pooling | None] = [None, None, None, "last", "cls", "mean"]
    pooling = chance.choice(poolings)
    if pooling is not None:
        generated = 0
    start = chance.choice([0, chance.randrange(prompt + generated), prompt + generated - 1])
    end = chance.choice([prompt + generated, chance.randint(start + 1, prompt + generated)])
    sampling = SamplingOptions(
        max_tokens=0 if pooling else 9, prompt_logprobs=chance.choice([None, None, 0])
    )
    ids = [chance.randrange(100) for _ in range(prompt)]
    tokens = ids + [chance.randrange(100) for _ in range(generated)]
    if generated:
        tokens[-1] = in_flight(chance.randrange(4))
    positions = torch.tensor([[chance.randrange(50) for _ in ids] for _ in range(ROWS)])
    spans = [(1, 4)] if prompt > 4 and chance.random() < 0.3 else []
    sequence = Sequence(
        Request("r", ids, sampling, pooling=pooling),
        0,
        0,
        b"",
        positions,
        chance.randint(-9, 9),
        tokens=tokens,
        spans=spans,
    )
    count = -(-end // PAGE) + chance.randint(0, 1)  # more than the slice needs: a later chunk's
    sequence.pages = [pages.pop() for _ in range(count)]
    if chance.random() < 0.8:
        sequence.pages = array("i", sequence.pages)
    return Slice(sequence, start, end)


def with_drafts(chance: random.Random, item: Slice) -> list[Slice]:
    """A slice and, if its sequence decodes, what may come behind it on the pages that it has."""
    sequence, end = item.sequence, item.end
    room = len(sequence.pages) * PAGE - end
    if not item.samples or item.start < sequence.prompt_length or not room:
        return [item]
    places = range(end, end + chance.randint(1, room))
    return [item, *(Slice(sequence, at, at + 1, chance.randrange(100)) for at in places)]


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 8))
def test_a_batch_is_that_of_a_plain_builder(seed: int, count: int) -> None:
    chance = random.Random(seed)
    pages = list(range(1, 200))
    chance.shuffle(pages)
    drawn = [drawn_slice(chance, pages) for _ in range(count)]
    slices = [each for item in drawn for each in with_drafts(chance, item)]
    assert_equal(build_batch(slices, PAGE), plain(slices, PAGE))


def test_a_wrong_batch_is_told_from_a_plain_one() -> None:
    pages = list(range(1, 20))
    slices = [drawn_slice(random.Random(1), pages)]
    wrong = build_batch(slices, PAGE)
    wrong.slots[-1] += 1
    with pytest.raises(AssertionError, match="slots"):
        assert_equal(wrong, plain(slices, PAGE))


def decoding(count: int, length: int) -> Scheduler:
    """A scheduler whose sequences all decode."""
    pool = PagePool(count * (length // PAGE + 8))
    scheduler = Scheduler(pool, PAGE, count * (length + 1), count, 8)
    for index in range(count):
        request = Request(str(index), [7] * length, SamplingOptions(max_tokens=100))
        made = Sequence(
            request, 0, index, b"%d" % index, torch.arange(length)[None], 0, [7] * length
        )
        scheduler.add(made)
    for item in scheduler.schedule():
        scheduler.computed(item)
        item.sequence.tokens.append(7)
    assert len(scheduler.running) == count
    return scheduler


def test_sequences_are_told_apart_without_being_read() -> None:
    scheduler = decoding(16, 8)
    one, other = scheduler.running[:2]
    assert Sequence.__eq__ is object.__eq__
    assert len({one, other, one}) == 2
    assert [item.sequence for item in scheduler.schedule()] == scheduler.running


class Counting:
    """A module that counts what is looked up in it."""

    def __init__(self, wrapped: ModuleType) -> None:
        self._wrapped = wrapped
        self.count = 0

    def __getattr__(self, name: str) -> object:
        self.count += 1
        return getattr(self._wrapped, name)


def test_decoding_makes_as_few_arrays_for_many_long_sequences_as_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used = []
    for count, length in ((1, 8), (24, 8), (24, 400)):
        slices = decoding(count, length).schedule()
        assert len(slices) == count
        for item in slices:  # no page table is copied by itself
            pages = item.sequence.pages
            assert module._table(item.sequence, len(pages)) is pages
        modules = Counting(torch), Counting(numpy)
        with monkeypatch.context() as patch:
            patch.setattr(module, "torch", modules[0])
            patch.setattr(module, "numpy", modules[1])
            build_batch(slices, PAGE)
        used.append([each.count for each in modules])
    assert used[0] == used[1] == used[2]
    assert all(used[0])


def test_digests_are_asked_for_once_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = decoding(1, 8)
    digests, asked = Sequence.block_digests, []

    def counted(sequence: Sequence, page_size: int) -> list[bytes]:
        asked.append(sequence.computed)
        return digests(sequence, page_size)

    monkeypatch.setattr(Sequence, "block_digests", counted)
    for _ in range(2 * PAGE):
        (item,) = scheduler.schedule()
        scheduler.computed(item)
        item.sequence.tokens.append(7)
    assert asked == [12, 16]
    assert scheduler.running[0].published == 4
