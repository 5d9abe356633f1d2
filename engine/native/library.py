"""The C library for the CPU with torch's tensors: what is checked before it gets a pointer.

Nothing there looks at a shape: every address that it is given comes from `address`, which does.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import addressof, c_double
from pathlib import Path

import torch

from engine.native.block_weight import BlockWeight
from engine.native.blocks import KINDS, form_of
from engine.native.loading import (
    DTYPES,
    FILE,
    FORMS,
    GROUP,
    GROUP_HALVES,
    MOST_PARTS,
    PARTS,
    SUMMED,
    Batch,
    Choice,
    LibraryUnusable,
    Product,
    Segment,
    Stack,
    Step,
    library,
)

BLOCK, PANEL = 16, 64
ELEMENTS = {getattr(torch, name): element for element, name in enumerate(DTYPES)}
STORED = {kind: place for place, kind in enumerate((*ELEMENTS, torch.float16))}
UNITS = {torch.bfloat16: 2, torch.float32: 1}  # elements in 32 bits
BLOCK_KINDS = tuple(KINDS)
ACTIVATIONS = {"silu": 0, "gelu_tanh": 1, "gelu": 2, "quick_gelu": 3}


def address(tensor: torch.Tensor, dtype: torch.dtype, *shape: int) -> int:
    """Where a tensor lies, which must be of this type and shape, without gaps, on the CPU.

    Raises ValueError otherwise.
    """
    if (
        tensor.dtype != dtype
        or tuple(tensor.shape) != shape
        or not tensor.is_contiguous()
        or tensor.device.type != "cpu"
    ):
        raise ValueError(
            f"a tensor {list(tensor.shape)} of {tensor.dtype} on {tensor.device} in place of "
            f"{list(shape)} of {dtype}, without gaps on the CPU"
        )
    return tensor.data_ptr()


class Machine:
    """The processor: kernels of one variant, and the threads that work on them."""

    def __init__(self, variant: str, threads: int, file: Path = FILE) -> None:
        """Raises LibraryUnusable."""
        self.variant, self.threads = variant, threads
        self._choosable = 0  # tokens that threads have room to choose out of
        self._library = library(file)
        self._handle = self._library.appliance_machine(variant.encode(), threads)
        if not self._handle:
            raise LibraryUnusable(f"{variant} does not run here, or its threads are refused")

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.appliance_machine_free(self._handle)

    def reserve(self, stack: Stack) -> None:
        """Give each thread what attention of this shape works in. Raises MemoryError."""
        if not self._library.appliance_reserve(self._handle, stack):
            raise MemoryError("no memory for attention")

    def seconds(self) -> dict[str, float]:
        """What each part of the steps since the last call took; the first call begins it."""
        taken = (c_double * MOST_PARTS)()
        self._library.appliance_seconds(self._handle, taken)
        return dict(zip(PARTS, taken, strict=False))

    def multiply(self, weight: Packed, x: torch.Tensor, *, wide: bool = False) -> torch.Tensor:
        """x `[rows, in]` times the weight, `[rows, out]` in x's type, or in float32 if `wide`."""
        rows = len(x)
        out = x.new_empty(rows, weight.out, dtype=torch.float32 if wide else x.dtype)
        sums = x.new_empty(rows * weight.summed_groups, dtype=torch.float32)
        self._library.appliance_multiply(
            self._handle,
            ELEMENTS[weight.dtype],
            weight.struct,
            address(x, weight.dtype, rows, weight.in_),
            rows,
            out.data_ptr(),
            wide,
            sums.data_ptr(),
        )
        return out

    def likeliest(self, weight: Packed, x: torch.Tensor, vocabulary: int) -> torch.Tensor:
        """The tokens `[rows]` of the largest logits, of equals the first; no logits are written.

        They are those of x `[rows, in]` times the weight, of which outputs behind `vocabulary` are
        no tokens: `choose` at temperature 0 chooses the same of them.
        """
        rows = len(x)
        if not weight.out - BLOCK < vocabulary <= weight.out:
            raise ValueError(f"{vocabulary} tokens of a product with {weight.out} outputs")
        tokens = torch.empty(rows, dtype=torch.int64)
        memory = torch.empty(rows, weight.out // BLOCK, 2, dtype=torch.int32)
        sums = x.new_empty(rows * weight.summed_groups, dtype=torch.float32)
        self._library.appliance_likeliest(
            self._handle,
            ELEMENTS[weight.dtype],
            weight.struct,
            address(x, weight.dtype, rows, weight.in_),
            rows,
            vocabulary,
            tokens.data_ptr(),
            memory.data_ptr(),
            sums.data_ptr(),
        )
        return tokens

    def reserve_choice(self, vocabulary: int) -> None:
        """Give each thread what it takes to choose out of that many tokens. Raises MemoryError."""
        if not self._library.appliance_reserve_choice(self._handle, vocabulary):
            raise MemoryError("no memory for choosing tokens")
        self._choosable = vocabulary

    def choose(
        self,
        logits: torch.Tensor,
        choices: Sequence[Choice],
        masks: torch.Tensor | None = None,
        masked: Sequence[int] = (),
    ) -> torch.Tensor:
        """Tokens `[rows]` from logits `[rows, vocabulary]`, float32, by a choice for each row.

        In the rows `masked` only tokens of `masks` `[masked, vocabulary / 32, rounded up]`, int32,
        may come: token t if bit t % 32 of number t // 32 is set.
        """
        rows, vocabulary = logits.shape
        if masks is not None:
            words = -(-vocabulary // 32)
            first = address(masks, torch.int32, len(masked), words)
            for place, row in enumerate(masked):
                choices[row].allowed = first + 4 * words * place
        if len(choices) != rows:
            raise ValueError(f"{len(choices)} choices for {rows} rows")
        if vocabulary > self._choosable:
            self.reserve_choice(vocabulary)
        logits = logits.contiguous()
        tokens = torch.empty(rows, dtype=torch.int64)
        self._library.appliance_choose(
            self._handle,
            address(logits, torch.float32, rows, vocabulary),
            (Choice * rows)(*choices),
            rows,
            vocabulary,
            tokens.data_ptr(),
        )
        return tokens

    def scratch_bytes(self, stack: Stack, batch: Batch) -> int:
        """Bytes that a step works in."""
        return int(self._library.appliance_scratch(stack, batch))

    def attend(self, stack: Stack, layer: int, batch: Batch, *addresses: int) -> None:
        """Store keys and values of a layer, and attend; queries, keys, values, out, scratch."""
        self._library.appliance_attend(self._handle, stack, layer, batch, *addresses)

    def compute(self, stack: Stack, step: Step) -> None:
        """Carry out a step: some of the layers."""
        self._library.appliance_compute(self._handle, stack, step)


class Packed:
    """A weight in the layout of the kernels, with a bias or none."""

    def __init__(
        self,
        weights: Sequence[torch.Tensor],
        bias: torch.Tensor | None = None,
        *,
        by_turns: bool = False,
        quantization: str | None = None,
        dtype: torch.dtype | None = None,
        file: Path = FILE,
    ) -> None:
        """Weights `[out, in]` one below the other, or a block of 16 outputs of each by turns.

        They multiply rows of their own type, or of `dtype` where they are of integers: those of
        `quantization`, made of weights of any type, or those that `BlockWeight`s are stored as.
        Raises ValueError for sizes that are not whole blocks, units and groups, other types, and
        values that are no numbers.
        """
        self._library = library(file)
        self.dtype, self.in_ = dtype or weights[0].dtype, weights[0].shape[1]
        self.out = sum(len(weight) for weight in weights)
        self.form = quantization or stored_form(weights, by_turns=by_turns)
        unit = UNITS.get(self.dtype)
        elements = self.form is None and not isinstance(weights[0], BlockWeight)
        if unit is None or (elements and self.dtype != weights[0].dtype):
            raise ValueError(f"there are no kernels of {self.dtype} by {weights[0].dtype}")
        if by_turns and any(len(weight) != len(weights[0]) for weight in weights):
            raise ValueError("weights that go by turns are of one size")  # or a place is outside
        whole = unit if self.form is None else GROUP
        if self.in_ % whole or any(len(weight) % BLOCK for weight in weights):
            raise ValueError(f"a weight of {self.out} x {self.in_} is not of whole blocks")
        self._bias = None if bias is None else bias.to(self.dtype).contiguous()
        self.segments = (
            [Packed([weight], dtype=self.dtype, file=file) for weight in weights]
            if self.form == "segments"
            else []
        )
        packed = self._put_all(weights, by_turns=by_turns)
        at = None if self._bias is None else address(self._bias, self.dtype, self.out)
        self.struct = Product(packed, at, self.out, self.in_, FORMS.index(self.form))

    @property
    def nbytes(self) -> int:
        """Bytes that the weight takes, without its bias."""
        return self._packed.nbytes + sum(each.nbytes for each in self.segments)

    @property
    def summed_groups(self) -> int:
        """Groups of a row's inputs whose sums a product takes beside them."""
        return self.in_ // GROUP if self.form in SUMMED else 0

    def _put_all(self, weights: Sequence[torch.Tensor], *, by_turns: bool) -> int:
        """Pack the weights; the address of what they are."""
        groups = self.out * self.in_ // GROUP
        halves = GROUP_HALVES.get(self.form or "", 0)  # none of segments: each has its own
        self._packed = (
            torch.empty(self.out * self.in_ // UNITS[self.dtype], dtype=torch.int32)
            if self.form is None
            else torch.empty(groups * halves, dtype=torch.int16)
        )
        if self.segments:
            structs = [each.struct for each in self.segments]
            table = (Segment * len(structs))(
                *[Segment(one.packed, one.out, one.form) for one in structs]
            )
            self._table = table
            return addressof(table)
        first = 0
        for index, weight in enumerate(weights):
            place = (index, len(weights)) if by_turns else (first // BLOCK, 1)
            self._put(weight.contiguous(), *place)
            first += len(weight)
        return self._packed.data_ptr()

    def _put(self, weight: torch.Tensor, first_block: int, stride: int) -> None:
        """Pack one of the weights, every `stride`th block its."""
        if isinstance(weight, BlockWeight):
            if self.form in KINDS[weight.kind].forms:
                self._put_blocks(weight, first_block, stride)
                return
            weight = weight.whole(self.dtype if self.form is None else torch.float32)
        rows, blocks, to = len(weight), self.out // BLOCK, self._packed.data_ptr()
        if self.form is None:
            source, units = (
                address(weight, self.dtype, rows, self.in_),
                self.in_ // UNITS[self.dtype],
            )
            self._library.appliance_pack(to, source, rows, units, blocks, first_block, stride)
            return
        kind = STORED.get(weight.dtype)
        if kind is None:
            raise ValueError(f"there are no integers of {weight.dtype}")
        source, form = address(weight, weight.dtype, rows, self.in_), FORMS.index(self.form)
        if not self._library.appliance_quantize(
            to, form, source, kind, rows, self.in_, blocks, first_block, stride
        ):
            raise ValueError("a weight has values that are no numbers, or infinite")

    def _put_blocks(self, weight: BlockWeight, first_block: int, stride: int) -> None:
        kind, rows = KINDS[weight.kind], len(weight)
        source = address(weight.blocks, torch.uint8, rows, self.in_ // kind.inputs * kind.bytes)
        if not self._library.appliance_repack(
            self._packed.data_ptr(),
            FORMS.index(self.form),
            source,
            BLOCK_KINDS.index(weight.kind),
            rows,
            self.in_,
            self.out // BLOCK,
            first_block,
            stride,
        ):
            raise ValueError("a weight has values that are no numbers, or infinite")


def stored_form(weights: Sequence[torch.Tensor], *, by_turns: bool) -> str | None:
    """By which integers weights are one product as they are stored; None: by none."""
    kinds = [weight.kind for weight in weights if isinstance(weight, BlockWeight)]
    return form_of(kinds, by_turns=by_turns) if len(kinds) == len(weights) else None
