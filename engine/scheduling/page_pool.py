"""Which page belongs to whom, and which page already holds which tokens."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class PagePool:
    """Reference-counted pages with a prefix cache keyed by block digest.

    Pages are numbered 1..pages; page 0 is never handed out: padding may read and write it. A page
    that nobody references is free, but keeps its digest until it is handed out again, so the cache
    needs no eviction of its own: the free list is kept in the order of last use and pages without a
    digest go first.
    """

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self._references = [0] * (pages + 1)
        self._digest_of: dict[int, bytes] = {}
        self._page_of: dict[bytes, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict(
            (page, None) for page in range(1, pages + 1)
        )

    @property
    def free(self) -> int:
        """Pages that can be handed out now, cached ones included."""
        return len(self._free)

    @property
    def used(self) -> int:
        """Pages that some sequence references."""
        return self.pages - len(self._free)

    @property
    def cached(self) -> int:
        """Free pages whose content can still be found by digest."""
        return sum(page in self._digest_of for page in self._free)

    def match(self, digests: list[bytes]) -> list[int]:
        """Pages that hold the longest known prefix of these blocks; nothing is referenced yet."""
        pages = []
        for digest in digests:
            page = self._page_of.get(digest)
            if page is None:
                break
            pages.append(page)
        return pages

    def idle(self, pages: list[int]) -> int:
        """How many of these pages are free: `share` would take them from the free list."""
        return sum(page in self._free for page in pages)

    def share(self, pages: list[int]) -> None:
        """Reference pages found by `match`."""
        for page in pages:
            if self._references[page] == 0:
                del self._free[page]
            self._references[page] += 1

    def allocate(self, count: int) -> list[int] | None:
        """Take `count` pages of unspecified content, or none at all (None) if they are too few."""
        if count > len(self._free):
            return None
        pages = [self._free.popitem(last=False)[0] for _ in range(count)]
        for page in pages:
            digest = self._digest_of.pop(page, None)
            if digest is not None:
                del self._page_of[digest]
            self._references[page] = 1
        return pages

    def publish(self, page: int, digest: bytes) -> None:
        """Make a full page findable. The first page published under a digest keeps it."""
        if page not in self._digest_of and digest not in self._page_of:
            self._digest_of[page] = digest
            self._page_of[digest] = page

    def release(self, pages: Sequence[int]) -> None:
        """Drop one reference to each page. A prefix's end is handed out again before its start."""
        for page in reversed(pages):
            self._references[page] -= 1
            if self._references[page] == 0:
                self._free[page] = None
                if page not in self._digest_of:
                    self._free.move_to_end(page, last=False)
