"""Sampling on the device, with torch in the kernels' place, is the CPU's sampling."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.stand_in import torch_sampling
from engine.device.device import Host
from engine.sampling.device_sampler import DeviceSampler
from engine.sampling.sampler import HostSampler
from engine.sampling.token_counts import resolve
from engine.scheduling.sequence import Sequence, in_flight
from tests.engine.sampling.test_sampler import VOCABULARY, options, rows, sequence

NONE = torch.zeros(8, dtype=torch.int64)


def device_sampler(eos: frozenset[int] = frozenset()) -> DeviceSampler:
    return DeviceSampler(eos, VOCABULARY, Host(), torch_sampling)


def choose(sampler: DeviceSampler, logits: torch.Tensor, sequences: list[Sequence]) -> list[int]:
    return sampler.choose(logits, sequences, NONE).tolist()


drawn = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.3, 1.0, 1.7]),
        "top_k": st.integers(0, 60),
        "top_p": st.sampled_from([0.1, 0.5, 0.95, 1.0]),
        "min_p": st.sampled_from([0.0, 0.1, 0.5]),
        "seed": st.integers(0, 1000),
        "frequency_penalty": st.sampled_from([0.0, 0.5, -0.7]),
        "presence_penalty": st.sampled_from([0.0, 0.9]),
        "repetition_penalty": st.sampled_from([1.0, 1.4, 0.8]),
        "logit_bias": st.sampled_from([{}, {3: 5.0, 9: -100.0}]),
        "min_tokens": st.sampled_from([0, 6]),
        "stop_token_ids": st.sampled_from([frozenset(), frozenset({4, 5})]),
    }
)


@settings(max_examples=60, deadline=None)
@given(wanted=st.lists(drawn, min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_a_seeded_batch_gives_the_tokens_of_the_cpu(
    wanted: list[dict[str, object]], seed: int
) -> None:
    sequences = [
        sequence(options(**each), [4, 7, 7, 9], index) for index, each in enumerate(wanted)
    ]
    logits = rows(len(wanted), seed)
    kept = logits.clone()
    expected = HostSampler(frozenset({11}), VOCABULARY).choose(logits, sequences, torch.empty(0))
    assert choose(device_sampler(frozenset({11})), logits, sequences) == expected.tolist()
    assert torch.equal(logits, kept)


def test_tokens_in_flight_are_penalised_like_known_ones() -> None:
    logits = torch.zeros(2, VOCABULARY)
    logits[:, 7], logits[:, 8] = 3.0, 2.0
    latest = torch.tensor([30, 7])
    for penalty in ({"frequency_penalty": 1.1}, {"repetition_penalty": 2.0}):
        wanted = options(temperature=0.0, **penalty)
        flying = [sequence(wanted, [in_flight(0)]), sequence(wanted, [in_flight(1)])]
        assert device_sampler().choose(logits, flying, latest).tolist() == [7, 8]


def test_resolving_looks_up_only_what_is_in_flight() -> None:
    ids = torch.tensor([5, in_flight(2), 0, in_flight(0)])
    assert resolve(ids, torch.tensor([10, 11, 12])).tolist() == [5, 12, 0, 10]


def test_draws_without_a_seed_follow_the_distribution_and_differ() -> None:
    logits = rows(1).expand(4000, -1).contiguous()
    many = [sequence(options(), index=i) for i in range(4000)]
    sampler = device_sampler()
    first, second = (torch.tensor(choose(sampler, logits, many)) for _ in range(2))
    expected = logits[0].softmax(-1)
    for tokens in (first, second):
        counts = torch.bincount(tokens, minlength=VOCABULARY)
        assert (counts / 4000 - expected).abs().max() < 0.03
    assert (first != second).any()


def test_a_neighbours_filter_leaves_a_row_alone() -> None:
    logits = torch.zeros(2, VOCABULARY)
    narrow, wide = options(top_k=1, top_p=0.1), options()
    sampler = device_sampler()
    seen = {choose(sampler, logits, [sequence(narrow), sequence(wide)])[1] for _ in range(300)}
    assert len(seen) > VOCABULARY / 2
