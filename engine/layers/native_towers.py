"""Media towers by our library for the CPU: their layers one call each, and all other products.

A tower stays transformers' module: what it computes itself is what lies between its layers. The
library attends to whole pictures or sounds, packed one after the other, without padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import POINTER, cast, pointer
from itertools import groupby
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad

from engine.layers.tower_parts import Parts, is_layer, parts_of
from engine.native import loading
from engine.native.library import ACTIVATIONS, BLOCK, ELEMENTS, UNITS, Machine, Packed, address

Forward = Callable[..., torch.Tensor]


def compute_towers(
    model: Any, stack: nn.Module, machine: Machine, between: Callable[[], None] = lambda: None
) -> bool:
    """Have the library compute what `model` has beside its text `stack`, where it has kernels.

    The weights of what it computes are emptied: it has its own order of them. `between` is called
    behind each layer. Returns whether no layer is left to torch.
    """
    text = {id(module) for module in stack.modules()}
    text |= {id(model.get_output_embeddings()), id(model.get_input_embeddings())}
    others = [module for module in model.modules() if id(module) not in text]
    layers = [
        (module, parts)
        for module in others
        if (parts := parts_of(module)) is not None and all(_suits(parts))
    ]
    for _, alike in groupby(layers, lambda layer: layer[1].sizes):
        NativeTower(list(alike), machine, between)
    for module in others:
        if isinstance(module, nn.Linear) and len(module.weight):
            _multiply(module, module.weight.data, machine, lambda x: x)
        elif isinstance(module, nn.Conv2d | nn.Conv3d) and _cuts_patches(module):
            _cut(module, machine)
    taken = {id(module) for module, _ in layers}
    return all(id(module) in taken for module in others if is_layer(module))


class NativeTower:
    """Layers of one size, each of them a call of the library."""

    def __init__(
        self,
        layers: list[tuple[nn.Module, Parts]],
        machine: Machine,
        between: Callable[[], None],
    ) -> None:
        parts = layers[0][1]
        weight = parts.output.weight
        self._machine, self._dtype, self._between = machine, weight.dtype, between
        self._hidden, self._heads = len(weight), parts.heads
        self._size = weight.shape[1] // parts.heads
        self._padded = -(-self._size // BLOCK) * BLOCK
        self._held: list[Any] = []  # what the library has addresses of
        self._segments: Segments | None = None  # those of the layer before, as a rule
        self._scratch = torch.empty(0, dtype=torch.uint8)
        self._layers = (loading.Layer * len(layers))()
        self._stack = loading.Stack(
            layers=cast(self._layers, POINTER(loading.Layer)),
            count=len(layers),
            hidden=self._hidden,
            intermediate=len(parts.up.weight),
            heads=parts.heads,
            kv_heads=parts.heads,
            head_dim=self._padded,
            value_dim=self._padded,
            page_size=1,
            scale=parts.scale,
            activation=ACTIVATIONS[parts.activation_name or ""],
            element=ELEMENTS[self._dtype],
            ungated=1,
        )
        machine.reserve(self._stack)
        with ThreadPoolExecutor(machine.threads) as pool:  # packing leaves Python alone
            list(pool.map(self._fill, [parts for _, parts in layers], self._layers))
        for index, (layer, _) in enumerate(layers):
            kind = type(layer).__name__
            _have(layer, (_of_patches if kind == "Qwen2VLVisionBlock" else _of_rows)(self, index))

    def layer(
        self,
        index: int,
        states: torch.Tensor,
        lengths: Sequence[int],
        seen: Sequence[int],
        angles: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """What comes out of a layer that `states` `[rows, hidden]` go into.

        They are segments of `lengths` rows; of each the first `seen` are attended to. `angles` are
        cosines and sines `[rows, head_dim]` to rotate queries and keys by.
        """
        segments = self._segments
        if segments is None or segments.key != (tuple(lengths), tuple(seen)):
            segments = self._segments = Segments(lengths, seen)
        rows, dtype = segments.rows, self._dtype
        states = states.contiguous().clone()  # what went in may be wanted too
        normed = torch.empty_like(states)
        step = loading.Step(
            batch=pointer(segments.batch),
            residual=address(states, dtype, rows, self._hidden),
            normed=address(normed, dtype, rows, self._hidden),
            first=index,
            last=index + 1,
            scratch=self._place(segments),
        )
        if angles is not None:
            wide = [self._spread(angle.float(), 1).contiguous() for angle in angles]
            step.cosines[0] = address(wide[0], torch.float32, rows, self._padded)
            step.sines[0] = address(wide[1], torch.float32, rows, self._padded)
        self._machine.compute(self._stack, step)
        if index + 1 == self._stack.count:
            self._scratch = self._scratch.new_empty(0)  # large pictures take much
        self._between()
        return states

    def _place(self, segments: Segments) -> int:
        needed = self._machine.scratch_bytes(self._stack, segments.batch)
        if needed > len(self._scratch):
            self._scratch = torch.empty(needed, dtype=torch.uint8)
        return self._scratch.data_ptr()

    def _fill(self, parts: Parts, place: loading.Layer) -> None:
        place.window = -1
        weights = [linear.weight.data for linear in parts.qkv]
        biases = [_bias(linear) for linear in parts.qkv]
        if len(parts.qkv) == 1:
            weights, biases = [*weights[0].chunk(3)], [*biases[0].chunk(3)]
        place.qkv = self._product(
            [self._spread(weight.T, self._heads).T for weight in weights],
            torch.cat([self._spread(bias, self._heads) for bias in biases]),
        )
        output = self._spread(parts.output.weight.data, self._heads)
        place.output = self._product([output], _bias(parts.output))
        place.gate_up = self._product([parts.up.weight.data], _bias(parts.up))
        place.down = self._product([parts.down.weight.data], _bias(parts.down))
        place.input, place.mlp = self._norm(parts.first_norm), self._norm(parts.second_norm)
        for linear in (*parts.qkv, parts.output, parts.up, parts.down):
            _empty(linear)

    def _spread(self, columns: torch.Tensor, heads: int) -> torch.Tensor:
        """Each half of each head followed by zeros: `[…, heads * size]` to padded heads."""
        missing = (self._padded - self._size) // 2
        if missing == 0:
            return columns
        halves = columns.unflatten(-1, (2 * heads, self._size // 2))
        return pad(halves, (0, missing)).flatten(-2)

    def _product(self, weights: list[torch.Tensor], bias: torch.Tensor) -> loading.Product:
        packed = Packed(weights, bias)
        self._held.append(packed)
        return packed.struct

    def _norm(self, norm: nn.LayerNorm) -> loading.Norm:
        weight, bias = norm.weight.data.contiguous(), norm.bias.data.contiguous()
        self._held += [weight, bias]
        places = [address(each, self._dtype, self._hidden) for each in (weight, bias)]
        return loading.Norm(*places, epsilon=norm.eps)


class Segments:
    """Pictures or sounds side by side, as the library has batches: each row is a page."""

    def __init__(self, lengths: Sequence[int], seen: Sequence[int]) -> None:
        self.key = tuple(lengths), tuple(seen)
        self.rows = sum(lengths)
        sizes = torch.tensor(lengths, dtype=torch.int32)
        starts = pad(sizes.cumsum(0, dtype=torch.int32), (1, 0))
        pages = torch.arange(self.rows, dtype=torch.int32)
        keys = torch.tensor(seen, dtype=torch.int32)
        last = (keys.long() - 1).repeat_interleave(sizes.long())
        count, int32 = len(sizes), torch.int32
        self._held = keys, starts, pages, last
        self.batch = loading.Batch(
            sequences=count,
            tokens=self.rows,
            query_start=address(starts, int32, count + 1),
            page_start=address(starts, int32, count + 1),
            page_indices=address(pages, int32, self.rows),
            lengths=address(keys, int32, count),  # rows behind them see these too
            last_seen=address(last, torch.int64, self.rows),
        )


def _of_rows(tower: NativeTower, index: int) -> Forward:
    """`forward` of a layer of CLIP, SigLIP or Whisper: `[batch, rows, hidden]`, maybe a mask."""

    def forward(
        hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any
    ) -> torch.Tensor:
        count, rows = hidden_states.shape[:2]
        seen = [rows] * count
        if attention_mask is not None:  # [batch, 1, rows, rows]: what hides the end of a row
            if attention_mask.dtype != torch.bool:
                raise ValueError("a tower's mask says of each row whether it is seen")
            seen = attention_mask[:, 0, 0].sum(-1).tolist()
        states = tower.layer(index, hidden_states.flatten(0, 1), [rows] * count, seen)
        return states.view_as(hidden_states)

    return forward


def _of_patches(tower: NativeTower, index: int) -> Forward:
    """`forward` of a block of Qwen2-VL: `[patches, hidden]` of pictures that `cu_seqlens` parts."""

    def forward(
        hidden_states: torch.Tensor,
        cu_seqlens: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **_: Any,
    ) -> torch.Tensor:
        lengths = cu_seqlens.diff().tolist()
        return tower.layer(index, hidden_states, lengths, lengths, position_embeddings)

    return forward


def _suits(parts: Parts) -> Iterator[bool]:
    """What a layer must be for the library to have kernels for it."""
    weight = parts.output.weight
    yield weight.dtype in UNITS
    yield weight.shape[1] // parts.heads % 2 == 0
    yield parts.activation_name is not None
    yield all(norm.bias is not None for norm in (parts.first_norm, parts.second_norm))
    yield len(weight) % BLOCK == 0 and len(parts.up.weight) % BLOCK == 0


def _have(module: Any, forward: Forward) -> None:
    """Have a module compute by `forward`, and keep its class, which transformers looks at."""
    module.forward = forward


def _bias(linear: Any) -> torch.Tensor:
    zeros: torch.Tensor = linear.weight.new_zeros(len(linear.weight))
    return zeros if linear.bias is None else linear.bias.data


def _empty(module: nn.Linear | nn.Conv2d | nn.Conv3d) -> None:
    module.weight = nn.Parameter(module.weight.new_empty(0), requires_grad=False)


def _multiply(
    module: nn.Linear | nn.Conv2d | nn.Conv3d,
    weight: torch.Tensor,
    machine: Machine,
    shaped: Callable[[torch.Tensor], torch.Tensor],
) -> bool:
    """Have a module be a product by `weight` `[out, in]`, if there are kernels for its size."""
    out, depth = weight.shape
    if weight.dtype not in UNITS or out % BLOCK or depth % UNITS[weight.dtype]:
        return False
    packed = Packed([weight], None if module.bias is None else module.bias.data)
    _empty(module)

    def forward(x: torch.Tensor) -> torch.Tensor:
        rows = shaped(x).to(packed.dtype)
        found = machine.multiply(packed, rows.reshape(-1, depth).contiguous())
        return found.view(*rows.shape[:-1], out)

    _have(module, forward)
    return True


def _cuts_patches(conv: nn.Conv2d | nn.Conv3d) -> bool:
    """Whether a convolution takes each of its inputs once."""
    none = conv.padding == "valid" or all(size == 0 for size in conv.padding)
    return (
        none
        and tuple(conv.stride) == tuple(conv.kernel_size)
        and conv.groups == 1
        and set(conv.dilation) == {1}
        and len(conv.weight) > 0
    )


def _cut(conv: nn.Conv2d | nn.Conv3d, machine: Machine) -> None:
    kernel = conv.kernel_size
    places = len(kernel)

    def patches(x: torch.Tensor) -> torch.Tensor:
        """`[batch, channels, …]` to `[batch, patches along each side…, channels * kernel]`."""
        for side, size in enumerate(kernel):
            x = x.unflatten(2 + 2 * side, (-1, size))
        sides = range(2, 2 + 2 * places, 2)
        order = (0, *sides, 1, *(side + 1 for side in sides))
        return x.permute(order).flatten(places + 1)

    if _multiply(conv, conv.weight.data.flatten(1), machine, patches):
        product: Forward = conv.forward
        _have(conv, lambda x: product(x).movedim(-1, 1))
