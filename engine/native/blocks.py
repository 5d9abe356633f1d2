"""Integers as GGUF files store them, and by which forms our kernels multiply by them. Light.

In a safetensors file of ours such a matrix is of bytes `[out, bytes of a row]`, and its name ends
with its kind: `…q_proj.weight.Q4_1`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True, frozen=True)
class Kind:
    """Blocks of a row's inputs, one after the other, and forms that have room for them.

    The first form is the smallest. A weight is the same by each of them; what a kind has as a
    product of two numbers, the scales of K-quants, is rounded to float16.
    """

    inputs: int
    bytes: int
    forms: tuple[str, ...]

    @property
    def itemsize(self) -> float:
        """Bytes of a weight in a file."""
        return self.bytes / self.inputs


KINDS = {  # in the order of `enum kind` in cpu/blocks.c
    "Q8_0": Kind(32, 34, ("int8", "int8_halves", "int8_least")),
    "Q4_0": Kind(32, 18, ("int4", "int8", "int8_halves", "int8_least")),
    "Q4_1": Kind(32, 20, ("int4", "int8_least")),
    "Q5_0": Kind(32, 22, ("int8", "int8_halves", "int8_least")),
    "Q5_1": Kind(32, 24, ("int8_least",)),
    "Q4_K": Kind(256, 144, ("int4", "int8_least")),
    "Q5_K": Kind(256, 176, ("int8_least",)),
    "Q6_K": Kind(256, 210, ("int8_halves",)),
}


def kind_of(name: str) -> str | None:
    """The kind of blocks that a tensor of this name in a file has; None: it has elements."""
    end = name.rpartition(".")[2]
    return end if end in KINDS else None


def common_form(kinds: Sequence[str]) -> str | None:
    """The smallest form that weights of these kinds have in common; None if they have none."""
    first, *others = kinds
    for form in KINDS[first].forms:
        if all(form in KINDS[kind].forms for kind in others):
            return form
    return None


def form_of(kinds: Sequence[str], *, by_turns: bool) -> str | None:
    """By which form weights of these kinds are one product; None: by none, but as elements.

    Side by side each may have its own; a block of each by turns has to be of one.
    """
    smallest = {KINDS[kind].forms[0] for kind in kinds}
    if len(smallest) == 1:
        return smallest.pop()
    return common_form(kinds) if by_turns else "segments"
