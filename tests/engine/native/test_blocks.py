"""Weights that stay the integers of a GGUF file, against gguf's own reading of them."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from engine.native.block_weight import BlockEmbedding, BlockWeight
from engine.native.blocks import KINDS, form_of
from engine.native.library import BLOCK, Packed
from tests.engine.native.block_weights import PRODUCTS, random_blocks
from tests.engine.native.integers import dequantized
from tests.engine.native.test_products import Machines, drawn, excess
from tests.engine.native.test_quantized import WIDE, rows_of_unit

ROWS = (1, 3, 4, 5, 17, 49)
ROUNDED = 2.0**-11  # a scale that is a product, as float16


def meant(weight: BlockWeight) -> torch.Tensor:
    """By gguf's own code, in float64."""
    kind = gguf.GGMLQuantizationType[weight.kind]
    return torch.from_numpy(gguf.dequantize(weight.blocks.numpy(), kind)).double()


def lost(packed: Packed, weights: list[BlockWeight]) -> float:
    exact = torch.cat([meant(weight) for weight in weights])
    return float((dequantized(packed) - exact).norm() / exact.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_widened_blocks_are_what_gguf_makes_of_them(kind: str) -> None:
    weight = random_blocks(kind, 48, 512)
    assert tuple(weight.shape) == (48, 512)
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]] == (
        KINDS[kind].inputs,
        KINDS[kind].bytes,
    )
    assert torch.equal(weight.whole().double(), meant(weight))
    weight.blocks[3, 40] ^= 1  # an integer's, or a scale's
    assert not torch.equal(random_blocks(kind, 48, 512).whole(), weight.whole())


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_looked_up_as_it_is_in_the_whole_table(kind: str) -> None:
    weight = random_blocks(kind, 50, 256, dtype=torch.bfloat16)
    ids = torch.tensor([[3, 49, 0], [3, 7, 7]])
    found = BlockEmbedding(weight)(ids)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, torch.nn.functional.embedding(ids, weight.whole()))


@pytest.mark.parametrize("kind", KINDS)
def test_integers_are_packed_as_they_are(built: Path, kind: str) -> None:
    """To the last bit, but for scales that are products: float16's rounding of each."""
    weight = random_blocks(kind, 80, 512)
    for form in (None, *KINDS[kind].forms):
        packed = Packed([weight], quantization=form, file=built)
        assert packed.form == (form or KINDS[kind].forms[0])
        if kind in PRODUCTS:
            assert 0 < lost(packed, [weight]) < ROUNDED
        else:
            assert lost(packed, [weight]) == 0
    weight.blocks[5, 21] ^= 16
    assert lost(packed, [weight]) > 0


@pytest.mark.parametrize(("kind", "form"), [("Q8_0", "int4"), ("Q6_K", "int8"), ("Q4_K", "int8")])
def test_a_form_that_has_no_room_is_made_of_what_they_mean(
    built: Path, kind: str, form: str
) -> None:
    weight = random_blocks(kind, 48, 256, dtype=torch.bfloat16)
    packed = Packed([weight], quantization=form, dtype=torch.bfloat16, file=built)
    made = Packed([meant(weight).float()], quantization=form, dtype=torch.bfloat16, file=built)
    assert torch.equal(packed._packed, made._packed)
    assert lost(packed, [weight]) > 2 * ROUNDED


@pytest.mark.parametrize("kinds", [("Q4_0", "Q8_0"), ("Q4_1", "Q5_K"), ("Q6_K", "Q5_0")])
def test_blocks_of_two_kinds_go_by_turns_in_the_form_that_holds_both(
    built: Path, kinds: tuple[str, str]
) -> None:
    weights = [random_blocks(kind, 48, 256, seed) for seed, kind in enumerate(kinds)]
    packed = Packed(weights, by_turns=True, file=built)
    assert packed.form in KINDS[kinds[0]].forms
    turns = torch.cat([meant(weight).view(-1, 1, BLOCK, 256) for weight in weights], 1)
    found = dequantized(packed).view(turns.shape)
    assert ((found - turns).norm() / turns.norm()) < ROUNDED
    assert ((found - turns.flip(1)).norm() / turns.norm()) > 0.5


def test_kinds_without_a_form_for_both_are_elements(built: Path) -> None:
    weights = [random_blocks(kind, 32, 256) for kind in ("Q6_K", "Q4_K")]
    assert form_of(["Q6_K", "Q4_K"], by_turns=True) is None
    packed = Packed(weights, by_turns=True, dtype=torch.float32, file=built)
    whole = [weight.whole() for weight in weights]
    assert torch.equal(packed._packed, Packed(whole, by_turns=True, file=built)._packed)
    mixed = Packed([weights[0], whole[1]], dtype=torch.float32, file=built)
    assert torch.equal(mixed._packed, Packed(whole, file=built)._packed)


PRODUCTS_OF = [  # of one kind each, or side by side: of whole panels, and of any number of blocks
    *((kind,) for kind in KINDS),
    ("Q4_K", "Q4_K", "Q6_K"),
    ("Q8_0", "Q4_1", "Q5_1"),
]


@pytest.mark.parametrize("kinds", PRODUCTS_OF, ids="-".join)
@pytest.mark.parametrize("outs", [(80, 64, 128), (48, 16, 32)], ids=str)
def test_products_are_those_of_what_the_integers_mean(
    machines: Machines,
    dtype: torch.dtype,
    built: Path,
    kinds: tuple[str, ...],
    outs: tuple[int, ...],
) -> None:
    """A row's own result is the same to the last bit, whatever the other rows and threads are."""
    weights = [random_blocks(kind, out, 512, out) for kind, out in zip(kinds, outs, strict=False)]
    out = sum(map(len, weights))
    x, bias = drawn(0, ROWS[-1], 512).to(dtype), drawn(1, out).to(dtype)
    packed = Packed(weights, bias, dtype=dtype, file=built)
    assert (packed.form == "segments") == (len(kinds) > 1)
    means, matrix_unit = (
        dequantized(packed),
        machines[1].variant == "amx" and dtype == torch.bfloat16,
    )
    allowed = max(WIDE["int4" if "4" in kind else "int8"] for kind in kinds)
    whole = machines[1].multiply(packed, x, wide=True)
    for rows in ROWS:
        some = x[:rows].clone()
        first, *others = [
            machine.multiply(packed, some, wide=True) for machine in machines.values()
        ]
        for other in others:
            assert torch.equal(other, first)
        if matrix_unit:
            of_unit = rows_of_unit(rows)
            for own, each in ((of_unit, means.to(dtype)), (~of_unit, means)):
                assert excess(first[own], some[own], each, bias) <= allowed
        else:
            assert torch.equal(first, whole[:rows])
            assert excess(first, some, means, bias) <= allowed
    last_row = torch.zeros(out, 512, dtype=torch.float64)
    last_row[-1] = 0.2
    assert excess(whole, x, means + last_row, bias) > 30  # control: of one output


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E00], ids=["inf", "-inf", "nan"])
def test_a_scale_that_is_no_number_is_refused(built: Path, kind: str, bits: int) -> None:
    weight = random_blocks(kind, 16, 256)
    at = 208 if kind == "Q6_K" else 0
    last = weight.blocks.shape[1] - KINDS[kind].bytes + at
    weight.blocks[15, last : last + 2] = torch.from_numpy(
        np.array([bits], np.uint16).view(np.uint8)
    )
    with pytest.raises(ValueError, match="no numbers, or infinite"):
        Packed([weight], file=built)


def test_a_scale_too_large_for_float16_is_refused(built: Path) -> None:
    weight = random_blocks("Q4_0", 16, 256)
    assert lost(Packed([weight], file=built), [weight]) == 0
    weight.blocks[0, :2] = torch.from_numpy(np.array([9000], np.float16).view(np.uint8))
    weight.blocks[0, 2:18] = 0  # -8 times that
    with pytest.raises(ValueError, match="no numbers, or infinite"):
        Packed([weight], file=built)


def test_rows_of_zeros_are_added(built: Path) -> None:
    for kind in KINDS:
        weight = random_blocks(kind, 40, 256)
        padded = weight.padded(48)
        assert torch.equal(padded.whole()[:40], weight.whole())
        assert (dequantized(Packed([padded], file=built))[40:] == 0).all()


def test_other_sizes_are_refused(built: Path) -> None:
    with pytest.raises(ValueError, match="not of whole blocks"):
        Packed([random_blocks("Q4_1", 24, 256)], file=built)
    with pytest.raises(ValueError, match=r"no kernels of torch\.float16"):
        Packed([random_blocks("Q4_1", 16, 256)], dtype=torch.float16, file=built)
