"""Products by packed weights against float64, and each row whatever else is multiplied."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from engine.native.library import Machine, Packed

ROWS = (0, 1, 2, 3, 4, 5, 6, 7, 13, 16, 31, 32, 49, 192, 193, 400)
SIZES = [  # inputs, outputs, a bias: panels of 64 outputs that are whole, and of fewer blocks
    (2, 16, False),
    (66, 48, False),
    (66, 48, True),
    (66, 80, True),
    (66, 960, False),
    (1536, 176, False),
    (1536, 960, True),
]
Machines = dict[int, Machine]


@cache
def drawn(seed: int, *size: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def excess(found: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> float:
    """The largest error over what rounding allows: above 1 it is no rounding."""
    exact, terms = x.double() @ weight.double().T + bias.double(), x.shape[1] + 2
    sizes = x.double().abs() @ weight.double().abs().T + bias.double().abs()
    allowed = terms * 2.0**-24 * sizes + 1e-30
    if found.dtype == torch.bfloat16:
        allowed += 2.0**-8 * (exact.abs() + allowed)
    return ((found.double() - exact).abs() / allowed).max().item() if len(x) else 0.0


@pytest.mark.parametrize(("depth", "out", "biased"), SIZES)
def test_products_are_those_of_float64_up_to_rounding(
    machines: Machines, dtype: torch.dtype, built: Path, depth: int, out: int, biased: bool
) -> None:
    """A row's own result is the same to the last bit, whatever the other rows and threads are.

    Not so by a matrix unit, which multiplies few rows otherwise than many; within rounding then.
    """
    x, weight = drawn(0, ROWS[-1], depth).to(dtype), drawn(1, out, depth).to(dtype)
    bias = drawn(2, out).to(dtype) if biased else None
    packed = Packed([weight], bias, file=built)
    added = torch.zeros(out) if bias is None else bias
    for wide in (False, True):
        whole = machines[1].multiply(packed, x, wide=wide)
        assert whole.dtype == (torch.float32 if wide else dtype)
        assert excess(whole, x, weight, added) <= 1
        for rows in ROWS:
            some = x[:rows].clone()
            first, *others = [
                machine.multiply(packed, some, wide=wide) for machine in machines.values()
            ]
            assert all(torch.equal(other, first) for other in others)
            if machines[1].variant == "amx" and dtype == torch.bfloat16:
                assert excess(first, some, weight, added) <= 1
            else:
                assert torch.equal(first, whole[:rows])
                alone = machines[2].multiply(packed, x[321:322].clone(), wide=wide)
                assert torch.equal(alone, whole[321:322])
    swapped = weight.clone()
    swapped[[0, 15]] = weight[[15, 0]]
    assert excess(whole, x, swapped, added) > 10  # so a row in another's place would be seen
    if biased:
        assert excess(whole, x, weight, added.roll(1)) > 10


def test_a_float32_weight_may_have_inputs_of_any_number(machines: Machines, built: Path) -> None:
    for depth in (1, 3, 17, 65):
        x, weight = drawn(3, 9, depth), drawn(4, 112, depth)
        found = machines[2].multiply(Packed([weight], file=built), x)
        assert excess(found, x, weight, torch.zeros(112)) <= 1


@pytest.mark.parametrize("outs", [(16, 16), (48, 48), (80, 80), (48, 16, 32)])
def test_weights_below_each_other_are_one(
    machines: Machines, dtype: torch.dtype, built: Path, outs: tuple[int, ...]
) -> None:
    weights = [drawn(seed, out, 66).to(dtype) for seed, out in enumerate(outs, 5)]
    x, whole = drawn(8, 7, 66).to(dtype), torch.cat(weights)
    machine = machines[2]
    bias = drawn(9, sum(outs)).to(dtype)
    parts, one = Packed(weights, bias, file=built), Packed([whole], bias, file=built)
    assert torch.equal(machine.multiply(parts, x), machine.multiply(one, x))


@pytest.mark.parametrize("out", [16, 48, 80, 1024])
def test_gate_and_up_by_turns_are_a_block_of_each(
    machines: Machines, dtype: torch.dtype, built: Path, out: int
) -> None:
    gate, up = drawn(10, out, 66).to(dtype), drawn(11, out, 66).to(dtype)
    x, machine = drawn(12, 13, 66).to(dtype), machines[2]
    turns = machine.multiply(Packed([gate, up], by_turns=True, file=built), x).view(13, -1, 2, 16)
    for index, weight in enumerate((gate, up)):
        alone = machine.multiply(Packed([weight], file=built), x)
        assert torch.equal(turns[:, :, index].flatten(1), alone)
    assert not torch.equal(turns[:, :, 0], turns[:, :, 1])


def test_no_number_stays_none(machines: Machines, dtype: torch.dtype, built: Path) -> None:
    x, weight = drawn(13, 9, 66).to(dtype), drawn(14, 48, 66).to(dtype)
    packed, clean = Packed([weight], file=built), x.clone()
    x[4, 5] = float("nan")
    for wide in (False, True):
        found = machines[2].multiply(packed, x, wide=wide)
        assert found[4].isnan().all()
        others = [row for row in range(9) if row != 4]
        assert torch.equal(found[others], machines[2].multiply(packed, clean, wide=wide)[others])
    x[4, 5] = float("inf")
    assert not machines[2].multiply(packed, x)[4].isfinite().any()


def test_infinite_results_are_infinite(machines: Machines, dtype: torch.dtype, built: Path) -> None:
    """The largest sums that bfloat16 has, and those that it has not."""
    weight = torch.full((16, 2), 2.0).to(dtype)
    x = torch.tensor([[2.0**125, 0], [2.0**126, 2.0**126], [-(2.0**126), -(2.0**126)]]).to(dtype)
    found = machines[1].multiply(Packed([weight], file=built), x)
    assert found[:, 0].tolist() == [2.0**126, float("inf"), float("-inf")]


def test_a_weight_from_an_odd_place_is_read_as_it_is(
    machines: Machines, dtype: torch.dtype, built: Path
) -> None:
    """Of bfloat16 a checkpoint may have an odd number before it: it begins within a word."""
    stored = drawn(15, 1 + 48 * 66).to(dtype)
    weight, x = stored[1:].view(48, 66), drawn(16, 1 + 7 * 66).to(dtype)[1:].view(7, 66)
    found = machines[2].multiply(Packed([weight], file=built), x)
    assert excess(found, x, weight, torch.zeros(48)) <= 1


@pytest.mark.parametrize(
    ("outs", "depth"), [((15,), 32), ((24,), 32), ((16, 8), 32), ((16,), 33), ((0, 17), 32)]
)
def test_sizes_that_are_no_whole_blocks_are_refused(
    built: Path, outs: tuple[int, ...], depth: int
) -> None:
    with pytest.raises(ValueError, match=f"of {sum(outs)} x {depth} is not of whole blocks"):
        Packed([torch.zeros(out, depth, dtype=torch.bfloat16) for out in outs], file=built)


def test_weights_that_do_not_belong_together_are_refused(built: Path) -> None:
    for others in (torch.zeros(16, 30), torch.zeros(16, 32, dtype=torch.bfloat16)):
        with pytest.raises(ValueError, match="in place of"):
            Packed([torch.zeros(16, 32), others], file=built)
    with pytest.raises(ValueError, match="by turns"):  # the longer one would end outside
        Packed([torch.zeros(48, 32), torch.zeros(16, 32)], by_turns=True, file=built)
    with pytest.raises(ValueError, match=r"no kernels of torch\.float16"):
        Packed([torch.zeros(16, 32, dtype=torch.float16)], file=built)
    with pytest.raises(ValueError, match="in place of"):
        Packed([torch.zeros(16, 32)], torch.zeros(15), file=built)


def test_rows_that_are_not_the_weights_are_refused(machines: Machines, built: Path) -> None:
    machine, packed = machines[1], Packed([torch.zeros(16, 32)], file=built)
    for x in (
        torch.zeros(3, 30),
        torch.zeros(3, 32, dtype=torch.bfloat16),
        torch.zeros(3, 64)[:, :32],
        torch.zeros(32),
    ):
        with pytest.raises(ValueError, match="in place of"):
            machine.multiply(packed, x)
