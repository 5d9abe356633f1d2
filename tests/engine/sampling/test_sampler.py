"""Sampling does what its options say, and what it says depends on nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from engine.native.library import Machine
from engine.native.loading import variants
from engine.request import Request, SamplingOptions
from engine.sampling.native_sampler import NativeSampler
from engine.sampling.sampler import HostSampler
from engine.scheduling.sequence import Sequence

VOCABULARY = 50


def sequence(options: SamplingOptions, output: list[int] | None = None, index: int = 0) -> Sequence:
    prompt = [1, 2, 3]
    request = Request("r", prompt, options)
    tokens = prompt + (output or [])
    return Sequence(request, index, 0, b"", torch.arange(3)[None], 0, tokens=tokens)


def options(**values: object) -> SamplingOptions:
    return SamplingOptions(**({"max_tokens": 100} | values))  # type: ignore[arg-type]


def rows(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3


class Choose:
    """Tokens by one of the samplers."""

    def __init__(self, variant: str | None) -> None:
        self._machine = None if variant is None else Machine(variant, 2)

    def __call__(
        self,
        logits: torch.Tensor,
        sequences: list[Sequence],
        eos: frozenset[int] = frozenset(),
    ) -> list[int]:
        if self._machine is None:
            chosen = HostSampler(eos, VOCABULARY)
        else:
            chosen = NativeSampler(eos, VOCABULARY, self._machine)
        return chosen.choose(logits, sequences, torch.empty(0)).tolist()


@pytest.fixture(scope="module", params=[None, *variants()], ids=lambda name: name or "torch")
def sample(request: pytest.FixtureRequest) -> Choose:
    return Choose(request.param)


@settings(max_examples=40, deadline=None)
@given(
    temperature=st.floats(0.2, 2.0),
    top_k=st.integers(0, 60),
    top_p=st.floats(0.05, 1.0),
    min_p=st.floats(0.0, 0.9),
    seed=st.integers(0, 1000),
)
def test_drawn_tokens_are_those_that_transformers_keeps(
    sample: Choose, temperature: float, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    logits = rows(1, seed)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(min(top_k, VOCABULARY)))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    if min_p:
        warpers.append(MinPLogitsWarper(min_p))
    kept = set(torch.isfinite(warpers(None, logits.clone())[0]).nonzero()[:, 0].tolist())
    wanted = options(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    many = [sequence(options(), index=i) for i in range(200)]
    drawn = {
        token
        for s in many
        for token in sample(
            logits,
            [
                Sequence(
                    Request("r", [1], wanted), s.index, 0, b"", torch.arange(1)[None], 0, tokens=[1]
                )
            ],
        )
    }
    assert drawn <= kept


def test_frequencies_follow_the_distribution(sample: Choose) -> None:
    logits = rows(1).expand(4000, -1)
    many = [sequence(options(seed=5), index=i) for i in range(4000)]
    counts = torch.bincount(torch.tensor(sample(logits, many)), minlength=VOCABULARY)
    expected = logits[0].softmax(-1)
    assert (counts / 4000 - expected).abs().max() < 0.03
    uniform = torch.full((VOCABULARY,), 1 / VOCABULARY)
    assert (counts / 4000 - uniform).abs().max() > 0.1  # control


def test_a_seed_gives_the_same_token_whatever_else_is_in_the_batch(sample: Choose) -> None:
    logits = rows(6)
    wanted = sequence(options(seed=42, top_p=0.9))
    alone = sample(logits[2:3], [wanted])[0]
    others = [sequence(options(temperature=t, top_k=3)) for t in (0.0, 0.5, 1.0, 1.5, 2.0)]
    batch = [*others[:2], wanted, *others[2:]]
    assert sample(logits, batch)[2] == alone
    plain = sequence(options(seed=42))  # no filter of its own, in the company of filters
    alone = sample(logits[2:3], [plain])[0]
    assert sample(logits, [*others[:2], plain, *others[2:]])[2] == alone
    flat = torch.zeros(40, VOCABULARY)
    seeds = [sequence(options(seed=s)) for s in range(40)]
    assert len(set(sample(flat, seeds))) > 10  # control: seeds differ


def test_repetition_penalty_is_that_of_transformers(sample: Choose) -> None:
    logits = rows(1)
    s = sequence(options(temperature=0.0, repetition_penalty=1.7), output=[4, 5])
    penalised = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([s.tokens]), logits.clone())
    forced = logits.clone()
    forced[0, 4] = logits.max() + 1  # would win without the penalty
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([s.tokens]), forced.clone())
    assert sample(logits, [s]) == penalised.argmax(-1).tolist()
    assert sample(forced, [s]) == expected.argmax(-1).tolist()


def test_frequency_and_presence_penalties_count_generated_tokens_only(sample: Choose) -> None:
    logits = torch.zeros(1, VOCABULARY)
    logits[0, 1], logits[0, 7], logits[0, 8] = 1.0, 3.0, 2.0

    def best(output: list[int], **values: float) -> int:
        return sample(logits, [sequence(options(temperature=0.0, **values), output)])[0]

    assert best([7], frequency_penalty=0.9) == 7
    assert best([7, 7], frequency_penalty=0.9) == 8
    assert best([7, 7], presence_penalty=0.9) == 7
    assert best([7], presence_penalty=1.1) == 8
    assert best([7, 8], frequency_penalty=2.0, presence_penalty=1.0) == 1  # 1 is in the prompt


def test_bias_and_min_tokens(sample: Choose) -> None:
    logits = rows(1)
    best = int(logits.argmax())
    biased = sequence(options(temperature=0.0, logit_bias={best: -100.0, 9: 50.0}))
    assert sample(logits, [biased]) == [9]
    second = int(logits[0].topk(2).indices[1])
    early = sequence(options(temperature=0.0, min_tokens=2), output=[5])
    assert sample(logits, [early], frozenset({best})) == [second]
    late = sequence(options(temperature=0.0, min_tokens=2), output=[5, 5])
    assert sample(logits, [late], frozenset({best})) == [best]


@pytest.mark.parametrize("temperature", [1e-320, 1e-45, 1e-40, 1e-6])
def test_a_temperature_that_would_leave_float32_is_greedy(
    sample: Choose, temperature: float
) -> None:
    logits = rows(4)
    drawn = sample(logits, [sequence(options(temperature=temperature))] * 4)
    assert drawn == logits.argmax(dim=-1).tolist()
    assert not (logits / torch.tensor(1e-40)).isfinite().all()  # what it would have come to
