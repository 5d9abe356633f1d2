"""Work that gives way, and towers that do so between their layers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

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
from engine.core import Engine
from engine.request import MediaItem, Request
from engine.running import media
from engine.running.turns import Dropped, Turns
from tests.engine.running.test_oracle import words

Folder = Callable[[str], Path]
Model = Callable[[str], Reference]


def counting(turns: Turns[int], seen: list[int], to: int = 5) -> Callable[[], int]:
    def work() -> int:
        for number in range(to):
            seen.append(number)
            turns.give_way()
        return to

    return work


def test_work_stops_between_its_parts_and_goes_on_where_it_was() -> None:
    turns: Turns[int] = Turns()
    seen: list[int] = []
    turns.begin(counting(turns, seen))
    assert seen == []  # not before it is waited for
    for parts in range(1, 6):
        assert turns.go_on(0) is None
        assert len(seen) == parts
        assert turns.busy
    assert turns.go_on(0) == 5
    assert not turns.busy
    turns.begin(counting(turns, seen))
    assert turns.go_on(60) == 5  # all of it in one turn


def test_work_that_fails_says_so_to_who_waits() -> None:
    def broken() -> int:
        turns.give_way()
        raise OSError("of the work")

    turns: Turns[int] = Turns()
    turns.begin(broken)
    assert turns.go_on(0) is None
    with pytest.raises(OSError, match="of the work"):
        turns.go_on(0)
    assert not turns.busy


@pytest.mark.parametrize("turns_before", [0, 2])
def test_dropped_work_ends_and_leaves_no_thread(turns_before: int) -> None:
    ended = []

    def work() -> int:
        try:
            return counting(turns, [])()
        except Dropped:
            ended.append(True)
            raise

    before = threading.active_count()
    turns: Turns[int] = Turns()
    turns.begin(work)
    for _ in range(turns_before):
        turns.go_on(0)
    turns.drop()
    assert not turns.busy
    assert threading.active_count() == before
    assert ended == [True] * bool(turns_before)


def test_others_may_call_what_gives_way() -> None:
    turns: Turns[int] = Turns()
    turns.give_way()  # and come back at once
    turns.begin(counting(turns, []))
    turns.give_way()
    turns.drop()


@pytest.fixture
def layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "TURN", 0.0)


def with_picture(folder: Path, name: str, seed: int = 1) -> Request:
    tokens, items = prompt_with_images(folder, [words(5, 1), picture(60, 90, seed), words(9, 2)])
    return Request(name, tokens, greedy(6), items)


@pytest.mark.usefixtures("layer_by_layer")
@pytest.mark.parametrize("family", ["qwen2_vl", "llava", "gemma3"])
@pytest.mark.parametrize("cache_bytes", [0, 1 << 24])
def test_others_decode_while_a_tower_works(
    family: str, cache_bytes: int, checkpoint: Folder, reference: Model
) -> None:
    folder = checkpoint(family)
    recorder = Recorder(Engine(engine_options(folder, encoder_cache_bytes=cache_bytes)))
    talk, seen = Request("talk", words(20, 3), greedy(24)), with_picture(folder, "seen")
    recorder.engine.add(talk)
    recorder.step()
    recorder.engine.add(seen)
    recorder.finish()
    alone = [batch for batch in recorder.batches[1:] if len(batch.slices) == 1]
    together = next(n for n, batch in enumerate(recorder.batches) if len(batch.slices) == 2)
    assert together >= 3  # a step for each layer
    assert len(alone) >= together - 1
    assert compare(recorder, reference(family), [talk, seen]) < TOLERANCE
    stats = recorder.engine.stats()
    assert (stats.encoder_cache_misses, stats.encoder_cache_hits) == (1, 0)
    assert [modality for modality, _ in recorder.engine.encodes()] == ["image"]


@pytest.mark.usefixtures("layer_by_layer")
def test_a_picture_that_nobody_waits_for_is_dropped(checkpoint: Folder, reference: Model) -> None:
    folder = checkpoint("qwen2_vl")
    recorder = Recorder(Engine(engine_options(folder)))
    before = threading.active_count()
    recorder.engine.add(with_picture(folder, "gone"))
    recorder.step()
    assert recorder.engine._runner.media._turns.busy  # type: ignore[union-attr]
    recorder.engine.abort("gone")
    other = with_picture(folder, "other", seed=2)
    recorder.run(other)
    assert compare(recorder, reference("qwen2_vl"), [other]) < TOLERANCE
    assert threading.active_count() == before
    assert len(recorder.engine.encodes()) == 1


@pytest.mark.usefixtures("layer_by_layer")
def test_a_picture_without_a_place_in_a_step_goes_on_in_the_next(checkpoint: Folder) -> None:
    engine = Engine(engine_options(checkpoint("qwen2_vl")))
    engine.add(Request("talk", words(20, 3), greedy(12)))
    engine.step()
    engine.add(with_picture(checkpoint("qwen2_vl"), "seen"))
    engine.step()
    both = engine._scheduler.schedule()
    assert len(both) == 2
    begun = engine._runner.media._turns._thread  # type: ignore[union-attr]
    assert engine._runner.media.ready(both[:1]) == both[:1]
    assert engine._runner.media._turns._thread is begun is not None  # type: ignore[union-attr]
    while engine.has_work():
        engine.step()
    assert len(engine.encodes()) == 1


@pytest.mark.usefixtures("layer_by_layer")
def test_a_picture_that_comes_meanwhile_is_next(checkpoint: Folder, reference: Model) -> None:
    folder = checkpoint("qwen2_vl")
    recorder = Recorder(Engine(engine_options(folder)))
    first, second = with_picture(folder, "first"), with_picture(folder, "second", seed=2)
    again = with_picture(folder, "again")
    recorder.engine.add(first)
    recorder.step()
    recorder.engine.add(second)
    recorder.engine.add(again)
    recorder.finish()
    assert compare(recorder, reference("qwen2_vl"), [first, second, again]) < TOLERANCE
    assert len(recorder.engine.encodes()) == 2  # `again` is the first one's picture


@pytest.mark.usefixtures("layer_by_layer")
def test_a_tower_that_fails_ends_its_own_request(
    checkpoint: Folder, reference: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint("qwen2_vl")
    recorder = Recorder(Engine(engine_options(folder)))
    talk, bad = Request("talk", words(20, 3), greedy(12)), with_picture(folder, "bad")
    good = with_picture(folder, "good", seed=2)
    family, broken = recorder.engine._family, bad.media[0].digest
    encode = family.encode

    def failing(model: object, items: list[MediaItem], *rest: object) -> object:
        if any(item.digest == broken for item in items):
            raise ValueError("this picture")
        return encode(model, items, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(family, "encode", failing)
    recorder.engine.add(talk)
    recorder.step()
    recorder.engine.add(bad)
    recorder.engine.add(good)
    recorder.finish()
    reasons = {o.request_id: o.finish_reason for o in recorder.outputs if o.finish_reason}
    assert reasons == {"talk": "length", "bad": "error", "good": "length"}
    assert compare(recorder, reference("qwen2_vl"), [talk, good]) < TOLERANCE
