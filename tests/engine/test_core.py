"""What one request may do to itself, and must not do to others."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.reference import Recorder, engine_options, greedy, picture, prompt_with_images
from engine.core import Engine
from engine.errors import ModelUnsupported, RequestRefused
from engine.options import EngineOptions
from engine.request import MediaItem, Request
from engine.running.runner import Computed
from engine.scheduling.batch import Batch

Folder = Callable[[str], Path]


@pytest.fixture
def engine(checkpoint: Folder) -> Engine:
    return Engine(engine_options(checkpoint("llama")))


def words(count: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(300, 500), k=count)


def test_what_can_never_run_is_refused_and_nothing_is_queued(engine: Engine) -> None:
    for request in (
        Request("r", [], greedy(1)),
        Request("r", words(600), greedy(1)),
        Request("r", words(500), greedy(13)),
        Request("r", [10**6], greedy(1)),
        Request("r", [-1], greedy(1)),
        Request("r", words(5), greedy(1), [MediaItem("image", b"x", 0, 2, {})]),
    ):
        with pytest.raises(RequestRefused):
            engine.add(request)
    assert not engine.has_work()
    engine.add(Request("r", words(500), greedy(12)))
    with pytest.raises(RequestRefused):
        engine.add(Request("r", words(5), greedy(1)))


def test_two_hundred_requests_on_a_pool_for_twenty(checkpoint: Folder) -> None:
    options = engine_options(checkpoint("llama"), pages=40, max_sequences=256)
    alone = Recorder(Engine(options))
    together = Recorder(Engine(options))
    requests = [Request(f"r{i}", words(20, i), greedy(8)) for i in range(200)]
    together.run(*requests)
    assert together.engine.stats().pages_used == 0
    for request in requests[::40]:
        alone.run(request)
        assert together.tokens[request.id, 0] == alone.tokens[request.id, 0]
    assert all(len(together.tokens[request.id, 0]) == 8 for request in requests)


def test_abort_frees_the_pages_at_once(engine: Engine) -> None:
    for n in (1, 3):
        for steps in (0, 1, 2, 5):
            engine.add(Request("gone", words(100), greedy(50), n=n))
            for _ in range(steps):
                engine.step()
            engine.abort("gone")
            assert engine.stats().pages_used == 0
            assert not engine.has_work()
    engine.abort("never heard of")


def test_the_first_token_tells_when_its_sequence_left_the_queue(checkpoint: Folder) -> None:
    """One place: the second waits for the first to end, and preemptions change nothing of that."""
    recorder = Recorder(Engine(engine_options(checkpoint("llama"), max_sequences=1)))
    begun = time.perf_counter()
    recorder.run(*(Request(name, words(20), greedy(3)) for name in "ab"))
    told = [output.admitted for output in recorder.outputs]
    first, second = told[0], told[3]
    assert told == [first, None, None, second, None, None]
    assert first is not None
    assert second is not None
    assert begun <= first < second <= time.perf_counter()


def test_one_answer_can_be_aborted_and_the_others_go_on(engine: Engine) -> None:
    recorder = Recorder(engine)
    engine.add(Request("r", words(40), greedy(6), n=3))
    recorder.step()
    engine.abort("r", 0)  # the one that computes the shared prompt
    recorder.finish()
    assert [len(recorder.tokens["r", i]) for i in (1, 2)] == [6, 6]
    assert engine.stats().pages_used == 0


def test_a_step_that_raises_ends_one_request_only(engine: Engine) -> None:
    recorder = Recorder(engine)
    run = engine._runner.run

    def failing(batch: Batch) -> Computed:
        if any(item.sequence.request.id == "bad" and item.start > 0 for item in batch.slices):
            raise RuntimeError("planted")
        return run(batch)

    engine._runner.run = failing  # type: ignore[method-assign]
    recorder.run(*(Request(name, words(20), greedy(5)) for name in ("a", "bad", "b")))
    last = {output.request_id: output for output in recorder.outputs}
    assert last["bad"].finish_reason == "error"
    assert last["bad"].error is not None
    assert "planted" not in last["bad"].error
    assert [last[name].finish_reason for name in "ab"] == ["length", "length"]
    assert recorder.tokens["a", 0] == recorder.tokens["b", 0]
    assert engine.stats().pages_used == 0


def test_a_tower_that_gives_too_few_embeddings_ends_that_request_only(checkpoint: Folder) -> None:
    folder = checkpoint("llava")
    engine = Engine(engine_options(folder))
    recorder = Recorder(engine)
    tokens, media = prompt_with_images(folder, [words(5), picture(60, 60, 1), words(4)])
    wrong = MediaItem("image", b"other", media[0].start, media[0].length, media[0].tensors)
    encode = engine._family.encode

    def too_few(model: Any, items: list[MediaItem], upload: Any) -> list[torch.Tensor]:
        encoded = zip(encode(model, items, upload), items, strict=True)
        return [rows[:-1] if item is wrong else rows for rows, item in encoded]

    engine._family.encode = too_few  # type: ignore[method-assign]
    recorder.run(
        Request("bad", tokens, greedy(3), [wrong]), Request("good", tokens, greedy(3), media)
    )
    last = {output.request_id: output.finish_reason for output in recorder.outputs}
    assert last == {"bad": "error", "good": "length"}


@pytest.mark.parametrize("fault", ["few pixels", "no grid", "small grid", "large grid", "negative"])
def test_tensors_that_do_not_fit_each_other_are_refused(fault: str, checkpoint: Folder) -> None:
    folder = checkpoint("qwen2_vl")
    recorder = Recorder(Engine(engine_options(folder)))
    tokens, media = prompt_with_images(folder, [words(5), picture(60, 60, 1), words(4)])
    pixels, grid = media[0].tensors["pixels"], media[0].tensors["image_grid_thw"]
    tensors = {
        "few pixels": {"pixels": pixels[:-4], "image_grid_thw": grid},
        "no grid": {"pixels": pixels},
        "small grid": {"pixels": pixels, "image_grid_thw": grid.clamp(max=2)},
        "large grid": {"pixels": pixels, "image_grid_thw": grid * 100},
        "negative": {"pixels": pixels, "image_grid_thw": -grid},
    }[fault]
    wrong = MediaItem("image", b"other", media[0].start, media[0].length, tensors)
    bad = Request("bad", tokens, greedy(3), [wrong])
    good = Request("good", tokens, greedy(3), media)
    with pytest.raises(RequestRefused, match="do not fit"):
        recorder.engine.add(bad)
    recorder.run(good)
    assert recorder.outputs[-1].finish_reason == "length"
    assert recorder.engine.stats().pages_used == 0


def test_numbers_that_spoil_one_answer_spoil_no_other(checkpoint: Folder) -> None:
    """Near the largest: what is none at all is refused."""
    folder = checkpoint("qwen2_vl")
    options = engine_options(folder, pages=12)
    tokens, media = prompt_with_images(folder, [words(5), picture(60, 60, 1), words(4)])
    recorder, alone = Recorder(Engine(options)), Recorder(Engine(options))
    embeds = torch.full((media[0].length, recorder.engine._runner.hidden), 3e38)
    tensors = {"embeds": embeds, "image_grid_thw": media[0].tensors["image_grid_thw"]}
    wrong = MediaItem("image", b"other", media[0].start, media[0].length, tensors)
    others = [Request(f"r{i}", words(21 + i, i), greedy(6)) for i in range(3)]
    alone.run(*others)
    bad = Request("bad", tokens, greedy(12, temperature=1.0), [wrong])
    recorder.run(bad, *others)  # beside it, and then in the pages that it had
    recorder.run(*(Request(f"late {r.id}", r.prompt_ids, r.sampling) for r in others))
    for other in others:
        for name in (other.id, f"late {other.id}"):
            assert recorder.tokens[name, 0] == alone.tokens[other.id, 0]


def test_the_reasons_to_stop(engine: Engine) -> None:
    recorder = Recorder(engine)
    recorder.run(Request("free", words(10), greedy(8)))
    produced = recorder.tokens["free", 0]
    stop = produced[3]
    first = produced.index(stop)
    recorder.run(Request("stop", words(10), greedy(8, stop_token_ids=frozenset({stop}))))
    assert recorder.tokens["stop", 0] == produced[: first + 1]
    assert recorder.outputs[-1].finish_reason == "stop"
    recorder.run(
        Request("later", words(10), greedy(8, stop_token_ids=frozenset({stop}), min_tokens=6))
    )
    assert len(recorder.tokens["later", 0]) >= 6
    engine._eos_ids = frozenset({stop})
    recorder.run(Request("ignored", words(10), greedy(8, ignore_eos=True)))
    assert recorder.tokens["ignored", 0] == produced
    recorder.run(Request("ended", words(10), greedy(8, ignore_eos=False)))
    assert recorder.tokens["ended", 0] == produced[: first + 1]


def test_a_seeded_answer_repeats_itself_in_any_company(checkpoint: Folder) -> None:
    options = engine_options(checkpoint("llama"))
    seeded = Request("seeded", words(30), greedy(20, temperature=1.0, seed=7))
    alone, crowded = Recorder(Engine(options)), Recorder(Engine(options))
    alone.run(seeded)
    company = [Request(f"c{i}", words(17 + i, i), greedy(9, temperature=1.0)) for i in range(6)]
    crowded.run(*company[:3], seeded, *company[3:])
    assert alone.tokens["seeded", 0] == crowded.tokens["seeded", 0]
    other = Request("other", words(30), greedy(20, temperature=1.0, seed=8))
    alone.run(other)
    assert alone.tokens["other", 0] != alone.tokens["seeded", 0]


def test_answers_of_a_seeded_request_differ_from_each_other(engine: Engine) -> None:
    recorder = Recorder(engine)
    recorder.run(Request("r", words(30), greedy(20, temperature=1.5, seed=7), n=3))
    assert len({tuple(recorder.tokens["r", i]) for i in range(3)}) == 3


@pytest.mark.parametrize("family", ["qwen2_vl", "llava"])
def test_a_refused_modality_loads_no_tower(family: str, checkpoint: Folder) -> None:
    def tower_layers(engine: Engine) -> int:
        names = [name for name, _ in engine._runner.loaded.model.named_parameters()]
        return sum(
            "visual.blocks." in n or ("vision_tower" in n and ".layers." in n) for n in names
        )

    folder = checkpoint(family)
    whole = Recorder(Engine(engine_options(folder)))
    without = Recorder(Engine(engine_options(folder, modalities=())))
    assert tower_layers(whole.engine) > 0
    assert tower_layers(without.engine) == 0
    request = Request("r", words(20), greedy(5))
    whole.run(request)
    without.run(request)
    assert whole.tokens == without.tokens


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["SecretForCausalLM"]}')
    with pytest.raises(ModelUnsupported, match="SecretForCausalLM"):
        Engine(EngineOptions(str(tmp_path), "float32", "cpu", 1, 16, 8, 64, 64, 4, True, 0))
