"""Counts kept on the device are those of the text, whatever happened to its sequence meanwhile."""

from __future__ import annotations

import gc
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.reference import Recorder, engine_options, greedy
from bench.stand_in import torch_sampling
from bench.stand_in.platforms import Recording, cuda_path
from engine.core import Engine
from engine.device.device import Host
from engine.request import Request, SamplingOptions
from engine.sampling.device_sampler import DeviceSampler
from engine.sampling.token_counts import TokenCounts
from engine.scheduling.sequence import Sequence, in_flight

VOCABULARY = 12
WAYS = [
    {"frequency_penalty": 0.3},
    {"repetition_penalty": 1.7},
    {"presence_penalty": 0.8, "frequency_penalty": -0.2},
    {},
]


class Uploads(Host):
    """The CPU, noting how many numbers go to the device."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = self.transfers = 0

    def upload(self, tensor: torch.Tensor) -> torch.Tensor:
        self.numbers += tensor.numel()
        self.transfers += 1
        return tensor


def sequence(prompt: list[int], output: list[int] | None = None, index: int = 0) -> Sequence:
    request = Request("r", prompt, SamplingOptions(max_tokens=99, frequency_penalty=0.5))
    tokens = prompt + (output or [])
    return Sequence(request, index, 0, b"", torch.zeros(1, len(prompt)), 0, tokens=tokens)


def assert_counted(counts: TokenCounts, sequences: list[Sequence], latest: torch.Tensor) -> None:
    prompts, outputs = counts.of(sequences, latest)
    assert prompts.shape == outputs.shape == (len(sequences), VOCABULARY)
    for each, prompt, output in zip(sequences, prompts, outputs, strict=True):
        text = [t if t >= 0 else int(latest[-1 - t]) for t in each.output]
        expected = Counter(text)
        assert prompt.tolist() == [token in each.request.prompt_ids for token in range(VOCABULARY)]
        assert output.tolist() == [expected[token] for token in range(VOCABULARY)]


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), most=st.integers(1, 6))
def test_counts_are_those_of_the_text_step_after_step(seed: int, most: int) -> None:
    """Sequences come, skip steps, change places and go; their last tokens are in flight."""
    chance = random.Random(seed)
    counts = TokenCounts(VOCABULARY, Host())
    alive: list[Sequence] = []
    flying: list[tuple[Sequence, int, int]] = []  # sequence, place, what it will be
    latest = torch.zeros(most, dtype=torch.int64)
    for _ in range(40):
        if chance.random() < 0.5:
            prompt = [chance.randrange(VOCABULARY) for _ in range(chance.randint(1, 5))]
            alive += [sequence(prompt, index=index) for index in range(chance.randint(1, 2))]
        if alive and chance.random() < 0.2:
            alive.remove(chance.choice(alive))
        step = chance.sample(alive, min(len(alive), chance.randint(1, most)))
        if not step:
            continue
        assert_counted(counts, step, latest)
        if chance.random() < 0.2:
            assert_counted(counts, step, latest)  # tried again after a fault: counted once
        assert counts.capacity <= most
        for each, place, token in flying:  # the step before reaches the host
            each.tokens[place] = token
        flying = []
        latest = torch.tensor([chance.randrange(VOCABULARY) for _ in range(most)])
        for row, each in enumerate(step):
            flying.append((each, len(each.tokens), int(latest[row])))
            each.tokens.append(in_flight(row))


def test_a_row_is_taken_when_its_sequence_is_gone() -> None:
    counts = TokenCounts(VOCABULARY, Host())
    latest = torch.zeros(64, dtype=torch.int64)
    for step in range(40):
        assert_counted(counts, [sequence([step % VOCABULARY], [3] * step)], latest)
        gc.collect()
    assert counts.capacity == 8


def test_a_step_sends_what_came_since_however_long_the_texts_are() -> None:
    sent = []
    for length in (5, 5000):
        device = Uploads()
        sampler = DeviceSampler(frozenset(), VOCABULARY, device, torch_sampling)
        options = SamplingOptions(
            max_tokens=99, temperature=0.0, frequency_penalty=0.5, repetition_penalty=1.1
        )
        many = [
            Sequence(Request("r", [4] * length, options), i, 0, b"", torch.zeros(1, 1), 0, [4])
            for i in range(4)
        ]
        for each in many:
            each.tokens = [4] * length + [5] * length
        latest = torch.zeros(4, dtype=torch.int64)
        logits = torch.zeros(4, VOCABULARY)
        sampler.choose(logits, many, latest)
        assert device.numbers > 4 * length
        device.numbers = device.transfers = 0
        for each in many:
            each.tokens.append(in_flight(0))
        sampler.choose(logits, many, latest)
        sent.append((device.numbers, device.transfers))
    assert sent[0] == sent[1] == (3 * len(many), 2)


def penalised(engine: Engine) -> tuple[dict[tuple[str, int], list[int]], int]:
    recorder = Recorder(engine)
    for index, way in enumerate(WAYS * 2):
        prompt = [20 + index, 30, 31, 30 + index] * 5
        engine.add(Request(str(index), prompt, greedy(24 + index, **way), n=1 + index % 2))
    recorder.run()
    return recorder.tokens, engine.stats().preemptions


@pytest.mark.parametrize("changes", [{}, {"pages": 14}], ids=["alone", "preempted"])
def test_penalised_answers_are_the_hosts(
    checkpoint: Callable[[str], Path], changes: dict[str, int]
) -> None:
    folder = checkpoint("llama")
    expected, _ = penalised(Engine(engine_options(folder)))
    found, preemptions = penalised(cuda_path(folder, Recording(), graphs=True, **changes))
    assert found == expected
    assert (preemptions > 0) == bool(changes)
    assert len({tuple(tokens[:20]) for tokens in expected.values()}) > 4  # penalties were felt
