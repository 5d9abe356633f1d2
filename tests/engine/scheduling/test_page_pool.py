"""Pool and scheduler under random work: no page owned twice, none lost, every sequence ends."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.request import MediaItem, Request, SamplingOptions
from engine.scheduling.page_pool import PagePool
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.sequence import Sequence

PAGE = 4


def sequence(
    tokens: list[int],
    name: str = "r",
    *,
    arrival: int = 0,
    max_tokens: int = 8,
    media: list[MediaItem] | None = None,
    spans: list[tuple[int, int]] | None = None,
    salt: bytes = b"",
    priority: int = 0,
    prompt_logprobs: int | None = None,
) -> Sequence:
    sampling = SamplingOptions(max_tokens=max_tokens, prompt_logprobs=prompt_logprobs)
    request = Request(name, tokens, sampling, media or [], priority=priority)
    positions = torch.arange(len(tokens))[None]
    return Sequence(request, 0, arrival, salt, positions, 0, tokens=list(tokens), spans=spans or [])


def check(pool: PagePool, scheduler: Scheduler) -> None:
    """Invariants that hold between any two steps."""
    held = Counter(page for s in scheduler.running for page in s.pages)
    assert 0 not in held
    assert pool._references[1:] == [held[page] for page in range(1, pool.pages + 1)]
    assert set(pool._free) == {p for p in range(1, pool.pages + 1) if not held[p]}
    assert {pool._page_of[digest] for digest in pool._digest_of.values()} == set(pool._digest_of)
    assert all(not s.pages for s in scheduler.waiting)
    for running in scheduler.running:
        assert len(running.pages) == len(set(running.pages))
        assert len(running.pages) * PAGE >= running.computed


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    pages=st.integers(6, 24),
    budget=st.integers(1, 24),
    slots=st.integers(1, 6),
)
def test_random_submit_finish_abort_preempt(seed: int, pages: int, budget: int, slots: int) -> None:
    chance = random.Random(seed)
    pool = PagePool(pages)
    rows = min(budget, 4)
    scheduler = Scheduler(pool, PAGE, budget, slots, rows)
    content: dict[int, tuple[object, ...]] = {}  # what a real cache would hold, by slot
    alive: list[Sequence] = []
    submitted = 0
    for step in range(400):
        if submitted < 20 and chance.random() < 0.3:
            length = chance.randint(1, min(20, pages * PAGE - 8))
            tokens = [chance.randint(0, 1) for _ in range(length)]
            media, spans = [], []
            if length > 4 and chance.random() < 0.3:
                media = [MediaItem("image", bytes([chance.randint(0, 1)]) * 8, 1, 3, {})]
                tokens[1:4] = [7] * 3
                spans = [(1, 4)] if budget >= 3 + slots - 1 else []
            made = sequence(
                tokens,
                f"r{submitted}",
                arrival=step,
                media=media,
                spans=spans,
                priority=chance.randint(0, 1),
                prompt_logprobs=chance.choice([None, None, 0]),
            )
            alive.append(made)
            scheduler.add(made)
            submitted += 1
        if alive and chance.random() < 0.05:
            victim = chance.choice(alive)
            victim.finish_reason = "abort"
            scheduler.finish(victim)
            alive.remove(victim)
        slices = scheduler.schedule()
        check(pool, scheduler)
        assert sum(item.count for item in slices) <= budget
        assert len({id(item.sequence) for item in slices}) == len(slices)
        assert len(scheduler.running) <= slots
        assert sum(item.count for item in slices if item.wants_prompt_logprobs) <= rows
        for item in slices:
            s = item.sequence
            assert not any(start < item.end < end for start, end in s.spans)
            for position in range(item.start, item.end):
                slot = s.pages[position // PAGE] * PAGE + position % PAGE
                content[slot] = history(s, position)
        for item in slices:  # every key that a token sees is the key of its own past
            s = item.sequence
            for position in range(item.end):
                slot = s.pages[position // PAGE] * PAGE + position % PAGE
                assert content[slot] == history(s, position)
        for item in slices:
            scheduler.computed(item)
            if item.samples:
                item.sequence.tokens.append(chance.randint(0, 1))
                if item.sequence.generated == item.sequence.sampling.max_tokens:
                    item.sequence.finish_reason = "length"
                    scheduler.finish(item.sequence)
                    alive.remove(item.sequence)
        check(pool, scheduler)
        if submitted == 20 and not alive:
            break
    else:
        pytest.fail(f"{len(alive)} sequences never ended")
    assert pool.used == 0
    assert not scheduler.running
    assert not scheduler.waiting


def history(s: Sequence, position: int) -> tuple[object, ...]:
    """All that the keys at a position depend on, in a span that is all of the span."""
    seen = max([position, *(end - 1 for start, end in s.spans if start <= position < end)])
    media = tuple((m.start, m.digest) for m in s.media if m.start <= position)
    return (*s.tokens[: seen + 1], media)


def computed(pool: PagePool, first: Sequence) -> Scheduler:
    scheduler = Scheduler(pool, PAGE, 100, 8, 100)
    scheduler.add(first)
    for item in scheduler.schedule():
        scheduler.computed(item)
    return scheduler


def test_the_same_prefix_hits_and_any_difference_misses() -> None:
    image = MediaItem("image", b"one", 2, 3, {})
    tokens = list(range(13))
    first = sequence(tokens, media=[image])
    pool = PagePool(32)
    computed(pool, first)

    def hits(other: Sequence) -> int:
        return len(pool.match(other.block_digests(PAGE)))

    assert hits(sequence(tokens, media=[image])) == 3
    assert hits(sequence([*tokens[:9], 99, 99, 99, 99], media=[image])) == 2
    assert hits(sequence(tokens, media=[MediaItem("image", b"two", 2, 3, {})])) == 0
    assert hits(sequence(tokens, media=[MediaItem("image", b"one", 1, 4, {})])) == 0
    assert hits(sequence(tokens)) == 0
    assert hits(sequence(tokens, media=[image], salt=b"tenant")) == 0
    assert hits(sequence([99, *tokens[1:]], media=[image])) == 0


def test_a_finished_sequence_is_found_until_its_pages_are_needed() -> None:
    pool = PagePool(4)
    first = sequence(list(range(13)))
    computed(pool, first).finish(first)
    assert pool.free == 4
    assert len(pool.match(first.block_digests(PAGE))) == 3
    pool.allocate(2)  # the page without a digest, then the end of the prefix
    assert len(pool.match(first.block_digests(PAGE))) == 2
    assert pool.allocate(3) is None
    assert pool.free == 2


def test_a_long_prompt_does_not_stop_decoding() -> None:
    scheduler = Scheduler(PagePool(100), PAGE, 8, 8, 8)
    short = sequence([1, 2, 3], "short")
    scheduler.add(short)
    for item in scheduler.schedule():
        scheduler.computed(item)
    short.tokens.append(4)
    scheduler.add(sequence(list(range(200)), "long", arrival=1, priority=-1))
    for _ in range(5):
        slices = scheduler.schedule()
        by_name = {item.sequence.request.id: item.count for item in slices}
        assert by_name == {"short": 1, "long": 7}
        for item in slices:
            scheduler.computed(item)
        short.tokens.append(4)


def test_the_newest_of_the_lowest_priority_is_preempted_first() -> None:
    pool = PagePool(6)
    scheduler = Scheduler(pool, PAGE, 100, 8, 100)
    members = [
        sequence([1] * 8, "urgent", arrival=3, priority=-1),
        sequence([2] * 8, "old", arrival=1),
        sequence([3] * 8, "new", arrival=2),
    ]
    for member in members:
        scheduler.add(member)
    for item in scheduler.schedule():
        scheduler.computed(item)
        item.sequence.tokens.append(9)
    slices = scheduler.schedule()
    assert [item.sequence.request.id for item in slices] == ["urgent", "old"]
    assert [s.request.id for s in scheduler.waiting] == ["new"]


def test_an_image_that_exceeds_what_is_left_for_towers_waits_for_the_next_step() -> None:
    scheduler = Scheduler(PagePool(100), PAGE, 20, 8, 20)
    images = [MediaItem("image", bytes([i]), 1, 15, {}) for i in range(2)]
    scheduler.add(sequence([1] * 16, "a", media=images[:1]))
    scheduler.add(sequence([2] * 16, "b", arrival=1, media=images[1:]))
    assert [(s.sequence.request.id, s.end) for s in scheduler.schedule()] == [("a", 16), ("b", 1)]
