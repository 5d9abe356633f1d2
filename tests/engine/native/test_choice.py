"""Tokens chosen by the library, point by point, against the distribution in float64."""

from __future__ import annotations

import numpy
import pytest
import torch
from numpy.typing import NDArray

from engine.native.library import Machine
from engine.native.loading import Choice

Numbers = NDArray[numpy.float64]
ROOM = 1e-5  # of the whole: a point nearer to a token's edge than that may be its neighbour's
FILTERS = {
    "plain": Choice(temperature=0.7, top_p=1.0),
    "hot": Choice(temperature=3.0, top_p=1.0),
    "top-k": Choice(temperature=0.7, top_p=1.0, top_k=7),
    "top-k of one": Choice(temperature=0.7, top_p=1.0, top_k=1),
    "top-k of more than there are": Choice(temperature=0.7, top_p=1.0, top_k=1 << 30),
    "top-p": Choice(temperature=1.3, top_p=0.8),
    "top-p of nothing": Choice(temperature=1.3, top_p=0.0),
    "top-p of nearly all": Choice(temperature=1.3, top_p=0.999999),
    "min-p": Choice(temperature=1.0, top_p=1.0, min_p=0.05),
    "all three": Choice(temperature=1.5, top_p=0.9, min_p=0.01, top_k=40),
    "top-p within top-k": Choice(temperature=2.0, top_p=0.5, top_k=10),
}
SIZES = (1, 2, 15, 50, 1000, 5003)


def distribution(logits: torch.Tensor, choice: Choice) -> Numbers:
    """What is left of a row, of equals the first ones; sums to 1."""
    scaled = logits.double().numpy() / choice.temperature
    likely: Numbers = numpy.exp(scaled - scaled.max())
    order = numpy.argsort(-likely, kind="stable")
    if choice.top_k:
        likely[order[choice.top_k :]] = 0
    likely /= likely.sum()
    before = likely[order].cumsum() - likely[order]
    dropped = before >= choice.top_p
    dropped[0] = False
    likely[order[dropped]] = 0
    likely[likely < likely.max() * choice.min_p] = 0
    return likely / likely.sum()


def chosen(machine: Machine, logits: torch.Tensor, choice: Choice, points: Numbers) -> list[int]:
    values = {name: getattr(choice, name) for name in ("temperature", "top_p", "min_p", "top_k")}
    choices = [Choice(point=point, **values) for point in points.tolist()]
    return machine.choose(logits.expand(len(choices), -1), choices).tolist()


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("size", SIZES)
def test_every_token_has_its_share_of_the_points(
    name: str, size: int, machines: dict[int, Machine]
) -> None:
    choice = FILTERS[name]
    logits = torch.randn(size, generator=torch.Generator().manual_seed(size)) * 3
    logits[3::7] = -torch.inf  # what a constraint forbids
    share = distribution(logits, choice)
    ends = share.cumsum()
    tokens = numpy.flatnonzero(share > 4 * ROOM)
    begins, ends = ends[tokens] - share[tokens], ends[tokens]
    for points in (begins + ROOM, (begins + ends) / 2, ends - ROOM):
        points = points.clip(0, numpy.nextafter(1, 0))
        for machine in (machines[1], machines[5]):
            assert chosen(machine, logits, choice, points) == tokens.tolist()
    if len(tokens) > 1:  # what lies behind a token's share is another's
        assert chosen(machines[1], logits, choice, (ends[:-1] + ROOM)) != tokens[:-1].tolist()


def test_the_ends_of_the_distribution_are_tokens_of_it(machines: dict[int, Machine]) -> None:
    logits = torch.full((5003,), -torch.inf)
    logits[[7, 4000]] = 1.0
    choice = Choice(temperature=1.0, top_p=1.0)
    points = numpy.array([0.0, numpy.nextafter(1, 0)])
    assert chosen(machines[2], logits, choice, points) == [7, 4000]


@pytest.mark.parametrize("kept", [1, 3, 64, 65, 900])
def test_of_equals_the_first_ones_stay(kept: int, machines: dict[int, Machine]) -> None:
    logits = torch.zeros(1000)
    logits[::2] = -1.0
    found = chosen(
        machines[2],
        logits,
        Choice(temperature=1.0, top_p=1.0, top_k=kept),
        numpy.linspace(0, 0.999, 4000),
    )
    larger = list(range(1, 1000, 2))
    assert sorted(set(found)) == sorted([*larger, *range(0, 1000, 2)][:kept])


def test_the_largest_is_chosen_and_of_equals_the_first(machines: dict[int, Machine]) -> None:
    logits = torch.randn(9, 1003, generator=torch.Generator().manual_seed(1))
    logits[4, [17, 900]] = 50.0
    logits[5] = -torch.inf
    logits[5, 1002] = -1e30
    for machine in machines.values():
        found = machine.choose(logits, [Choice()] * 9)
        assert torch.equal(found, logits.argmax(-1))
    assert found[4] == 17
    assert not torch.equal(found, (-logits).argmax(-1))


def test_rows_are_chosen_each_as_its_own_says(machines: dict[int, Machine]) -> None:
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(2))
    choices = [
        Choice(),
        Choice(point=0.5, temperature=1.0, top_p=1.0),
        Choice(point=0.5, temperature=1.0, top_p=0.3),
        Choice(point=0.99, temperature=1.0, top_p=1.0, top_k=2),
    ]
    machine = machines[5]
    together = machine.choose(logits, choices).tolist()
    alone = [machine.choose(logits[i : i + 1], choices[i : i + 1]).item() for i in range(4)]
    assert together == alone
    assert machine.choose(logits.flip(0), choices).tolist() != together


def test_what_is_no_number_is_not_chosen_where_others_are(machines: dict[int, Machine]) -> None:
    logits = torch.full((1, 40), torch.nan)
    logits[0, 30] = 0.0
    drawn = Choice(point=0.3, temperature=1.0, top_p=0.9, top_k=4)
    for choice in (Choice(), drawn):
        assert machines[1].choose(logits, [choice]).item() == 30
        nothing = torch.full((1, 40), torch.nan)
        assert 0 <= machines[1].choose(nothing, [choice]).item() < 40


def test_rows_without_a_choice_and_more_tokens_than_expected(machines: dict[int, Machine]) -> None:
    machine = machines[1]
    with pytest.raises(ValueError, match="1 choices for 2 rows"):
        machine.choose(torch.zeros(2, 16), [Choice()])
    machine.reserve_choice(16)
    many = torch.zeros(1, 1 << 17)
    drawn = Choice(point=0.5, temperature=1.0, top_p=1.0)
    assert machine.choose(many, [drawn]).item() == 1 << 16  # found room for them


def test_no_rows_are_no_tokens(machines: dict[int, Machine]) -> None:
    assert machines[1].choose(torch.empty(0, 16), []).shape == (0,)


@pytest.mark.parametrize("vocabulary", [31, 32, 33, 1003])
def test_only_what_may_come_is_chosen(machines: dict[int, Machine], vocabulary: int) -> None:
    random = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(6, vocabulary, generator=random)
    words = -(-vocabulary // 32)
    masks = torch.randint(-(2**31), 2**31, (4, words), generator=random).to(torch.int32)
    masks[1] = 0
    masks[1, -1] = 1 << (vocabulary - 1) % 32 % 31
    masks[2] = -1
    masked = [0, 2, 3, 5]

    def kinds() -> list[Choice]:
        return [
            Choice(),
            Choice(point=0.5, temperature=1.0, top_p=1.0),
            Choice(),
            Choice(point=0.9, temperature=1.3, top_p=0.5),
            Choice(point=0.3, temperature=0.9, top_p=1.0, top_k=3),
            Choice(point=0.7, temperature=2.0, top_p=1.0, min_p=0.05),
        ]

    bits = (masks[:, :, None] >> torch.arange(32)) & 1
    allowed = bits.view(4, -1)[:, :vocabulary].bool()
    expected_logits = logits.clone()
    expected_logits[masked] = logits[masked].where(allowed, -torch.inf)
    for machine in machines.values():
        expected = machine.choose(expected_logits, kinds())
        found = machine.choose(logits, kinds(), masks, masked)
        assert torch.equal(found, expected)
        for place, row in enumerate(masked):
            assert allowed[place, found[row]]
        free = machine.choose(logits, kinds())
        assert not torch.equal(free, expected)
    with pytest.raises(ValueError, match="in place of"):
        machines[5].choose(logits, kinds(), masks[:, :-1], masked)
