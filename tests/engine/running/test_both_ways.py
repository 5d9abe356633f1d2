"""Tokens of an image that see each other both ways, beside windows: Gemma 3."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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
    picture,
    prompt_with_images,
)
from bench.stand_in.platforms import StandIn, cuda_path, engine_on, standing_in
from bench.stand_in.torch_flashinfer import BatchPrefillWithCausalBidirectionalRangesWrapper
from engine.core import Engine
from engine.errors import RequestRefused
from engine.memory.plan import Plan, PlanError, plan
from engine.request import Request
from engine.scheduling.batch import Batch, no_spans
from engine.scheduling.scheduler import Budget, Scheduler
from engine.scheduling.sequence import Sequence
from tests.engine.running.test_oracle import requests_for, words

Folder = Callable[[str], Path]
Model = Callable[[str], Reference]
PATHS = ["cpu", "cuda graphs", "cuda prefill graphs"]
IMAGE = 16  # tokens of each of the checkpoint's pictures
LEAST = {"max_tokens_per_step": IMAGE + 3, "max_sequences": 4}  # that can compute one


@pytest.mark.parametrize("path", PATHS)
def test_no_chunk_ends_inside_an_image_and_all_agree(
    path: str, checkpoint: Folder, reference: Model
) -> None:
    folder = checkpoint("gemma3")
    recorder = Recorder(engine_on(path, folder, **LEAST))
    requests = [
        replace(request, sampling=greedy(3, prompt_logprobs=0))
        for request in requests_for(folder, "gemma3")
    ]
    recorder.run(*requests)
    slices = [item for batch in recorder.batches for item in batch.slices]
    images = [
        (item, media) for item in slices for media in item.sequence.media if media.end > item.start
    ]
    assert not any(media.start < item.end < media.end for item, media in images)
    assert any(item.end == media.start for item, media in images), "no image was put off"
    for request in requests:
        assert all((request.id, 0, p) in recorder.rows for p in range(len(request.prompt_ids)))
    assert compare(recorder, reference("gemma3"), requests) < TOLERANCE


@pytest.mark.parametrize("path", PATHS)
def test_a_cached_prefix_may_end_inside_an_image(
    path: str, checkpoint: Folder, reference: Model
) -> None:
    """Its pages were computed with all of the image: the rest of it can be added."""
    folder = checkpoint("gemma3")
    recorder = Recorder(engine_on(path, folder))
    tokens, media = prompt_with_images(folder, [words(20, 1), picture(200, 120, 2)])
    other, [shown] = prompt_with_images(folder, [words(20, 1), picture(120, 200, 3)])
    first, second, third = (
        Request("first", tokens + words(9, 2), greedy(4), media),
        Request("second", tokens + words(9, 3), greedy(4), media),
        Request("third", other + words(9, 2), greedy(4), [shown]),
    )
    for request in (first, second, third):
        recorder.run(request)
    hits = {output.request_id: output.cached_tokens for output in recorder.outputs}
    assert hits == {"first": 0, "second": 32, "third": 16}
    assert media[0].start < 32 < media[0].end
    assert compare(recorder, reference("gemma3"), [first, second, third]) < TOLERANCE


@pytest.mark.parametrize("path", PATHS)
def test_an_image_at_the_end_of_a_prompt_agrees(
    path: str, checkpoint: Folder, reference: Model
) -> None:
    """Its last token alone, all before it cached, is computed as in decoding."""
    folder = checkpoint("gemma3")
    recorder = Recorder(engine_on(path, folder))
    tokens, media = prompt_with_images(folder, [words(17, 1), picture(200, 120, 2)])
    requests = [Request(name, tokens, greedy(3), media) for name in ("first", "second")]
    for request in requests:
        recorder.run(request)
    hits = {output.request_id: output.cached_tokens for output in recorder.outputs}
    assert hits == {"first": 0, "second": len(tokens) - 1}
    assert compare(recorder, reference("gemma3"), requests) < TOLERANCE


def test_a_decoding_crowd_does_not_keep_an_image_waiting(
    checkpoint: Folder, reference: Model
) -> None:
    folder = checkpoint("gemma3")
    recorder = Recorder(Engine(engine_options(folder, **LEAST)))
    crowd = [Request(f"r{n}", words(3, n), greedy(40)) for n in range(3)]
    for request in crowd:
        recorder.engine.add(request)
    recorder.step()
    tokens, media = prompt_with_images(folder, [picture(60, 60, 1), words(2, 1)])
    shown = Request("shown", tokens, greedy(2), media)
    recorder.engine.add(shown)
    recorder.step()
    assert [item.count for item in recorder.batches[-1].slices] == [1, 1, 1, IMAGE]
    recorder.finish()
    assert compare(recorder, reference("gemma3"), [*crowd, shown]) < TOLERANCE


class Uncut(Scheduler):
    def _chunk_end(self, sequence: Sequence, budget: Budget, tokens: int) -> int:
        return min(sequence.computed + tokens, len(sequence.tokens))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("wrong", ["causal", "no windows", "cut"])
def test_a_wrong_mask_is_noticed(
    wrong: str, path: str, checkpoint: Folder, reference: Model
) -> None:
    """Controls: images that only look back, windows ignored, and images cut in two must fail."""
    folder = checkpoint("gemma3")
    engine = engine_on(path, folder, max_tokens_per_step=40)
    backend = engine._runner._backend
    match wrong:
        case "causal":
            planned = backend.plan

            def causal(batch: Batch) -> None:
                planned(replace(batch, spans=no_spans()))

            backend.plan = causal  # type: ignore[method-assign]
        case "no windows":
            backend._window_of = [-1] * 4
            for layer in getattr(backend, "layers", ()):
                layer.window = -1
        case "cut":
            engine._scheduler.__class__ = Uncut
    tokens, media = prompt_with_images(folder, [words(30, 1), picture(60, 90, 1), words(9, 2)])
    request = Request("r", tokens, greedy(2), media)
    recorder = Recorder(engine)
    recorder.run(request)
    assert compare(recorder, reference("gemma3"), [request]) > 100 * TOLERANCE


def test_a_window_that_ends_at_the_image_is_noticed(checkpoint: Folder, reference: Model) -> None:
    """Control: inside an image too, a token sees no further back than its window."""

    class Unbounded(BatchPrefillWithCausalBidirectionalRangesWrapper):
        def run(self, *parts, range_window_left, **others):  # type: ignore[no-untyped-def]
            return super().run(*parts, **others)

    folder = checkpoint("gemma3")
    tokens, media = prompt_with_images(folder, [words(9, 1), picture(60, 90, 1), words(9, 2)])
    request = Request("r", tokens, greedy(2), media)
    library = standing_in(BatchPrefillWithCausalBidirectionalRangesWrapper=Unbounded)
    recorder = Recorder(cuda_path(folder, StandIn(library)))
    recorder.run(request)
    assert compare(recorder, reference("gemma3"), [request]) > 10 * TOLERANCE


def test_an_image_that_no_step_can_hold_is_refused(checkpoint: Folder) -> None:
    folder = checkpoint("gemma3")
    tokens, media = prompt_with_images(folder, [words(5, 1), picture(60, 90, 1)])
    short = LEAST | {"max_tokens_per_step": IMAGE + 2}
    engine = Engine(engine_options(folder, **short))
    with pytest.raises(RequestRefused, match=r"engine\.max_tokens_per_step=19, not 18"):
        engine.add(Request("r", tokens, greedy(1), media))
    engine.add(Request("text", words(40, 1), greedy(1)))

    def planned(**changes: object) -> Plan:
        return plan(engine_options(folder, max_len=256, **changes), 4 << 30)

    with pytest.raises(PlanError, match=r"engine\.max_tokens_per_step=19, not 18"):
        planned(**short, modalities=("image",))
    planned(**short, modalities=())
    planned(**LEAST, modalities=("image",))


def test_spans_are_those_of_the_images(checkpoint: Folder) -> None:
    """A batch says for each token what it sees ahead, wherever its slice begins."""
    folder = checkpoint("gemma3")
    recorder = Recorder(Engine(engine_options(folder)))
    tokens, media = prompt_with_images(
        folder, [words(3, 1), picture(60, 60, 1), words(2, 2), picture(60, 60, 2), words(4, 3)]
    )
    recorder.run(
        Request("text", words(5, 4), greedy(1)), Request("shown", tokens, greedy(2), media)
    )
    first, *later = recorder.batches
    expected = torch.full((5 + len(tokens), 2), -1, dtype=torch.int32)
    for item in media:
        expected[5 + item.start : 5 + item.end] = torch.tensor([item.start, item.end - 1])
    assert first.spans.tolist() == expected.tolist()
    assert all(len(batch.spans) == 0 for batch in later)
