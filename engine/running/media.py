"""Embeddings of a batch's media: those that came with it, remembered ones, or the towers'."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from engine.errors import EngineError
from engine.models.loader import LoadedModel
from engine.request import MediaItem
from engine.running.encoder_cache import EncoderCache
from engine.running.platform import Platform
from engine.running.tower_graphs import TowerGraphs
from engine.scheduling.batch import Batch
from engine.scheduling.scheduler import Slice

TURN = 0.04  # seconds that a tower works at a time where others wait: a step or two


class Media:
    """Runs the towers and keeps what came out of them."""

    def __init__(self, loaded: LoadedModel, platform: Platform, cache_bytes: int) -> None:
        self.cache = EncoderCache(cache_bytes)
        self.encodes: list[tuple[str, float]] = []  # modality, seconds
        self.graphs: TowerGraphs | None = None
        self._loaded, self._platform = loaded, platform
        self._turns = platform.tower_turns()
        self._under_way: list[MediaItem] = []  # in their tower now
        self._ahead: dict[bytes, torch.Tensor] = {}  # by digest: of the step before or to come

    def ready(self, slices: list[Slice]) -> list[Slice]:
        """Those of a step's slices whose media are there; for others the towers go on for a while.

        All of them where towers do not work by turns: then they run when a slice is computed.
        """
        turns = self._turns
        wanted = {media.digest: media for media in media_of(slices)}
        self._ahead = {digest: self._ahead[digest] for digest in self._ahead.keys() & wanted}
        if turns is None:
            return slices
        absent = {digest: media for digest, media in wanted.items() if self._absent(media)}
        if not absent:  # what is under way is for a prompt that had no place in this step
            return slices
        if turns.busy and not any(media.digest in absent for media in self._under_way):
            turns.drop()  # others wait, and nobody for it
        if not turns.busy:
            self._under_way = items = list(absent.values())
            turns.begin(lambda: self.encode(items))
        encoded = turns.go_on(TURN)
        if encoded is not None:
            self.cache.misses += len(encoded)
            self._keep(self._under_way, encoded, turns.seconds)
            for media, embeddings in zip(self._under_way, encoded, strict=True):
                self._ahead[media.digest] = embeddings
        return [item for item in slices if not any(map(self._absent, media_of([item])))]

    def embeddings(
        self, places: list[MediaPlace], table: torch.Tensor
    ) -> list[tuple[slice, torch.Tensor]]:
        """Rows of a batch and the embeddings of media in them, as far as each slice reaches."""
        upload = self._platform.upload
        wanted = {place.media.digest: place.media for place in places}
        known = {
            digest: upload(media.tensors["embeds"]).to(table)  # need no tower and no cache
            for digest, media in wanted.items()
            if "embeds" in media.tensors
        }
        for digest in wanted:
            if digest in known:
                continue
            found = self._ahead.get(digest)
            if found is None:
                found = self.cache.get(digest)
            if found is not None:
                known[digest] = found
        missing = [media for digest, media in wanted.items() if digest not in known]
        if missing:
            begun = time.perf_counter()
            encoded = self.encode(missing)
            self._keep(missing, encoded, time.perf_counter() - begun)
            known |= {
                media.digest: embeddings for media, embeddings in zip(missing, encoded, strict=True)
            }
            cut = {place.media.digest for place in places if place.part.stop < place.media.encoded}
            self._ahead |= {digest: known[digest] for digest in cut}  # the next step has the rest
        return [(place.rows, known[place.media.digest][place.part]) for place in places]

    @torch.inference_mode()
    def encode(self, items: list[MediaItem]) -> list[torch.Tensor]:
        """What the towers make of items, one after the other: `[item.encoded, hidden]` each."""
        if self.graphs is not None:
            encoded = self.graphs.encode(items)
        else:
            family, model = self._loaded.family, self._loaded.model
            with self._platform.encoding():
                encoded = family.encode(model, items, self._platform.upload)
        for item, embeddings in zip(items, encoded, strict=True):
            if len(embeddings) != item.encoded:
                raise EngineError(f"an item of {item.encoded} rows gave {len(embeddings)}")
        return encoded

    def _keep(self, items: list[MediaItem], encoded: list[torch.Tensor], seconds: float) -> None:
        for media, embeddings in zip(items, encoded, strict=True):
            self.encodes.append((media.modality, seconds / len(items)))
            self.cache.put(media.digest, embeddings)

    def _absent(self, media: MediaItem) -> bool:
        return (
            "embeds" not in media.tensors
            and media.digest not in self._ahead
            and media.digest not in self.cache
        )


@dataclass(slots=True, frozen=True)
class MediaPlace:
    """A part of a media item's embeddings and the rows that they belong in.

    Rows are of a batch, or of the states that its tokens attend to across.
    """

    media: MediaItem
    part: slice
    rows: slice


def media_of(slices: Iterable[Slice]) -> list[MediaItem]:
    """Items that slices reach into, or are the first to attend to across."""
    found = []
    for item in slices:
        if item.start < item.sequence.prompt_length:
            found += [
                media
                for media in item.sequence.media
                if media.start < item.end and media.end > item.start
            ]
        found += [
            held.item
            for held in item.sequence.states
            if not held.stored and held.item.start < item.end
        ]
    return found


def media_places(batch: Batch) -> list[MediaPlace]:
    """Where a batch's slices reach into media."""
    places = []
    for item, offset in zip(batch.slices, batch.query_start.tolist(), strict=False):
        for media in media_of([item]):
            if media.states:
                continue
            first, last = max(media.start, item.start), min(media.end, item.end)
            part = slice(first - media.start, last - media.start)
            rows = slice(offset + first - item.start, offset + last - item.start)
            places.append(MediaPlace(media, part, rows))
    return places


def state_places(items: list[MediaItem]) -> list[MediaPlace]:
    """Where the states of items lie, one item after the other."""
    places, first = [], 0
    for media in items:
        rows = slice(first, first + media.states)
        places.append(MediaPlace(media, slice(0, media.states), rows))
        first = rows.stop
    return places
