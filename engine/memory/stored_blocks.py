"""What of a checkpoint is stored as integers, and what our kernels hold of it. Light."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from engine.native.blocks import KINDS, form_of
from engine.native.loading import GROUP, GROUP_HALVES

LAYER_PRODUCT = re.compile(r"\blayers\.(\d+)\..*\b([qkvo]|gate|up|down)_proj\.weight$")
PRODUCTS = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))  # those of one are computed at once
BY_TURNS = ("gate", "up")
Shapes = Mapping[str, tuple[str, list[int]]]


@dataclass(slots=True, frozen=True)
class StoredBlocks:
    """Of a decoder's matrices those that are blocks of integers.

    Products of a layer take `packed_bytes` in our kernels' forms, but for `elements` parameters of
    products that are widened: a part of those is stored otherwise, or no form holds all parts.
    """

    kinds: tuple[str, ...]  # of layers, the most frequent first
    packed_bytes: int
    elements: int
    table: str | None
    head: str | None  # of its own, or the table's

    def in_words(self) -> str:
        """Which kinds there are."""
        parts = {"layers": " and ".join(self.kinds), "embeddings": self.table, "head": self.head}
        if self.table == self.head and self.table is not None:
            parts = {"layers": parts["layers"], "embeddings and head": self.table}
        words = ", ".join(f"{what} in {kinds}" for what, kinds in parts.items() if kinds)
        return f"{words}, some widened" if self.elements else words


def stored_blocks(tensors: Shapes, *, tied: bool) -> StoredBlocks | None:
    """What is said by names, kinds and shapes of a decoder's tensors; None: nothing of that."""
    layers: dict[str, dict[str, tuple[str, int]]] = {}
    kinds: Counter[str] = Counter()
    table = head = None
    for name, (kind, shape) in tensors.items():
        if found := LAYER_PRODUCT.search(name):
            layers.setdefault(found[1], {})[found[2]] = kind, prod(shape)
            kinds[kind] += prod(shape)
        elif name.endswith("embed_tokens.weight") and kind in KINDS:
            table = kind
        elif name.endswith("lm_head.weight") and kind in KINDS:
            head = kind
    head = table if tied else head
    known = tuple(kind for kind, _ in kinds.most_common() if kind in KINDS)
    if not known and table is None and head is None:
        return None
    packed = elements = 0
    for layer in layers.values():
        for names in PRODUCTS:
            parts = [layer[name] for name in names if name in layer]
            size = _packed_bytes(parts, by_turns=names == BY_TURNS)
            packed += size or 0
            elements += sum(count for _, count in parts) if size is None else 0
    return StoredBlocks(known, packed, elements, table, head)


def packed_itemsize(kind: str) -> float:
    """Bytes of a weight of this kind in the smallest of our kernels' forms."""
    return _itemsize(KINDS[kind].forms[0])


def _itemsize(form: str) -> float:
    return 2 * GROUP_HALVES[form] / GROUP


def _packed_bytes(parts: list[tuple[str, int]], *, by_turns: bool) -> int | None:
    """Bytes of what is multiplied at once; None where it is of elements."""
    if not parts or any(kind not in KINDS for kind, _ in parts):
        return None
    form = form_of([kind for kind, _ in parts], by_turns=by_turns)
    if form is None:
        return None
    sizes = [packed_itemsize(kind) if form == "segments" else _itemsize(form) for kind, _ in parts]
    return int(sum(size * count for size, (_, count) in zip(sizes, parts, strict=True)))
