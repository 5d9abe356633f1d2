"""A second set of pages: keys and values of what sequences attend to across, computed once."""

from __future__ import annotations

import hashlib
import struct

from engine.request import MediaItem
from engine.scheduling.page_pool import PagePool
from engine.scheduling.sequence import ItemStates, Sequence


class StatePages:
    """Pages of `page_size` states each; every item begins a page of its own.

    A sequence has those of all its items from when it is admitted until it ends or is preempted.
    Items that were computed before are found again by their digest, under the sequence's salt.
    """

    def __init__(self, pages: int, page_size: int) -> None:
        self.pool = PagePool(pages)
        self.page_size = page_size

    def needed(self, media: list[MediaItem]) -> int:
        """Pages that a sequence with these items takes."""
        return sum(self._count(item) for item in media)

    def admit(self, sequence: Sequence) -> bool:
        """Give a sequence its pages; False, and none, if there are too few."""
        held: list[ItemStates] = []
        for item in sequence.media:
            if not item.states:
                continue
            digests = self._digests(sequence, item)
            pages = self.pool.match(digests)
            stored = len(pages) == len(digests)
            if stored:
                self.pool.share(pages)
            else:
                allocated = self.pool.allocate(len(digests))
                if allocated is None:
                    self._drop(held)
                    return False
                pages = allocated
            held.append(ItemStates(item, pages, stored))
        sequence.states = held
        return True

    def computed(self, sequence: Sequence, end: int) -> None:
        """Note that the states are stored which tokens before `end` attend to."""
        for held in sequence.states:
            if held.stored or held.item.start >= end:
                continue
            held.stored = True
            for page, digest in zip(held.pages, self._digests(sequence, held.item), strict=True):
                self.pool.publish(page, digest)

    def release(self, sequence: Sequence) -> None:
        """Take a sequence's pages back; what is in them can still be found."""
        self._drop(sequence.states)
        sequence.states = []

    def _drop(self, held: list[ItemStates]) -> None:
        for states in held:
            self.pool.release(states.pages)

    def _count(self, item: MediaItem) -> int:
        return -(-item.states // self.page_size)

    def _digests(self, sequence: Sequence, item: MediaItem) -> list[bytes]:
        whole = hashlib.sha256(b"states:" + sequence.salt + b":" + item.digest).digest()
        return [whole + struct.pack("<i", page) for page in range(self._count(item))]
