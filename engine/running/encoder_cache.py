"""Tower outputs by media digest, so that a repeated image costs no tower."""

from __future__ import annotations

from collections import OrderedDict

import torch


class EncoderCache:
    """Least recently used first out, bounded by bytes. A larger entry is not kept."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._entries: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._entries

    def get(self, digest: bytes) -> torch.Tensor | None:
        entry = self._entries.get(digest)
        if entry is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(digest)
        return entry

    def put(self, digest: bytes, embeddings: torch.Tensor) -> None:
        size = embeddings.nbytes
        if digest in self._entries or size > self.budget:
            return
        if embeddings.untyped_storage().nbytes() > size:
            embeddings = embeddings.clone()  # a view would hold all that was encoded with it
        self._entries[digest] = embeddings
        self.bytes += size
        while self.bytes > self.budget:
            _, evicted = self._entries.popitem(last=False)
            self.bytes -= evicted.nbytes
