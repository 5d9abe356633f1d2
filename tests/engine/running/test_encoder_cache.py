"""The bound of the cache is a bound of memory."""

from __future__ import annotations

import torch

from engine.running.encoder_cache import EncoderCache


def test_an_item_that_stays_does_not_hold_those_encoded_with_it() -> None:
    together = torch.arange(320.0).view(32, 10)
    cache = EncoderCache(budget=3 * together[0].nbytes)
    for digest, embeddings in enumerate(together.split(1)):
        cache.put(bytes([digest]), embeddings)
    held = {
        entry.untyped_storage().data_ptr(): entry.untyped_storage().nbytes()
        for entry in cache._entries.values()
    }
    assert len(held) == 3
    assert sum(held.values()) == cache.bytes == cache.budget
    assert torch.equal(cache.get(bytes([31])), together[31:])  # type: ignore[arg-type]


def test_what_has_memory_of_its_own_is_kept_as_it_is() -> None:
    alone = torch.ones(4, 8)
    cache = EncoderCache(budget=alone.nbytes)
    cache.put(b"a", alone)
    assert cache.get(b"a") is alone
