"""The media of a conversation, all items at once: read, measured, and only then prepared."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from appliance.errors import (
    ApplianceError,
    bad_request,
    media_cache_miss,
    media_not_allowed,
    media_undecodable,
    media_uuid_conflict,
    too_many_items,
)
from appliance.media.bindings import Bindings
from appliance.media.cache import MediaCache
from appliance.media.digest import content_digest, tensor_digest
from appliance.media.freshness import Fetched, FreshUrls
from appliance.media.item_bytes import ItemBytes
from appliance.media.policy import Target
from appliance.media.pool import MediaPool, Ready
from appliance.media.prepare import MediaTask, Options
from appliance.media.reader import MediaReader
from appliance.media.source import EmbeddingFields, Source
from appliance.metrics import Metrics
from engine.request import MediaItem

Made = TypeVar("Made")

SMALL = 1 << 16  # bytes that are hashed at once


@dataclass(slots=True)
class Item:
    """An item whose size in the prompt is known; `task` is None once it is `ready`.

    `content` is the digest of what was sent, `digest` that of what is made of it.
    """

    source: Source
    content: bytes
    digest: bytes
    tokens: int
    task: MediaTask | None
    ready: Ready | None

    @property
    def modality(self) -> str:
        return self.source.modality


class Intake:
    """Takes media in, built once a server.

    `limits` has how many items of each modality a request may bring, `embeddings` says whether they
    may come as such, `shared` whether what one API key brought is found for another. `salt` stands
    for all that their tensors depend on besides their content and the request's options.
    """

    def __init__(
        self,
        *,
        reader: MediaReader,
        pool: MediaPool,
        cache: MediaCache,
        limits: Mapping[str, int],
        embeddings: bool,
        shared: bool,
        salt: bytes,
        threads: Executor,
        metrics: Metrics,
    ) -> None:
        self._reader = reader
        self._pool = pool
        self._cache = cache
        self._limits = limits
        self._embeddings = embeddings
        self._shared = shared
        self._salt = salt
        self._threads = threads
        self._metrics = metrics
        self._bindings = Bindings()
        self._urls = FreshUrls()
        self._preparing: dict[bytes, _Shared] = {}
        metrics.gauge("media_cache_bytes", "Bytes of prepared media.", lambda: cache.bytes)
        metrics.gauge("media_cache_items", "Prepared media items.", lambda: len(cache))
        metrics.gauge("media_items_inside", "Items being read or prepared.", lambda: pool.inside)

    async def start(self) -> None:
        """Start the workers and wait for them. Raises EngineError."""
        await self._pool.start()

    async def close(self) -> None:
        """End the workers and close every connection."""
        await self._pool.stop()
        await self._reader.close()

    @asynccontextmanager
    async def take(
        self,
        sources: Sequence[Source],
        owner: bytes,
        options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> AsyncIterator[list[Item]]:
        """Every item of a request, in order, read and measured but not yet decoded if possible.

        `owner` is the API key whose uuids are meant, `options` are by modality. Limits and
        addresses of all items are checked before any is read. Raises ApplianceError for the first
        at fault.
        """
        self._check_limits(sources)
        targets = [self._checked(source) for source in sources]
        wanted = [(options or {}).get(source.modality, {}) for source in sources]
        new = [number for number, source in enumerate(sources) if source.content is not None]
        # a uuid alone may mean what another part of the same request brings
        brought = {sources[n].uuid: n for n in new if sources[n].uuid is not None}
        with self._pool.places(len(new)):
            measured = await together(
                [self._measure(sources[n], targets[n], owner, wanted[n]) for n in new]
            )
            items = dict(zip(new, measured, strict=True))
            for number in sorted(set(range(len(sources))) - set(new)):
                source = sources[number]
                same = items.get(brought.get(source.uuid, -1))
                items[number] = self._known(source, owner, wanted[number], same)
            yield [items[number] for number in range(len(sources))]

    async def load(
        self, items: Sequence[Item], owner: bytes, starts: Sequence[int]
    ) -> list[MediaItem]:
        """The items with their tensors, whose placeholders begin at `starts` in the prompt.

        Raises ApplianceError for the first at fault.
        """
        return await together(
            [self._load(item, owner, start) for item, start in zip(items, starts, strict=True)]
        )

    def _checked(self, source: Source) -> Target | None:
        """What a source's URL means; None where it has none."""
        with self._counting(source):
            if isinstance(source.content, EmbeddingFields):
                if not self._embeddings:
                    raise media_not_allowed("This server takes no embeddings.", source.param)
                return None
            if source.content is None:
                return None
            if isinstance(source.content, bytes):
                self._reader.check_sent(source.content, source.kind, source.param)
                return None
            return self._reader.check(source.content, source.kind, source.param)

    def _check_limits(self, found: Sequence[Source]) -> None:
        by_modality: dict[str, list[Source]] = {}
        for source in found:
            with self._counting(source):
                others = by_modality.setdefault(source.modality, [])
                others.append(source)
                if source.kind != others[0].kind:
                    raise bad_request(
                        f"A request brings {source.modality}s or their embeddings, not both.",
                        source.param,
                        "embedding_invalid",
                    )
        for modality, others in by_modality.items():
            limit = self._limits.get(modality, 0)
            if len(others) > limit:
                with self._counting(others[limit]):
                    raise too_many_items(modality, limit, len(others), others[limit].param)

    async def _measure(
        self, source: Source, target: Target | None, owner: bytes, options: Options
    ) -> Item:
        with self._counting(source):
            url = None
            if target is not None and target.host:
                url = f"{source.kind} {self._scope(owner).hex()} {target.url}"
            content = None if url is None else self._urls.find(url)
            if content is not None:
                item = self._kept(source, owner, content, options)
                if item is not None:
                    return item
            begun = time.perf_counter()
            read = await self._read(source, target)
            self._metrics.media_took("fetch", source.modality, time.perf_counter() - begun)
            content = await self._content_digest(source.kind, read.data)
            if url is not None:
                self._urls.put(url, content, read.fresh_seconds)
            item = self._kept(source, owner, content, options)
            if item is not None:
                return item
            self._metrics.media_cache_misses.labels(source.modality).inc()
            task = MediaTask(source.kind, ItemBytes(read.data), options)
            digest = self._digest(owner, content, options)
            tokens = await self._pool.probe(task)
            if tokens is None:
                ready = await self._prepared(digest, task)
                return Item(source, content, digest, ready.tokens, None, ready)
            return Item(source, content, digest, tokens, task, None)

    async def _read(self, source: Source, target: Target | None) -> Fetched:
        if isinstance(source.content, EmbeddingFields):
            loop = asyncio.get_running_loop()
            return Fetched(await loop.run_in_executor(self._threads, source.content.encoded))
        if isinstance(source.content, bytes):
            return Fetched(source.content)
        assert target is not None
        return await self._reader.read(target, source.kind, source.param, self._threads)

    def _known(self, source: Source, owner: bytes, options: Options, same: Item | None) -> Item:
        """What a uuid alone means."""
        assert source.uuid is not None
        with self._counting(source):
            if same is not None:
                if same.source.kind != source.kind:
                    raise media_uuid_conflict(f"{source.part}.uuid")
                return replace(same, source=source)
            content = self._bindings.find(owner, source.uuid)
            item = None if content is None else self._kept(source, owner, content, options)
            if item is None:
                raise media_cache_miss(source.modality, f"{source.part}.uuid")
            return item

    def _kept(self, source: Source, owner: bytes, content: bytes, options: Options) -> Item | None:
        """An item that was prepared before. Raises ApplianceError if its uuid means another."""
        if source.uuid is not None:
            self._bindings.check(owner, source.uuid, content, f"{source.part}.uuid")
        digest = self._digest(owner, content, options)
        ready = self._cache.get(digest)
        if ready is None:
            return None
        if ready.kind != source.kind:
            raise media_uuid_conflict(f"{source.part}.uuid")
        self._metrics.media_cache_hits.labels(source.modality).inc()
        return Item(source, content, digest, ready.tokens, None, ready)

    def _scope(self, owner: bytes) -> bytes:
        return b"" if self._shared else owner

    def _digest(self, owner: bytes, content: bytes, options: Options) -> bytes:
        return tensor_digest(self._salt, self._scope(owner), content, options)

    async def _load(self, item: Item, owner: bytes, start: int) -> MediaItem:
        source = item.source
        with self._counting(source):
            if item.ready is None:
                assert item.task is not None
                item.ready = await self._prepared(item.digest, item.task)
                if item.ready.tokens != item.tokens:
                    raise media_undecodable(
                        f"The {item.modality} is of another size than its header says.",
                        source.param,
                    )
            item.task = None
            if source.uuid is not None:
                self._bindings.bind(owner, source.uuid, item.content, f"{source.part}.uuid")
            return MediaItem(item.modality, item.digest, start, item.tokens, item.ready.tensors)

    async def _prepared(self, digest: bytes, task: MediaTask) -> Ready:
        """Prepares an item once for all who want it meanwhile."""
        shared = self._preparing.get(digest)
        if shared is None:
            shared = self._preparing[digest] = _Shared(
                asyncio.ensure_future(self._prepare(digest, task))
            )
        shared.waiting += 1
        try:
            return await asyncio.shield(shared.work)
        finally:
            shared.waiting -= 1
            if not shared.waiting:
                shared.work.cancel()
                if self._preparing.get(digest) is shared:
                    del self._preparing[digest]

    async def _prepare(self, digest: bytes, task: MediaTask) -> Ready:
        ready = self._cache.get(digest)
        if ready is None:
            ready = await self._pool.prepare(task)
            self._cache.put(digest, ready)
        return ready

    async def _content_digest(self, kind: str, data: bytes) -> bytes:
        if len(data) < SMALL:
            return content_digest(kind, data)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, content_digest, kind, data)

    @contextmanager
    def _counting(self, source: Source) -> Iterator[None]:
        """Count refusals, and say of which item they are."""
        try:
            yield
        except ApplianceError as refusal:
            self._metrics.media_refusals.labels(refusal.code, source.modality).inc()
            raise refusal if refusal.param else refusal.at(source.param) from None


@dataclass(slots=True)
class _Shared:
    work: asyncio.Future[Ready]
    waiting: int = 0


async def together(work: Sequence[Coroutine[Any, Any, Made]]) -> list[Made]:
    """Results of coroutines that run at once; the first failure in order, and all else is ended."""
    running = [asyncio.ensure_future(one) for one in work]
    try:
        return [await one for one in running]
    finally:
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)
