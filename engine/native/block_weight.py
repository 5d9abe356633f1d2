"""A matrix of a model that stays the integers of its file, mapped from there.

Formats: ggml-org/ggml, src/ggml-common.h and ggml-quants.c.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from engine.native.blocks import KINDS

Bytes = torch.Tensor  # uint8 [blocks, bytes of a block]
AT_ONCE = {"cpu": 1 << 18}  # elements that are float32 at once: as many as a cache holds
MOST_AT_ONCE = 1 << 24  # elsewhere


class BlockWeight(nn.Parameter):
    """`[out, in]` of a type, on no device: whoever computes with it asks for what it means."""

    kind: str
    blocks: torch.Tensor  # uint8 [out, bytes of a row]

    def __new__(cls, kind: str, blocks: torch.Tensor, dtype: torch.dtype) -> BlockWeight:
        inputs = blocks.shape[1] // KINDS[kind].bytes * KINDS[kind].inputs
        empty = torch.empty(len(blocks), inputs, dtype=dtype, device="meta")
        made: BlockWeight = torch.Tensor._make_subclass(cls, empty, False)
        made.kind, made.blocks = kind, blocks
        return made

    def whole(
        self, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
    ) -> torch.Tensor:
        """All of it as elements `[out, in]`, of its own type or another."""
        out = torch.empty(self.shape, dtype=dtype or self.dtype, device=device)
        most = AT_ONCE.get(out.device.type, MOST_AT_ONCE)
        rows = max(1, most // self.shape[1])
        for first in range(0, len(out), rows):
            some = self.blocks[first : first + rows].to(device)
            out[first : first + rows] = widened(self.kind, some)
        return out

    def padded(self, out: int) -> BlockWeight:
        """The same with rows of zeros up to that many outputs."""
        more = self.blocks.new_zeros(out - len(self.blocks), self.blocks.shape[1])
        return BlockWeight(self.kind, torch.cat((self.blocks, more)), self.dtype)


class BlockEmbedding(nn.Module):
    """`nn.Embedding` whose table is of blocks: a row is widened when it is looked up."""

    weight: nn.Parameter

    def __init__(self, weight: BlockWeight) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """token_ids of any shape; returns `[*shape, hidden]`."""
        if not isinstance(self.weight, BlockWeight):  # somebody has widened it
            return nn.functional.embedding(token_ids, self.weight)
        rows = self.weight.blocks[token_ids.flatten()]
        found = widened(self.weight.kind, rows).to(self.weight.dtype)
        return found.view(*token_ids.shape, found.shape[1])


def tensor_of(parameter: torch.Tensor) -> torch.Tensor:
    """The tensor of a parameter; one of blocks is its own."""
    return parameter if isinstance(parameter, BlockWeight) else parameter.data


def widen(
    module: nn.Module, device: str | torch.device = "cpu", left: Collection[int] = ()
) -> None:
    """Make elements, on a device, of the weights of blocks in a module, one at a time.

    Those whose ids are `left` stay.
    """
    made: dict[int, nn.Parameter] = {}  # a tied one is one
    with by_one_thread():
        for each in module.modules():
            for name, parameter in list(each.named_parameters(recurse=False)):
                if isinstance(parameter, BlockWeight) and id(parameter) not in left:
                    if id(parameter) not in made:
                        whole = parameter.whole(device=device)
                        made[id(parameter)] = nn.Parameter(whole, requires_grad=False)
                    setattr(each, name, made[id(parameter)])


@contextmanager
def by_one_thread() -> Iterator[None]:
    """For what is made of small pieces: others would be waited for longer than they help."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def widened(kind: str, rows: torch.Tensor) -> torch.Tensor:
    """What rows of blocks mean, in float32: uint8 `[rows, bytes of a row]` to `[rows, in]`."""
    blocks = rows.reshape(-1, KINDS[kind].bytes)
    return WIDEN[kind](blocks).view(len(rows), -1)


def _half(blocks: Bytes, first: int) -> torch.Tensor:
    return blocks[:, first : first + 2].contiguous().view(torch.float16).float()


def _nibbles(bytes_: torch.Tensor) -> torch.Tensor:
    """The lower halves of bytes `[…, n]`, then the upper ones: `[…, 2, n]`."""
    return torch.stack((bytes_ & 15, bytes_ >> 4), -2)


def _eight(blocks: Bytes) -> torch.Tensor:
    return blocks[:, 2:].contiguous().view(torch.int8).float() * _half(blocks, 0)


def _four(blocks: Bytes) -> torch.Tensor:
    return (_nibbles(blocks[:, 2:]).flatten(1).float() - 8) * _half(blocks, 0)


def _four_and_least(blocks: Bytes) -> torch.Tensor:
    integers = _nibbles(blocks[:, 4:]).flatten(1).float()
    return integers * _half(blocks, 0) + _half(blocks, 2)


def _fives(blocks: Bytes, first: int) -> torch.Tensor:
    """Integers from 0 to 31: the fifth bits of all, and behind them the others."""
    places = torch.arange(8, dtype=torch.uint8, device=blocks.device)
    fifth = (blocks[:, first : first + 4, None] >> places & 1).flatten(1)
    return (_nibbles(blocks[:, first + 4 :]).flatten(1) | fifth << 4).float()


def _five(blocks: Bytes) -> torch.Tensor:
    return (_fives(blocks, 2) - 16) * _half(blocks, 0)


def _five_and_least(blocks: Bytes) -> torch.Tensor:
    return _fives(blocks, 4) * _half(blocks, 0) + _half(blocks, 2)


def _pairs(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight scales and eight least values of six bits, `[blocks, 8, 1]`, from 12 bytes."""
    low, high, both = packed.split(4, 1)
    scales = torch.cat((low & 63, both & 15 | low >> 6 << 4), 1)
    least = torch.cat((high & 63, both >> 4 | high >> 6 << 4), 1)
    return scales[..., None].float(), least[..., None].float()


def _of_superblock(blocks: Bytes, integers: torch.Tensor) -> torch.Tensor:
    """Eight groups of 32 `[blocks, 8, 32]` by scales that are products."""
    scales, least = _pairs(blocks[:, 4:16])
    scales = scales * _half(blocks, 0)[..., None]
    return integers.float() * scales - least * _half(blocks, 2)[..., None]


def _four_k(blocks: Bytes) -> torch.Tensor:
    return _of_superblock(blocks, _nibbles(blocks[:, 16:].view(-1, 4, 32)).flatten(1, 2))


def _five_k(blocks: Bytes) -> torch.Tensor:
    places = torch.arange(8, dtype=torch.uint8, device=blocks.device)[:, None]
    fifth = blocks[:, None, 16:48] >> places & 1
    four = _nibbles(blocks[:, 48:].view(-1, 4, 32)).flatten(1, 2)
    return _of_superblock(blocks, four | fifth << 4)


def _six_k(blocks: Bytes) -> torch.Tensor:
    """Halves of 128 inputs, in each four groups of 32; a scale for each 16."""
    places = torch.arange(0, 8, 2, dtype=torch.uint8, device=blocks.device)[:, None]
    two = blocks[:, 128:192].view(-1, 2, 1, 32) >> places & 3
    four = _nibbles(blocks[:, :128].view(-1, 2, 64)).view(-1, 2, 4, 32)
    integers = (four | two << 4).view(-1, 16, 16).float() - 32
    scales = blocks[:, 192:208].contiguous().view(torch.int8).float() * _half(blocks, 208)
    return integers * scales[..., None]


WIDEN: dict[str, Callable[[Bytes], Any]] = {
    "Q8_0": _eight,
    "Q4_0": _four,
    "Q4_1": _four_and_least,
    "Q5_0": _five,
    "Q5_1": _five_and_least,
    "Q4_K": _four_k,
    "Q5_K": _five_k,
    "Q6_K": _six_k,
}
