"""The media of a conversation, all items at once: read, measured, and only then prepared."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from appliance.errors import (
    ApplianceError,
    bad_request,
    media_cache_miss,
    media_undecodable,
    media_uuid_conflict,
    too_many_items,
)
from appliance.media.bindings import Bindings
from appliance.media.cache import MediaCache
from appliance.media.digest import digest_of
from appliance.media.policy import Target
from appliance.media.pool import MediaPool, Ready
from appliance.media.prepare import MediaTask
from appliance.media.reader import MediaReader
from appliance.media.sources import Source, sources
from appliance.metrics import Metrics
from engine.shared_tensors import SharedTensors

Made = TypeVar("Made")

SMALL = 1 << 16  # bytes that are hashed at once


@dataclass(slots=True, frozen=True)
class LoadedItem:
    """One media item ready for the engine; `param` is the JSON path it came from."""

    modality: str
    digest: bytes
    tokens: int
    tensors: SharedTensors
    param: str


@dataclass(slots=True)
class Item:
    """An item whose size in the prompt is known; `task` is None once it is `ready`."""

    source: Source
    digest: bytes
    tokens: int
    task: MediaTask | None
    ready: Ready | None

    @property
    def modality(self) -> str:
        return self.source.modality


class Intake:
    """Takes media in, built once a server.

    `limits` has how many items of each modality a request may bring. Everything that an item's
    tensors depend on is in `salt`, its bytes and its options: together they are its digest.
    """

    def __init__(
        self,
        *,
        reader: MediaReader,
        pool: MediaPool,
        cache: MediaCache,
        limits: Mapping[str, int],
        salt: bytes,
        threads: Executor,
        metrics: Metrics,
    ) -> None:
        self._reader = reader
        self._pool = pool
        self._cache = cache
        self._limits = limits
        self._salt = salt
        self._threads = threads
        self._metrics = metrics
        self._bindings = Bindings()
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
        messages: Sequence[Mapping[str, Any]],
        owner: bytes,
        options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> AsyncIterator[list[Item]]:
        """Every item of the messages, in order, read and measured but not yet decoded if possible.

        `owner` is the API key whose uuids are meant, `options` are by modality. Limits and
        addresses of all items are checked before any is read. Raises ApplianceError for the first
        at fault.
        """
        found = list(sources(messages))
        self._check_limits(found)
        targets: list[Target | None] = []
        for source in found:
            with self._counting(source):
                targets.append(
                    None
                    if source.url is None
                    else self._reader.check(source.url, source.kind, source.param)
                )
        # a uuid alone may mean what another part of the same request brings
        brought = {
            source.uuid: number
            for number, source in enumerate(found)
            if source.url is not None and source.uuid is not None
        }
        new = [number for number, source in enumerate(found) if source.url is not None]
        with self._pool.places(len(new)):
            measured = await together(
                [
                    self._measure(
                        found[number],
                        targets[number],
                        owner,
                        (options or {}).get(found[number].modality, {}),
                    )
                    for number in new
                ]
            )
            by_number = dict(zip(new, measured, strict=True))
            for number, source in enumerate(found):
                if number not in by_number:
                    same = by_number.get(brought.get(source.uuid or "", -1))
                    by_number[number] = self._known(source, owner, same)
            yield [by_number[number] for number in range(len(found))]

    async def load(self, items: Sequence[Item], owner: bytes) -> list[LoadedItem]:
        """The items' tensors. Raises ApplianceError for the first at fault."""
        return await together([self._load(item, owner) for item in items])

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
        self, source: Source, target: Target | None, owner: bytes, options: Mapping[str, Any]
    ) -> Item:
        assert target is not None
        with self._counting(source):
            begun = time.perf_counter()
            data = await self._reader.read(target, source.kind, source.param, self._threads)
            self._metrics.media_took("fetch", source.modality, time.perf_counter() - begun)
            task = MediaTask(source.kind, data, options)
            digest = await self._digest(task)
            if source.uuid is not None:
                self._bindings.check(owner, source.uuid, digest, f"{source.part}.uuid")
            ready = self._cache.get(digest)
            if ready is not None:
                self._metrics.media_cache_hits.labels(source.modality).inc()
                return Item(source, digest, ready.tokens, None, ready)
            self._metrics.media_cache_misses.labels(source.modality).inc()
            tokens = await self._pool.probe(task)
            if tokens is None:
                ready = await self._prepared(digest, task)
                return Item(source, digest, ready.tokens, None, ready)
            return Item(source, digest, tokens, task, None)

    def _known(self, source: Source, owner: bytes, same: Item | None) -> Item:
        """What a uuid alone means."""
        assert source.uuid is not None
        with self._counting(source):
            if same is not None:
                if same.source.kind != source.kind:
                    raise media_uuid_conflict(f"{source.part}.uuid")
                return Item(source, same.digest, same.tokens, same.task, same.ready)
            digest = self._bindings.find(owner, source.uuid)
            ready = None if digest is None else self._cache.get(digest)
            if digest is None or ready is None:
                raise media_cache_miss(source.modality, f"{source.part}.uuid")
            if ready.kind != source.kind:
                raise media_uuid_conflict(f"{source.part}.uuid")
            self._metrics.media_cache_hits.labels(source.modality).inc()
            return Item(source, digest, ready.tokens, None, ready)

    async def _load(self, item: Item, owner: bytes) -> LoadedItem:
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
                self._bindings.bind(owner, source.uuid, item.digest, f"{source.part}.uuid")
            return LoadedItem(
                item.modality, item.digest, item.tokens, item.ready.tensors, source.param
            )

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

    async def _digest(self, task: MediaTask) -> bytes:
        if len(task.data) < SMALL:
            return digest_of(self._salt, task)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, digest_of, self._salt, task)

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
