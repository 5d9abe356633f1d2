"""Drafts take what nobody else wants of a step and its pages, and give it back."""

from __future__ import annotations

import torch

from engine.request import Request, SamplingOptions
from engine.scheduling.page_pool import PagePool
from engine.scheduling.prompt_lookup import PromptLookup
from engine.scheduling.scheduler import Scheduler, Slice
from engine.scheduling.sequence import Sequence

PAGE = 4
LENGTH = 9  # of a prompt that repeats itself, so that there is always something to draft


def decoding(
    pool: PagePool,
    count: int = 1,
    tokens: int = 100,
    rows: int = 100,
    max_tokens: int = 50,
    length: int = LENGTH,
) -> Scheduler:
    """A scheduler with so many sequences that decode."""
    scheduler = Scheduler(pool, PAGE, 1000, 16, rows, draft_tokens=4)
    for index in range(count):
        request = Request(str(index), [7] * length, SamplingOptions(max_tokens))
        sequence = Sequence(
            request, 0, index, b"%d" % index, torch.arange(length)[None], 0, [7] * length
        )
        scheduler.add(sequence)
    for item in scheduler.schedule():
        scheduler.computed(item)
        item.sequence.tokens.append(7)
        lookup = item.sequence.lookup = PromptLookup()
        lookup._trust = 1.0
    scheduler.max_tokens = tokens
    return scheduler


def drafts(slices: list[Slice]) -> list[tuple[str, int]]:
    return [(item.sequence.request.id, item.start) for item in slices if item.draft is not None]


def test_drafts_follow_their_slice_and_give_pages_back() -> None:
    pool = PagePool(20)
    scheduler = decoding(pool, 2)
    used = pool.used
    slices = scheduler.schedule()
    assert [(item.sequence.request.id, item.start, item.end) for item in slices] == [
        (name, place, place + 1) for name in "01" for place in range(LENGTH, LENGTH + 5)
    ]
    assert [item.draft for item in slices[:5]] == [None, 7, 7, 7, 7]
    assert pool.used == used + 2  # places 12 and 13
    kept, dropped = scheduler.running
    for item in slices[::5]:
        scheduler.computed(item)
        item.sequence.tokens.append(7)
    for _ in range(3):
        scheduler.keep(kept)
        kept.tokens.append(7)
    scheduler.settle(kept)
    scheduler.settle(dropped)
    assert (kept.computed, dropped.computed) == (LENGTH + 4, LENGTH + 1)
    assert [len(each.pages) for each in (kept, dropped)] == [4, 3]
    assert pool.used == used + 1


def test_what_a_step_has_left_is_all_that_is_drafted() -> None:
    assert len(drafts(decoding(PagePool(20), 2, tokens=100).schedule())) == 8
    assert drafts(decoding(PagePool(20), 2, tokens=2).schedule()) == []
    first = [("0", LENGTH + 1), ("0", LENGTH + 2), ("0", LENGTH + 3)]
    assert drafts(decoding(PagePool(20), 2, tokens=5).schedule()) == first
    assert len(drafts(decoding(PagePool(20), 2, rows=6).schedule())) == 6
    assert len(drafts(decoding(PagePool(20), max_tokens=4).schedule())) == 2
    assert drafts(decoding(PagePool(20), max_tokens=2).schedule()) == []


def test_a_prompt_comes_before_drafts() -> None:
    pool = PagePool(20)
    scheduler = decoding(pool, tokens=12)
    request = Request("late", [5] * 10, SamplingOptions(9))
    scheduler.add(Sequence(request, 0, 99, b"late", torch.arange(10)[None], 0, [5] * 10))
    slices = scheduler.schedule()
    assert [item.count for item in slices if item.sequence.request.id == "late"] == [10]
    assert len(drafts(slices)) == 1


def test_drafts_keep_to_the_pages_that_there_are() -> None:
    pool = PagePool(3)  # of 12 tokens, 9 of which are the prompt's
    scheduler = decoding(pool)
    assert drafts(scheduler.schedule()) == [("0", 10), ("0", 11)]
    assert scheduler.preemptions == 0


def test_no_draft_is_made_where_somebody_was_preempted() -> None:
    pool = PagePool(6)
    scheduler = decoding(pool, 2, length=11)
    slices = scheduler.schedule()
    for item in slices:
        if item.draft is None:
            scheduler.computed(item)
            item.sequence.tokens.append(7)
    for sequence in scheduler.running:
        scheduler.settle(sequence)
    slices = scheduler.schedule()  # each needs a fourth page
    assert scheduler.preemptions == 1
    assert [item.sequence.request.id for item in slices] == ["0"]


def test_the_more_a_step_computes_the_likelier_a_draft_has_to_be() -> None:
    drafted = []
    for count in (1, 4, 16):
        scheduler = decoding(PagePool(200), count)
        for sequence in scheduler.running:
            assert sequence.lookup is not None
            sequence.lookup._trust = 0.6
        drafted.append(len(drafts(scheduler.schedule())) / count)
    assert drafted == [4, 2, 1]
