"""Prepared media by content, within a budget of bytes."""

from __future__ import annotations

from collections import OrderedDict

from appliance.media.pool import Ready


class MediaCache:
    """Least recently used first out. An item larger than the budget is not kept.

    Keys are digests of everything that an item's tensors depend on. `most` bounds the number of
    items, each of which holds a file descriptor.
    """

    def __init__(self, budget: int, most: int) -> None:
        self.budget = budget
        self.bytes = 0
        self._most = most
        self._items: OrderedDict[bytes, Ready] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: bytes) -> Ready | None:
        item = self._items.get(key)
        if item is not None:
            self._items.move_to_end(key)
        return item

    def put(self, key: bytes, item: Ready) -> None:
        if key in self._items or item.tensors.nbytes > self.budget:
            return
        self._items[key] = item
        self.bytes += item.tensors.nbytes
        while self.bytes > self.budget or len(self._items) > self._most:
            _, evicted = self._items.popitem(last=False)
            self.bytes -= evicted.tensors.nbytes
