"""While answers are under way prompts take what a step may take for them, and all get on."""

from __future__ import annotations

import math
import random

import pytest
import torch

from engine.request import MediaItem, Request, SamplingOptions
from engine.scheduling import pace
from engine.scheduling.pace import GRAIN, Pace, turning_point
from engine.scheduling.page_pool import PagePool
from engine.scheduling.scheduler import Scheduler, Slice
from engine.scheduling.sequence import Sequence

PAGE = 16
UNIT, STEP, TURNING = 0.25e-3, 10e-3, 1000.0  # what the machine of these tests takes
ALLOWED = 0.1


def sequence(length: int, index: int, spans: list[tuple[int, int]] | None = None) -> Sequence:
    ids = [7] * length
    media = [
        MediaItem("image", bytes([index]), start, end - start, {}) for start, end in spans or []
    ]
    request = Request(str(index), ids, SamplingOptions(500), media=media)
    positions = torch.arange(length)[None]
    return Sequence(request, 0, index, b"%d" % index, positions, 0, list(ids), list(spans or []))


def scheduler(allowed: float | None = ALLOWED, tokens: int = 1024) -> Scheduler:
    pool = PagePool(4096)
    return Scheduler(pool, PAGE, tokens, 64, 256, pace=Pace(allowed, TURNING))


def took(scheduler: Scheduler, slices: list[Slice], slower: float = 1.0) -> float:
    """What a step takes on the machine of these tests."""
    return slower * (STEP + UNIT * scheduler.work(slices))


def step(scheduler: Scheduler, slower: float = 1.0) -> tuple[list[Slice], float]:
    slices = scheduler.schedule()
    seconds = took(scheduler, slices, slower)
    scheduler.pace.took(scheduler.work(slices), seconds)
    for item in slices:
        scheduler.computed(item)
        if item.samples:
            item.sequence.tokens.append(7)
    return slices, seconds


def decoding(allowed: float | None = ALLOWED, count: int = 4) -> Scheduler:
    """One whose sequences all decode, and which knows what steps take."""
    made = scheduler(allowed)
    for index in range(count):
        made.add(sequence(256, index))
    for _ in range(12):
        step(made)
    return made


def of_prompts(slices: list[Slice]) -> dict[str, int]:
    return {item.sequence.request.id: item.count for item in slices if item.count > 1}


def test_a_long_prompt_holds_no_answer_up_for_longer_than_it_may() -> None:
    for allowed, holds in ((ALLOWED, True), (None, False)):  # the control: as it was without
        made = decoding(allowed)
        late = sequence(2048, 9)
        made.add(late)
        longest = steps = 0.0
        while late.remaining > 1:
            slices, seconds = step(made)
            assert len(slices) == 5  # everybody else gets a token each step
            longest, steps = max(longest, seconds), steps + 1
        assert (longest <= 1.1 * (ALLOWED + STEP)) == holds
        assert (steps <= 16) == (steps >= 2)  # of 0.1 s each, and 1.03 s are to be computed


def test_its_later_tokens_are_fewer_since_they_attend_to_more() -> None:
    made = decoding()
    made.add(sequence(3000, 9))
    counts = [of_prompts(step(made)[0]).get("9", 0) for _ in range(12)]
    assert counts[0] > 1.8 * counts[-1] > 0


def test_prompts_alone_have_all_of_a_step() -> None:
    made = decoding()
    for each in list(made.running):
        made.finish(each)
    made.add(sequence(2048, 9))
    assert of_prompts(step(made)[0]) == {"9": 1024}


def test_several_prompts_share_what_a_step_has_for_them() -> None:
    made = decoding()
    for index in range(9, 15):
        made.add(sequence(200, index))
    slices, seconds = step(made)
    assert of_prompts(slices).keys() == {"9", "10"}
    assert seconds <= 1.1 * (ALLOWED + STEP)
    assert len(made.running) == 6  # what has no part in a step is not admitted either


@pytest.mark.parametrize("slower", [0.2, 1.0, 5.0, 1000.0])
def test_a_machine_of_another_speed_is_learnt_and_nobody_starves(slower: float) -> None:
    made = decoding()
    late = sequence(2048, 9)
    made.add(late)
    counts = []
    while late.remaining > 1:
        slices, _ = step(made, slower)
        counts += of_prompts(slices).values()
        assert len(counts) <= 2048 // GRAIN
    assert counts[-2] >= GRAIN
    if slower == 0.2:
        assert max(counts) > counts[0]


def test_answers_that_get_slower_do_not_take_the_prompts_share() -> None:
    made = decoding()
    learnt = made.pace
    for _ in range(20):  # no step without prompts tells that there are more answers by now
        learnt.took(400, 3 * STEP + 400 * UNIT)
    assert 0.6 * UNIT < learnt.unit < 1.25 * UNIT
    for _ in range(10):
        learnt.took(0, 3 * STEP)
        learnt.took(400, 3 * STEP + 400 * UNIT)
    assert learnt.unit == pytest.approx(UNIT, rel=0.1)


def test_a_step_that_stood_still_is_soon_forgotten() -> None:
    learnt = decoding().pace
    before = learnt.unit
    learnt.took(400, 60.0)
    assert before < learnt.unit < 2 * before
    for _ in range(6):
        learnt.took(400, STEP + 400 * UNIT)
    assert learnt.unit == pytest.approx(before, rel=0.15)


def test_a_span_that_sees_both_ways_is_computed_whole_when_its_turn_comes() -> None:
    made = decoding()
    made.pace.unit = ALLOWED / 100
    one, other = (sequence(700, index, [(32, 632)]) for index in (9, 10))
    made.add(one)
    made.add(other)
    ends: dict[str, list[int]] = {"9": [], "10": []}
    for _ in range(60):
        slices = made.schedule()
        spans = [item for item in slices if item.count >= 600]
        assert len(spans) <= 1  # one in a step, since nothing shorter would do
        for item in slices:
            assert not any(start < item.end < end for start, end in item.sequence.spans)
            if item.count > 1:
                ends[item.sequence.request.id].append(item.end)
            made.computed(item)
            if item.samples:
                item.sequence.tokens.append(7)
    assert ends["9"][:2] == [32, 632]
    assert 632 in ends["10"]
    assert one.remaining == other.remaining == 1


def seconds_to_serve(allowed: float | None, clients: int = 8) -> float:
    """What so many clients that ask again and again take on a machine with a model of 1.5 B."""
    made, now, begun, ended = scheduler(allowed), 0.0, 0, 0
    while ended < 5 * clients:
        while len(made.running) + len(made.waiting) < clients:
            made.add(sequence(256, begun))
            begun += 1
        slices = made.schedule()
        work = made.work(slices)
        answers = sum(item.count == 1 for item in slices)
        seconds = 0.115 + 0.003 * answers + 3.4e-3 * work
        made.pace.took(work, seconds)
        now += seconds
        for item in slices:
            made.computed(item)
            if item.samples:
                item.sequence.tokens.append(7)
                if item.sequence.generated == 64:
                    made.finish(item.sequence)
                    ended += 1
    return now


def test_a_slow_model_serves_nearly_as_much_as_without(monkeypatch: pytest.MonkeyPatch) -> None:
    unbound = seconds_to_serve(None)
    assert unbound > 0.92 * seconds_to_serve(ALLOWED)
    monkeypatch.setattr(pace, "SHARE", 0.0)
    assert unbound < 0.8 * seconds_to_serve(ALLOWED)


def test_one_step_of_many_tells_what_answers_take_alone() -> None:
    made = decoding()
    for index in range(9, 60):
        made.add(sequence(900, index))
    steps = [of_prompts(step(made)[0]) for _ in range(40)]
    assert 2 <= sum(not prompts for prompts in steps) <= 3
    assert made.pace.step == pytest.approx(STEP, rel=0.05)


def test_nothing_starves_and_no_step_is_longer_whatever_comes() -> None:
    chance = random.Random(3)
    made = scheduler()
    alive: list[Sequence] = []
    for number in range(600):
        if number < 300 and chance.random() < 0.3:
            made.add(sequence(chance.randint(1, 1500), number))
            alive.append((made.waiting or made.running)[-1])
        under_way = any(s.remaining == 1 for s in made.running)
        slices = made.schedule()
        work = made.work(slices)
        if under_way and made.pace.unit:
            least = made.pace.work(1500, 1500 + GRAIN)
            assert work <= max(made.pace.allowed(), least) * 1.001
        made.pace.took(work, (STEP + UNIT * work) * chance.uniform(0.8, 1.6))
        for item in slices:
            made.computed(item)
            if item.samples:
                item.sequence.tokens.append(7)
                if item.sequence.generated == 8:
                    item.sequence.finish_reason = "length"
                    made.finish(item.sequence)
                    alive = [each for each in alive if each is not item.sequence]
    assert not made.running
    assert not made.waiting


def test_tokens_that_are_so_much_work_are_so_much_work() -> None:
    bound = Pace(1.0, TURNING)
    for start in (0, 100, 5000):
        for work in (16.0, 300.0, 4000.0):
            count = bound.tokens(start, work)
            assert count % GRAIN == 0
            least, most = (bound.work(start, start + count + more) for more in (0, GRAIN))
            assert least <= work < most
    assert bound.tokens(0, 0) == 0
    assert Pace(None).allowed() == math.inf
    assert bound.allowed() == math.inf  # nothing has been measured


def test_attention_to_a_thousand_tokens_takes_what_products_take() -> None:
    assert 900 < turning_point(576, 1536, 9, 3, 64) < 1200  # SmolLM2: 890 by its clock
