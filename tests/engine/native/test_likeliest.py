"""The largest of a product's outputs without the others, against the choice out of all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.native.library import BLOCK, Machine, Packed
from engine.native.loading import Choice
from tests.engine.native.test_products import Machines, drawn

ROWS = (0, 1, 7, 33, 193)
FORMS = (None, "int8", "int4")
NOTHING = float("nan")


def head(weight: torch.Tensor, dtype: torch.dtype, form: str | None, file: Path) -> Packed:
    """A weight `[tokens, in]` filled up to whole blocks by zeros, as a model's head is."""
    filled = torch.cat((weight, weight.new_zeros(-len(weight) % BLOCK, weight.shape[1])))
    return Packed([filled.to(dtype)], quantization=form, dtype=dtype, file=file)


def chosen(machine: Machine, packed: Packed, x: torch.Tensor, tokens: int) -> torch.Tensor:
    """What is chosen out of all logits."""
    logits = machine.multiply(packed, x, wide=True)[:, :tokens].contiguous()
    return machine.choose(logits, [Choice()] * len(x))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tokens", [1, 50, 1003])
def test_the_likeliest_is_what_is_chosen_of_all_logits(
    machines: Machines, dtype: torch.dtype, built: Path, tokens: int, form: str | None
) -> None:
    half = -(-tokens // 2)
    weight, x = drawn(0, half, 96).repeat(2, 1)[:tokens], drawn(1, ROWS[-1], 96).to(dtype)
    packed = head(weight, dtype, form, built)
    for machine in machines.values():
        for rows in ROWS:
            some = x[:rows].clone()
            found = machine.likeliest(packed, some, tokens)
            assert torch.equal(found, chosen(machine, packed, some, tokens))
    assert (found < half).all()  # each logit is there twice
    assert tokens < 50 or not torch.equal(found, machine.likeliest(packed, -x, tokens))


@pytest.mark.parametrize("form", FORMS)
def test_what_fills_up_the_last_block_is_no_token(
    machines: Machines, dtype: torch.dtype, built: Path, form: str | None
) -> None:
    """All logits are below 0, which is what the zeros there give."""
    weight, x = drawn(2, 50, 96).abs() + 0.5, -(drawn(3, 9, 96).abs() + 0.5).to(dtype)
    packed = head(weight, dtype, form, built)
    for machine in machines.values():
        found = machine.likeliest(packed, x, 50)
        assert torch.equal(found, chosen(machine, packed, x, 50))
        assert (found < 50).all()
        assert (machine.likeliest(packed, x, 64) == 50).all()
    for tokens in (0, 48, 65):
        with pytest.raises(ValueError, match=f"{tokens} tokens of a product with 64 outputs"):
            machine.likeliest(packed, x, tokens)


def test_what_is_no_number_is_the_likeliest_where_all_are(
    machines: Machines, dtype: torch.dtype, built: Path
) -> None:
    weight, x = torch.zeros(200, 32), torch.ones(8, 32).to(dtype)
    weight[:, 0] = NOTHING
    weight[70:] = -torch.inf
    weight[[90, 150]] = -2.0
    weight[151:153] = NOTHING
    few = torch.where(weight == -2.0, -torch.inf, weight)
    none = torch.full_like(weight, NOTHING)
    for expected, each in ((90, weight), (70, few), (0, none)):
        packed = head(each, dtype, None, built)
        for machine in machines.values():
            found = machine.likeliest(packed, x, 200)
            assert torch.equal(found, chosen(machine, packed, x, 200))
            assert found.tolist() == [expected] * 8
