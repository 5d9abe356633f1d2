"""Vectors of a model that only encodes are transformers', whatever shares a prompt's step."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from bench.reference import Recorder, engine_options, greedy
from engine.core import Engine
from engine.errors import RequestRefused
from engine.layers import encoder
from engine.request import Pooling, Request
from tests.engine.running.test_pooling import POOLINGS, pooled, vectors

Folder = Callable[[str], Path]
LONGEST = 128  # positions of the tiny checkpoint, and all that a step may have


@pytest.fixture
def recorder(checkpoint: Folder) -> Recorder:
    options = engine_options(
        checkpoint("bert"), max_len=LONGEST, max_tokens_per_step=LONGEST, max_sequences=8
    )
    return Recorder(Engine(options))


@pytest.fixture(scope="module")
def states(checkpoint: Folder) -> Callable[[list[int]], torch.Tensor]:
    model = transformers.AutoModel.from_pretrained(checkpoint("bert")).eval()

    @torch.no_grad()
    def of(tokens: list[int]) -> torch.Tensor:
        return model(input_ids=torch.tensor([tokens])).last_hidden_state[0]

    return of


def prompt(count: int, seed: int = 1) -> list[int]:
    chance = random.Random(seed * 1000 + count)
    return [chance.randrange(5, 400) for _ in range(count)]


def asked(lengths: list[int]) -> dict[str, tuple[list[int], Pooling]]:
    return {
        f"{place} {pooling}": (prompt(length, place), pooling)
        for place, length in enumerate(lengths)
        for pooling in POOLINGS
    }


def test_vectors_are_those_of_transformers(
    recorder: Recorder, states: Callable[[list[int]], torch.Tensor]
) -> None:
    """Short prompts share steps, one as long as a step has it alone, and none is in two."""
    prompts = asked([3, LONGEST, 40, 1, 77, 16, 17])
    recorder.run(*(Request(name, ids, pooling=how) for name, (ids, how) in prompts.items()))
    found = vectors(recorder)
    assert found.keys() == prompts.keys()
    for name, (ids, pooling) in prompts.items():
        expected = pooled(states(ids), pooling)
        assert (found[name] - expected).abs().max() < 1e-5, name
        cosine = torch.nn.functional.cosine_similarity(found[name], expected, dim=0)
        assert cosine > 0.9999, name
    sizes = [batch.tokens for batch in recorder.batches]
    assert max(sizes) <= LONGEST
    assert len(sizes) < len(prompts)  # packed
    assert all(item.start == 0 and item.last for b in recorder.batches for item in b.slices)
    assert recorder.engine.stats().pages_total == 0


def test_a_prompt_that_looked_back_alone_or_at_others_would_show(
    recorder: Recorder,
    states: Callable[[list[int]], torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The controls: causal attention, and one packed row taken for a single prompt."""
    attend = encoder.scaled_dot_product_attention
    expected = pooled(states(prompt(20)), "mean")

    def difference() -> float:
        recorder.outputs.clear()
        recorder.run(
            Request("one", prompt(20), pooling="mean"), Request("two", prompt(9), pooling="mean")
        )
        return (vectors(recorder)["one"] - expected).abs().max().item()

    assert difference() < 1e-5
    monkeypatch.setattr(
        encoder,
        "scaled_dot_product_attention",
        lambda *given, attn_mask, scale: attend(*given, scale=scale, is_causal=True),
    )
    assert difference() > 1e-2
    monkeypatch.undo()
    run = recorder.engine._runner._encoder
    monkeypatch.setattr(
        recorder.engine._runner,
        "_encoder",
        lambda ids, positions, types, lengths: run(ids, positions, types, [sum(lengths)]),
    )
    assert difference() > 1e-2


@pytest.mark.parametrize("pooling", POOLINGS)
def test_nothing_is_taken_from_what_came_before(recorder: Recorder, pooling: Pooling) -> None:
    """There are no keys to reuse: the same prompt again is computed again, all of it."""
    for name in ("first", "again"):
        recorder.run(Request(name, prompt(64), pooling=pooling))
    assert [batch.tokens for batch in recorder.batches] == [64, 64]
    assert [output.cached_tokens for output in recorder.outputs] == [0, 0]
    found = vectors(recorder)
    assert torch.equal(found["first"], found["again"])


def test_what_it_cannot_do_is_refused(recorder: Recorder) -> None:
    engine = recorder.engine
    with pytest.raises(RequestRefused, match="no tokens"):
        engine.add(Request("tokens", prompt(5), greedy(3)))
    with pytest.raises(RequestRefused, match="129"):
        engine.add(Request("long", prompt(LONGEST + 1), pooling="mean"))
    assert not engine.has_work()


def test_more_than_may_run_at_once_wait_their_turn(recorder: Recorder) -> None:
    requests = [Request(str(number), prompt(60, number), pooling="cls") for number in range(30)]
    for request in requests:
        recorder.engine.add(request)
    recorder.engine.abort("7")
    recorder.finish()
    assert vectors(recorder).keys() == {request.id for request in requests} - {"7"}
    assert all(len(batch.slices) <= 2 for batch in recorder.batches)


def test_scores_are_those_of_transformers(checkpoint: Folder) -> None:
    """Two texts in a prompt, told apart; a prompt that does not say where, has another score."""
    folder = checkpoint("bert_reranker")
    options = engine_options(folder, max_len=LONGEST, max_tokens_per_step=LONGEST)
    recorder = Recorder(Engine(options))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    pairs = {str(number): (prompt(9 + number, number), 3 + number) for number in range(9)}
    for name, (ids, second) in pairs.items():
        recorder.engine.add(Request(name, ids, pooling="cls", second=second))
        recorder.engine.add(Request(f"{name} apart", ids, pooling="cls"))
    recorder.finish()
    found = vectors(recorder)
    for name, (ids, second) in pairs.items():
        types = torch.tensor([[0] * second + [1] * (len(ids) - second)])
        with torch.no_grad():
            given = torch.tensor([ids])
            expected = model(input_ids=given, token_type_ids=types).logits[0]
            apart = model(input_ids=given).logits[0]
        assert found[name].shape == (1,)
        assert (found[name] - expected).abs().max() < 1e-5
        assert (found[f"{name} apart"] - apart).abs().max() < 1e-5
        assert (expected - apart).abs().max() > 1e-3
    for pooling in ("mean", "last"):
        with pytest.raises(RequestRefused, match="first token alone"):
            recorder.engine.add(Request("wrong", prompt(5), pooling=pooling))


def test_a_decoder_does_not_tell_two_texts_apart(checkpoint: Folder) -> None:
    engine = Engine(engine_options(checkpoint("llama")))
    with pytest.raises(RequestRefused, match="apart"):
        engine.add(Request("pair", prompt(9), pooling="last", second=4))
