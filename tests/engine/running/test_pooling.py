"""A pooled vector is made of transformers' final hidden states, however the prompt was computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch

from bench.reference import Recorder, Reference, greedy, picture, prompt_with_images
from bench.stand_in.platforms import PATHS, engine_on
from engine.errors import RequestRefused
from engine.request import Pooling, Request
from tests.engine.running.test_oracle import words

Folder = Callable[[str], Path]
Model = Callable[[str], Reference]
POOLINGS: tuple[Pooling, ...] = ("last", "cls", "mean")


def pooled(states: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """`[hidden]` of all states `[tokens, hidden]`."""
    return {"last": states[-1], "cls": states[0], "mean": states.mean(dim=0)}[pooling]


def vectors(recorder: Recorder) -> dict[str, torch.Tensor]:
    return {
        output.request_id: torch.from_numpy(output.vector)
        for output in recorder.outputs
        if output.vector is not None
    }


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("family", ["llama", "qwen2_vl", "gemma3"])
def test_vectors_are_those_of_transformers(
    checkpoint: Folder, reference: Model, family: str, path: str
) -> None:
    """One, several and many slices, beside an answer of tokens, which is what it is alone."""
    folder = checkpoint(family)
    prompts = {"short": (words(1, 1), []), "long": (words(150, 2), [])}
    if family != "llama":
        prompts["image"] = prompt_with_images(
            folder, [words(5, 1), picture(60, 90, 1), words(9, 4)]
        )
    recorder = Recorder(engine_on(path, folder))
    answer = Request("tokens", words(9, 3), greedy(12))
    recorder.run(answer)
    alone = recorder.tokens["tokens", 0]
    recorder.tokens.clear()
    recorder.run(
        answer,
        *(
            Request(f"{name} {pooling}", tokens, media=media, pooling=pooling)
            for name, (tokens, media) in prompts.items()
            for pooling in POOLINGS
        ),
    )
    assert recorder.tokens["tokens", 0] == alone
    found = vectors(recorder)
    assert len(found) == len(prompts) * len(POOLINGS)
    for name, (tokens, media) in prompts.items():
        states = reference(family).hidden_states(tokens, media)
        for pooling in POOLINGS:
            expected = pooled(states, pooling)
            difference = (found[f"{name} {pooling}"] - expected).abs().max()
            assert difference < 1e-4, (name, pooling)
            for other in set(POOLINGS) - {pooling}:  # control: no other pooling would pass
                if len(tokens) > 1:
                    assert (pooled(states, other) - expected).abs().max() > 1e-2
    assert recorder.engine.stats().pages_used == 0


def test_a_known_prefix_is_used_where_its_states_are_not_wanted(
    checkpoint: Folder, reference: Model
) -> None:
    recorder = Recorder(engine_on("cpu", checkpoint("llama")))
    prompt = words(100, 1)
    recorder.run(Request("first", prompt, pooling="last"))
    for pooling in POOLINGS:
        recorder.run(Request(pooling, prompt, pooling=pooling))
    cached = {output.request_id: output.cached_tokens for output in recorder.outputs}
    assert cached["last"] > 0
    assert cached["cls"] == cached["mean"] == 0
    states = reference("llama").hidden_states(prompt)
    for pooling in POOLINGS:
        assert (vectors(recorder)[pooling] - pooled(states, pooling)).abs().max() < 1e-4


def test_a_step_that_is_tried_again_counts_its_states_once(
    checkpoint: Folder, reference: Model
) -> None:
    recorder = Recorder(engine_on("cpu", checkpoint("llama")))
    launcher, failures = recorder.engine._launcher, []
    choose = launcher._choose

    def failing(flight, logits) -> None:  # type: ignore[no-untyped-def]
        if len(failures) < 2:
            failures.append(flight)
            raise RuntimeError("planted")
        choose(flight, logits)

    launcher._choose = failing  # type: ignore[method-assign]
    prompt = words(150, 1)
    tokens = Request("tokens", words(9, 3), greedy(1, logprobs=0))  # for which logits are needed
    recorder.run(tokens, Request("m", prompt, pooling="mean"))
    assert len(failures) == 2
    expected = reference("llama").hidden_states(prompt).mean(dim=0)
    assert (vectors(recorder)["m"] - expected).abs().max() < 1e-4


def test_a_preempted_prompt_is_pooled_anew(checkpoint: Folder, reference: Model) -> None:
    recorder = Recorder(engine_on("cpu", checkpoint("llama"), pages=20))
    prompt = words(200, 1)
    recorder.engine.add(Request("m", prompt, pooling="mean", priority=1))
    recorder.step()
    for number in range(4):
        recorder.engine.add(Request(f"t{number}", words(60, number), greedy(30)))
    recorder.finish()
    assert recorder.engine.stats().preemptions > 0
    expected = reference("llama").hidden_states(prompt).mean(dim=0)
    assert (vectors(recorder)["m"] - expected).abs().max() < 1e-4


def test_tokens_or_a_vector_must_be_asked_for(checkpoint: Folder) -> None:
    engine = engine_on("cpu", checkpoint("llama"))
    for request in (Request("r", [5]), Request("r", [5], greedy(1), pooling="last")):
        with pytest.raises(RequestRefused, match="either tokens or a pooled vector"):
            engine.add(request)
    assert isinstance(engine.step(), list)


def test_a_vector_is_float32_on_the_host(checkpoint: Folder) -> None:
    recorder = Recorder(engine_on("cpu", checkpoint("llama"), dtype="bfloat16"))
    recorder.run(Request("r", [5, 6], pooling="last"))
    vector = recorder.outputs[-1].vector
    assert vector is not None
    assert vector.dtype == numpy.float32
    assert recorder.outputs[-1].finish_reason == "stop"
