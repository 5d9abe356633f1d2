"""Products by weights of integers against float64 of what these mean, and how they are made."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch

from engine.native.library import BLOCK, Machine, Packed
from tests.engine.native.integers import dequantized, panels
from tests.engine.native.test_products import Machines, drawn, excess

FORMS = ("int8", "int4")
ROWS = (0, 1, 2, 3, 4, 5, 9, 16, 31, 49, 193)
SIZES = [  # inputs, outputs, a bias: whole panels, and of fewer blocks; any number of groups
    (32, 16, False),
    (96, 48, True),
    (288, 176, False),
    (608, 960, True),
]
WIDE = {"int8": 1, "int4": 5}  # what is multiplied, over what it means: 16 more than four bits


def product(machine: Machine, packed: Packed, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return machine.multiply(packed, x), machine.multiply(packed, x, wide=True)


def rows_of_unit(rows: int) -> torch.Tensor:
    """Those that a matrix unit takes, 16 at once, by weights that have their scales, rounded."""
    step = -(-rows // max(1, -(-rows // 192)))  # of a piece
    within = torch.arange(rows) % max(1, step)
    sizes = torch.where(torch.arange(rows) < rows // max(1, step) * step, step, rows % max(1, step))
    return within < sizes // 16 * 16


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("depth", "out", "biased"), SIZES)
def test_products_are_those_of_what_the_integers_mean(
    machines: Machines,
    dtype: torch.dtype,
    built: Path,
    depth: int,
    out: int,
    biased: bool,
    form: str,
) -> None:
    """A row's own result is the same to the last bit, whatever the other rows and threads are."""
    x, weight = drawn(0, ROWS[-1], depth).to(dtype), drawn(1, out, depth)
    bias = drawn(2, out).to(dtype) if biased else None
    packed = Packed([weight], bias, quantization=form, dtype=dtype, file=built)
    meant, added = dequantized(packed), torch.zeros(out) if bias is None else bias
    whole, wide = product(machines[1], packed, x)
    assert (whole.dtype, wide.dtype) == (dtype, torch.float32)
    matrix_unit = machines[1].variant == "amx" and dtype == torch.bfloat16
    if not matrix_unit:
        assert max(excess(whole, x, meant, added), excess(wide, x, meant, added)) <= WIDE[form]
    assert excess(wide, x, weight, added) > 20  # control: the weight itself is another
    for rows in ROWS:
        some = x[:rows].clone()
        first, *others = [product(machine, packed, some) for machine in machines.values()]
        for other in others:
            assert torch.equal(other[0], first[0])
            assert torch.equal(other[1], first[1])
        if matrix_unit:
            of_unit = rows_of_unit(rows)
            for own, weights in ((of_unit, meant.to(dtype)), (~of_unit, meant)):
                assert excess(first[1][own], some[own], weights, added) <= WIDE[form]
        else:
            assert torch.equal(first[0], whole[:rows])
            assert torch.equal(first[1], wide[:rows])
    alone = machines[2].multiply(packed, x[177:178].clone(), wide=True)
    assert matrix_unit or torch.equal(alone, wide[177:178])


@pytest.mark.parametrize("form", FORMS)
def test_one_scale_that_is_another_is_seen(
    machines: Machines, dtype: torch.dtype, built: Path, form: str
) -> None:
    x, weight = drawn(3, 7, 96).to(dtype), drawn(4, 80, 96)
    packed = Packed([weight], quantization=form, dtype=dtype, file=built)
    meant, none = dequantized(packed), torch.zeros(80)
    assert excess(machines[2].multiply(packed, x, wide=True), x, meant, none) <= WIDE[form]
    panels(packed)[1][2, -2] += 8  # the last group's, of the last columns: of 2,048 parts
    found = machines[2].multiply(packed, x, wide=True)
    assert excess(found, x, meant, none) > 30
    assert excess(found, x, dequantized(packed), none) <= WIDE[form]


@pytest.mark.parametrize("form", FORMS)
def test_weights_side_by_side_and_by_turns_are_in_their_places(built: Path, form: str) -> None:
    parts = [drawn(seed, 48, 64) for seed in (5, 6)]
    alone = [dequantized(Packed([part], quantization=form, file=built)) for part in parts]
    together = Packed(parts, quantization=form, file=built)
    assert torch.equal(dequantized(together), torch.cat(alone))
    turns = dequantized(Packed(parts, by_turns=True, quantization=form, file=built))
    blocks = [part.view(-1, 1, BLOCK, 64) for part in alone]
    assert torch.equal(turns, torch.cat(blocks, 1).view(-1, 64))


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_integers_are_near_what_is_stored(built: Path, stored: torch.dtype) -> None:
    """Of eight bits half of a step at most; of four less, in squares, than from least to most."""
    weight = drawn(7, 64, 128) * torch.logspace(-5, 3, 64)[:, None]
    weight[9] = 0
    weight[10, 32:] = 1.5
    weight[11] = drawn(8, 128) + 20
    weight = weight.to(stored)
    groups = weight.double().view(64, 4, 32)
    sizes, least = groups.abs().amax(-1, keepdim=True), groups.amin(-1, keepdim=True)
    errors = {}
    for form in FORMS:
        packed = Packed([weight], quantization=form, dtype=torch.float32, file=built)
        errors[form] = (dequantized(packed).view(64, 4, 32) - groups).abs()
        assert (errors[form][9] == 0).all()
    rounding = 2.0**-10 * sizes + 2.0**-24  # float16's
    assert (errors["int8"] <= sizes / 254 + rounding).all()
    step = ((groups.amax(-1, keepdim=True) - least) / 15).clamp_min(1e-30)
    plain = (((groups - least) / step).round() * step + least - groups).square().sum(-1)
    fitted = errors["int4"].square().sum(-1)
    assert (fitted <= plain + 32 * (rounding * (sizes + rounding))[..., 0]).all()
    usual = torch.tensor([row not in (9, 10, 11) and row > 16 for row in range(64)])
    assert (fitted / plain)[usual].mean() < 0.9
    assert errors["int8"].sum() > 0


@pytest.mark.parametrize(("kind", "form"), [("Q8_0", "int8"), ("Q4_0", "int4"), ("Q4_1", "int4")])
def test_what_a_gguf_file_had_comes_back(built: Path, kind: str, form: str) -> None:
    """Its integers, of weights that were widened, but for the rounding that they went through."""
    type_ = gguf.GGMLQuantizationType[kind]
    stored = gguf.quants.quantize(drawn(12, 64, 512).numpy(), type_)
    weight = torch.from_numpy(gguf.quants.dequantize(stored, type_))

    def lost(given: torch.Tensor, form: str) -> float:
        packed = Packed([given], quantization=form, dtype=torch.bfloat16, file=built)
        return ((dequantized(packed) - weight).norm() / weight.norm()).item()

    assert lost(weight, form) < 5e-4
    assert lost(weight.bfloat16(), form) < 2e-3  # as bfloat16 itself, 1.7e-3
    other = "int4" if form == "int8" else "int8"
    assert lost(weight.bfloat16(), other) > 4e-3


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_refused(built: Path, form: str, value: float) -> None:
    for stored in (torch.float32, torch.bfloat16, torch.float16):
        weight = drawn(9, 32, 64).to(stored)
        weight[31, 63] = value
        with pytest.raises(ValueError, match="no numbers, or infinite"):
            Packed([weight], quantization=form, dtype=torch.float32, file=built)


def test_a_row_that_is_no_number_spoils_no_other(
    machines: Machines, dtype: torch.dtype, built: Path
) -> None:
    for form in FORMS:
        packed = Packed([drawn(10, 48, 64)], quantization=form, dtype=dtype, file=built)
        x = drawn(11, 9, 64).to(dtype)
        clean = machines[2].multiply(packed, x)
        x[4, 5] = float("nan")
        found = machines[2].multiply(packed, x)
        assert found[4].isnan().all()
        others = [row for row in range(9) if row != 4]
        assert torch.equal(found[others], clean[others])


def test_other_sizes_and_types_are_refused(built: Path) -> None:
    for size in ((16, 48), (24, 64), (16, 33)):
        with pytest.raises(ValueError, match="not of whole blocks"):
            Packed([torch.zeros(size)], quantization="int8", file=built)
    with pytest.raises(ValueError, match=r"no integers of torch\.float64"):
        Packed(
            [torch.zeros(16, 32, dtype=torch.float64)],
            quantization="int4",
            dtype=torch.float32,
            file=built,
        )
    with pytest.raises(ValueError, match=r"no kernels of torch\.float16"):
        Packed([torch.zeros(16, 32, dtype=torch.float16)], quantization="int4", file=built)
    with pytest.raises(ValueError, match=r"no kernels of torch\.bfloat16 by torch\.float32"):
        Packed([torch.zeros(16, 32)], dtype=torch.bfloat16, file=built)
